"""Bags on real lung-ultrasound clips: frames are encoded one by one, a clip is one sample, a patient is one group.

The clips are 88, of 50 patients: intervals are wide, and what is asked of scores is a floor well below the
recorded ones. Decoding needs PyAV, which frostline itself does not.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ENCODER = "offline:efficientnet-lite0"
FRAMES = 6

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def clips(datasets, extracted, tmp_path_factory) -> tuple[Path, Path]:
    """Evenly spaced frames of every clip, and their features: (manifest, store)."""
    av = pytest.importorskip("av", reason="PyAV, which decodes the clips, is not installed")
    source, folder = datasets / "lus_video", tmp_path_factory.mktemp("lus")
    rows = []
    for clip in rows_of(source / "manifest.csv"):
        with av.open(str(source / clip["path"])) as video:
            frames = [frame.to_image() for frame in video.decode(video=0)]
        for at in np.unique(np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)):
            path = folder / f"{clip['id']}-{at}.png"
            frames[at].save(path)
            disease = "no" if clip["label"] == "regular" else "yes"
            rows.append([path.stem, path.name, clip["id"], clip["group_id"], clip["split"], disease])
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "path", "clip", "patient", "split", "pneumonia"])
        table.writerows(rows)
    assert len(rows) == 88 * FRAMES
    store, summary = extracted(folder / "manifest.csv", ENCODER)
    assert summary["failures"] == []
    return folder / "manifest.csv", store


@pytest.mark.parametrize(("head", "floor"), [("linear", 0.65), ("attention_mil", 0.6)])
def test_clips_are_told_apart_by_their_frames(frostline, clips, tmp_path, head: str, floor: float) -> None:
    manifest, store = clips
    run, out = tmp_path / "run", tmp_path / "p.csv"
    what = ("--target", "pneumonia", "--bag", "clip", "--group", "patient", "--split", "split", "--head", head)
    result = frostline("fit-head", manifest, "--store", store, "--encoder", ENCODER, *what, "--out", run, "--json")
    assert result.code == 0, result.err
    record: dict[str, Any] = result.json
    assert {name: part["samples"] for name, part in record["counts"]["splits"].items()} == {"train": 65, "test": 23}
    assert record["counts"]["groups"] <= 50
    auc = record["metrics"]["cv"]["roc_auc"]
    assert floor < auc["value"]
    assert auc["low"] < auc["value"] < auc["high"]
    # Few patients: an interval over frames would be several times as narrow.
    assert auc["high"] - auc["low"] > 0.1

    again = frostline("evaluate", run, manifest, "--store", store, "--split", "test", "--json")
    assert again.json["metrics"] == record["metrics"]["test"]
    options = ("--store", store, "--out", out, "--neighbours", 3, "--retrieve", "patient")
    assert frostline("predict", run, manifest, *options).code == 0
    said = rows_of(out)
    assert len(said) == 88
    assert all(0 <= float(row["prob[yes]"]) <= 1 for row in said)
    # A clip that was learned from is nearest to itself, and its patient's.
    splits = {row["clip"]: row["split"] for row in rows_of(manifest)}
    near = [row for row in rows_of(tmp_path / "p.neighbours.csv") if row["rank"] == "1"]
    assert all(row["neighbour"] == row["id"] for row in near if splits[row["id"]] == "train")
    assert all(splits[row["neighbour"]] == "train" for row in near)


def test_a_patient_of_two_diagnoses_is_no_bag(frostline, clips, tmp_path) -> None:
    manifest, store = clips
    what = ("--target", "pneumonia", "--bag", "patient", "--split", "split")
    result = frostline("fit-head", manifest, "--store", store, "--encoder", ENCODER, *what, "--out", tmp_path / "run")
    assert result.code == 2
    assert "'g060' is 'yes' in row" in result.err
    assert "choose another bag column" in result.err
