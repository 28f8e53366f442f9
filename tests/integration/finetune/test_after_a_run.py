"""What follows `finetune`: evaluate, predict and extract find what the run recorded."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from finetuned_runs import record_of


def test_evaluate_finds_in_a_new_process_what_the_run_recorded(tuned, frostline, pairs: Path) -> None:
    _, run = tuned("--unfreeze", "last:1", "--lr", "0.01")
    result = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert result.code == 0, result.err
    recorded = record_of(run)["metrics"]["test"]
    for name in ("roc_auc", "accuracy", "log_loss"):
        assert result.json["metrics"][name] == pytest.approx(recorded[name], abs=1e-6)
    refused = frostline("evaluate", run, pairs, "--split", "train")
    assert refused.code == 2
    assert "was trained on" in refused.error


def test_predict_needs_no_labels(tuned, frostline, pairs: Path, tmp_path: Path) -> None:
    _, run = tuned("--unfreeze", "last:1", "--lr", "0.05")
    with (run / "predictions.csv").open() as file:
        recorded = {row["id"]: float(row["prob[red]"]) for row in csv.DictReader(file)}
    folder = tmp_path / "new"
    folder.mkdir()
    for i in (32, 33):
        (folder / f"{i}.png").write_bytes((pairs.parent / f"{i}.png").read_bytes())
    result = frostline("predict", run, folder, "--out", tmp_path / "predictions.csv")
    assert result.code == 0, result.err
    with (tmp_path / "predictions.csv").open() as file:
        found = [float(row["prob[red]"]) for row in csv.DictReader(file)]
    assert found == pytest.approx([recorded["s32"], recorded["s33"]], abs=1e-5)
    refused = frostline("predict", run, folder, "--out", tmp_path / "near.csv", "--neighbours", 3, "--store", tmp_path)
    assert refused.code == 2
    assert "fine-tuned run" in refused.error


def test_val_rows_are_answered_as_their_metrics_are_cut(tuned, frostline, pairs: Path) -> None:
    """At 0.5: the threshold of the test rows is chosen on them."""
    _, run = tuned("--unfreeze", "none", "--lr", "0.001", "--threshold", "sensitivity=0.9", "--epochs", 1)
    record = record_of(run)
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    (threshold,) = (each["value"] for each in record["thresholds"].values())
    scores = [float(row["prob[red]"]) for row in rows if row["split"] == "val"]
    assert any((score >= threshold) != (score >= 0.5) for score in scores)
    for split in ("val", "test"):
        own = [row for row in rows if row["split"] == split]
        confusion = record["metrics"][split]["confusion"]
        pairs_of = [(row["true"], row["pred"]) for row in own]
        names = confusion["classes"]
        assert [[pairs_of.count((true, said)) for said in names] for true in names] == confusion["counts"]
    again = frostline("evaluate", run, pairs, "--split", "val", "--bootstrap", 20, "--json").json
    assert again["metrics"]["confusion"] == record["metrics"]["val"]["confusion"]


def test_extract_takes_the_encoder_under_a_new_fingerprint(tuned, frostline, clip: str, pairs: Path, tmp_path) -> None:
    _, run = tuned("--unfreeze", "last:1", "--lr", "0.05")
    store = tmp_path / "features"
    for encoder in (clip, run / "encoder"):
        command = ["extract", pairs, "--input", "path", "--store", store, "--encoder", encoder]
        assert frostline(*command).code == 3  # one picture is damaged
    prints = {row["fingerprint"] for row in frostline("store", "ls", store, "--json").json}
    assert len(prints) == 2
    (tower,) = record_of(run)["inputs"]
    assert {tower["fingerprint"], tower["trained"]} == prints


def test_an_encoder_that_was_named_by_a_relative_path_is_found_from_anywhere(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = Path(clip.removeprefix("hf:"))
    monkeypatch.chdir(folder.parent)
    result, run = tuned("--unfreeze", "last:1", "--encoder", f"hf:{folder.name}", "--lr", "0.05")
    assert result.code == 0, result.err
    _, other = tuned("--unfreeze", "last:1", "--lr", "0.05", out="other")
    monkeypatch.chdir(tmp_path)
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20)
    assert again.code == 0, again.err
    assert record_of(run)["inputs"][0]["trained"] == record_of(other)["inputs"][0]["trained"]
