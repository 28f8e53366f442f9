"""Few-shot curves: how good a cell is with 1, 2, 4 ... labelled samples per class, on test rows that stay the same."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.digest import digest_json
from data.files import whole_text_file
from data.split import make_folds
from data.subset import balanced_subset
from data.task import count_classes
from heads.augmented import fit_on
from heads.base import Head, HeadWarning
from heads.catalog import head_class, make_head
from heads.comparing.cells import identity
from heads.comparing.standings import mean_of
from heads.comparing.suite import Cell
from heads.errors import HeadError
from heads.evaluation.bootstrap import Bootstrap
from heads.evaluation.metrics import HEADLINE, replicates
from heads.evaluation.scoring import scores_of
from heads.labelled import Labelled
from heads.many import Job

FOLDER = "few_shot"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a curve.

    Attributes
    ----------
    metric
        The first metric of the task, which needs no threshold.
    n
        Samples per class, or positives per label; None for all rows.
    rows
        Rows of the subset, the mean over draws.
    value, low, high
        Mean over draws, and its interval over resampled groups of the
        test rows; None where undefined.
    reason
        Why there is no value.
    """

    metric: str
    n: int | None
    rows: float
    value: float | None
    low: float | None
    high: float | None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Where a curve learns and where it is judged.

    Attributes
    ----------
    pool, test
        Positions of the rows that subsets are drawn from, and of those that judge.
    sizes
        Samples per class; None stands for the whole pool.
    draws
        Subsets per size.
    described
        What the test rows are, in words.
    """

    pool: NDArray[np.int64]
    test: NDArray[np.int64]
    sizes: tuple[int | None, ...]
    draws: int
    described: str


def lay_course(data: Labelled, judge: str, *, folds: int, seed: int, draws: int) -> Course:
    """Return the course of all cells of a data set: val or test rows judge, else one fold of the training rows.

    Raises
    ------
    HeadError
        If the task is a regression, which has no classes to draw from.
    """
    if data.task.kind == "regression":
        raise HeadError("a few-shot curve takes n samples per class, and a regression has no classes")
    pool = data.rows("train")
    if judge == "cv":
        groups = data.groups[pool]
        assigned = make_folds(data.y[pool], data.task.kind, groups, folds, seed, classes=data.task.classes).assignment
        pool, test = pool[assigned != 0], pool[assigned == 0]
        described = f"one fold of {folds}, {len(test):,} samples"
    else:
        test = data.rows(judge)
        described = f"the {judge} split, {len(test):,} samples"
    largest = max(count_classes(data.task, data.y[pool]).values())
    sizes = [2**k for k in range(int(largest).bit_length()) if 2**k < largest]
    return Course(pool=pool, test=test, sizes=(*sizes, None), draws=draws, described=described)


def few_shot_curve(cell: Cell, data: Labelled, course: Course, out: Path) -> list[Point]:
    """Return the curve of a cell; it is kept in `out` and not fitted again.

    Every draw is fitted with its own seed; the smaller subset of a draw is part of the larger.
    """
    key = digest_json([identity(cell.config, data), course.test.tolist(), course.draws])[:12]
    file = out / FOLDER / f"{key}.json"
    if file.is_file():
        return [Point(**values) for values in json.loads(file.read_text(encoding="utf-8"))]
    seeds = [cell.config.seed + draw for draw in range(course.draws)]
    draws = [(size, seed) for size in course.sizes for seed in seeds]
    if not _draws_numbers(cell, data):
        draws = [(size, seed) for size, seed in draws if size is not None or seed == seeds[0]]
    jobs = [
        Job(make_head(cell.config.head, data.task.kind, cell.config.set, seed), _subset(data, course, size, seed))
        for size, seed in draws
    ]
    with warnings.catch_warnings():
        # That a label has no positives in a subset of a few rows is the subject, not a remark.
        warnings.simplefilter("ignore", HeadWarning)
        heads = list(fit_on(data, jobs))
    points = []
    for size in course.sizes:
        drawn = [i for i, draw in enumerate(draws) if draw[0] == size]
        points.append(_point(cell, data, course, size, [heads[i] for i in drawn], [jobs[i].rows for i in drawn]))
    with whole_text_file(file) as opened:
        json.dump([asdict(point) for point in points], opened, indent=1)
    return points


def _draws_numbers(cell: Cell, data: Labelled) -> bool:
    """Return whether the fits of a cell differ by seed, on the same rows."""
    return "random_state" in head_class(cell.config.head, data.task.kind)._get_param_names()


def _subset(data: Labelled, course: Course, size: int | None, seed: int) -> NDArray[np.int64]:
    if size is None:
        return course.pool
    chosen = balanced_subset(data.y[course.pool], data.task.kind, size, seed, groups=data.groups[course.pool])
    return course.pool[chosen]


def _point(
    cell: Cell,
    data: Labelled,
    course: Course,
    size: int | None,
    heads: Sequence[Head | HeadError],
    subsets: Sequence[NDArray[np.int64]],
) -> Point:
    rows, name = float(np.mean([len(subset) for subset in subsets])), HEADLINE[data.task.kind][0]
    failed = [head for head in heads if isinstance(head, HeadError)]
    if failed:
        reason = f"{len(failed)} of {len(heads)} fits failed: {failed[0]}"
        return Point(metric=name, n=size, rows=rows, value=None, low=None, high=None, reason=reason)
    plan = Bootstrap.of(
        len(course.test), data.groups[course.test], n_boot=cell.config.bootstrap, seed=cell.config.seed, level=0.95
    )
    series = [
        replicates(
            data.task.kind,
            data.y[course.test],
            scores_of(head, data.X[course.test], data.task),
            plan,
            classes=data.task.classes,
        )[name]
        for head in heads
        if isinstance(head, Head)
    ]
    estimate = plan.estimate_all(mean_of(series))
    return Point(
        metric=name,
        n=size,
        rows=rows,
        value=estimate["value"],
        low=estimate["low"],
        high=estimate["high"],
        reason=estimate.get("reason", ""),
    )
