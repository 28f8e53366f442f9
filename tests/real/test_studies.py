"""Studies of several lung-ultrasound clips: a patient's clips are one sample, with the probe as the view of each."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

ENCODER = "frames+offline:efficientnet-lite0"

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_clips_of_a_patient_are_one_sample_with_views(frostline, extracted, datasets, tmp_path) -> None:
    pytest.importorskip("av", reason="PyAV, which decodes the clips, is not installed")
    source = datasets / "lus_video"
    rows = rows_of(source / "manifest.csv")
    manifest = tmp_path / "studies.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "path", "patient", "study", "label", "probe"])
        for row in rows:
            # One patient has clips before and after an illness: two studies of one patient.
            study = f"{row['group_id']} {row['label']}"
            table.writerow([row["id"], source / row["path"], row["group_id"], study, row["label"], row["probe"]])
    store, summary = extracted(manifest, ENCODER, "--input", "path")
    assert summary["failures"] == []

    what = ["--target", "label", "--kind", "multiclass", "--group", "patient", "--input", "path", "--bag"]
    shared = ["fit-head", manifest, "--store", store, "--encoder", ENCODER, *what]
    refused = frostline(*shared, "patient", "--out", tmp_path / "refused")
    assert refused.code == 2
    assert "'g060' is 'bacterial_pneumonia' in row" in refused.err

    run, out = tmp_path / "run", tmp_path / "p.csv"
    how = ["--head", "attention_mil", "--set", "max_instances=4", "--set", "members=1", "--view", "probe"]
    result = frostline(*shared, "study", *how, "--bootstrap", 200, "--out", run, "--json")
    assert result.code == 0, result.err
    record: dict[str, Any] = result.json
    bags = record["counts"]["bags"]
    assert bags.pop("views") == {"column": "probe", "rows": {"convex": 81, "linear": 7}}
    assert bags == {"column": "study", "rows": 88, "fewest": 1, "most": 8}
    assert any("6 of 51 bags have more instances" in warning for warning in record["warnings"])
    auc = record["metrics"]["cv"]["macro_roc_auc"]
    assert auc["value"] > 0.6
    # 51 studies, not 88 clips: the interval is wide.
    assert auc["high"] - auc["low"] > 0.1
    folds: dict[str, set[str]] = {}
    for row in rows_of(run / "predictions.csv"):
        folds.setdefault(row["group"], set()).add(row["fold"])
    assert len(folds) == 50
    assert all(len(found) == 1 for found in folds.values())
    assert frostline("predict", run, manifest, "--store", store, "--out", out).code == 0
    assert len(rows_of(out)) == 51
