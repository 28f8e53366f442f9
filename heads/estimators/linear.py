"""Linear probe: logistic or ridge regression that finds the strength of its penalty by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax

from data.split import make_folds
from heads.base import (
    ClassifierHead,
    ClassWeight,
    Floats,
    Positive,
    Range,
    RegressorHead,
    SearchSpace,
    Training,
)
from heads.solvers.ridge import fold_ridge, ridge_path
from heads.together import SharingHead

INNER_FOLDS = 5
GRID = np.logspace(-5, 1.5, 14)
"""Values of C tried by ``auto``, for features of mean variance 1; they are divided by the mean variance."""
STEP = 20
"""Columns (inner folds x labels x classes) of values of C that are tried at once, if one has not more."""
MIDDLE = 1e-2
"""Used, with a warning, where the training rows are too few to try any."""


class LinearClassifier(SharingHead, ClassifierHead):
    """Logistic regression with an L2 penalty; softmax over classes, one sigmoid per label for multilabel.

    Parameters
    ----------
    C
        Inverse strength of the penalty, as in scikit-learn: 1/2 |w|^2 + C sum_i loss_i. ``auto`` takes
        the value with the lowest log loss on inner folds of the training rows, which are
        stratified and do not split groups; one value serves all labels.
    standardize
        Whether to centre and scale the features by the training rows.
    class_weight
        None or ``balanced``.
    random_state
        Seed of the inner folds.

    Attributes
    ----------
    C_
        The value of C used.
    coef_, intercept_
        Weights of shape (C, d), (1, d) for two classes or (T, d) for T learned labels, and (C,), (1,) or (T,).

    Notes
    -----
    One core solves all inner folds and labels together to a bounded distance from the optimum; see
    `heads.solvers.logistic`. Inner folds share the standardisation of all training rows. Values of C that
    are fitted together to the same rows share one decomposition; they are within 1e-10 of their optimum as
    those fitted alone are, and probabilities agree to about 1e-5.
    """

    name = "linear"
    uses_torch = True
    varied: ClassVar[frozenset[str]] = frozenset({"C"})

    def __init__(
        self,
        *,
        C: Positive | Literal["auto"] = "auto",
        standardize: bool = True,
        class_weight: ClassWeight = None,
        random_state: int = 0,
    ) -> None:
        self.C = C
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"C": Range(1e-5, 1e1, log=True)}

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return log odds: (n,) for two classes, (n, C) for more, (n, T) for multilabel."""
        return self._expand(self._decide, X, constant=lambda probability: 2 * probability - 1)

    def _decide(self, X: Floats) -> Floats:
        scores: Floats = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if self.kind_ == "binary" else scores

    def _predict_proba(self, X: Floats) -> Floats:
        scores = self._decide(X)
        if self.kind_ == "multiclass":
            return np.asarray(softmax(scores, axis=1))
        positive = expit(scores)
        return np.stack([1 - positive, positive], axis=1) if self.kind_ == "binary" else positive

    @classmethod
    def _fit_all(cls, heads: Sequence[Self], training: Training) -> None:
        from heads.solvers.logistic import Design, fit_logistic

        design = Design.of(training.X)
        labels, weight = _columns(training)
        automatic = [head for head in heads if head.C == "auto"]
        if automatic:
            automatic[0]._choose_strength(design, training)
        for head in heads:
            head.C_ = automatic[0].C_ if head.C == "auto" else float(head.C)
        for head in automatic:
            head.notes_ = list(automatic[0].notes_)
        solution = fit_logistic(
            design,
            labels if training.kind != "multilabel" else np.tile(labels, (len(heads), 1)),
            np.tile(weight, (len(heads), 1)),
            np.repeat([head.C_ for head in heads], len(weight)),
            classes=training.classes,
        )
        for place, head in enumerate(heads):
            coef, intercept = (np.split(values, len(heads))[place] for values in (solution.coef, solution.intercept))
            softmax = training.kind == "multiclass"
            head.coef_, head.intercept_ = (coef[0], intercept[0]) if softmax else (coef[:, 0], intercept[:, 0])

    def _choose_strength(self, design: Any, training: Training) -> None:
        """Set the C of the lowest log loss on inner folds, climbing from the strongest penalty until it rises."""
        from heads.paths import FoldProblems

        scale = max(float(design.variance.sum()) / training.X.shape[1], float(np.finfo(np.float64).tiny))
        fold = _inner_folds(training, self.random_state)
        problems = FoldProblems.of(*_columns(training), fold, training.classes)
        if not len(problems.problems):
            self._note(f"too few rows of each class to choose C on inner folds, so C={MIDDLE / scale:g} is used")
            self.C_ = float(MIDDLE / scale)
            return
        losses: list[float] = []
        for solution in problems.solve(design, (GRID / scale).tolist(), tol=1e-3, at_once=STEP):
            losses += map(problems.held_out_loss, problems.held_out_scores(solution))
            if len(losses) - np.argmin(losses) > 2:
                break
        self.C_ = float(GRID[np.argmin(losses)] / scale)


class LinearRegressor(SharingHead, RegressorHead):
    """Ridge regression; missing values are left out, per target.

    Parameters
    ----------
    alpha
        Strength of the penalty, as in scikit-learn: sum_i (y_i - x_i w - b)^2 + alpha |w|^2. ``auto``
        takes, for each target, the value with the lowest squared error on inner folds of the
        training rows, which do not split groups.
    standardize
        Whether to centre and scale the features by the training rows.
    random_state
        Seed of the inner folds.

    Attributes
    ----------
    alpha_
        The value of alpha used for each target, shape (T,).
    coef_, intercept_
        Weights of shape (T, d), and (T,).
    """

    name = "linear"
    varied: ClassVar[frozenset[str]] = frozenset({"alpha"})

    def __init__(
        self, *, alpha: Positive | Literal["auto"] = "auto", standardize: bool = True, random_state: int = 0
    ) -> None:
        self.alpha = alpha
        self.standardize = standardize
        self.random_state = random_state

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"alpha": Range(1e-1, 1e5, log=True)}

    def _predict(self, X: Floats) -> Floats:
        values: Floats = X @ self.coef_.T + self.intercept_
        return values

    @classmethod
    def _fit_all(cls, heads: Sequence[Self], training: Training) -> None:
        targets = training.y.shape[1]
        for head in heads:
            head.alpha_ = np.zeros(targets)
            head.coef_ = np.zeros((targets, training.X.shape[1]))
            head.intercept_ = np.zeros(targets)
        automatic = [head for head in heads if head.alpha == "auto"]
        for alike in _alike_columns(training.weight):
            weight, values = training.weight[:, alike[0]], training.y[:, alike]
            grid = _alphas(training.X, weight) if automatic else np.zeros(0)
            best = automatic[0]._best_alphas(training, alike, grid) if automatic else []
            fixed = np.array([head.alpha for head in heads if head.alpha != "auto"], dtype=np.float64)
            alphas = np.append(fixed, grid[sorted(set(best))])
            coef, intercept = ridge_path(training.X, values, weight, alphas)
            for head in heads:
                wanted = grid[best] if head.alpha == "auto" else np.full(len(alike), float(head.alpha))
                for place, target in enumerate(alike):
                    row = int(np.flatnonzero(alphas == wanted[place])[0])
                    head.alpha_[target] = wanted[place]
                    head.coef_[target], head.intercept_[target] = coef[row, place], intercept[row, place]
        for head in automatic:
            head.notes_ = list(automatic[0].notes_)

    def _best_alphas(self, training: Training, alike: list[int], alphas: NDArray[np.float64]) -> list[int]:
        """Return the position of the alpha of the lowest squared error on inner folds, per target."""
        weight, values = training.weight[:, alike[0]], training.y[:, alike]
        errors = np.zeros((len(alphas), len(alike)))
        fold = _inner_folds(training, self.random_state)
        for held, coef, intercept in fold_ridge(training.X, values, weight, fold, alphas):
            predicted = training.X[held] @ np.swapaxes(coef, 1, 2) + intercept[:, None]
            errors += np.einsum("n,ant->at", weight[held], np.square(predicted - values[held]))
        if not errors.any():
            self._note("too few values to choose alpha on inner folds, so the middle of the grid is used")
            return [len(alphas) // 2] * len(alike)
        chosen: list[int] = errors.argmin(axis=0).tolist()
        return chosen


HEADS = (LinearClassifier, LinearRegressor)


def _columns(training: Training) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return labels and weights as the solver takes them: one row of weights per problem."""
    if training.kind == "multiclass":
        return training.y, training.weight[None]
    n = len(training.y)
    return training.y.reshape(n, -1).T.astype(np.float32), training.weight.reshape(n, -1).T


def _inner_folds(training: Training, seed: int) -> NDArray[np.int64]:
    """Return the inner fold of each row; -1 for all if there are not two groups."""
    units = len(training.y) if training.groups is None else len(np.unique(training.groups))
    if units < 2:
        return np.full(len(training.y), -1)
    folds = make_folds(training.labels, training.kind, training.groups, min(INNER_FOLDS, units), seed)
    return folds.assignment


def _alike_columns(weight: NDArray[np.float64]) -> list[list[int]]:
    """Return the targets in lists that are observed on the same rows, so that they share one decomposition."""
    patterns, pattern = np.unique(weight, axis=1, return_inverse=True)
    return [np.flatnonzero(pattern == k).tolist() for k in range(patterns.shape[1])]


def _alphas(X: Floats, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the penalties to try: from 1e-5 to 1e3 of the sum of squares of a mean feature."""
    spread = float(X.var(axis=0, dtype=np.float64).mean()) * weight.sum()
    return np.asarray(np.logspace(-5, 3, 17) * max(spread, float(np.finfo(np.float64).tiny)))
