"""What every image decoder shares: the size limit, the selector, and the way to eight bits.

Deep images (more than 8 bits per sample) have no display range of their own, so one is chosen here,
deterministically and from the image alone: linear from its smallest to its largest value. The range of
the type would turn a 12-bit radiograph stored in 16 bits nearly black.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import SampleError

Image8 = NDArray[np.uint8]
"""An image of eight bits per sample: (height, width, 3) for colour, (height, width) for grey."""

MAX_PIXELS = 178_956_970
"""Largest image that is decoded, in pixels (about 13,377 squared): Pillow's own limit against decompression bombs."""


def check_pixels(name: str, height: int, width: int) -> None:
    """Refuse an image by the size its header declares, before its pixels are allocated.

    Raises
    ------
    SampleError
        ``too_large`` above `MAX_PIXELS`, ``unreadable`` where a side is not positive.
    """
    if height < 1 or width < 1:
        raise SampleError("unreadable", f"{name}: the header declares an image of {width}x{height} pixels")
    if height * width > MAX_PIXELS:
        raise SampleError(
            "too_large", f"{name}: expected at most {MAX_PIXELS:,} pixels, the header declares {width}x{height}"
        )


def parse_selector(name: str, selector: str, *known: str) -> dict[str, int]:
    """Return the parts of a selector such as ``axis=0,slice=12``.

    Raises
    ------
    SampleError
        If a part is not one of `known`, is repeated, or is not a non-negative whole number.
    """
    parts: dict[str, int] = {}
    for part in filter(None, selector.split(",")):
        key, _, value = (text.strip() for text in part.partition("="))
        if key not in known or key in parts or not (value.isascii() and value.isdigit()):
            forms = " or ".join(f"{word}=NUMBER" for word in known)
            raise SampleError("unreadable", f"{name}: expected a selector {forms}, found {selector!r}")
        parts[key] = int(value)
    return parts


def pick(name: str, what: str, index: int | None, count: int, default: int) -> int:
    """Return the frame or slice asked for, or the default, after checking that it exists.

    Raises
    ------
    SampleError
        If there are not that many.
    """
    if index is None:
        return default
    if index >= count:
        raise SampleError("unreadable", f"{name}: expected {what} 0 to {count - 1}, the selector asks for {index}")
    return index


def stretch(name: str, values: NDArray[Any], low: float | None = None, high: float | None = None) -> Image8:
    """Map values linearly from low..high to 0..255, rounding to nearest and clipping.

    Parameters
    ----------
    name
        The file, for messages.
    values
        Pixels of any shape and real type. NaN means "no data" and becomes 0.
    low, high
        The range; the image's own smallest and largest finite value where not given. An image of one
        value becomes 0.

    Raises
    ------
    SampleError
        ``not_finite`` if no value is a number, or if one is infinite.
    """
    real = values.astype(np.float64)
    missing = np.isnan(real)
    if np.isinf(real).any() or missing.all():
        raise SampleError("not_finite", f"{name}: expected numbers as pixels, found infinite values or only NaN")
    low = float(np.nanmin(real)) if low is None else low
    high = float(np.nanmax(real)) if high is None else high
    if high <= low:
        return np.zeros(real.shape, np.uint8)
    real[missing] = low
    # Halved first: the width of a range may exceed the largest float64 though its ends do not.
    scaled = (real / 2 - low / 2) / (high / 2 - low / 2) * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def as_rgb(image: Image8) -> Image8:
    """Return a C-contiguous (height, width, 3) image; grey is repeated."""
    if image.ndim == 2:
        image = np.repeat(image[:, :, None], 3, axis=2)
    return np.ascontiguousarray(image)


DECODER_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What decoders raise on damaged files, besides errors of their own.

Not only OSError and ValueError: a header that points nowhere surfaces as whatever the decoder's own code
trips over.
"""


@contextmanager
def decoding(name: str, what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into a SampleError, with the cause chained.

    Parameters
    ----------
    name
        The file, for the message.
    what
        What was expected, e.g. ``a PNG image``.
    errors
        The decoder's own errors, besides `DECODER_ERRORS`.
    """
    try:
        # Absurd scales in damaged headers overflow; `stretch` refuses what is infinite in the end.
        with np.errstate(all="ignore"):
            yield
    except SampleError:
        raise
    except (*DECODER_ERRORS, *errors) as error:
        reason = one_line(error)
        cut = isinstance(error, EOFError) or any(word in reason.lower() for word in ("truncated", "unexpected end"))
        found = "a file cut short" if cut else "damaged content"
        raise SampleError(
            "truncated" if cut else "unreadable", f"{name}: expected {what}, found {found} ({reason})"
        ) from error


def one_line(error: BaseException) -> str:
    """Return what another library said, on one line and short enough to read."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
