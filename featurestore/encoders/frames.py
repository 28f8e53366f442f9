"""The frames of a video through any image encoder ID, pooled: frames+ID, frames:8+ID, frames:32,max+ID."""

from __future__ import annotations

from functools import partial
from typing import cast

from data.video import read_frames
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.encoder_ids import WrappedId
from featurestore.errors import UnknownEncoder
from featurestore.image_encoder import ImageEncoder
from featurestore.many_images import Pool, load_inner, many_images


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an encoder of videos: frames, evenly spaced, each through an image encoder.

    A video of fewer frames gives every one of them once: a repeated frame would count twice in the mean.

    Parameters
    ----------
    name
        The whole id. Options after ``frames:`` are the number of frames, 16 by default, and ``max`` to take the
        maximum of their vectors instead of the mean.
    options
        Given to the image encoder.

    Raises
    ------
    UnknownEncoder
        If the id is none of this form, or the one inside names nothing.
    EncoderError
        If the encoder inside is none of images.
    """
    wrapped = WrappedId.parse(name)
    if wrapped is None:
        raise UnknownEncoder(f"expected frames+ID, e.g. frames+efficientnet-lite0, found {name!r}")
    count, pool = int(wrapped.options["count"]), cast("Pool", wrapped.options["pool"])
    return many_images(
        wrapped,
        options,
        load_inner(wrapped, options, ImageEncoder),
        images_of=partial(read_frames, count=count),
        pool=pool,
        preprocess={"frames": count, "spacing": "uniform", "short": "kept", "pool": pool},
        decoding=("frames", count),
    )
