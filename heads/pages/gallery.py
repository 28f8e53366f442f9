"""Which plots a run gets: drawn from its record, predictions and history, into ``plots/*.png``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.task import Task
from heads.errors import RunError
from heads.evaluation.bootstrap import Floats, format_estimate
from heads.evaluation.predictions import Predictions, read_views
from heads.evaluation.sums import ECE_BINS
from heads.pages import plots
from heads.record import SPLITS, RunRecord

FOLDER = "plots"
_BARS = {
    "multiclass": {"recall": "Recall", "precision": "Precision", "f1": "F1", "roc_auc": "ROC-AUC"},
    "multilabel": {
        "roc_auc": "ROC-AUC",
        "average_precision": "Average precision",
        "sensitivity": "Sensitivity",
        "specificity": "Specificity",
    },
}


@dataclass(frozen=True)
class Picture:
    """A plot of a run: its file's stem, and what it shows, for those who cannot see it."""

    stem: str
    title: str
    shows: str


PICTURES = (
    Picture("roc", "ROC", "true positive rate over false positive rate at every threshold"),
    Picture("precision-recall", "Precision and recall", "precision over recall at every threshold"),
    Picture("confusion", "Confusion matrix", "samples by true and predicted class"),
    Picture(
        "calibration", "Calibration", "observed frequency over predicted probability, and a histogram of the latter"
    ),
    Picture("scores", "Scores", "histograms of the scores of positives and negatives"),
    Picture("per-class", "Per class", "metrics of each class with their intervals"),
    Picture("regression", "Predictions and residuals", "predicted over true values, and residuals"),
)
HISTORY = Picture("history", "Learning curves", "loss over epochs")


def write_plots(run: Path) -> list[Path]:
    """Draw the plots of a run into its ``plots`` folder.

    Parameters
    ----------
    run
        The run directory: ``record.json``, ``predictions.csv`` and, if there is one, ``history.json``
        (a mapping from the name of a loss to its value per epoch).

    Returns
    -------
    list of Path
        The files written.

    Raises
    ------
    RunError
        If the directory is no run, or its files are damaged.
    """
    record = RunRecord.read(run)
    task = Task.from_dict(record.task)
    folder = run / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        written = []
        for split, views in read_views(run, task).items():
            for rows in views if split in record.metrics else ():
                written += _draw_split(folder, split, rows, _metrics_of(rows, record.metrics[split]), record)
        losses = _read_losses(run / "history.json")
        if losses:
            written.append(folder / f"{HISTORY.stem}.png")
            plots.learning_curves(written[-1], losses)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror or error}") from error
    return written


def find_plots(run: Path) -> dict[str, list[tuple[Picture, Path]]]:
    """Return the plots that a run has, per split, in the order of reading; learning curves under ``""``."""
    folder = run / FOLDER
    found = {split: [(picture, folder / f"{split}-{picture.stem}.png") for picture in PICTURES] for split in SPLITS} | {
        "": [(HISTORY, folder / f"{HISTORY.stem}.png")]
    }
    return {
        split: [(picture, path) for picture, path in pictures if path.is_file()] for split, pictures in found.items()
    }


def _metrics_of(rows: Predictions, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the metrics of a view of a split; of targets of a mixed task, in the form of labels."""
    if "per_head" not in metrics or rows.task.kind == "regression":
        return metrics
    each = {name: metrics["per_head"][name] for name in rows.names}
    return {
        "per_label": {name: {**found, "support": sum(found["confusion"]["counts"][1])} for name, found in each.items()}
    }


def _draw_split(
    folder: Path, split: str, rows: Predictions, metrics: Mapping[str, Any], record: RunRecord
) -> list[Path]:
    kind = rows.task.kind
    written: list[Path] = []

    def path(stem: str) -> Path:
        written.append(folder / f"{split}-{stem}.png")
        return written[-1]

    if kind == "regression":
        plots.regression(path("regression"), rows.y, rows.scores, rows.names)
        return written
    questions = rows.questions({name: threshold["value"] for name, threshold in record.thresholds.items()})
    if any(question.answerable for question in questions):
        each = metrics.get("per_class") or metrics.get("per_label") or {rows.names[0]: metrics}
        plots.roc(path("roc"), questions, _texts(each, "roc_auc"))
        precisions = _texts(each, "average_precision")
        plots.precision_recall(path("precision-recall"), questions, precisions)
        plots.score_histograms(path("scores"), questions)
    if "confusion" in metrics:
        plots.confusion(path("confusion"), metrics["confusion"]["counts"], metrics["confusion"]["classes"])
    confidence, outcome, claim = _claims(rows)
    if len(confidence) and confidence.min() >= 0 and confidence.max() <= 1:
        before = None if rows.raw is None else _claims(replace(rows, scores=rows.raw))[:2]
        plots.calibration(path("calibration"), confidence, outcome, bins=ECE_BINS, claim=claim, before=before)
    if kind in _BARS:
        each = metrics.get("per_class") or metrics["per_label"]
        bars = {title: {name: each[name][metric] for name in each} for metric, title in _BARS[kind].items()}
        plots.per_class(path("per-class"), bars, {name: each[name]["support"] for name in each})
    return written


def _texts(each: Mapping[str, Any], metric: str) -> dict[str, str]:
    return {name: format_estimate(of_class[metric]) for name, of_class in each.items()}


def _claims(rows: Predictions) -> tuple[Floats, Any, str]:
    """Return probabilities, whether they came true, and what they are of."""
    if rows.task.kind == "multiclass":
        return rows.scores.max(axis=1), rows.scores.argmax(axis=1) == rows.y, "Probability of the predicted class"
    if rows.task.kind == "binary":
        return rows.scores, rows.y == 1, f"Probability of {rows.names[0]}"
    known = np.isfinite(rows.y)
    return rows.scores[known], rows.y[known] == 1, "Probability of a label (all labels together)"


def _read_losses(path: Path) -> dict[str, Sequence[float | None]]:
    """Return the series of a history that are losses; learning rates and the like are not drawn."""
    if not path.is_file():
        return {}
    try:
        history = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path}: is not JSON: {error}") from error
    if not isinstance(history, dict) or not all(isinstance(values, list) for values in history.values()):
        raise RunError(f"{path}: expected a mapping from names to one value per epoch")
    return {name: values for name, values in history.items() if "loss" in name and values}
