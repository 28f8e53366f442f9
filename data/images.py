"""Decode one image file to eight bits per channel: the format is read from the bytes, never from the suffix.

=====================================  ==================================================================
JPEG, 8 bits, grey or YCbCr            libjpeg-turbo (simplejpeg): the same pixels as Pillow, faster
other JPEG, PNG, WebP, BMP, GIF, ...   Pillow; of several frames the first, or the selector's ``frame=k``
TIFF                                   Pillow; tifffile for colour deeper than 8 bits, 32-bit integers, floats
DICOM                                  `data.dicom`
NIfTI                                  `data.nifti`
=====================================  ==================================================================

Eight-bit images equal Pillow's ``convert("RGB")``: transparency is dropped, palettes are looked up, colour
deeper than 8 bits keeps its high byte. Deep grey images (more than 8 bits, or floats) are stretched from
their own minimum to their maximum (`data.pixels.stretch`). EXIF orientation is applied.

Everything here may be called from many threads; the decoders release the interpreter's lock.
"""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from data.errors import SampleError
from data.manifest import Source
from data.pixels import MAX_PIXELS, Image8, as_rgb, check_pixels, decoding, one_line, parse_selector, pick, stretch

log = logging.getLogger(__name__)

MAX_FILE_BYTES = 4 * 2**30
"""Largest file that is read into memory."""

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may try. Named, because some of its other readers start programs (EPS) or open fonts."""

_MAYBE_NIFTI = (b"\x1f\x8b", b"\x5c\x01\0\0", b"\0\0\x01\x5c", b"\x1c\x02\0\0", b"\0\0\x02\x1c")
"""gzip, and the sizes of NIfTI-1 and NIfTI-2 headers in either byte order: no other format here begins so."""

_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")

# Pillow warns from the limit on and refuses from twice the limit on; `check_pixels` refuses from the limit on.
# Decoders also remark by warnings on odd metadata that changes no pixel. The filters are the process's,
# because `warnings.catch_warnings` is not safe in threads.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"(PIL|pydicom|nibabel|tifffile)\.")
# Without handlers of their own, such remarks would also reach stderr where nobody has configured logging.
for _library in ("PIL", "tifffile"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


def load_image(source: Source, *, scaled_to: int | None = None, keep_grey: bool = False) -> Image8:
    """Decode the image that a source names.

    Parameters
    ----------
    source
        A file and, for volumes and files of several frames, a selector.
    scaled_to
        Allow a JPEG to be decoded at 1/2, 1/4 or 1/8 of its size while its short side stays at least twice
        this many pixels. Faster, and within 0.8 grey levels (RMS) after a resize to that size. None: full size.
    keep_grey
        Return grey images as (height, width), which `ImageTransform.apply` resizes once, not three times.

    Returns
    -------
    ndarray
        uint8, (height, width, 3) or (height, width), C-contiguous.

    Raises
    ------
    SampleError
        If the file is missing, empty, cut short, too large, not an image, or of a kind that is not supported.
    """
    name = str(source)
    if source.path is None:
        raise SampleError("missing", f"{name}: expected the path of an image file")
    return decode_image(_read(source.path), name, source.selector, scaled_to=scaled_to, keep_grey=keep_grey)


def decode_image(
    content: bytes, name: str, selector: str = "", *, scaled_to: int | None = None, keep_grey: bool = False
) -> Image8:
    """Decode the bytes of an image file; `name` is for messages. Otherwise as `load_image`."""
    if not content:
        raise SampleError("empty", f"{name}: expected an image, found an empty file")
    image = _decode(content, name, selector, scaled_to)
    return np.ascontiguousarray(image) if keep_grey else as_rgb(image)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_FILE_BYTES else None
    except FileNotFoundError as error:
        raise SampleError("missing", f"{path}: expected an image file, found nothing there") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path.
        raise SampleError("unreadable", f"{path}: expected an image file, found {one_line(error)}") from error
    if content is None:
        raise SampleError("too_large", f"{path}: expected at most {MAX_FILE_BYTES:,} bytes, found {size:,}")
    return content


def _decode(content: bytes, name: str, selector: str, scaled_to: int | None) -> Image8:
    # The medical readers are imported by the first file that needs them: most runs never do.
    if content[128:132] == b"DICM":
        from data.dicom import decode_dicom

        return decode_dicom(content, name, selector)
    if content.startswith(_MAYBE_NIFTI):
        from data.nifti import decode_nifti

        return decode_nifti(content, name, selector)
    return _decode_raster(content, name, selector, scaled_to)


def _decode_raster(content: bytes, name: str, selector: str, scaled_to: int | None) -> Image8:
    frame = parse_selector(name, selector, "frame").get("frame")
    is_tiff = content.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))
    try:
        with decoding(name, "an image"), Image.open(io.BytesIO(content), formats=FORMATS) as image:
            check_pixels(name, image.height, image.width)
            if is_tiff and _is_beyond_pillow(image):
                return _decode_tiff(content, name, frame)
            return _decode_pillow(image, content, name, frame, scaled_to)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SampleError("too_large", f"{name}: expected at most {MAX_PIXELS:,} pixels ({one_line(error)})") from error
    except SampleError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        if is_tiff:
            return _decode_tiff(content, name, frame)
        raise _not_an_image(content, name) from error.__cause__


def _decode_pillow(image: ImageFile, content: bytes, name: str, frame: int | None, scaled_to: int | None) -> Image8:
    """Decode an image of which Pillow has read the header."""
    if image.format == "JPEG" and not frame:
        pixels = _decode_jpeg(content, image, name, scaled_to)
        if pixels is not None:
            return _upright(pixels, _orientation(image))
    if frame is not None:
        image.seek(pick(name, "frame", frame, getattr(image, "n_frames", 1), 0))
        check_pixels(name, image.height, image.width)
    image.load()
    return _upright(_eight_bits(image, name), _orientation(image))


def _not_an_image(content: bytes, name: str) -> SampleError:
    known = "JPEG, PNG, TIFF, WebP, BMP, GIF, DICOM or NIfTI"
    return SampleError("unreadable", f"{name}: expected an image ({known}), found bytes that begin {content[:12]!r}")


def _decode_jpeg(content: bytes, header: Image.Image, name: str, scaled_to: int | None) -> Image8 | None:
    """Decode a plain JPEG; None for what libjpeg-turbo's strict mode refuses: Pillow then decides."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(content)
        if colours not in {"YCbCr", "Gray"} or (width, height) != header.size:
            return None
        factor = _scale(min(height, width), scaled_to)
        pixels: Image8 = simplejpeg.decode_jpeg(
            content,
            "GRAY" if colours == "Gray" else "RGB",
            # Sides are rounded up by the decoder, so these ask for exactly this factor.
            min_height=-(-height // factor),
            min_width=-(-width // factor),
        )
    except ValueError as error:
        log.debug("%s: decoded by Pillow, because libjpeg-turbo refuses: %s", name, one_line(error))
        return None
    return pixels[:, :, 0] if colours == "Gray" else pixels


def _scale(short: int, scaled_to: int | None) -> int:
    """Return the largest of 8, 4, 2, 1 that leaves the short side at least twice `scaled_to`.

    Other factors have no fast code in libjpeg-turbo, and less than twice costs 3 grey levels (RMS).
    """
    if scaled_to is None:
        return 1
    return next((factor for factor in (8, 4, 2) if -(-short // factor) >= 2 * scaled_to), 1)


def _eight_bits(image: Image.Image, name: str) -> Image8:
    """Return a loaded Pillow image as uint8: grey (height, width), all else as ``convert("RGB")`` gives it."""
    if image.mode in _DEEP:
        pixels = stretch(name, np.asarray(image))
        return 255 - pixels if _tag(image, _PHOTOMETRIC, 1) == 0 else pixels
    # Dropped either way; Pillow remarks on it if it is a list.
    image.info.pop("transparency", None)
    grey = image.mode in {"1", "L", "LA"}
    return np.array(image if image.mode in {"L", "RGB"} else image.convert("L" if grey else "RGB"))


def _is_beyond_pillow(image: Image.Image) -> bool:
    """Return whether Pillow would misread a TIFF: deep colour in planes, 32-bit unsigned integers."""
    bits = _tag(image, _BITS, 8)
    return (image.mode not in _DEEP and bits > 8) or (bits == 32 and _tag(image, _SAMPLE_FORMAT, 1) == 1)


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """Return a TIFF tag's first number; other formats have none."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _decode_tiff(content: bytes, name: str, frame: int | None) -> Image8:
    import tifffile

    with decoding(name, "a TIFF image", tifffile.TiffFileError), tifffile.TiffFile(io.BytesIO(content)) as tiff:
        page = tiff.pages[pick(name, "frame", frame, len(tiff.pages), 0)].aspage()
        check_pixels(name, page.imagelength, page.imagewidth)
        if (
            page.samplesperpixel not in {1, 3, 4}
            or page.imagedepth != 1
            or page.dtype is None
            or page.dtype.kind == "c"
        ):
            found = f"{page.samplesperpixel} samples of {page.dtype} per pixel"
            raise SampleError("unsupported", f"{name}: expected a grey or RGB TIFF, found {found}")
        try:
            pixels = page.asarray()
        except (ValueError, KeyError) as error:
            if "imagecodecs" not in str(error):
                raise
            message = f"{name}: TIFF compression {page.compression!r} is not supported here; pip install imagecodecs"
            raise SampleError("unsupported", message) from error
        if page.samplesperpixel > 1:
            pixels = np.moveaxis(pixels, 0, -1) if page.planarconfig == 2 else pixels
            pixels = pixels[:, :, :3]
        if pixels.dtype == np.uint16 and pixels.ndim == 3:
            pixels = (pixels >> 8).astype(np.uint8)
        elif pixels.dtype != np.uint8:
            pixels = stretch(name, pixels)
        pixels = 255 - pixels if page.photometric == 0 else pixels
        orientation = page.tags.get(_ORIENTATION)
        return _upright(pixels, int(orientation.value) if orientation else 1)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; Pillow has applied a TIFF's already."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _upright(pixels: Image8, orientation: int) -> Image8:
    """Apply an EXIF orientation; values outside 2..8 mean upright."""
    if orientation in {5, 6, 7, 8}:
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return pixels
