"""Every format decodes to the right pixels, and whatever is damaged becomes a typed SampleError."""

from __future__ import annotations

import gzip
import io
import logging
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image, ImageOps
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    BasicTextSRStorage,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from data import images, nifti
from data.errors import SampleError
from data.images import decode_image, load_image
from data.manifest import Source
from data.pixels import MAX_PIXELS, stretch

RNG = np.random.default_rng(11)


def picture(height: int = 41, width: int = 57, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([128 + 100 * np.sin(x / (5 + c) + y / 9) for c in range(channels)], -1)
    pixels = (waves + RNG.normal(0, 15, waves.shape)).clip(0, 255).astype(np.uint8)
    return pixels if channels > 1 else pixels[:, :, 0]


def encode(image: Image.Image | np.ndarray, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(content: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def refused(content: bytes, selector: str = "") -> SampleError:
    with pytest.raises(SampleError) as caught:
        decode_image(content, "scan.xyz", selector)
    assert "\n" not in str(caught.value)
    assert "scan.xyz" in str(caught.value)
    return caught.value


# Eight bits: equal to Pillow's convert("RGB")


def transparent_palette() -> Image.Image:
    image = Image.fromarray(picture()).quantize(32)
    image.info["transparency"] = bytes(range(0, 256, 8))
    return image


EIGHT_BIT: dict[str, Callable[[], bytes]] = {
    "jpeg 4:2:0": lambda: encode(picture(), "JPEG", quality=85),
    "jpeg 4:4:4": lambda: encode(picture(), "JPEG", quality=95, subsampling=0),
    "jpeg 4:2:2": lambda: encode(picture(), "JPEG", subsampling=1),
    "jpeg progressive": lambda: encode(picture(200, 131), "JPEG", progressive=True),
    "jpeg of one pixel": lambda: encode(picture(1, 1), "JPEG"),
    "jpeg grey": lambda: encode(picture(channels=1), "JPEG"),
    "jpeg rgb": lambda: encode(picture(), "JPEG", keep_rgb=True),
    "jpeg cmyk": lambda: encode(Image.fromarray(picture()).convert("CMYK"), "JPEG"),
    "png rgb": lambda: encode(picture(), "PNG"),
    "png grey": lambda: encode(picture(channels=1), "PNG"),
    "png rgba": lambda: encode(picture(channels=4), "PNG"),
    "png grey alpha": lambda: encode(Image.fromarray(picture(channels=4)).convert("LA"), "PNG"),
    "png palette": lambda: encode(Image.fromarray(picture()).quantize(16), "PNG"),
    "png palette alpha": lambda: encode(transparent_palette(), "PNG"),
    "png one bit": lambda: encode(Image.fromarray(picture()).convert("1"), "PNG"),
    "png transparent colour": lambda: encode(picture(), "PNG", transparency=(1, 2, 3)),
    "tiff rgb": lambda: encode(picture(), "TIFF"),
    "tiff lzw": lambda: encode(picture(), "TIFF", compression="tiff_lzw"),
    "tiff cmyk": lambda: encode(Image.fromarray(picture()).convert("CMYK"), "TIFF"),
    "webp": lambda: encode(picture(), "WEBP"),
    "webp alpha": lambda: encode(picture(channels=4), "WEBP", lossless=True),
    "bmp": lambda: encode(picture(), "BMP"),
    "gif": lambda: encode(Image.fromarray(picture()).quantize(64), "GIF"),
    "jpeg 2000": lambda: encode(picture(), "JPEG2000"),
}


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_eight_bit_images_equal_pillow(kind: str) -> None:
    content = EIGHT_BIT[kind]()
    pixels = decode_image(content, "any name at all")
    assert np.array_equal(pixels, pillow(content))
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


@pytest.mark.parametrize("kind", EIGHT_BIT)
def test_keep_grey_saves_channels_only(kind: str) -> None:
    content = EIGHT_BIT[kind]()
    pixels = decode_image(content, "x", keep_grey=True)
    is_grey = any(word in kind for word in ("grey", "one bit"))
    assert pixels.ndim == (2 if is_grey else 3)
    assert pixels.flags.c_contiguous
    repeated = np.repeat(pixels[:, :, None], 3, axis=2) if is_grey else pixels
    assert np.array_equal(repeated, pillow(content))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encode(picture(), kind, exif=exif)
    expected = pillow(content)
    assert expected.shape[:2] == ((41, 57) if orientation < 5 else (57, 41))
    assert np.array_equal(decode_image(content, "x"), expected)


def test_gif_and_tiff_frames() -> None:
    frames = [Image.fromarray(np.full((8, 9), value, np.uint8)) for value in (10, 120, 250)]
    for kind in ("GIF", "TIFF"):
        content = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        assert decode_image(content, "x").max() == 10
        assert decode_image(content, "x", "frame=2").min() == 250
        assert "0 to 2" in str(refused(content, "frame=3"))


@pytest.mark.parametrize("selector", ["frame=-1", "frame=x", "slice=1", "frame", "frame=1,frame=1", "frame=²"])
def test_wrong_selectors_are_refused(selector: str) -> None:
    assert "frame=NUMBER" in str(refused(EIGHT_BIT["png rgb"](), selector))


def test_scaled_decoding_keeps_twice_the_side() -> None:
    content = encode(picture(600, 811), "JPEG", quality=90)
    expected = {37: (75, 102), 38: (150, 203), 75: (150, 203), 76: (300, 406), 150: (300, 406), 151: (600, 811)}
    assert {side: decode_image(content, "x", scaled_to=side).shape[:2] for side in expected} == expected


def test_scaled_decoding_touches_plain_jpegs_only() -> None:
    for kind in ("png rgb", "jpeg cmyk", "webp"):
        content = EIGHT_BIT[kind]()
        assert np.array_equal(decode_image(content, "x", scaled_to=1), decode_image(content, "x"))


def test_jpeg_that_the_strict_decoder_refuses_goes_to_pillow(caplog: pytest.LogCaptureFixture) -> None:
    """Surplus bytes before a marker are an error for one and a warning for the other."""
    content = encode(picture(), "JPEG")
    content = content[:-2] + b"\0" * 7 + content[-2:]
    with caplog.at_level(logging.DEBUG, "data.images"):
        assert np.array_equal(decode_image(content, "odd.jpg"), pillow(content))
    assert "odd.jpg: decoded by Pillow" in caplog.text


# Deep images


def test_deep_grey_is_stretched_over_its_own_range() -> None:
    twelve_bits = RNG.integers(200, 4000, (20, 30)).astype(np.uint16)
    expected = np.rint((twelve_bits - twelve_bits.min()) / np.ptp(twelve_bits) * 255).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        pixels = decode_image(encode(twelve_bits, kind), "x")
        assert np.array_equal(pixels, np.repeat(expected[:, :, None], 3, axis=2))
        assert decode_image(encode(twelve_bits, kind), "x", keep_grey=True).shape == (20, 30)


def tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64, np.float16])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_deep_tiff(dtype: type, order: str, photometric: str) -> None:
    top = min(float(np.finfo(dtype).max) if np.issubdtype(dtype, np.floating) else float(np.iinfo(dtype).max), 4e9)
    values = (RNG.random((12, 17)) * top * 0.9).astype(dtype)
    pixels = decode_image(tiff(values, byteorder=order, photometric=photometric), "x", keep_grey=True)
    expected = stretch("x", values)
    assert np.array_equal(pixels, 255 - expected if photometric == "miniswhite" else expected)
    assert len(np.unique(pixels)) > 50


@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_sixteen_bit_colour_keeps_the_high_byte(planes: str) -> None:
    values = RNG.integers(0, 65536, (12, 17, 3)).astype(np.uint16)
    stored = values if planes == "contig" else values.transpose(2, 0, 1)
    content = tiff(stored, photometric="rgb", planarconfig=planes)
    assert np.array_equal(decode_image(content, "x"), (values >> 8).astype(np.uint8))


def test_float_colour_tiff_is_stretched_over_all_channels() -> None:
    values = RNG.random((12, 17, 3)).astype(np.float32)
    assert np.array_equal(decode_image(tiff(values, photometric="rgb"), "x"), stretch("x", values))


PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_sixteen_bit_png_colour() -> None:
    values = RNG.integers(0, 65536, (6, 5, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0))
    content = PNG_MAGIC + head + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    assert np.array_equal(decode_image(content, "x"), (values >> 8).astype(np.uint8))


def test_stretch() -> None:
    assert stretch("x", np.array([0, 1, 2, 4])).tolist() == [0, 64, 128, 255]
    assert stretch("x", np.array([7, 7])).tolist() == [0, 0]
    assert stretch("x", np.array([np.nan, 1.0, 3.0])).tolist() == [0, 0, 255]
    assert stretch("x", np.array([-10, 0, 5, 20]), 0, 10).tolist() == [0, 0, 128, 255]
    assert stretch("x", np.array([-1.7e308, 0.0, 1.7e308])).tolist() == [0, 128, 255]
    for bad in ([np.nan, np.nan], [1.0, np.inf]):
        with pytest.raises(SampleError, match="infinite") as caught:
            stretch("x", np.array(bad))
        assert caught.value.kind == "not_finite"


# DICOM


def dicom(stored: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, frames: int = 1, **attributes: Any) -> Dataset:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, "1.2.3"
    colour = stored.ndim - (frames > 1) == 3
    dataset.Rows, dataset.Columns = stored.shape[frames > 1 :][:2]
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    if frames > 1:
        dataset.NumberOfFrames = frames
    dataset.BitsAllocated = stored.dtype.itemsize * 8
    dataset.BitsStored, dataset.HighBit = dataset.BitsAllocated, dataset.BitsAllocated - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, stored, generate_instance_uid=False)
    return dataset


def saved(dataset: Dataset) -> bytes:
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def grey(content: bytes, selector: str = "") -> np.ndarray:
    return decode_image(content, "scan", selector, keep_grey=True)


CT = RNG.integers(-1000, 2000, (15, 18)).astype(np.int16)
CR = RNG.integers(0, 4096, (15, 18)).astype(np.uint16)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_dicom_window_equals_pydicom(function: str | None) -> None:
    dataset = dicom(CT, RescaleSlope=1, RescaleIntercept=-24, WindowCenter=[40, 500], WindowWidth=[400, 2000])
    if function:
        dataset.VOILUTFunction = function
    shown = apply_voi_lut(apply_modality_lut(CT, dataset), dataset)
    low, high = -(2.0**15) - 24, 2.0**15 - 1 - 24
    expected = np.rint((shown - low) / (high - low) * 255)
    assert np.abs(grey(saved(dataset)) - expected).max() <= (1 if function == "SIGMOID" else 0)


def test_dicom_without_window_takes_its_own_range_and_monochrome1_is_inverted() -> None:
    assert np.array_equal(grey(saved(dicom(CR))), stretch("x", CR))
    assert np.array_equal(grey(saved(dicom(CR, PhotometricInterpretation="MONOCHROME1"))), 255 - stretch("x", CR))
    rgb = decode_image(saved(dicom(CR)), "x")
    assert rgb.shape == (15, 18, 3)


@pytest.mark.parametrize(("centre", "width"), [(None, None), ("", ""), (100, 0), (100, None), (100, 0.5)])
def test_dicom_invalid_window_counts_as_none(centre: Any, width: Any) -> None:
    assert np.array_equal(grey(saved(dicom(CR, WindowCenter=centre, WindowWidth=width))), stretch("x", CR))


def test_dicom_window_of_one_value_is_a_threshold() -> None:
    pixels = grey(saved(dicom(CR, WindowCenter=2000, WindowWidth=1)))
    assert np.array_equal(pixels, np.where(CR > 1999.5, 255, 0))


@pytest.mark.parametrize("bits", [8, 12])
def test_dicom_lookup_tables(bits: int) -> None:
    entries = np.linspace(2**bits - 1, 0, 4096).astype(np.uint16)
    table = Dataset()
    table.LUTDescriptor = [4096, 0, bits]
    table.LUTData = entries.tobytes()
    table["LUTData"].VR = "OW"
    expected = stretch("x", entries[CR], 0, 2**bits - 1)
    assert np.array_equal(grey(saved(dicom(CR, VOILUTSequence=Sequence([table])))), expected)
    table.ModalityLUTType = "US"
    assert np.array_equal(grey(saved(dicom(CR, ModalityLUTSequence=Sequence([table])))), stretch("x", entries[CR]))


def test_dicom_frames_default_to_the_middle() -> None:
    stack = RNG.integers(0, 4096, (5, 9, 11)).astype(np.uint16)
    content = saved(dicom(stack, frames=5))
    assert np.array_equal(grey(content), stretch("x", stack[2]))
    assert np.array_equal(grey(content, "frame=4"), stretch("x", stack[4]))
    assert refused(content, "frame=5").kind == "unreadable"


def test_dicom_enhanced_frames_have_their_own_window() -> None:
    stack = RNG.integers(0, 4096, (2, 9, 11)).astype(np.uint16)
    groups = []
    for centre in (1000, 3000):
        window, group = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = centre, 500, "LINEAR_EXACT"
        group.FrameVOILUTSequence = Sequence([window])
        groups.append(group)
    scale, shared = Dataset(), Dataset()
    scale.RescaleSlope, scale.RescaleIntercept, scale.RescaleType = 2, 0, "US"
    shared.PixelValueTransformationSequence = Sequence([scale])
    content = saved(
        dicom(
            stack,
            frames=2,
            PerFrameFunctionalGroupsSequence=Sequence(groups),
            SharedFunctionalGroupsSequence=Sequence([shared]),
        )
    )
    assert np.array_equal(grey(content, "frame=0"), stretch("x", stack[0] * 2.0, 750, 1250))
    assert np.array_equal(grey(content, "frame=1"), stretch("x", stack[1] * 2.0, 2750, 3250))


def test_dicom_colour() -> None:
    rgb = picture(12, 14)
    assert np.array_equal(decode_image(saved(dicom(rgb)), "x"), rgb)
    deep = RNG.integers(0, 65536, (6, 7, 3)).astype(np.uint16)
    assert np.array_equal(decode_image(saved(dicom(deep)), "x"), (deep >> 8).astype(np.uint8))
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    back = decode_image(saved(dicom(ybr, PhotometricInterpretation="YBR_FULL")), "x")
    assert np.abs(back.astype(int) - rgb).max() <= 3  # Both conversions round.


def test_dicom_palette() -> None:
    index = RNG.integers(0, 256, (6, 7)).astype(np.uint8)
    palette = RNG.integers(0, 65536, (256, 3)).astype(np.uint16)
    dataset = dicom(index, PhotometricInterpretation="PALETTE COLOR")
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{colour}PaletteColorLookupTableData", palette[:, channel].tobytes())
    assert np.array_equal(decode_image(saved(dataset), "x"), (palette[index] >> 8).astype(np.uint8))


def test_dicom_compressed() -> None:
    assert np.array_equal(grey(saved(dicom(CR, syntax=RLELossless))), stretch("x", CR))


def test_dicom_without_a_decoder_names_the_syntax_and_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = dicom(CR)
    dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
    dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8\xff\xf7" + b"\0" * 60])
    content = saved(dataset)
    decoder = pydicom.pixels.get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    error = refused(content)
    assert error.kind == "unsupported"
    assert "JPEG-LS Lossless" in str(error)
    assert 'pip install "frostline[dicom]"' in str(error)


def test_dicom_that_is_no_image() -> None:
    dataset = dicom(CR)
    for name in ("Rows", "Columns", "PixelData"):
        delattr(dataset, name)
    assert refused(saved(dataset)).kind == "truncated"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    error = refused(saved(dataset))
    assert error.kind == "unsupported"
    assert "Basic Text SR" in str(error)


def test_dicom_deflated_is_refused_unread() -> None:
    dataset = dicom(CR)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    assert refused(saved(dataset)).kind == "unsupported"


def test_dicom_cut_short() -> None:
    content = saved(dicom(CR))
    assert refused(content[:-100]).kind == "truncated"
    dataset = dicom(CR)
    dataset.PixelData = dataset.PixelData[:-20]
    assert refused(saved(dataset)).kind == "truncated"


# NIfTI

# One voxel more on every axis, so that no two are alike; values tell where they came from.
VOLUME = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
SLICES = {0: VOLUME[3], 1: VOLUME[:, 3], 2: VOLUME[:, :, 3]}


def nifti_bytes(volume: np.ndarray, affine: np.ndarray | None = None, kind: type = nibabel.Nifti1Image) -> bytes:
    return kind(volume, np.eye(4) if affine is None else affine).to_bytes()


def shown(plane: np.ndarray) -> np.ndarray:
    """Second axis (front or top) up, first axis to the right; the usual robust range."""
    upright = plane.T[::-1]
    return stretch("x", upright, *np.percentile(upright, (0.5, 99.5)))


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_nifti_slices(kind: type, pack: Callable[[bytes], bytes]) -> None:
    content = pack(nifti_bytes(VOLUME, kind=kind))
    assert np.array_equal(grey(content), shown(SLICES[2]))
    assert np.array_equal(grey(content, "slice=6"), shown(VOLUME[:, :, 6]))
    for axis, expected in SLICES.items():
        assert np.array_equal(grey(content, f"axis={axis},slice=3"), shown(expected))
    assert "slice of axis 0 0 to 4" in str(refused(content, "axis=0,slice=5"))
    assert refused(content, "axis=3").kind == "unreadable"


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
def test_nifti_is_canonical_whatever_the_files_own_order(flips: tuple[int, ...], order: tuple[int, ...]) -> None:
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for stored, axis in enumerate(order):
        affine[axis, stored] = flips[axis]
    stored_volume = VOLUME[tuple(slice(None, None, flip) for flip in flips)].transpose(order)
    content = nifti_bytes(np.ascontiguousarray(stored_volume), affine)
    canonical = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(content))
    assert np.array_equal(canonical.get_fdata(), VOLUME)
    for axis, expected in SLICES.items():
        assert np.array_equal(grey(content, f"axis={axis},slice=3"), shown(expected))


def test_nifti_other_dimensions_and_values() -> None:
    series = np.stack([VOLUME, VOLUME + 500, VOLUME + 900], axis=-1)
    assert np.array_equal(grey(nifti_bytes(series), "slice=3"), shown(SLICES[2]))
    assert np.array_equal(grey(nifti_bytes(VOLUME[:, :, 3])), shown(SLICES[2]))
    holes = VOLUME.astype(np.float32)
    holes[0] = np.nan
    pixels = grey(nifti_bytes(holes))
    assert (pixels[:, 0] == 0).all()
    assert pixels.max() == 255
    mostly_empty = np.zeros((300, 300, 1), np.uint8)
    mostly_empty[7, 9] = 3
    assert grey(nifti_bytes(mostly_empty)).max() == 255
    assert refused(nifti_bytes(np.full((3, 3, 3), np.nan))).kind == "not_finite"
    assert refused(nifti_bytes(VOLUME.astype(np.complex64))).kind == "unsupported"


def test_nifti_remarks_on_headers_do_not_reach_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(nifti_bytes(VOLUME))
    content[76:80] = struct.pack("<f", -1.0)
    content[80:84] = struct.pack("<f", -1.0)
    assert grey(bytes(content)).shape == (6, 5)
    assert capfd.readouterr().err == ""


def test_nifti_pair_and_foreign_gzip() -> None:
    header = nibabel.nifti1.Nifti1PairHeader()
    assert refused(header.binaryblock).kind == "unsupported"
    assert refused(gzip.compress(b"hello " * 200)).kind == "unreadable"


# What cannot be decoded


def test_a_text_file_named_jpg(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("this is not a picture")
    with pytest.raises(SampleError, match=r"notes\.jpg.*b'this is not ") as caught:
        load_image(Source("image", path=path))
    assert caught.value.kind == "unreadable"
    assert caught.value.__cause__ is not None


def test_missing_empty_folder_and_odd_paths(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    for name, kind in {"none.png": "missing", "empty.png": "empty", ".": "unreadable", "a\0b": "unreadable"}.items():
        with pytest.raises(SampleError) as caught:
            load_image(Source("image", path=tmp_path / name))
        assert caught.value.kind == kind
    with pytest.raises(SampleError) as caught:
        load_image(Source("text", text="words"))
    assert caught.value.kind == "missing"


def test_load_image_reads_files_with_selectors(tmp_path: Path) -> None:
    path = tmp_path / "volume.nii.gz"
    path.write_bytes(gzip.compress(nifti_bytes(VOLUME)))
    pixels = load_image(Source("image", path=path, selector="axis=0,slice=3"), keep_grey=True)
    assert np.array_equal(pixels, shown(SLICES[0]))
    with pytest.raises(SampleError, match=r"volume\.nii\.gz#slice=99"):
        load_image(Source("image", path=path, selector="slice=99"))


def test_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 10)
    path = tmp_path / "big.png"
    path.write_bytes(b"x" * 11)
    with pytest.raises(SampleError) as caught:
        load_image(Source("image", path=path))
    assert caught.value.kind == "too_large"


CUT = ("jpeg 4:2:0", "jpeg grey", "jpeg progressive", "jpeg cmyk", "png rgb", "png grey", "tiff rgb", "bmp", "gif")


@pytest.mark.parametrize("kind", CUT)
def test_cut_files_are_truncated(kind: str) -> None:
    content = EIGHT_BIT[kind]()
    error = refused(content[: len(content) * 2 // 3])
    assert error.kind == "truncated"
    assert error.__cause__ is not None


def png_of_size(width: int, height: int) -> bytes:
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG_MAGIC + head + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    content = encode(picture(8, 8), "JPEG")
    start = content.index(b"\xff\xc0") + 5
    return content[:start] + struct.pack(">HH", height, width) + content[start + 4 :]


def nifti_of_shape(*shape: int) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float64)
    header["dim"][: len(shape) + 1] = (len(shape), *shape)
    header["magic"], header["vox_offset"] = b"n+1", 352
    return bytes(header.binaryblock) + b"\0" * 4


def dicom_of_size(rows: int, columns: int) -> bytes:
    dataset = dicom(CR)
    dataset.Rows, dataset.Columns = rows, columns
    return saved(dataset)


def tiff_of_size(side: int) -> bytes:
    content = encode(picture(8, 8), "TIFF")
    for tag in (256, 257):
        entry = content.index(struct.pack("<HHI", tag, 4, 1)) + 8
        content = content[:entry] + struct.pack("<I", side) + content[entry + 4 :]
    return content


def gzip_bomb() -> bytes:
    return gzip.compress(nifti_of_shape(2000, 2000, 2000), 9)


def offset_bomb() -> bytes:
    content = bytearray(nifti_bytes(VOLUME))
    content[108:112] = struct.pack("<f", 1e12)
    return gzip.compress(bytes(content) + b"\0" * 10_000)


BOMBS: dict[str, Callable[[], bytes]] = {
    "png just above the limit": lambda: png_of_size(MAX_PIXELS // 1000 + 1, 1000),
    "png of the largest size": lambda: png_of_size(2**31 - 1, 2**31 - 1),
    "jpeg": lambda: jpeg_of_size(65_500, 65_500),
    "jpeg between Pillow's limits": lambda: jpeg_of_size(16_000, 15_000),
    "tiff": lambda: tiff_of_size(60_000),
    "dicom": lambda: dicom_of_size(65_535, 65_535),
    "nifti slice": lambda: nifti_of_shape(30_000, 30_000, 2),
    "nifti volume": lambda: nifti_of_shape(5_000, 5_000, 5_000),
    "nii.gz volume": gzip_bomb,
    "nii.gz offset": offset_bomb,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs_are_refused_by_their_headers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    content = BOMBS[kind]()
    assert len(content) < 200_000
    # Were any pixel decoded or stretched, these would fail the test in another way.
    monkeypatch.setattr(images, "_decode_pillow", pytest.fail)
    monkeypatch.setattr(nifti, "_read_slice", pytest.fail)
    assert refused(content).kind == "too_large"


def test_images_up_to_the_limit_are_not_bombs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow alone would warn from half the limit on."""
    content = EIGHT_BIT["png rgb"]()
    monkeypatch.setattr("data.pixels.MAX_PIXELS", 41 * 57)
    assert decode_image(content, "x").shape == (41, 57, 3)
    monkeypatch.setattr("data.pixels.MAX_PIXELS", 41 * 57 - 1)
    assert refused(content).kind == "too_large"
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS


FUZZED: dict[str, Callable[[], bytes]] = {
    **EIGHT_BIT,
    "png 16": lambda: encode(CR, "PNG"),
    "tiff 16": lambda: tiff(CR),
    "tiff float rgb": lambda: tiff(RNG.random((9, 8, 3)), photometric="rgb", compression="zlib"),
    "dicom": lambda: saved(dicom(CT, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)),
    "dicom rle": lambda: saved(dicom(CR, syntax=RLELossless)),
    "dicom frames": lambda: saved(dicom(RNG.integers(0, 255, (4, 6, 7)).astype(np.uint8), frames=4)),
    "dicom rgb": lambda: saved(dicom(picture(9, 10))),
    "nifti": lambda: nifti_bytes(VOLUME),
    "nifti 2": lambda: nifti_bytes(VOLUME, kind=nibabel.Nifti2Image),
    "nifti gz": lambda: gzip.compress(nifti_bytes(VOLUME)),
}


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip some bytes, mostly in the header, or cut, or repeat a part."""
    broken = bytearray(content)
    how = rng.integers(4)
    if how == 0:
        return bytes(broken[: rng.integers(1, len(broken))])
    if how == 1:
        start, stop = sorted(rng.integers(0, len(broken), 2))
        return bytes(broken[:start] + broken[start:stop] * 2 + broken[stop:])
    reach = len(broken) if how == 2 else min(len(broken), 400)
    for position in rng.integers(0, reach, rng.integers(1, 12)):
        broken[position] = rng.integers(256)
    return bytes(broken)


@pytest.mark.parametrize("kind", FUZZED)
def test_damaged_files_give_pixels_or_a_sample_error(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small limits keep a damaged header from asking for gigabytes of honest work.
    monkeypatch.setattr("data.pixels.MAX_PIXELS", 1_000_000)
    monkeypatch.setattr(nifti, "MAX_VOLUME_BYTES", 2**24)
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    content, refusals, decoded = FUZZED[kind](), 0, 0
    for _ in range(40):
        try:
            pixels = decode_image(damaged(content, rng), "broken.file")
        except SampleError as error:
            refusals += str(error).startswith("broken.file: ") and "\n" not in str(error)
        else:
            assert (pixels.dtype, pixels.shape[2]) == (np.uint8, 3)
            decoded += 1
    assert refusals + decoded == 40
    assert refusals >= 5


def test_many_threads_agree() -> None:
    contents = [FUZZED[kind]() for kind in ("jpeg 4:2:0", "png palette alpha", "tiff float rgb", "dicom", "nifti gz")]
    expected = [decode_image(content, "x") for content in contents]
    differences: list[int] = []

    def work() -> None:
        for _ in range(5):
            for position, content in enumerate(contents):
                if not np.array_equal(decode_image(content, "x"), expected[position]):
                    differences.append(position)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differences == []
