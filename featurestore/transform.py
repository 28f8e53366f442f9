"""ImageTransform: a checkpoint's image geometry and statistics, exactly as its own library applies them.

One pixel of difference in the size an image is resized to costs 0.002 of cosine similarity, so every
rounding rule of the reference libraries is a field here, read from the checkpoint's own configuration
by `featurestore.transform_sources` and equal to the library's transform pixel by pixel.

A transform has two halves, so that images travel as bytes: `apply` makes uint8 pixels on the CPU, one
image at a time and from many threads; `normalize` makes floats of a whole batch on its device.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from data.errors import SampleError
from data.pixels import MAX_PIXELS, Image8

Resize = Literal["shortest", "cover", "contain", "squash", "none"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

_PILLOW_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class _Span:
    """One axis of a centre crop: `length` pixels from `start`, written at `offset` of `out` pixels."""

    start: int
    length: int
    offset: int
    out: int


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Resize, centre crop and normalise, to the letter of a reference library.

    Attributes
    ----------
    resize
        ``shortest``: the short side becomes ``size[0]``, the long side is cut to a whole number (torchvision);
        ``cover`` and ``contain``: the smallest image that covers, the largest that fits `size`, both sides rounded
        (open_clip, timm); ``squash``: exactly `size`; ``none``: left as it is.
    size
        Height and width, in pixels.
    crop
        Height and width of the centre crop after the resize; a side that is too short is padded. None: no crop.
    crop_rule
        Where a crop begins when the margin is odd: ``torchvision`` rounds half to even; ``transformers`` and
        ``transformers_pil`` cut down, and pad with the odd pixel behind and in front, respectively.
    fill
        Colour of the padding, 0..255.
    interpolation
        The resampling filter; all but ``nearest`` are antialiased.
    backend
        Whose resampling is the reference: ``pillow``, or ``torch`` (uint8, antialiased).
    mean, std
        Statistics per channel, of values in 0..1.
    rescale
        Factor from bytes to the scale of `mean`.
    normalization
        ``sequential``: bytes are rescaled, then normalised (torchvision); ``fused``: the statistics are rescaled
        instead (transformers). They differ in the last bit.
    """

    resize: Resize
    size: tuple[int, int]
    crop: tuple[int, int] | None = None
    crop_rule: Literal["torchvision", "transformers", "transformers_pil"] = "torchvision"
    fill: tuple[int, int, int] = (0, 0, 0)
    interpolation: Interpolation = "bicubic"
    backend: Literal["pillow", "torch"] = "pillow"
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale: float = 1 / 255
    normalization: Literal["sequential", "fused"] = "sequential"

    def to_dict(self) -> dict[str, Any]:
        """Return the transform as JSON-ready values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def decode_side(self) -> int | None:
        """The side that `data.images.load_image` may scale to without loss: its `scaled_to`."""
        return None if self.resize == "none" else max(self.size)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that an image is resized to, before the crop.

        Raises
        ------
        SampleError
            If the result would have no pixels, or too many.
        """
        new_height, new_width = self._resized(height, width)
        if min(new_height, new_width) < 1 or new_height * new_width > MAX_PIXELS:
            raise SampleError(
                "unsupported",
                f"an image of {width}x{height} pixels would be resized to {new_width}x{new_height}; "
                f"expected 1 to {MAX_PIXELS:,} pixels",
            )
        return new_height, new_width

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.resize == "none":
            return height, width
        if self.resize == "squash":
            return self.size
        if self.resize == "shortest":
            long = int(self.size[0] * max(height, width) / min(height, width))
            return (long, self.size[0]) if width <= height else (self.size[0], long)
        ratios = height / self.size[0], width / self.size[1]
        ratio = min(ratios) if self.resize == "cover" else max(ratios)
        return round(height / ratio), round(width / ratio)

    def apply(self, image: Image8) -> Tensor:
        """Resize and crop one image as the reference library does.

        Parameters
        ----------
        image
            uint8, (height, width, 3), or (height, width) for grey.

        Returns
        -------
        Tensor
            uint8, (3, h, w), contiguous, on the CPU.

        Raises
        ------
        SampleError
            If the image is so elongated that its resized form would have no pixels, or too many.
        """
        if self.backend == "torch":
            return self._apply_torch(torch.from_numpy(image))
        height, width = self.resized(*image.shape[:2])
        rows, columns = self._spans(height, width)
        # All of it, then the crop. Pillow's `box` would compute the crop alone, but it is a float32 and moves some
        # pixels by a grey level; the order of Pillow's two passes differs between releases and cannot be relied on.
        resized = Image.fromarray(image).resize((width, height), _PILLOW_FILTERS[self.interpolation])
        box = (columns.start, rows.start, columns.start + columns.length, rows.start + rows.length)
        window = torch.from_numpy(np.array(resized if box == (0, 0, width, height) else resized.crop(box)))
        return self._pad(window.permute(2, 0, 1) if window.ndim == 3 else window[None], rows, columns)

    def entire(self, image: Image8) -> Image8:
        """Squash an image so that `apply` shows all of it: nothing of a long spectrogram is cut off by a crop.

        Parameters
        ----------
        image
            uint8, (height, width, 3), or (height, width) for grey.

        Returns
        -------
        ndarray
            uint8, of the size that `apply` leaves as it is; the image, resized with an antialiased bilinear filter,
            fills the part that a crop keeps, and the rest is black.
        """
        if self.resize == "none" and self.crop is None:
            return image
        height, width = (self.size[0], self.size[0]) if self.resize == "shortest" else self.size
        rows, columns = self._spans(height, width)
        squashed = Image.fromarray(image).resize((columns.length, rows.length), Image.Resampling.BILINEAR)
        canvas = np.zeros((height, width, *image.shape[2:]), np.uint8)
        canvas[rows.start : rows.start + rows.length, columns.start : columns.start + columns.length] = squashed
        return canvas

    def apply_on_device(self, image: Tensor, device: torch.device | str) -> Tensor:
        """Resize and crop one image on a device: the geometry of `apply`, within a grey level or two.

        Parameters
        ----------
        image
            uint8, (height, width, 3), or (height, width) for grey.
        device
            Where to compute; the result stays there.

        Returns
        -------
        Tensor
            uint8, (3, h, w).
        """
        # Torch has no Lanczos filter on GPUs.
        worker = "cpu" if self.interpolation == "lanczos" else device
        return self._apply_torch(image.to(worker, non_blocking=True)).to(device)

    def normalize(self, batch: Tensor) -> Tensor:
        """Turn bytes into the model's input.

        Parameters
        ----------
        batch
            uint8, (n, 3, h, w).

        Returns
        -------
        Tensor
            float32, (n, 3, h, w), on the batch's device: ``(x * rescale - mean) / std``.
        """
        constants = _constants(self, batch.device)
        real = batch.to(torch.float32, copy=True)
        if self.normalization == "sequential":
            # ToTensor divides by 255; times 1/255 differs in the last bit.
            real = real.div_(constants.full_scale) if self.rescale == 1 / 255 else real.mul_(self.rescale)
        return real.sub_(constants.mean).div_(constants.std)

    def _apply_torch(self, image: Tensor) -> Tensor:
        channels = image.permute(2, 0, 1) if image.ndim == 3 else image[None]
        height, width = self.resized(*image.shape[:2])
        mode = InterpolationMode(self.interpolation)
        resized = tv.resize(channels, [height, width], interpolation=mode, antialias=True)
        rows, columns = self._spans(height, width)
        window = resized[:, rows.start : rows.start + rows.length, columns.start : columns.start + columns.length]
        return self._pad(window, rows, columns)

    def _spans(self, height: int, width: int) -> tuple[_Span, _Span]:
        if self.crop is None:
            return _Span(0, height, 0, height), _Span(0, width, 0, width)
        return self._span(height, self.crop[0]), self._span(width, self.crop[1])

    def _span(self, length: int, crop: int) -> _Span:
        if crop > length:
            missing = crop - length
            before = (missing + 1) // 2 if self.crop_rule == "transformers_pil" else missing // 2
            return _Span(0, length, before, crop)
        margin = (length - crop) / 2
        start = round(margin) if self.crop_rule == "torchvision" else int(margin)
        return _Span(start, crop, 0, crop)

    def _pad(self, window: Tensor, rows: _Span, columns: _Span) -> Tensor:
        """Return three channels of the crop's full size: grey repeated, missing borders filled."""
        window = window.expand(3, -1, -1)
        if (rows.length, columns.length) == (rows.out, columns.out):
            return window.contiguous()
        fill = torch.tensor(self.fill, dtype=torch.uint8, device=window.device)
        canvas = fill[:, None, None].repeat(1, rows.out, columns.out)
        canvas[:, rows.offset : rows.offset + rows.length, columns.offset : columns.offset + columns.length] = window
        return canvas


@dataclass(frozen=True)
class _Constants:
    mean: Tensor
    std: Tensor
    full_scale: Tensor


@lru_cache(maxsize=32)
def _constants(transform: ImageTransform, device: torch.device) -> _Constants:
    """Return a transform's statistics on a device: copied there once, not once a batch."""
    mean = torch.tensor(transform.mean).reshape(3, 1, 1)
    std = torch.tensor(transform.std).reshape(3, 1, 1)
    if transform.normalization == "fused":
        mean, std = mean * (1.0 / transform.rescale), std * (1.0 / transform.rescale)
    # A tensor, because dividing by a Python number on a GPU multiplies by its rounded inverse.
    return _Constants(mean.to(device), std.to(device), torch.tensor(255.0, device=device))
