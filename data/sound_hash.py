"""Find recordings that are nearly the same: re-encoded, resampled, louder or with other silence around them.

What is compared is how a recording changes on a grid of 16 x 16 places: 17 mel bands of the telephone's range, which
every usual rate can hold, and 17 stretches between the moments at which 1 % and 99 % of its energy have passed, so
that silence and delays at its ends do not matter. Of the levels, in decibels, only the difference of the differences
of neighbours in time and frequency is kept [1]_: neither volume nor a fixed filter changes it.

Two takes of one speaker differ: of the two million pairs among 2,000 spoken digits, half a second long each, none has
a cosine above 0.79. What was cut out of another recording is not found, as a cropped picture is not.

.. [1] J. Haitsma, T. Kalker, "A Highly Robust Audio Fingerprinting System", ISMIR 2002; theirs are the signs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.audio import Recording, load_audio
from data.digest import Keys
from data.duplicates import NearPairs, near_pairs_by_embedding, remembered
from data.filecache import Advance, FileCache
from data.manifest import Source
from data.spectrogram import MelSettings, log_mel

METHOD = "melhash-16x16/1"
"""Name and version of `sound_hash`; remembered hashes of another one are not used."""
MIN_COSINE = 0.85
"""Least cosine of two hashes of near-duplicates."""

_SIDE = 16
_SETTINGS = MelSettings(n_mels=_SIDE + 1, fmin=200.0, fmax=3400.0)
_EDGE = 0.01
"""Share of the energy that is passed over at either end."""
_FLOOR_DB = -30.0
"""Quieter places count as this much below the loudest: what codecs add to silence is no difference."""
_STEP_DB = 0.25
_FLAT_STEPS = 1.0
"""A recording whose hash varies less is a tone or even noise, with nothing to compare."""


def sound_hash(recording: Recording) -> bytes | None:
    """Return how a recording changes in time and frequency, or None if it hardly does.

    Parameters
    ----------
    recording
        A recording, at whatever rate of at least 6800 Hz.

    Returns
    -------
    bytes or None
        256 signed numbers of 8 bits, in steps of a quarter of a decibel.
    """
    power = np.power(10.0, log_mel(recording, _SETTINGS).astype(np.float64) / 10)
    passed = np.pad(np.cumsum(power, axis=1), ((0, 0), (1, 0)))
    total = passed.sum(axis=0)
    first, last = np.interp([_EDGE * total[-1], (1 - _EDGE) * total[-1]], total, np.arange(len(total)))
    edges = np.linspace(first, last, _SIDE + 2)
    cells = np.diff(np.stack([np.interp(edges, np.arange(len(total)), band) for band in passed]), axis=1)
    levels = 10 * np.log10(np.maximum(cells, cells.max() * 10 ** (_FLOOR_DB / 10)))
    steps = np.round(np.diff(np.diff(levels, axis=0), axis=1) / _STEP_DB).clip(-127, 127).astype(np.int8)
    return None if steps.std() < _FLAT_STEPS else steps.tobytes()


def near_recordings(
    sources: Sequence[Source | None],
    keys: Keys,
    cache: FileCache,
    *,
    workers: int = 8,
    progress: Advance | None = None,
) -> NearPairs:
    """Find all recordings whose `sound_hash` has at least the cosine `MIN_COSINE`.

    Parameters
    ----------
    sources
        The n samples; one that is None, or cannot be read, is near nothing.
    keys
        Their content keys, shape (n, 2).
    cache
        Remembers the hashes by content key.
    workers
        Number of threads.
    progress
        Called with the number of samples finished since the last call.

    Raises
    ------
    LeakageError
        If too many pairs are near.
    """

    def compute(source: Source) -> bytes | None:
        return sound_hash(load_audio(source))

    hashes = remembered(METHOD, compute, sources, keys, cache, workers=workers, progress=progress)
    nothing = bytes(_SIDE * _SIDE)
    return near_pairs_by_embedding(_rows([value or nothing for value in hashes]), MIN_COSINE)


def _rows(hashes: Sequence[bytes]) -> NDArray[np.float32]:
    return np.frombuffer(b"".join(hashes), dtype=np.int8).reshape(len(hashes), -1).astype(np.float32)
