"""Rows that were predicted by heads that never saw them: their metrics, and the table of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.progress import Progress
from heads.config import FitConfig
from heads.labelled import Labelled
from heads.metrics import evaluate
from heads.run import prediction_columns, truth_columns
from heads.scoring import Scores, answers, class_probabilities


@dataclass(frozen=True)
class Judged:
    """Rows that were predicted by a head that never saw them."""

    split: str
    rows: NDArray[np.int64]
    scores: Scores
    fold: NDArray[np.int64] | None = None


def judge(
    config: FitConfig, data: Labelled, judged: Sequence[Judged], thresholds: Sequence[float], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each split, with intervals over effective groups."""
    progress.stage("intervals", len(judged))
    metrics = {}
    for part in judged:
        metrics[part.split] = evaluate(
            data.task.kind,
            data.y[part.rows],
            part.scores,
            classes=data.task.classes or data.task.targets,
            groups=data.groups[part.rows],
            thresholds=thresholds or 0.5,
            n_boot=config.bootstrap,
            seed=config.seed,
            min_positives=config.min_positives,
        )
        progress.advance()
    return metrics


def predictions(data: Labelled, judged: Sequence[Judged], thresholds: Sequence[float]) -> dict[str, list[str]]:
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
        for name, values in columns.items():
            table.setdefault(name, []).extend(values)
    return table
