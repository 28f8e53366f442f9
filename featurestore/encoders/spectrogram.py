"""The spectrogram of a recording through any image encoder ID: spectrogram+ID, spectrogram:squash+ID."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np

from data.errors import SampleError
from data.manifest import Source
from data.pixels import Image8
from data.spectrogram import spectrogram_image
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.encoder_ids import WrappedId
from featurestore.encoders.audio import Framing
from featurestore.errors import UnknownEncoder
from featurestore.image_encoder import ImageEncoder
from featurestore.many_images import Pool, load_inner, many_images

MAX_WINDOWS = 4096
"""Most windows of one recording: 27 minutes."""


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an encoder of sound: a log-mel spectrogram as grey pictures, each through an image encoder.

    ``windows`` (the default) cuts the spectrogram into square windows, each half over the next, and pools their
    vectors; ``squash`` makes the whole of it one picture. Either is squashed to the image encoder's input, so that no
    crop cuts off time or frequencies.

    Parameters
    ----------
    name
        The whole id. Options after ``spectrogram:`` are ``squash``; ``max`` to take the maximum of the windows'
        vectors instead of the mean; ``trim=DB`` and ``fmax=HZ`` as of ``audio:mfcc``.
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
        raise UnknownEncoder(f"expected spectrogram+ID, e.g. spectrogram+efficientnet-lite0, found {name!r}")
    chosen = wrapped.options
    squash, pool = chosen["framing"] == "squash", cast("Pool", chosen["pool"])
    if squash and pool != "mean":
        raise UnknownEncoder(f"{name}: squash makes one picture, of which nothing is pooled; leave out {pool!r}")
    framing = Framing.parse(name, [chosen[each] for each in ("trim", "fmax") if chosen[each]])
    side = framing.mel.n_mels

    def images_of(source: Source) -> Sequence[Image8]:
        picture = spectrogram_image(framing.recording(source), framing.mel)
        return [picture] if squash else windows(picture, side, str(source))

    cut = {"framing": "squash"} if squash else {"framing": "windows", "side": side, "step": side // 2, "short": "black"}
    return many_images(
        wrapped,
        options,
        load_inner(wrapped, options, ImageEncoder),
        images_of=images_of,
        pool=pool,
        entire=True,
        preprocess={
            "spectrogram": framing.to_dict(),
            "colours": "grey, white the loudest value",
            **cut,
            "squashed": "bilinear",
            "pool": pool,
        },
        decoding=("spectrogram", framing, squash),
    )


def windows(picture: Image8, side: int, name: str) -> list[Image8]:
    """Cut a spectrogram into square windows.

    The first begins at the beginning, the last ends at the end, the others lie evenly between them, each half or more
    over the next. A spectrogram that is shorter than a window is one, black after its end: the scale of time is the
    same for short recordings as for long ones.

    Parameters
    ----------
    picture
        uint8, (side, frames), at least one frame.
    side
        Length of a window, in frames.
    name
        The recording, for the message.

    Returns
    -------
    list of ndarray
        uint8, (side, side).

    Raises
    ------
    SampleError
        If there would be more than `MAX_WINDOWS`.
    """
    frames = picture.shape[1]
    if frames <= side:
        return [np.pad(picture, ((0, 0), (0, side - frames)))]
    steps = math.ceil((frames - side) / (side // 2))
    if steps >= MAX_WINDOWS:
        found = f"{steps + 1:,} of a spectrogram of {frames:,} frames"
        raise SampleError(
            "too_large", f"{name}: expected at most {MAX_WINDOWS:,} windows, found {found}; use spectrogram:squash"
        )
    starts = [step * (frames - side) // steps for step in range(steps + 1)]
    return [np.ascontiguousarray(picture[:, start : start + side]) for start in starts]
