"""What `finetune`, `evaluate` and `predict` say: the option that is meant, each thing once, no library's warning."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finetuned_runs import assert_refused, changed

Run = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--weight", "classification=-1"], "--weight classification=-1: expected a number >= 0"),
        (["--weight", "classification=cosin:0:1:1:2"], "--weight classification=cosin:0:1:1:2: "),
        (["--weight", "classification=0"], "--weight: those of classification are all 0 at step"),
        (["--text-encoder", "x", "--text-unfreeze", "last"], "--text-unfreeze last: expected none, last:K"),
        (["--set", "classification.hidden=x"], "--set classification.hidden='x' is wrong; expected"),
    ],
)
def test_the_option_is_named(tune: Run, arguments: list[str], said: str) -> None:
    result, run = tune(*arguments)
    assert_refused(result, said)
    assert not (run / "record.json").exists()


def test_a_damaged_list_of_trained_rows_is_not_blamed_on_a_head(frostline, damaged: Path, table: Path) -> None:
    (damaged / "trained.csv").write_text("id\n")
    result = frostline("evaluate", damaged, table, "--split", "test")
    assert_refused(result, "trained.csv: damaged", "run its command again")
    assert "head" not in result.error


@pytest.mark.parametrize(
    ("target", "setting", "said"),
    [
        ("label", "loss=mse", "--set classification.loss: is of a regression, and the task is binary"),
        ("label", "huber_delta=2", "--set classification.huber_delta: is of a regression"),
        ("number", "label_smoothing=0.1", "--set classification.label_smoothing: is of classes and labels"),
        ("number", "focal_gamma=2", "--set classification.focal_gamma: is of classes and labels"),
    ],
)
def test_settings_of_another_kind_of_task_are_refused(tune: Run, target: str, setting: str, said: str) -> None:
    kind = ["--kind", "regression"] if target == "number" else []
    result, run = tune(*kind, "--set", f"classification.{setting}", target=target)
    assert_refused(result, said, "leave it out")
    assert not run.exists()


def test_a_number_that_is_too_large_is_named_with_its_column(tune: Run, table: Path) -> None:
    def enlarge(row: list[str]) -> None:
        row[3] = "1e300" if row[0] == "s3" else row[3]

    result, run = tune("--kind", "regression", target="number", manifest=changed(table, enlarge, "large.csv"))
    assert_refused(result, "large.csv, column 'number': 1e+300 of 's3' is too large", "in other units")
    assert not run.exists()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_the_record_of_another_release_is_refused(
    frostline, damaged: Path, table: Path, tmp_path: Path, command: str
) -> None:
    path = damaged / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 99}))
    more = ["--split", "test"] if command == "evaluate" else ["--out", tmp_path / "out.csv"]
    assert_refused(frostline(command, damaged, table, *more), "record.json: has schema 99, this release reads 1")


def test_samples_without_labels_are_for_predict(frostline, finished: Path, table: Path, tmp_path: Path) -> None:
    rows = list(csv.reader(table.read_text().splitlines()))
    bare = table.with_name("bare.csv")
    with bare.open("w", newline="") as file:
        csv.writer(file).writerows([row[:2] for row in rows])
    assert_refused(frostline("evaluate", finished, bare), "no column 'label'", "frostline predict")
    assert frostline("predict", finished, bare, "--out", tmp_path / "out.csv").code == 0


@pytest.mark.parametrize("option", ["--choose", "--encoder"])
def test_a_run_is_kept_until_its_replacement_has_been_judged(tune: Run, option: str) -> None:
    first, run = tune()
    assert first.code == 0, first.err
    before = (run / "record.json").read_bytes()
    assert_refused(tune("--overwrite", option, "nothing")[0], "nothing")
    assert (run / "record.json").read_bytes() == before


def test_two_teachers_at_one_place_open_test_rows_as_two(frostline, tune: Run, vision: str, table: Path) -> None:
    """Another head at the path of the first makes another run, and `evaluate` counts as the run that it judges."""
    teacher, store = table.parent / "teacher", table.parent / "features"
    features = ["--input", "path", "--encoder", vision, "--store", store]
    frostline("extract", table, *features)
    fit = ["fit-head", table, *features, "--target", "label", "--head", "linear", "--split", "split", "--bootstrap", 0]
    openers = []
    for penalty in (1, 0.01):
        head = frostline(*fit, "--refit", "train", "--set", f"C={penalty}", "--out", teacher, "--overwrite")
        assert head.code == 0, head.err
        result, run = tune("--teacher", teacher, "--store", store, out=f"run{penalty}")
        assert result.code == 0, result.err
        openers.append(json.loads((run / "record.json").read_text())["volatile"]["openings"])
    assert openers[1]["run"] != openers[0]["run"]
    judged = frostline("evaluate", run, table, "--split", "test", "--bootstrap", 0, "--json", "--store", store)
    assert judged.json["openings"]["run"] == openers[1]["run"]


@pytest.fixture
def on_two(vision: str, table: Path, tmp_path: Path) -> Run:
    """Return a function that fine-tunes on two processes."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = ["-m", "cli", "finetune", table, "--input", "path", "--encoder", vision, "--split", "split"]
        options = ["--objective", "classification", "--epochs", 1, "--batch-size", 6, "--bootstrap", 0]
        whole = map(str, [*launch, *command, *options, "--out", tmp_path / "run", *arguments])
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(list(whole), capture_output=True, text=True, env=environment, check=False, timeout=120)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2))
def test_of_two_processes_one_says_what_is_wrong(on_two: Run, tmp_path: Path, number: int) -> None:
    """A column, and a directory that cannot be made, which only the first of them knows."""
    (tmp_path / "file").write_text("")
    arguments, said = [
        (["--target", "lable"], "no column 'lable'"),
        (["--target", "label", "--store", tmp_path / "store", "--out", tmp_path / "file" / "run"], "cannot be written"),
    ][number]
    done = on_two(*arguments)
    assert done.returncode != 0
    assert done.stderr.count("frostline: error:") == 1
    assert said in done.stderr
    assert "closed by peer" not in done.stderr
    assert done.stderr.count("Traceback") == 1  # the launcher's own
    assert "frostline: interrupted" not in done.stderr


@pytest.mark.slow
def test_of_two_processes_one_tells_how_far_it_is(on_two: Run) -> None:
    done = on_two("--target", "label", "--unfreeze", "all")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("decoding: 24") == 1
    assert done.stderr.count("test openings") <= 1
    assert "find_unused_parameters" not in done.stderr


def test_a_file_that_cannot_be_read_is_said_once(frostline, finished: Path, table: Path, tmp_path: Path) -> None:
    broken = table.with_name("broken.png")
    broken.write_bytes(b"no picture")

    def damage(row: list[str]) -> None:
        row[1] = "broken.png" if row[0] == "s3" else row[1]

    manifest = changed(table, damage, "broken.csv")
    result = frostline("predict", finished, manifest, "--out", tmp_path / "out.csv")
    assert result.code == 3
    (said,) = [line for line in result.err.splitlines() if "s3" in line or "broken" in line]
    assert said.startswith("failed [unreadable]: s3: no prediction; ")
    assert "expected an image" in said


def test_how_many_captions_are_written_is_told(tune: Run, frostline, table: Path, tmp_path: Path) -> None:
    sizes = ["layers=1", "heads=1", "dim=8", "feedforward=8", "max_length=4", "beams=2"]
    settings = [part for size in sizes for part in ("--set", f"captioning.{size}")]
    result, run = tune("--objective", "captioning", "--text", "label", *settings)
    assert result.code == 0, result.err
    assert result.err.count("writing captions: 6") == 2  # of val and of test rows
    written = frostline("predict", run, table, "--out", tmp_path / "out.csv")
    assert "writing captions: 24" in written.err
