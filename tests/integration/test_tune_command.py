"""`tune` as a user runs it, on a small picture set: nested, resumable, shared, and read back by `fit-head`."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from featurestore import catalog

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--group", "patient", "--folds", 3, "--bootstrap", 40, "--batch", 4)


@pytest.fixture
def stored(frostline, pictures, toy, tmp_path):
    """A manifest and a store with its features."""
    manifest, store = pictures(96, 2), tmp_path / "store"
    assert frostline("extract", manifest, "--store", store, "--encoder", toy).code == 0
    return manifest, store


@pytest.fixture
def tune(frostline, stored, toy, tmp_path):
    """Run a study: the result and its directory."""

    def run(*arguments: object, out: str = "study", heads=("knn", "linear"), trials: int = 8, encoder: str = toy):
        manifest, store = stored
        command = [
            "tune",
            manifest,
            "--store",
            store,
            "--encoder",
            encoder,
            "--target",
            "label",
            "--out",
            tmp_path / out,
        ]
        for head in heads:
            command += ["--head", head]
        return frostline(*command, "--trials", trials, *QUICK, *arguments, "--json"), tmp_path / out

    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def stable(record: dict) -> dict:
    """Return what two runs of one study agree on, wherever they were written."""
    return {
        **{name: value for name, value in record.items() if name not in ("volatile", "command")},
        "config": {name: value for name, value in record["config"].items() if name not in ("out", "overwrite")},
    }


def test_a_study_is_whole_and_reads_nothing_but_the_store(tune, frostline, monkeypatch, tmp_path) -> None:
    def refuse(*_arguments, **_keywords):
        raise AssertionError("an encoder was loaded")

    monkeypatch.setattr(catalog, "load_encoder", refuse)
    result, out = tune("--split", "split")
    assert result.code == 0, result.err
    names = {path.name for path in out.iterdir()}
    assert {
        "tune.yaml",
        "study.journal",
        "best.yaml",
        "best",
        "trials.csv",
        "plots",
        "report.html",
        "record.json",
    } == names
    assert {path.name for path in (out / "plots").iterdir()} >= {"history.png"}
    record = json.loads((out / "record.json").read_text())
    assert record == result.json
    assert record["study"]["trials"] == 8 == len(rows_of(out / "trials.csv"))
    assert record["judged"] == "test"
    assert set(record["defaults"]) == {"knn", "linear"}
    for default in record["defaults"].values():
        assert default["verdict"] in ("better", "unclear", "worse", "same", "unknown")
        assert default["estimate"]["low"] <= default["estimate"]["value"] <= default["estimate"]["high"]
    assert "roc_auc" in record["metrics"]["test"]
    page = (out / "report.html").read_text()
    assert "How to reproduce" in page
    assert "untouched test rows" in page or "found nothing better" in page

    again = frostline("fit-head", "--config", out / "best.yaml", "--out", tmp_path / "fitted", "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"] == record["metrics"]
    assert again.json["metrics"] == json.loads((out / "best" / "record.json").read_text())["metrics"]
    assert again.json["head"]["name"] == record["best"]["head"]
    refused = frostline("report", out, "--out", tmp_path / "page.html")
    assert refused.code == 2
    assert "the run of its best head is in best/" in refused.error


def test_the_study_does_not_see_the_rows_of_the_final_judgement(tune, stored) -> None:
    manifest, _ = stored
    first, one = tune("--split", "split")
    rows = rows_of(manifest)
    for row in rows:
        if row["split"] != "train":
            row["label"] = {"left": "right", "right": "left"}[row["label"]]
    with manifest.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    second, two = tune("--split", "split", out="other")
    assert (first.code, second.code) == (0, 0), second.err
    assert (one / "trials.csv").read_bytes() == (two / "trials.csv").read_bytes()
    assert first.json["metrics"]["test"] != second.json["metrics"]["test"]


def test_without_a_split_whole_groups_are_set_aside(tune) -> None:
    result, out = tune("--holdout", "0.25")
    assert result.code == 0, result.err
    assert any("set aside" in remark for remark in result.json["warnings"])
    splits: dict[str, set[str]] = {}
    for row in rows_of(out / "best" / "predictions.csv"):
        splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(each) == 1 for each in splits.values())
    assert {name for each in splits.values() for name in each} == {"cv", "test"}
    trained = {row["id"] for row in rows_of(out / "best" / "trained.csv")}
    judged = {row["id"] for row in rows_of(out / "best" / "predictions.csv") if row["split"] == "test"}
    assert 0.15 * 96 <= len(judged) <= 0.35 * 96
    assert not trained & judged


def test_the_same_command_finds_the_same_and_goes_on_where_it_was(tune) -> None:
    first, one = tune("--split", "split", trials=10)
    tune("--split", "split", trials=4, out="parts")
    second, two = tune("--split", "split", trials=10, out="parts")
    assert second.code == 0, second.err
    assert stable(first.json) == stable(second.json)
    assert (one / "trials.csv").read_bytes() == (two / "trials.csv").read_bytes()
    assert not list(two.glob(".results*"))


def test_choices_alone_are_tried_exhaustively(tune, tmp_path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("knn: {k: [1, 5, 15], metric: [cosine, euclidean]}\n")
    result, out = tune("--space", space, "--normalize", "none", "--metric", "accuracy", heads=("knn",), trials=50)
    assert result.code == 0, result.err
    trials = rows_of(out / "trials.csv")
    assert [(row["knn.k"], row["knn.metric"]) for row in trials] == [
        (k, metric) for k in ("1", "5", "15") for metric in ("cosine", "euclidean")
    ]
    assert {row["state"] for row in trials} == {"complete"}
    assert result.json["study"]["sampler"] == "grid"
    best = max(trials, key=lambda row: float(row["value"]))
    assert result.json["best"]["params"] == {"k": int(best["knn.k"]), "metric": best["knn.metric"]}
    assert yaml.safe_load((out / "best.yaml").read_text())["set"] == result.json["best"]["params"]


def test_encoders_and_scaling_are_searched(tune, frostline, stored, toy) -> None:
    manifest, store = stored
    second = toy.replace(":image", ":image_v2")
    assert frostline("extract", manifest, "--store", store, "--encoder", second).code == 0
    result, out = tune("--split", "split", "--encoder", second, trials=14, heads=("knn",))
    assert result.code == 0, result.err
    seen = {(row["encoders"], row["normalize"]) for row in rows_of(out / "trials.csv")}
    assert len({encoders for encoders, _ in seen}) == 3
    assert {normalize for _, normalize in seen} == {"none", "l2"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--metric", "rocauc"), "did you mean 'roc_auc'"),
        (("--sampler", "grid"), "--sampler grid: some parameters have ranges"),
        (("--set", "knn.kk=3"), "no parameter 'kk'; did you mean 'k'?"),
        (("--head", "lineer"), "no head 'lineer'; did you mean 'linear'?"),
        (("--trials", "0"), "--trials: expected greater than or equal to 1"),
        (("--space", "nowhere.yaml"), "the configuration file cannot be read"),
        (("--storage", "nosuchdb://x"), "the database cannot be used"),
    ],
)
def test_errors_are_one_line(tune, arguments, said: str) -> None:
    result, out = tune(*arguments)
    assert result.code == 2
    assert said in result.error
    assert not (out / "record.json").exists()


def test_a_directory_of_something_else_is_left_alone(tune) -> None:
    _, out = tune(trials=3)
    result, _ = tune("--metric", "average_precision", trials=3)
    assert result.code == 2
    assert "was made with other metric" in result.error
    assert json.loads((out / "record.json").read_text())["study"]["metric"] == "roc_auc"
    result, _ = tune("--metric", "average_precision", "--overwrite", trials=3)
    assert result.code == 0, result.err
    (out.parent / "notes").mkdir()
    (out.parent / "notes" / "mine.txt").write_text("keep")
    for flags in ((), ("--overwrite",)):
        result, _ = tune(*flags, out="notes")
        assert result.code == 2
    assert (out.parent / "notes" / "mine.txt").read_text() == "keep"


def start(manifest: Path, store: Path, encoder: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Begin a study in a process of its own."""
    command = [
        *(sys.executable, "-m", "cli", "tune", manifest, "--store", store, "--encoder", encoder, "--target", "label"),
        *("--head", "knn", "--split", "split", *QUICK, *arguments),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([str(each) for each in command], env=environment, stderr=subprocess.PIPE)


def finished(journal: Path) -> int:
    """Return how many trials a journal says were finished (operation 6 sets a state; 1 and 2 are final)."""
    if not journal.exists():
        return 0
    entries = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    return sum(entry.get("op_code") == 6 and entry.get("state") in (1, 2) for entry in entries)


@pytest.mark.slow
def test_a_killed_study_goes_on_and_two_processes_share_one(stored, toy, tmp_path) -> None:
    manifest, store = stored
    out, journal = tmp_path / "killed", tmp_path / "killed" / "study.journal"
    process = start(manifest, store, toy, "--trials", 400, "--out", out)
    until = time.monotonic() + 60
    while finished(journal) < 8 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = finished(journal)
    assert 8 <= before < 400
    assert not (out / "record.json").exists()
    # Two more share what is left.
    target = before + 24
    pair = [
        start(manifest, store, toy, "--trials", target, "--storage", journal, "--out", tmp_path / name)
        for name in ("one", "two")
    ]
    errors = [each.communicate(timeout=120)[1].decode() for each in pair]
    assert [each.returncode for each in pair] == [0, 0], errors
    records = [json.loads((tmp_path / name / "record.json").read_text()) for name in ("one", "two")]
    counted = max(record["study"]["trials"] for record in records)
    assert target <= counted <= target + 4
    numbers = [row["trial"] for row in rows_of(tmp_path / "one" / "trials.csv")]
    assert len(numbers) == len(set(numbers))
