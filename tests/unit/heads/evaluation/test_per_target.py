"""Metrics of mixed tasks: each target as by itself, and means whose intervals resample the groups of all rows."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data.task import Task
from heads.evaluation.bootstrap import Bootstrap
from heads.evaluation.metrics import evaluate, replicates
from heads.evaluation.per_target import evaluate_task
from heads.evaluation.scoring import answers, part_scores, part_thresholds, score_columns

TASK = Task(
    kind="mixed",
    targets=("sex", "grade", "age", "flag"),
    parts=(
        Task(kind="binary", targets=("sex",), classes=("F", "M")),
        Task(kind="multiclass", targets=("grade",), classes=("I", "II", "III")),
        Task(kind="regression", targets=("age",)),
        Task(kind="binary", targets=("flag",), classes=("0", "1")),
    ),
)


def make_judged(n: int = 120, missing: float = 0.25) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Return targets, scores side by side and groups of three rows."""
    rng = np.random.default_rng(0)
    y = np.column_stack([rng.integers(0, 2, n), rng.integers(0, 3, n), rng.normal(60, 9, n), rng.integers(0, 2, n)])
    noisy = rng.normal(size=(n, 4))
    sex, flag = (1 / (1 + np.exp(-2 * (y[:, j] - 0.5) - noisy[:, j])) for j in (0, 3))
    grade = np.exp(rng.normal(size=(n, 3)) + 2 * np.eye(3)[y[:, 1].astype(int)])
    grade /= grade.sum(axis=1, keepdims=True)
    scores = np.column_stack([1 - sex, sex, grade, y[:, 2] + 5 * noisy[:, 2], 1 - flag, flag])
    y[rng.random(y.shape) < missing] = np.nan
    return y, scores, [f"g{i // 3}" for i in range(n)]


def test_scores_and_thresholds_of_each_target() -> None:
    _, scores, _ = make_judged()
    assert score_columns(TASK) == [slice(0, 2), slice(2, 5), slice(5, 6), slice(6, 8)]
    sex, grade, age, flag = part_scores(scores, TASK)
    assert np.array_equal(sex, scores[:, 1])
    assert np.array_equal(grade, scores[:, 2:5])
    assert np.array_equal(age, scores[:, 5])
    assert part_thresholds(TASK, [0.2, 0.9]) == [0.2, 0.5, 0.5, 0.9]
    assert part_thresholds(TASK, 0.5) == [0.5] * 4
    said = answers(scores, TASK, [0.2, 0.9])
    expected = np.column_stack([sex >= 0.2, grade.argmax(axis=1), age, flag >= 0.9])
    assert np.array_equal(said, expected)


def test_each_target_is_judged_as_by_itself() -> None:
    y, scores, groups = make_judged()
    found = evaluate_task(TASK, y, scores, groups=groups, thresholds=[0.3, 0.6], n_boot=0)
    for j, (part, own) in enumerate(zip(TASK.parts, part_scores(scores, TASK), strict=True)):
        known = ~np.isnan(y[:, j])
        alone = evaluate(
            part.kind,
            y[known, j],
            own[known],
            classes=part.classes or part.targets,
            groups=[group for group, there in zip(groups, known, strict=True) if there],
            thresholds=[0.3, 0.5, 0.5, 0.6][j],
            n_boot=0,
        )
        entry = found["per_head"][part.targets[0]]
        assert {name: entry[name] for name in alone if name != "bootstrap"} == {
            name: value for name, value in alone.items() if name != "bootstrap"
        }
    areas = [found["per_head"][name]["roc_auc"]["value"] for name in ("sex", "flag")]
    assert found["mean_binary_roc_auc"]["value"] == pytest.approx(np.mean(areas))
    assert found["mean_regression_r2"]["value"] == found["per_head"]["age"]["r2"]["value"]
    assert found["left_out"] == {}


def test_intervals_of_means_draw_the_same_groups_for_all_targets() -> None:
    y, scores, groups = make_judged(missing=0.0)
    found = evaluate_task(TASK, y, scores, groups=groups, n_boot=200, seed=3)
    plan = Bootstrap.of(len(y), groups, n_boot=200, seed=3, level=0.95)
    areas = [
        replicates("binary", y[:, j], part_scores(scores, TASK)[j], plan, classes=TASK.parts[j].classes)[
            "roc_auc"
        ].values
        for j in (0, 3)
    ]
    low, high = np.percentile(np.mean(areas, axis=0)[1:], [2.5, 97.5])
    assert found["mean_binary_roc_auc"]["low"] == pytest.approx(low)
    assert found["mean_binary_roc_auc"]["high"] == pytest.approx(high)
    alone = evaluate("binary", y[:, 0], scores[:, 1], classes=("F", "M"), groups=groups, n_boot=200, seed=3)
    assert found["per_head"]["sex"]["roc_auc"] == alone["roc_auc"]


def test_as_many_rows_as_groups_are_still_resampled_by_group() -> None:
    y, scores, groups = make_judged(n=120, missing=0.0)
    y[40:, 0] = np.nan  # 40 rows, of 40 groups in total, but of 14 groups themselves
    found = evaluate_task(TASK, y, scores, groups=groups, n_boot=200)["per_head"]["sex"]
    assert (found["n"], found["n_groups"]) == (40, 14)
    plan = Bootstrap.of(len(y), groups, n_boot=200, seed=0, level=0.95)
    weights = np.concatenate(list(plan.of_rows(~np.isnan(y[:, 0])).weights()))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] != weights[:, 3]).any()


def test_targets_without_values_or_positives_are_left_out_of_means_and_named() -> None:
    y, scores, groups = make_judged()
    y[:, 1] = np.nan
    y[:, 3] = 0.0
    found = evaluate_task(TASK, y, scores, groups=groups, n_boot=20, min_positives=5)
    assert found["left_out"] == {"grade": "no row has a value", "flag": "0 positives, fewer than 5"}
    assert found["per_head"]["grade"] == {"kind": "multiclass", "n": 0, "n_groups": 0}
    assert "mean_multiclass_accuracy" not in found
    assert found["mean_binary_roc_auc"]["value"] == found["per_head"]["sex"]["roc_auc"]["value"]
    assert found["per_head"]["flag"]["roc_auc"]["value"] is None
