"""The rows of ``predictions.csv``: what a head said about samples it had not seen."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.task import Task
from heads.errors import RunError
from heads.evaluation.bootstrap import Floats
from heads.evaluation.curves import Question

FILE = "predictions.csv"


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The judged rows of one split.

    Attributes
    ----------
    task
        The task.
    ids
        The id of each row.
    groups
        The group of each row, shape (n,); None where a row has none.
    y
        Class codes (n,) for binary and multiclass, else values (n, T), NaN where a target is unknown.
    scores
        Probability of the positive class (n,), of each class (n, K) or label (n, L); values (n, T).
    raw
        The scores before they were calibrated; None if they were not.
    """

    task: Task
    ids: tuple[str, ...]
    groups: tuple[str | None, ...]
    y: Floats
    scores: Floats
    raw: Floats | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns of `scores`; of a binary task, the positive class."""
        return self.task.classes[-1:] if self.task.kind == "binary" else (self.task.classes or self.task.targets)

    def questions(self, thresholds: Mapping[str, float]) -> list[Question]:
        """Return each yes-or-no question in the task, over the rows whose answer is known.

        Parameters
        ----------
        thresholds
            Class or label to its threshold, where there is one.
        """
        columns = self.scores.reshape(len(self), -1)
        if self.task.kind == "multilabel":
            answers = self.y
        else:
            codes = [1] if self.task.kind == "binary" else range(len(self.names))
            answers = np.stack([self.y == code for code in codes], axis=1).astype(np.float64)
        grouped = any(group is not None for group in self.groups)
        questions = []
        for j, name in enumerate(self.names):
            rows = np.flatnonzero(np.isfinite(answers[:, j]))
            questions.append(
                Question(
                    name=name,
                    truth=answers[rows, j] == 1,
                    scores=columns[rows, j],
                    groups=tuple(self.groups[i] for i in rows) if grouped else (),
                    threshold=thresholds.get(name),
                )
            )
        return questions


def read_predictions(run: Path, task: Task) -> dict[str, Predictions]:
    """Return the predictions of each split of a run.

    Parameters
    ----------
    run
        The run directory.
    task
        The run's task.

    Raises
    ------
    RunError
        If the file is missing, or does not fit the task.
    """
    path = run / FILE
    by_split = _rows(path, task)
    try:
        return {split: _parse(part, task) for split, part in by_split.items()}
    except _BadCell as error:
        raise RunError(f"{path}: {error}") from error


def read_views(run: Path, task: Task) -> dict[str, list[Predictions]]:
    """Return the predictions of each split of a run as tasks of one kind each.

    Those of a mixed task are read as labels, one for each target of two classes, and as a regression of all numbers;
    targets of more classes, and those without a value in a split, are left out. Those of any other task are one view,
    see `read_predictions`.

    Raises
    ------
    RunError
        If the file is missing, or does not fit the task.
    """
    if task.kind != "mixed":
        return {split: [rows] for split, rows in read_predictions(run, task).items()}
    path = run / FILE
    try:
        return {split: list(_views(rows, task)) for split, rows in _rows(path, task).items()}
    except _BadCell as error:
        raise RunError(f"{path}: {error}") from error


_Rows = Sequence[tuple[int, Mapping[str, str]]]
"""Rows of the file with their numbers."""


def _rows(path: Path, task: Task) -> dict[str, _Rows]:
    """Return the rows of each split."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            _expect_columns(path, reader.fieldnames or (), task)
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: is not a CSV file: {error}") from error
    by_split: dict[str, list[tuple[int, Mapping[str, str]]]] = {}
    for number, row in enumerate(rows, start=2):
        by_split.setdefault(row["split"], []).append((number, row))
    return dict(by_split)


class _BadCell(ValueError):
    """A cell that does not fit its column; says the row and the column."""


def _columns(task: Task) -> tuple[list[str], list[str]]:
    """Return the columns of the truth and of the scores."""
    if task.kind == "mixed":
        names = task.targets
        each = [f"prob[{part.targets[0]}={name}]" for part in task.parts for name in part.classes]
        return [f"true[{name}]" for name in names], [f"pred[{name}]" for name in names] + each
    if task.kind in ("binary", "multiclass"):
        return ["true"], [f"prob[{name}]" for name in task.classes]
    names = task.classes or task.targets
    said = "prob" if task.kind == "multilabel" else "pred"
    if task.kind == "regression" and len(names) == 1:
        return ["true"], ["pred"]
    return [f"true[{name}]" for name in names], [f"{said}[{name}]" for name in names]


def _expect_columns(path: Path, found: Sequence[str], task: Task) -> None:
    truth, scores = _columns(task)
    missing = [name for name in ("id", "split", "group", *truth, *scores) if name not in found]
    if missing:
        raise RunError(f"{path}: a {task.kind} task needs the columns {', '.join(missing)}; found {', '.join(found)}")


def _parse(rows: Sequence[tuple[int, Mapping[str, str]]], task: Task) -> Predictions:
    truth_columns, score_columns = _columns(task)
    ids, groups = tuple(row["id"] for _, row in rows), tuple(row["group"] or None for _, row in rows)
    scores = np.array([[_number(row, name, line) for name in score_columns] for line, row in rows])
    raw = None
    raw_columns = [f"raw[{name}]" for name in task.classes]
    if raw_columns and all(name in rows[0][1] for name in raw_columns):
        raw = np.array([[_number(row, name, line) for name in raw_columns] for line, row in rows])
    if task.kind in ("binary", "multiclass"):
        code = {name: float(j) for j, name in enumerate(task.classes)}
        y = np.array([_lookup(code, row, line) for line, row in rows])
        if task.kind == "binary":
            scores, raw = scores[:, 1], None if raw is None else raw[:, 1]
        return Predictions(task=task, ids=ids, groups=groups, y=y, scores=scores, raw=raw)
    y = np.array([[_number(row, name, line, empty=np.nan) for name in truth_columns] for line, row in rows])
    return Predictions(task=task, ids=ids, groups=groups, y=y, scores=scores, raw=raw)


def _views(rows: _Rows, task: Task) -> Iterator[Predictions]:
    """Yield the targets of a mixed task that have two classes, and those that are numbers."""
    for kind in ("binary", "regression"):
        parts = [part for part in task.parts if part.kind == kind]
        there = [part for part in parts if any(row[f"true[{part.targets[0]}]"] for _, row in rows)]
        if there:
            yield _parse_view(rows, there)


def _parse_view(rows: _Rows, parts: Sequence[Task]) -> Predictions:
    """Return some targets of a mixed task, either all of two classes or all numbers."""
    names = tuple(part.targets[0] for part in parts)
    if parts[0].kind == "regression":
        task = Task(kind="regression", targets=names)
        said = [f"pred[{name}]" for name in names]
        y = [[_number(row, f"true[{name}]", line, empty=np.nan) for name in names] for line, row in rows]
    else:
        task = Task(kind="multilabel", targets=names, classes=names)
        said = [f"prob[{part.targets[0]}={part.classes[-1]}]" for part in parts]
        codes = [{"": np.nan, part.classes[0]: 0.0, part.classes[1]: 1.0} for part in parts]
        y = [
            [_lookup(code, row, line, f"true[{name}]") for name, code in zip(names, codes, strict=True)]
            for line, row in rows
        ]
    scores = np.array([[_number(row, column, line) for column in said] for line, row in rows])
    ids, groups = tuple(row["id"] for _, row in rows), tuple(row["group"] or None for _, row in rows)
    return Predictions(task=task, ids=ids, groups=groups, y=np.array(y), scores=scores)


def _number(row: Mapping[str, Any], column: str, line: int, *, empty: float | None = None) -> float:
    text = row[column] or ""
    if not text and empty is not None:
        return empty
    try:
        return float(text)
    except ValueError:
        raise _BadCell(f"row {line}, column {column!r}: expected a number, found {text!r}") from None


def _lookup(code: Mapping[str, float], row: Mapping[str, str], line: int, column: str = "true") -> float:
    if row[column] not in code:
        raise _BadCell(f"row {line}, column {column!r}: expected one of {', '.join(code)}, found {row[column]!r}")
    return code[row[column]]
