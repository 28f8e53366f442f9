"""DICOM: one frame as a radiologist's screen would show it, in eight bits.

Stored values go through the modality LUT (or slope and intercept), then the VOI LUT or the first window,
whose range becomes 0..255; without either, the frame's own minimum to maximum does. MONOCHROME1 is
inverted. Enhanced multi-frame objects keep slope and window per frame, and those count. Palettes and YBR
become RGB. ``frame=k`` selects a frame; the default is the middle one.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian

from data.errors import SampleError, SampleFailure
from data.pixels import Image8, check_pixels, decoding, parse_selector, pick, stretch

# Values that break the standard's spelling rules are common, and none of them is a pixel.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

_ERRORS = (InvalidDicomError, BytesLengthException)
_META_BYTES = 2048


def decode_dicom(content: bytes, name: str, selector: str = "") -> Image8:
    """Decode one frame of a DICOM file.

    Parameters
    ----------
    content
        The file's bytes.
    name
        The file, for messages.
    selector
        Empty, or ``frame=k``.

    Returns
    -------
    ndarray
        uint8, (height, width) for grey, (height, width, 3) for colour.

    Raises
    ------
    SampleError
        If the file is damaged, cut short, too large, holds no pixels, or is compressed in a way that needs
        a package that is not installed.
    """
    wanted = parse_selector(name, selector, "frame").get("frame")
    # A deflated data set is inflated whole before any size in it can be read: a bomb could not be refused.
    if DeflatedExplicitVRLittleEndian.encode() in content[:_META_BYTES]:
        raise SampleError("unsupported", f"{name}: deflated DICOM is not supported; rewrite it uncompressed")
    with decoding(name, "a DICOM image", *_ERRORS):
        dataset = pydicom.dcmread(io.BytesIO(content))
        if "Rows" not in dataset or "Columns" not in dataset:
            kind = _kind(dataset)
            # The reader returns what precedes a cut; an image's class tells it from a report.
            failure: SampleFailure = "truncated" if kind.endswith("Image Storage") else "unsupported"
            raise SampleError(failure, f"{name}: expected a DICOM image, found {kind} without pixels")
        check_pixels(name, int(dataset.Rows), int(dataset.Columns))
        _require_decoder(dataset, name)
        _require_whole(dataset, name)
        frames = int(dataset.get("NumberOfFrames") or 1)
        frame = pick(name, "frame", wanted, frames, frames // 2)
        stored = pixel_array(dataset, index=frame)
        if int(dataset.get("SamplesPerPixel", 1)) > 1:
            return _colour(stored, int(dataset.BitsStored))
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            colours = apply_color_lut(stored, dataset)[..., :3]
            return _colour(colours, 8 * colours.dtype.itemsize)
        _adopt_frame_attributes(dataset, frame)
        pixels = _displayed(stored, dataset, name)
        return 255 - pixels if dataset.PhotometricInterpretation == "MONOCHROME1" else pixels


def _kind(dataset: Dataset) -> str:
    uid = dataset.get("SOPClassUID")
    return str(uid.name) if uid is not None else "an object"


def _require_decoder(dataset: Dataset, name: str) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    hint = f'{name}: DICOM transfer syntax {syntax.name} ({syntax}) needs a decoder; pip install "frostline[dicom]"'
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError as error:
        raise SampleError("unsupported", f"{name}: DICOM transfer syntax {syntax.name} is not an image's") from error
    if not available:
        raise SampleError("unsupported", hint)


def _require_whole(dataset: Dataset, name: str) -> None:
    """Refuse pixel data that are shorter than the header says: the reader itself drops a cut element."""
    if not any(word in dataset for word in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise SampleError("truncated", f"{name}: expected pixel data, found {_kind(dataset)} that ends before them")
    if dataset.file_meta.TransferSyntaxUID.is_compressed or "PixelData" not in dataset:
        return
    bits = int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("SamplesPerPixel", 1))
    bits *= int(dataset.BitsAllocated) * int(dataset.get("NumberOfFrames") or 1)
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        bits = bits * 2 // 3
    if len(dataset.PixelData) < bits // 8:
        found = f"{len(dataset.PixelData):,}"
        raise SampleError("truncated", f"{name}: expected {bits // 8:,} bytes of pixel data, found {found}")


def _colour(pixels: NDArray[Any], bits: int) -> Image8:
    """Return colour as 8 bits: the high ones."""
    return (pixels >> max(bits - 8, 0)).astype(np.uint8)


def _adopt_frame_attributes(dataset: Dataset, frame: int) -> None:
    """Copy an enhanced object's rescale and window, of this frame or of all, to where single frames have them."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*shared[:1], *per_frame[frame : frame + 1]]:
        for sequence in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for element in (group.get(sequence) or [Dataset()])[0]:
                dataset[element.tag] = element


def _displayed(stored: NDArray[Any], dataset: Dataset, name: str) -> Image8:
    if dataset.get("ModalityLUTSequence"):
        values = _look_up(stored, dataset.ModalityLUTSequence[0], dataset)
    else:
        values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        table = dataset.VOILUTSequence[0]
        return stretch(name, _look_up(values, table, dataset), 0, 2 ** int(table.LUTDescriptor[2]) - 1)
    window = _window(dataset)
    if window is None:
        return stretch(name, values)
    centre, width, function = window
    if function == "SIGMOID":
        # 1 / (1 + exp(-4 (x - c) / w)), DICOM PS3.3 C.11.2.1.3.1, without the overflow.
        return stretch(name, np.tanh(2 * (values.astype(np.float64) - centre) / width), -1, 1)
    if function == "LINEAR":  # PS3.3 C.11.2.1.2.1: the ends are half a value inside.
        centre, width = centre - 0.5, width - 1
    low = centre - width / 2
    return stretch(name, values, low, max(centre + width / 2, float(np.nextafter(low, np.inf))))


def _look_up(values: NDArray[Any], item: Dataset, dataset: Dataset) -> NDArray[Any]:
    """Map values by a LUT, PS3.3 C.11.1.1: what lies outside takes its first or last entry.

    Pydicom's own functions index by the type of the entries: 4,096 entries of 8 bits wrap around.
    """
    first, data = int(item.LUTDescriptor[1]), item.LUTData
    if isinstance(data, bytes):
        data = np.frombuffer(data, "<u2" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">u2")
    shown: NDArray[Any] = np.take(np.asarray(data), np.rint(values).astype(np.int64) - first, mode="clip")
    return shown


def _window(dataset: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the first window; None where there is none, or none that is valid."""
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    return centre, width, function


def _first(value: Any) -> float | None:
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    return None if value is None or value == "" else float(value)
