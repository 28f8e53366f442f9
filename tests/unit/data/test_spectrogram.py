"""Spectrograms and MFCC equal librosa's."""

from __future__ import annotations

import librosa
import numpy as np
import pytest
from numpy.typing import NDArray

from data.audio import Recording
from data.spectrogram import (
    MelSettings,
    cmvn,
    deltas,
    log_mel,
    mel_filters,
    mfcc,
    min_max,
    spectrogram_image,
)

SETTINGS = MelSettings()
RATE = 16_000


def voice(seconds: float = 1.5, bandwidth: float = 8000) -> Recording:
    """Return something like a voice: gliding harmonics in phrases, and a little noise."""
    rng = np.random.default_rng(3)
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(3 * time)) / RATE
    harmonics = sum(np.sin(k * pitch) / k for k in range(1, 30) if k * 150 < bandwidth)
    phrases = np.clip(np.sin(9 * time), 0, None)
    samples = 0.1 * harmonics * phrases + 1e-4 * rng.normal(size=len(time))
    return Recording(samples=samples.astype(np.float32), rate=RATE, bandwidth=bandwidth)


def librosa_log_mel(samples: NDArray[np.floating], fmax: float) -> NDArray[np.floating]:
    power = librosa.feature.melspectrogram(
        y=samples, sr=RATE, n_fft=400, hop_length=160, n_mels=80, fmin=50, fmax=fmax, power=2.0
    )
    return librosa.power_to_db(power, ref=np.max, top_db=80)


@pytest.mark.parametrize("fmax", [8000, 4000, 3000.5])
@pytest.mark.parametrize("n_mels", [40, 80])
def test_filters_equal_librosa(n_mels: int, fmax: float) -> None:
    expected = librosa.filters.mel(sr=RATE, n_fft=400, n_mels=n_mels, fmin=50, fmax=fmax)
    np.testing.assert_allclose(mel_filters(RATE, 400, n_mels, 50, fmax), expected, atol=1e-8)


@pytest.mark.parametrize("bandwidth", [8000, 4000])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_mel_equals_librosa(bandwidth: float, dtype: type) -> None:
    recording = voice(bandwidth=bandwidth)
    found = log_mel(recording, SETTINGS)
    assert found.dtype == np.float32
    assert found.shape == (80, 1 + len(recording.samples) // 160)
    assert (found.min(), found.max()) == (-80, 0)
    expected = librosa_log_mel(recording.samples.astype(dtype), bandwidth)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_more_frames_than_are_computed_at_once() -> None:
    recording = voice(seconds=25)
    np.testing.assert_allclose(log_mel(recording, SETTINGS), librosa_log_mel(recording.samples, 8000), atol=1e-4)


@pytest.mark.parametrize("n_samples", [1, 160, 399])
def test_shorter_than_a_frame(n_samples: int) -> None:
    recording = Recording(samples=voice().samples[5000 : 5000 + n_samples], rate=RATE, bandwidth=8000)
    found = log_mel(recording, SETTINGS)
    assert found.shape == (80, 1 + n_samples // 160)
    assert np.isfinite(found).all()


def test_loudness_makes_no_difference() -> None:
    loud = voice()
    quiet = Recording(samples=loud.samples / 64, rate=RATE, bandwidth=8000)
    strong = log_mel(loud, SETTINGS) > -40
    assert strong.mean() > 0.1
    np.testing.assert_allclose(log_mel(quiet, SETTINGS)[strong], log_mel(loud, SETTINGS)[strong], atol=1e-3)


@pytest.mark.parametrize("hz", [200, 1000, 3000, 6500])
def test_a_tone_peaks_in_its_band(hz: float) -> None:
    samples = np.sin(2 * np.pi * hz * np.arange(RATE) / RATE).astype(np.float32)
    spectrogram = log_mel(Recording(samples=samples, rate=RATE, bandwidth=8000), SETTINGS)
    centres = librosa.mel_frequencies(n_mels=82, fmin=50, fmax=8000)[1:-1]
    assert abs(int(spectrogram[:, 50].argmax()) - int(np.abs(centres - hz).argmin())) <= 1


@pytest.mark.parametrize("n_mfcc", [13, 20])
def test_mfcc_and_deltas_equal_librosa(n_mfcc: int) -> None:
    spectrogram = log_mel(voice(), SETTINGS)
    expected = librosa.feature.mfcc(S=librosa_log_mel(voice().samples.astype(np.float64), 8000), n_mfcc=n_mfcc)
    found = mfcc(spectrogram, n_mfcc)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    for order in (1, 2):
        np.testing.assert_allclose(deltas(found, order), librosa.feature.delta(expected, order=order), atol=1e-4)


def test_normalisation_by_the_file_itself() -> None:
    spectrogram = log_mel(voice(), SETTINGS)
    normal = cmvn(spectrogram)
    np.testing.assert_allclose([normal.mean(dtype=float), normal.std(dtype=float)], [0, 1], atol=1e-5)
    expected = (spectrogram - spectrogram.mean(dtype=float)) / spectrogram.std(dtype=float)
    np.testing.assert_allclose(normal, expected, atol=1e-5)
    scaled = min_max(spectrogram)
    np.testing.assert_allclose(scaled, (spectrogram + 80) / 80, atol=1e-6)
    # Min-max undoes any linear step before it.
    np.testing.assert_allclose(min_max(normal), scaled, atol=1e-5)


@pytest.mark.parametrize("normalise", [cmvn, min_max])
def test_a_constant_spectrogram_becomes_zeros(normalise: object) -> None:
    np.testing.assert_array_equal(normalise(np.full((4, 5), -80, np.float32)), np.zeros((4, 5)))


def test_picture_has_low_frequencies_at_the_bottom() -> None:
    low = np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE).astype(np.float32)
    picture = spectrogram_image(Recording(samples=low, rate=RATE, bandwidth=8000), SETTINGS)
    assert (picture.dtype, picture.shape, picture.flags.c_contiguous) == (np.uint8, (80, 101), True)
    assert picture[-5:, 50].max() == 255
    assert picture[:40, 50].max() == 0


def test_picture_is_the_spectrogram_in_shades() -> None:
    picture = spectrogram_image(voice(), SETTINGS)
    decibels = picture[::-1].astype(float) / 255 * 80 - 80
    np.testing.assert_allclose(decibels, log_mel(voice(), SETTINGS), atol=80 / 255 / 2 + 1e-4)
