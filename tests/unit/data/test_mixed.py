"""Mixed tasks: what each column is, how it is encoded, and how folds are stratified by all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.errors import TaskError
from data.mixed import read_mixed, stratum_names
from data.sources import read_manifest
from data.split import holdout, make_folds
from data.task import Task, count_classes, encode_targets, labelled


def write(tmp_path: Path, **columns: list[object]) -> Path:
    path = tmp_path / "table.csv"
    names = ["id", "text", *columns]
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(map(str, (f"s{i}", f"text {i}", *row))) for i, row in enumerate(rows)]
    path.write_text("\n".join([",".join(names), *lines]) + "\n")
    return path


def test_every_column_is_a_task_of_its_own(tmp_path: Path) -> None:
    n = 60
    table = write(
        tmp_path,
        sex=["F", "M", ""] * 20,
        grade=["I", "II", "III"] * 20,
        age=[f"{40 + i / 3:.2f}" if i % 4 else "" for i in range(n)],
        stage=[i % 4 for i in range(n)],
    )
    manifest = read_manifest(table)
    task, y = read_mixed(manifest, ["sex", "grade", "age", "stage"], kinds={"stage": "regression"})
    assert [part.kind for part in task.parts] == ["binary", "multiclass", "regression", "regression"]
    assert task.parts[1].classes == ("I", "II", "III")
    assert task.targets == ("sex", "grade", "age", "stage")
    assert y.shape == (n, 4)
    assert np.array_equal(y[:, 0], [0.0, 1.0, np.nan] * 20, equal_nan=True)
    assert np.array_equal(y[:, 1], [0.0, 1.0, 2.0] * 20)
    assert np.isnan(y[::4, 2]).all()
    assert y[1, 2] == 40.33
    assert Task.from_dict(task.to_dict()) == task
    assert np.array_equal(encode_targets(task, manifest), y, equal_nan=True)
    assert labelled(y).all()
    assert count_classes(task, y) == {"sex": 40, "grade": 60, "age": 45, "stage": 60}


def test_what_is_no_mixed_task(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, a=["x|y", "x", "y", "z"] * 3, b=["u", "v"] * 6, c=["u"] * 12))
    with pytest.raises(TaskError, match="column 'a': its cells hold several labels, and a head has one answer"):
        read_mixed(manifest, ["b", "a"])
    with pytest.raises(TaskError, match="target c: all 12 labels are 'u'"):
        read_mixed(manifest, ["b", "c"])
    with pytest.raises(TaskError, match="target 'b': a head of a mixed task is no multilabel one"):
        read_mixed(manifest, ["b"], kind="multilabel")
    with pytest.raises(TaskError, match="named twice: b"):
        read_mixed(manifest, ["b", "b"])


def test_folds_are_stratified_by_every_target() -> None:
    rng = np.random.default_rng(0)
    n = 500
    y = np.column_stack([rng.random(n) < 0.1, rng.integers(0, 4, n), rng.normal(50, 9, n)]).astype(float)
    y[rng.random(y.shape) < 0.2] = np.nan
    fold = make_folds(y, "mixed", None, 5, 0).assignment
    for k in range(5):
        inside, every = y[fold == k], y
        assert np.nansum(inside[:, 0]) == pytest.approx(np.nansum(every[:, 0]) / 5, abs=1)
        for code in range(4):
            assert (inside[:, 1] == code).sum() == pytest.approx((every[:, 1] == code).sum() / 5, abs=2)
        assert np.nanmean(inside[:, 2]) == pytest.approx(np.nanmean(every[:, 2]), abs=1.5)
    groups = np.arange(n) // 5
    held = holdout(y, "mixed", groups, 0.2, 0)
    assert held.mean() == pytest.approx(0.2, abs=0.02)
    assert all(len(set(held[groups == group])) == 1 for group in range(100))


def test_scarce_classes_are_named() -> None:
    parts = (
        Task(kind="binary", targets=("sex",), classes=("F", "M")),
        Task(kind="multiclass", targets=("grade",), classes=("I", "II", "III")),
    )
    task = Task(kind="mixed", targets=("sex", "grade"), parts=parts)
    y = np.column_stack([np.arange(40) % 2, np.minimum(np.arange(40) % 21, 2)]).astype(float)
    y[y[:, 1] == 0, 1] = 0.0
    folds = make_folds(y, "mixed", None, 5, 0, classes=stratum_names(task))
    assert folds.warnings == (
        "classes in fewer groups than the 5 folds, so that some folds have none of them: grade I (2), grade II (2)",
    )
