"""Statistics of weighted samples, many rows of weights at once.

Every function takes weights of shape (b, n) (see `heads.evaluation.bootstrap`) and agrees with scikit-learn or
scipy on samples repeated as often as their weight says, ties included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.evaluation.bootstrap import Floats, Statistic


def ratio(numerator: Floats, denominator: Floats, *, empty: float = np.nan) -> Floats:
    """Return numerator / denominator, elementwise; `empty` where the denominator is 0."""
    result = np.full(np.broadcast(numerator, denominator).shape, empty)
    np.divide(numerator, denominator, out=result, where=denominator != 0)
    return result


def totals(columns: Floats) -> Statistic:
    """Return the statistic that sums columns: (n, k) -> weights (b, n) -> (b, k)."""
    return lambda weights: weights @ columns


@dataclass(frozen=True, slots=True)
class Order:
    """The rows in order of a score, in runs of equal scores.

    Attributes
    ----------
    rows
        Row numbers, lowest score first, shape (m,).
    run
        The run of each position, shape (m,).
    start, stop
        Where each run begins and ends (exclusive), shape (u,).
    """

    rows: NDArray[np.intp]
    run: NDArray[np.intp]
    start: NDArray[np.intp]
    stop: NDArray[np.intp]

    @classmethod
    def of(cls, scores: Floats, rows: NDArray[np.intp]) -> Order:
        """Return the order of `rows` (at least one) by `scores[rows]`."""
        rows = rows[np.argsort(scores[rows], kind="stable")]
        differs = np.diff(scores[rows]) != 0
        start = np.append(0, np.flatnonzero(differs) + 1)
        return cls(rows, np.append(0, np.cumsum(differs)), start, np.append(start[1:], len(rows)))


def _below(ordered: Floats) -> Floats:
    """Return the weight before each position, and in the last column all of it: (b, m) -> (b, m + 1)."""
    below = np.zeros((len(ordered), ordered.shape[1] + 1))
    np.cumsum(ordered, axis=1, out=below[:, 1:])
    return below


def ranking(positive: NDArray[np.bool_], scores: Floats, rows: NDArray[np.intp]) -> Statistic:
    """Return the statistic [area under the ROC curve, average precision], shape (b, 2).

    Parameters
    ----------
    positive, scores
        What is ranked and by what, shape (n,).
    rows
        The rows that count (those whose label is known).

    Notes
    -----
    The area is the Mann-Whitney statistic, ties counted half; average precision is the sum over
    thresholds of precision times the step in recall, as in scikit-learn. Both are sums over the runs
    that hold a positive, so a rare class is cheap. Both need positives, the area also needs negatives.
    """
    if not positive[rows].any():
        return lambda weights: np.full((len(weights), 2), np.nan)
    order = Order.of(-scores, rows)
    hit = np.flatnonzero(positive[order.rows])
    runs, first_hit = np.unique(order.run[hit], return_index=True)
    start, stop = order.start[runs], order.stop[runs]

    def statistic(weights: Floats) -> Floats:
        ordered = weights.take(order.rows, axis=1)
        new_hits = np.add.reduceat(ordered.take(hit, axis=1), first_hit, axis=1)
        hits = np.cumsum(new_hits, axis=1)
        above = _below(ordered)
        upto = above.take(stop, axis=1)
        n_hits = hits[:, -1]
        n_false = above[:, -1] - n_hits
        false_alarms = (upto + above.take(start, axis=1) - 2 * hits + new_hits) / 2  # those within a tie count half
        ranked_above = np.einsum("bu,bu->b", new_hits, n_false[:, None] - false_alarms)
        precision_area = np.einsum("bu,bu->b", new_hits, ratio(hits, upto, empty=0.0))
        return np.stack([ratio(ranked_above, n_hits * n_false), ratio(precision_area, n_hits)], axis=1)

    return statistic


def pooled_ranking(positive: NDArray[np.bool_], scores: Floats, known: NDArray[np.bool_]) -> Statistic:
    """Return `ranking` of every known entry of matrices, all columns in one ranking (micro average), shape (b, 2).

    Parameters
    ----------
    positive, scores, known
        Shape (n, k).
    """
    statistic, width = ranking(positive.ravel(), scores.ravel(), np.flatnonzero(known)), positive.shape[1]
    # A few resamples at a time: an entry takes as much memory as a row does elsewhere.
    return lambda weights: np.concatenate(
        [statistic(np.repeat(part, width, axis=1)) for part in np.array_split(weights, min(width, len(weights)))]
    )


def spearman(x: Floats, y: Floats, rows: NDArray[np.intp]) -> Statistic:
    """Return the statistic Spearman's rank correlation of `rows`, shape (b,); NaN for a constant.

    Ranks are made anew in every resample, ties share their mean rank.
    """
    if len(rows) == 0:
        return lambda weights: np.full(len(weights), np.nan)
    x_order, y_order = Order.of(x, rows), Order.of(y, rows)

    def statistic(weights: Floats) -> Floats:
        of_x, of_y = _centred_ranks(weights, x_order), _centred_ranks(weights, y_order)
        weights = weights.take(np.sort(rows), axis=1)
        covariance, of_xx, of_yy = (
            np.einsum("bn,bn,bn->b", weights, one, two) for one, two in ((of_x, of_y), (of_x, of_x), (of_y, of_y))
        )
        return ratio(covariance, np.sqrt(of_xx * of_yy))

    return statistic


def _centred_ranks(weights: Floats, order: Order) -> Floats:
    """Return mean ranks minus their mean, shape (b, m), for the rows in ascending row number; exact in floats."""
    below = _below(weights.take(order.rows, axis=1))
    # A run that holds ranks a+1 .. z has mean rank (a + 1 + z) / 2; the mean of all ranks is (W + 1) / 2.
    centred = (below.take(order.start, axis=1) + below.take(order.stop, axis=1) - below[:, -1:]) / 2
    return centred.take(order.run[np.argsort(order.rows)], axis=1)


def class_totals(codes: NDArray[np.intp], n_classes: int, rows: NDArray[np.intp]) -> Statistic:
    """Return the statistic that sums the weights of `rows` by their class code, shape (b, n_classes)."""
    rows = rows[np.argsort(codes[rows], kind="stable")]
    present, starts = np.unique(codes[rows], return_index=True)

    def statistic(weights: Floats) -> Floats:
        sums = np.zeros((len(weights), n_classes))
        if len(rows):
            sums[:, present] = np.add.reduceat(weights.take(rows, axis=1), starts, axis=1)
        return sums

    return statistic


def stacked(statistics: Sequence[Statistic]) -> Statistic:
    """Return the statistic that stacks others along a new second axis, shape (b, len(statistics), ...)."""
    return lambda weights: np.stack([statistic(weights) for statistic in statistics], axis=1)
