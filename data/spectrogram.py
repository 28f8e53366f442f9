"""Log-mel spectrograms, MFCC and what is made of them: pure functions of a waveform.

All equal librosa's numbers for the same settings. Spectrograms have shape (mels, frames); frame i is centred on
sample ``i * hop``, and the waveform is continued by zeros on both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
import scipy.signal
from numpy.typing import NDArray

from data.audio import Recording

Spectrogram = NDArray[np.float32]
"""Shape (mels, frames) or (coefficients, frames), float32."""

DELTA_WIDTH = 9
"""Frames over which a slope is fitted."""

_FRAMES_AT_ONCE = 2048
_MIN_POWER = 1e-10
# Slaney's mel scale: linear up to 1000 Hz, then 27 steps to every factor of 6.4.
_LINEAR_HZ, _BREAK_HZ, _LOG_STEP = 200 / 3, 1000.0, np.log(6.4) / 27


@dataclass(frozen=True, kw_only=True)
class MelSettings:
    """How a log-mel spectrogram is made.

    Attributes
    ----------
    n_fft, hop
        Length of a frame and distance between frames, in samples.
    n_mels
        Number of mel bands.
    fmin, fmax
        Lowest and highest frequency, in Hz. Bounded by what the recording can hold (`Recording.bandwidth`): above it
        there is nothing, not even in a recording that was resampled to a higher rate.
    top_db
        Decibels below the loudest value at which the spectrogram is cut off.
    """

    n_fft: int = 400
    hop: int = 160
    n_mels: int = 80
    fmin: float = 50.0
    fmax: float = 8000.0
    top_db: float = 80.0


@lru_cache(maxsize=32)
def mel_filters(rate: int, n_fft: int, n_mels: int, fmin: float, fmax: float) -> NDArray[np.float64]:
    """Return triangular filters, evenly spaced on Slaney's mel scale and each of area 1 [1]_.

    Equal to ``librosa.filters.mel(sr=rate, n_fft=..., n_mels=..., fmin=..., fmax=..., htk=False, norm="slaney")``.

    Parameters
    ----------
    rate, n_fft
        Samples per second; length of a frame.
    n_mels, fmin, fmax
        Number of filters; lower edge of the first and upper edge of the last one, in Hz.

    Returns
    -------
    ndarray of float64, shape (n_mels, n_fft // 2 + 1)
        Read-only. A filter that is narrower than the distance between two frequencies may be zero.

    References
    ----------
    .. [1] M. Slaney, "Auditory Toolbox", version 2, Interval Research Corporation, 1998.
    """
    frequencies = np.fft.rfftfreq(n_fft, 1 / rate)
    edges = _hz(np.linspace(_mel(fmin), _mel(fmax), n_mels + 2))
    low, centre, high = (edges[i : n_mels + i, None] for i in range(3))
    rising, falling = (frequencies - low) / (centre - low), (high - frequencies) / (high - centre)
    filters: NDArray[np.float64] = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    filters.flags.writeable = False
    return filters


def log_mel(recording: Recording, settings: MelSettings) -> Spectrogram:
    """Return a log-mel spectrogram in decibels below its own loudest value.

    Equal to ``librosa.power_to_db(librosa.feature.melspectrogram(...), ref=np.max, top_db=settings.top_db)`` with a
    periodic Hann window, power 2 and `settings.fmax` bounded by the recording's bandwidth. How loud the recording is
    as a whole makes no difference, but that a power below 1e-10 counts as 1e-10.

    Returns
    -------
    ndarray of float32, shape (n_mels, 1 + n_samples // hop)
        Between ``-top_db`` and 0.
    """
    power = _mel_power(recording, settings)
    loudest = max(float(power.max()), _MIN_POWER)
    decibels = 10 * np.log10(np.maximum(power, _MIN_POWER) / loudest)
    cut: Spectrogram = np.maximum(decibels, -settings.top_db).astype(np.float32)
    return cut


def cmvn(spectrogram: Spectrogram) -> Spectrogram:
    """Normalise a file by itself: mean 0 and standard deviation 1 over all its values; all zeros if it is constant."""
    centred = spectrogram - spectrogram.mean(dtype=np.float64)
    normal: Spectrogram = (centred / (centred.std() or 1.0)).astype(np.float32)
    return normal


def min_max(spectrogram: Spectrogram) -> Spectrogram:
    """Normalise a file by itself: its values from 0 to 1; all zeros if it is constant."""
    low, high = float(spectrogram.min()), float(spectrogram.max())
    scaled: Spectrogram = ((spectrogram - low) / (high - low or 1.0)).astype(np.float32)
    return scaled


def mfcc(spectrogram: Spectrogram, n_mfcc: int) -> Spectrogram:
    """Return the first cepstral coefficients of a log-mel spectrogram: its orthonormal DCT-II over the bands.

    Equal to ``librosa.feature.mfcc(S=spectrogram, n_mfcc=n_mfcc)``.

    Returns
    -------
    ndarray of float32, shape (n_mfcc, frames)
    """
    coefficients: Spectrogram = scipy.fft.dct(spectrogram, axis=0, type=2, norm="ortho")[:n_mfcc]
    return coefficients


def deltas(coefficients: Spectrogram, order: int) -> Spectrogram:
    """Return the time derivative of coefficients, per frame, by a polynomial fitted over `DELTA_WIDTH` frames.

    Equal to ``librosa.feature.delta(coefficients, order=order)``.

    Parameters
    ----------
    coefficients
        Shape (c, frames), at least `DELTA_WIDTH` frames.
    order
        1 for the slope, 2 for the curvature.

    Returns
    -------
    ndarray of float32, shape (c, frames)
    """
    slopes: Spectrogram = scipy.signal.savgol_filter(
        coefficients, DELTA_WIDTH, deriv=order, polyorder=order, axis=-1, mode="interp"
    )
    return slopes


def spectrogram_image(recording: Recording, settings: MelSettings) -> NDArray[np.uint8]:
    """Return a log-mel spectrogram as a grey picture: time to the right, low frequencies at the bottom.

    The range is fixed: black is `settings.top_db` decibels below the loudest value, white is the loudest value.

    Returns
    -------
    ndarray of uint8, shape (n_mels, frames), C-contiguous
    """
    shades = 255 * (1 + log_mel(recording, settings) / settings.top_db)
    return np.ascontiguousarray(np.rint(shades).astype(np.uint8)[::-1])


def _mel_power(recording: Recording, settings: MelSettings) -> NDArray[np.float64]:
    """Return the power in each mel band and frame, shape (n_mels, frames)."""
    fmax = min(settings.fmax, recording.bandwidth)
    filters = mel_filters(recording.rate, settings.n_fft, settings.n_mels, settings.fmin, fmax)
    window = scipy.signal.get_window("hann", settings.n_fft)
    padded = np.pad(recording.samples, settings.n_fft // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, settings.n_fft)[:: settings.hop]
    power = np.empty((settings.n_mels, len(frames)))
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        some = slice(start, start + _FRAMES_AT_ONCE)
        power[:, some] = filters @ (np.abs(scipy.fft.rfft(frames[some] * window)) ** 2).T
    return power


def _mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz / _LINEAR_HZ
    return float(_BREAK_HZ / _LINEAR_HZ + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def _hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _BREAK_HZ * np.exp(_LOG_STEP * (mels - _BREAK_HZ / _LINEAR_HZ))
    return np.where(mels < _BREAK_HZ / _LINEAR_HZ, mels * _LINEAR_HZ, above)
