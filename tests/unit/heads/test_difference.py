"""Finished runs beside each other: the paired test, and what it refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data.task import Task
from heads.difference import difference
from heads.errors import RunError
from heads.evaluation.metrics import evaluate
from heads.evaluation.paired import paired_difference

BINARY = Task(kind="binary", targets=("label",), classes=("no", "yes"))
NUMBERS = Task(kind="regression", targets=("age",))
ROWS = 60


@pytest.fixture(scope="module")
def truth() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 2, ROWS)


@pytest.fixture(scope="module")
def groups() -> list[str]:
    return [f"g{i // 2}" for i in range(ROWS)]


def scores_of(truth: NDArray[np.int64], strength: float, seed: int) -> NDArray[np.float64]:
    noise = np.random.default_rng(seed).normal(size=len(truth))
    return 1 / (1 + np.exp(-(strength * (2 * truth - 1) + noise)))


def write_run(
    folder: Path,
    truth: NDArray[Any],
    scores: NDArray[np.float64],
    groups: Sequence[str],
    *,
    task: Task = BINARY,
    ids: Sequence[str] | None = None,
    threshold: float = 0.5,
    **record: Any,
) -> Path:
    """Write as much of a run as is read, the rows in an order of their own."""
    folder.mkdir()
    values = {"task": task.to_dict(), "thresholds": {"yes": {"value": threshold}}, "config": {}, **record}
    (folder / "record.json").write_text(json.dumps(values), encoding="utf-8")
    names = ids or [f"r{i}" for i in range(len(truth))]
    with (folder / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        last = ["prob[no]", "prob[yes]"] if task is BINARY else ["pred"]
        writer.writerow(["id", "split", "fold", "group", "true", *last])
        for i in np.random.default_rng(len(folder.name)).permutation(len(truth)):
            true = task.classes[truth[i]] if task.classes else repr(float(truth[i]))
            said = [1 - scores[i], scores[i]] if task.classes else [scores[i]]
            writer.writerow([names[i], "test", "", groups[i], true, *map(repr, map(float, said))])
    return folder


def test_it_is_the_paired_bootstrap_of_the_two_runs(
    tmp_path: Path, truth: NDArray[np.int64], groups: list[str]
) -> None:
    good, weak = scores_of(truth, 1.5, 1), scores_of(truth, 0.3, 2)
    run = write_run(tmp_path / "run", truth, good, groups, threshold=0.6)
    other = write_run(tmp_path / "other one", truth, weak, groups, threshold=0.4)

    found = difference(run, [other], metrics=["roc_auc", "f1"], n_boot=200, seed=3)

    assert (found.split, found.rows, found.groups) == ("test", ROWS, 30)
    order = sorted(range(ROWS), key=lambda i: f"r{i}")
    parts = [values[order] for values in (truth, good, weak)]
    own = [f"group {groups[i]}" for i in order]
    for each in found.differences:
        expected = paired_difference(
            "binary", *parts, metric=each.metric, groups=own, n_boot=200, seed=3, thresholds=(0.6, 0.4)
        )
        assert (each.difference, each.low, each.high, each.p) == pytest.approx(tuple(expected), abs=1e-12)
        alone = evaluate(
            "binary", parts[0], parts[1], classes=BINARY.classes, groups=own, thresholds=0.6, n_boot=200, seed=3
        )
        assert each.of_run == alone[each.metric]


def test_p_is_adjusted_over_all_others_and_metrics(tmp_path: Path, truth: NDArray[np.int64], groups: list[str]) -> None:
    run = write_run(tmp_path / "run", truth, scores_of(truth, 1.5, 1), groups)
    others = [write_run(tmp_path / name, truth, scores_of(truth, 0.5, seed), groups) for seed, name in enumerate("ab")]

    found = difference(run, others, metrics=["roc_auc", "f1"], n_boot=100).differences

    assert [(each.other.name, each.metric) for each in found] == [
        ("a", "roc_auc"), ("a", "f1"), ("b", "roc_auc"), ("b", "f1"),
    ]  # fmt: skip
    smallest = min(found, key=lambda each: each.p)
    assert smallest.p_holm == pytest.approx(min(1.0, 4 * smallest.p))
    assert all(each.p_holm >= each.p for each in found)


def test_a_run_does_not_differ_from_itself(tmp_path: Path, truth: NDArray[np.int64], groups: list[str]) -> None:
    run = write_run(tmp_path / "run", truth, scores_of(truth, 1.0, 1), groups)

    found = difference(run, [run], n_boot=50).differences

    assert [(each.difference, each.low, each.high, each.p) for each in found] == [(0.0, 0.0, 0.0, 1.0)] * 3
    assert [each.metric for each in found] == ["roc_auc", "average_precision", "balanced_accuracy"]


def test_regression_and_json(tmp_path: Path, groups: list[str]) -> None:
    rng = np.random.default_rng(0)
    ages = rng.uniform(20, 80, ROWS)
    run = write_run(tmp_path / "run", ages, ages + rng.normal(0, 2, ROWS), groups, task=NUMBERS, thresholds={})
    other = write_run(tmp_path / "o", ages, ages + rng.normal(0, 9, ROWS), groups, task=NUMBERS, thresholds={})

    found = difference(run, [other], n_boot=100)

    by_metric = {each["metric"]: each for each in found.to_dict()["differences"]}
    assert by_metric["mae"]["difference"] < 0 < by_metric["r2"]["difference"]
    assert by_metric["mae"]["p"] < 0.01
    assert json.loads(json.dumps(found.to_dict()))["rows"] == ROWS
    assert "mae" in found.table()


def test_few_groups_are_said(tmp_path: Path, truth: NDArray[np.int64]) -> None:
    few = [f"g{i % 5}" for i in range(ROWS)]
    run = write_run(tmp_path / "run", truth, scores_of(truth, 1.0, 1), few)

    assert difference(run, [run], n_boot=20).warnings == ("5 groups were judged: intervals of so few are too narrow",)


def _other_rows(folder: Path, truth: Any, groups: Any) -> Path:
    return write_run(folder, truth, scores_of(truth, 1, 1), groups, ids=[f"s{i}" for i in range(ROWS)])


def _other_truth(folder: Path, truth: Any, groups: Any) -> Path:
    return write_run(folder, 1 - truth, scores_of(truth, 1, 1), groups)


def _other_groups(folder: Path, truth: Any, groups: Any) -> Path:
    return write_run(folder, truth, scores_of(truth, 1, 1), groups[::-1])


def _other_task(folder: Path, truth: Any, groups: Any) -> Path:
    return write_run(folder, truth.astype(float), scores_of(truth, 1, 1), groups, task=NUMBERS, thresholds={})


def _without(folder: Path) -> Path:
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({"task": None, "kind": "finetune"}), encoding="utf-8")
    return folder


def _damaged(folder: Path, truth: Any, groups: Any) -> Path:
    made = write_run(folder, truth, scores_of(truth, 1, 1), groups)
    (made / "record.json").write_text('{"task": {"kind": "binary"}}', encoding="utf-8")
    return made


def _twice(folder: Path, truth: Any, groups: Any) -> Path:
    return write_run(folder, truth, scores_of(truth, 1, 1), groups, ids=["r0", *(f"r{i}" for i in range(ROWS - 1))])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_other_rows, "were judged on other test rows .60 of the first only, 60 of the second"),
        (_other_truth, "have other true values for the same ids"),
        (_other_groups, "have other groups for the same ids"),
        (_other_task, r"answer other questions: binary label \(no, yes\) and regression age \(numbers\)"),
        (lambda folder, *_: _without(folder), "predicts no target"),
        (_damaged, r"record\.json: damaged"),
        (_twice, "several test predictions have one id"),
        (lambda folder, *_: folder, "does not exist"),
    ],
)
def test_what_cannot_be_paired_is_refused(
    tmp_path: Path,
    truth: NDArray[np.int64],
    groups: list[str],
    make: Callable[[Path, Any, Any], Path],
    message: str,
) -> None:
    run = write_run(tmp_path / "run", truth, scores_of(truth, 1.0, 1), groups)

    with pytest.raises(RunError, match=message):
        difference(run, [make(tmp_path / "other", truth, groups)], n_boot=10)


def test_unknown_splits_and_metrics_are_named(tmp_path: Path, truth: NDArray[np.int64], groups: list[str]) -> None:
    run = write_run(tmp_path / "run", truth, scores_of(truth, 1.0, 1), groups)

    with pytest.raises(RunError, match=r"--split val: .*has no predictions of it; it has test"):
        difference(run, [run], split="val")
    with pytest.raises(RunError, match=r"--metric rocauc: no metric of a binary task; did you mean 'roc_auc'"):
        difference(run, [run], metrics=["rocauc"])
