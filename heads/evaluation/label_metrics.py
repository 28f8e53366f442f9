"""Metrics of labels: every label, of one or of many, is a binary question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from heads.errors import HeadError
from heads.evaluation.bootstrap import Bootstrap, Floats
from heads.evaluation.checks import expect_shape
from heads.evaluation.series import Values, mean_series, series
from heads.evaluation.sums import LABEL_COUNTS, label_columns, macro_prf, micro_and_weighted, micro_curves
from heads.evaluation.weighted import pooled_ranking, ranking, ratio, stacked, totals

_PER_LABEL = (
    "roc_auc", "average_precision", "f1", "precision", "recall", "sensitivity", "specificity", "npv", "brier", "ece",
)  # fmt: skip
_ALIASES = {"precision": "ppv", "recall": "sensitivity"}


def binary(
    y: Floats, scores: Floats, classes: Sequence[str], thresholds: float | Sequence[float], plan: Bootstrap
) -> dict[str, Any]:
    """Return the metrics of a binary task; see `heads.evaluation.metrics.evaluate` for parameters and errors."""
    expect_shape("y_true", y, (len(y),))
    expect_shape("scores", scores, (len(y),))
    _expect_names(classes, 2)
    if np.isnan(y).any():
        raise HeadError("y_true: a binary task needs every label; leave samples without one out")
    sums, values = _label_values(y[:, None], scores[:, None], np.array([_as_float(thresholds)]), plan)
    tp, fp, fn, tn = np.moveaxis(sums[:, 0, :LABEL_COUNTS], 1, 0)
    both = micro_and_weighted(*(np.stack(counts, 1) for counts in ((tn, tp), (fn, fp), (fp, fn))))
    return {
        "prevalence": float(y.mean()),
        "threshold": _as_float(thresholds),
        **series({name: of_label[:, 0] for name, of_label in values.items() if name not in _ALIASES}),
        **series({name: value for name, value in both.items() if name.startswith("weighted_")}),
        "confusion": {"classes": list(classes), "counts": [[int(tn[0]), int(fp[0])], [int(fn[0]), int(tp[0])]]},
    }


def multilabel(
    y: Floats,
    scores: Floats,
    labels: Sequence[str],
    thresholds: float | Sequence[float],
    min_positives: int,
    plan: Bootstrap,
) -> dict[str, Any]:
    """Return the metrics of a multilabel task; see `heads.evaluation.metrics.evaluate` for parameters and errors."""
    expect_shape("y_true", y, (len(y), len(labels)))
    expect_shape("scores", scores, y.shape)
    cuts = np.asarray(thresholds, dtype=np.float64)
    if cuts.ndim and cuts.shape != (len(labels),):
        raise HeadError(f"thresholds: expected one per label ({len(labels)}), got {cuts.size}")
    cuts = np.broadcast_to(cuts, len(labels))
    sums, values = _label_values(y, scores, cuts, plan)
    tp, fp, fn, tn = np.moveaxis(sums[:, :, :LABEL_COUNTS], 2, 0)
    left_out = _left_out(labels, tp[0] + fn[0], fp[0] + tn[0], max(1, min_positives))
    kept = np.array([label not in left_out for label in labels])
    wrong = (scores >= cuts) != (y == 1)
    complete = np.isfinite(y).all(axis=1)
    rows = plan.replicate(
        {
            "exact": totals(np.stack([complete & ~wrong.any(axis=1), complete], 1).astype(np.float64)),
            "pooled": pooled_ranking(y == 1, scores, np.isfinite(y)),
        }
    )
    overall = {
        "exact_match": ratio(*rows["exact"].T),
        "hamming_loss": ratio((fp + fn).sum(1), sums[:, :, :LABEL_COUNTS].sum((1, 2))),
        **micro_and_weighted(tp, fp, fn),
        **micro_curves(rows["pooled"]),
    }
    macro = macro_prf(tp[:, kept], fp[:, kept], fn[:, kept])
    macro |= {f"macro_{name}": values[name][:, kept] for name in ("roc_auc", "average_precision")}
    per_label = {name: values[name] for name in _PER_LABEL}
    observed, support = np.isfinite(y).sum(0), (y == 1).sum(0)
    return {
        **mean_series(macro),
        **series(overall),
        "per_label": {
            label: {
                "support": int(support[j]),
                "n_observed": int(observed[j]),
                "threshold": float(cuts[j]),
                **series(
                    {name: of_label[:, j] for name, of_label in per_label.items()},
                    reason=None if observed[j] else "no sample has this label",
                ),
            }
            for j, label in enumerate(labels)
        },
        "left_out": left_out,
    }


def _label_values(y: Floats, scores: Floats, thresholds: Floats, plan: Bootstrap) -> tuple[Floats, Values]:
    """Return the sums (R, L, k) of each label's columns, and each metric's values (R, L), R = 1 + n_boot."""
    known = np.isfinite(y)
    if not np.isin(y[known], (0, 1)).all():
        raise HeadError("y_true: expected 0, 1 or (multilabel) NaN for unknown, got other values")
    columns = [label_columns(y[:, j], scores[:, j], thresholds[j]) for j in range(y.shape[1])]
    rankings = [ranking(y[:, j] == 1, scores[:, j], np.flatnonzero(known[:, j])) for j in range(y.shape[1])]
    replicates = plan.replicate({"sums": totals(np.concatenate(columns, axis=1)), "curves": stacked(rankings)})
    sums = replicates["sums"].reshape(len(replicates["sums"]), y.shape[1], -1)
    tp, fp, fn, tn, squared, surprise = np.moveaxis(sums[:, :, :6], 2, 0)
    n, sensitivity, specificity = tp + fp + fn + tn, ratio(tp, tp + fn), ratio(tn, tn + fp)
    values = {
        "accuracy": ratio(tp + tn, n),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "roc_auc": replicates["curves"][..., 0],
        "average_precision": replicates["curves"][..., 1],
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": ratio(tp, tp + fp),
        "npv": ratio(tn, tn + fn),
        "mcc": ratio(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
        "brier": ratio(squared, n),
        "log_loss": ratio(surprise, n),
        "ece": ratio(np.abs(sums[:, :, 6:]).sum(axis=2), n),
    }
    return sums, values | {alias: values[name] for alias, name in _ALIASES.items()}


def _left_out(labels: Sequence[str], positives: Floats, negatives: Floats, min_positives: int) -> dict[str, str]:
    """Return the labels that macro averages leave out, with the reason."""
    reasons = {}
    for label, n_positive, n_negative in zip(labels, positives.astype(int), negatives.astype(int), strict=True):
        if n_positive < min_positives:
            reasons[label] = f"{n_positive} positives, fewer than {min_positives}"
        elif n_negative == 0:
            reasons[label] = "no negatives"
    return reasons


def _as_float(threshold: float | Sequence[float]) -> float:
    values = np.asarray(threshold, dtype=np.float64)
    if values.size != 1:
        raise HeadError(f"thresholds: a binary task has one, got {values.size}")
    return float(values.reshape(-1)[0])


def _expect_names(classes: Sequence[str], n: int) -> None:
    if len(classes) != n:
        raise HeadError(f"classes: expected {n} names, got {len(classes)}: {', '.join(classes)}")
