"""What a head is worth: the metrics of each kind of task, each with a bootstrap interval.

Conventions, the same everywhere:

* a score at the threshold or above it is a positive (``>=``);
* a metric that is not defined (no positives, nothing predicted, a constant) is null with a reason,
  never 0 or 0.5 by fiat;
* averages say over what they average in their name: ``macro_f1``, ``micro_f1``, ``weighted_f1``. As in
  scikit-learn with ``zero_division=0``, they run over the classes that occur in truth or prediction,
  and there a class that is never predicted has precision 0;
* a macro average of a resample that lacks some class runs over the others; such resamples are counted
  in ``partial_resamples``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.task import Kind
from heads.errors import HeadError
from heads.evaluation.bootstrap import Bootstrap, Estimate, Floats, Series
from heads.evaluation.series import Values, mean_series, series
from heads.evaluation.sums import (
    LABEL_COUNTS,
    class_columns,
    label_columns,
    macro_prf,
    micro_and_weighted,
    moment_columns,
    spread,
)
from heads.evaluation.weighted import class_totals, pooled_ranking, ranking, ratio, spearman, stacked, totals

LOWER_IS_BETTER = frozenset({"brier", "log_loss", "ece", "hamming_loss", "mae", "mse", "rmse"})
HEADLINE: dict[Kind, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "balanced_accuracy", "sensitivity", "specificity", "f1"),
    "multiclass": ("accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc", "mcc", "ece"),
    "multilabel": ("macro_roc_auc", "macro_average_precision", "macro_f1", "micro_f1", "exact_match", "hamming_loss"),
    "regression": ("mae", "rmse", "r2", "pearson_r", "spearman_r"),
    "mixed": (
        *("mean_binary_roc_auc", "mean_binary_average_precision", "mean_binary_balanced_accuracy"),
        *("mean_multiclass_balanced_accuracy", "mean_multiclass_macro_f1", "mean_multiclass_accuracy"),
        *("mean_regression_r2", "mean_regression_pearson_r", "mean_regression_spearman_r"),
    ),
}
"""The metrics a summary shows, most telling first."""

_PER_LABEL = (
    "roc_auc", "average_precision", "f1", "precision", "recall", "sensitivity", "specificity", "npv", "brier", "ece",
)  # fmt: skip
_ALIASES = {"precision": "ppv", "recall": "sensitivity"}


def evaluate(
    kind: Kind,
    y_true: ArrayLike,
    scores: ArrayLike,
    *,
    classes: Sequence[str],
    groups: Sequence[Any] | NDArray[Any] | None = None,
    thresholds: float | Sequence[float] = 0.5,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    min_positives: int = 1,
) -> dict[str, Any]:
    """Return every metric of a task, each with its interval, as JSON-ready values.

    Parameters
    ----------
    kind
        What is predicted.
    y_true
        ``binary``: 0 or 1, shape (n,). ``multiclass``: positions in `classes`, shape (n,).
        ``multilabel``: 0, 1 or NaN (unknown), shape (n, L). ``regression``: shape (n,) or (n, T), NaN
        where a target is unknown.
    scores
        ``binary``: probability of the positive class, shape (n,). ``multiclass``: probabilities, shape
        (n, K). ``multilabel``: probabilities, shape (n, L). ``regression``: predictions, shaped as `y_true`.
    classes
        Names: two classes (negative, positive), K classes, L labels or T targets.
    groups
        The group of each sample, shape (n,); groups are resampled as a whole. None resamples samples.
    thresholds
        ``binary``: the threshold; ``multilabel``: one per label, or one for all. Choose them on
        out-of-fold data (`heads.evaluation.thresholds`), never on what is evaluated here.
    n_boot, seed, level
        Number of resamples (0: no intervals), their seed and the coverage of the intervals.
    min_positives
        ``multilabel``: macro averages leave out labels with fewer positives, and name them in ``left_out``.

    Returns
    -------
    dict
        ``{metric: {"value", "low", "high"}}``, in which an undefined value is None with a ``reason``, and
        beside the metrics: ``n``, ``n_groups``, ``bootstrap``, ``confusion`` (rows are the truth),
        ``per_class``, ``per_label`` or ``per_target``, ``prevalence`` (binary), ``left_out`` (multilabel).

    Raises
    ------
    HeadError
        If shapes, label values or scores do not fit the kind.
    """
    plan = Bootstrap.of(len(np.asarray(y_true)), groups, n_boot=n_boot, seed=seed, level=level)
    metrics = measure(kind, y_true, scores, classes, thresholds, min_positives, plan)
    drawn = {"level": level, "n_boot": n_boot, "seed": seed, "unit": "sample" if groups is None else "group"}
    return {"n": len(plan.cluster), "n_groups": plan.n_clusters, "bootstrap": drawn, **plan.estimate_all(metrics)}


def replicates(
    kind: Kind,
    y_true: ArrayLike,
    scores: ArrayLike,
    plan: Bootstrap,
    *,
    classes: Sequence[str],
    thresholds: float | Sequence[float] = 0.5,
    min_positives: int = 1,
) -> dict[str, Series]:
    """Return the overall metrics on the data and on every resample of a plan.

    What was replicated with one plan belongs together draw by draw: differences and means of such
    series are series of differences and means. See `evaluate` for the parameters.
    """
    measured = measure(kind, y_true, scores, classes, thresholds, min_positives, plan)
    return {name: value for name, value in measured.items() if isinstance(value, Series)}


def estimates(metrics: Mapping[str, Any]) -> dict[str, Estimate]:
    """Return the entries of an `evaluate` result (or of one class in it) that are metrics with intervals."""
    found = {name: value for name, value in metrics.items() if isinstance(value, dict) and "value" in value}
    return cast("dict[str, Estimate]", found)


def measure(
    kind: Kind,
    y_true: ArrayLike,
    scores: ArrayLike,
    classes: Sequence[str],
    thresholds: float | Sequence[float],
    min_positives: int,
    plan: Bootstrap,
) -> dict[str, Any]:
    """Return what `evaluate` does but for its counts, with a `Series` for every metric."""
    kinds = [name for name in HEADLINE if name != "mixed"]
    if kind not in kinds:
        raise HeadError(f"kind: expected one of {', '.join(kinds)}, got {kind!r}")
    truth, given = np.asarray(y_true, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if not np.isfinite(given).all():
        raise HeadError(f"scores: expected finite numbers, got {int((~np.isfinite(given)).sum())} that are not")
    if np.isinf(truth).any():
        raise HeadError(f"y_true: expected finite numbers, got {int(np.isinf(truth).sum())} infinities")
    if kind == "binary":
        return _binary(truth, given, classes, thresholds, plan)
    if kind == "multiclass":
        return _multiclass(truth, given, classes, plan)
    if kind == "multilabel":
        return _multilabel(truth, given, classes, thresholds, min_positives, plan)
    return _regression(truth, given, classes, plan)


# --- binary and multilabel: every label is a binary question ---------------------------------------


def _binary(
    y: Floats, scores: Floats, classes: Sequence[str], thresholds: float | Sequence[float], plan: Bootstrap
) -> dict[str, Any]:
    _expect_shape("y_true", y, (len(y),))
    _expect_shape("scores", scores, (len(y),))
    _expect_names(classes, 2)
    if np.isnan(y).any():
        raise HeadError("y_true: a binary task needs every label; leave samples without one out")
    sums, values = _label_values(y[:, None], scores[:, None], np.array([_as_float(thresholds)]), plan)
    tp, fp, fn, tn = (int(count) for count in sums[0, 0, :LABEL_COUNTS])
    return {
        "prevalence": float(y.mean()),
        "threshold": _as_float(thresholds),
        **series({name: of_label[:, 0] for name, of_label in values.items() if name not in _ALIASES}),
        "confusion": {"classes": list(classes), "counts": [[tn, fp], [fn, tp]]},
    }


def _multilabel(
    y: Floats,
    scores: Floats,
    labels: Sequence[str],
    thresholds: float | Sequence[float],
    min_positives: int,
    plan: Bootstrap,
) -> dict[str, Any]:
    _expect_shape("y_true", y, (len(y), len(labels)))
    _expect_shape("scores", scores, y.shape)
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
        **_micro_curves(rows["pooled"]),
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


def _micro_curves(curves: Floats) -> dict[str, Floats]:
    """Return the areas of a `pooled_ranking`, shape (R, 2), by name."""
    return {"micro_roc_auc": curves[:, 0], "micro_average_precision": curves[:, 1]}


# --- multiclass -------------------------------------------------------------------------------------


def _multiclass(y: Floats, proba: Floats, classes: Sequence[str], plan: Bootstrap) -> dict[str, Any]:
    k = len(classes)
    _expect_shape("y_true", y, (len(y),))
    _expect_shape("scores", proba, (len(y), k))
    if not np.isin(y, np.arange(k)).all():
        raise HeadError(f"y_true: expected class numbers 0 to {k - 1}, got other values")
    truth, predicted, everyone = y.astype(np.intp), proba.argmax(axis=1), np.arange(len(y))
    replicates = plan.replicate(
        {
            "support": class_totals(truth, k, everyone),
            "predicted": class_totals(predicted, k, everyone),
            "correct": class_totals(truth, k, np.flatnonzero(truth == predicted)),
            "sums": totals(class_columns(truth, predicted, proba)),
            "curves": stacked([ranking(truth == j, proba[:, j], everyone) for j in range(k)]),
            "pooled": pooled_ranking(truth[:, None] == np.arange(k), proba, np.ones_like(proba, dtype=bool)),
        }
    )
    support, chosen, tp = replicates["support"], replicates["predicted"], replicates["correct"]
    n, n_correct, chance = support.sum(1), tp.sum(1), (support * chosen).sum(1)
    recall = ratio(tp, support)
    overall = {
        "accuracy": n_correct / n,
        **micro_and_weighted(tp, chosen - tp, support - tp),
        **_micro_curves(replicates["pooled"]),
        "log_loss": replicates["sums"][:, 0] / n,
        "ece": np.abs(replicates["sums"][:, 1:]).sum(axis=1) / n,
        # Gorodkin (2004): the correlation of two categorical variables.
        "mcc": ratio(n * n_correct - chance, np.sqrt((n**2 - (chosen**2).sum(1)) * (n**2 - (support**2).sum(1)))),
        "cohen_kappa": ratio(n * n_correct - chance, n**2 - chance),
    }
    macro = {
        "balanced_accuracy": recall,
        **macro_prf(tp, chosen - tp, support - tp),
        "macro_roc_auc": replicates["curves"][..., 0],
        "macro_average_precision": replicates["curves"][..., 1],
    }
    per_class = {
        "precision": ratio(tp, chosen),
        "recall": recall,
        "f1": ratio(2 * tp, support + chosen),
        "roc_auc": replicates["curves"][..., 0],
        "average_precision": replicates["curves"][..., 1],
    }
    counts = np.bincount(truth * k + predicted, minlength=k * k).reshape(k, k)
    return {
        **series(overall),
        **mean_series(macro),
        "per_class": {
            name: {
                "support": int(support[0, j]),
                **series({metric: of_class[:, j] for metric, of_class in per_class.items()}),
            }
            for j, name in enumerate(classes)
        },
        "confusion": {"classes": list(classes), "counts": counts.tolist()},
    }


# --- regression -------------------------------------------------------------------------------------


def _regression(y: Floats, predicted: Floats, targets: Sequence[str], plan: Bootstrap) -> dict[str, Any]:
    y, predicted = y.reshape(len(y), -1), predicted.reshape(len(predicted), -1)
    _expect_shape("y_true", y, (len(y), len(targets)))
    _expect_shape("scores", predicted, y.shape)
    known = np.isfinite(y)
    if not known.any():
        raise HeadError("y_true: every target is missing")
    each = range(len(targets))
    columns = np.concatenate([moment_columns(y[:, j], predicted[:, j]) for j in each], axis=1)
    ranks = stacked([spearman(y[:, j], predicted[:, j], np.flatnonzero(known[:, j])) for j in each])
    replicates = plan.replicate({"sums": totals(columns), "ranks": ranks})
    sums = replicates["sums"].reshape(len(replicates["sums"]), len(targets), -1)
    w, t, p, tt, pp, tp, absolute, squared = np.moveaxis(sums, 2, 0)
    spread_t, spread_p = spread(w, t, tt), spread(w, p, pp)
    mse = ratio(squared, w)
    values = {
        "mae": ratio(absolute, w),
        "mse": mse,
        "rmse": np.sqrt(mse),
        "r2": 1 - ratio(squared, spread_t),
        "pearson_r": np.clip(ratio(tp - ratio(t * p, w), np.sqrt(spread_t * spread_p)), -1, 1),
        "spearman_r": replicates["ranks"],
    }
    if len(targets) == 1:
        return series({name: of_target[:, 0] for name, of_target in values.items()})
    return {
        **mean_series(values),
        "per_target": {
            target: {
                "n_observed": int(known[:, j].sum()),
                **series({name: of_target[:, j] for name, of_target in values.items()}),
            }
            for j, target in enumerate(targets)
        },
    }


# --- shared -----------------------------------------------------------------------------------------


def _as_float(threshold: float | Sequence[float]) -> float:
    values = np.asarray(threshold, dtype=np.float64)
    if values.size != 1:
        raise HeadError(f"thresholds: a binary task has one, got {values.size}")
    return float(values.reshape(-1)[0])


def _expect_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise HeadError(f"{name}: expected shape {shape}, got {array.shape}")


def _expect_names(classes: Sequence[str], n: int) -> None:
    if len(classes) != n:
        raise HeadError(f"classes: expected {n} names, got {len(classes)}: {', '.join(classes)}")
