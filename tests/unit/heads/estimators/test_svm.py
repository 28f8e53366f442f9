"""The svm head predicts from its own arrays what scikit-learn's machines would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC, SVR

from data.split import make_folds
from heads.base import HeadWarning
from heads.errors import HeadError
from heads.estimators import _svm
from heads.estimators.svm import SVMClassifier, SVMRegressor
from heads.evaluation.calibration import fit_calibration
from heads.many import Job, fit_many
from heads.solvers import svm_grid
from heads.solvers.kernels import Kernels
from heads.solvers.svm_grid import grid_accuracies

Array = NDArray[Any]
KERNELS = pytest.mark.parametrize("kernel", ["rbf", "linear"])


def blobs(classes: int, n: int = 150, d: int = 12) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(classes)
    y = rng.integers(0, classes, n)
    return rng.normal(size=(n, d)) + 0.6 * rng.normal(size=(classes, d))[y], y, rng.normal(size=(60, d))


@KERNELS
def test_binary_margins_equal_scikit_learn(kernel: _svm.Kernel) -> None:
    X, y, new = blobs(2)
    ours = SVMClassifier(kernel=kernel, C=2.0, standardize=False).fit(X, y)
    reference = SVC(kernel=kernel, C=2.0).fit(X, y)
    assert np.abs(ours.margins(new)[:, 0] - reference.decision_function(new)).max() <= 1e-6
    assert len(ours.support_vectors_) == len(reference.support_)


@KERNELS
@pytest.mark.parametrize("classes", [3, 5])
def test_pairwise_margins_equal_scikit_learn(kernel: _svm.Kernel, classes: int) -> None:
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
def test_regression_equals_scikit_learn_on_standardised_targets(kernel: _svm.Kernel) -> None:
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
    fixed = {C: SVMClassifier(C=C, gamma=4.0).fit(X, y) for C in _svm.GRID}
    losses = {C: log_loss(truth, head.predict_proba(new)) for C, head in fixed.items()}
    chosen = SVMClassifier(gamma=4.0).fit(X, y)
    assert chosen.C_ == planted == min(losses, key=losses.__getitem__)
    assert np.array_equal(chosen.predict_proba(new), fixed[chosen.C_].predict_proba(new))


def test_one_penalty_serves_all_labels() -> None:
    X, clean = islands(400, 0.0, seed=0)
    Y = np.column_stack([clean, islands(400, 0.3, seed=0)[1], np.where(np.arange(400) % 3, clean, np.nan)])
    chosen = SVMClassifier(gamma=4.0).fit(X, Y)
    assert chosen.C_ in _svm.GRID
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
    errors = {C: np.square(SVMRegressor(C=C, gamma=1.0).fit(X, y).predict(new) - truth).mean() for C in _svm.GRID}
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
    assert head.C_ in ((3.0,) if C == 3.0 else _svm.GRID)
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
    assert head.C_ in _svm.GRID


def test_too_many_rows_are_refused_before_the_kernel_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_svm, "MAX_ROWS", 100)
    X, y, _ = blobs(2)
    with pytest.raises(HeadError, match="150 training rows; expected 100 at most"):
        SVMClassifier().fit(X, y)


def test_prediction_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, new = blobs(3)
    head = SVMClassifier().fit(X, y)
    whole = head.predict_proba(new)
    monkeypatch.setattr(_svm, "BLOCK", 7)
    assert np.allclose(head.predict_proba(new), whole, rtol=0, atol=1e-12)


def test_heads_fitted_in_one_go_equal_those_fitted_alone() -> None:
    X, y, new = blobs(3)
    rows = [np.arange(0, 120), np.arange(30, 150)]
    settings: list[dict[str, Any]] = [
        {"C": 1.0},
        {"C": 10.0, "gamma": 0.1},
        {"C": 10.0, "gamma": "auto"},
        {"C": 0.1, "kernel": "linear"},
        {"kernel": "linear"},
        {"C": 2.0, "gamma": 0.1, "standardize": False},
    ]
    jobs = [Job(SVMClassifier(**each), own) for each in settings for own in rows]
    for job, head in zip(jobs, fit_many(jobs, X, y), strict=True):
        assert isinstance(head, SVMClassifier)
        alone = SVMClassifier(**job.head.get_params()).fit(X[job.rows], y[job.rows])
        assert head.C_ == alone.C_
        assert np.array_equal(head.predict_proba(new), alone.predict_proba(new))


def test_regressors_fitted_in_one_go_equal_those_fitted_alone() -> None:
    X, _, new = blobs(2)
    y, rows = X[:, 0] + 0.1 * X[:, 1], np.arange(100)
    jobs = [Job(SVMRegressor(C=C, kernel=kernel), rows) for C in (0.1, 1.0) for kernel in ("rbf", "linear")]
    for job, head in zip(jobs, fit_many(jobs, X, y), strict=True):
        assert isinstance(head, SVMRegressor)
        alone = SVMRegressor(**job.head.get_params()).fit(X[rows], y[rows])
        assert np.array_equal(head.predict(new), alone.predict(new))


def sklearn_search(X: Array, y: Array, fold: Array) -> GridSearchCV:
    """Return scikit-learn's own search over the grid, on given folds."""
    splits = [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(fold.max() + 1)]
    space = {"C": [0.1, 1, 10, 100], "kernel": ["linear", "rbf"], "gamma": ["scale", "auto", 0.1, 0.01]}
    return GridSearchCV(SVC(), space, cv=splits, scoring="accuracy").fit(X, y)


@pytest.mark.parametrize("classes", [2, 3])
def test_grid_search_equals_scikit_learn_on_the_same_folds(classes: int) -> None:
    X, y, new = blobs(classes)
    groups = np.arange(len(X)) // 2
    head = SVMClassifier(search="grid", standardize=False).fit(X, y, groups=groups)
    fold = make_folds(y, "binary" if classes == 2 else "multiclass", groups, 5, 0).assignment
    theirs = sklearn_search(X, y, fold)
    ours = grid_accuracies(Kernels(X), y, np.ones(len(y)), fold)
    points = [dict(point._asdict()) for point in svm_grid.GRID]
    assert points == theirs.cv_results_["params"]
    assert np.array_equal(ours, np.stack([theirs.cv_results_[f"split{k}_test_score"] for k in range(5)], axis=1))
    assert head.best_params_ == theirs.best_params_
    assert theirs.best_params_["C"] == head.C_
    margins = theirs.best_estimator_.set_params(decision_function_shape="ovo").decision_function(new)
    sign = 1 if classes == 2 else -1
    assert np.abs(sign * head.margins(new) - margins.reshape(len(new), -1)).max() <= 1e-6


@pytest.mark.parametrize("classes", [2, 4])
def test_without_calibration_the_answers_are_those_of_scikit_learn(classes: int) -> None:
    X, y, new = blobs(classes)
    head = SVMClassifier(C=3.0, platt=False, standardize=False).fit(X, y)
    reference = SVC(C=3.0).fit(X, y)
    if classes == 2:
        assert np.array_equal(head.predict(new), reference.predict(new))
        assert np.abs(head.decision_function(new) - reference.decision_function(new)).max() <= 1e-6
    calibrated = SVMClassifier(C=3.0, standardize=False).fit(X, y)
    assert np.array_equal(head.margins(new), calibrated.margins(new))
    probability = head.predict_proba(new)
    assert np.allclose(probability.sum(axis=1), 1)
    assert np.array_equal(head.predict(new), head.classes_[probability.argmax(axis=1)])


def test_without_calibration_the_penalty_is_given() -> None:
    X, y, _ = blobs(2)
    with pytest.raises(HeadError, match="svm: C=auto is chosen by calibrated probabilities; give C, or platt=true"):
        SVMClassifier(platt=False).fit(X, y)
    assert SVMClassifier(platt=False, search="grid").fit(X, y).slope_.tolist() == [1]


def test_grid_search_leaves_no_room_for_what_it_chooses() -> None:
    X, y, _ = blobs(2)
    with pytest.raises(HeadError, match="search=grid chooses C, kernel and gamma; leave them out"):
        SVMClassifier(search="grid", C=1.0).fit(X, y)


def test_the_state_keeps_the_point_chosen() -> None:
    X, y, new = blobs(2)
    head = SVMClassifier(search="grid").fit(X, y)
    restored = SVMClassifier.from_state(head.get_params(), head.get_state())
    assert restored.best_params_ == head.best_params_
    assert np.array_equal(restored.predict_proba(new), head.predict_proba(new))


def test_one_grid_search_serves_all_labels_and_too_few_rows_are_said() -> None:
    X, y, _ = blobs(2)
    Y = np.column_stack([y, np.where(np.arange(len(y)) % 4, X[:, 0] > 0, np.nan)]).astype(float)
    head = SVMClassifier(search="grid").fit(X, Y)
    assert head.predict_proba(X).shape == (150, 2)
    with pytest.warns(HeadWarning, match="too few groups for a grid search on 5 inner folds"):
        few = SVMClassifier(search="grid").fit(X, y, groups=np.arange(len(y)) % 3)
    assert few.best_params_ == {"C": 1.0, "gamma": "scale", "kernel": "rbf"}
