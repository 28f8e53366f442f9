"""`difference`: a finished run beside others that were judged on the same rows, by a paired test.

The runs may be of any kind that answers a task: heads, zero-shot, fine-tuned. Nothing is computed again: what each run
said of the rows is in its ``predictions.csv``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import FrostlineError, did_you_mean
from data.task import Task
from heads.errors import RunError
from heads.evaluation.bootstrap import Bootstrap, Estimate, Series, format_number
from heads.evaluation.metrics import HEADLINE, replicates
from heads.evaluation.paired import difference_of, holm
from heads.evaluation.predictions import Predictions, read_predictions
from heads.pages.table import aligned, interval_text
from heads.record import FILE, read_values

FEW_GROUPS = 30
"""Fewer groups than this make intervals that are too narrow to be trusted."""


@dataclass(frozen=True, kw_only=True)
class RunDifference:
    """A metric of a run and of another on the same rows.

    Attributes
    ----------
    metric
        Its name.
    run, other
        The runs.
    of_run, of_other
        Value and interval of each.
    difference, low, high, p
        Of the run less the other, see `heads.evaluation.paired.Difference`; NaN where undefined.
    p_holm
        The p-value adjusted for all others and metrics of the same call (Holm, 1979).
    """

    metric: str
    run: Path
    other: Path
    of_run: Estimate
    of_other: Estimate
    difference: float
    low: float
    high: float
    p: float
    p_holm: float = np.nan

    @property
    def text(self) -> str:
        """The difference and its interval."""
        if np.isnan(self.difference):
            return "undefined"
        return f"{self.difference:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True, kw_only=True)
class Differences:
    """What came of a comparison of finished runs.

    Attributes
    ----------
    split, rows, groups
        What was judged: its name, its rows, and groups among them.
    differences
        One per other run and metric.
    warnings
        What a reader must know.
    """

    split: str
    rows: int
    groups: int
    differences: tuple[RunDifference, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; null where a number is undefined."""
        found = [{name: _json(value) for name, value in asdict(difference).items()} for difference in self.differences]
        return {**asdict(self), "differences": found, "warnings": list(self.warnings)}

    def table(self) -> str:
        """Return the differences as text, one row each."""
        head = ["metric", "run", "beside", "it has", "difference", "p", "p (Holm)"]
        rows = [
            [
                each.metric,
                interval_text(each.of_run),
                str(each.other),
                interval_text(each.of_other),
                each.text,
                *("" if np.isnan(p) else format_number(p) for p in (each.p, each.p_holm)),
            ]
            for each in self.differences
        ]
        return aligned([head, *rows])


def difference(
    run: Path,
    others: Sequence[Path],
    *,
    split: str = "test",
    metrics: Sequence[str] = (),
    n_boot: int = 1000,
    seed: int = 0,
) -> Differences:
    """Compare a finished run with others on the rows that all of them judged.

    The difference is that of the paired bootstrap over whole groups, on the same resamples for all runs.

    Parameters
    ----------
    run, others
        Run directories, each with a ``predictions.csv``.
    split
        The rows: ``test``, ``val`` or ``cv``.
    metrics
        Names of `heads.evaluation.metrics.evaluate`; those named first for the kind of task where there are none.
    n_boot, seed
        Number and seed of the resamples.

    Raises
    ------
    FrostlineError
        If a run has no predictions of a task, or the runs differ in task, rows, truth or groups.
    """
    first = _Answered.read(run, split)
    plan = Bootstrap.of(len(first.rows), first.groups, n_boot=n_boot, seed=seed, level=0.95)
    series = first.replicated(plan, first.min_positives)
    names = _chosen(first.rows.task, metrics, list(series))
    found = []
    for other in others:
        second = _Answered.read(other, split)
        _require_same(first, second, split)
        beside = second.replicated(plan, first.min_positives)
        for name in names:
            of_run, of_other = plan.estimate_all({"run": series[name], "other": beside[name]}).values()
            tested = difference_of(series[name].values, beside[name].values)
            found.append(
                RunDifference(metric=name, run=run, other=other, of_run=of_run, of_other=of_other, **tested._asdict())
            )
    adjusted = holm([each.p for each in found])
    return Differences(
        split=split,
        rows=len(first.rows),
        groups=plan.n_clusters,
        differences=tuple(replace(each, p_holm=float(p)) for each, p in zip(found, adjusted, strict=True)),
        warnings=tuple(_warnings(split, plan.n_clusters)),
    )


def _warnings(split: str, groups: int) -> list[str]:
    found = []
    if groups < FEW_GROUPS:
        found.append(f"{groups} groups were judged: intervals of so few are too narrow")
    if split == "val":
        found.append("val rows choose epochs and settings of some runs, whose numbers they flatter")
    return found


@dataclass(frozen=True, kw_only=True)
class _Answered:
    """What a run said of the rows of a split, in the order of their ids."""

    run: Path
    rows: Predictions
    thresholds: tuple[float, ...]
    min_positives: int

    @classmethod
    def read(cls, run: Path, split: str) -> _Answered:
        values = read_values(run)
        task, cuts = values.get("task"), values.get("thresholds") or {}
        if not task:
            raise RunError(f"{run}: predicts no target, so that nothing can be tested; expected a run with a task")
        try:
            known = Task.from_dict(task)
            thresholds = tuple(float(each["value"]) for each in cuts.values())
            min_positives = int(values.get("config", {}).get("min_positives", 1))
        except (FrostlineError, AttributeError, TypeError, KeyError, ValueError) as error:
            raise RunError(f"{run / FILE}: damaged: {error}") from error
        if known.kind == "mixed":
            raise RunError(f"{run}: has targets of several kinds; expected runs with targets of one kind")
        by_split = read_predictions(run, known)
        if split not in by_split:
            raise RunError(f"--split {split}: {run} has no predictions of it; it has {', '.join(by_split) or 'none'}")
        rows = by_split[split]
        if len(set(rows.ids)) < len(rows):
            raise RunError(f"{run}: several {split} predictions have one id, so that rows cannot be paired")
        order = np.argsort(np.array(rows.ids, dtype=object))
        rows = _ordered(rows, order.tolist())
        return cls(run=run, rows=rows, thresholds=thresholds, min_positives=min_positives)

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each row; a row without one is a group of its own."""
        pairs = zip(self.rows.ids, self.rows.groups, strict=True)
        return tuple(f"row {name}" if group is None else f"group {group}" for name, group in pairs)

    def replicated(self, plan: Bootstrap, min_positives: int) -> dict[str, Series]:
        """Return every metric on the rows and on each resample of a plan."""
        task = self.rows.task
        return replicates(
            task.kind,
            self.rows.y,
            self.rows.scores,
            plan,
            classes=task.classes or task.targets,
            thresholds=self.thresholds or 0.5,
            min_positives=min_positives,
        )


def _ordered(rows: Predictions, order: list[int]) -> Predictions:
    return replace(
        rows,
        ids=tuple(rows.ids[i] for i in order),
        groups=tuple(rows.groups[i] for i in order),
        y=rows.y[order],
        scores=rows.scores[order],
        raw=None if rows.raw is None else rows.raw[order],
    )


def _chosen(task: Task, asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics to test: those asked for, or the first three of the task."""
    for name in asked:
        if name not in known:
            raise RunError(f"--metric {name}: no metric of a {task.kind} task; {did_you_mean(name, known)}")
    return tuple(dict.fromkeys(asked)) or HEADLINE[task.kind][:3]


def _require_same(a: _Answered, b: _Answered, split: str) -> None:
    """Refuse two runs that were not asked the same about the same rows."""
    both = f"{a.run} and {b.run}"
    of_a, of_b = a.rows.task, b.rows.task
    if (of_a.kind, of_a.targets, of_a.classes) != (of_b.kind, of_b.targets, of_b.classes):
        raise RunError(f"{both}: answer other questions: {_asked(of_a)} and {_asked(of_b)}")
    if a.rows.ids != b.rows.ids:
        only = [len(set(one) - set(other)) for one, other in ((a.rows.ids, b.rows.ids), (b.rows.ids, a.rows.ids))]
        raise RunError(
            f"{both}: were judged on other {split} rows ({only[0]} of the first only, {only[1]} of the second); "
            f"expected runs of one manifest and one --split"
        )
    if not np.array_equal(a.rows.y, b.rows.y, equal_nan=True):
        raise RunError(f"{both}: have other true values for the same ids; expected runs of one manifest")
    if a.groups != b.groups:
        raise RunError(f"{both}: have other groups for the same ids; expected runs with the same --group")


def _asked(task: Task) -> str:
    return f"{task.kind} {', '.join(task.targets)} ({', '.join(task.classes) or 'numbers'})"


def _json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and np.isnan(value) else value
