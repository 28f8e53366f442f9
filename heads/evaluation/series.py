"""Replicated metrics by name, and why each may be undefined."""

from __future__ import annotations

import numpy as np

from heads.evaluation.bootstrap import Floats, Series
from heads.evaluation.weighted import ratio

Values = dict[str, Floats]
"""The name of a metric to its value on the data and on every resample, shape (R, ...)."""

_NOT_PROBABILITIES = "the scores are not probabilities"
_REASONS = {
    "roc_auc": "needs positives and negatives",
    "average_precision": "needs positives",
    "balanced_accuracy": "needs every class in the truth",
    "sensitivity": "needs positives",
    "recall": "needs samples of the class",
    "specificity": "needs negatives",
    "ppv": "nothing was predicted positive",
    "precision": "nothing was predicted positive",
    "npv": "nothing was predicted negative",
    "f1": "no positives, and nothing was predicted positive",
    "mcc": "truth or prediction is a single class",
    "cohen_kappa": "truth and prediction are one and the same class",
    "brier": _NOT_PROBABILITIES,
    "log_loss": _NOT_PROBABILITIES,
    "ece": _NOT_PROBABILITIES,
    "macro_roc_auc": "no class has both positives and negatives",
    "macro_average_precision": "no class has positives",
    "micro_roc_auc": "needs positives and negatives",
    "micro_average_precision": "needs positives",
    "exact_match": "no sample has all its labels",
    "r2": "the truth is constant",
    "pearson_r": "truth or prediction is constant",
    "spearman_r": "truth or prediction is constant",
}


def series(values: Values, *, reason: str | None = None) -> dict[str, Series]:
    """Return statistics (R,) by name, each with the reason why it may be undefined."""
    return {
        name: Series(replicated, reason or reason_of(name), centred=name == "ece")
        for name, replicated in values.items()
    }


def mean_series(values: Values) -> dict[str, Series]:
    """Return means over classes: values (R, K), NaN where a class is undefined."""
    result = {}
    for name, by_class in values.items():
        defined = np.isfinite(by_class)
        mean = ratio(np.where(defined, by_class, 0.0).sum(axis=1), defined.sum(axis=1).astype(np.float64))
        partial = (defined != defined[:1]).any(axis=1) & defined.any(axis=1)
        result[name] = Series(mean, reason_of(name), partial)
    return result


def reason_of(metric: str) -> str:
    """Return why a metric may be undefined."""
    return _REASONS.get(metric, "no class occurs often enough")
