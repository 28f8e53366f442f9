"""The points that evaluation plots are made of; plain arrays, nothing is drawn here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.evaluation.bootstrap import Bootstrap, Floats

Truth = NDArray[np.bool_]

BAND_RESAMPLES = 200
BAND_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One yes-or-no question a head answered: a class against the rest, or a label.

    Attributes
    ----------
    name
        The class or label.
    truth, scores
        The answer and its score, shape (n,).
    groups
        The group of each row, shape (n,), None where it has none.
    threshold
        Scores at or above it count as yes; None where the class with the highest score wins.
    """

    name: str
    truth: Truth
    scores: Floats
    groups: tuple[str | None, ...] = ()
    threshold: float | None = None

    @property
    def answerable(self) -> bool:
        """Whether there are both positives and negatives."""
        return bool(self.truth.any() and not self.truth.all())


def roc_points(truth: Truth, scores: Floats, weights: Floats | None = None) -> tuple[Floats, Floats]:
    """Return false and true positive rate at every threshold, shape (u + 1,), from (0, 0) to (1, 1)."""
    hits, false_alarms = _counts_above(truth, scores, weights)
    return np.append(0, false_alarms / false_alarms[-1]), np.append(0, hits / hits[-1])


def precision_recall_points(truth: Truth, scores: Floats) -> tuple[Floats, Floats]:
    """Return recall and precision at every threshold, shape (u + 1,); draw them as steps before each point."""
    hits, false_alarms = _counts_above(truth, scores, None)
    precision = hits / (hits + false_alarms)
    return np.append(0, hits / hits[-1]), np.append(precision[0], precision)


def roc_band(question: Question, *, level: float = 0.95, seed: int = 0) -> tuple[Floats, Floats]:
    """Return the lowest and highest true positive rate on `BAND_GRID`, pointwise over resamples of groups."""
    plan = Bootstrap.of(len(question.truth), question.groups or None, n_boot=BAND_RESAMPLES, seed=seed, level=level)
    curves = []
    for chunk in plan.weights():
        for weights in chunk:
            drawn = weights > 0
            if question.truth[drawn].any() and not question.truth[drawn].all():
                rates = roc_points(question.truth, question.scores, weights)
                curves.append(np.interp(BAND_GRID, *rates))
    tail = 50 * (1 - level)
    low, high = np.percentile(curves, [tail, 100 - tail], axis=0)
    return low, high


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """How often the head was right where it claimed some probability, in equal-width bins.

    Attributes
    ----------
    claimed, observed
        Mean probability and share of hits of each bin that is not empty, shape (b,).
    low, high
        95 % Wilson interval of `observed`.
    counts
        Samples per bin, shape (b,).
    """

    claimed: Floats
    observed: Floats
    low: Floats
    high: Floats
    counts: NDArray[np.int64]


def reliability(confidence: Floats, outcome: Truth, *, bins: int) -> Reliability:
    """Return the reliability diagram of probabilities and whether they came true, both shape (n,)."""
    which = np.minimum((confidence * bins).astype(np.intp), bins - 1)
    counts = np.bincount(which, minlength=bins)
    used = counts > 0
    n = counts[used]
    observed = np.bincount(which, weights=outcome, minlength=bins)[used] / n
    z = 1.959964
    centre = (observed + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(observed * (1 - observed) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    claimed = np.bincount(which, weights=confidence, minlength=bins)[used] / n
    return Reliability(claimed=claimed, observed=observed, low=centre - half, high=centre + half, counts=n)


def _counts_above(truth: Truth, scores: Floats, weights: Floats | None) -> tuple[Floats, Floats]:
    """Return hits and false alarms at every distinct threshold, highest first."""
    order = np.argsort(-scores, kind="stable")
    last_of_run = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    ones = np.ones(len(order)) if weights is None else weights[order]
    hits = np.cumsum(ones * truth[order])[last_of_run]
    return hits, np.cumsum(ones)[last_of_run] - hits


def largest(questions: Sequence[Question], limit: int) -> list[Question]:
    """Return the answerable questions, at most `limit`: those with the most positives, in their own order."""
    answerable = [question for question in questions if question.answerable]
    by_size = sorted(range(len(answerable)), key=lambda i: -int(answerable[i].truth.sum()))
    return [answerable[i] for i in sorted(by_size[:limit])]
