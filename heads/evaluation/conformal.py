"""Conformal prediction: sets of classes, or intervals, that hold the truth as often as promised.

The nonconformity of a row is one minus the probability of its true class ("LAC", Sadinle et al.,
2019), or the absolute error of a regression. The quantile of the nonconformity of rows that the scoring
heads had not seen (the out-of-fold rows) decides which classes enter a set, and how wide an interval is.

Rows of one group resemble each other, so what is exchangeable is groups. Every group has weight one,
shared by its rows (hierarchical conformal prediction, Lee, Barber and Willett, 2023), and one group more
is counted whose nonconformity is infinite: the promise is for a random row of a *new* group. Where each
row is its own group this is the usual quantile of order ceil((n + 1) x coverage).

What the promise rests on: the head that is kept has seen more rows than the folds' heads whose scores
set the quantile. It is usually a little better than these, so sets tend to be slightly too large, but
the proof needs heads of equal quality. Coverage is on average over rows, not per class or subgroup.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.task import Kind, Task
from heads.errors import BundleError
from heads.evaluation.bootstrap import Bootstrap, Estimate
from heads.evaluation.scoring import Scores
from heads.evaluation.weighted import ratio, totals

Regions = NDArray[Any]
"""What each row's set holds: whether each class, bool (n, K), or no and yes to each label, bool (n, L, 2); or the
ends of the interval of each target, float64 (n, T, 2)."""


@dataclass(frozen=True, kw_only=True)
class Conformal:
    """What turns scores into sets or intervals.

    Attributes
    ----------
    kind
        The kind of task.
    coverage
        The share of rows whose truth is to be inside.
    quantiles
        The largest nonconformity inside: one for classes, one per label or target. Infinite where there
        are too few groups for the coverage, so that everything is inside.
    groups
        How many groups each quantile was taken from.
    """

    kind: Kind
    coverage: float
    quantiles: tuple[float, ...]
    groups: tuple[int, ...]

    @property
    def method(self) -> str:
        """What the nonconformity is."""
        return "absolute error" if self.kind == "regression" else "least ambiguous sets (LAC)"

    def regions(self, scores: Scores) -> Regions:
        """Return the sets or intervals of rows; the most probable answer is always inside.

        Parameters
        ----------
        scores
            As `heads.evaluation.scoring.scores_of` returns them.
        """
        quantiles = np.array(self.quantiles)
        if self.kind == "regression":
            values = scores.reshape(len(scores), -1)
            return np.stack([values - quantiles, values + quantiles], axis=2)
        if self.kind == "multilabel":
            probability, limit = np.stack([1 - scores, scores], axis=2), quantiles[:, None]
        else:
            probability, limit = _per_class(self.kind, scores), quantiles
        return np.asarray((1 - probability <= limit) | (probability == probability.max(axis=-1, keepdims=True)))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; an infinite quantile is None."""
        return {
            "method": self.method,
            "coverage": self.coverage,
            "quantiles": [value if math.isfinite(value) else None for value in self.quantiles],
            "groups": list(self.groups),
        }


def read_conformal(values: Mapping[str, Any] | None, kind: Kind) -> Conformal | None:
    """Return what `Conformal.to_dict` wrote; None for a head that has none.

    Raises
    ------
    BundleError
        If the values are damaged.
    """
    if values is None:
        return None
    try:
        return Conformal(
            kind=kind,
            coverage=float(values["coverage"]),
            quantiles=tuple(math.inf if value is None else float(value) for value in values["quantiles"]),
            groups=tuple(map(int, values["groups"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"the head's prediction sets are damaged: {error!r}; fit the head again") from error


def conformal(task: Task, y: NDArray[Any], scores: Scores, groups: NDArray[np.int64], *, coverage: float) -> Conformal:
    """Take the quantiles from rows that the scoring heads had not seen.

    Parameters
    ----------
    task
        The task.
    y, scores
        Targets and scores, as `heads.evaluation.scoring.scores_of` returns them.
    groups
        The group of each row, shape (n,).
    coverage
        Between 0 and 1.
    """
    found = nonconformity(task.kind, y, scores)
    known = np.isfinite(found)
    return Conformal(
        kind=task.kind,
        coverage=coverage,
        quantiles=tuple(group_quantile(found[rows, j], groups[rows], coverage) for j, rows in enumerate(known.T)),
        groups=tuple(len(np.unique(groups[rows])) for rows in known.T),
    )


def nonconformity(kind: Kind, y: NDArray[Any], scores: Scores) -> Scores:
    """Return how badly each truth fits its scores: (n, 1), or (n, L) per label or target, NaN where unknown."""
    if kind in ("binary", "multiclass"):
        true = _per_class(kind, scores)[np.arange(len(scores)), y.astype(np.int64)]
        return 1 - true[:, None]
    truth, columns = (np.asarray(values, dtype=np.float64).reshape(len(scores), -1) for values in (y, scores))
    if kind == "regression":
        return np.abs(truth - columns)
    return np.where(np.isfinite(truth), 1 - np.where(truth == 1, columns, 1 - columns), np.nan)


def group_quantile(values: Scores, groups: NDArray[Any], coverage: float) -> float:
    """Return the smallest value that at least (K + 1) x coverage of K groups' weight does not exceed.

    Parameters
    ----------
    values
        Nonconformity, shape (n,).
    groups
        The group of each row, shape (n,); a group of m rows gives each the weight 1/m.
    coverage
        Between 0 and 1.

    Returns
    -------
    float
        Infinite if there are fewer groups than ceil(coverage / (1 - coverage)).
    """
    if not len(values):
        return math.inf
    _, of_row, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(values, kind="stable")
    weight = np.cumsum(1 / sizes[of_row[order]])
    enough = np.flatnonzero(weight >= (len(sizes) + 1) * coverage - 1e-9)
    return float(values[order[enough[0]]]) if len(enough) else math.inf


def groups_needed(coverage: float) -> int:
    """Return how many groups there must be for a finite quantile."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def judge_regions(
    kind: Kind, y: NDArray[Any], regions: Regions, groups: NDArray[np.int64], *, n_boot: int, seed: int
) -> dict[str, Estimate]:
    """Return how often sets or intervals hold the truth, and how large they are, each with an interval.

    Every group counts once, as in the promise; the labels or targets of a row are pooled.

    Returns
    -------
    dict
        ``coverage``, and ``set_size`` (classes; answers per label) or ``width`` (of intervals).
    """
    inside, size, known = _contents(kind, y, regions)
    _, of_row, rows = np.unique(groups, return_inverse=True, return_counts=True)
    columns = np.stack([inside.sum(axis=1), size.sum(axis=1), known.sum(axis=1)], axis=1) / rows[of_row][:, None]
    plan = Bootstrap.of(len(y), groups, n_boot=n_boot, seed=seed, level=0.95)
    sums = plan.replicate({"sums": totals(columns)})["sums"]
    return {
        "coverage": plan.estimate(ratio(sums[:, 0], sums[:, 2]), "no truth is known"),
        "width" if kind == "regression" else "set_size": plan.estimate(
            ratio(sums[:, 1], sums[:, 2]), "too few groups for this coverage: the intervals are infinite"
        ),
    }


def _per_class(kind: Kind, scores: Scores) -> Scores:
    return np.column_stack([1 - scores, scores]) if kind == "binary" else scores


def _contents(kind: Kind, y: NDArray[Any], regions: Regions) -> tuple[Scores, Scores, Scores]:
    """Return, per row and question, whether the truth is inside, the size, and whether the truth is known."""
    if kind == "regression":
        truth, low, high = y.reshape(len(y), -1), regions[..., 0], regions[..., 1]
        known, inside = np.isfinite(truth), (low <= truth) & (truth <= high)
        size = np.where(np.isfinite(high), high - low, np.nan)
    elif kind == "multilabel":
        known = np.isfinite(y)
        inside, size = np.where(y == 1, regions[..., 1], regions[..., 0]), regions.sum(axis=2)
    else:
        known = np.ones((len(y), 1), dtype=np.bool_)
        inside = regions[np.arange(len(y)), y.astype(np.int64)][:, None]
        size = regions.sum(axis=1)[:, None]
    return np.where(known, inside, 0.0), np.where(known, size, 0.0), known.astype(np.float64)
