"""`extract` on recordings: what is encoded, what goes to the ledger, and one sample made of several files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

import data.audio
from data.filecache import FileCache
from data.progress import Silent
from data.sources import read_manifest
from featurestore.bandwidth import file_rates
from featurestore.store import FeatureStore
from heads import labelled


def noise(seconds: float = 0.4, rate: int = 16_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(round(seconds * rate), channels)) / 10


def table(folder: Path, cells: list[str], column: str = "audio") -> Path:
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerows([["id", column], *((f"s{i}", cell) for i, cell in enumerate(cells))])
    return path


@pytest.fixture
def good(tmp_path: Path) -> list[str]:
    """Recordings of every sort that can be read."""
    soundfile.write(tmp_path / "wide.wav", noise(), 16_000)
    soundfile.write(tmp_path / "telephone.wav", noise(rate=8000, seed=1), 8000)
    soundfile.write(tmp_path / "stereo.flac", noise(rate=44_100, channels=2, seed=2), 44_100, subtype="PCM_24")
    soundfile.write(tmp_path / "lossy.mp3", noise(seed=3), 16_000)
    return ["wide.wav", "telephone.wav", "stereo.flac", "lossy.mp3"]


def test_bad_recordings_are_ledger_entries_and_never_zeros(frostline, good, tmp_path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 16_000)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 16_000)
    soundfile.write(tmp_path / "broken.wav", np.full(8000, np.nan), 16_000, subtype="FLOAT")
    whole = (tmp_path / "wide.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.wav").touch()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "picture.png")
    (tmp_path / "words.wav").write_text("not a sound " * 100)
    expected = {
        "silent.wav": "empty",
        "nothing.wav": "empty",
        "broken.wav": "not_finite",
        "cut.wav": "truncated",
        "empty.wav": "empty",
        "picture.png": "unreadable",
        "words.wav": "unreadable",
        "absent.wav": "missing",
        "wide.wav|silent.wav|cut.wav": "truncated",
    }
    store = tmp_path / "store"
    result = frostline("extract", table(tmp_path, [*good, *expected]), "--store", store, "--json")
    assert result.code == 3, result.err
    assert "Traceback" not in result.err
    assert (result.json["encoder"], result.json["encoded"], result.json["stored"]) == ("audio:mfcc", 4, 4)
    found = {failure["id"]: failure["kind"] for failure in result.json["failures"]}
    assert found == {f"s{4 + i}": kind for i, kind in enumerate(expected.values())}
    assert all("\n" not in failure["message"] for failure in result.json["failures"])
    (features,) = FeatureStore(store).features()
    _, vectors = features.load()
    assert vectors.shape == (4, 120)
    assert (np.abs(vectors).sum(axis=1) > 0).all()


def test_several_recordings_are_one_sample_known_by_all_of_them(frostline, good, tmp_path) -> None:
    store = tmp_path / "store"
    cells = ["wide.wav|telephone.wav", "telephone.wav|wide.wav", "wide.wav", "wide.wav | telephone.wav"]
    first = frostline("extract", table(tmp_path, cells), "--store", store, "--encoder", "audio:logmel", "--json")
    assert first.code == 0, first.err
    assert (first.json["encoded"], first.json["duplicates"]) == (3, 1)
    again = frostline("extract", table(tmp_path, cells), "--store", store, "--encoder", "audio:logmel", "--json")
    assert (again.json["encoded"], again.json["cached"]) == (0, 3)
    soundfile.write(tmp_path / "telephone.wav", noise(rate=8000, seed=9), 8000)
    changed = frostline("extract", table(tmp_path, cells), "--store", store, "--encoder", "audio:logmel", "--json")
    assert changed.json["encoded"] == 2, "the sample of which no file changed is kept"


def test_a_folder_of_recordings(frostline, tmp_path) -> None:
    for i in range(4):
        folder = tmp_path / "sounds" / ("cough" if i % 2 else "speech")
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / f"{i}.wav", noise(seed=i), 16_000)
    result = frostline("extract", tmp_path / "sounds", "--store", tmp_path / "store", "--json")
    assert result.code == 0, result.err
    assert (result.json["encoder"], result.json["encoded"]) == ("audio:mfcc", 4)


def test_an_encoder_of_pictures_refuses_sounds(frostline, good, toy, tmp_path) -> None:
    result = frostline("extract", table(tmp_path, good), "--store", tmp_path / "store", "--encoder", "audio:mfc")
    assert result.code == 2
    assert "did you mean 'mfcc'" in result.error
    other = frostline("extract", table(tmp_path, good), "--store", tmp_path / "store", "--encoder", toy)
    assert other.code == 2
    assert "encodes image, not audio" in other.error


def melody(seed: int) -> np.ndarray:
    """A second of tones that follow one another."""
    rng, time = np.random.default_rng(seed), np.arange(2000) / 16_000
    return np.concatenate([np.sin(2 * np.pi * hz * time) * rng.uniform(0.05, 0.5) for hz in rng.uniform(250, 3000, 8)])


def test_copies_of_a_recording_are_kept_together_and_only_copies(frostline, tmp_path) -> None:
    lines = ["id,audio,label"]
    for i in range(12):
        soundfile.write(tmp_path / f"{i}.wav", melody(i), 16_000)
        lines.append(f"r{i},{i}.wav,{'ab'[i % 2]}")
    for i in (1, 4, 8):
        soundfile.write(tmp_path / f"copy{i}.mp3", np.pad(melody(i), 2000) / 3, 16_000)
        lines.append(f"copy{i},copy{i}.mp3,{'ab'[i % 2]}")
    manifest, store, encoder = tmp_path / "m.csv", tmp_path / "store", "audio:mfcc"
    manifest.write_text("\n".join([*lines, ""]))
    assert frostline("extract", manifest, "--store", store, "--encoder", encoder).code == 0
    fitted = frostline(
        *("fit-head", manifest, "--store", store, "--encoder", encoder, "--target", "label"),
        *("--folds", 3, "--bootstrap", 50, "--out", tmp_path / "run"),
    )
    assert fitted.code == 0, fitted.err
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        fold_of = {row["id"]: row["fold"] for row in csv.DictReader(file)}
    assert len(set(fold_of.values())) == 3
    assert [fold_of[f"copy{i}"] for i in (1, 4, 8)] == [fold_of[f"r{i}"] for i in (1, 4, 8)]
    # Whatever the vectors are: those of an untrained network may all be nearly the same.
    samples = read_manifest(manifest)
    keys, _ = FileCache().keys(samples.sources)
    near = labelled._near_duplicates(samples, keys, np.ones((15, 4), np.float32), FeatureStore(store), Silent())
    assert near.looks.tolist() == list(range(15))
    assert near.pairs.tolist() == [[1, 12], [4, 13], [8, 14]]
    (tmp_path / "0.wav").unlink()
    moved = labelled._near_duplicates(samples, keys, np.eye(15, dtype=np.float32), FeatureStore(store), Silent())
    assert len(moved.pairs) == 0, "where contents are gone, vectors are all there is"


@pytest.mark.parametrize("encoder", ["audio:logmel", "spectrogram+timm:test_vit/random:0"])
def test_files_of_different_rates_are_counted_and_said(frostline, good, encoder: str, tmp_path) -> None:
    """What an 8 kHz file cannot hold would tell the recorder; below the common limit all are alike."""
    arguments = ("extract", table(tmp_path, good), "--store", tmp_path / "store", "--encoder")
    said = "the recordings hold different frequencies by the rates of their files: 1 up to 4,000 Hz, 3 up to 8,000 Hz"
    first = frostline(*arguments, encoder)
    assert first.code == 0, first.err
    assert f"{said}; a head may learn the recorder: give one limit for all, as in audio:mfcc/fmax=4000" in first.out
    again = frostline(*arguments, encoder, "--json")
    assert (again.json["encoded"], again.json["bandwidths"]) == (0, {"4000": 1, "8000": 3})
    wrapper, _, inside = encoder.partition("+")
    limited = f"{wrapper}:fmax=4000+{inside}" if inside else f"{encoder}/fmax=4000"
    alike = frostline(*arguments, limited)
    assert alike.code == 0, alike.err
    assert "different frequencies" not in alike.out


def test_rates_are_read_once_and_a_part_counts_for_the_whole(good, tmp_path, monkeypatch) -> None:
    cells = [*good, "wide.wav|telephone.wav", "absent.wav"]
    manifest = read_manifest(table(tmp_path, cells))
    with FileCache(tmp_path / "files.sqlite") as cache:
        keys, _ = cache.keys(manifest.sources)
        assert file_rates(manifest, keys, cache, workers=2) == {8000: 2, 16_000: 2, 44_100: 1}
    monkeypatch.setattr(data.audio, "file_rate", lambda _: 1 / 0)
    with FileCache(tmp_path / "files.sqlite") as cache:
        assert file_rates(manifest.select(range(5)), keys[:5], cache, workers=2) == {8000: 2, 16_000: 2, 44_100: 1}
