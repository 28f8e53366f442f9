"""Penalty paths: every penalty x every fold (x every label) of a logistic regression, solved on one shared design.

One decomposition of the features serves all problems, see `heads.solvers.logistic`; folds are row weights
of zero. Penalties are taken from the strongest to the weakest, some at once, each start being the solution
before it. What comes out are scores of held-out rows: each by a fit that did not see the row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from heads.errors import HeadError
from heads.solvers.logistic import Design, Solution, fit_logistic

AT_ONCE = 64
"""Columns (problems x classes) solved at once, if one penalty does not have more: wide products are faster."""


@dataclass(frozen=True, kw_only=True)
class LogisticPath:
    """All fits of a path, and what they say of the rows that they did not see.

    Attributes
    ----------
    Cs
        Penalties as in scikit-learn, shape (L,), in the order given.
    scores
        Out-of-fold log odds, shape (L, n) for two classes, (L, n, K) for more (up to a constant per row)
        and (L, n, T) for labels; NaN for rows in no fold, and where the fit had one class only.
    losses
        Mean out-of-fold log loss over rows and labels, shape (L,).
    coef, intercept
        Shape (L, F, K, d) and (L, F, K) for F folds; K is 1 for two classes, T for labels, which have NaN
        where only one class was left to learn from.
    gaps
        Bound on the distance of each objective to its optimum, relative to the objective; shape (L, F), or
        (L, F, T) for labels.
    """

    Cs: NDArray[np.float64]
    scores: NDArray[np.float64]
    losses: NDArray[np.float64]
    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    gaps: NDArray[np.float64]

    @property
    def best(self) -> float:
        """The penalty of the lowest out-of-fold log loss."""
        return float(self.Cs[np.nanargmin(self.losses)])


@dataclass(frozen=True)
class FoldProblems:
    """One problem per fold and label.

    Attributes
    ----------
    y
        Class codes (n,) for softmax; 0 and 1 of shape (T, n).
    weight
        Weights of the rows per label, shape (T, n), T = 1 for softmax; 0 where a label is missing.
    classes
        Number of classes for softmax, 2 else.
    fold
        Fold of each row, shape (n,); -1 for rows that all folds learn from.
    problems
        Fold and label of each problem, shape (P, 2); without those that have one class to learn from.
    """

    y: NDArray[Any]
    weight: NDArray[np.float64]
    classes: int
    fold: NDArray[np.int64]
    problems: NDArray[np.int64]

    @classmethod
    def of(
        cls, y: NDArray[Any], weight: NDArray[np.float64], fold: NDArray[np.int64], classes: int = 2
    ) -> FoldProblems:
        """Return the problems that have two classes to learn from."""
        pairs = [
            (k, t)
            for k in range(int(fold.max(initial=-1)) + 1)
            for t in range(len(weight))
            if len(np.unique(_label(y, t)[(weight[t] > 0) & (fold != k)])) >= 2
        ]
        return cls(y, weight, classes, fold, np.array(pairs, dtype=np.int64).reshape(-1, 2))

    @property
    def outputs(self) -> int:
        """Columns of weights per problem."""
        return self.classes if self.y.ndim == 1 else 1

    def solve(self, design: Design, Cs: Sequence[float], *, tol: float, at_once: int = AT_ONCE) -> Iterator[Solution]:
        """Yield the solutions of some penalties after some, problems of one penalty together; `Cs` must rise."""
        count = len(self.problems)
        labels = self.y if self.y.ndim == 1 or len(self.y) == 1 else self.y[self.problems[:, 1]].astype(np.float32)
        fitted = np.where(self.fold == self.problems[:, :1], 0, self.weight[self.problems[:, 1]]).astype(np.float32)
        step = max(1, at_once // (count * self.outputs))
        start = None
        for first in range(0, len(Cs), step):
            some = np.asarray(Cs[first : first + step])
            solution = fit_logistic(
                design,
                labels if labels.ndim == 1 or len(labels) == 1 else np.tile(labels, (len(some), 1)),
                np.tile(fitted, (len(some), 1)),
                some.repeat(count),
                classes=self.classes,
                start=None if start is None else start.repeat(len(some), 1, 1),
                tol=tol,
            )
            start = solution.theta[-count:]
            yield solution

    def held_out_scores(self, solution: Solution) -> NDArray[np.float64]:
        """Return the log odds of each row by the fits of its fold.

        Shape (penalties, n, K), or (penalties, n, T) for labels; NaN where there is none.
        """
        design, softmax = solution.design, self.y.ndim == 1
        theta = solution.theta.to(design.rotated.dtype)
        theta = theta.view(-1, len(self.problems), *theta.shape[1:])
        width = self.outputs if softmax else len(self.y)
        scores = np.full((len(theta), len(self.fold), width), np.nan)
        for k in np.unique(self.problems[:, 0]):
            rows, own = np.flatnonzero(self.fold == k), np.flatnonzero(self.problems[:, 0] == k)
            values = (design.rotated[rows] @ theta[:, own].flatten(0, 2).T).numpy()
            columns = np.arange(width) if softmax else self.problems[own, 1]
            scores[np.ix_(np.arange(len(theta)), rows, columns)] = values.reshape(len(rows), len(theta), -1).swapaxes(
                0, 1
            )
        return scores

    def held_out_loss(self, scores: NDArray[np.float64]) -> float:
        """Return the mean log loss of held-out rows; NaN if none is known.

        A row of a class that its fold could not learn does not count: nothing could foresee it.
        """
        known = ~np.isnan(scores)
        scores = np.where(known, scores, 0)
        if self.y.ndim == 2:
            losses = np.logaddexp(0, (1 - 2 * self.y.T) * scores)
            weight = np.where(known, self.weight.T, 0)
        else:
            losses = logsumexp(scores, axis=1) - scores[np.arange(len(self.y)), self.y]
            weight = np.where(known[:, 0] & self._foreseen, self.weight[0], 0)
        total = weight.sum()
        return float((losses * weight).sum() / total) if total else float("nan")

    @property
    def _foreseen(self) -> NDArray[np.bool_]:
        """Return whether the class of each row occurs outside its fold, shape (n,)."""
        counts = np.zeros((self.fold.max() + 1, self.classes))
        held = (self.fold >= 0) & (self.weight[0] > 0)
        np.add.at(counts, (self.fold[held], self.y[held]), 1)
        total = np.bincount(self.y[self.weight[0] > 0], minlength=self.classes)
        known: NDArray[np.bool_] = (total - counts)[self.fold, self.y] > 0
        return known


def logistic_path(
    X: ArrayLike,
    y: ArrayLike,
    folds: ArrayLike,
    Cs: ArrayLike,
    *,
    sample_weight: ArrayLike | None = None,
    tol: float = 3e-4,
) -> LogisticPath:
    """Fit logistic regressions with an L2 penalty for every penalty and fold, and score held-out rows.

    The objective is scikit-learn's, 1/2 |w|^2 + C sum_i loss_i, on the features as they are; the intercept
    is free. Standardise X before, where that is wanted.

    Parameters
    ----------
    X
        Features, shape (n, d), finite.
    y
        Labels (n,) of two or more classes, or 0, 1 and NaN (missing) of shape (n, T).
    folds
        The fold that each row is held out of, shape (n,), in 0..F-1; rows with -1 are in every fit.
    Cs
        Inverse strengths of the penalty, positive.
    sample_weight
        Weights of the rows, shape (n,), not negative.
    tol
        Each objective is within this share of its optimum, by a bound that is checked; of the intercept, which is
        not penalised, it is an estimate.

    Raises
    ------
    HeadError
        If shapes do not fit, a value is not finite, or no fold has two classes to learn from.

    Examples
    --------
    >>> path = logistic_path(X, y, folds, np.logspace(-4, 4, 10))
    >>> path.best, path.scores.shape
    """
    features, fold, strengths = np.asarray(X), np.asarray(folds, dtype=np.int64), np.asarray(Cs, dtype=np.float64)
    if features.ndim != 2 or fold.shape != (len(features),) or len(np.asarray(y)) != len(features):
        raise HeadError(
            f"logistic_path: X {features.shape}, y {np.shape(y)} and folds {fold.shape} must have the same rows"
        )
    if not np.isfinite(features).all():
        raise HeadError("logistic_path: X has values that are not finite")
    if strengths.ndim != 1 or not len(strengths) or not (strengths > 0).all():
        raise HeadError(f"logistic_path: Cs={Cs!r} is wrong; expected positive numbers")
    weight = np.ones(len(features)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    problems = FoldProblems.of(*_encoded(np.asarray(y), weight, fold))
    if not len(problems.problems):
        raise HeadError("logistic_path: no fold has two classes to learn from")
    return _walk(Design.of(features), problems, strengths, tol)


def _encoded(
    y: NDArray[Any], weight: NDArray[np.float64], fold: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.int64], int]:
    """Return labels, weights, folds and the number of classes as `FoldProblems` has them."""
    if y.ndim == 2:
        observed = ~np.isnan(y.astype(np.float64))
        return np.where(observed, y, 0).T.astype(np.float32), (observed * weight[:, None]).T, fold, 2
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) > 2:
        return codes, weight[None], fold, len(classes)
    return codes[None].astype(np.float32), weight[None], fold, 2


def _walk(design: Design, problems: FoldProblems, Cs: NDArray[np.float64], tol: float) -> LogisticPath:
    """Solve the whole path and collect it in the order of `Cs`."""
    folds = int(problems.fold.max()) + 1
    softmax = problems.y.ndim == 1
    columns = problems.outputs if softmax else len(problems.y)
    coef = np.full((len(Cs), folds, columns, design.basis.shape[0]), np.nan)
    intercept = np.full(coef.shape[:3], np.nan)
    gaps = np.full((len(Cs), folds, len(problems.weight)), np.nan)
    scores = np.full((len(Cs), len(problems.fold), columns), np.nan)
    losses = np.full(len(Cs), np.nan)
    order = np.argsort(Cs, kind="stable")
    k, t = problems.problems.T
    done = 0
    for solution in problems.solve(design, Cs[order].tolist(), tol=tol):
        step = problems.held_out_scores(solution)
        places = order[done : done + len(step)]
        done += len(step)
        scores[places] = step
        gaps[places[:, None], k, t] = solution.relative_gap.reshape(len(step), -1)
        for values, found in ((coef, solution.coef), (intercept, solution.intercept)):
            shaped = found.reshape(len(step), len(k), *found.shape[1:])
            values[(places[:, None], k) if softmax else (places[:, None], k, t)] = (
                shaped if softmax else shaped[:, :, 0]
            )
        losses[places] = [problems.held_out_loss(each) for each in step]
    alone = columns == 1
    return LogisticPath(
        Cs=Cs,
        scores=scores[..., 0] if alone else scores,
        losses=losses,
        coef=coef,
        intercept=intercept,
        gaps=gaps[..., 0] if len(problems.weight) == 1 else gaps,
    )


def _label(y: NDArray[Any], column: int) -> NDArray[Any]:
    labels: NDArray[Any] = y if y.ndim == 1 else y[column]
    return labels
