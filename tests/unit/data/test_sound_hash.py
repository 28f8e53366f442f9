"""Near-duplicates of recordings: copies are found, other recordings are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

import data.sound_hash
from data.audio import Recording, load_audio
from data.digest import as_keys, content_key
from data.filecache import FileCache
from data.manifest import Source
from data.sound_hash import MIN_COSINE, near_recordings, sound_hash

Sound = NDArray[np.float64]
RATE = 16_000


def speech(seed: int, seconds: float = 3.0, rate: int = RATE) -> Sound:
    """Some harmonics of a gliding voice, each of its own loudness in every syllable."""
    rng = np.random.default_rng(seed)
    n, syllables = round(seconds * rate), round(4 * seconds)
    time = np.linspace(0, syllables, n)
    pitch = np.interp(time, range(syllables + 1), rng.uniform(90, 250, syllables + 1))
    phase = np.cumsum(2 * np.pi * pitch / rate)
    loudness = [10 ** np.interp(time, range(syllables + 1), rng.uniform(-2.5, 0, syllables + 1)) for _ in range(24)]
    voice = sum(level * np.sin(k * phase) for k, level in enumerate(loudness, start=1))
    return 0.3 * voice / np.abs(voice).max() + rng.normal(size=n) / 2000


def recording(samples: Sound, rate: int = RATE) -> Recording:
    resampled = soxr.resample(samples, rate, RATE, quality="HQ").astype(np.float32) if rate != RATE else samples
    return Recording(samples=np.asarray(resampled, np.float32), rate=RATE, bandwidth=min(rate, RATE) / 2)


def cosine(first: bytes | None, second: bytes | None) -> float:
    assert first is not None
    assert second is not None
    a, b = (np.frombuffer(each, np.int8).astype(float) for each in (first, second))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def test_follows_its_definition() -> None:
    sound = speech(0)
    mel = librosa.feature.melspectrogram(y=sound, sr=RATE, n_fft=400, hop_length=160, n_mels=17, fmin=200, fmax=3400)
    mel = np.maximum(mel, mel.max() * 1e-8)
    # A finer scale of time than frames, on which quantiles of the energy can be read off.
    fine = np.repeat(mel, 1000, axis=1)
    passed = np.cumsum(fine.sum(axis=0)) / fine.sum()
    first, last = np.searchsorted(passed, [0.01, 0.99])
    edges = np.round(np.linspace(first, last, 18)).astype(int)
    cells = np.array([[band[a:b].mean() for a, b in itertools.pairwise(edges)] for band in fine])
    levels = 10 * np.log10(np.maximum(cells, cells.max() / 1000))
    expected = levels[1:, 1:] - levels[1:, :-1] - levels[:-1, 1:] + levels[:-1, :-1]
    found = sound_hash(recording(sound))
    assert found is not None
    steps = np.frombuffer(found, np.int8).reshape(16, 16) / 4
    np.testing.assert_allclose(steps, np.clip(expected, -127 / 4, 127 / 4), atol=0.2)


def _coded(suffix: str, **options: str) -> Callable[[Sound, Path], Recording]:
    def copy(sound: Sound, folder: Path) -> Recording:
        soundfile.write(folder / f"copy.{suffix}", sound, RATE, **options)
        return load_audio(Source("audio", path=folder / f"copy.{suffix}"))

    return copy


@pytest.mark.parametrize(
    "copy",
    [
        lambda sound, _: recording(soxr.resample(sound, RATE, 44_100), 44_100),
        lambda sound, _: recording(soxr.resample(sound, RATE, 8000), 8000),
        lambda sound, _: recording(sound / 20),
        lambda sound, _: recording(np.concatenate([np.zeros(9000), sound, np.zeros(20_000)])),
        lambda sound, _: recording(sound + np.random.default_rng(9).normal(size=len(sound)) * sound.std() / 30),
        lambda sound, _: recording(np.convolve(sound, [1, -0.7])),
        _coded("mp3"),
        _coded("ogg"),
        _coded("ogg", subtype="OPUS"),
        _coded("wav", subtype="ULAW"),
    ],
    ids=["44.1 kHz", "telephone", "quiet", "silence around", "noise", "filter", "mp3", "vorbis", "opus", "u-law"],
)
def test_a_copy_is_near_and_another_recording_is_not(copy: Callable[[Sound, Path], Recording], tmp_path: Path) -> None:
    changed = sound_hash(copy(speech(1), tmp_path))
    assert cosine(sound_hash(recording(speech(1))), changed) > MIN_COSINE
    assert cosine(sound_hash(recording(speech(2))), changed) < 0.5


@pytest.mark.parametrize(
    "sound", [0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE), np.ones(1), np.full(4000, 1e-9)]
)
def test_what_never_changes_has_none(sound: Sound) -> None:
    assert sound_hash(recording(sound)) is None


def test_pairs_are_found_once_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", speech(i), RATE)
    soundfile.write(tmp_path / "copy.mp3", speech(2), RATE)
    soundfile.write(tmp_path / "equal.flac", speech(3), RATE)
    soundfile.write(tmp_path / "silent.wav", np.zeros(100), RATE)
    names = ["0.wav", "copy.mp3", "1.wav", "2.wav", "3.wav", "equal.flac", "silent.wav", "absent.wav"]
    sources = [*(Source("audio", path=tmp_path / name) for name in names), None]
    keys = as_keys(content_key(str(source).encode()) for source in sources)
    read: list[Source] = []

    def load(source: Source) -> Recording:
        read.append(source)
        return load_audio(source)

    monkeypatch.setattr(data.sound_hash, "load_audio", load)
    for expected_reads in (8, 2):  # what cannot be read is tried again
        read.clear()
        with FileCache(tmp_path / "files.sqlite") as cache:
            near = near_recordings(sources, keys, cache, workers=2)
        assert near.looks.tolist() == [0, 1, 2, 3, 4, 4, -1, -1, -1]
        assert near.pairs.tolist() == [[1, 3]]
        assert len(read) == expected_reads
