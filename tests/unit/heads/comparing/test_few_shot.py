"""Few-shot curves: which rows teach and which judge, and what a point is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.task import Task
from heads.comparing.few_shot import few_shot_curve, lay_course
from heads.comparing.suite import Cell
from heads.config import FitConfig
from heads.context import Context
from heads.errors import HeadError


def samples(kind: str = "binary", n: int = 120, split: bool = False) -> Any:
    """Return labelled data of two overlapping classes, two rows per group."""
    rng = np.random.default_rng(0)
    y = np.repeat(rng.integers(0, 2, n // 2), 2)
    X = (rng.normal(size=(n, 6)) + 0.7 * y[:, None]).astype(np.float32)
    part = np.where(np.arange(n) < n // 3, "test", "train") if split else np.full(n, "train")
    return SimpleNamespace(
        X=X,
        y=y if kind == "binary" else X[:, 0].astype(float),
        groups=np.repeat(np.arange(n // 2), 2),
        split=part,
        context=Context(blocks=(6,)),
        fingerprints=["f"],
        views=None,
        prompts=None,
        manifest=SimpleNamespace(digest="m"),
        task=Task(kind=kind, targets=("label",), classes=("no", "yes") if kind == "binary" else ()),
        rows=lambda name: np.flatnonzero(part == name),
    )


def cell_of(head: str = "linear", **settings: object) -> Cell:
    values = {"manifest": "m.csv", "store": "s", "encoder": ("a",), "target": ("label",), "out": "o"}
    config = FitConfig.build({**values, "head": head, "set": settings, "bootstrap": 50}, where="a test")
    return Cell(data="d", encoder="a", head=head, config=config)


def test_a_course_judges_on_rows_that_no_subset_is_drawn_from() -> None:
    data = samples()
    course = lay_course(data, "cv", folds=4, seed=0, draws=3)
    assert not set(course.pool) & set(course.test)
    assert sorted([*course.pool, *course.test]) == list(range(120))
    assert not set(data.groups[course.pool]) & set(data.groups[course.test])
    most = np.bincount(data.y[course.pool]).max()
    assert course.sizes == (*(2**k for k in range(10) if 2**k < most), None)
    split = lay_course(samples(split=True), "test", folds=4, seed=0, draws=3)
    assert split.test.tolist() == list(range(40))
    assert "the test split, 40 samples" in split.described


def test_a_regression_has_no_course() -> None:
    with pytest.raises(HeadError, match="a regression has no classes"):
        lay_course(samples("regression"), "cv", folds=4, seed=0, draws=1)


def test_the_last_point_is_a_fit_on_all_rows(tmp_path) -> None:
    data = samples(split=True)
    course = lay_course(data, "test", folds=4, seed=0, draws=3)
    points = few_shot_curve(cell_of(C=0.1), data, course, tmp_path)
    assert [point.n for point in points] == list(course.sizes)
    assert [point.rows for point in points[:4]] == [2, 4, 8, 16]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8)).fit(
        data.X[course.pool], data.y[course.pool]
    )
    expected = roc_auc_score(data.y[course.test], model.decision_function(data.X[course.test]))
    assert points[-1].value == pytest.approx(expected, abs=2e-3)
    assert all(point.low <= point.value <= point.high for point in points)  # type: ignore[operator]


def test_a_curve_is_kept_and_another_option_is_another_curve(tmp_path, monkeypatch) -> None:
    data = samples()
    course = lay_course(data, "cv", folds=4, seed=0, draws=2)
    first = few_shot_curve(cell_of("knn"), data, course, tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr("heads.comparing.few_shot.fit_on", lambda *_, **__: pytest.fail("fitted again"))
        assert few_shot_curve(cell_of("knn"), data, course, tmp_path) == first
    assert few_shot_curve(cell_of("knn", k=1), data, course, tmp_path) != first
    assert len(list((tmp_path / "few_shot").iterdir())) == 2


def test_a_point_that_cannot_be_fitted_says_why(tmp_path) -> None:
    data = samples()
    data.context = Context(blocks=(6,))
    course = lay_course(data, "cv", folds=4, seed=0, draws=2)
    points = few_shot_curve(cell_of("concat_fusion"), data, course, tmp_path)
    assert {point.value for point in points} == {None}
    assert "fits failed: concat_fusion fuses two or more sets of features" in points[0].reason
