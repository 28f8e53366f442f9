"""Spoken digits: features equal librosa's, and digits are told apart across speakers.

What is asked of a score is a floor well below the recorded one, because the last digits differ between
machines.
"""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import soxr

from data.audio import load_audio, trim_silence
from data.filecache import FileCache
from data.leakage import connected_groups
from data.manifest import Source
from data.sound_hash import near_recordings
from data.sources import read_manifest
from data.spectrogram import MelSettings, deltas, log_mel, mfcc

pytestmark = [pytest.mark.real_data]


@pytest.fixture(scope="module")
def recordings(datasets: Path) -> list[Path]:
    return sorted((datasets / "fsdd" / "audio").glob("*.wav"))[::50]


def test_every_step_equals_librosa(recordings: list[Path]) -> None:
    assert len(recordings) == 40
    for path in recordings:
        stored, rate = soundfile.read(path, dtype="float32")
        assert rate == 8000
        expected = librosa.resample(stored, orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
        recording = load_audio(Source("audio", path=path))
        np.testing.assert_allclose(recording.samples, expected, atol=1e-6)
        trimmed, _ = librosa.effects.trim(expected, top_db=25)
        np.testing.assert_array_equal(trim_silence(recording, 25).samples, trimmed)
        power = librosa.feature.melspectrogram(
            y=expected.astype(np.float64), sr=16_000, n_fft=400, hop_length=160, n_mels=80, fmin=50, fmax=4000
        )
        decibels = librosa.power_to_db(power, ref=np.max, top_db=80)
        found = log_mel(recording, MelSettings())
        np.testing.assert_allclose(found, decibels, atol=1e-4)
        cepstrum = librosa.feature.mfcc(S=decibels, n_mfcc=20)
        np.testing.assert_allclose(mfcc(found, 20), cepstrum, atol=1e-4)
        for order in (1, 2):
            np.testing.assert_allclose(
                deltas(mfcc(found, 20), order), librosa.feature.delta(cepstrum, order=order), atol=1e-4
            )


@pytest.mark.slow
@pytest.mark.parametrize(("encoder", "floor"), [("audio:mfcc", 0.5), ("audio:logmel", 0.48)])
def test_digits_of_an_unheard_speaker(encoder: str, floor: float, datasets, extracted, frostline, tmp_path) -> None:
    manifest = datasets / "fsdd" / "manifest.csv"
    store, summary = extracted(manifest, encoder)
    assert (summary["encoded"] + summary["duplicates"], summary["failures"]) == (2000, [])
    result = frostline(
        *("fit-head", manifest, "--store", store, "--encoder", encoder, "--target", "label", "--kind", "multiclass"),
        *("--group", "group_id", "--folds", 4, "--head", "linear", "--bootstrap", 200),
        *("--out", tmp_path / "run", "--json"),
    )
    assert result.code == 0, result.err
    assert result.json["metrics"]["cv"]["accuracy"]["value"] > floor


def test_takes_of_a_speaker_are_no_duplicates_and_copies_are(datasets: Path, tmp_path: Path) -> None:
    """No two of the 2,000 recordings are near each other; every copy at another rate is near its own and no other."""
    manifest = read_manifest(datasets / "fsdd" / "manifest.csv")
    copies = []
    for source in manifest.sources[::20]:
        assert source is not None
        assert source.path is not None
        stored, rate = soundfile.read(source.path)
        path = tmp_path / f"{source.path.stem}.flac"
        soundfile.write(path, soxr.resample(stored, rate, 22_050) / 2, 22_050)
        copies.append(Source("audio", path=path))
    with FileCache(tmp_path / "files.sqlite") as cache:
        keys, failures = cache.keys([*manifest.sources, *copies])
        assert not failures
        near = near_recordings([*manifest.sources, *copies], keys, cache)
    different = near_recordings(manifest.sources, keys[: len(manifest)], FileCache(tmp_path / "files.sqlite"))
    assert len(different.pairs) == 0
    assert len(np.unique(different.looks)) == len(np.unique(keys[: len(manifest)], axis=0))
    groups = connected_groups(len(keys), near=near)
    assert (groups[len(manifest) :] == groups[: len(manifest) : 20]).all()
    assert len(np.unique(groups)) == len(np.unique(different.looks))
