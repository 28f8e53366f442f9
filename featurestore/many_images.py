"""ManyImages: an encoder of samples that become several images, or clips, each, through an encoder of one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, cast

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
from featurestore.pooling_text import Pooling
from featurestore.spec import AUGMENTED, EncoderSpec
from featurestore.video_encoder import VideoEncoder

Inner: TypeAlias = ImageEncoder | VideoEncoder
Kind = TypeVar("Kind", ImageEncoder, VideoEncoder)
Pool = Literal["mean", "max", "none"]
_IMAGES_AT_ONCE = {"cpu": 8, "cuda": 256}
"""Images in one forward pass: few enough for a CPU's cache, enough to keep a GPU busy."""


class ImageBatch(NamedTuple):
    """The images of several samples, one after the other.

    Attributes
    ----------
    batches
        What `collate` of the encoder inside made, some images at a time.
    counts
        Number of images of each sample.
    """

    batches: Sequence[Any]
    counts: tuple[int, ...]


class Decoded(NamedTuple):
    """A sample and its images."""

    source: Source
    images: Iterable[Image8]


class ManyImages:
    """A frozen encoder of videos, sounds, ...: every image of a sample is encoded, then pooled to one vector.

    Fulfils `featurestore.encoder.Encoder`. An image's vector does not depend on the images beside it. Where the encoder
    inside takes clips, an image is a clip.

    Parameters
    ----------
    inner
        Encodes the images.
    levels
        The identity of the whole at each level of `inner`; see `many_images`.
    images_of
        From a sample to its images, at least one: uint8, (h, w, 3) or (h, w); of clips (t, h, w, 3).
    pool
        ``mean`` of a sample's vectors, or their ``max``imum, value by value; ``none`` keeps all of them, as many of
        every sample.
    squash
        Makes the image encoder's input of an entire image; None: the encoder resizes and crops as it does by itself.
    decoding
        What `decode` depends on besides the sample: encoders that agree on it may share the images.
    device
        Where `inner` computes.
    images_per_sample
        How much work a sample is, in images.
    """

    def __init__(
        self,
        *,
        inner: Inner,
        levels: tuple[EncoderSpec, ...],
        images_of: Callable[[Source], Iterable[Image8]],
        pool: Pool,
        squash: Callable[[Image8], Image8] | None,
        decoding: Hashable,
        device: str,
        images_per_sample: int,
    ) -> None:
        self.levels = levels
        self.spec = levels[0]
        self.decoding = decoding
        self.images_per_sample = images_per_sample
        self.thread_safe = inner.thread_safe
        self.truncated = 0
        self._inner: Any = inner  # which takes what `images_of` gives
        self._images_of = images_of
        self._squash = squash
        self._pool = pool
        self._at_once = max(1, _IMAGES_AT_ONCE[torch.device(device).type] // getattr(inner, "images_per_sample", 1))

    @property
    def fallbacks(self) -> int:
        """Number of batches of images that overflowed half precision and were computed again in fp32."""
        fallbacks: int = self._inner.fallbacks
        return fallbacks

    def read(self, source: Source) -> list[Tensor]:
        """Return the images of one sample, each as the encoder inside reads one.

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
            # The encoder inside knows the size of an image but not where it is from.
            raise error if str(source) in str(error) else SampleError(error.kind, f"{source}: {error}") from error

    def collate(self, items: Sequence[Sequence[Tensor]]) -> ImageBatch:
        """Return the images of all samples, in batches for the encoder inside."""
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
        """Return the embeddings by the library's own transform in fp32, one image at a time."""
        return self.encode_reference_levels(sources)[0]

    def encode_reference_levels(self, sources: Sequence[Source]) -> tuple[Tensor, ...]:
        """Return the embeddings by the library's own transform in fp32, one by one, level by level."""
        images = [self._ready(self._images_of(source)) for source in sources]
        return self._pooled([self._inner.encode_reference_levels(each) for each in images], tuple(map(len, images)))

    def _ready(self, images: Iterable[Image8]) -> list[Image8]:
        return list(images if self._squash is None else map(self._squash, images))

    def _pooled(self, parts: Sequence[tuple[Embeddings, ...]], counts: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Return one vector per sample of its images' at each level, or all; the images come in several batches."""

        def pooled(vectors: Tensor) -> Tensor:
            if self._pool == "none":
                return vectors
            return vectors.mean(0) if self._pool == "mean" else vectors.amax(0)

        levels = cast("tuple[Tensor, ...]", joined(parts))
        return tuple(torch.stack(list(map(pooled, torch.split(level, list(counts))))) for level in levels)


def load_inner(wrapped: WrappedId, options: EncoderOptions, kind: type[Kind]) -> Kind:
    """Return the encoder inside a wrapper.

    Parameters
    ----------
    wrapped
        The id.
    options
        Given to the encoder: pooling of its tokens, precision, stored type, device.
    kind
        Of which make it has to be.

    Raises
    ------
    EncoderError
        If the id inside names an encoder of another modality or make; or if tokens were asked for.
    """
    wrapper, name = wrapped.wrapper, f"{wrapped.prefix}+{wrapped.inner}"
    if options.modality not in (None, wrapper.encodes):
        raise EncoderError(f"{name} encodes {wrapper.encodes}, not {options.modality}")
    if any(Pooling.parse(pooling).is_tokens for pooling in options.poolings):
        parts = "images" if kind is ImageEncoder else "clips"
        pooled = "every view is pooled" if wrapped.word == AUGMENTED else f"the {parts} of a sample are pooled"
        raise EncoderError(f"{name}: {pooled} to one vector, so it has no tokens to store")
    inner = load_encoder(wrapped.inner, replace(options, modality=wrapper.takes))
    if not isinstance(inner, kind):
        found = type(inner).__name__
        raise EncoderError(f"{name}: {wrapped.word} needs an encoder made as `{kind.__name__}`, found {found}")
    return inner


def many_images(
    wrapped: WrappedId,
    options: EncoderOptions,
    inner: Inner,
    *,
    images_of: Callable[[Source], Iterable[Image8]],
    pool: Pool,
    entire: bool = False,
    preprocess: Mapping[str, Any],
    decoding: Hashable,
    images_per_sample: int = 16,
) -> ManyImages:
    """Return a wrapper around an encoder.

    Parameters
    ----------
    wrapped
        The id.
    options
        Know the device.
    inner
        The encoder, see `load_inner`.
    images_of, pool, decoding, images_per_sample
        See `ManyImages`.
    entire
        Whether an image is squashed to the image encoder's input; else it is resized and cropped as the encoder does.
    preprocess
        What decides the images and how their vectors are pooled; with the specification of the encoder inside it is
        the identity of the whole.
    """
    levels = tuple(
        replace(
            level,
            family=wrapped.word,
            modality=wrapped.wrapper.encodes,
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
        squash=inner.transform.entire if entire and isinstance(inner, ImageEncoder) else None,
        decoding=decoding,
        device=options.device,
        images_per_sample=images_per_sample,
    )
