"""Fine-tuning beside heads on stored features: the same scores, a head to begin with, a head as a teacher."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuned_runs import fit_head, record_of
from safetensors.torch import load_file


def test_a_frozen_encoder_gives_the_scores_of_cached_features(
    tuned, frostline, clip: str, pairs: Path, tmp_path
) -> None:
    from data.progress import Silent
    from data.sources import read_manifest
    from featurestore.store import FeatureStore
    from heads.labelled import join_features

    result, run = tuned("--unfreeze", "none", "--lr", "0.05")
    assert result.code == 0, result.err
    assert record_of(run)["parameters"]["encoder"]["trained"] == 0
    store = tmp_path / "features"
    frostline("extract", pairs, "--input", "path", "--encoder", clip, "--store", store, "--precision", "fp32")
    manifest = read_manifest(pairs, input="path", split="split")
    inputs = join_features(
        manifest, FeatureStore(store), (clip,), pooling=None, precision=None, normalize="none", progress=Silent()
    )
    head = load_file(run / "objectives.safetensors")
    weight = next(value for name, value in head.items() if name.endswith("weight")).numpy()
    bias = next(value for name, value in head.items() if name.endswith("bias")).numpy()
    logits = inputs.X @ weight.T + bias
    expected = dict(zip(inputs.manifest.ids, 1 / (1 + np.exp(-logits[:, 0])), strict=True))
    with (run / "predictions.csv").open() as file:
        found = {row["id"]: float(row["prob[red]"]) for row in csv.DictReader(file)}
    assert len(found) == 16
    for name, score in found.items():
        assert score == pytest.approx(expected[name], abs=1e-5)


def test_a_head_to_begin_with_must_not_have_seen_rows_that_judge(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path
) -> None:
    result, run = tuned("--warm-start", fit_head(frostline, clip, pairs, tmp_path))
    assert result.code == 2
    assert "was fitted on 8 of the 8 val rows" in result.err
    assert "--refit train" in result.err
    assert not run.exists()


def test_training_that_makes_a_warm_start_worse_is_told(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path
) -> None:
    head = fit_head(frostline, clip, pairs, tmp_path, "--refit", "train")
    result, run = tuned("--warm-start", head, "--unfreeze", "all", "--lr", "1", "--encoder-lr", "1", "--warmup", "0")
    assert result.code == 0, result.err
    assert "epoch 0: loss" in result.err
    (warning,) = [each for each in record_of(run)["warnings"] if "training made it worse" in each]
    assert warning in result.err
    record = record_of(run)
    assert record["history"]["val/loss"][record["training"]["best_epoch"]] > record["training"]["before"]["loss"]


def test_a_warm_start_on_unit_vectors_is_restored(tuned, frostline, clip: str, pairs: Path, tmp_path: Path) -> None:
    head = fit_head(frostline, clip, pairs, tmp_path, "--refit", "train", "--normalize", "l2")
    result, run = tuned("--warm-start", head, "--lr", "1e-3", epochs=1)
    assert result.code == 0, result.err
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"]["log_loss"] == pytest.approx(record_of(run)["metrics"]["test"]["log_loss"], abs=1e-6)


def test_a_teacher_is_learned_from_the_training_rows(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path, monkeypatch
) -> None:
    from finetune.teacher import taught_by

    head = fit_head(frostline, clip, pairs, tmp_path, "--refit", "train", "--calibration", "temperature")
    taught: list[np.ndarray] = []

    def listening(*given: Any) -> np.ndarray:
        taught.append(taught_by(*given))
        return taught[-1]

    monkeypatch.setattr("finetune.fit.taught_by", listening)
    alone = ["--set", "classification.teacher_weight=1", "--set", "classification.teacher_temperature=1"]
    result, run = tuned("--teacher", head, *alone, "--unfreeze", "none", "--lr", "0.05", epochs=20)
    assert result.code == 0, result.err
    with pairs.open() as file:
        train = [row["split"] == "train" for row in csv.DictReader(file)][:40]
    frostline("predict", head, pairs, "--store", tmp_path / "store", "--out", tmp_path / "said.csv")
    with (tmp_path / "said.csv").open() as file:
        said = np.array([float(row["prob[red]"]) for row in csv.DictReader(file)])
    np.testing.assert_allclose(taught[0][train, 0], said[train], atol=1e-6)
    assert np.isnan(taught[0][~np.array(train)]).all()
    history = record_of(run)["history"]
    assert history["train/classification"][-1] < history["train/classification"][0] / 10
    # What judges is the loss of the labels, here and where the run is read back.
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    recorded = record_of(run)["metrics"]["test"]
    assert again.json["metrics"]["losses"]["loss"] == pytest.approx(recorded["losses"]["loss"], abs=1e-5)
    assert recorded["losses"]["loss"] == pytest.approx(recorded["log_loss"]["value"], abs=1e-5)


def test_a_teacher_must_not_have_seen_rows_that_judge(tuned, frostline, clip: str, pairs: Path, tmp_path: Path) -> None:
    head = fit_head(frostline, clip, pairs, tmp_path)
    result, run = tuned("--teacher", head)
    assert result.code == 2
    assert f"--teacher {head}: the head was fitted on 8 of the 8 val rows" in result.err
    assert not run.exists()
    empty, _ = tuned("--teacher", head, "--store", tmp_path / "empty")
    assert empty.code == 2
    other, _ = tuned("--teacher", head, "--target", "patient", "--kind", "multiclass")
    assert other.code == 2
    assert "the head learned binary of label" in other.err
    _, student = tuned(epochs=1, out="student")
    tuned_too, _ = tuned("--teacher", student)
    assert tuned_too.code == 2
    assert "is a fine-tuned run, and has no head; extract with --encoder" in tuned_too.error


def test_another_head_at_the_same_place_is_another_run(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path
) -> None:
    head = fit_head(frostline, clip, pairs, tmp_path, "--refit", "train")
    _, run = tuned("--teacher", head, epochs=1)
    (run / "record.json").unlink()
    again, _ = tuned("--teacher", head, epochs=1)
    assert again.code == 0, again.err
    (run / "record.json").unlink()
    described = json.loads((head / "head" / "head.json").read_text())
    (head / "head" / "head.json").write_text(json.dumps({**described, "extra": {**described["extra"], "view": None}}))
    result, _ = tuned("--teacher", head, epochs=1)
    assert result.code == 2
    assert "other options" in result.error
