"""What a head is worth: the metrics of each kind of task, each with a bootstrap interval.

Conventions, the same everywhere:

* a score at the threshold or above it is a positive (``>=``);
* a metric that is not defined (no positives, nothing predicted, a constant) is null with a reason,
  never 0 or 0.5 by fiat;
* averages say over what they average in their name: ``macro_f1``, ``micro_f1``, ``weighted_f1``. As in
  scikit-learn with ``zero_division=0``, they run over the classes that occur in truth or prediction,
  and there a class that is never predicted has precision 0;
* intervals are percentiles of the resamples; that of the calibration error is corrected for their bias, so that it
  holds its value (see `heads.evaluation.bootstrap.Bootstrap.estimate`);
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
from heads.evaluation.checks import expect_shape
from heads.evaluation.label_metrics import binary, multilabel
from heads.evaluation.series import mean_series, series
from heads.evaluation.sums import class_columns, macro_prf, micro_and_weighted, micro_curves, moment_columns, spread
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
        return binary(truth, given, classes, thresholds, plan)
    if kind == "multiclass":
        return _multiclass(truth, given, classes, plan)
    if kind == "multilabel":
        return multilabel(truth, given, classes, thresholds, min_positives, plan)
    return _regression(truth, given, classes, plan)


# --- multiclass -------------------------------------------------------------------------------------


def _multiclass(y: Floats, proba: Floats, classes: Sequence[str], plan: Bootstrap) -> dict[str, Any]:
    k = len(classes)
    expect_shape("y_true", y, (len(y),))
    expect_shape("scores", proba, (len(y), k))
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
        **micro_curves(replicates["pooled"]),
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
    expect_shape("y_true", y, (len(y), len(targets)))
    expect_shape("scores", predicted, y.shape)
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
