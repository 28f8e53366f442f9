"""The linear head and its solvers against scikit-learn: equal optimum, not merely similar predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression, Ridge

from heads.base import HeadWarning
from heads.estimators.linear import LinearClassifier, LinearRegressor
from heads.solvers import logistic
from heads.solvers.logistic import Design, fit_logistic
from heads.solvers.ridge import ridge_path

Array = NDArray[Any]
CS = (1e-4, 1e-2, 1.0, 1e2, 1e4)


def blobs(n: int, d: int, classes: int, noise: float, *, unit: bool = False, seed: int = 0) -> tuple[Array, Array]:
    """Rows with a falling spectrum round one centre per class; `unit` puts them on a cone of the unit sphere."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, d + 1) ** -0.7
    y = rng.integers(0, classes, n)
    X = rng.normal(size=(classes, d))[y] * spectrum * 0.7 + rng.normal(size=(n, d)) * spectrum * noise
    if unit:
        X = (X + 1) / np.linalg.norm(X + 1, axis=1, keepdims=True)
    return X, y


def objective(coef: Array, intercept: Array, X: Array, y: Array, C: float, weight: Array | None = None) -> float:
    """scikit-learn's objective over C x the total weight, in float64."""
    logits = X @ coef.T + intercept
    if logits.shape[1] == 1:
        loss = np.logaddexp(0, (1 - 2 * y) * logits[:, 0])
    else:
        loss = logsumexp(logits, axis=1) - logits[np.arange(len(y)), y]
    weight = np.ones(len(y)) if weight is None else weight
    return float((np.square(coef).sum() / 2 + C * (weight * loss).sum()) / (C * weight.sum()))


def solve(
    X: Array, y: Array, C: float, classes: int, weight: Array | None = None, tol: float = 1e-6
) -> logistic.Solution:
    weight = np.ones(len(y)) if weight is None else weight
    labels = y if classes > 2 else y[None].astype(float)
    return fit_logistic(Design.of(X), labels, weight[None], C, classes=classes, tol=tol)


SETS = {
    "overlapping": blobs(400, 30, 2, 3.0),
    "separable": blobs(400, 30, 2, 0.5),
    "wide": blobs(60, 150, 2, 1.0),
    "overlapping, 4 classes": blobs(400, 30, 4, 3.0),
    "separable, 4 classes": blobs(300, 30, 4, 0.3),
    "wide, 4 classes": blobs(60, 150, 4, 1.0),
    "unit rows, 5 classes": blobs(400, 40, 5, 1.0, unit=True),
    "separable unit rows, 3 classes": blobs(300, 60, 3, 0.1, unit=True),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("C", CS)
@pytest.mark.parametrize("name", SETS)
def test_reaches_the_optimum_of_scikit_learn(name: str, C: float) -> None:
    X, y = SETS[name]
    classes = y.max() + 1
    ours = solve(X, y, C, classes)
    reference = LogisticRegression(C=C, tol=1e-8, max_iter=20_000).fit(X, y)
    reached = objective(ours.coef[0], ours.intercept[0], X, y, C)
    expected = objective(reference.coef_, reference.intercept_, X, y, C)
    assert reached <= expected * (1 + 1e-4)
    # What the solver says of itself is true.
    assert ours.objective[0] == pytest.approx(reached, rel=1e-9)
    assert ours.gap[0] <= 1e-6 * reached
    assert reached - expected <= ours.gap[0] * 1.5 + 1e-12


def test_row_weights_are_repetitions() -> None:
    X, y = SETS["overlapping, 4 classes"]
    times = np.random.default_rng(9).integers(0, 4, len(y))
    weighted = solve(X, y, 0.1, 4, times.astype(float), tol=1e-10)
    repeated = solve(np.repeat(X, times, axis=0), np.repeat(y, times), 0.1, 4, tol=1e-10)
    assert np.allclose(weighted.coef, repeated.coef, atol=1e-4)
    assert weighted.objective == pytest.approx(repeated.objective, rel=2e-10)


def test_problems_solved_together_equal_problems_solved_alone() -> None:
    X, y = SETS["overlapping, 4 classes"]
    weight = (np.arange(len(y)) % 5 != np.arange(5)[:, None]).astype(float)
    design = Design.of(X)
    together = fit_logistic(design, y, weight, 1.0, classes=4, tol=1e-8)
    for fold in range(5):
        alone = fit_logistic(design, y, weight[[fold]], 1.0, classes=4, tol=1e-8)
        assert together.objective[fold] == pytest.approx(alone.objective[0], rel=2e-8)
        rows = weight[fold] > 0
        reference = LogisticRegression(C=1.0, tol=1e-8, max_iter=2000).fit(X[rows], y[rows])
        scores = X @ together.coef[fold].T + together.intercept[fold]
        assert np.allclose(scores - scores.mean(1, keepdims=True), reference.decision_function(X), atol=5e-3)


def test_missing_labels_have_no_weight() -> None:
    rng = np.random.default_rng(1)
    X, _ = SETS["overlapping"]
    Y = (X[:, :3] + rng.normal(size=(len(X), 3)) > 0).astype(float)
    weight = (rng.random(Y.shape) < 0.6).astype(float)
    solved = fit_logistic(Design.of(X), Y.T, weight.T, 0.5, tol=1e-8)
    for label in range(3):
        rows = weight[:, label] > 0
        reference = LogisticRegression(C=0.5, tol=1e-8, max_iter=2000).fit(X[rows], Y[rows, label])
        assert np.allclose(solved.coef[label], reference.coef_, atol=2e-3)
        held = solved.losses[label, ~rows]
        expected = -reference.predict_log_proba(X[~rows])[np.arange((~rows).sum()), Y[~rows, label].astype(int)]
        assert np.allclose(held, expected, atol=5e-3)


def test_a_class_absent_from_a_problem_does_not_diverge() -> None:
    X, y = SETS["overlapping, 4 classes"]
    solved = fit_logistic(Design.of(X), y, (y != 2).astype(float)[None], 1.0, classes=4, tol=1e-4)
    assert np.isfinite(solved.coef).all()
    assert np.abs(solved.intercept).max() < 100


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = SETS["overlapping, 4 classes"]
    weight = (np.arange(len(y)) % 5 != np.arange(5)[:, None]).astype(float)
    whole = fit_logistic(Design.of(X), y, weight, 1.0, classes=4)
    monkeypatch.setattr(logistic, "BLOCK", 2 * len(y) * 4)
    parts = fit_logistic(Design.of(X), y, weight, 1.0, classes=4)
    assert parts.losses.shape == whole.losses.shape
    assert np.allclose(parts.objective, whole.objective, rtol=1e-9)


@pytest.mark.parametrize("shape", [(80, 12), (20, 50)])
def test_ridge_path_equals_scikit_learn(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    X, Y, weight = rng.normal(size=shape) + 3, rng.normal(size=(shape[0], 2)), rng.uniform(0, 2, shape[0])
    weight[:3] = 0
    alphas = np.array([1e-2, 1.0, 1e3])
    coef, intercept = ridge_path(X, Y, weight, alphas)
    for place, alpha in enumerate(alphas):
        reference = Ridge(alpha=alpha, solver="svd").fit(X, Y, sample_weight=weight)
        assert np.allclose(coef[place], reference.coef_, atol=1e-7)
        assert np.allclose(intercept[place], reference.intercept_, atol=1e-6)


def test_the_chosen_strength_suits_the_data() -> None:
    X, y = blobs(300, 40, 2, 4.0)
    rng = np.random.default_rng(0)
    noise = LinearClassifier().fit(X, rng.permutation(y))
    signal = LinearClassifier().fit(*blobs(300, 40, 2, 0.8))
    assert noise.C_ < signal.C_ / 10


def test_the_choice_does_not_depend_on_the_unit_of_the_features() -> None:
    X, y = blobs(200, 20, 3, 2.0)
    plain = LinearClassifier(standardize=False).fit(X, y)
    scaled = LinearClassifier(standardize=False).fit(X * 1000, y)
    assert float(scaled.C_) == pytest.approx(plain.C_ / 1e6)
    assert np.allclose(scaled.predict_proba(X * 1000), plain.predict_proba(X), atol=1e-3)


def test_groups_reach_the_inner_folds() -> None:
    # Copies of a row share a group: only folds that keep them together see that nothing generalises.
    rng = np.random.default_rng(0)
    X, y = np.repeat(rng.normal(size=(40, 60)), 5, axis=0), np.repeat(rng.integers(0, 2, 40), 5)
    X = X + rng.normal(scale=1e-3, size=X.shape)
    blind = LinearClassifier().fit(X, y)
    aware = LinearClassifier().fit(X, y, groups=np.repeat(np.arange(40), 5))
    assert aware.C_ < blind.C_ / 10


def test_too_few_rows_to_choose_are_said() -> None:
    X = np.array([[0.0], [1.0]])
    with pytest.warns(HeadWarning, match="too few rows of each class"):
        head = LinearClassifier().fit(X, [0, 1])
    assert head.predict(X).tolist() == [0, 1]
    with pytest.warns(HeadWarning, match="too few values"):
        assert np.isfinite(LinearRegressor().fit(X, [0.0, 1.0], groups=[0, 0]).predict(X)).all()


def test_the_decision_function_is_the_log_odds() -> None:
    X, y = SETS["overlapping"]
    head = LinearClassifier(C=0.1).fit(X, y)
    probability = head.predict_proba(X)
    assert np.allclose(head.decision_function(X), np.log(probability[:, 1] / probability[:, 0]))
    assert np.array_equal(head.predict(X), head.decision_function(X) > 0)


def test_balanced_classes_equal_scikit_learn() -> None:
    X, y = SETS["overlapping"]
    y = (y & (np.arange(len(y)) % 4 == 0)).astype(int)
    ours = LinearClassifier(C=0.3, standardize=False, class_weight="balanced").fit(X, y)
    reference = LogisticRegression(C=0.3, class_weight="balanced", tol=1e-8, max_iter=2000).fit(X, y)
    assert np.allclose(ours.predict_proba(X), reference.predict_proba(X), atol=1e-4)


def test_targets_of_a_regression_choose_their_own_alpha() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 30))
    y = np.column_stack([X @ rng.normal(size=30), rng.normal(size=100)])
    y[::7, 1] = np.nan
    head = LinearRegressor().fit(X, y)
    assert head.alpha_[0] < head.alpha_[1] / 100
    complete = LinearRegressor(alpha=float(head.alpha_[1])).fit(X[~np.isnan(y[:, 1])], y[~np.isnan(y[:, 1]), 1])
    assert np.allclose(head.predict(X)[:, 1], complete.predict(X), atol=0.05)
