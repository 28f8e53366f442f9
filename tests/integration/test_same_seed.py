"""Two runs of one command with one seed: the same record, predictions and saved head, byte for byte."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

QUICK = ("max_epochs=4", "hidden=8", "batch_size=16", "members=2")
HEADS = {
    "linear": (),
    "knn": (),
    "prototype": (),
    "svm": (),
    "mlp": QUICK,
    "gbm": ("max_rounds=20",),
    "prompt_similarity": ("max_epochs=4", "width=8", "members=2"),
}
WORDS = {"cold": "icy snow and frosts", "hot": "desert sand and fires", "wet": "rain in a muddy river"}


@pytest.fixture
def texts(frostline, toy_text, tmp_path) -> tuple[Path, Path]:
    """Write and extract short texts of three classes; return manifest and store."""
    manifest, store = tmp_path / "texts.csv", tmp_path / "store"
    with manifest.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "text", "label", "split", "group"])
        for i in range(60):
            label, split = list(WORDS)[i % 3], ("train", "train", "train", "test")[i // 6 % 4]
            table.writerow([f"t{i}", f"{WORDS[label]} {i * 7919 % 1000}", label, split, i // 6])
    assert frostline("extract", manifest, "--store", store, "--encoder", toy_text).code == 0
    return manifest, store


@pytest.fixture
def twice(frostline, texts, toy_text, tmp_path, monkeypatch):
    """Return a function that runs a command twice and returns what each run left behind."""
    # What is drawn costs most of the time, and follows from the record.
    for drawn in ("write_plots", "write_report"):
        monkeypatch.setattr(f"heads.fit.{drawn}", lambda *_, **__: None)
    manifest, store = texts
    out = tmp_path / "run"
    base = (manifest, "--store", store, "--encoder", toy_text, "--target", "label", "--split", "split", "--seed", 3)

    def run(name: str, *arguments: object) -> tuple[dict[str, Any], dict[str, Any]]:
        command = (name, *base, "--group", "group", "--bootstrap", 20, "--out", out, "--overwrite", *arguments)
        return left_by(frostline(*command), out), left_by(frostline(*command), out)

    return run


def left_by(result: Any, out: Path) -> dict[str, Any]:
    """Return the files of a run, without what the record itself calls volatile."""
    assert result.code == 0, result.err
    files: dict[str, Any] = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    record = json.loads(files["record.json"])
    assert set(record.pop("volatile")) == {"created", "timings", "environment", "openings"}
    return {**files, "record.json": record}


@pytest.mark.parametrize("head", HEADS)
def test_fit_head(twice, toy_text, head: str) -> None:
    prompts = ("--prompt-encoder", toy_text) if head == "prompt_similarity" else ()
    settings = [part for setting in HEADS[head] for part in ("--set", setting)]
    one, other = twice("fit-head", "--head", head, "--folds", 2, *prompts, *settings)
    assert {"predictions.csv", "trained.csv", "head/head.json"} <= set(one)
    assert one == other


def test_another_seed_is_another_fit(twice) -> None:
    settings = [part for setting in QUICK for part in ("--set", setting)]
    one, _ = twice("fit-head", "--head", "mlp", "--folds", 2, *settings)
    other, _ = twice("fit-head", "--head", "mlp", "--folds", 2, *settings, "--seed", 4)
    assert one["predictions.csv"] != other["predictions.csv"]


def test_zero_shot(twice) -> None:
    one, other = twice("zero-shot", "--prompt-control", "shuffled")
    assert one == other


def test_predict(twice, frostline, texts, tmp_path) -> None:
    twice("fit-head", "--folds", 2)
    outs = [tmp_path / "one.csv", tmp_path / "other.csv"]
    for out in outs:
        assert frostline("predict", tmp_path / "run", texts[0], "--store", texts[1], "--out", out).code == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()
