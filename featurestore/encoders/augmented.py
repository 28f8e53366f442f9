"""Augmented views of an image through any image encoder ID, to train on: augmented+ID, augmented:8,flip+ID."""

from __future__ import annotations

from collections.abc import Sequence

from data.images import load_image
from data.manifest import Source
from data.pixels import Image8
from featurestore.augmentation import Augmentation
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.encoder_ids import WrappedId
from featurestore.errors import UnknownEncoder
from featurestore.many_images import load_many_images


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an encoder that gives several vectors of an image: one per augmented view, each pooled as ID pools images.

    Heads learn from the views of training samples beside the images themselves; what is judged is the image alone.

    Parameters
    ----------
    name
        The whole id. Options after ``augmented:`` are the number of views, 4 by default; ``flip``, ``rotation=DEGREES``
        and ``randaugment`` or ``randaugment=MAGNITUDE``, by default a flip and 10 degrees; and ``seed=N``. A flip
        changes the label where it says left or right.
    options
        Given to the image encoder.

    Raises
    ------
    UnknownEncoder
        If the id is none of this form, a number in it is out of range, or the one inside names nothing.
    EncoderError
        If the encoder inside is none of images.
    """
    wrapped = WrappedId.parse(name)
    if wrapped is None:
        raise UnknownEncoder(f"expected augmented+ID, e.g. augmented+efficientnet-lite0, found {name!r}")
    try:
        augmentation = Augmentation.of(wrapped.options)
    except ValueError as error:
        raise UnknownEncoder(f"{name}: {error}") from error

    def views_of(source: Source) -> Sequence[Image8]:
        return augmentation.views(load_image(source, keep_grey=True))

    return load_many_images(
        wrapped,
        options,
        images_of=views_of,
        pool="none",
        images_per_sample=augmentation.count,
        preprocess=augmentation.to_dict(),
    )
