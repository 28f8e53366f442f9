"""The final judgement: the best configuration beside the defaults, on rows that the study never saw."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.augmented import fit_on
from heads.base import HeadWarning
from heads.catalog import make_head
from heads.config import TuneConfig
from heads.errors import HeadError
from heads.evaluation.bootstrap import Estimate
from heads.evaluation.judging import Judged
from heads.evaluation.metrics import estimates, evaluate
from heads.evaluation.paired import Difference, paired_difference
from heads.evaluation.scoring import Scores, scores_of
from heads.labelled import Labelled
from heads.many import Job
from heads.tuning.space import Candidate

VERDICTS = {
    "better": "beats the default",
    "unclear": "does not clearly beat the default: the interval of the difference includes 0",
    "worse": "is worse than the default",
    "same": "is the default",
    "unknown": "cannot be told from the default: the difference has no interval",
}
"""What the interval of a difference says."""


def judge_defaults(
    config: TuneConfig,
    defaults: Sequence[Candidate],
    data: Labelled,
    *,
    best: Candidate,
    judged: Judged,
    rows: NDArray[np.int64],
    metric: str,
    sign: int,
) -> dict[str, dict[str, Any]]:
    """Fit the defaults on the rows of the best head, and compare them with it on the rows it was judged on.

    Parameters
    ----------
    config
        The study's options.
    defaults
        One configuration per head, all of one view.
    data
        The samples with the features of that view.
    best, judged
        The best configuration, and what its head said of the rows of the final judgement.
    rows
        What that head was fitted on.
    metric, sign
        What is compared; 1 if more is better, else -1.

    Returns
    -------
    dict
        Per head its ``estimate``, the ``difference`` (best minus default), ``verdict`` and ``notes``, or the
        ``reason`` why it could not be fitted.
    """
    jobs = [Job(make_head(each.head, data.task.kind, each.params, config.seed), rows) for each in defaults]
    found: dict[str, dict[str, Any]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HeadWarning)  # kept as notes
        fitted = list(fit_on(data, jobs))
    for candidate, head in zip(defaults, fitted, strict=True):
        if isinstance(head, HeadError):
            found[candidate.head] = {"reason": str(head)}
            continue
        scores = scores_of(head, data.X[judged.rows], data.task)
        difference = paired_difference(
            data.task.kind,
            data.y[judged.rows],
            judged.scores,
            scores,
            metric=metric,
            groups=data.groups[judged.rows],
            n_boot=config.bootstrap,
            seed=config.seed,
            min_positives=config.min_positives,
        )
        found[candidate.head] = {
            "estimate": estimate_of(config, data, judged.rows, scores, metric),
            "difference": {
                name: None if math.isnan(value) else value
                for name, value in zip(("value", "low", "high", "p"), difference, strict=True)
            },
            "verdict": "same" if candidate.key == best.key else verdict(difference, sign),
            "notes": list(head.notes_),
        }
    return found


def estimate_of(config: TuneConfig, data: Labelled, rows: NDArray[np.int64], scores: Scores, metric: str) -> Estimate:
    """Return one metric of some scores, with its interval; where it needs a threshold, that is 0.5 for all alike."""
    found = evaluate(
        data.task.kind,
        data.y[rows],
        scores,
        classes=data.task.classes or data.task.targets,
        groups=data.groups[rows],
        n_boot=config.bootstrap,
        seed=config.seed,
        min_positives=config.min_positives,
    )
    return estimates(found)[metric]


def verdict(difference: Difference, sign: int) -> str:
    """Return what the interval of a difference says of the best configuration; a key of `VERDICTS`."""
    if math.isnan(difference.low):
        return "unknown"
    low, high = sorted([sign * difference.low, sign * difference.high])
    return "better" if low > 0 else "worse" if high < 0 else "unclear"
