"""What a user may get wrong with `finetune`, `evaluate` and `predict`: one line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finetuned_runs import assert_refused, changed

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lr", "inf"], ["--lr", "a finite number", "'inf'"]),
        (["--clip-norm", "nan"], ["--clip-norm"]),
        (["--seed", str(2**64)], ["--seed"]),
        (["--delimiter", ""], ["--delimiter", "not empty"]),
        (["--text-pooling", "mean"], ["--text-pooling", "--text-encoder"]),
        (["--pooling", "tokens"], ["pooling tokens", "makes no vector"]),
        (["--unfreeze", "gradual:2:1"], ["--unfreeze gradual:2:1", "--epochs 2"]),
        (["--set", "classification.focal_gamma=inf"], ["focal_gamma", "a number >= 0"]),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_before_anything_is_written(
    tune: Run, arguments: list[str], words: list[str]
) -> None:
    result, run = tune(*arguments)
    assert_refused(result, *words)
    assert not run.exists()


def test_a_store_below_a_file_is_refused(tune: Run, table: Path) -> None:
    result, run = tune("--store", table / "store")
    assert_refused(result, str(table), "Not a directory")
    assert not run.exists()


def test_many_files_that_cannot_be_read_are_counted(tune: Run, table: Path) -> None:
    """Ten are named on the way; the end counts all of them by reason."""
    broken = table.with_name("broken.png")
    broken.write_bytes(b"no picture")

    def damage(row: list[str]) -> None:
        if int(row[3]) >= 12:
            row[1] = "broken.png"

    result, run = tune(manifest=changed(table, damage, "broken.csv"))
    assert result.code == 0
    assert result.err.count("expected an image") == 10
    assert "and 2 more" in result.err
    assert "12 samples were left out (unreadable: 12)" in result.err
    assert "unreadable: 12" in (run / "report.html").read_text()


def test_where_no_training_row_can_be_read_the_reason_is_said(tune: Run, table: Path) -> None:
    def lose(row: list[str]) -> None:
        if row[4] == "train":
            row[1] = f"gone{row[0]}.png"

    result, run = tune(manifest=changed(table, lose, "lost.csv"))
    assert_refused(result, "no labelled training sample", "missing: 12")
    assert not run.exists()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"inputs": []}, "inputs"),
        ({"task": None}, "task"),
        ({"training": {}}, "training.last_step"),
        ({"thresholds": {"label": {}}}, "thresholds"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_damaged_record_is_named(
    frostline, damaged: Path, table: Path, tmp_path: Path, command: str, change: dict[str, Any], word: str
) -> None:
    path = damaged / "record.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    more = ["--split", "test"] if command == "evaluate" else ["--out", tmp_path / "out.csv"]
    assert_refused(frostline(command, damaged, table, *more), str(path), "damaged", word)
    assert not (tmp_path / "out.csv").exists()


def test_a_run_without_a_whole_record_is_told_from_that_of_a_head(frostline, damaged: Path, table: Path) -> None:
    path = damaged / "record.json"
    path.write_text(path.read_text()[:50])
    assert_refused(frostline("evaluate", damaged, table, "--split", "test"), "record.json: is not JSON")
    path.unlink()
    assert_refused(frostline("evaluate", damaged, table, "--split", "test"), "not a finished run")


def test_rows_without_any_label_cannot_be_judged(frostline, finished: Path, table: Path) -> None:
    unlabelled = changed(table, lambda row: row.__setitem__(2, ""), "unlabelled.csv")
    assert_refused(frostline("evaluate", finished, unlabelled), str(unlabelled), "no label: 24")


def test_options_of_heads_are_not_passed_over(frostline, finished: Path, table: Path, tmp_path: Path) -> None:
    assert_refused(frostline("evaluate", finished, table, "--split", "test", "--view", "label"), "--view")
    result = frostline("predict", finished, table, "--view", "label", "--out", tmp_path / "out.csv")
    assert_refused(result, "--view")


def test_the_directory_of_a_run_is_told_from_its_encoder(
    frostline, finished: Path, table: Path, tmp_path: Path
) -> None:
    result = frostline("extract", table, "--input", "path", "--encoder", finished, "--store", tmp_path / "store")
    assert_refused(result, f"its encoder is {finished / 'encoder'}")


def test_an_encoder_that_names_itself_as_its_base_is_refused(
    frostline, damaged: Path, table: Path, tmp_path: Path
) -> None:
    path = damaged / "encoder" / "encoder.json"
    values = json.loads(path.read_text())
    values["towers"]["image"]["encoder"] = f"finetuned:{path.parent}"
    path.write_text(json.dumps(values))
    result = frostline("extract", table, "--input", "path", "--encoder", path.parent, "--store", tmp_path / "store")
    assert_refused(result, "names the folder itself")


def stopped(run: Path) -> Path:
    """Leave of a finished run what one that was stopped before its end has; return its checkpoints."""
    for path in run.iterdir():
        if path.name not in ("checkpoints", "config.yaml", "metrics.jsonl"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    last = run / "checkpoints" / "last.json"
    last.write_text(json.dumps({**json.loads(last.read_text()), "stopped": False}))
    return last.parent


def of_other_shapes(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: torch.zeros(3, 1, 2) for name in load_file(path)}, path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("step-*.pt", lambda path: path.write_bytes(path.read_bytes()[:200])),
        ("step-*.pt", lambda path: path.unlink()),
        ("step-*.pt", lambda path: torch.save({"param_groups": []}, path)),
        ("step-*.safetensors", of_other_shapes),
        ("best-*.safetensors", lambda path: path.unlink()),
        ("../metrics.jsonl", lambda path: path.unlink()),
    ],
)
def test_a_damaged_checkpoint_is_named(
    frostline, finished: Path, damaged: Path, name: str, damage: Callable[[Path], object]
) -> None:
    checkpoints = stopped(damaged)
    (path,) = checkpoints.glob(name)
    damage(path)
    result = frostline("finetune", "--config", finished / "config.yaml", "--out", damaged)
    assert_refused(result, path.name, "--overwrite")
    assert not (damaged / "record.json").exists()


def test_a_stopped_run_goes_on_where_nothing_is_damaged(frostline, finished: Path, damaged: Path) -> None:
    stopped(damaged)
    result = frostline("finetune", "--config", finished / "config.yaml", "--out", damaged)
    assert result.code == 0, result.err
    assert (damaged / "predictions.csv").read_text() == (finished / "predictions.csv").read_text()


@pytest.fixture(scope="session")
def store(finished: Path, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The features of all pictures from the run's encoder."""
    from featurestore.config import ExtractConfig
    from featurestore.extract import extract

    path = tmp_path_factory.mktemp("features") / "store"
    extract(ExtractConfig(manifest=table, input="path", encoder=str(finished / "encoder"), store=path))
    return path


@pytest.fixture
def fit(frostline, finished: Path, table: Path, store: Path, tmp_path: Path) -> Run:
    """Return a function that fits a head on the features of the fine-tuned encoder: (result, run)."""

    def run(*arguments: object, manifest: Path = table, command: str = "fit-head", head: str = "linear") -> Any:
        features = ["--input", "path", "--store", store, "--encoder", finished / "encoder"]
        options = ["--target", "label", "--head", head, "--bootstrap", 0, "--out", tmp_path / "head"]
        return frostline(command, manifest, *features, *options, *arguments), tmp_path / "head"

    return run


def turned(row: list[str]) -> None:
    row[4] = {"train": "test", "test": "train"}.get(row[4], row[4])


def test_a_head_is_not_judged_by_rows_that_its_encoder_was_fine_tuned_on(fit: Run, finished: Path, table: Path) -> None:
    result, run = fit("--split", "split", manifest=changed(table, turned, "turned.csv"))
    assert_refused(result, str(finished / "encoder"), "12 of the 12 test rows", "--allow-leakage")
    assert not run.exists()


@pytest.mark.parametrize("command", ["fit-head", "compare"])
def test_cross_validation_alone_does_not_judge_what_was_fine_tuned_on_the_same_rows(fit: Run, command: str) -> None:
    result, run = fit(command=command)
    assert_refused(result, "12 of the 24 cross-validated rows")
    assert not (run / "record.json").exists()


def test_cross_validation_of_a_fine_tuned_encoder_is_remarked_on_where_test_rows_judge(fit: Run) -> None:
    result, run = fit("--split", "split")
    assert result.code == 0, result.err
    (warning,) = [each for each in json.loads((run / "record.json").read_text())["warnings"] if "fine-tuned" in each]
    assert "12 of the 12 training rows" in warning
    assert "test rows" in warning


def test_what_an_encoder_has_seen_may_be_allowed_and_is_told(fit: Run, table: Path) -> None:
    result, run = fit("--split", "split", "--allow-leakage", manifest=changed(table, turned, "turned.csv"))
    assert result.code == 0, result.err
    assert "leakage allowed" in result.err
    assert "12 of the 12 test rows" in (run / "report.html").read_text()


def test_training_does_not_go_on_where_it_would_be_judged_by_what_it_has_seen(
    tune: Run, finished: Path, table: Path
) -> None:
    result, run = tune("--encoder", finished / "encoder", manifest=changed(table, turned, "turned.csv"))
    assert_refused(result, "12 of the 12 test rows")
    assert not run.exists()


def test_encoders_that_began_with_a_fine_tuned_one_have_seen_its_rows(
    frostline, tune: Run, finished: Path, table: Path, tmp_path: Path
) -> None:
    """The second run trains on other rows, and its test rows are those of the first one's training."""
    manifest = changed(table, turned, "turned.csv")
    first, run = tune("--encoder", finished / "encoder", "--allow-leakage", "--unfreeze", "last:1", manifest=manifest)
    assert first.code == 0, first.err
    again = tune("--encoder", run / "encoder", manifest=manifest, out="again")[0]
    assert_refused(again, str(finished / "encoder"), "12 of the 12 test rows")


def test_where_nobody_can_tell_what_was_trained_on_that_is_said(
    frostline, damaged: Path, table: Path, tmp_path: Path
) -> None:
    (damaged / "trained.csv").unlink()
    features = ["--input", "path", "--store", tmp_path / "store", "--encoder", damaged / "encoder"]
    assert frostline("extract", table, *features).code == 0
    options = ["--target", "label", "--head", "linear", "--split", "split", "--bootstrap", 0]
    result = frostline("fit-head", table, *features, *options, "--out", tmp_path / "head")
    assert result.code == 0, result.err
    assert "nobody can tell which rows" in result.err


@pytest.mark.parametrize(("target", "column", "value"), [("label", 2, "a"), ("number", 3, "5")])
def test_training_rows_that_are_all_alike_teach_nothing(
    tune: Run, table: Path, target: str, column: int, value: str
) -> None:
    def level(row: list[str]) -> None:
        if row[4] == "train":
            row[column] = value

    kind = ["--kind", "regression"] if target == "number" else []
    result, run = tune(*kind, target=target, manifest=changed(table, level, f"level-{target}.csv"))
    assert_refused(result, "all 12 training rows", f"{target} '{value}'")
    assert not run.exists()


def test_a_best_epoch_before_anything_was_unfrozen_is_told(tune: Run) -> None:
    """With such a rate what is unfrozen in the second epoch makes everything worse, so the first is the best."""
    result, run = tune("--unfreeze", "gradual:1:2", "--lr", "1e-6", "--encoder-lr", "1e6", "--schedule", "constant")
    assert result.code == 0, result.err
    record = json.loads((run / "record.json").read_text())
    assert record["training"]["best_epoch"] == 0
    assert record["inputs"][0]["fingerprint"] == record["inputs"][0]["trained"]
    assert "came before --unfreeze gradual:1:2 unfroze anything" in " ".join(record["warnings"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "label", "--objective", "classification", "--augment", "flip"], "--augment: changes images"),
        (["--text", "label", "--objective", "captioning"], "captioning: describes images"),
    ],
)
def test_what_is_of_pictures_is_refused_for_texts(frostline, tmp_path: Path, options: list[str], words: str) -> None:
    manifest = tmp_path / "texts.csv"
    rows = [f"s{i},{word},{'ab'[i % 2]},train" for i, word in enumerate(["one", "two", "three", "four", "five", "six"])]
    manifest.write_text("\n".join(["id,text,label,split", *rows]))
    command = ["finetune", manifest, "--input", "text", "--encoder", "offline:minilm", *options]
    result = frostline(*command, "--out", tmp_path / "run")
    assert_refused(result, words, "the samples are text")
    assert not (tmp_path / "run").exists()
