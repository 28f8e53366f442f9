"""Standing: what the cells of one data set came to, and which of them really differ.

Every cell is judged on the same rows, and every metric is replicated on the same resamples of groups,
for all repeats of the cross-validation at once: a difference between two cells is a difference draw by
draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import ConfigError, did_you_mean
from data.task import Kind, Task
from heads.comparing.suite import PRIOR, Cell, Omission
from heads.errors import RunError
from heads.evaluation.bootstrap import Bootstrap, Estimate, Series
from heads.evaluation.metrics import HEADLINE, LOWER_IS_BETTER, replicates
from heads.evaluation.paired import delong, difference_of, holm, mcnemar
from heads.evaluation.predictions import Predictions, read_predictions
from heads.evaluation.scoring import answers
from heads.labelled import Labelled
from heads.record import RunRecord

ALPHA = 0.05
FEW_GROUPS = 30
"""Fewer groups than this make intervals that are too narrow to be trusted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Entry:
    """A cell that was fitted.

    Attributes
    ----------
    cell
        Which.
    runs, records
        The run of each repeat.
    series
        Each metric on the data and on every resample, the mean over repeats.
    metrics
        Their values and intervals.
    first
        What the first repeat predicted of the judged rows.
    """

    cell: Cell
    runs: tuple[Path, ...]
    records: tuple[RunRecord, ...]
    series: Mapping[str, Series]
    metrics: Mapping[str, Estimate]
    first: Predictions

    @property
    def contends(self) -> bool:
        """Whether it is ranked and tested against all others; the prior and controls are not."""
        return self.cell.config.head != PRIOR and not self.cell.control

    @property
    def fit_seconds(self) -> float:
        """Wall time of all fits of a repeat, the mean over repeats."""
        return float(np.mean([record.timings["fit_seconds"] for record in self.records]))

    @property
    def n_parameters(self) -> int:
        """Parameters of the kept head of the first repeat."""
        return int(self.records[0].head["n_parameters"])

    @property
    def thresholds(self) -> list[float]:
        """The thresholds of the first repeat."""
        return [threshold["value"] for threshold in self.records[0].thresholds.values()]


@dataclass(frozen=True, kw_only=True, eq=False)
class Contrast:
    """A paired test of two entries; NaN where something is undefined.

    Attributes
    ----------
    test, metric
        ``bootstrap``, ``delong`` or ``mcnemar``, and what differs.
    a, b
        The entries; the difference is a - b.
    difference, low, high, p
        See `heads.evaluation.paired.Difference`.
    p_holm
        The p-value adjusted for all pairs of contenders of the data set with the same test and metric;
        pairs of a contender and its control are adjusted for each other.
    """

    test: str
    metric: str
    a: Entry
    b: Entry
    difference: float
    low: float
    high: float
    p: float
    p_holm: float = np.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """What the cells of one data set came to.

    Attributes
    ----------
    name
        The data set.
    data, rows
        The samples of all cells, and the positions of the judged ones.
    judge
        The split that was judged.
    names
        The metrics that are tested and ranked by, the most telling first.
    entries, tests
        The fitted cells, and the tests between them.
    omitted
        Cells that are not in the table, with the reason: failures, and baselines that cannot be had.
    failed
        The failures among them.
    remarks
        What a reader must know.
    """

    name: str
    data: Labelled
    rows: NDArray[np.int64]
    judge: str
    names: tuple[str, ...]
    entries: tuple[Entry, ...]
    tests: tuple[Contrast, ...]
    failed: tuple[Omission, ...] = ()
    omitted: tuple[Omission, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """The task of all cells."""
        return self.data.task

    def ordered(self) -> list[Entry]:
        """Return the entries, the best by the first metric first."""
        name = self.names[0]
        return sorted(self.entries, key=lambda entry: _badness(name, entry))

    def best(self, metric: str) -> Entry | None:
        """Return the contender with the best value of a metric, None where all are undefined."""
        found = [entry for entry in self.entries if entry.contends and entry.metrics[metric]["value"] is not None]
        return min(found, key=lambda entry: _badness(metric, entry)) if found else None

    def level(self, metric: str) -> set[Entry]:
        """Return the entries that the bootstrap cannot tell from the best by a tested metric, at 5 % after Holm."""
        best = self.best(metric)
        tests = [test for test in self.tests if (test.test, test.metric) == ("bootstrap", metric)]
        pairs = [test for test in tests if best in (test.a, test.b) and not test.b.cell.control]
        return {
            test.b if test.a is best else test.a
            for test in pairs
            # What could not be tested was not found to differ.
            if not test.p_holm < ALPHA and not np.isnan(test.difference)
        }


def plan_of(data: Labelled, rows: NDArray[np.int64], cells: Sequence[Cell]) -> Bootstrap:
    """Return the resamples that all cells of a data set are judged on."""
    config = cells[0].config
    return Bootstrap.of(len(rows), data.groups[rows], n_boot=config.bootstrap, seed=config.seed, level=0.95)


def enter(
    cell: Cell, runs: Sequence[Path], data: Labelled, rows: NDArray[np.int64], judge: str, plan: Bootstrap
) -> Entry:
    """Return what the runs of a cell came to.

    Raises
    ------
    RunError
        If a run's files are damaged.
    """
    records = [RunRecord.read(run) for run in runs]
    predictions = [read_predictions(run, data.task)[judge] for run in runs]
    for run, predicted in zip(runs, predictions, strict=True):
        if len(predicted) != len(rows):
            raise RunError(
                f"{run}: damaged: {len(predicted)} {judge} predictions, expected {len(rows)}; delete the run"
            )
    repeated = [
        replicates(
            data.task.kind,
            predicted.y,
            predicted.scores,
            plan,
            classes=data.task.classes or data.task.targets,
            thresholds=[threshold["value"] for threshold in record.thresholds.values()] or 0.5,
            min_positives=cell.config.min_positives,
        )
        for record, predicted in zip(records, predictions, strict=True)
    ]
    series = {name: mean_of([each[name] for each in repeated]) for name in repeated[0]}
    metrics: dict[str, Estimate] = plan.estimate_all(series)
    return Entry(
        cell=cell,
        runs=tuple(runs),
        records=tuple(records),
        series=series,
        metrics=metrics,
        first=predictions[0],
    )


def mean_of(series: Sequence[Series]) -> Series:
    """Return the mean of statistics that were replicated on the same resamples; undefined where one of them is."""
    partial = [each.partial for each in series if each.partial is not None]
    return Series(
        np.mean([each.values for each in series], axis=0),
        series[0].reason,
        np.any(partial, axis=0) if partial else None,
        series[0].centred,
    )


def choose_metrics(kind: Kind, asked: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the metrics to test and rank by: those asked for, or the first three of the task.

    Raises
    ------
    ConfigError
        If one is not a metric of the task.
    """
    for name in asked:
        if name not in known:
            raise ConfigError(f"--metric {name}: no metric of a {kind} task; {did_you_mean(name, known)}")
    return tuple(asked) or HEADLINE[kind][:3]


def run_tests(task: Task, entries: Sequence[Entry], names: Sequence[str]) -> tuple[Contrast, ...]:
    """Return the tests of all pairs of contenders, and of each with its controls, both adjusted by test and metric."""
    contenders = [entry for entry in entries if entry.contends]
    controls = [
        (real, entry) for entry in entries if entry.cell.control for real in contenders if _controls(entry, real)
    ]
    families: dict[tuple[bool, str, str], list[Contrast]] = {}
    for a, b in [*combinations(contenders, 2), *controls]:
        for family, test in _tests(task, a, b, names):
            families.setdefault((b.cell.control, test.test, family), []).append(test)
    adjusted = []
    for members in families.values():
        for test, p in zip(members, holm([test.p for test in members]), strict=True):
            adjusted.append(replace(test, p_holm=float(p)))
    return tuple(adjusted)


def _controls(entry: Entry, real: Entry) -> bool:
    """Return whether an entry is a control of another's prompts."""
    return real.cell.config.prompt_control == "none" and entry.cell.family == real.cell.family


def _tests(task: Task, a: Entry, b: Entry, names: Sequence[str]) -> Iterator[tuple[str, Contrast]]:
    """Yield the tests of one pair, each with the name of its family."""
    for name in names:
        found = difference_of(a.series[name].values, b.series[name].values)
        yield name, Contrast(test="bootstrap", metric=name, a=a, b=b, **found._asdict())
    if task.kind in ("binary", "multilabel"):
        truth, of_a, of_b = (values.reshape(len(a.first), -1) for values in (a.first.y, a.first.scores, b.first.scores))
        for j in range(truth.shape[1]):
            known = np.isfinite(truth[:, j])
            found = delong(truth[known, j], of_a[known, j], of_b[known, j])
            metric = "roc_auc" if task.kind == "binary" else f"roc_auc[{task.classes[j]}]"
            yield "roc_auc", Contrast(test="delong", metric=metric, a=a, b=b, **found._asdict())
    if task.kind != "regression":
        right_a, right_b = (_right(task, entry) for entry in (a, b))
        only_a, only_b, p = mcnemar(right_a, right_b)
        metric = "exact_match" if task.kind == "multilabel" else "accuracy"
        difference = (only_a - only_b) / len(right_a) if len(right_a) else np.nan
        yield (
            metric,
            Contrast(test="mcnemar", metric=metric, a=a, b=b, difference=difference, low=np.nan, high=np.nan, p=p),
        )


def _right(task: Task, entry: Entry) -> NDArray[np.bool_]:
    """Return whether each row was answered right; of a multilabel task all labels, of rows that know them all."""
    given = answers(entry.first.scores, task, entry.thresholds)
    if task.kind != "multilabel":
        return np.asarray(given == entry.first.y)
    known = np.isfinite(entry.first.y).all(axis=1)
    return np.asarray((given == entry.first.y)[known].all(axis=1))


def _badness(metric: str, entry: Entry) -> float:
    """Return a number that is lower the better, infinite where the metric is undefined."""
    value = entry.metrics[metric]["value"]
    if value is None:
        return np.inf
    return value if metric in LOWER_IS_BETTER else -value
