"""Support vector machine with an RBF or linear kernel; inner folds choose its penalty and calibrate it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from sklearn.svm import SVC, SVR

from heads.base import (
    Choice,
    ClassifierHead,
    ClassWeight,
    Floats,
    NotNegative,
    Positive,
    Range,
    RegressorHead,
    SearchSpace,
    Training,
)
from heads.errors import HeadError
from heads.estimators._svm import FALLBACK, INNER_FOLDS, SVMHead
from heads.evaluation.calibration import Calibration, calibrate
from heads.solvers.kernels import Kernel, Kernels
from heads.solvers.machines import squared_errors, summed_margins, two_class_problems
from heads.solvers.svm_grid import best_point, grid_accuracies

Gamma = Positive | Literal["scale", "auto"]
GAMMAS = ("scale", "auto", 0.1, 0.01)
"""Values of gamma worth searching, as in `heads.solvers.svm_grid`."""
SEARCH_FOLDS = 5


class SVMClassifier(SVMHead, ClassifierHead):
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
    search
        ``grid`` chooses C, kernel and gamma together: C of 0.1, 1, 10 and 100, ``linear`` or ``rbf``, gamma of
        ``scale``, ``auto``, 0.1 and 0.01, by the accuracy (for multilabel: the mean over labels) on five inner
        folds, which do not split groups. C, kernel and gamma are left out then.
    platt
        Whether probabilities are calibrated, which takes a fit per inner fold. Without it, they are the logistic
        function (softmax) of the scores as they are: their order is the same, their size means little, and for
        two classes and labels the answers are those of `sklearn.svm.SVC`. C cannot be ``auto`` then.
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
    best_params_
        With ``search=grid``, the point chosen: ``C``, ``gamma`` and ``kernel``.
    slope_, offset_
        Calibration: log odds are ``slope x score + offset``, shape (T,) each, (1,) for two classes; for more
        classes the softmax of ``slope x score + offset`` is taken, shapes (1,) and (C,).
    support_vectors_, dual_, intercept_, gamma_
        The machines.

    Notes
    -----
    With `platt`, probabilities follow Platt [1]_ on scores of the same inner folds: each comes from machines that did
    not see the row. ``search=grid`` on features as they are (``standardize=false``) finds what scikit-learn's
    `GridSearchCV` of `SVC` finds on the same folds, up to rows on the very border of two classes. With more
    than two classes a class is scored by the mean of its pairwise margins, and one slope and an offset per
    class are fitted. The slope is kept positive.

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
        search: Literal["grid"] | None = None,
        platt: bool = True,
        standardize: bool = True,
        class_weight: ClassWeight = None,
        random_state: int = 0,
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma
        self.search = search
        self.platt = platt
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"C": Range(1e-1, 1e2, log=True), "kernel": Choice(("rbf", "linear")), "gamma": Choice(GAMMAS)}

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

    def _search(self, training: Training, kernels: Kernels) -> None:
        if self.search is None:
            return
        if (self.C, self.kernel, self.gamma) != ("auto", "rbf", "scale"):
            raise HeadError("svm: search=grid chooses C, kernel and gamma; leave them out")
        self.best_params_ = {"C": FALLBACK, "gamma": "scale", "kernel": "rbf"}
        fold = self._inner_folds(training, SEARCH_FOLDS)
        n = len(training.y)
        labels = zip(training.y.reshape(n, -1).T, training.weight.reshape(n, -1).T, strict=True)
        scores = [grid_accuracies(kernels, y, weight, fold) for y, weight in labels]
        best = best_point(np.concatenate(scores, axis=1))
        if best is None:
            self._note(
                f"too few groups for a grid search on {SEARCH_FOLDS} inner folds, so {self.best_params_} is used"
            )
        else:
            self.best_params_ = best._asdict()

    def _used(self, name: str) -> Any:
        return getattr(self, name) if self.search is None else self.best_params_[name]

    def _learn(self, training: Training, kernel: NDArray[np.float64]) -> None:
        C, problems = self._used("C"), two_class_problems(training)
        if self.platt:
            strengths = self._grid(kernel) if C == "auto" else (float(C),)
            outputs = self._out_of_fold(training, kernel, problems, strengths)
            tried = [self._calibrations(each, training) for each in outputs]
            losses = np.array([[fit.loss for fit in fits] for fits in tried])
            best = self._choose(losses, strengths) if C == "auto" else 0
            self.C_ = strengths[best]
            self._calibrate(tried[best], training.kind)
            self._note_uncalibrated(np.isnan(losses[0]))
        elif C == "auto":
            raise HeadError("svm: C=auto is chosen by calibrated probabilities; give C, or platt=true")
        else:
            self.C_, self.slope_, self.offset_ = float(C), np.ones(1), np.zeros(1)
        self._keep(training.X, [m for problem in problems for m in self._machines(kernel, problem, [self.C_])])

    def _calibrate(self, fits: list[Calibration], kind: str) -> None:
        self.slope_ = np.array([fit.slope for fit in fits])
        offsets = np.stack([fit.offset for fit in fits])
        self.offset_ = offsets[0] if kind == "multiclass" else offsets[:, 1] - offsets[:, 0]

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
        return summed_margins(outputs, classes) / (classes - 1) if kind == "multiclass" else outputs


class SVMRegressor(SVMHead, RegressorHead):
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

    def _learn(self, training: Training, kernel: NDArray[np.float64]) -> None:
        share = training.weight / training.weight.sum(axis=0)
        self.center_ = (share * training.y).sum(axis=0)
        deviation = np.sqrt((share * np.square(training.y - self.center_)).sum(axis=0))
        self.spread_ = np.where(deviation > 0, deviation, 1.0)
        targets = (training.y - self.center_) / self.spread_
        problems = list(zip(targets.T, training.weight.T, strict=True))
        if self.C == "auto":
            strengths = self._grid(kernel)
            outputs = self._out_of_fold(training, kernel, problems, strengths)
            self.C_ = strengths[self._choose(squared_errors(outputs, targets, training.weight), strengths)]
        else:
            self.C_ = float(self.C)
        self._keep(training.X, [m for problem in problems for m in self._machines(kernel, problem, [self.C_])])

    def _predict(self, X: Floats) -> Floats:
        values: Floats = self._outputs(X) * self.spread_ + self.center_
        return values


HEADS = (SVMClassifier, SVMRegressor)
