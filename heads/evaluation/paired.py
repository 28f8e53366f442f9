"""Paired tests of two heads that were judged on the same rows.

`paired_difference` resamples whole groups and is the one to trust where rows come in groups. `delong`
and `mcnemar` take rows for independent: with several rows per patient their p-values are too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm, rankdata

from data.task import Kind
from heads.errors import HeadError
from heads.evaluation.bootstrap import Bootstrap, Floats
from heads.evaluation.metrics import replicates


class Difference(NamedTuple):
    """A difference a - b with its 95 % interval and the two-sided p-value of no difference; NaN where undefined."""

    difference: float
    low: float
    high: float
    p: float


def paired_difference(
    kind: Kind,
    y: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    *,
    metric: str,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    thresholds: tuple[float | Sequence[float], float | Sequence[float]] = (0.5, 0.5),
    min_positives: int = 1,
    level: float = 0.95,
) -> Difference:
    """Return the paired clustered bootstrap difference of a metric between two sets of scores.

    Parameters
    ----------
    kind, y
        The task and its truth, see `heads.evaluation.metrics.evaluate`.
    scores_a, scores_b
        What two heads said of the same rows.
    metric
        A name of `heads.evaluation.metrics.evaluate`, such as ``roc_auc``, ``macro_f1`` or ``mae``.
    groups
        What is drawn as a whole, shape (n,); None draws rows.
    n_boot, seed, level
        Number and seed of the resamples, coverage of the interval.
    thresholds
        Those of a and of b.
    min_positives
        See `heads.evaluation.metrics.evaluate`.

    Returns
    -------
    Difference
        See `difference_of` for the interval and the p-value.

    Raises
    ------
    HeadError
        If shapes do not fit, or the metric is not one of this kind of task.
    """
    truth = np.asarray(y)
    classes = _names(kind, np.asarray(scores_a))
    plan = Bootstrap.of(len(truth), groups, n_boot=n_boot, seed=seed, level=level)
    a, b = (
        replicates(kind, truth, scores, plan, classes=classes, thresholds=cuts, min_positives=min_positives)
        for scores, cuts in zip((scores_a, scores_b), thresholds, strict=True)
    )
    if metric not in a:
        raise HeadError(f"metric {metric!r}: a {kind} task has {', '.join(a)}")
    return difference_of(a[metric].values, b[metric].values, level=level)


def difference_of(a: Floats, b: Floats, *, level: float = 0.95) -> Difference:
    """Return the difference of two replicated statistics.

    Parameters
    ----------
    a, b
        Shape (1 + n_boot,): the value on the data, then on every resample; of the same resamples.
    level
        Coverage of the interval.

    Returns
    -------
    Difference
        The percentile interval of the resampled differences, and the p-value of the difference over
        their standard deviation, taken as normal (as pROC's ``roc.test(method="bootstrap")`` does): a
        p-value counted from resamples could not be smaller than ``2 / n_boot``, which no correction for
        many comparisons would survive. No interval and no p-value where half of the resamples or more
        are undefined, where there are none, or where all differ alike: nothing varies between
        resamples of a single group.
    """
    difference = float(a[0] - b[0])
    drawn = a[1:] - b[1:]
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(difference) or len(defined) < 2 or 2 * len(defined) <= len(drawn):
        return Difference(difference, np.nan, np.nan, np.nan)
    if np.ptp(defined) == 0 and difference != 0:
        return Difference(difference, np.nan, np.nan, np.nan)
    tail = 50 * (1 - level)
    low, high = np.percentile(defined, [tail, 100 - tail])
    return Difference(difference, float(low), float(high), _normal_p(difference, float(defined.std(ddof=1))))


def delong(y: ArrayLike, scores_a: ArrayLike, scores_b: ArrayLike) -> Difference:
    r"""Return DeLong's test of two areas under the ROC curve on the same, independent rows.

    Parameters
    ----------
    y
        0 or 1, shape (n,); rows that are NaN are left out.
    scores_a, scores_b
        Scores of the positive class, shape (n,).

    Notes
    -----
    With the placement values :math:`V_{10}(x_i) = \frac1n \sum_j \psi(x_i, y_j)` of the m positives and
    :math:`V_{01}(y_j) = \frac1m \sum_i \psi(x_i, y_j)` of the n negatives (:math:`\psi` is 1, 1/2 or 0), the
    variance of the difference is that of :math:`V_{10}^a - V_{10}^b` over m plus that of
    :math:`V_{01}^a - V_{01}^b` over n (DeLong et al., 1988); placements come from ranks (Sun and Xu, 2014).

    Raises
    ------
    HeadError
        If the shapes differ.
    """
    truth = np.asarray(y, dtype=np.float64)
    scores = np.stack([np.asarray(scores_a, dtype=np.float64), np.asarray(scores_b, dtype=np.float64)])
    if truth.ndim != 1 or scores.shape != (2, len(truth)):
        raise HeadError(f"DeLong's test needs labels and scores of shape (n,), got {truth.shape} and {scores.shape}")
    positive, negative = scores[:, truth == 1], scores[:, truth == 0]
    m, n = positive.shape[1], negative.shape[1]
    if min(m, n) < 2:
        return Difference(np.nan, np.nan, np.nan, np.nan)
    ranks = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    of_positive = (ranks[:, :m] - rankdata(positive, axis=1)) / n
    of_negative = 1 - (ranks[:, m:] - rankdata(negative, axis=1)) / m
    area_a, area_b = of_positive.mean(axis=1)
    variance = np.var(of_positive[0] - of_positive[1], ddof=1) / m + np.var(of_negative[0] - of_negative[1], ddof=1) / n
    difference, error = float(area_a - area_b), float(np.sqrt(variance))
    reach = float(norm.ppf(0.975)) * error
    return Difference(difference, difference - reach, difference + reach, _normal_p(difference, error))


class McNemar(NamedTuple):
    """How often only a, and only b, was right, and the two-sided p-value of no difference."""

    only_a: int
    only_b: int
    p: float


def mcnemar(
    right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], *, method: Literal["mid-p", "exact"] = "mid-p"
) -> McNemar:
    """Return McNemar's test of two heads' answers to the same, independent rows.

    Parameters
    ----------
    right_a, right_b
        Whether each answer was right, shape (n,).
    method
        ``exact`` is the binomial test of the rows on which only one was right; ``mid-p`` counts the
        observed outcome half, which keeps the level without the exact test's caution (Fagerland et al.,
        2013). Both are exact sums, for any count: no chi-square approximation is needed.
    """
    only_a, only_b = int(np.sum(right_a & ~right_b)), int(np.sum(right_b & ~right_a))
    fewer, n = min(only_a, only_b), only_a + only_b
    tail = float(binom.cdf(fewer, n, 0.5))
    if method == "mid-p":
        tail -= 0.5 * float(binom.pmf(fewer, n, 0.5))
    return McNemar(only_a, only_b, min(1.0, 2 * tail))


def holm(p: ArrayLike) -> Floats:
    """Return p-values adjusted for all of their family (Holm, 1979), in the same order; NaN is no member."""
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(values.shape, np.nan)
    members = np.flatnonzero(~np.isnan(values))
    order = members[np.argsort(values[members], kind="stable")]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def _normal_p(difference: float, error: float) -> float:
    """Return the two-sided p-value of a difference in units of its standard error."""
    if error == 0:
        return 1.0 if difference == 0 else np.nan
    return float(2 * norm.sf(abs(difference) / error))


def _names(kind: Kind, scores: NDArray[Any]) -> list[str]:
    """Return as many names as the task has classes or targets."""
    if kind == "binary":
        return ["0", "1"]
    width = scores.shape[1] if scores.ndim == 2 else 1
    return [str(j) for j in range(width)]
