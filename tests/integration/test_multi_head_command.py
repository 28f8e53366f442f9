"""Several targets of mixed kinds in one run: fitted, judged, evaluated and predicted through the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import r2_score, roc_auc_score

TARGETS = "label,score,large"
OPTIONS = ("--folds", 3, "--bootstrap", 40, "--group", "patient", "--split", "split", "--head", "multi_head")


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def mixed(frostline, pictures, toy, tmp_path):
    """Return a function that fits all targets of a picture set; every sixth `large` is missing."""
    original = pictures(120, 3)
    manifest, store = original.with_name("mixed.csv"), tmp_path / "store"
    rows = rows_of(original)
    middle = float(np.median([float(row["score"]) for row in rows]))
    for i, row in enumerate(rows):
        row["large"] = "" if i % 6 == 5 else "yes" if float(row["score"]) > middle else "no"
    with manifest.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    assert frostline("extract", manifest, "--store", store, "--encoder", toy).code == 0

    def fit(*arguments: object, targets: str = TARGETS, run: str = "run"):
        command = ["fit-head", manifest, "--store", store, "--encoder", toy, "--target", targets, *OPTIONS]
        return frostline(*command, "--out", tmp_path / run, *arguments, "--json"), tmp_path / run, manifest, store

    return fit


def test_a_run_keeps_the_content_of_a_file_of_settings(mixed, frostline, tmp_path) -> None:
    settings = tmp_path / "heads.yaml"
    settings.write_text("score: {loss: mse, lr: 0.02}\n")
    result, run, _, _ = mixed("--set", f"heads={settings}", "--set", "max_epochs=2")
    settings.unlink()
    again = frostline("fit-head", "--config", run / "config.yaml", "--out", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"] == result.json["metrics"]


def test_a_run_of_mixed_targets(mixed, frostline, tmp_path) -> None:
    settings = tmp_path / "heads.yaml"
    settings.write_text("score: {loss: mse, lr: 0.02}\nlarge: {weight: 2}\n")
    result, run, manifest, store = mixed("--set", f"heads={settings}", "--set", "lr=0.05", "--set", "batch_size=16")
    assert result.code == 0, result.err
    record = json.loads((run / "record.json").read_text())
    assert [part["kind"] for part in record["task"]["parts"]] == ["multiclass", "regression", "binary"]
    assert record["head"]["params"]["heads"] == {"score": {"loss": "mse", "lr": 0.02}, "large": {"weight": 2}}
    assert list(record["thresholds"]) == ["large"]
    rows = rows_of(run / "predictions.csv")
    assert {row["split"] for row in rows} == {"cv", "val", "test"}

    for split in ("cv", "val", "test"):
        metrics, own = record["metrics"][split], [row for row in rows if row["split"] == split]
        per_head = metrics["per_head"]
        known = [row for row in own if row["true[large]"]]
        assert (per_head["label"]["n"], per_head["large"]["n"]) == (len(own), len(known))
        area = roc_auc_score(
            [row["true[large]"] == "yes" for row in known], [float(row["prob[large=yes]"]) for row in known]
        )
        assert per_head["large"]["roc_auc"]["value"] == pytest.approx(area)
        assert metrics["mean_binary_roc_auc"]["value"] == pytest.approx(area)
        r2 = r2_score([float(row["true[score]"]) for row in own], [float(row["pred[score]"]) for row in own])
        assert per_head["score"]["r2"]["value"] == pytest.approx(r2)
        right = np.mean([row["true[label]"] == row["pred[label]"] for row in own])
        assert per_head["label"]["accuracy"]["value"] == pytest.approx(right)
        assert all(
            estimate["low"] <= estimate["value"] <= estimate["high"]
            for estimate in (per_head["label"]["accuracy"], metrics["mean_regression_r2"])
        )
    cut = record["thresholds"]["large"]["value"]
    assert all((row["pred[large]"] == "yes") == (float(row["prob[large=yes]"]) >= cut) for row in rows)
    assert record["metrics"]["cv"]["per_head"]["label"]["accuracy"]["value"] > 0.8
    drawn = {path.name for path in (run / "plots").iterdir()}
    assert {"test-roc.png", "test-per-class.png", "test-regression.png", "history.png"} <= drawn
    page = (run / "report.html").read_text()
    assert "Per target: test" in page
    assert "Mean binary ROC AUC" in page

    judged = frostline("evaluate", run, manifest, "--store", store, "--split", "test", "--bootstrap", 40, "--json")
    assert judged.code == 0, judged.err
    found, expected = judged.json["metrics"]["per_head"], record["metrics"]["test"]["per_head"]
    for name in found:
        assert found[name]["n"] == expected[name]["n"]
    assert found["large"]["sensitivity"]["value"] == expected["large"]["sensitivity"]["value"]
    assert found["score"]["mae"]["value"] == pytest.approx(expected["score"]["mae"]["value"])

    said = frostline("predict", run, manifest, "--store", store, "--out", tmp_path / "said.csv")
    assert said.code == 0, said.err
    by_id = {row["id"]: row for row in rows_of(tmp_path / "said.csv")}
    for row in (row for row in rows if row["split"] == "test"):
        for name in ("pred[label]", "pred[large]", "prob[large=no]", "pred[score]"):
            assert by_id[row["id"]][name] == row[name]

    again = frostline("fit-head", "--config", run / "config.yaml", "--out", tmp_path / "again", "--json")
    assert again.json["metrics"] == record["metrics"]


def test_one_target_is_a_head_too_and_a_kind_can_be_told(mixed) -> None:
    result, run, _, _ = mixed("--set", "heads={score: {kind: regression}}", "--set", "max_epochs=2", targets="score")
    assert result.code == 0, result.err
    assert list(result.json["metrics"]["cv"]["per_head"]) == ["score"]
    assert "true[score]" in rows_of(run / "predictions.csv")[0]


REFUSED: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--set", "heads={scor: {}}"), "heads names 'scor', which is no target; did you mean 'score'"),
    (("--set", "heads={score: {loss: focal}}"), "head 'score': loss 'focal' is none of a regression target"),
    (("--set", "heads={label: {kind: binary}}"), "a binary task has 2 classes, found 3"),
    (("--set", "heads={label: {rate: 1}}"), "head 'label': unknown key 'rate'"),
    (("--set", "heads=nowhere.yaml"), "nowhere.yaml: the configuration file cannot be read"),
    (("--set", "heads={label: [}"), "is no mapping such as"),
    (("--kind", "multilabel"), "target 'label': a head of a mixed task is no multilabel one"),
    (("--calibration", "temperature"), "--calibration: is for a task of one kind"),
    (("--coverage", "0.9"), "--coverage: is for a task of one kind"),
    (("--positive", "yes"), "--positive: is for a task of one kind"),
)


def test_refusals(mixed) -> None:
    for arguments, said in REFUSED:
        result, run, _, _ = mixed(*arguments)
        assert result.code == 2, arguments
        assert said in result.error
        assert not run.exists()
