"""The svm head predicts from its own arrays what scikit-learn's machines would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import log_loss
from sklearn.svm import SVC, SVR

from heads.base import HeadWarning
from heads.calibration import fit_calibration
from heads.errors import HeadError
from heads.estimators import svm
from heads.estimators.svm import SVMClassifier, SVMRegressor

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
    ours = SVMClassifier(C=1.0, kernel=kernel, standardize=False).fit(X, y)
    reference = SVC(kernel=kernel, decision_function_shape="ovo").fit(X, y)
    assert np.abs(-ours.margins(new) - reference.decision_function(new)).max() <= 1e-6


def test_multilabel_margins_equal_one_machine_per_label() -> None:
    X, _, new = blobs(2)
    rng = np.random.default_rng(0)
    Y = (X[:, :3] + 0.5 * rng.normal(size=(len(X), 3)) > 0).astype(float)
    Y[rng.random(Y.shape) < 0.3] = np.nan
    ours = SVMClassifier(C=1.0, standardize=False, gamma=0.05).fit(X, Y)
    for label in range(3):
        rows = ~np.isnan(Y[:, label])
        reference = SVC(gamma=0.05).fit(X[rows], Y[rows, label])
        assert np.abs(ours.margins(new)[:, label] - reference.decision_function(new)).max() <= 1e-6


@pytest.mark.parametrize("gamma", ["scale", "auto", 0.02])
def test_gamma_means_what_it_means_in_scikit_learn(gamma: Any) -> None:
    X, y, new = blobs(2)
    ours = SVMClassifier(C=1.0, gamma=gamma, standardize=False).fit(3 * X, y)
    reference = SVC(gamma=gamma).fit(3 * X, y)
    assert np.abs(ours.margins(new)[:, 0] - reference.decision_function(new)).max() <= 1e-6


def test_balanced_weights_equal_scikit_learn() -> None:
    X, y, new = blobs(3)
    y = np.where((y == 2) & (np.arange(len(y)) % 3 > 0), 0, y)
    ours = SVMClassifier(C=1.0, class_weight="balanced", standardize=False).fit(X, y)
    reference = SVC(class_weight="balanced", decision_function_shape="ovo").fit(X, y)
    assert np.abs(-ours.margins(new) - reference.decision_function(new)).max() <= 1e-6


@KERNELS
def test_regression_equals_scikit_learn_on_standardised_targets(kernel: svm.Kernel) -> None:
    X, _, new = blobs(2)
    y = 50 + 20 * X[:, 0] + np.random.default_rng(0).normal(size=len(X))
    ours = SVMRegressor(C=1.0, kernel=kernel, standardize=False).fit(X, y)
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
    blind = SVMClassifier(C=1.0).fit(X, y)
    aware = SVMClassifier(C=1.0).fit(X, y, groups=np.repeat(np.arange(40), 4))
    assert aware.slope_[0] < blind.slope_[0] / 4


def test_calibration_finds_the_slope_that_made_the_labels() -> None:
    rng = np.random.default_rng(0)
    score = rng.normal(size=20_000)
    y = (rng.random(20_000) < expit(2.5 * score - 0.7)).astype(int)
    slope, offset, loss = fit_calibration(np.column_stack([-score / 2, score / 2]), y, np.ones(len(y)))
    assert slope == pytest.approx(2.5, abs=0.1)
    assert offset[1] - offset[0] == pytest.approx(-0.7, abs=0.06)
    assert loss == pytest.approx(log_loss(y, expit(2.5 * score - 0.7)), abs=1e-3)


def test_calibration_keeps_the_order_of_scores() -> None:
    score = np.linspace(-1, 1, 50)
    slope, *_ = fit_calibration(np.column_stack([-score, score]), (score < 0).astype(int), np.ones(50))
    assert slope > 0


def islands(n: int, noise: float, seed: int) -> tuple[Array, Array]:
    """Return a checkerboard of two classes with some labels turned."""
    rng = np.random.default_rng(seed)
    X = rng.uniform(-2, 2, size=(n, 2))
    y = (np.floor(X).sum(axis=1) % 2 == 0) ^ (rng.random(n) < noise)
    return X, y.astype(int)


@pytest.mark.parametrize(("noise", "planted"), [(0.0, 100.0), (0.3, 1.0)])
def test_auto_takes_the_penalty_that_rows_not_seen_like_best(noise: float, planted: float) -> None:
    X, y = islands(800, noise, seed=0)
    new, truth = islands(4000, noise, seed=1)
    fixed = {C: SVMClassifier(C=C, gamma=4.0).fit(X, y) for C in svm.GRID}
    losses = {C: log_loss(truth, head.predict_proba(new)) for C, head in fixed.items()}
    chosen = SVMClassifier(gamma=4.0).fit(X, y)
    assert chosen.C_ == planted == min(losses, key=losses.__getitem__)
    assert np.array_equal(chosen.predict_proba(new), fixed[chosen.C_].predict_proba(new))


def test_one_penalty_serves_all_labels() -> None:
    X, clean = islands(400, 0.0, seed=0)
    Y = np.column_stack([clean, islands(400, 0.3, seed=0)[1], np.where(np.arange(400) % 3, clean, np.nan)])
    chosen = SVMClassifier(gamma=4.0).fit(X, Y)
    assert chosen.C_ in svm.GRID
    assert chosen.slope_.shape == (3,)
    assert np.array_equal(chosen.predict_proba(X), SVMClassifier(C=chosen.C_, gamma=4.0).fit(X, Y).predict_proba(X))


@pytest.mark.parametrize(("noise", "planted"), [(0.0, 100.0), (2.0, 0.1)])
def test_auto_takes_the_penalty_of_the_lowest_squared_error(noise: float, planted: float) -> None:
    def waves(n: int, seed: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(seed)
        X = rng.uniform(-3, 3, size=(n, 2))
        signal = np.sin(2 * X[:, 0]) * np.cos(2 * X[:, 1])
        return X, 30 + 10 * np.column_stack([signal, -signal]) + 10 * noise * rng.normal(size=(n, 2))

    X, y = waves(300, seed=0)
    new, truth = waves(2000, seed=1)
    errors = {C: np.square(SVMRegressor(C=C, gamma=1.0).fit(X, y).predict(new) - truth).mean() for C in svm.GRID}
    chosen = SVMRegressor(gamma=1.0).fit(X, y)
    assert chosen.C_ == planted == min(errors, key=errors.__getitem__)
    assert np.square(chosen.predict(new) - truth).mean() == errors[planted]


def test_the_penalty_of_a_linear_kernel_goes_with_the_scale_of_the_features() -> None:
    X, y, _ = blobs(2)
    for scale in (1, 50):
        head = SVMClassifier(kernel="linear", standardize=False).fit(scale * X, y)
        assert head.C_ * np.square(scale * X).sum(axis=1).mean() == pytest.approx(0.1)


def test_groups_decide_which_penalty_wins() -> None:
    # Copies of a row on both sides of an inner fold would make learning by heart look best.
    rng = np.random.default_rng(0)
    X, y = np.repeat(rng.normal(size=(60, 5)), 4, axis=0), np.repeat(rng.integers(0, 2, 60), 4)
    groups = np.repeat(np.arange(60), 4)
    for made in (SVMClassifier, SVMRegressor):
        blind, aware = made(gamma=1.0).fit(X, y), made(gamma=1.0).fit(X, y, groups=groups)
        assert aware.C_ < blind.C_


@pytest.mark.parametrize("made", [SVMClassifier, SVMRegressor])
@pytest.mark.parametrize("C", ["auto", 3.0])
def test_the_state_keeps_the_penalty_used(made: type[SVMClassifier | SVMRegressor], C: Any) -> None:
    X, y, new = blobs(2)
    head = made(C=C).fit(X, y)
    restored = made.from_state(head.get_params(), head.get_state())
    assert restored.C == C
    assert restored.C_ == head.C_
    assert head.C_ in ((3.0,) if C == 3.0 else svm.GRID)
    assert np.array_equal(restored.predict(new), head.predict(new))


@pytest.mark.filterwarnings("ignore::heads.base.HeadWarning")
def test_too_few_rows_for_inner_folds_are_said() -> None:
    head = SVMClassifier().fit([[0.0], [1.0]], ["a", "b"])
    assert head.predict([[0.0], [1.0]]).tolist() == ["a", "b"]
    assert head.C_ == 1.0
    assert head.notes_ == [
        "too few groups to choose C on 3 inner folds, so C=1 is used",
        "too few groups of each class for 3 inner folds, so probabilities are not calibrated",
    ]
    regressor = SVMRegressor().fit([[0.0], [1.0]], [0.0, 1.0])
    assert regressor.C_ == 1.0
    assert regressor.notes_ == head.notes_[:1]
    with pytest.warns(HeadWarning, match="not calibrated"):
        assert len(SVMClassifier(C=2.0).fit([[0.0], [1.0]], ["a", "b"]).notes_) == 1


def test_a_label_that_no_inner_fold_can_learn_is_named() -> None:
    X, y, _ = blobs(2)
    groups = np.arange(len(X)) // 2
    Y = np.column_stack([np.ones(len(X)), y, groups == 0]).astype(float)
    with pytest.warns(HeadWarning) as warned:
        head = SVMClassifier().fit(X, Y, groups=groups)
    assert [str(each.message).split(":")[0] for each in warned] == ["svm", "svm"]
    assert "probabilities of target 2 are not calibrated" in head.notes_[1]
    assert head.slope_[1] == 1
    assert head.C_ in svm.GRID


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
