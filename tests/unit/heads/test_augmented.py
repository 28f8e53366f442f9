"""Views join the samples of a fit and nothing else: with their targets, in their groups, and with their weight."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from data.progress import Silent
from data.task import Task
from heads.augmented import Views, fit_on
from heads.base import Head
from heads.catalog import make_head
from heads.config import FitConfig
from heads.context import Context
from heads.fit import fit_and_predict
from heads.many import Job
from heads.training.members import inner_splits

N, D, K = 90, 5, 3


def samples(owners: Any = None) -> Any:
    """Return 90 labelled samples, two per group, the last 20 for the test, with three views of some of them."""
    rng = np.random.default_rng(0)
    y = np.repeat(rng.integers(0, 2, N // 2), 2)
    X = (rng.normal(size=(N, D)) + 0.8 * y[:, None]).astype(np.float32)
    owners = np.arange(N) if owners is None else np.asarray(owners)
    values = X[owners][:, None] + rng.normal(scale=0.7, size=(len(owners), K, D)).astype(np.float32)
    split = np.where(np.arange(N) < 70, "train", "test")
    return SimpleNamespace(
        X=X,
        y=y,
        groups=np.repeat(np.arange(N // 2), 2),
        context=Context(blocks=(D,)),
        task=Task(kind="binary", targets=("label",), classes=("no", "yes")),
        manifest=SimpleNamespace(path="m.csv"),
        rows=lambda name: np.flatnonzero(split == name),
        views=Views(encoders=("augmented:3+a",), fingerprints=("f",), policy={}, owners=owners, values=values),
    )


def config_of(head: str, **settings: object) -> FitConfig:
    values = {"manifest": "m.csv", "store": "s", "encoder": ("augmented:3+a",), "target": ("label",), "out": "o"}
    return FitConfig.build({**values, "head": head, "folds": 4, "set": settings}, where="a test")


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every head is given that is fitted, in the order of the fits."""
    found: list[dict[str, Any]] = []
    real = Head._prepare

    def noted(head: Head, X: Any, y: Any, **rest: Any) -> Any:
        found.append({"X": np.array(X), "y": np.array(y), **rest})
        return real(head, X, y, **rest)

    monkeypatch.setattr(Head, "_prepare", noted)
    return found


def test_a_fit_has_the_views_of_its_samples_with_target_group_and_weight(given: list[dict[str, Any]]) -> None:
    data, rows = samples(owners=range(0, N, 2)), np.arange(10, 30)
    (head,) = fit_on(data, [Job(make_head("knn", "binary", {}, 0), rows)])
    assert isinstance(head, Head)
    (fit,) = given
    with_views = rows[rows % 2 == 0]
    np.testing.assert_array_equal(fit["X"][:20], data.X[rows])
    np.testing.assert_array_equal(fit["X"][20:].reshape(-1, K, D), data.views.values[with_views // 2])
    owners = np.concatenate([rows, np.repeat(with_views, K)])
    np.testing.assert_array_equal(fit["y"], data.y[owners])
    np.testing.assert_array_equal(fit["groups"], data.groups[owners])
    np.testing.assert_allclose(fit["sample_weight"], np.where(owners % 2, 1, 1 / (1 + K)))
    np.testing.assert_allclose(np.bincount(owners, fit["sample_weight"])[rows], 1)


@pytest.mark.parametrize(
    ("head", "settings"),
    [
        ("knn", {}),
        ("linear", {}),
        ("svm", {}),
        ("gbm", {"max_rounds": 2, "members": 1}),
        ("mlp", {"max_epochs": 1, "members": 1}),
    ],
)
def test_no_view_of_a_held_out_sample_is_ever_learned_from(
    head: str, settings: dict[str, Any], given: list[dict[str, Any]]
) -> None:
    data = samples()
    fitted = fit_and_predict(config_of(head, **settings), data, Silent())
    folds, train = fitted.judged[0].fold, data.rows("train")
    assert folds is not None
    inside = [train[folds != k] for k in range(4)] + [train]
    allowed = [{row.tobytes() for row in (*data.X[rows], *data.views.values[rows].reshape(-1, D))} for rows in inside]
    learned = [{row.tobytes() for row in fit["X"]} for fit in given]
    # Fits run side by side, in any order; each learned from exactly one of the training sets and its views.
    assert sorted(allowed.index(rows) for rows in learned) == list(range(5))


def test_out_of_fold_scores_are_those_of_a_loop_by_hand() -> None:
    data = samples()
    fitted = fit_and_predict(config_of("linear", C=0.3), data, Silent())
    cv, test = fitted.judged
    assert cv.fold is not None
    assert len(cv.rows) == 70

    def by_hand(rows: np.ndarray, judged: np.ndarray) -> np.ndarray:
        X = np.concatenate([data.X[rows], data.views.values[rows].reshape(-1, D)]).astype(float)
        y, weight = np.concatenate([data.y[rows], np.repeat(data.y[rows], K)]), np.full(len(X), 1 / (1 + K))
        scaler = StandardScaler().fit(X)
        model = LogisticRegression(C=0.3, tol=1e-10, max_iter=10_000).fit(scaler.transform(X), y, weight)
        return np.asarray(model.predict_proba(scaler.transform(data.X[judged]))[:, 1])

    for k in range(4):
        held = cv.rows[cv.fold == k]
        np.testing.assert_allclose(cv.scores[cv.fold == k], by_hand(cv.rows[cv.fold != k], held), atol=2e-3)
    np.testing.assert_allclose(test.scores, by_hand(data.rows("train"), test.rows), atol=2e-3)


@pytest.mark.parametrize("head", ["linear", "prototype", "prior"])
def test_views_that_change_nothing_leave_a_head_as_it_was(head: str) -> None:
    data = samples()
    data.views = Views(
        encoders=("a",),
        fingerprints=("f",),
        policy={},
        owners=np.arange(N),
        values=np.repeat(data.X[:, None], K, axis=1),
    )
    without: Any = SimpleNamespace(**{**vars(data), "views": None})
    first, second = (
        next(iter(fit_on(each, [Job(make_head(head, "binary", {}, 0), data.rows("train"))])))
        for each in (data, without)
    )
    np.testing.assert_allclose(first.predict_proba(data.X), second.predict_proba(data.X), atol=1e-4)  # type: ignore[union-attr]


def test_the_inner_split_of_early_stopping_keeps_copies_together(monkeypatch: pytest.MonkeyPatch) -> None:
    data = samples()
    seen: list[tuple[Any, Any]] = []

    def noted(head: Any, training: Any, **options: Any) -> Any:
        monitors = inner_splits(head, training, **options)
        seen.extend((training.groups, monitor) for monitor in monitors)
        return monitors

    monkeypatch.setattr("heads.estimators._network.inner_splits", noted)
    job = Job(make_head("mlp", "binary", {"max_epochs": 2, "hidden": [4], "members": 2}, 0), data.rows("train"))
    (head,) = fit_on(data, [job])
    assert isinstance(head, Head)
    assert len(seen) == 2
    for groups, monitor in seen:
        assert len(groups) == 70 * (1 + K)
        assert 0 < monitor.sum() < len(monitor)
        assert not set(groups[monitor]) & set(groups[~monitor])


def test_views_follow_the_samples_that_are_taken() -> None:
    views = samples(owners=[3, 4, 8]).views
    taken = views.take(np.array([8, 5, 3]))
    assert taken.owners.tolist() == [0, 2]
    np.testing.assert_array_equal(taken.values, views.values[[2, 0]])
    assert views.take(np.array([80, 81])).values.shape == (0, K, D)
