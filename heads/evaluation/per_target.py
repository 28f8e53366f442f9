"""What a head is worth on any task: on a mixed one target by target, and the mean over those of one kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.task import Task
from heads.evaluation.bootstrap import Bootstrap, Floats, Series
from heads.evaluation.metrics import HEADLINE, evaluate, measure
from heads.evaluation.scoring import Scores, part_scores, part_thresholds
from heads.evaluation.series import mean_series


def evaluate_task(
    task: Task,
    y: NDArray[Any],
    scores: Scores,
    *,
    groups: Sequence[Any] | NDArray[Any] | None,
    thresholds: float | Sequence[float] = 0.5,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    min_positives: int = 1,
) -> dict[str, Any]:
    """Return every metric of a task with its interval; see `heads.evaluation.metrics.evaluate` for the parameters.

    Returns
    -------
    dict
        What `evaluate` returns. For a mixed task: ``per_head``, for each target its ``kind``, ``n``, ``n_groups``
        and what `evaluate` returns for that kind on the rows that have a value; ``mean_<kind>_<metric>``, means over
        the targets of a kind, whose intervals resample the groups of all rows; and in ``left_out`` the targets that
        means leave out, with the reason.
    """
    if task.kind != "mixed":
        return evaluate(
            task.kind,
            y,
            scores,
            classes=task.classes or task.targets,
            groups=groups,
            thresholds=thresholds,
            n_boot=n_boot,
            seed=seed,
            level=level,
            min_positives=min_positives,
        )
    plan = Bootstrap.of(len(y), groups, n_boot=n_boot, seed=seed, level=level)
    per_head, left_out, measured = dict[str, Any](), dict[str, str](), dict[str, dict[str, Any]]()
    cuts = part_thresholds(task, thresholds)
    for j, (part, own) in enumerate(zip(task.parts, part_scores(scores, task), strict=True)):
        (name,), known = part.targets, ~np.isnan(y[:, j])
        per_head[name] = {"kind": part.kind, "n": int(known.sum()), "n_groups": len(np.unique(plan.cluster[known]))}
        if not known.any():
            left_out[name] = "no row has a value"
            continue
        classes = part.classes or part.targets
        found = measure(part.kind, y[known, j], own[known], classes, cuts[j], min_positives, plan.of_rows(known))
        per_head[name] |= plan.estimate_all(found)
        reason = _too_few(part, y[known, j], min_positives)
        if reason:
            left_out[name] = reason
        else:
            measured[name] = found
    drawn = {"level": level, "n_boot": n_boot, "seed": seed, "unit": "sample" if groups is None else "group"}
    return {
        "n": len(plan.cluster),
        "n_groups": plan.n_clusters,
        "bootstrap": drawn,
        **plan.estimate_all(_means(task, measured)),
        "per_head": per_head,
        "left_out": left_out,
    }


def _means(task: Task, measured: dict[str, dict[str, Any]]) -> dict[str, Series]:
    """Return the means of the headline metrics over the targets of each kind."""
    values: dict[str, Floats] = {}
    for name in HEADLINE["mixed"]:
        _, kind, metric = name.split("_", 2)
        each = [
            measured[part.targets[0]][metric].values
            for part in task.parts
            if part.kind == kind and part.targets[0] in measured
        ]
        if each:
            values[name] = np.column_stack(each)
    return mean_series(values)


def _too_few(part: Task, y: Floats, min_positives: int) -> str | None:
    """Return why a target does not count in means, if it does not: as for the labels of a multilabel task."""
    if part.kind != "binary":
        return None
    positives = int((y == 1).sum())
    if positives < max(1, min_positives):
        return f"{positives} positives, fewer than {max(1, min_positives)}"
    return "no negatives" if positives == len(y) else None
