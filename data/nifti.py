"""NIfTI: one slice of a volume, upright, in eight bits.

The volume is turned to its closest canonical orientation (first axis to the right, second to the front,
third to the top of the patient), so ``axis=2,slice=k`` is axial whatever the file's own order. A slice is
shown with front or top up and the patient's right to the right. Without a selector it is the middle axial
slice; ``slice=k`` alone is axial. Of a series, the first volume counts.

Intensities have no scale in NIfTI: the slice's 0.5th to 99.5th percentile becomes 0..255, or its minimum to
maximum where those percentiles coincide. NaN means outside, and becomes black.
"""

from __future__ import annotations

import gzip
import io
import logging
from typing import Any

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import OrientationError, apply_orientation, io_orientation
from nibabel.spatialimages import HeaderDataError, ImageDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from data.errors import SampleError
from data.pixels import Image8, check_pixels, decoding, parse_selector, pick, stretch

_SIZES_1 = {b"\x5c\x01\0\0", b"\0\0\x01\x5c"}
_SIZES_2 = {b"\x1c\x02\0\0", b"\0\0\x02\x1c"}
"""The size of the header, its first field, in either byte order."""

MAX_VOLUME_BYTES = 4 * 2**30
"""Largest volume that a header may declare: what is inflated of a .nii.gz is never more."""

# By default nibabel writes its remarks on odd headers to stderr; they belong to whoever configures logging.
logging.getLogger("nibabel.global").handlers = [logging.NullHandler()]

_ERRORS = (ImageFileError, ImageDataError, HeaderDataError, OrientationError, WrapStructError)
_HEADER_BYTES = 540
_MAX_OFFSET = 2**26
"""Largest distance from the start of the file to the voxels: header extensions are read whole."""


def decode_nifti(content: bytes, name: str, selector: str = "") -> Image8:
    """Decode one slice of a NIfTI-1 or NIfTI-2 file, gzipped or not.

    Parameters
    ----------
    content
        The file's bytes.
    name
        The file, for messages.
    selector
        Empty, ``slice=k``, ``axis=a`` or ``axis=a,slice=k``; axis 0 is sagittal, 1 coronal, 2 axial.

    Returns
    -------
    ndarray
        uint8, (height, width).

    Raises
    ------
    SampleError
        If the file is damaged, cut short, too large, not a single-file NIfTI, or has no such slice.
    """
    wanted = parse_selector(name, selector, "axis", "slice")
    axis = pick(name, "axis", wanted.get("axis"), 3, 2)
    with decoding(name, "a NIfTI volume", *_ERRORS):
        image = _open(content, name)
        shape = (*image.shape, 1, 1)[:3]
        _check_size(image, shape, name)
        orientation = io_orientation(image.affine)
        stored_axis = int(np.flatnonzero(orientation[:, 0] == axis)[0])
        count = shape[stored_axis]
        index = pick(name, f"slice of axis {axis}", wanted.get("slice"), count, count // 2)
        if orientation[stored_axis, 1] < 0:
            index = count - 1 - index
        values = _read_slice(image, stored_axis, index)
        upright = np.rot90(apply_orientation(values, orientation).take(0, axis=axis))
        return stretch(name, upright, *_range(upright))


def _is_nifti(start: bytes) -> bool:
    """Return whether these are the first 540 bytes of a NIfTI header, of either version and byte order."""
    return (start[:4] in _SIZES_1 and start[344:347] in {b"n+1", b"ni1"}) or (
        start[:4] in _SIZES_2 and start[4:7] in {b"n+2", b"ni2"}
    )


def _open(content: bytes, name: str) -> Any:
    """Return the image with its pixels still unread: a gzipped one is inflated as far as is asked for."""
    stream: Any = io.BytesIO(content)
    if content[:2] == b"\x1f\x8b":
        stream = gzip.GzipFile(fileobj=stream)
    start = stream.read(_HEADER_BYTES)
    stream.seek(0)
    if not _is_nifti(start):
        raise SampleError("unreadable", f"{name}: expected a NIfTI volume, found other bytes that begin {start[:12]!r}")
    if start[344:347] == b"ni1" or start[4:7] == b"ni2":
        raise SampleError("unsupported", f"{name}: expected a single-file NIfTI (.nii), found the header of a pair")
    kind = nibabel.Nifti1Image if start[:4] in _SIZES_1 else nibabel.Nifti2Image
    if len(start) < kind.header_class.sizeof_hdr:
        raise EOFError("the header is cut")
    header = kind.header_class(start[: kind.header_class.sizeof_hdr], check=False)
    if not 0 <= header["vox_offset"] <= _MAX_OFFSET:
        raise SampleError("too_large", f"{name}: the header declares {header['vox_offset']} bytes before the voxels")
    return kind.from_stream(stream)


def _read_slice(image: Any, axis: int, index: int) -> NDArray[Any]:
    """Return one slice of the first volume, still with three axes."""
    part = [slice(None)] * 3 + [slice(0, 1)] * (image.ndim - 3)
    part[axis] = slice(index, index + 1)
    values = np.asarray(image.dataobj[tuple(part[: image.ndim])])
    return values.reshape((*values.shape, 1, 1)[:3])


def _check_size(image: Any, shape: tuple[int, ...], name: str) -> None:
    dtype = image.get_data_dtype()
    if dtype.kind not in "iufb":
        raise SampleError("unsupported", f"{name}: expected a NIfTI volume of real numbers, found {dtype}")
    ordered = sorted(shape)
    check_pixels(name, ordered[1], ordered[2])
    declared = int(np.prod(np.asarray(shape, dtype=object))) * dtype.itemsize
    if ordered[0] < 1 or declared > MAX_VOLUME_BYTES:
        size = "x".join(map(str, shape))
        raise SampleError(
            "too_large", f"{name}: the header declares {size} voxels; expected at most {MAX_VOLUME_BYTES:,} bytes"
        )


def _range(values: NDArray[Any]) -> tuple[float | None, float | None]:
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return None, None
    low, high = np.percentile(finite, (0.5, 99.5))
    return (float(low), float(high)) if high > low else (None, None)
