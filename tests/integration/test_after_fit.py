"""What a saved head says of new samples: calibrated, with sets, with neighbours; and how often it has been judged."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
import heads.predict
from heads.run import write_table

TOY = f"py:{Path(__file__).resolve().parent.parent / 'assets' / 'toy.py'}:image"


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def run(shared_pictures, tmp_path_factory) -> tuple[Path, Path, Path]:
    """A calibrated head with prediction sets that no test changes: (run, manifest, store)."""
    folder = tmp_path_factory.mktemp("fitted")
    out, store, manifest = folder / "run", folder / "store", shared_pictures
    common = [str(manifest), "--store", str(store), "--encoder", TOY]
    assert cli.run(["extract", *common]) == 0
    what = "--target label --group patient --split split --calibration temperature --coverage 0.8"
    how = "--folds 3 --bootstrap 50 --set C=0.01"
    assert cli.run(["fit-head", *common, *what.split(), *how.split(), "--out", str(out)]) == 0
    return out, manifest, store


def test_predict_answers_as_the_run_did(run, frostline, tmp_path) -> None:
    out, manifest, store = run
    told = {row["id"]: row for row in rows_of(out / "predictions.csv") if row["split"] == "test"}
    assert frostline("predict", out, manifest, "--store", store, "--out", tmp_path / "p.csv").code == 0
    again = {row["id"]: row for row in rows_of(tmp_path / "p.csv")}
    columns = list(again[next(iter(told))])
    assert [name.split("[")[0] for name in columns] == ["id", "pred", *["prob"] * 3, "set", *["raw"] * 3]
    for name, row in told.items():
        for column in columns:
            same: Any = row[column] if column in ("id", "pred", "set") else pytest.approx(float(row[column]))
            found = again[name][column]
            assert (found if column in ("id", "pred", "set") else float(found)) == same
    changed = [abs(float(row[f"prob[{c}]"]) - float(row[f"raw[{c}]"])) for row in told.values() for c in [row["pred"]]]
    assert max(changed) > 0.001


def test_evaluate_judges_calibrated_scores_and_sets_and_counts_the_opening_once(run, frostline) -> None:
    out, manifest, store = run
    record = json.loads((out / "record.json").read_text())
    result = frostline("evaluate", out, manifest, "--store", store, "--split", "test", "--bootstrap", 50, "--json")
    assert result.code == 0, result.err
    assert result.json["metrics"] == record["metrics"]["test"]
    assert result.json["sets"] == record["conformal"]["splits"]["test"]
    assert result.json["openings"]["count"] == 1
    assert "opened once, by this run" in result.err


def test_another_run_on_the_test_split_is_another_opening(run, frostline, tmp_path) -> None:
    _, manifest, used = run
    store, out = tmp_path / "store", tmp_path / "second"
    shutil.copytree(used, store)
    what = ("--encoder", TOY, "--target", "label", "--group", "patient", "--split", "split", "--folds", 3)
    command = ("fit-head", manifest, "--store", store, *what, "--head", "knn", "--bootstrap", 10, "--out", out)
    sealed = frostline(*command, "--sealed")
    assert sealed.code == 0, sealed.err
    assert "opened" not in sealed.err
    assert "has been opened" not in (out / "report.html").read_text()
    opened = frostline("evaluate", out, manifest, "--store", store, "--split", "test", "--json")
    assert opened.json["openings"]["count"] == 2
    again = frostline(*command, "--overwrite")
    assert "opened 2 times; this is opening number 2" in again.err
    assert "opened 2 times; this is opening number 2" in (out / "report.html").read_text()


def test_neighbours_are_planted_ones_with_their_metadata(run, frostline, tmp_path) -> None:
    out, manifest, store = run
    trained = {row["id"]: row for row in rows_of(out / "trained.csv")}
    table = tmp_path / "p.csv"
    options = ("--store", store, "--out", table, "--neighbours", 3, "--retrieve", "label,patient")
    result = frostline("predict", out, manifest, *options, "--json")
    assert result.code == 0, result.err
    found = rows_of(Path(result.json["neighbours"]))
    assert Path(result.json["neighbours"]) == tmp_path / "p.neighbours.csv"
    assert len(found) == 3 * 96
    assert {row["neighbour"] for row in found} <= set(trained)
    labels = {row["id"]: row["label"] for row in rows_of(manifest)}
    for row in found:
        assert row["true"] == labels[row["neighbour"]]
        # A training sample is its own nearest neighbour.
        if row["rank"] == "1" and row["id"] in trained:
            assert float(row["similarity"]) == pytest.approx(1)
    similarity = np.array([float(row["similarity"]) for row in found]).reshape(-1, 3)
    assert (np.diff(similarity, axis=1) <= 0).all()
    near = [[row["true"] for row in found if row["id"] == name] for name in list(labels)[:20]]
    for row, words in zip(rows_of(table), near, strict=False):
        assert words.count(row["near[label]"]) == max(map(words.count, words))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--neighbours", 2), "name the store that they are in with --store"),
        (("--retrieve", "label"), "say how many with --neighbours"),
        (("--store", "STORE", "--neighbours", 2, "--retrieve", "lable"), "--retrieve lable: no such column"),
    ],
)
def test_neighbours_that_cannot_be_found_are_refused_before_anything_is_encoded(
    run, frostline, tmp_path, options, message: str
) -> None:
    out, manifest, store = run
    given = [store if option == "STORE" else option for option in options]
    result = frostline("predict", out, manifest, "--out", tmp_path / "p.csv", *given)
    assert result.code == 2
    assert message in result.error
    assert not list(tmp_path.glob("p*.csv"))


def test_neighbours_of_a_manifest_that_has_changed_are_refused(run, frostline, tmp_path) -> None:
    fitted, manifest, store = run
    out, changed = tmp_path / "run", tmp_path / "changed.csv"
    shutil.copytree(fitted, out)
    name = rows_of(out / "trained.csv")[0]["id"]
    with manifest.open() as file:
        lines = [line.replace("images/", f"{manifest.parent}/images/") for line in file]
    changed.write_text("".join(line for line in lines if not line.startswith(f"{name},")))
    config = out / "config.yaml"
    config.write_text(config.read_text().replace(str(manifest), str(changed)))
    options = ("--store", store, "--out", tmp_path / "p.csv", "--neighbours", 2)
    result = frostline("predict", out, manifest, *options)
    assert result.code == 2
    assert f"has no row {name!r}" in result.error
    # Another picture under the same name.
    first, second = (row["path"] for row in rows_of(manifest)[:2])
    changed.write_text("".join(lines).replace(f"{manifest.parent}/{first},", f"{manifest.parent}/{second},"))
    result = frostline("predict", out, manifest, *options)
    assert result.code == 2
    assert f"the content of {name!r} is not what" in result.error


def test_a_run_that_is_not_there_and_an_input_of_another_modality_are_named(run, frostline, tmp_path) -> None:
    out, manifest, store = run
    missing = frostline("predict", tmp_path / "nowhere", manifest, "--out", tmp_path / "p.csv")
    assert missing.code == 2
    assert f"{tmp_path / 'nowhere'}: does not exist; expected a run directory, as `frostline fit-head" in missing.error
    texts = tmp_path / "texts.csv"
    texts.write_text("id,text\n1,no finding\n2,a mass\n")
    for given in ((), ("--input", "text")):
        refused = frostline("predict", out, texts, "--store", store, "--out", tmp_path / "p.csv", *given)
        assert refused.code == 2
        assert "column 'text' holds text, but the head of" in refused.error
        assert "image features" in refused.error


def test_progress_says_each_stage_once(run, frostline, tmp_path) -> None:
    out, manifest, store = run
    result = frostline("predict", out, manifest, "--store", store, "--out", tmp_path / "p.csv")
    assert result.err.count("reading content keys") == 1


def test_interrupted_predictions_leave_no_half_file(run, frostline, tmp_path, monkeypatch) -> None:
    out, manifest, store = run
    table = tmp_path / "results" / "p.csv"
    table.parent.mkdir()
    table.write_text("earlier\n")

    def stopped() -> Iterator[str]:
        yield "left"
        raise cli._Interrupted(2)

    monkeypatch.setattr(
        heads.predict, "write_table", lambda path, columns: write_table(path, {**columns, "pred": stopped()})
    )
    assert frostline("predict", out, manifest, "--store", store, "--out", table).code == 130
    assert [path.name for path in table.parent.iterdir()] == ["p.csv"]
    assert table.read_text() == "earlier\n"
