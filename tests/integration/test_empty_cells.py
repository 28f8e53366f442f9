"""Samples without the encoded modality: counted apart from failures, and never lost without a word."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest


@pytest.fixture
def some_notes(pictures) -> Path:
    """A picture set in which every sixth note is empty."""
    manifest = pictures()
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows[::6]:
        row["note"] = ""
    with manifest.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return manifest


def test_an_empty_cell_is_absent_and_no_failure(frostline, some_notes, toy_text, tmp_path) -> None:
    arguments = ("extract", some_notes, "--input", "note", "--store", tmp_path / "s", "--encoder", toy_text, "--json")
    outlook = frostline(*arguments, "--dry-run")
    assert (outlook.code, outlook.json["absent"], outlook.json["unreadable"]) == (0, 8, 0)
    result = frostline(*arguments)
    assert (result.code, result.json["absent"], result.json["failures"]) == (0, 8, [])
    assert result.json["stored"] == 40
    assert not list((tmp_path / "s").glob("ledger/*"))


def test_predict_names_the_samples_without_content(frostline, some_notes, toy_text, tmp_path) -> None:
    store, run = tmp_path / "s", tmp_path / "run"
    frostline("extract", some_notes, "--input", "note", "--store", store, "--encoder", toy_text)
    fitted = frostline(
        *("fit-head", some_notes, "--input", "note", "--store", store, "--encoder", toy_text, "--target", "label"),
        *("--folds", 2, "--bootstrap", 10, "--out", run, "--json"),
    )
    assert fitted.code == 0, fitted.err
    (dropped,) = fitted.json["counts"]["dropped"].items()
    assert dropped[0].endswith(": no text")
    assert dropped[1]["count"] == 8
    arguments = ("--input", "note", "--store", store, "--out", tmp_path / "p.csv", "--json")
    result = frostline("predict", run, some_notes, *arguments)
    assert (result.code, result.json["rows"]) == (3, 40)
    assert {failure["id"] for failure in result.json["failures"]} == {f"s{i:03d}" for i in range(0, 48, 6)}
    assert all(failure["message"].endswith(": no text") for failure in result.json["failures"])
