"""Rows that were predicted by heads that never saw them: their metrics, and the table of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.progress import Progress
from heads.config import TaskConfig
from heads.evaluation.bootstrap import Estimate
from heads.evaluation.conformal import Regions, judge_regions
from heads.evaluation.per_target import evaluate_task
from heads.evaluation.reliability import judge_reliability
from heads.evaluation.scoring import Scores, answers, class_probabilities
from heads.labelled import Labelled
from heads.run import prediction_columns, raw_columns, region_columns, truth_columns


@dataclass(frozen=True)
class Judged:
    """Rows that were predicted by a head that never saw them.

    Attributes
    ----------
    split, rows
        Which rows.
    scores
        As `scores_of` of `heads.evaluation.scoring` returns them; calibrated, if `decide` was asked to.
    fold
        The fold of each row of the cross-validation.
    raw
        The scores before they were calibrated; None if they were not.
    regions
        The rows' prediction sets or intervals, if there are any.
    """

    split: str
    rows: NDArray[np.int64]
    scores: Scores
    fold: NDArray[np.int64] | None = None
    raw: Scores | None = None
    regions: Regions | None = None


def judge(
    config: TaskConfig, data: Labelled, judged: Sequence[Judged], thresholds: Sequence[float], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each split, with intervals over effective groups."""
    progress.stage("intervals", len(judged))
    metrics = {}
    for part in judged:
        metrics[part.split] = evaluate_task(
            data.task,
            data.y[part.rows],
            part.scores,
            groups=data.groups[part.rows],
            thresholds=thresholds or 0.5,
            n_boot=config.bootstrap,
            seed=config.seed,
            min_positives=config.min_positives,
        )
        progress.advance()
    return metrics


def judge_calibration(
    config: TaskConfig, data: Labelled, judged: Sequence[Judged]
) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return the reliability of each split before and after the scores were calibrated."""
    return {
        part.split: {
            when: judge_reliability(
                data.task, data.y[part.rows], scores, data.groups[part.rows], n_boot=config.bootstrap, seed=config.seed
            )
            for when, scores in (("before", part.raw), ("after", part.scores))
            if scores is not None
        }
        for part in judged
    }


def judge_sets(config: TaskConfig, data: Labelled, judged: Sequence[Judged]) -> dict[str, dict[str, Estimate]]:
    """Return how often the prediction sets of each split hold the truth, and how large they are."""
    return {
        part.split: judge_regions(
            data.task.kind,
            data.y[part.rows],
            part.regions,
            data.groups[part.rows],
            n_boot=config.bootstrap,
            seed=config.seed,
        )
        for part in judged
        if part.regions is not None
    }


def predictions(data: Labelled, judged: Sequence[Judged], thresholds: Sequence[float] | float) -> dict[str, list[str]]:
    """Return one row per judged sample, as text columns."""
    table: dict[str, list[str]] = {}
    for part in judged:
        fold = [""] * len(part.rows) if part.fold is None else [str(k) for k in part.fold]
        columns = {
            "id": [data.manifest.ids[i] for i in part.rows],
            "split": [part.split] * len(part.rows),
            "fold": fold,
            "group": [data.group_names[i] for i in part.rows],
            **truth_columns(data.task, data.y[part.rows]),
            **prediction_columns(
                data.task, class_probabilities(part.scores, data.task), answers(part.scores, data.task, thresholds)
            ),
        }
        if part.regions is not None:
            columns |= region_columns(data.task, part.regions)
        if part.raw is not None:
            columns |= raw_columns(data.task, class_probabilities(part.raw, data.task))
        for name, values in columns.items():
            table.setdefault(name, []).extend(values)
    return table
