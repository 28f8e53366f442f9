"""Support vector machine with an RBF or linear kernel; probabilities come from inner out-of-fold scores."""

from __future__ import annotations

from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.svm import SVC, SVR

from data.errors import SplitError
from data.split import make_folds
from heads.base import (
    Choice,
    ClassifierHead,
    ClassWeight,
    Floats,
    Head,
    NotNegative,
    Positive,
    Range,
    RegressorHead,
    SearchSpace,
    Training,
)
from heads.errors import HeadError

Kernel = Literal["rbf", "linear"]
Gamma = Positive | Literal["scale", "auto"]

MAX_ROWS = 15_000
"""Training rows at most: the kernel matrix of more takes over 2 GB."""
INNER_FOLDS = 3
BLOCK = 2048
"""Rows whose kernel values are held at once in prediction."""


class _SVMHead(Head):
    """What the two heads share: the kernel and the machines, which are sums of kernels on support vectors.

    Attributes
    ----------
    support_vectors_
        The training rows that any machine rests on, standardised, shape (s, d).
    dual_
        Their weights in each machine, shape (m, s).
    intercept_
        Shape (m,).
    gamma_
        The gamma used.
    """

    kernel: Kernel
    gamma: float | Literal["scale", "auto"]
    C: float

    name = "svm"

    def _kernel(self, A: Floats, B: Floats) -> NDArray[np.float64]:
        """Return kernel values of all pairs of rows, shape (a, b), float64."""
        left, right = A.astype(np.float64, copy=False), B.astype(np.float64, copy=False)
        product = left @ right.T
        if self.kernel == "linear":
            return product
        squares = np.square(left).sum(axis=1)[:, None] + np.square(right).sum(axis=1)
        distance = np.maximum(squares - 2 * product, 0)
        return np.asarray(np.exp(-self.gamma_ * distance))

    def _training_kernel(self, X: Floats) -> NDArray[np.float64]:
        """Return the kernel matrix of the training rows, made once and shared by every machine and inner fold."""
        if len(X) > MAX_ROWS:
            raise HeadError(f"svm: {len(X)} training rows; expected {MAX_ROWS} at most; use the linear or gbm head")
        spread = float(X.var(dtype=np.float64)) if self.gamma == "scale" else 1.0
        self.gamma_ = float(1 / (X.shape[1] * (spread or 1.0)) if isinstance(self.gamma, str) else self.gamma)
        return self._kernel(X, X)

    def _keep(self, X: Floats, machines: list[tuple[NDArray[np.float64], float]]) -> None:
        dual = np.stack([weights for weights, _ in machines])
        used = dual.any(axis=0)
        self.support_vectors_ = X[used]
        self.dual_ = dual[:, used]
        self.intercept_ = np.array([intercept for _, intercept in machines])

    def _outputs(self, X: Floats) -> NDArray[np.float64]:
        """Return the output of every machine, shape (n, m)."""
        blocks = [
            self._kernel(X[start : start + BLOCK], self.support_vectors_) @ self.dual_.T + self.intercept_
            for start in range(0, len(X), BLOCK)
        ]
        return np.concatenate(blocks)


class SVMClassifier(_SVMHead, ClassifierHead):
    """Support vector classifier: one machine for two classes, one per pair of classes, or one per label.

    Parameters
    ----------
    C
        Inverse strength of the penalty.
    kernel
        ``rbf``, exp(-gamma |a - b|^2), or ``linear``.
    gamma
        A number, ``scale`` for 1 / (d x variance of the features) or ``auto`` for 1 / d.
    standardize
        Whether to centre and scale the features by the training rows.
    class_weight
        None or ``balanced``.
    random_state
        Seed of the inner folds.

    Attributes
    ----------
    slope_, offset_
        Calibration: log odds are ``slope x score + offset``, shape (T,) each, (1,) for two classes; for more
        classes the softmax of ``slope x score + offset`` is taken, shapes (1,) and (C,).
    support_vectors_, dual_, intercept_, gamma_
        The machines.

    Notes
    -----
    Probabilities follow Platt [1]_ on scores of inner folds, which are stratified and do not split
    groups: each score comes from machines that did not see the row. With more than two classes a
    class is scored by the mean of its pairwise margins, and one slope and an offset per class are
    fitted. The slope is kept positive.

    References
    ----------
    .. [1] J. Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """

    def __init__(
        self,
        *,
        C: Positive = 1.0,
        kernel: Kernel = "rbf",
        gamma: Gamma = "scale",
        standardize: bool = True,
        class_weight: ClassWeight = None,
        random_state: int = 0,
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"C": Range(1e-1, 1e2, log=True), "kernel": Choice(("rbf", "linear")), "gamma": Choice(("scale", 0.01))}

    def margins(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return the outputs of the machines, uncalibrated, shape (n, m).

        They equal scikit-learn's: for two classes `sklearn.svm.SVC.decision_function`; for more its
        ``ovo`` form with the sign turned, positive for the second class of a pair; for multilabel
        one column per learned label.
        """
        return self._outputs(self._features(X))

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated log odds: (n,) for two classes, (n, C) for more classes, (n, T) for labels."""
        return self._expand(self._decide, X, constant=lambda probability: 2 * probability - 1)

    def _decide(self, X: Floats) -> NDArray[np.float64]:
        scores = self._scores(self._outputs(X), len(self.classes_), self.kind_)
        logits: NDArray[np.float64] = self.slope_ * scores + self.offset_
        return logits[:, 0] if self.kind_ == "binary" else logits

    def _predict_proba(self, X: Floats) -> Floats:
        logits = self._decide(X)
        if self.kind_ == "multiclass":
            return np.asarray(softmax(logits, axis=1))
        positive = expit(logits)
        return np.stack([1 - positive, positive], axis=1) if self.kind_ == "binary" else np.asarray(positive)

    def _fit(self, training: Training) -> None:
        kernel = self._training_kernel(training.X)
        fitted = [self._machine(kernel, y, weight) for y, weight in _problems(training)]
        self._keep(training.X, [machine for machine in fitted if machine is not None])
        scores = self._out_of_fold(training, kernel)
        if training.kind == "multiclass":
            slope, self.offset_ = self._calibrated(scores, training.y, training.weight)
            self.slope_ = np.array([slope])
            return
        y, weight = training.y.reshape(len(scores), -1).astype(np.int64), training.weight.reshape(len(scores), -1)
        halves = np.stack([-scores / 2, scores / 2], axis=2)
        fits = [self._calibrated(halves[:, t], y[:, t], weight[:, t]) for t in range(y.shape[1])]
        self.slope_ = np.array([slope for slope, _ in fits])
        self.offset_ = np.array([offset[1] - offset[0] for _, offset in fits])

    def _machine(
        self, kernel: NDArray[np.float64], y: NDArray[np.bool_], weight: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float] | None:
        """Fit one two-class machine; return its weights on all rows and its intercept, None without two classes."""
        rows = np.flatnonzero(weight > 0)
        if len(np.unique(y[rows])) < 2:
            return None
        machine = SVC(C=self.C, kernel="precomputed").fit(kernel[np.ix_(rows, rows)], y[rows], weight[rows])
        dual = np.zeros(len(y))
        dual[rows[machine.support_]] = machine.dual_coef_[0]
        return dual, float(machine.intercept_[0])

    def _out_of_fold(self, training: Training, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return scores of the training rows by machines of inner folds that did not see them; NaN where none could."""
        problems = _problems(training)
        outputs = np.full((len(kernel), len(problems)), np.nan)
        for held in self._inner_folds(training):
            for column, (y, weight) in enumerate(problems):
                machine = self._machine(kernel, y, np.where(held, 0, weight))
                if machine is not None:
                    dual, intercept = machine
                    outputs[held, column] = kernel[held] @ dual + intercept
        return self._scores(outputs, training.classes, training.kind)

    def _inner_folds(self, training: Training) -> list[NDArray[np.bool_]]:
        """Return the mask of the held-out rows of each inner fold; none if there are too few groups."""
        try:
            folds = make_folds(training.labels, training.kind, training.groups, INNER_FOLDS, self.random_state)
        except SplitError as error:
            self._note(f"probabilities are not calibrated: {error}")
            return []
        return [folds.assignment == k for k in range(INNER_FOLDS)]

    @staticmethod
    def _scores(outputs: NDArray[np.float64], classes: int, kind: str) -> NDArray[np.float64]:
        """Return what calibration starts from: the outputs, or each class's mean margin."""
        return _summed_margins(outputs, classes) / (classes - 1) if kind == "multiclass" else outputs

    def _calibrated(
        self, scores: NDArray[np.float64], y: NDArray[np.int64], weight: NDArray[np.float64]
    ) -> tuple[float, NDArray[np.float64]]:
        """Return slope and offsets of the softmax that fits the out-of-fold scores (n, K) of codes y best."""
        usable = (weight > 0) & ~np.isnan(scores).any(axis=1)
        if len(np.unique(y[usable])) < scores.shape[1]:
            return 1.0, np.zeros(scores.shape[1])
        return fit_calibration(scores[usable], y[usable], weight[usable])


class SVMRegressor(_SVMHead, RegressorHead):
    """Support vector regression, one machine per target; missing values are left out, per target.

    Targets are standardised for training, so `C` and `epsilon` mean the same whatever the unit.

    Parameters
    ----------
    C, kernel, gamma, standardize
        As for `SVMClassifier`.
    epsilon
        Errors below this many standard deviations of the target cost nothing.

    Attributes
    ----------
    center_, spread_
        Mean and standard deviation of each target, shape (T,).
    support_vectors_, dual_, intercept_, gamma_
        The machines.
    """

    def __init__(
        self,
        *,
        C: Positive = 1.0,
        kernel: Kernel = "rbf",
        gamma: Gamma = "scale",
        epsilon: NotNegative = 0.1,
        standardize: bool = True,
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma
        self.epsilon = epsilon
        self.standardize = standardize

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"C": Range(1e-1, 1e2, log=True), "kernel": Choice(("rbf", "linear")), "epsilon": Range(0.01, 0.5)}

    def _fit(self, training: Training) -> None:
        kernel = self._training_kernel(training.X)
        share = training.weight / training.weight.sum(axis=0)
        self.center_ = (share * training.y).sum(axis=0)
        deviation = np.sqrt((share * np.square(training.y - self.center_)).sum(axis=0))
        self.spread_ = np.where(deviation > 0, deviation, 1.0)
        targets = (training.y - self.center_) / self.spread_
        machines = []
        for y, weight in zip(targets.T, training.weight.T, strict=True):
            rows = np.flatnonzero(weight > 0)
            machine = SVR(C=self.C, kernel="precomputed", epsilon=self.epsilon)
            machine.fit(kernel[np.ix_(rows, rows)], y[rows], weight[rows])
            dual = np.zeros(len(y))
            dual[rows[machine.support_]] = machine.dual_coef_[0]
            machines.append((dual, float(machine.intercept_[0])))
        self._keep(training.X, machines)

    def _predict(self, X: Floats) -> Floats:
        values: Floats = self._outputs(X) * self.spread_ + self.center_
        return values


HEADS = (SVMClassifier, SVMRegressor)


def fit_calibration(
    scores: NDArray[np.float64], y: NDArray[np.int64], weight: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """Return slope and offsets of ``softmax(slope x scores + offset)`` with the lowest cross-entropy.

    Targets are smoothed as Platt does: a row of a class that has N rows counts as N + 1 of that
    class and 1 of the others.

    Parameters
    ----------
    scores
        Shape (n, K).
    y
        Codes, shape (n,); every class occurs.
    weight
        Row weights, shape (n,), positive.

    Returns
    -------
    slope : float
        At least 1e-3, so that probabilities keep the order of the scores.
    offset : ndarray of shape (K,)
    """
    classes = scores.shape[1]
    count = np.bincount(y, minlength=classes)[y]
    targets = np.repeat((1 / ((count + 2) * (classes - 1)))[:, None], classes, axis=1)
    targets[np.arange(len(y)), y] = (count + 1) / (count + 2)
    share = (weight / weight.sum())[:, None]

    def objective(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = log_softmax(theta[0] * scores + theta[1:], axis=1)
        slope = share * (np.exp(logits) - targets)
        return -float((share * targets * logits).sum()), np.append((slope * scores).sum(), slope.sum(axis=0))

    bounds = [(1e-3, None)] + [(None, None)] * classes
    found: Any = minimize(objective, np.append(1.0, np.zeros(classes)), jac=True, method="L-BFGS-B", bounds=bounds)
    return float(found.x[0]), np.asarray(found.x[1:])


def _problems(training: Training) -> list[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
    """Return the two-class problems as (is positive, weight): one, one per pair of classes, or one per label."""
    y, weight = training.y, training.weight
    if training.kind == "binary":
        return [(y == 1, weight)]
    if training.kind == "multilabel":
        return [(y[:, t] == 1, weight[:, t]) for t in range(y.shape[1])]
    pairs = combinations(range(training.classes), 2)
    return [(y == second, np.where((y == first) | (y == second), weight, 0)) for first, second in pairs]


def _summed_margins(outputs: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Return each class's sum of margins over its pairs, shape (n, C), from outputs (n, C (C - 1) / 2)."""
    total = np.zeros((len(outputs), classes))
    for column, (first, second) in enumerate(combinations(range(classes), 2)):
        total[:, first] -= outputs[:, column]
        total[:, second] += outputs[:, column]
    return total
