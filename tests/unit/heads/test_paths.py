"""Penalty paths and fits in one go: equal to scikit-learn's objective cell by cell, and to fits one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from heads.errors import HeadError
from heads.estimators.linear import LinearClassifier, LinearRegressor
from heads.many import Job, fit_many
from heads.paths import logistic_path
from heads.solvers.ridge import fold_ridge

Array = NDArray[Any]
CS = np.logspace(-3, 4, 6)


def blobs(n: int = 300, d: int = 20, classes: int = 2, *, unit: bool = False, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    X = rng.normal(size=(classes, d))[y] * 0.5 + rng.normal(size=(n, d)) * np.arange(1, d + 1) ** -0.5 + 1
    return (X / np.linalg.norm(X, axis=1, keepdims=True) if unit else X), y


def objective(coef: Array, intercept: Array, X: Array, y: Array, C: float) -> float:
    logits = X @ coef.T + intercept
    if logits.shape[1] == 1:
        loss = np.logaddexp(0, (1 - 2 * y) * logits[:, 0])
    else:
        loss = logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
    return float(np.square(coef).sum() / 2 + C * loss.sum())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("unit", [False, True])
def test_every_cell_is_at_its_optimum(classes: int, unit: bool) -> None:
    X, y = blobs(classes=classes, unit=unit)
    folds = np.arange(len(y)) % 3
    path = logistic_path(X.astype(np.float32), y, folds, CS)
    assert path.gaps.shape == (len(CS), 3)
    assert path.gaps.max() <= 3e-4
    for place, C in enumerate(CS):
        for k in range(3):
            rows = folds != k
            best = LogisticRegression(C=C, tol=1e-9, max_iter=50_000).fit(X[rows], y[rows])
            ours = objective(path.coef[place, k], path.intercept[place, k], X[rows], y[rows], C)
            assert ours <= objective(best.coef_, best.intercept_, X[rows], y[rows], C) * (1 + 1e-3)


@pytest.mark.parametrize("positives", [3, 8])
def test_labels_that_are_rare_end_at_their_optimum_too(positives: int) -> None:
    rng = np.random.default_rng(positives)
    X = rng.normal(size=(400, 300)) * np.arange(1, 301) ** -0.7 * 4
    y = np.zeros((400, 1))
    y[rng.permutation(400)[:positives]] = 1
    penalties, folds = np.logspace(-4, 4, 6), np.arange(400) % 2
    path, exact = (logistic_path(X.astype(np.float32), y, folds, penalties, tol=tol) for tol in (3e-4, 1e-8))
    for place, C in enumerate(penalties):
        for k in range(2):
            rows = folds != k
            ours, best = (
                objective(each.coef[place, k, :1], each.intercept[place, k, :1], X[rows], y[rows, 0], C)
                for each in (path, exact)
            )
            assert ours <= best * (1 + 1e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_scores_are_those_of_fits_that_did_not_see_the_row(classes: int) -> None:
    X, y = blobs(classes=classes)
    folds = np.where(np.arange(len(y)) < 250, np.arange(len(y)) % 3, -1)
    path = logistic_path(X, y, folds, [1.0, 0.01], tol=1e-7)
    assert np.isnan(path.scores[:, 250:]).all()
    for place, C in enumerate((1.0, 0.01)):
        probability = np.zeros((250, classes))
        for k in range(3):
            held = folds == k
            one = LogisticRegression(C=C, tol=1e-8, max_iter=5000).fit(X[~held], y[~held])
            probability[held[:250]] = one.predict_proba(X[held])
            ours = X[held] @ path.coef[place, k].T + path.intercept[place, k]
            assert np.allclose(ours.reshape(path.scores[place, held].shape), path.scores[place, held], atol=1e-4)
        assert path.losses[place] == pytest.approx(log_loss(y[:250], probability), rel=2e-3)
    assert path.best == (1.0, 0.01)[int(np.argmin(path.losses))]


def test_missing_labels_are_left_out_of_their_column() -> None:
    X, _ = blobs()
    rng = np.random.default_rng(1)
    y = (X[:, :3] + rng.normal(size=(len(X), 3)) > 1).astype(float)
    y[rng.random(y.shape) < 0.3] = np.nan
    y[:, 2] = np.where(np.arange(len(X)) % 3 == 0, y[:, 2], 0)
    folds = np.arange(len(X)) % 3
    path = logistic_path(X, y, folds, [0.1], tol=1e-7)
    assert path.scores.shape == (1, 300, 3)
    # Label 2 has positives in fold 0 only: there is nothing to learn outside it.
    assert np.isnan(path.scores[0, folds == 0, 2]).all()
    assert not np.isnan(path.scores[0, folds != 0, 2]).any()
    for label in range(2):
        rows = (folds != 1) & ~np.isnan(y[:, label])
        one = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(X[rows], y[rows, label])
        assert np.allclose(path.coef[0, 1, label], one.coef_[0], atol=5e-3)


def test_the_order_of_penalties_changes_nothing() -> None:
    X, y = blobs(classes=3)
    folds = np.arange(len(y)) % 3
    rising, falling = logistic_path(X, y, folds, CS), logistic_path(X, y, folds, CS[::-1])
    assert np.array_equal(rising.scores, falling.scores[::-1])


def test_wrong_input_is_refused() -> None:
    X, y = blobs()
    folds = np.arange(len(y)) % 3
    with pytest.raises(HeadError, match="must have the same rows"):
        logistic_path(X, y[1:], folds, CS)
    with pytest.raises(HeadError, match="not finite"):
        logistic_path(np.where(X > 2, np.inf, X), y, folds, CS)
    with pytest.raises(HeadError, match="expected positive numbers"):
        logistic_path(X, y, folds, [0.0, 1.0])
    with pytest.raises(HeadError, match="no fold has two classes"):
        logistic_path(X, np.zeros(len(y)), folds, CS)


@pytest.mark.parametrize("shape", [(90, 12), (40, 50)])
def test_fold_ridge_equals_scikit_learn(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    X, Y, weight = rng.normal(5, 1, size=shape), rng.normal(size=(shape[0], 2)), rng.uniform(0.5, 2, shape[0])
    fold, alphas = np.arange(shape[0]) % 4 - 1, np.array([0.1, 10.0])
    folds = list(fold_ridge(X, Y, weight, fold, alphas))
    assert len(folds) == 3
    for k, (held, coef, intercept) in enumerate(folds):
        assert np.array_equal(held, fold == k)
        for place, alpha in enumerate(alphas):
            one = Ridge(alpha=alpha).fit(X[~held], Y[~held], sample_weight=weight[~held])
            assert np.allclose(coef[place], one.coef_, atol=1e-9)
            assert np.allclose(intercept[place], one.intercept_, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_classifiers_fitted_in_one_go_equal_those_fitted_alone(classes: int) -> None:
    X, y = blobs(classes=classes)
    folds = [np.flatnonzero(np.arange(len(y)) % 3 != k) for k in range(3)]
    settings: list[Any] = ["auto", 0.01, 1.0, 1e4]
    jobs = [Job(LinearClassifier(C=C), rows) for C in settings for rows in folds]
    for job, head in zip(jobs, fit_many(jobs, X, y), strict=True):
        assert head is job.head
        alone = LinearClassifier(C=job.head.C).fit(X[job.rows], y[job.rows])
        assert head.C_ == alone.C_
        assert np.allclose(head.predict_proba(X), alone.predict_proba(X), rtol=0, atol=1e-5)


def test_regressors_fitted_in_one_go_equal_those_fitted_alone() -> None:
    X, _ = blobs()
    rng = np.random.default_rng(0)
    y = X[:, :2] + rng.normal(size=(len(X), 2))
    y[::7, 1] = np.nan
    rows = [np.arange(200), np.arange(100, 300)]
    jobs = [Job(LinearRegressor(alpha=alpha), each) for alpha in ("auto", 0.5, 50.0) for each in rows]
    for job, head in zip(jobs, fit_many(jobs, X, y), strict=True):
        alone = LinearRegressor(alpha=job.head.alpha).fit(X[job.rows], y[job.rows])
        assert np.array_equal(head.alpha_, alone.alpha_)
        assert np.allclose(head.predict(X), alone.predict(X), rtol=0, atol=1e-10)


def test_a_wrong_parameter_does_not_stop_the_others() -> None:
    X, y = blobs()
    rows = np.arange(200)
    wrong, right = fit_many([Job(LinearClassifier(C=-1.0), rows), Job(LinearClassifier(C=1.0), rows)], X, y)
    assert isinstance(wrong, HeadError)
    assert right.predict(X).shape == (300,)
    (one_class,) = fit_many([Job(LinearClassifier(C=1.0), np.flatnonzero(y == 0))], X, y)
    assert isinstance(one_class, HeadError)
