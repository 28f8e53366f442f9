"""ImageEncoder: any frozen image tower, with the work shared by all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from data.images import load_image
from data.manifest import Source
from data.pixels import Image8, as_rgb
from featurestore.encoder import Embeddings
from featurestore.forward import Forward, pinned
from featurestore.levels import as_levels, joined
from featurestore.spec import EncoderSpec
from featurestore.transform import ImageTransform


class ImageEncoder:
    """A frozen image encoder; fulfils `featurestore.encoder.Encoder`.

    In ``fp32`` the geometry is the library's own, computed on the CPU in the reading threads. In ``fp16``
    and ``bf16`` large images are decoded at a fraction of their size, and a GPU resizes what it is given.
    Pixels travel as bytes and are normalised on the device.

    Parameters
    ----------
    spec
        The encoder's identity; or, of several levels of one pass, that of each.
    transform
        Geometry and statistics of the checkpoint.
    compute
        From normalised images, float32 of shape (n, 3, h, w), to embeddings of shape (n, dim); of tokens to
        (n, t, dim), of several levels to a tuple.
    reference_transform
        The library's own transform, from an RGB PIL image to a float32 tensor of shape (3, h, w).
    reference_compute
        The library's own forward pass, where `compute` is a faster one; None: `compute` is the library's own.
    device
        A torch device.
    channels_last
        Whether the network is convolutional and computes faster with channels innermost.
    network
        What `compute` computes with; without it the encoder cannot be fine-tuned.
    """

    thread_safe = True
    truncated = 0

    def __init__(
        self,
        *,
        spec: EncoderSpec | tuple[EncoderSpec, ...],
        transform: ImageTransform,
        compute: Callable[[Tensor], Any],
        reference_transform: Callable[[Image.Image], Tensor],
        reference_compute: Callable[[Tensor], Any] | None = None,
        device: str,
        channels_last: bool = False,
        network: nn.Module | None = None,
    ) -> None:
        self.levels = spec if isinstance(spec, tuple) else (spec,)
        self.spec = self.levels[0]
        self.transform = transform
        self.network = network
        self._forward = Forward(compute, device=device, precision=self.spec.precision)
        self._reference = Forward(reference_compute or compute, device=device, precision="fp32")
        self._reference_transform = reference_transform
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._exact = self.spec.precision == "fp32"
        self._resize_on_device = not self._exact and self._forward.device.type == "cuda"

    @property
    def fallbacks(self) -> int:
        """Number of batches that overflowed half precision and were computed again in fp32."""
        return self._forward.fallbacks

    @property
    def decoding(self) -> int | None:
        """What `decode` depends on besides the file: encoders that agree on it may share the image."""
        return None if self._exact else self.transform.decode_side

    def read(self, source: Source | Image8) -> Tensor:
        """Return one image, of a file or decoded, as uint8: (3, h, w), or (h, w, 3) where the device will resize it.

        Raises
        ------
        SampleError
            If the image cannot be decoded, or is too elongated to be resized.
        """
        return self.prepare(self.decode(source) if isinstance(source, Source) else source)

    def decode(self, source: Source) -> Image8:
        """Return one image as it comes from the file, in a fraction of its size where that is allowed.

        Raises
        ------
        SampleError
            If the image cannot be decoded.
        """
        return load_image(source, scaled_to=self.decoding, keep_grey=True)

    def prepare(self, image: Image8) -> Tensor:
        """Return what `read` does, of an image that was decoded.

        Raises
        ------
        SampleError
            If it is too elongated to be resized.
        """
        return torch.from_numpy(image) if self._resize_on_device else self.transform.apply(image)

    def collate(self, items: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Return a batch: one uint8 tensor (n, 3, h, w), or a list where the device will resize."""
        device = self._forward.device
        if self._resize_on_device:
            return [pinned(item, device) for item in items]
        return pinned(torch.stack(list(items)), device)

    def encode(self, batch: Tensor | list[Tensor]) -> Embeddings:
        """Return the embeddings of a batch: float32, shape (n, dim) or of tokens (n, t, dim), on the CPU."""
        return self.encode_levels(batch)[0]

    def encode_levels(self, batch: Tensor | list[Tensor]) -> tuple[Embeddings, ...]:
        """Return the embeddings of a batch, level by level."""
        return as_levels(self._forward(self._ready(self._on_device(batch))))

    def differentiable(self, batch: Tensor | list[Tensor]) -> tuple[Embeddings, ...]:
        """Return what `encode_levels` does with its gradients, on the device, in the arithmetic around the call."""
        return as_levels(self._forward.compute(self._ready(self._on_device(batch))))

    def encode_reference(self, sources: Sequence[Source | Image8]) -> Embeddings:
        """Return the embeddings by the library's own transform in fp32, one by one."""
        return self.encode_reference_levels(sources)[0]

    def encode_reference_levels(self, sources: Sequence[Source | Image8]) -> tuple[Embeddings, ...]:
        """Return the embeddings by the library's own transform in fp32, one by one, level by level."""
        return joined([as_levels(self._reference(self._reference_input(source))) for source in sources])

    def _on_device(self, batch: Tensor | list[Tensor]) -> Tensor:
        device = self._forward.device
        if isinstance(batch, list):
            return torch.stack([self.transform.apply_on_device(image, device) for image in batch])
        return batch.to(device, non_blocking=True)

    def _ready(self, pixels: Tensor) -> Tensor:
        return self.transform.normalize(pixels).contiguous(memory_format=self._layout)

    def _reference_input(self, source: Source | Image8) -> Tensor:
        pixels = load_image(source) if isinstance(source, Source) else as_rgb(source)
        image: Any = self._reference_transform(Image.fromarray(pixels))
        ready: Tensor = image.unsqueeze(0).to(self._forward.device)
        return ready.contiguous(memory_format=self._layout)
