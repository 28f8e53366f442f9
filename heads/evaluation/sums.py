"""What metrics sum over samples: one column per term, so that resampling is one matrix product."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from heads.evaluation.bootstrap import Floats
from heads.evaluation.weighted import ratio

ECE_BINS = 15
LABEL_COUNTS = 4
"""A label's first columns count true positives, false positives, false negatives and true negatives."""


def label_columns(y: Floats, scores: Floats, threshold: float) -> Floats:
    """Return what is summed for one label, shape (n, 6 + ECE_BINS); rows without a label are 0."""
    known, positive, predicted = np.isfinite(y), y == 1, scores >= threshold
    columns = np.zeros((len(y), 6 + ECE_BINS))
    columns[:, 0] = known & positive & predicted
    columns[:, 1] = known & ~positive & predicted
    columns[:, 2] = known & positive & ~predicted
    columns[:, 3] = known & ~positive & ~predicted
    if scores.min() < 0 or scores.max() > 1:
        columns[:, LABEL_COUNTS:] = np.nan
        return columns
    p, q = scores[known], y[known]
    columns[known, 4] = (p - q) ** 2
    columns[known, 5] = _surprise(np.where(q == 1, p, 1 - p))
    columns[known, 6:] = _calibration_columns(p, q)
    return columns


def class_columns(truth: NDArray[np.intp], predicted: NDArray[np.intp], proba: Floats) -> Floats:
    """Return log loss and top-label calibration, what is summed, shape (n, 1 + ECE_BINS)."""
    columns = np.full((len(truth), 1 + ECE_BINS), np.nan)
    if proba.min() >= 0 and np.allclose(proba.sum(axis=1), 1, atol=1e-3):
        rows = np.arange(len(truth))
        columns[:, 0] = _surprise(proba[rows, truth])
        columns[:, 1:] = _calibration_columns(proba[rows, predicted], (truth == predicted).astype(np.float64))
    return columns


def moment_columns(y: Floats, predicted: Floats) -> Floats:
    """Return what is summed for one target, shape (n, 8); rows without a target are 0."""
    known = np.isfinite(y)
    columns = np.zeros((len(y), 8))
    t, p = y[known], predicted[known]
    error = p - t
    t, p = _centred(t), _centred(p)
    columns[known] = np.stack([np.ones_like(t), t, p, t * t, p * p, t * p, np.abs(error), error**2], axis=1)
    return columns


def _centred(values: Floats) -> Floats:
    """Return the values minus their mean; exactly 0 where they differ by rounding only."""
    if len(values) == 0:
        return values
    mean = values.mean()
    centred = values - mean
    return np.zeros_like(values) if np.abs(centred).max() <= 1e-13 * abs(mean) else centred


def spread(w: Floats, total: Floats, squares: Floats) -> Floats:
    """Return the sum of squared deviations from the mean of each resample; exactly 0 within rounding of 0."""
    spread = squares - ratio(total**2, w, empty=0.0)
    return np.where(spread <= 1e-12 * squares, 0.0, spread)


def _surprise(probability_of_truth: Floats) -> Floats:
    """Return -log p, with p kept off 0 as scikit-learn does."""
    return -np.log(np.maximum(probability_of_truth, np.finfo(np.float64).eps))


def _calibration_columns(confidence: Floats, outcome: Floats) -> Floats:
    """Return outcome - confidence in the column of its bin, shape (n, ECE_BINS).

    The expected calibration error (Guo et al., 2017) is the sum over bins of the absolute column sum,
    divided by n: equal-width bins, each weighted by its share of the samples.
    """
    columns = np.zeros((len(confidence), ECE_BINS))
    bins = np.minimum((confidence * ECE_BINS).astype(np.intp), ECE_BINS - 1)
    columns[np.arange(len(bins)), bins] = outcome - confidence
    return columns


def micro_and_weighted(tp: Floats, fp: Floats, fn: Floats) -> dict[str, Floats]:
    """Return micro and support-weighted precision, recall and F1, shape (R,), from counts (R, K)."""
    averages: dict[str, Floats] = {}
    support = tp + fn
    for name, above, below in _prf(tp, fp, fn):
        averages[f"micro_{name}"] = ratio(above.sum(1), below.sum(1), empty=0.0)
        weighted = (support * ratio(above, below, empty=0.0)).sum(1)
        averages[f"weighted_{name}"] = ratio(weighted, support.sum(1))
    return averages


def micro_curves(curves: Floats) -> dict[str, Floats]:
    """Return the areas of a `pooled_ranking`, shape (R, 2), by name."""
    return {"micro_roc_auc": curves[:, 0], "micro_average_precision": curves[:, 1]}


def macro_prf(tp: Floats, fp: Floats, fn: Floats) -> dict[str, Floats]:
    """Return precision, recall and F1 of each class, shape (R, K), NaN where the class does not occur."""
    occurs = tp + fp + fn > 0
    return {
        f"macro_{name}": np.where(occurs, ratio(above, below, empty=0.0), np.nan)
        for name, above, below in _prf(tp, fp, fn)
    }


def _prf(tp: Floats, fp: Floats, fn: Floats) -> tuple[tuple[str, Floats, Floats], ...]:
    return (("precision", tp, tp + fp), ("recall", tp, tp + fn), ("f1", 2 * tp, 2 * tp + fp + fn))
