"""ManyImages: an encoder of samples that become several images each, through any image encoder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from data.errors import SampleError
from data.manifest import Source
from data.pixels import Image8
from featurestore.catalog import load_encoder
from featurestore.encoder import Embeddings, EncoderOptions
from featurestore.encoder_ids import WrappedId
from featurestore.errors import EncoderError
from featurestore.image_encoder import ImageEncoder
from featurestore.levels import joined
from featurestore.spec import TOKENS, EncoderSpec

Pool = Literal["mean", "max", "none"]
_IMAGES_AT_ONCE = {"cpu": 8, "cuda": 256}
"""Images in one forward pass: few enough for a CPU's cache, enough to keep a GPU busy."""


class ImageBatch(NamedTuple):
    """The images of several samples, one after the other.

    Attributes
    ----------
    batches
        What the image encoder's `collate` made, some images at a time.
    counts
        Number of images of each sample.
    """

    batches: Sequence[Any]
    counts: tuple[int, ...]


class Decoded(NamedTuple):
    """A sample and its images."""

    source: Source
    images: Sequence[Image8]


class ManyImages:
    """A frozen encoder of videos, sounds, ...: every image of a sample is encoded, then pooled to one vector.

    Fulfils `featurestore.encoder.Encoder`. An image's vector does not depend on the images beside it.

    Parameters
    ----------
    inner
        Encodes the images.
    levels
        The identity of the whole at each level of `inner`; see `load_many_images`.
    images_of
        From a sample to its images, at least one: uint8, (h, w, 3) or (h, w).
    pool
        ``mean`` of a sample's vectors, or their ``max``imum, value by value; ``none`` keeps all of them, as many of
        every sample.
    entire
        Whether an image is squashed to the image encoder's input; else it is resized and cropped as the encoder does.
    device
        Where `inner` computes.
    images_per_sample
        How many images a sample has, about: there are as many times fewer samples in a batch.
    """

    def __init__(
        self,
        *,
        inner: ImageEncoder,
        levels: tuple[EncoderSpec, ...],
        images_of: Callable[[Source], Sequence[Image8]],
        pool: Pool,
        entire: bool,
        device: str,
        images_per_sample: int = 16,
    ) -> None:
        self.images_per_sample = images_per_sample
        self.levels = levels
        self.spec = levels[0]
        self.thread_safe = inner.thread_safe
        self.truncated = 0
        self._inner = inner
        self._images_of = images_of
        self._entire = entire
        self._pool = pool
        self._at_once = _IMAGES_AT_ONCE[torch.device(device).type]

    @property
    def fallbacks(self) -> int:
        """Number of batches of images that overflowed half precision and were computed again in fp32."""
        return self._inner.fallbacks

    @property
    def decoding(self) -> str:
        """What `decode` depends on besides the sample: encoders that agree on it may share the images."""
        return json.dumps([self.spec.family, self.spec.preprocess], sort_keys=True)

    def read(self, source: Source) -> list[Tensor]:
        """Return the images of one sample, each as the image encoder reads one.

        Raises
        ------
        SampleError
            If the sample cannot be decoded, or its images are too elongated to be resized.
        """
        return self.prepare(self.decode(source))

    def decode(self, source: Source) -> Decoded:
        """Return the images of one sample.

        Raises
        ------
        SampleError
            If the sample cannot be decoded.
        """
        return Decoded(source, self._images_of(source))

    def prepare(self, decoded: Decoded) -> list[Tensor]:
        """Return what `read` does, of a sample that was decoded.

        Raises
        ------
        SampleError
            If its images are too elongated to be resized.
        """
        source, images = decoded
        try:
            return [self._inner.read(image) for image in self._ready(images)]
        except SampleError as error:
            # An image encoder knows the size of an image but not where it is from.
            raise error if str(source) in str(error) else SampleError(error.kind, f"{source}: {error}") from error

    def collate(self, items: Sequence[Sequence[Tensor]]) -> ImageBatch:
        """Return the images of all samples, in batches for the image encoder."""
        images = [image for item in items for image in item]
        starts = range(0, len(images), self._at_once)
        return ImageBatch(
            batches=[self._inner.collate(images[start : start + self._at_once]) for start in starts],
            counts=tuple(map(len, items)),
        )

    def encode(self, batch: ImageBatch) -> Tensor:
        """Return the embeddings of a batch: float32, shape (n, dim), or unpooled (n, images, dim), on the CPU."""
        return self.encode_levels(batch)[0]

    def encode_levels(self, batch: ImageBatch) -> tuple[Tensor, ...]:
        """Return the embeddings of a batch, level by level."""
        return self._pooled([self._inner.encode_levels(images) for images in batch.batches], batch.counts)

    def encode_reference(self, sources: Sequence[Source]) -> Tensor:
        """Return the embeddings by the image library's own transform in fp32, one image at a time."""
        return self.encode_reference_levels(sources)[0]

    def encode_reference_levels(self, sources: Sequence[Source]) -> tuple[Tensor, ...]:
        """Return the embeddings by the image library's own transform in fp32, one by one, level by level."""
        images = [self._ready(self._images_of(source)) for source in sources]
        return self._pooled([self._inner.encode_reference_levels(each) for each in images], tuple(map(len, images)))

    def _ready(self, images: Sequence[Image8]) -> list[Image8]:
        return [self._inner.transform.entire(image) for image in images] if self._entire else list(images)

    def _pooled(self, parts: Sequence[tuple[Embeddings, ...]], counts: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return one vector per sample of its images' at each level, or all; the images come in several batches."""

        def pooled(vectors: Tensor) -> Tensor:
            if self._pool == "none":
                return vectors
            return vectors.mean(0) if self._pool == "mean" else vectors.amax(0)

        levels = cast("tuple[Tensor, ...]", joined(parts))
        return tuple(torch.stack(list(map(pooled, torch.split(level, list(counts))))) for level in levels)


def load_many_images(
    wrapped: WrappedId,
    options: EncoderOptions,
    *,
    images_of: Callable[[Source], Sequence[Image8]],
    pool: Pool,
    entire: bool = False,
    images_per_sample: int = 16,
    preprocess: Mapping[str, Any],
) -> ManyImages:
    """Return a wrapper around the image encoder that its id names.

    Parameters
    ----------
    wrapped
        The id.
    options
        Given to the image encoder: pooling of its tokens, precision, stored type, device.
    images_of, pool, entire, images_per_sample
        See `ManyImages`.
    preprocess
        What decides the images and how their vectors are pooled; with the specification of the image encoder it is
        the identity of the whole.

    Raises
    ------
    EncoderError
        If the id inside names no encoder of images, or one of another make than `ImageEncoder`; or if tokens were
        asked for.
    """
    wrapper, name = wrapped.wrapper, f"{wrapped.prefix}+{wrapped.inner}"
    if options.modality not in (None, wrapper.encodes):
        raise EncoderError(f"{name} encodes {wrapper.encodes}, not {options.modality}")
    if TOKENS in options.poolings:
        pooled = "every view is pooled" if pool == "none" else "the images of a sample are pooled"
        raise EncoderError(f"{name}: {pooled} to one vector, so it has no tokens to store")
    inner = load_encoder(wrapped.inner, replace(options, modality=wrapper.takes))
    if not isinstance(inner, ImageEncoder):
        found = type(inner).__name__
        raise EncoderError(f"{name}: {wrapped.word} needs an encoder made as `ImageEncoder`, found {found}")
    levels = tuple(
        replace(
            level,
            family=wrapped.word,
            modality=wrapper.encodes,
            architecture={"encoder": level.to_dict()},
            preprocess=dict(preprocess),
            version=1,
        )
        for level in inner.levels
    )
    return ManyImages(
        inner=inner,
        levels=levels,
        images_of=images_of,
        pool=pool,
        entire=entire,
        device=options.device,
        images_per_sample=images_per_sample,
    )
