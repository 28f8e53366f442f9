"""`extract` and `fit-head` on videos as a user runs them: good ones are stored, bad ones are listed."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data.manifest import Source
from data.video import read_frames
from featurestore.encoders import frames
from featurestore.store import FeatureStore

ENCODER = "frames:4+timm:test_vit/random:0"


def write_sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture
def films(make_film, make_scenes, tmp_path) -> Path:
    """Twelve videos, every other one of them brighter."""
    rows = []
    for i in range(12):
        noise = np.random.default_rng(i).integers(0, 40, size=(6, 48, 64, 3), dtype=np.uint8)
        frames = list(make_scenes(1, seed=i)[0] // 3 + noise + 90 * (i % 2))
        name = f"{i}.mp4" if i % 3 else f"{i}.avi"
        make_film(tmp_path / name, frames, **({} if i % 3 else {"codec": "huffyuv"}))
        rows.append(f"v{i},{name},{'ab'[i % 2]},p{i // 2}")
    path = tmp_path / "films.csv"
    path.write_text("\n".join(["id,path,label,patient", *rows]) + "\n")
    return path


def test_videos_are_stored_once_and_a_head_is_fitted_on_them(frostline, films, tmp_path) -> None:
    arguments = ("extract", films, "--store", tmp_path / "store", "--encoder", ENCODER, "--json")
    first = frostline(*arguments)
    assert first.code == 0, first.err
    assert (first.json["encoded"], first.json["failures"]) == (12, [])
    assert first.json["fidelity"]["min_cosine"] > 0.99999
    assert frostline(*arguments).json["encoded"] == 0
    fitted = frostline(
        *("fit-head", films, "--store", tmp_path / "store", "--encoder", ENCODER, "--target", "label"),
        *("--group", "patient", "--folds", 3, "--bootstrap", 50, "--out", tmp_path / "run"),
    )
    assert fitted.code == 0, fitted.err


def test_copies_of_a_video_are_kept_together(frostline, films, make_film, make_scenes, tmp_path) -> None:
    """A clip under another name and in another container shall not be judged by what was learned from it."""
    copies = ""
    for i in (1, 4, 8):
        frames = list(read_frames(Source("video", path=tmp_path / f"{i}.mp4"), 100))
        make_film(tmp_path / f"copy{i}.mkv", frames, codec="ffv1", pix_fmt="bgr0")
        copies += f"copy{i},copy{i}.mkv,{'ab'[i % 2]},p{90 + i}\n"
    films.write_text(films.read_text() + copies)
    frostline("extract", films, "--store", tmp_path / "store", "--encoder", ENCODER)
    fitted = frostline(
        *("fit-head", films, "--store", tmp_path / "store", "--encoder", ENCODER, "--target", "label"),
        *("--group", "patient", "--folds", 3, "--bootstrap", 50, "--out", tmp_path / "run"),
    )
    assert fitted.code == 0, fitted.err
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        fold_of = {row["id"]: row["fold"] for row in csv.DictReader(file)}
    assert len(set(fold_of.values())) == 3
    assert [fold_of[f"copy{i}"] for i in (1, 4, 8)] == [fold_of[f"v{i}"] for i in (1, 4, 8)]


def test_bad_videos_are_listed_and_never_stored(frostline, films, tmp_path) -> None:
    whole = (tmp_path / "1.mp4").read_bytes()
    (tmp_path / "1.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.mp4").write_bytes(b"")
    Image.new("RGB", (64, 48)).save(tmp_path / "4.mp4", format="PNG")
    write_sound(tmp_path / "5.mp4")
    (tmp_path / "7.mp4").unlink()
    result = frostline("extract", films, "--store", tmp_path / "store", "--encoder", ENCODER, "--json")
    assert result.code == 3, result.err
    assert {failure["id"]: failure["kind"] for failure in result.json["failures"]} == {
        "v1": "truncated",
        "v2": "empty",
        "v4": "unreadable",
        "v5": "unsupported",
        "v7": "missing",
    }
    (features,) = FeatureStore(tmp_path / "store").features()
    assert len(features) == 7
    assert np.abs(features.load()[1]).max(1).min() > 0


def test_an_encoder_of_images_is_refused(frostline, films, tmp_path) -> None:
    result = frostline("extract", films, "--store", tmp_path / "store", "--encoder", "efficientnet-lite0")
    assert result.code == 2
    assert "encodes image, not video" in result.error


def test_encoders_and_poolings_of_the_same_frames_share_them(frostline, films, tmp_path, monkeypatch) -> None:
    read: list[str] = []

    def watched(source: Source, count: int, **options: bool) -> object:
        if "canary" not in str(source):
            read.append(str(source))
        return read_frames(source, count, **options)

    monkeypatch.setattr(frames, "read_frames", watched)
    other = ENCODER.replace("random:0", "random:1")
    extract = ("extract", films, "--precision", "fp32", "--json")
    both = frostline(*extract, "--store", tmp_path / "both", "--encoder", ENCODER, "--encoder", other)
    assert both.code == 0, both.err
    # Once for both to encode; of the first batch once more each for the comparison with the library's own output.
    once = len(read)
    assert once < 2 * 12
    levels = frostline(*extract, "--store", tmp_path / "both", "--encoder", ENCODER, "--pooling", "native,mean,max")
    assert levels.code == 0, levels.err
    assert [each["pooling"] for each in levels.json["also"]] == ["mean", "max"]
    for name, pooling in ((ENCODER, "native"), (other, "native"), (ENCODER, "mean")):
        alone = frostline(*extract, "--store", tmp_path / "alone", "--encoder", name, "--pooling", pooling)
        assert alone.code == 0, alone.err
        stored, expected = (FeatureStore(tmp_path / each).find(name, pooling=pooling) for each in ("both", "alone"))
        assert stored.fingerprint == expected.fingerprint
        np.testing.assert_allclose(stored.take(expected.keys()), expected.load()[1], atol=1e-5)


def test_tokens_of_frames_are_refused_in_one_line(frostline, films, tmp_path) -> None:
    refused = frostline("extract", films, "--store", tmp_path / "s", "--encoder", ENCODER, "--pooling", "tokens")
    assert refused.code != 0
    assert "the images of a sample are pooled to one vector, so it has no tokens to store" in refused.err
    assert "Traceback" not in refused.err
