"""`--bag` from the command line: bags are fitted, judged and predicted as wholes, by heads that take them or means."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import cli

TOY = f"py:{Path(__file__).resolve().parent.parent / 'assets' / 'toy.py'}:image"
MIL = ["--head", "attention_mil", "--set", "max_epochs=12", "--set", "hidden=8", "--set", "lr=0.02"]
MIL += ["--set", "bags_per_step=8", "--set", "members=1"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.fixture(scope="module")
def studies(shared_pictures, tmp_path_factory) -> tuple[Path, Path]:
    """Two or, for every third patient, one picture per study and 48 studies, with their features: (manifest, store)."""
    folder = tmp_path_factory.mktemp("studies")
    rows = [
        {**row, "path": str(shared_pictures.parent / row["path"]), "study": f"{row['patient']} {row['label']}"}
        for row in rows_of(shared_pictures)
    ]
    taken: Counter[str] = Counter()
    kept = []
    for row in rows:
        taken[row["study"]] += 1
        if taken[row["study"]] == 1 or int(row["patient"][1:]) % 3:
            kept.append(row)
    # Only the first row of a study says its label; the others follow it.
    seen: set[str] = set()
    for row in kept:
        row["label"] = "" if row["study"] in seen else row["label"]
        seen.add(row["study"])
    manifest = write_rows(folder / "studies.csv", kept)
    assert (
        cli.run(["extract", str(manifest), "--input", "path", "--store", str(folder / "store"), "--encoder", TOY]) == 0
    )
    return manifest, folder / "store"


@pytest.fixture(scope="module", params=["linear", "attention_mil"])
def run(request, studies, tmp_path_factory) -> Path:
    """A run on studies."""
    manifest, store = studies
    out: Path = tmp_path_factory.mktemp("bags") / "run"
    how = MIL if request.param == "attention_mil" else ["--head", request.param]
    what = ["--target", "label", "--bag", "study", "--group", "patient", "--split", "split", "--input", "path"]
    command = ["fit-head", str(manifest), "--store", str(store), "--encoder", TOY, *what, *how]
    assert cli.run([*command, "--folds", "3", "--bootstrap", "50", "--out", str(out)]) == 0
    return out


def test_a_bag_is_one_sample_throughout(run, studies) -> None:
    manifest, _ = studies
    record = json.loads((run / "record.json").read_text())
    of = {row["study"]: row for row in reversed(rows_of(manifest))}
    predictions = rows_of(run / "predictions.csv")
    assert sorted(row["id"] for row in predictions) == sorted(of)
    for row in predictions:
        first = of[row["id"]]
        assert (row["true"], row["group"]) == (first["label"], first["patient"])
        assert row["split"] == {"train": "cv"}.get(first["split"], first["split"])
    assert sum(part["samples"] for part in record["counts"]["splits"].values()) == len(of)
    # What the head was fitted on is listed picture by picture.
    trained = {row["id"] for row in rows_of(run / "trained.csv")}
    assert trained == {row["id"] for row in rows_of(manifest) if row["split"] != "test"}
    assert record["metrics"]["test"]["macro_roc_auc"]["value"] > 0.8
    means = [warning for warning in record["warnings"] if "mean of its" in warning]
    assert len(means) == (record["head"]["name"] == "linear")


def test_evaluate_and_predict_repeat_what_the_run_said(run, studies, frostline, tmp_path) -> None:
    manifest, store = studies
    record = json.loads((run / "record.json").read_text())
    result = frostline("evaluate", run, manifest, "--store", store, "--split", "test", "--bootstrap", 50, "--json")
    assert result.code == 0, result.err
    assert result.json["metrics"] == record["metrics"]["test"]
    out = tmp_path / "p.csv"
    asked = frostline("predict", run, manifest, "--store", store, "--out", out, "--neighbours", 2)
    assert asked.code == 0, asked.err
    said = {row["id"]: row for row in rows_of(out)}
    assert len(said) == 48
    for row in rows_of(run / "predictions.csv"):
        if row["split"] == "test":
            assert float(said[row["id"]]["prob[left]"]) == pytest.approx(float(row["prob[left]"]), abs=1e-6)
    near = rows_of(tmp_path / "p.neighbours.csv")
    studies_fitted = {row["study"]: row["label"] for row in reversed(rows_of(manifest)) if row["split"] != "test"}
    assert all(row["true"] == studies_fitted[row["neighbour"]] for row in near)


def test_bags_without_a_readable_row_are_named_and_the_others_go_on(run, studies, frostline, tmp_path) -> None:
    manifest, store = studies
    rows = rows_of(manifest)[:24]
    names = list(dict.fromkeys(row["study"] for row in rows))
    for row in rows:
        if row["study"] == names[0]:
            row["path"] = str(tmp_path / "nowhere.png")
    half = next(row for row in rows if sum(other["study"] == row["study"] for other in rows) == 2)
    half["path"] = ""
    broken = write_rows(tmp_path / "broken.csv", rows)
    out = tmp_path / "p.csv"
    result = frostline("predict", run, broken, "--store", store, "--out", out)
    assert result.code == 3
    assert f"{names[0]}: no prediction; bags without a row" in result.err
    said = rows_of(out)
    assert sorted(row["id"] for row in said) == sorted(names[1:])
    values = [float(value) for row in said for name, value in row.items() if name.startswith("prob")]
    assert np.isfinite(values).all()
    # Any other column may say what belongs together; without one of the run's name it has to be named.
    others = write_rows(tmp_path / "others.csv", [{"id": row["id"], "path": row["path"]} for row in rows[6:]])
    assert "no column 'study' (--bag)" in frostline("predict", run, others, "--store", store, "--out", out).error
    assert frostline("predict", run, others, "--bag", "id", "--store", store, "--out", out).code == 0
    assert len(rows_of(out)) == len(rows[6:])


def test_bags_of_one_are_rows(studies, frostline, tmp_path) -> None:
    manifest, store = studies
    single = write_rows(tmp_path / "single.csv", [row for row in rows_of(manifest) if row["label"]])
    what = ("--target", "label", "--group", "patient", "--input", "path", "--head", "knn", "--folds", 3)
    command = ("fit-head", single, "--store", store, "--encoder", TOY, *what, "--bootstrap", 10)
    plain, bags = tmp_path / "plain", tmp_path / "bags"
    assert frostline(*command, "--out", plain).code == 0
    assert frostline(*command, "--bag", "id", "--out", bags).code == 0
    assert (plain / "predictions.csv").read_bytes() == (bags / "predictions.csv").read_bytes()


@pytest.mark.parametrize(("column", "other"), [("label", "lower"), ("split", "test"), ("patient", "p99")])
def test_bags_that_contradict_themselves_are_refused_by_row(
    studies, frostline, tmp_path, column: str, other: str
) -> None:
    manifest, store = studies
    rows = rows_of(manifest)
    study = rows[6]["study"]
    at = [i for i, row in enumerate(rows) if row["study"] == study]
    assert len(at) == 2
    first = rows[at[0]][column]
    rows[at[1]][column] = other
    wrong = write_rows(tmp_path / "wrong.csv", rows)
    out = tmp_path / "run"
    what = ("--target", "label", "--bag", "study", "--group", "patient", "--split", "split", "--input", "path")
    result = frostline("fit-head", wrong, "--store", store, "--encoder", TOY, *what, "--out", out)
    assert result.code == 2
    said = f"{study!r} is {first!r} in row {at[0] + 2} but {other!r} in row {at[1] + 2}"
    assert said in result.error
    assert f"column {column!r}" in result.error
    assert not out.exists()
