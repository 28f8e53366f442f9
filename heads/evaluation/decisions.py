"""What follows a fit: everything between a head's scores and its answers, chosen on out-of-fold scores.

::

    scores --recalibration--> probabilities --thresholds--> answers
                                            --conformal---> sets or intervals

The rows of a fold are calibrated, and get their sets, by what the other folds taught: they are reported
too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.task import Task
from heads.artifact import Bundle
from heads.config import FitConfig
from heads.evaluation.conformal import Conformal, Regions, conformal, groups_needed, read_conformal
from heads.evaluation.judging import Judged
from heads.evaluation.recalibration import Recalibration, cross_recalibrated, read_recalibration, recalibrate
from heads.evaluation.scoring import Scores
from heads.evaluation.thresholds import Threshold, choose_thresholds
from heads.labelled import Labelled


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What turns a head's scores into answers.

    Attributes
    ----------
    recalibration
        Makes probabilities of scores; None leaves them as they are.
    thresholds
        Class or label to its threshold, on calibrated scores.
    conformal
        Makes prediction sets of calibrated scores; None makes none.
    remarks
        What a reader must know about how they were chosen.
    """

    recalibration: Recalibration | None = None
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)
    conformal: Conformal | None = None
    remarks: tuple[str, ...] = ()

    @property
    def cuts(self) -> list[float]:
        """The thresholds' values, in the order of the labels."""
        return [threshold.value for threshold in self.thresholds.values()]

    def to_extra(self) -> dict[str, Any]:
        """Return what a bundle keeps of them."""
        return {
            "thresholds": self.cuts,
            "calibration": self.recalibration.to_dict() if self.recalibration else None,
            "conformal": self.conformal.to_dict() if self.conformal else None,
        }


@dataclass(frozen=True, kw_only=True)
class Answering:
    """The decisions that a bundle keeps, ready to be applied.

    Attributes
    ----------
    recalibration, conformal
        See `Decisions`.
    cuts
        Threshold per label; 0.5 for a task without labels, which needs none.
    """

    recalibration: Recalibration | None
    conformal: Conformal | None
    cuts: Sequence[float] | float

    @classmethod
    def of(cls, bundle: Bundle, task: Task) -> Answering:
        """Return the decisions of a bundle; one of an earlier release has thresholds only."""
        return cls(
            recalibration=read_recalibration(bundle.extra.get("calibration"), task.kind),
            conformal=read_conformal(bundle.extra.get("conformal"), task.kind),
            cuts=bundle.extra["thresholds"] or 0.5,
        )

    def calibrated(self, scores: Scores) -> Scores:
        """Return calibrated scores, or the scores themselves where there is no calibration."""
        return scores if self.recalibration is None else self.recalibration.apply(scores)

    def regions(self, scores: Scores) -> Regions | None:
        """Return the sets or intervals of calibrated scores, where the head makes any."""
        return None if self.conformal is None else self.conformal.regions(scores)


def decide(config: FitConfig, data: Labelled, judged: Sequence[Judged]) -> tuple[Decisions, list[Judged]]:
    """Choose calibration, thresholds and prediction sets on out-of-fold scores, and apply them.

    Parameters
    ----------
    config
        ``calibration``, ``threshold`` and ``coverage``.
    data
        The samples.
    judged
        Rows with the heads' own scores, the out-of-fold rows first.

    Returns
    -------
    Decisions
        As learned from all out-of-fold rows.
    list of Judged
        The rows with calibrated scores and prediction sets.

    Raises
    ------
    FrostlineError
        If an option does not fit the task.
    """
    task, oof = data.task, judged[0]
    assert oof.fold is not None  # the first judged part is the cross-validation
    y, groups, parts = data.y[oof.rows], data.groups[oof.rows], list(judged)
    recalibration = None
    if config.calibration != "none":
        recalibration = recalibrate(config.calibration, task, y, oof.scores)
        calibrated = [
            cross_recalibrated(config.calibration, task, y, oof.scores, oof.fold),
            *(recalibration.apply(part.scores) for part in parts[1:]),
        ]
        parts = [replace(part, scores=scores, raw=part.scores) for part, scores in zip(parts, calibrated, strict=True)]
    thresholds = choose_thresholds(task, y, parts[0].scores, rule=config.threshold)
    found = None
    if config.coverage is not None:
        found = conformal(task, y, parts[0].scores, groups, coverage=config.coverage)
        regions = [
            _cross_regions(task, y, parts[0].scores, groups, oof.fold, config.coverage),
            *(found.regions(part.scores) for part in parts[1:]),
        ]
        parts = [replace(part, regions=each) for part, each in zip(parts, regions, strict=True)]
    decisions = Decisions(
        recalibration=recalibration,
        thresholds=thresholds,
        conformal=found,
        remarks=(*_unchanged(recalibration, task), *_too_few_groups(found, task)),
    )
    return decisions, parts


def _cross_regions(
    task: Task, y: NDArray[Any], scores: Scores, groups: NDArray[np.int64], folds: NDArray[np.int64], coverage: float
) -> Regions:
    """Return the sets of out-of-fold rows, those of each fold by the quantiles of the others."""
    parts = {
        fold: conformal(task, y[folds != fold], scores[folds != fold], groups[folds != fold], coverage=coverage)
        for fold in np.unique(folds)
    }
    regions: Regions = parts[folds[0]].regions(scores)
    for fold, of_fold in parts.items():
        regions[folds == fold] = of_fold.regions(scores[folds == fold])
    return regions


def _unchanged(recalibration: Recalibration | None, task: Task) -> list[str]:
    if recalibration is None or not recalibration.unchanged:
        return []
    names = task.classes[-1:] if task.kind == "binary" else task.classes
    left = ", ".join(names[j] for j in recalibration.unchanged)
    return [f"calibration: scores of {left} are left as they are, only one outcome occurs out of fold"]


def _too_few_groups(found: Conformal | None, task: Task) -> list[str]:
    if found is None:
        return []
    names = task.outputs if len(found.quantiles) > 1 else ("",)
    short = [
        f"{name}: {n} groups".removeprefix(": ")
        for name, quantile, n in zip(names, found.quantiles, found.groups, strict=True)
        if np.isinf(quantile)
    ]
    if not short:
        return []
    needed = groups_needed(found.coverage)
    where = f"coverage {found.coverage:g} needs at least {needed} groups of training rows, found {', '.join(short)}"
    return [f"prediction sets hold everything: {where}"]
