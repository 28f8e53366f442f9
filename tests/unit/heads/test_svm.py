"""The svm head predicts from its own arrays what scikit-learn's machines would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.svm import SVC, SVR

from heads.base import HeadWarning
from heads.errors import HeadError
from heads.estimators import svm
from heads.estimators.svm import SVMClassifier, SVMRegressor, fit_calibration

Array = NDArray[Any]
KERNELS = pytest.mark.parametrize("kernel", ["rbf", "linear"])


def blobs(classes: int, n: int = 150, d: int = 12) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(classes)
    y = rng.integers(0, classes, n)
    return rng.normal(size=(n, d)) + 0.6 * rng.normal(size=(classes, d))[y], y, rng.normal(size=(60, d))


@KERNELS
def test_binary_margins_equal_scikit_learn(kernel: svm.Kernel) -> None:
    X, y, new = blobs(2)
    ours = SVMClassifier(kernel=kernel, C=2.0, standardize=False).fit(X, y)
    reference = SVC(kernel=kernel, C=2.0).fit(X, y)
    assert np.abs(ours.margins(new)[:, 0] - reference.decision_function(new)).max() <= 1e-6
    assert len(ours.support_vectors_) == len(reference.support_)


@KERNELS
@pytest.mark.parametrize("classes", [3, 5])
def test_pairwise_margins_equal_scikit_learn(kernel: svm.Kernel, classes: int) -> None:
    X, y, new = blobs(classes)
    ours = SVMClassifier(kernel=kernel, standardize=False).fit(X, y)
    reference = SVC(kernel=kernel, decision_function_shape="ovo").fit(X, y)
    assert np.abs(-ours.margins(new) - reference.decision_function(new)).max() <= 1e-6


def test_multilabel_margins_equal_one_machine_per_label() -> None:
    X, _, new = blobs(2)
    rng = np.random.default_rng(0)
    Y = (X[:, :3] + 0.5 * rng.normal(size=(len(X), 3)) > 0).astype(float)
    Y[rng.random(Y.shape) < 0.3] = np.nan
    ours = SVMClassifier(standardize=False, gamma=0.05).fit(X, Y)
    for label in range(3):
        rows = ~np.isnan(Y[:, label])
        reference = SVC(gamma=0.05).fit(X[rows], Y[rows, label])
        assert np.abs(ours.margins(new)[:, label] - reference.decision_function(new)).max() <= 1e-6


@pytest.mark.parametrize("gamma", ["scale", "auto", 0.02])
def test_gamma_means_what_it_means_in_scikit_learn(gamma: Any) -> None:
    X, y, new = blobs(2)
    ours = SVMClassifier(gamma=gamma, standardize=False).fit(3 * X, y)
    reference = SVC(gamma=gamma).fit(3 * X, y)
    assert np.abs(ours.margins(new)[:, 0] - reference.decision_function(new)).max() <= 1e-6


def test_balanced_weights_equal_scikit_learn() -> None:
    X, y, new = blobs(3)
    y = np.where((y == 2) & (np.arange(len(y)) % 3 > 0), 0, y)
    ours = SVMClassifier(class_weight="balanced", standardize=False).fit(X, y)
    reference = SVC(class_weight="balanced", decision_function_shape="ovo").fit(X, y)
    assert np.abs(-ours.margins(new) - reference.decision_function(new)).max() <= 1e-6


@KERNELS
def test_regression_equals_scikit_learn_on_standardised_targets(kernel: svm.Kernel) -> None:
    X, _, new = blobs(2)
    y = 50 + 20 * X[:, 0] + np.random.default_rng(0).normal(size=len(X))
    ours = SVMRegressor(kernel=kernel, standardize=False).fit(X, y)
    reference = SVR(kernel=kernel).fit(X, (y - y.mean()) / y.std())
    assert np.abs((ours.predict(new) - y.mean()) / y.std() - reference.predict(new)).max() <= 1e-6


def test_probabilities_are_calibrated_on_rows_not_seen() -> None:
    # Labels are noise: machines separate their own rows perfectly, yet no probability may be sure.
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 80)), rng.integers(0, 2, 200)
    head = SVMClassifier(C=100.0).fit(X, y)
    assert ((head.margins(X)[:, 0] > 0) == y).all()
    assert np.abs(head.predict_proba(X) - 0.5).max() < 0.3


def test_groups_reach_the_inner_folds() -> None:
    rng = np.random.default_rng(0)
    X, y = np.repeat(rng.normal(size=(40, 60)), 4, axis=0), np.repeat(np.arange(40) % 2, 4)
    X = X + rng.normal(scale=1e-3, size=X.shape)
    blind = SVMClassifier().fit(X, y)
    aware = SVMClassifier().fit(X, y, groups=np.repeat(np.arange(40), 4))
    assert aware.slope_[0] < blind.slope_[0] / 4


def test_calibration_finds_the_slope_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=20_000)
    y = (rng.random(20_000) < expit(2.5 * score - 0.7)).astype(int)
    slope, offset = fit_calibration(np.column_stack([-score / 2, score / 2]), y, np.ones(len(y)))
    assert slope == pytest.approx(2.5, abs=0.1)
    assert offset[1] - offset[0] == pytest.approx(-0.7, abs=0.06)


def test_calibration_keeps_the_order_of_scores() -> None:
    score = np.linspace(-1, 1, 50)
    slope, _ = fit_calibration(np.column_stack([-score, score]), (score < 0).astype(int), np.ones(50))
    assert slope > 0


def test_too_few_rows_for_inner_folds_are_said() -> None:
    with pytest.warns(HeadWarning, match="not calibrated"):
        head = SVMClassifier().fit([[0.0], [1.0]], ["a", "b"])
    assert head.predict([[0.0], [1.0]]).tolist() == ["a", "b"]


def test_too_many_rows_are_refused_before_the_kernel_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svm, "MAX_ROWS", 100)
    X, y, _ = blobs(2)
    with pytest.raises(HeadError, match="150 training rows; expected 100 at most"):
        SVMClassifier().fit(X, y)


def test_prediction_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, new = blobs(3)
    head = SVMClassifier().fit(X, y)
    whole = head.predict_proba(new)
    monkeypatch.setattr(svm, "BLOCK", 7)
    assert np.allclose(head.predict_proba(new), whole, rtol=0, atol=1e-12)
