"""`--per-label`: a few training samples of each class, in every command that fits heads."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest


@pytest.fixture
def stored(frostline, pictures, toy, tmp_path) -> tuple[Path, Path]:
    """Write and extract pictures of three classes, the last of them rare, in groups of four; return both places."""
    manifest, store = pictures(120, 3), tmp_path / "store"
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    rare = rows[-1]["label"]
    kept = [row for i, row in enumerate(rows) if row["label"] != rare or i % 2]
    with manifest.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(kept)
    assert frostline("extract", manifest, "--store", store, "--encoder", toy).code == 0
    return manifest, store


@pytest.fixture
def command(frostline, stored, toy, tmp_path):
    """Return a function that runs a command on these pictures."""
    manifest, store = stored

    def run(name: str, *arguments: object, target: str = "label", out: str = "run"):
        base = (name, manifest, "--store", store, "--encoder", toy, "--target", target, "--group", "patient")
        options = ("--folds", 2, "--bootstrap", 20, "--out", tmp_path / out)
        return frostline(*base, *options, *arguments, "--json"), tmp_path / out

    return run


def predicted(run: Path) -> list[dict[str, str]]:
    with (run / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_training_rows_are_few_and_all_others_stay(command, stored) -> None:
    given = ("--split", "split", "--refit", "train")
    whole, _ = command("fit-head", *given, out="whole")
    result, run = command("fit-head", *given, "--per-label", 6)
    assert result.code == 0, result.err
    rows = predicted(run)
    assert set(Counter(row["true"] for row in rows if row["split"] == "cv").values()) == {6}
    counts, of_whole = result.json["counts"], whole.json["counts"]
    for split in ("val", "test"):
        assert counts["splits"][split] == of_whole["splits"][split]
    gone = counts["dropped"]["training samples beyond 6 per label"]
    assert gone["count"] == len(gone["ids"]) == of_whole["splits"]["train"]["samples"] - 18
    assert not set(gone["ids"]) & {row["id"] for row in rows}
    assert any("fitted on 18 of" in warning for warning in result.json["warnings"])


def test_more_than_there_are_is_everything(command) -> None:
    result, _ = command("fit-head", "--per-label", 1000)
    assert result.code == 0, result.err
    assert not result.json["counts"]["dropped"]
    assert not any("--per-label" in warning for warning in result.json["warnings"])


def test_several_corrections_of_imbalance_are_remarked_on(command) -> None:
    result, _ = command("fit-head", "--per-label", 6, "--set", "class_weight=balanced")
    assert any("correct imbalance 2 times over" in warning for warning in result.json["warnings"])


def test_cells_of_a_comparison_have_the_same_few_rows(command) -> None:
    result, out = command("compare", "--head", "linear", "--head", "prototype", "--per-label", 8)
    assert result.code == 0, result.err
    chosen = {frozenset(row["id"] for row in predicted(run)) for run in (out / "cells").iterdir()}
    assert [len(ids) for ids in chosen] == [24]
    assert "(--per-label 8): labels are more even" in (out / "report.html").read_text()


def test_a_study_is_judged_by_all_rows_that_were_set_aside(command) -> None:
    plain = ("--head", "linear", "--trials", 1)
    whole, _ = command("tune", *plain, out="whole")
    result, out = command("tune", *plain, "--per-label", 6)
    assert result.code == 0, result.err
    counts, of_whole = (each.json["counts"]["splits"] for each in (result, whole))
    assert counts["train"]["samples"] == 18
    assert counts["test"] == of_whole["test"]
    assert json.loads((out / "best" / "record.json").read_text())["config"]["per_label"] == 6


@pytest.mark.parametrize(
    ("number", "target", "options", "said"),
    [
        (6, "label", ("--split", "split"), "val rows would join the few in the final fit; add --refit train"),
        (6, "score", (), "--per-label 6: a regression has no labels to take samples of"),
        (0, "label", (), "per-label"),
        (1, "label", (), "fold"),
    ],
)
def test_errors_are_one_line_and_leave_no_run(command, number: int, target: str, options, said: str) -> None:
    result, run = command("fit-head", "--per-label", number, *options, target=target)
    assert result.code == 2
    assert said in result.error
    assert not run.exists()
