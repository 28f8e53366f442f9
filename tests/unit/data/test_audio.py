"""Recordings: what is read, at what rate, and what is refused."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

import data.audio
from data.audio import Recording, load_audio, trim_silence
from data.errors import SampleError
from data.manifest import Source


def tone(seconds: float = 0.5, rate: int = 16_000, hz: float = 440.0) -> NDArray[np.float64]:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, samples: NDArray[np.floating], rate: int = 16_000, **options: object) -> Path:
        soundfile.write(tmp_path / name, samples, rate, **options)
        return tmp_path / name

    return write


def load(*paths: Path, **options: int) -> Recording:
    return load_audio(Source("audio", path=paths[0], rest=paths[1:]), **options)


def refused(*paths: Path) -> SampleError:
    with pytest.raises(SampleError) as caught:
        load(*paths)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 4e-5),
        ("a.wav", {"subtype": "PCM_24"}, 1e-6),
        ("a.wav", {"subtype": "PCM_U8"}, 1e-2),
        ("a.wav", {"subtype": "FLOAT"}, 1e-7),
        ("a.flac", {"subtype": "PCM_24"}, 1e-6),
        ("a.aiff", {}, 4e-5),
        ("a.ogg", {}, 0.02),
        ("a.mp3", {}, 0.02),
    ],
)
def test_formats_and_depths_give_the_same_sound(
    write: Write, name: str, options: dict[str, str], tolerance: float
) -> None:
    recording = load(write(name, tone(), **options))
    assert recording.samples.dtype == np.float32
    assert (recording.rate, recording.bandwidth) == (16_000, 8000)
    middle = slice(1000, -1000)  # lossy codecs fade in and out
    np.testing.assert_allclose(recording.samples[middle], tone()[middle], atol=tolerance)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_rate_and_stereo_equal_librosa(write: Write, rate: int, channels: int) -> None:
    rng = np.random.default_rng(rate)
    path = write("a.wav", rng.normal(size=(rate, channels)) / 10, rate)
    stored, _ = soundfile.read(path, dtype="float32", always_2d=True)
    expected = librosa.resample(librosa.to_mono(stored.T), orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
    recording = load(path)
    np.testing.assert_allclose(recording.samples, expected, atol=1e-6)
    assert recording.bandwidth == min(rate, 16_000) / 2
    assert recording.seconds == pytest.approx(1, abs=1e-3)


def test_wanted_rate(write: Write) -> None:
    recording = load(write("a.wav", tone(1.0, hz=1000)), rate=8000)
    assert (recording.rate, recording.bandwidth, len(recording.samples)) == (8000, 4000, 8000)
    assert np.argmax(np.abs(np.fft.rfft(recording.samples))) == 1000


def test_blocks_make_no_difference(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("a.flac", np.random.default_rng(0).normal(size=(30_000, 2)) / 10, 44_100)
    whole = load(path).samples
    monkeypatch.setattr(data.audio, "_BLOCK_FRAMES", 1001)
    np.testing.assert_array_equal(load(path).samples, whole)


def test_several_recordings_follow_one_another(write: Write) -> None:
    first, second = write("1.wav", tone(0.3)), write("2.wav", tone(0.2, 8000), 8000)
    joined = load(first, second)
    np.testing.assert_array_equal(joined.samples, np.concatenate([load(first).samples, load(second).samples]))
    assert joined.seconds == pytest.approx(0.5)
    assert joined.bandwidth == 4000


@pytest.mark.parametrize("top_db", [10, 25, 60])
def test_trimming_equals_librosa(top_db: float) -> None:
    rng = np.random.default_rng(0)
    loudness = np.repeat([1e-4, 1e-2, 1.0, 0.3, 1e-3, 0.05, 1e-5], 4321)
    samples = (rng.normal(size=len(loudness)) * loudness).astype(np.float32)
    trimmed = trim_silence(Recording(samples=samples, rate=16_000, bandwidth=8000), top_db)
    expected, _ = librosa.effects.trim(samples, top_db=top_db)
    np.testing.assert_array_equal(trimmed.samples, expected)
    assert 0 < len(trimmed.samples) < len(samples)


def test_a_single_sample_is_not_trimmed_away() -> None:
    click = Recording(samples=np.ones(1, np.float32), rate=16_000, bandwidth=8000)
    assert len(trim_silence(click, 25).samples) == 1


# What is refused ----------------------------------------------------------------------------------------------------


def test_silence(write: Write) -> None:
    error = refused(write("a.wav", np.zeros(800)))
    assert error.kind == "empty"
    assert "silence: all 800 samples are zero" in str(error)


def test_opposite_channels_leave_silence(write: Write) -> None:
    assert refused(write("a.wav", np.column_stack([tone(), -tone()]), subtype="FLOAT")).kind == "empty"


def test_one_silent_recording_of_several_is_kept(write: Write) -> None:
    assert load(write("1.wav", np.zeros(800)), write("2.wav", tone())).seconds == pytest.approx(0.55)


def test_no_samples(write: Write) -> None:
    error = refused(write("a.wav", np.zeros(0)))
    assert error.kind == "empty"
    assert "0 samples" in str(error)
    assert refused(write("b.wav", tone()), write("a.wav", np.zeros(0))).kind == "empty"


def test_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.wav").touch()
    assert refused(tmp_path / "a.wav").kind == "empty"


@pytest.mark.parametrize("name", ["a.wav", "a.aiff", "a.flac", "a.ogg", "a.mp3"])
def test_cut_short(write: Write, name: str) -> None:
    path = write(name, np.random.default_rng(0).normal(size=80_000) / 10)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    error = refused(path)
    assert error.kind == "truncated"
    found = re.search(r"found only the first ([\d.]+) s(?: of the ([\d.]+) s that the header states)?", str(error))
    assert found is not None
    assert 1.5 < float(found[1]) <= 2.6
    assert found[2] == (None if name == "a.ogg" else "5"), "the last page of an Ogg states its length"


def test_a_damaged_flac_is_not_called_cut_short(write: Write) -> None:
    path = write("a.flac", np.random.default_rng(0).normal(size=80_000) / 10)
    content = bytearray(path.read_bytes())
    content[60_000:60_200] = bytes(200)
    path.write_bytes(content)
    error = refused(path)
    assert error.kind == "unreadable"
    assert re.search(r"damage after [\d,]+ of 80,000 samples", str(error))


@pytest.mark.parametrize("name", ["a.flac", "a.ogg", "a.mp3"])
def test_files_joined_byte_by_byte_are_not_read_in_part(write: Write, name: str) -> None:
    path = write(name, np.random.default_rng(0).normal(size=80_000) / 10)
    path.write_bytes(path.read_bytes() * 2)
    error = refused(path)
    assert error.kind == "unsupported"
    assert "expected one recording, found" in str(error)


@pytest.mark.parametrize(("mode", "whole"), [("CONSTANT", True), ("VARIABLE", False)])
def test_mp3_without_a_stated_length(write: Write, mode: str, whole: bool) -> None:
    """Its length is estimated from the first frame: right for a constant rate, far too short for this variable one."""
    rng = np.random.default_rng(0)
    sound = np.concatenate([rng.normal(size=40_000) / 10, tone(10.0), rng.normal(size=40_000) / 10])
    path = write("a.mp3", sound, bitrate_mode=mode, compression_level=0.3)
    content = path.read_bytes()
    header = content.index(content[:2], 100)  # the frame of the stated length ends where the next frame begins
    path.write_bytes(content[header:] + b"TAG" + bytes(125))
    if whole:
        assert load(path).seconds == pytest.approx(len(sound) / 16_000, rel=0.01)
    else:
        assert refused(path).kind == "unsupported"


def test_placeholder_sizes_are_no_truncation(write: Write) -> None:
    path = write("a.wav", tone())
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = content[4:8] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert load(path).seconds == pytest.approx(0.5)


def test_unstated_length(write: Write) -> None:
    path = write("a.flac", tone())
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    path.write_bytes(content)
    error = refused(path)
    assert error.kind == "unsupported"
    assert "does not state the length" in str(error)


def test_picture_and_text_are_no_sound(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "picture.jpg")
    (tmp_path / "note.wav").write_text("The heart is of normal size.\n" * 50)
    (tmp_path / "noise.ul").write_bytes(b"a suffix that stands for headerless sound" * 50)
    for name in ("picture.jpg", "note.wav", "noise.ul"):
        error = refused(tmp_path / name)
        assert error.kind == "unreadable"
        assert "expected a recording (WAV, FLAC, Ogg, MP3, AIFF, M4A," in str(error)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.wav").kind == "missing"
    assert refused(tmp_path).kind == "unreadable"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers(write: Write, value: float) -> None:
    samples = np.column_stack([tone(), tone()])
    samples[100] = (value, -value)
    assert refused(write("a.wav", samples, subtype="FLOAT")).kind == "not_finite"


def test_too_long_alone_or_together(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data.audio, "MAX_SECONDS", 0.7)
    path, again = write("a.wav", tone(0.4)), write("b.wav", tone(0.4))
    assert load(path).seconds == pytest.approx(0.4)
    assert refused(path, again).kind == "too_large"
    assert refused(write("c.wav", tone(0.8))).kind == "too_large"


@pytest.mark.parametrize("rate", [10, 2**30])
def test_senseless_rates(write: Write, rate: int) -> None:
    path = write("a.wav", tone())
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    error = refused(path)
    assert error.kind == "unsupported"
    assert re.search(r"expected 1,000 to 768,000 samples per second, the header states [\d,]+", str(error))


def test_a_part_of_a_recording_is_not_guessed(write: Write) -> None:
    with pytest.raises(SampleError, match="no part 'frame=3'"):
        load_audio(Source("audio", path=write("a.wav", tone()), selector="frame=3"))
