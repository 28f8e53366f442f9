"""The clips of a video through any video model ID, pooled: clips+ID, clips:8+ID, clips:8,max+ID."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from data.manifest import Source
from data.video import Frames8, read_frames
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.encoder_ids import WrappedId
from featurestore.errors import UnknownEncoder
from featurestore.many_images import Pool, load_inner, many_images
from featurestore.video_encoder import VideoEncoder


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an encoder of videos: stretches of equal length, a clip of each through a video model.

    A video with too few frames for all the clips has as many as it has frames for, so that no clip is counted twice;
    one of fewer frames than a clip is one clip, whose last frame is repeated.

    Parameters
    ----------
    name
        The whole id. Options after ``clips:`` are the number of clips, 4 by default, and ``max`` to take the maximum
        of their vectors instead of the mean.
    options
        Given to the video model.

    Raises
    ------
    UnknownEncoder
        If the id is none of this form, or the one inside names nothing.
    EncoderError
        If the encoder inside is none of clips, or tokens were asked for.
    """
    wrapped = WrappedId.parse(name)
    if wrapped is None:
        raise UnknownEncoder(f"expected clips+ID, e.g. clips+torchvision:mvit_v2_s/KINETICS400_V1, found {name!r}")
    clips, pool = int(wrapped.options["count"]), cast("Pool", wrapped.options["pool"])
    inner = load_inner(wrapped, options, VideoEncoder)
    frames = inner.transform.frames

    def clips_of(source: Source) -> Sequence[Frames8]:
        sampled = read_frames(source, frames, clips=clips, pad=True)
        return list(sampled.reshape(-1, frames, *sampled.shape[1:]))

    return many_images(
        wrapped,
        options,
        inner,
        images_of=clips_of,
        pool=pool,
        preprocess={"clips": clips, "spacing": "uniform", "short": "fewer clips", "pool": pool},
        decoding=("clips", clips, frames),
        images_per_sample=clips * inner.images_per_sample,
    )
