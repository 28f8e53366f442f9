"""What support vector heads share: kernels, machines, and inner folds that choose the penalty."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC, SVR

from data.errors import SplitError
from data.split import make_folds
from heads.base import Floats, Training
from heads.errors import HeadError
from heads.solvers.kernels import Kernel, Kernels, kernel_values, resolve_gamma
from heads.solvers.machines import Problem
from heads.together import SharingHead

Machine = tuple[NDArray[np.float64], float]
"""The weight of each training row, shape (n,), and the intercept."""

MAX_ROWS = 15_000
"""Training rows at most: their products take 1.8 GB, and their kernel values as much again."""
GRID = (0.1, 1.0, 10.0, 100.0)
"""Values of C tried by ``auto``; for ``linear`` they are divided by the mean squared length of the rows."""
FALLBACK = 1.0
"""Used, with a warning, where the training rows are too few to try any."""
INNER_FOLDS = 3
BLOCK = 2048
"""Rows whose kernel values are held at once in prediction."""


class SVMHead(SharingHead):
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
    varied: ClassVar[frozenset[str]] = frozenset({"C", "kernel", "gamma", "epsilon"})
    kept_rows = frozenset({"support_vectors_"})
    _least_values: ClassVar[int]
    """How many different values a machine needs to learn from."""

    @abstractmethod
    def _solver(self, C: float) -> SVC | SVR:
        """Return an unfitted machine that takes kernel values."""

    @abstractmethod
    def _learn(self, training: Training, kernel: NDArray[np.float64]) -> None:
        """Learn from the kernel values of the training rows."""

    @classmethod
    def _fit_all(cls, heads: Sequence[Self], training: Training) -> None:
        if len(training.X) > MAX_ROWS:
            raise HeadError(
                f"svm: {len(training.X)} training rows; expected {MAX_ROWS} at most; use the linear or gbm head"
            )
        kernels = Kernels(training.X)
        alike: dict[tuple[Kernel, float], list[Self]] = {}
        for head in heads:
            head._search(training, kernels)
            head.gamma_ = resolve_gamma(head._used("gamma"), training.X)
            kernel = head._used("kernel")
            alike.setdefault((kernel, head.gamma_ if kernel == "rbf" else 1.0), []).append(head)
        for (kernel, gamma), members in alike.items():
            values = kernels.of(kernel, gamma)
            for head in members:
                head._learn(training, values)

    def _search(self, training: Training, kernels: Kernels) -> None:
        """Choose parameters before the fit, where the head does."""

    def _used(self, name: str) -> Any:
        """Return a parameter as it is used in the fit."""
        return getattr(self, name)

    def _kernel(self, A: Floats, B: Floats) -> NDArray[np.float64]:
        """Return kernel values of all pairs of rows, shape (a, b), float64."""
        left, right = A.astype(np.float64, copy=False), B.astype(np.float64, copy=False)
        lengths, others = (np.square(rows).sum(axis=1) for rows in (left, right))
        return kernel_values(left @ right.T, lengths, others, self._used("kernel"), self.gamma_)

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
        fold = self._inner_folds(training, INNER_FOLDS)
        for k in range(fold.max() + 1):
            held = fold == k
            across = kernel[held]
            for column, (y, weight) in enumerate(problems):
                machines = self._machines(kernel, (y, np.where(held, 0, weight)), strengths)
                for place, (dual, intercept) in enumerate(machines):
                    outputs[place, held, column] = across @ dual + intercept
        return outputs

    def _inner_folds(self, training: Training, folds: int) -> NDArray[np.intp]:
        """Return the inner fold of each row; -1 for all if there are too few groups."""
        try:
            made = make_folds(training.labels, training.kind, training.groups, folds, self.random_state)
        except SplitError:
            return np.full(len(training.y), -1)
        return made.assignment

    def _grid(self, kernel: NDArray[np.float64]) -> tuple[float, ...]:
        """Return the values of C to try, for a mean kernel value of rows with themselves of 1, as with ``rbf``."""
        size = float(kernel.diagonal().mean()) if self._used("kernel") == "linear" else 1.0
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
