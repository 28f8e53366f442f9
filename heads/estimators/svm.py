"""Support vector machine with an RBF or linear kernel; inner folds choose its penalty and calibrate it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import combinations
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
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
from heads.calibration import Calibration, calibrate
from heads.errors import HeadError

Kernel = Literal["rbf", "linear"]
Gamma = Positive | Literal["scale", "auto"]
Problem = tuple[NDArray[Any], NDArray[np.float64]]
"""What a machine is to learn: the value of each row, and its weight; both of shape (n,)."""
Machine = tuple[NDArray[np.float64], float]
"""The weight of each training row, shape (n,), and the intercept."""

MAX_ROWS = 15_000
"""Training rows at most: the kernel matrix of more takes over 2 GB."""
GRID = (0.1, 1.0, 10.0, 100.0)
"""Values of C tried by ``auto``; for ``linear`` they are divided by the mean squared length of the rows."""
FALLBACK = 1.0
"""Used, with a warning, where the training rows are too few to try any."""
INNER_FOLDS = 3
BLOCK = 2048
"""Rows whose kernel values are held at once in prediction."""


class _SVMHead(Head):
    """What the two heads share: the kernel and the machines, which are sums of kernels on support vectors.

    Attributes
    ----------
    C_
        The value of C used.
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
    C: float | Literal["auto"]
    random_state: int

    name = "svm"
    kept_rows = frozenset({"support_vectors_"})
    _least_values: ClassVar[int]
    """How many different values a machine needs to learn from."""

    @abstractmethod
    def _solver(self, C: float) -> SVC | SVR:
        """Return an unfitted machine that takes kernel values."""

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

    def _machines(self, kernel: NDArray[np.float64], problem: Problem, strengths: Sequence[float]) -> list[Machine]:
        """Fit a machine for each C to the rows that have weight; return none if these have too few values."""
        y, weight = problem
        rows = np.flatnonzero(weight > 0)
        if len(np.unique(y[rows])) < self._least_values:
            return []
        own, machines = kernel[np.ix_(rows, rows)], []
        for C in strengths:
            machine: Any = self._solver(C).fit(own, y[rows], weight[rows])
            dual = np.zeros(len(y))
            dual[rows[machine.support_]] = machine.dual_coef_[0]
            machines.append((dual, float(machine.intercept_[0])))
        return machines

    def _out_of_fold(
        self, training: Training, kernel: NDArray[np.float64], problems: list[Problem], strengths: Sequence[float]
    ) -> NDArray[np.float64]:
        """Return outputs for the training rows by machines of inner folds that did not see them.

        Shape (values of C, n, problems); NaN where no machine could be trained, whatever C.
        """
        outputs = np.full((len(strengths), len(kernel), len(problems)), np.nan)
        for held in self._inner_folds(training):
            across = kernel[held]
            for column, (y, weight) in enumerate(problems):
                machines = self._machines(kernel, (y, np.where(held, 0, weight)), strengths)
                for place, (dual, intercept) in enumerate(machines):
                    outputs[place, held, column] = across @ dual + intercept
        return outputs

    def _inner_folds(self, training: Training) -> list[NDArray[np.bool_]]:
        """Return the mask of the held-out rows of each inner fold; none if there are too few groups."""
        try:
            folds = make_folds(training.labels, training.kind, training.groups, INNER_FOLDS, self.random_state)
        except SplitError:
            return []
        return [folds.assignment == k for k in range(INNER_FOLDS)]

    def _grid(self, kernel: NDArray[np.float64]) -> tuple[float, ...]:
        """Return the values of C to try, for a mean kernel value of rows with themselves of 1, as with ``rbf``."""
        size = float(kernel.diagonal().mean()) if self.kernel == "linear" else 1.0
        return tuple(C / (size or 1.0) for C in GRID)

    def _choose(self, losses: NDArray[np.float64], strengths: Sequence[float]) -> int:
        """Return the position of the C of the lowest mean loss, from losses (values of C, T), NaN where unknown."""
        known = ~np.isnan(losses[0])
        if known.any():
            return int(losses[:, known].mean(axis=1).argmin())
        fallback = GRID.index(FALLBACK)
        self._note(f"too few groups to choose C on {INNER_FOLDS} inner folds, so C={strengths[fallback]:g} is used")
        return fallback

    def _keep(self, X: Floats, machines: list[Machine]) -> None:
        dual = np.stack([weights for weights, _ in machines])
        used = dual.any(axis=0)
        self.support_vectors_, self.dual_ = X[used], dual[:, used]
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
        Inverse strength of the penalty. ``auto`` takes the one of 0.1, 1, 10 and 100 (for ``linear``: divided
        by the mean squared length of the rows) whose calibrated probabilities have the lowest
        cross-entropy on inner folds of the training rows, which are stratified and do not split
        groups; one value serves all labels.
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
    C_
        The value of C used.
    slope_, offset_
        Calibration: log odds are ``slope x score + offset``, shape (T,) each, (1,) for two classes; for more
        classes the softmax of ``slope x score + offset`` is taken, shapes (1,) and (C,).
    support_vectors_, dual_, intercept_, gamma_
        The machines.

    Notes
    -----
    Probabilities follow Platt [1]_ on scores of the same inner folds: each comes from machines that did
    not see the row. With more than two classes a class is scored by the mean of its pairwise margins,
    and one slope and an offset per class are fitted. The slope is kept positive.

    References
    ----------
    .. [1] J. Platt, "Probabilistic Outputs for Support Vector Machines", 1999.
    """

    _least_values = 2

    def __init__(
        self,
        *,
        C: Positive | Literal["auto"] = "auto",
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

    def _solver(self, C: float) -> SVC:
        return SVC(C=C, kernel="precomputed")

    def _fit(self, training: Training) -> None:
        kernel, problems = self._training_kernel(training.X), _problems(training)
        strengths = self._grid(kernel) if self.C == "auto" else (float(self.C),)
        outputs = self._out_of_fold(training, kernel, problems, strengths)
        tried = [self._calibrations(each, training) for each in outputs]
        losses = np.array([[fit.loss for fit in fits] for fits in tried])
        best = self._choose(losses, strengths) if self.C == "auto" else 0
        self.C_ = strengths[best]
        self._keep(training.X, [m for problem in problems for m in self._machines(kernel, problem, [self.C_])])
        self.slope_ = np.array([fit.slope for fit in tried[best]])
        offsets = np.stack([fit.offset for fit in tried[best]])
        self.offset_ = offsets[0] if training.kind == "multiclass" else offsets[:, 1] - offsets[:, 0]
        self._note_uncalibrated(np.isnan(losses[0]))

    def _calibrations(self, outputs: NDArray[np.float64], training: Training) -> list[Calibration]:
        """Return the calibration of the out-of-fold outputs: one, or one per label."""
        scores = self._scores(outputs, training.classes, training.kind)
        if training.kind == "multiclass":
            return [calibrate(scores, training.y, training.weight)]
        y, weight = training.y.reshape(len(scores), -1).astype(np.int64), training.weight.reshape(len(scores), -1)
        halves = np.stack([-scores / 2, scores / 2], axis=2)
        return [calibrate(halves[:, t], y[:, t], weight[:, t]) for t in range(y.shape[1])]

    def _note_uncalibrated(self, missing: NDArray[np.bool_]) -> None:
        if missing.any():
            learned = np.flatnonzero(np.isnan(self.constant_)) if self.kind_ == "multilabel" else np.zeros(0, int)
            targets = ", ".join(map(str, learned[missing[: len(learned)]]))
            which = f"probabilities of target {targets}" if targets else "probabilities"
            self._note(f"too few groups of each class for {INNER_FOLDS} inner folds, so {which} are not calibrated")

    @staticmethod
    def _scores(outputs: NDArray[np.float64], classes: int, kind: str) -> NDArray[np.float64]:
        """Return what calibration starts from: the outputs, or each class's mean margin."""
        return _summed_margins(outputs, classes) / (classes - 1) if kind == "multiclass" else outputs


class SVMRegressor(_SVMHead, RegressorHead):
    """Support vector regression, one machine per target; missing values are left out, per target.

    Targets are standardised for training, so `C` and `epsilon` mean the same whatever the unit.

    Parameters
    ----------
    C
        Inverse strength of the penalty. ``auto`` takes the one of the same values with the lowest squared
        error of the standardised targets on inner folds, which do not split groups; one value serves all.
    kernel, gamma, standardize, random_state
        As for `SVMClassifier`.
    epsilon
        Errors below this many standard deviations of the target cost nothing.

    Attributes
    ----------
    C_
        The value of C used.
    center_, spread_
        Mean and standard deviation of each target, shape (T,).
    support_vectors_, dual_, intercept_, gamma_
        The machines.
    """

    _least_values = 1

    def __init__(
        self,
        *,
        C: Positive | Literal["auto"] = "auto",
        kernel: Kernel = "rbf",
        gamma: Gamma = "scale",
        epsilon: NotNegative = 0.1,
        standardize: bool = True,
        random_state: int = 0,
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma
        self.epsilon = epsilon
        self.standardize = standardize
        self.random_state = random_state

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"C": Range(1e-1, 1e2, log=True), "kernel": Choice(("rbf", "linear")), "epsilon": Range(0.01, 0.5)}

    def _solver(self, C: float) -> SVR:
        return SVR(C=C, kernel="precomputed", epsilon=self.epsilon)

    def _fit(self, training: Training) -> None:
        kernel = self._training_kernel(training.X)
        share = training.weight / training.weight.sum(axis=0)
        self.center_ = (share * training.y).sum(axis=0)
        deviation = np.sqrt((share * np.square(training.y - self.center_)).sum(axis=0))
        self.spread_ = np.where(deviation > 0, deviation, 1.0)
        targets = (training.y - self.center_) / self.spread_
        problems = list(zip(targets.T, training.weight.T, strict=True))
        if self.C == "auto":
            strengths = self._grid(kernel)
            outputs = self._out_of_fold(training, kernel, problems, strengths)
            self.C_ = strengths[self._choose(_squared_errors(outputs, targets, training.weight), strengths)]
        else:
            self.C_ = float(self.C)
        self._keep(training.X, [m for problem in problems for m in self._machines(kernel, problem, [self.C_])])

    def _predict(self, X: Floats) -> Floats:
        values: Floats = self._outputs(X) * self.spread_ + self.center_
        return values


HEADS = (SVMClassifier, SVMRegressor)


def _problems(training: Training) -> list[Problem]:
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


def _squared_errors(
    outputs: NDArray[np.float64], targets: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return weighted mean squared errors, shape (values of C, T), from outputs (values of C, n, T); NaN if unknown."""
    seen = np.where(np.isnan(outputs[0]), 0, weight)
    total = seen.sum(axis=0)
    errors = np.square(np.nan_to_num(outputs) - targets)
    return np.asarray((seen * errors).sum(axis=1) / np.where(total > 0, total, np.nan))
