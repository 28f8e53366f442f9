"""How far probabilities are from frequencies: Brier score, log loss and expected calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.task import Task
from heads.evaluation.bootstrap import Bootstrap, Estimate
from heads.evaluation.scoring import Scores
from heads.evaluation.sums import LABEL_COUNTS, class_columns, label_columns
from heads.evaluation.weighted import ratio, totals


def judge_reliability(
    task: Task, y: NDArray[Any], scores: Scores, groups: NDArray[np.int64], *, n_boot: int, seed: int
) -> dict[str, Estimate]:
    """Return ``brier``, ``log_loss`` and ``ece``, each with an interval over groups.

    Parameters
    ----------
    task
        A classification; all labels of a multilabel task are pooled.
    y, scores
        Targets and probabilities, as `heads.evaluation.scoring.scores_of` returns them.
    groups
        The group of each row, shape (n,).
    n_boot, seed
        Resamples of groups and their seed.

    Notes
    -----
    The Brier score of several classes is the squared error summed over classes (Brier, 1950), of a
    binary question that of the positive class. The calibration error has 15 equal-width bins, and is
    that of the predicted class where there are several (Guo et al., 2017). Its interval is corrected for the bias of
    resamples; see `Bootstrap.estimate`.
    """
    columns = _class_sums(y, scores) if task.kind == "multiclass" else _label_sums(y, scores)
    plan = Bootstrap.of(len(y), groups, n_boot=n_boot, seed=seed, level=0.95)
    sums = plan.replicate({"sums": totals(columns)})["sums"]
    n, reason = sums[:, 0], "no label is known"
    return {
        "brier": plan.estimate(ratio(sums[:, 1], n), reason),
        "log_loss": plan.estimate(ratio(sums[:, 2], n), reason),
        "ece": plan.estimate(ratio(np.abs(sums[:, 3:]).sum(axis=1), n), reason, centred=True),
    }


def _label_sums(y: NDArray[Any], scores: Scores) -> Scores:
    """Return per row: known labels, squared error, log loss and the bins' deviations, shape (n, 3 + bins)."""
    truth, columns = (np.asarray(values, dtype=np.float64).reshape(len(scores), -1) for values in (y, scores))
    sums = sum(label_columns(truth[:, j], columns[:, j], 0.5) for j in range(columns.shape[1]))
    known = np.isfinite(truth).sum(axis=1)
    return np.column_stack([known, np.asarray(sums)[:, LABEL_COUNTS:]])


def _class_sums(y: NDArray[Any], scores: Scores) -> Scores:
    codes = y.astype(np.intp)
    squared = np.square(scores - np.eye(scores.shape[1])[codes]).sum(axis=1)
    return np.column_stack([np.ones(len(y)), squared, class_columns(codes, scores.argmax(axis=1), scores)])
