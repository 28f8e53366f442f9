"""Calibration after the fit: maps, learned on out-of-fold scores, that make probabilities come true.

``temperature`` (Guo et al., 2017) divides the logits by one number: of a binary task, of all classes
together, or of each label. It keeps the order of scores and classes. ``isotonic`` (Zadrozny and Elkan,
2002) is the best monotone step curve; with several classes each has its own against the rest, and the
results are scaled to sum to one. It needs far more rows, about a thousand.

The scores of the training rows that are reported are calibrated fold by fold: the map for a fold is
learned on the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.isotonic import IsotonicRegression

from data.errors import ConfigError
from data.task import Kind, Task
from heads.errors import BundleError
from heads.evaluation.scoring import Scores

Method = Literal["temperature", "isotonic"]
Curve = tuple[tuple[float, ...], tuple[float, ...]]

CLIP = float(np.finfo(np.float64).eps)
"""Probabilities are kept this far off 0 and 1 before their logit is taken, as for the log loss."""
HOTTEST = 20.0
"""Temperatures are searched between 1/20 and 20: scores that separate perfectly have no best one."""
_UNCHANGED: Curve = ((0.0, 1.0), (0.0, 1.0))


@dataclass(frozen=True, kw_only=True)
class Recalibration:
    """A map from scores to calibrated scores of the same shape.

    Attributes
    ----------
    method, kind
        What it is, and of which kind of task.
    temperatures
        One, or one per label.
    curves
        Isotonic only: one per column of scores, the corners (scores, probabilities) of a piecewise
        linear curve.
    unchanged
        The columns that are left as they are, because only one outcome was seen.
    """

    method: Method
    kind: Kind
    temperatures: tuple[float, ...] = ()
    curves: tuple[Curve, ...] = ()
    unchanged: tuple[int, ...] = ()

    def apply(self, scores: Scores) -> Scores:
        """Return calibrated scores."""
        if self.method == "temperature":
            return _cooled(scores, np.array(self.temperatures), self.kind)
        columns = scores.reshape(len(scores), -1)
        mapped = np.stack([np.interp(columns[:, j], *curve) for j, curve in enumerate(self.curves)], axis=1)
        if self.kind == "multiclass":
            total = mapped.sum(axis=1, keepdims=True)
            mapped = np.where(total > 0, mapped / np.where(total > 0, total, 1), 1 / mapped.shape[1])
        return mapped.reshape(scores.shape)

    def to_dict(self) -> dict[str, Any]:
        """Return the map as JSON values."""
        values: dict[str, Any] = {"method": self.method, "unchanged": list(self.unchanged)}
        if self.method == "temperature":
            return values | {"temperatures": list(self.temperatures)}
        return values | {"curves": [[list(x), list(y)] for x, y in self.curves]}


def read_recalibration(values: Mapping[str, Any] | None, kind: Kind) -> Recalibration | None:
    """Return the map that `Recalibration.to_dict` wrote; None for a head that has none.

    Raises
    ------
    BundleError
        If the values are not those of a map.
    """
    if values is None:
        return None
    try:
        if values["method"] not in get_args(Method):
            raise BundleError(f"the head is calibrated by {values['method']!r}, which this release does not know")
        return Recalibration(
            method=values["method"],
            kind=kind,
            temperatures=tuple(map(float, values.get("temperatures", ()))),
            curves=tuple((tuple(map(float, x)), tuple(map(float, y))) for x, y in values.get("curves", ())),
            unchanged=tuple(map(int, values["unchanged"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"the head's calibration is damaged: {error!r}; fit the head again") from error


def recalibrate(method: Method, task: Task, y: NDArray[Any], scores: Scores) -> Recalibration:
    """Learn a map on scores of rows that the scoring heads had not seen.

    Parameters
    ----------
    method
        Which map.
    task
        The task.
    y, scores
        Targets and scores, as `heads.evaluation.scoring.scores_of` returns them.

    Raises
    ------
    ConfigError
        If the task is a regression, which has no probabilities.
    """
    if task.kind == "regression":
        raise ConfigError(f"--calibration {method}: a regression has no probabilities to calibrate; leave it at none")
    outcomes = _outcomes(task, y)
    columns = scores.reshape(len(scores), -1)
    known = [np.isfinite(outcomes[:, j]) for j in range(columns.shape[1])]
    varied = [len(np.unique(outcomes[rows, j])) == 2 for j, rows in enumerate(known)]
    if method == "temperature" and task.kind == "multiclass":
        return Recalibration(method=method, kind=task.kind, temperatures=(_temperature(_log_odds(scores), y),))
    unchanged = tuple(j for j, both in enumerate(varied) if not both)
    if method == "temperature":
        temperatures = [
            _temperature(_two_sided(columns[rows, j]), outcomes[rows, j].astype(np.int64)) if varied[j] else 1.0
            for j, rows in enumerate(known)
        ]
        return Recalibration(method=method, kind=task.kind, temperatures=tuple(temperatures), unchanged=unchanged)
    curves = [
        _isotonic(columns[rows, j], outcomes[rows, j]) if varied[j] else _UNCHANGED for j, rows in enumerate(known)
    ]
    return Recalibration(method=method, kind=task.kind, curves=tuple(curves), unchanged=unchanged)


def cross_recalibrated(method: Method, task: Task, y: NDArray[Any], scores: Scores, folds: NDArray[np.int64]) -> Scores:
    """Return out-of-fold scores, those of each fold calibrated by what the other folds taught."""
    calibrated = np.empty_like(scores)
    for fold in np.unique(folds):
        inside = folds == fold
        calibrated[inside] = recalibrate(method, task, y[~inside], scores[~inside]).apply(scores[inside])
    return calibrated


def _outcomes(task: Task, y: NDArray[Any]) -> Scores:
    """Return 0, 1 or NaN per column of scores: (n, 1) for binary, (n, K) or (n, L)."""
    if task.kind == "multilabel":
        return np.asarray(y, dtype=np.float64)
    codes = [1] if task.kind == "binary" else range(len(task.classes))
    return np.stack([y == code for code in codes], axis=1).astype(np.float64)


def _log_odds(probability: Scores) -> Scores:
    return np.log(np.clip(probability, CLIP, 1 - CLIP))


def _two_sided(probability: Scores) -> Scores:
    """Return the logits of a yes or no as those of two classes, shape (n, 2)."""
    logits = logit(np.clip(probability, CLIP, 1 - CLIP))
    return np.stack([np.zeros_like(logits), logits], axis=1)


def _temperature(logits: Scores, y: NDArray[Any]) -> float:
    """Return the temperature of the lowest cross-entropy, which is convex in its inverse."""
    rows, codes = np.arange(len(y)), np.asarray(y, dtype=np.int64)

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[rows, codes].mean())

    limit = np.log(HOTTEST)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-8})
    return float(np.exp(found.x))


def _cooled(scores: Scores, temperatures: Scores, kind: Kind) -> Scores:
    if kind == "multiclass":
        return np.asarray(softmax(_log_odds(scores) / temperatures[0], axis=1))
    logits = logit(np.clip(scores, CLIP, 1 - CLIP))
    return np.asarray(expit(logits / (temperatures[0] if kind == "binary" else temperatures)))


def _isotonic(scores: Scores, outcomes: Scores) -> Curve:
    curve = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, outcomes)
    return tuple(map(float, curve.X_thresholds_)), tuple(map(float, curve.y_thresholds_))
