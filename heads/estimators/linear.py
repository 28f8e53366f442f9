"""Linear probe: logistic or ridge regression that finds the strength of its penalty by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

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
from heads.solvers.ridge import ridge_path

INNER_FOLDS = 5
GRID = np.logspace(-5, 1.5, 14)
"""Values of C tried by ``auto``, for features of mean variance 1; they are divided by the mean variance."""
MIDDLE = 1e-2
"""Used, with a warning, where the training rows are too few to try any."""


class LinearClassifier(ClassifierHead):
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
    `heads.solvers.logistic`. Inner folds share the standardisation of all training rows.
    """

    name = "linear"
    uses_torch = True

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

    def _fit(self, training: Training) -> None:
        from heads.solvers.logistic import Design, fit_logistic

        design = Design.of(training.X)
        self.C_ = float(self._best_strength(design, training) if self.C == "auto" else self.C)
        labels, weight = _columns(training)
        solution = fit_logistic(design, labels, weight, self.C_, classes=training.classes)
        if training.kind == "multiclass":
            self.coef_, self.intercept_ = solution.coef[0], solution.intercept[0]
        else:
            self.coef_, self.intercept_ = solution.coef[:, 0], solution.intercept[:, 0]

    def _best_strength(self, design: Any, training: Training) -> float:
        """Return the C of the lowest log loss on inner folds, climbing from the strongest penalty until it rises."""
        from heads.solvers.logistic import fit_logistic

        scale = max(float(design.variance.sum()) / training.X.shape[1], float(np.finfo(np.float64).tiny))
        labels, fitted, held = _fold_problems(training, _inner_folds(training, self.random_state))
        if not fitted.shape[1]:
            self._note(f"too few rows of each class to choose C on inner folds, so C={MIDDLE / scale:g} is used")
            return float(MIDDLE / scale)
        losses: list[float] = []
        start = None
        for C in GRID / scale:
            solution = fit_logistic(design, labels, fitted, C, classes=training.classes, start=start, tol=1e-3)
            start = solution.theta
            losses.append(float((solution.losses * held).sum()))
            if len(losses) - np.argmin(losses) > 2:
                break
        return float(GRID[np.argmin(losses)] / scale)


class LinearRegressor(RegressorHead):
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
    uses_torch = True

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

    def _fit(self, training: Training) -> None:
        targets = training.y.shape[1]
        self.alpha_ = np.zeros(targets)
        self.coef_ = np.zeros((targets, training.X.shape[1]))
        self.intercept_ = np.zeros(targets)
        for alike in _alike_columns(training.weight):
            weight = training.weight[:, alike[0]]
            if self.alpha == "auto":
                alphas = _alphas(training.X, weight)
                best = self._best_alphas(training, alike, alphas)
            else:
                alphas, best = np.array([self.alpha], dtype=np.float64), [0] * len(alike)
            coef, intercept = ridge_path(training.X, training.y[:, alike], weight, alphas)
            for place, (target, chosen) in enumerate(zip(alike, best, strict=True)):
                self.alpha_[target] = alphas[chosen]
                self.coef_[target], self.intercept_[target] = coef[chosen, place], intercept[chosen, place]

    def _best_alphas(self, training: Training, alike: list[int], alphas: NDArray[np.float64]) -> list[int]:
        """Return the position of the alpha of the lowest squared error on inner folds, per target."""
        weight, values = training.weight[:, alike[0]], training.y[:, alike]
        errors = np.zeros((len(alphas), len(alike)))
        for held in _held_out(_inner_folds(training, self.random_state)):
            if (weight[~held] > 0).any():
                coef, intercept = ridge_path(training.X, values, np.where(held, 0, weight), alphas)
                predicted = training.X[held] @ np.swapaxes(coef, 1, 2) + intercept[:, None]
                errors += np.einsum("n,ant->at", weight[held], np.square(predicted - values[held]))
        if not errors.any():
            self._note("too few values to choose alpha on inner folds, so the middle of the grid is used")
            return [len(alphas) // 2] * len(alike)
        chosen: list[int] = errors.argmin(axis=0).tolist()
        return chosen


HEADS = (LinearClassifier, LinearRegressor)


def _columns(training: Training) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return labels and weights as the solver takes them: one column per problem."""
    if training.kind == "multiclass":
        return training.y, training.weight[:, None]
    n = len(training.y)
    return training.y.reshape(n, -1).astype(np.float64), training.weight.reshape(n, -1)


def _inner_folds(training: Training, seed: int) -> NDArray[np.int64]:
    """Return the inner fold of each row, or an empty array if there are not two groups."""
    units = len(training.y) if training.groups is None else len(np.unique(training.groups))
    if units < 2:
        return np.zeros(0, dtype=np.int64)
    folds = make_folds(training.labels, training.kind, training.groups, min(INNER_FOLDS, units), seed)
    return folds.assignment


def _held_out(fold: NDArray[np.int64]) -> Iterator[NDArray[np.bool_]]:
    """Yield the mask of the held-out rows of each fold."""
    return (fold == k for k in range(fold.max(initial=-1) + 1))


def _fold_problems(
    training: Training, fold: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.float64]]:
    """Return labels, fitting weights and held-out weights, one column per fold and label.

    A fold whose fitting rows lack a class cannot foresee it: its held-out rows of that class do not
    count, and a label of which only one class is left is no problem at all.
    """
    labels, weight = _columns(training)
    multiclass = training.kind == "multiclass"
    chosen, fitted, held_out = [], [], []
    for held in _held_out(fold):
        for column in range(weight.shape[1]):
            values = labels if multiclass else labels[:, column]
            fit = np.where(held, 0, weight[:, column])
            known = np.unique(values[fit > 0])
            if len(known) >= 2:
                chosen.append(column)
                fitted.append(fit)
                held_out.append(np.where(held & np.isin(values, known), weight[:, column], 0))
    if not chosen:
        return labels, np.zeros((len(weight), 0)), np.zeros((len(weight), 0))
    return labels if multiclass else labels[:, chosen], np.stack(fitted, axis=1), np.stack(held_out, axis=1)


def _alike_columns(weight: NDArray[np.float64]) -> list[list[int]]:
    """Return the targets in lists that are observed on the same rows, so that they share one decomposition."""
    patterns, pattern = np.unique(weight, axis=1, return_inverse=True)
    return [np.flatnonzero(pattern == k).tolist() for k in range(patterns.shape[1])]


def _alphas(X: Floats, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the penalties to try: from 1e-5 to 1e3 of the sum of squares of a mean feature."""
    spread = float(X.var(axis=0, dtype=np.float64).mean()) * weight.sum()
    return np.asarray(np.logspace(-5, 3, 17) * max(spread, float(np.finfo(np.float64).tiny)))
