"""Samples that lack one of several modalities: left out, or kept with that part masked, all the way to a prediction."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

LACKING = {f"s{i:03d}" for i in range(0, 48, 6)}
FIT = ("--target", "label", "--split", "split", "--folds", 2, "--bootstrap", 10)
SMALL = ("--set", "members=1", "--set", "max_epochs=3")


def rewrite(manifest: Path, rows: list[dict[str, str]]) -> Path:
    with manifest.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return manifest


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def values(metrics: dict[str, Any]) -> dict[str, float]:
    found = {name: entry["value"] for name, entry in metrics.items() if isinstance(entry, dict) and "value" in entry}
    assert found
    return found


@pytest.fixture
def two(frostline, pictures, toy, toy_text, tmp_path) -> tuple[Path, Path]:
    """Pictures and notes of which every sixth note and two pictures, of train and test, are gone; and their store."""
    manifest = pictures()
    rows = [{**{("text" if name == "note" else name): cell for name, cell in row.items()}} for row in rows_of(manifest)]
    for row in rows[::6]:
        row["text"] = ""
    rows[1]["path"] = rows[13]["path"] = ""
    rewrite(manifest, rows)
    store = tmp_path / "s"
    for column, encoder in (("path", toy), ("text", toy_text)):
        result = frostline("extract", manifest, "--input", column, "--store", store, "--encoder", encoder)
        assert result.code == 0, result.err
    return manifest, store


@pytest.mark.parametrize("head", ["concat_fusion", "weighted_sum"])
def test_masked_rows_are_fitted_on_judged_and_predicted(frostline, two, toy, toy_text, tmp_path, head) -> None:
    manifest, store = two
    run = tmp_path / "run"
    encoders = ("--input", "path", "--store", store, "--encoder", toy, "--encoder", toy_text)
    fitted = frostline(
        *("fit-head", manifest, *encoders, *FIT, *SMALL, "--head", head, "--missing", "mask", "--out", run, "--json")
    )
    assert fitted.code == 0, fitted.err
    counts = fitted.json["counts"]
    assert (counts["samples"], counts["dropped"]) == (48, {})
    assert {reason.rpartition(": ")[2]: entry["ids"] for reason, entry in counts["masked"].items()} == {
        "no text": sorted(LACKING),
        "no image": ["s001", "s013"],
    }
    assert any("10 of 48 samples lack a part of their embeddings" in remark for remark in fitted.json["warnings"])
    trained = {row["id"]: row["key"] for row in rows_of(run / "trained.csv")}
    judged = {row["id"] for row in rows_of(run / "predictions.csv")}
    assert LACKING | {"s001", "s013"} <= set(trained) | judged
    assert set(trained["s001"]) != {"0"}  # known by its text

    evaluated = frostline("evaluate", run, manifest, "--store", store, "--split", "test", "--bootstrap", 10, "--json")
    assert evaluated.code == 0, evaluated.err
    assert values(evaluated.json["metrics"]) == values(fitted.json["metrics"]["test"])
    test_rows = [row for row in rows_of(manifest) if row["split"] == "test"]
    lacking = sum(not (row["text"] and row["path"]) for row in test_rows)
    assert any(f"{lacking} of {len(test_rows)} samples lack" in warning for warning in evaluated.json["warnings"])

    out = tmp_path / "p.csv"
    predicted = frostline(
        *("predict", run, manifest, "--input", "path", "--store", store, "--out", out, "--neighbours", 2, "--json")
    )
    assert (predicted.code, predicted.json["rows"], predicted.json["failures"]) == (0, 48, [])
    assert {len(ids) for ids in predicted.json["masked"].values()} == {8, 2}
    probability = next(name for name in rows_of(out)[0] if name.startswith("p"))
    own = {row["id"]: row for row in rows_of(run / "predictions.csv") if row["split"] == "test"}
    for row in rows_of(out):
        if row["id"] in own:
            assert row[probability] == own[row["id"]][probability]


def test_by_default_they_are_left_out(frostline, two, toy, toy_text, tmp_path) -> None:
    manifest, store = two
    encoders = ("--input", "path", "--store", store, "--encoder", toy, "--encoder", toy_text)
    run = tmp_path / "run"
    fitted = frostline("fit-head", manifest, *encoders, *FIT, *SMALL, "--head", "mlp", "--out", run, "--json")
    assert fitted.code == 0, fitted.err
    assert fitted.json["counts"]["samples"] == 38
    assert "masked" not in fitted.json["counts"]
    assert json.loads((run / "record.json").read_text())["config"]["missing"] == "drop"


def test_pictures_are_compared_by_their_looks_where_some_are_missing(frostline, two, toy, toy_text, tmp_path) -> None:
    manifest, store = two
    rows = rows_of(manifest)
    twin = next(row for row in rows if row["split"] == "test" and row["path"] and row["text"])
    with Image.open(manifest.parent / rows[2]["path"]) as picture:
        picture.save(manifest.parent / twin["path"], compress_level=0)  # other bytes, the same look
    for column, encoder in (("path", toy), ("text", toy_text)):
        assert frostline("extract", manifest, "--input", column, "--store", store, "--encoder", encoder).code == 0
    encoders = ("--input", "path", "--store", store, "--encoder", toy, "--encoder", toy_text)
    result = frostline(
        *("fit-head", manifest, *encoders, *FIT, *SMALL, "--head", "concat_fusion", "--missing", "mask"),
        *("--out", tmp_path / "run"),
    )
    assert result.code == 2
    assert "near" in result.error
    assert rows[2]["id"] in result.error
    assert twin["id"] in result.error


def test_a_sample_without_any_embedding_is_left_out_all_the_same(frostline, two, toy, toy_text, tmp_path) -> None:
    manifest, store = two
    rows = rows_of(manifest)
    rows[6]["path"] = ""
    rewrite(manifest, rows)
    encoders = ("--input", "path", "--store", store, "--encoder", toy, "--encoder", toy_text)
    fitted = frostline(
        *("fit-head", manifest, *encoders, *FIT, *SMALL, "--head", "concat_fusion", "--missing", "mask"),
        *("--out", tmp_path / "run", "--json"),
    )
    assert fitted.code == 0, fitted.err
    assert fitted.json["counts"]["samples"] == 47
    assert [entry["ids"] for entry in fitted.json["counts"]["dropped"].values()] == [["s006"], ["s006"]]


@pytest.mark.parametrize(
    ("head", "more", "message"),
    [
        ("linear", (), "--missing mask: head linear needs every embedding of a sample"),
        ("concat_fusion", ("--bag", "patient"), "--missing mask: a bag is the mean of the rows that it has"),
    ],
)
def test_what_cannot_be_masked_is_refused(frostline, two, toy, toy_text, tmp_path, head, more, message) -> None:
    manifest, store = two
    encoders = ("--input", "path", "--store", store, "--encoder", toy, "--encoder", toy_text)
    result = frostline(
        *("fit-head", manifest, *encoders, *FIT, "--head", head, "--missing", "mask", *more, "--out", tmp_path / "run")
    )
    assert result.code == 2
    assert message in result.error
    assert not (tmp_path / "run").exists()
