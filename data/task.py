"""Task: which columns are the target, of which kind, with which classes in which order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from data.errors import TaskError, did_you_mean
from data.labels import LabelColumn, as_class, as_number, as_truth, is_none, normal, split_labels
from data.manifest import Manifest
from data.tables import shorten

Kind = Literal["binary", "multiclass", "multilabel", "regression", "mixed"]
Targets = NDArray[np.int64] | NDArray[np.float32] | NDArray[np.float64]
"""Targets of n samples, by kind: int64 codes (n,), -1 missing; float32 0/1/NaN (n, T); float64 (n,) or (n, T).

Those of a mixed task are float64 (n, T): codes or numbers, NaN missing."""

NO_FINDING = ("No Finding", "None")
"""Words for an empty set of labels in a delimited column; letter case, spaces, ``_`` and ``-`` do not matter."""
REGRESSION_ABOVE = 20
"""A column of more different whole numbers than this is a quantity rather than a set of classes."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be predicted.

    Attributes
    ----------
    kind
        Kind of the task.
    targets
        The column or columns that hold the target.
    classes
        Names in the order of the codes; of a binary task the positive one is last; of a multilabel task one per
        label; empty for a regression.
    delimiter
        What separates the labels of a cell, for a multilabel task in one column; else None.
    negative
        Words for an empty set of labels, for a delimited column.
    empty
        Whether an empty cell of a delimited column means no label or an unknown one.
    parts
        The task of each target, for a mixed one (`data.mixed`): binary, multiclass or regression.
    """

    kind: Kind
    targets: tuple[str, ...]
    classes: tuple[str, ...] = ()
    delimiter: str | None = None
    negative: tuple[str, ...] = ()
    empty: Literal["negative", "missing"] = "missing"
    parts: tuple[Task, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        """The name of each column of a target matrix: labels of a multilabel task, else the target columns."""
        return self.classes if self.kind == "multilabel" else self.targets

    def to_dict(self) -> dict[str, Any]:
        """Return the task as JSON values."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        parts = {"parts": [part.to_dict() for part in self.parts]} if self.parts else {}
        return {name: value for name, value in values.items() if name != "parts"} | parts

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Task:
        """Return the task that `to_dict` wrote.

        Raises
        ------
        TaskError
            If the values are not those of a task.
        """
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        fields["parts"] = tuple(cls.from_dict(part) for part in values.get("parts", ()))
        try:
            task = cls(**fields)
        except TypeError as error:
            raise TaskError(f"not the record of a task: {error}") from error
        if task.kind not in get_args(Kind):
            raise TaskError(f"task of unknown kind {task.kind!r}; {did_you_mean(str(task.kind), get_args(Kind))}")
        return task


def read_task(
    manifest: Manifest,
    targets: Sequence[str],
    *,
    kind: Kind | Literal["auto"] = "auto",
    delimiter: str = "|",
    negative: Sequence[str] = NO_FINDING,
    positive: str | None = None,
    empty: Literal["auto", "negative", "missing"] = "auto",
) -> tuple[Task, Targets]:
    """Find out what is to be predicted, and read it.

    Parameters
    ----------
    manifest
        The samples.
    targets
        One column, or several of 0/1 or of numbers.
    kind
        The kind of task; ``auto`` decides by the rules below.
    delimiter
        Separates the labels of a multilabel task in one column.
    negative
        Words for an empty set of labels in such a column.
    positive
        The positive class of a binary task; by default the greater number, or the last name in sorted order.
    empty
        What an empty cell of a delimited column means. ``auto``: unknown if some other cell uses a word of
        `negative`, else no label.

    Returns
    -------
    Task
        Kind and classes; numbers are ordered as numbers, names as text.
    Targets
        The target of each sample.

    Raises
    ------
    TaskError
        If a value does not fit the kind, or there is nothing to tell apart; the message names the row.
    ManifestError
        If there is no such column.

    Notes
    -----
    Several columns are a multilabel task if all values are 0 or 1, a regression if some are not whole numbers or
    there are more than 20 different ones. One column is a multilabel task if a cell holds the delimiter, binary
    with two different values, a regression if all are numbers and some are not whole or more than 20 differ, else
    multiclass. Missing are empty cells, ``nan``, ``null`` and ``<NA>``, and ``none`` among numbers or 0/1; in a column
    of names ``none`` is a name.
    """
    if not targets:
        raise TaskError("no target named; expected at least one column (--target)")
    if kind != "auto" and kind not in get_args(Kind):
        raise TaskError(f"no kind of task is called {kind!r}; {did_you_mean(kind, (*get_args(Kind), 'auto'))}")
    repeated = {name for name in targets if targets.count(name) > 1}
    if repeated:
        raise TaskError(f"targets named twice: {', '.join(sorted(repeated))}")
    columns = [LabelColumn(manifest, name) for name in targets]
    for column in columns:
        column.refuse_empty()
        if kind == "auto":
            column.refuse_infinite()
    if len(columns) > 1:
        task = _task_of_columns(columns, kind)
    else:
        task = _task_of_column(columns[0], kind, delimiter, tuple(negative), positive, empty)
    if positive is not None and task.kind != "binary":
        raise TaskError(f"a positive class ({positive!r}) was named for a {task.kind} task; only a binary task has one")
    y = encode_targets(task, manifest)
    _refuse_constant(task, y)
    return task, y


def encode_targets(task: Task, manifest: Manifest) -> Targets:
    """Read the targets of a manifest for a task that is known already.

    Raises
    ------
    TaskError
        If a value is no number or no class of the task; the message names the row.
    ManifestError
        If a target column is missing.
    """
    columns = [LabelColumn(manifest, name) for name in task.targets]
    match task.kind:
        case "binary" | "multiclass":
            return _codes(columns[0], task)
        case "regression":
            numbers = np.column_stack([_numbers(column) for column in columns])
            return numbers[:, 0] if len(columns) == 1 else numbers
        case "multilabel" if task.delimiter is None:
            return np.column_stack([_zeros_and_ones(column) for column in columns])
        case "multilabel":
            return _label_sets(columns[0], task)
        case "mixed":
            encoded = [encode_targets(part, manifest) for part in task.parts]
            return np.column_stack([np.where(labelled(y), y, np.nan) for y in encoded])


def labelled(y: Targets) -> NDArray[np.bool_]:
    """Return which samples have any target, shape (n,)."""
    if np.issubdtype(y.dtype, np.integer):
        return np.asarray(y >= 0)
    return np.asarray(~np.isnan(y.reshape(len(y), -1)).all(axis=1))


def count_classes(task: Task, y: Targets) -> dict[str, int]:
    """Return how many samples each class has; for a multilabel task, how many are positive for each label.

    A regression has no classes: the numbers are those of samples with each target.
    """
    if task.kind in ("binary", "multiclass"):
        counts = np.bincount(y[y >= 0].astype(np.int64), minlength=len(task.classes))
    elif task.kind == "multilabel":
        counts = np.asarray(y == 1).sum(axis=0)
    else:
        counts = (~np.isnan(y.reshape(len(y), -1))).sum(axis=0)
    return dict(zip(task.classes or task.targets, map(int, counts), strict=True))


# Deciding -----------------------------------------------------------------------------------------------------------


def _task_of_columns(columns: Sequence[LabelColumn], kind: Kind | Literal["auto"]) -> Task:
    names = tuple(column.name for column in columns)
    if kind in ("binary", "multiclass"):
        raise TaskError(f"a {kind} task has one target column, {len(columns)} were named: {', '.join(names)}")
    if kind == "multilabel" or (kind == "auto" and all(column.is_binary for column in columns)):
        return Task(kind="multilabel", targets=names, classes=names)
    if kind == "regression" or any(column.is_quantity(REGRESSION_ABOVE) for column in columns):
        return Task(kind="regression", targets=names)
    column = next(column for column in columns if not column.is_binary)
    wrong = (
        at for at, cell in enumerate(column.cells) if cell is not None and as_truth(cell) is None and not is_none(cell)
    )
    raise column.fail(wrong, "0 and 1 in every column of a multilabel task (or --kind regression)")


def _task_of_column(
    column: LabelColumn,
    kind: Kind | Literal["auto"],
    delimiter: str,
    negative: tuple[str, ...],
    positive: str | None,
    empty: Literal["auto", "negative", "missing"],
) -> Task:
    targets = (column.name,)
    if kind == "auto":
        kind = _kind_of(column, delimiter)
    if kind == "regression":
        return Task(kind=kind, targets=targets)
    if kind == "multilabel" and column.is_binary:
        return Task(kind=kind, targets=targets, classes=targets)
    if kind == "multilabel":
        return _task_of_label_sets(column, delimiter, negative, empty)
    classes = _ordered_classes(column)
    if kind == "binary":
        if len(classes) > 2:
            raise TaskError(
                f"{column.manifest.path}, column {column.name!r}: a binary task has 2 classes, found {len(classes)}: "
                f"{shorten(classes, len(classes))}"
            )
        classes = _positive_last(column, classes, positive)
    return Task(kind=kind, targets=targets, classes=classes)


def _kind_of(column: LabelColumn, delimiter: str) -> Kind:
    if delimiter and any(delimiter in cell for cell in column.distinct):
        return "multilabel"
    classes = _ordered_classes(column)
    if len(classes) == 2:
        return "binary"
    if column.is_quantity(REGRESSION_ABOVE):
        return "regression"
    labelled_samples = sum(cell is not None for cell in column.cells)
    if len(classes) == labelled_samples > REGRESSION_ABOVE:
        raise TaskError(
            f"{column.manifest.path}, column {column.name!r}: all {labelled_samples} labels differ, as names do; "
            "expected classes that repeat (or --kind multiclass to insist)"
        )
    return "multiclass"


def _task_of_label_sets(
    column: LabelColumn, delimiter: str, negative: tuple[str, ...], empty: Literal["auto", "negative", "missing"]
) -> Task:
    words = frozenset(map(normal, negative))
    labels = {label for cell in column.distinct for label in split_labels(cell, delimiter)}
    if empty == "auto":
        # Who writes "No Finding" in some rows means something else by an empty cell.
        empty = "missing" if any(normal(label) in words for label in labels) else "negative"
    classes = sorted(label for label in labels if normal(label) not in words)
    if not classes:
        raise TaskError(
            f"{column.manifest.path}, column {column.name!r}: no row has a label; all are {', '.join(sorted(labels))}"
        )
    return Task(
        kind="multilabel",
        targets=(column.name,),
        classes=tuple(classes),
        delimiter=delimiter,
        negative=negative,
        empty=empty,
    )


def _ordered_classes(column: LabelColumn) -> tuple[str, ...]:
    if column.numbers is not None:
        return tuple(as_class(number) for number in sorted(column.numbers))
    return tuple(sorted(column.distinct))


def _positive_last(column: LabelColumn, classes: tuple[str, ...], positive: str | None) -> tuple[str, ...]:
    if positive is None:
        return classes
    number = as_number(positive)
    known = {positive} if number is None else {positive, as_class(number)}
    if not known & set(classes):
        raise TaskError(
            f"column {column.name!r} has no class {positive!r} to be positive; {did_you_mean(positive, classes)}"
        )
    return tuple(sorted(classes, key=lambda name: name in known))


def _refuse_constant(task: Task, y: Targets) -> None:
    where = f"target {', '.join(task.targets)}"
    known = int(labelled(y).sum())
    if task.kind in ("binary", "multiclass") and len(task.classes) < 2:
        raise TaskError(f"{where}: all {known} labels are {task.classes[0]!r}; there is nothing to tell apart")
    if task.kind not in ("binary", "multiclass"):
        matrix = y.reshape(len(y), -1)
        spread = np.nanmax(matrix, axis=0, initial=-np.inf) - np.nanmin(matrix, axis=0, initial=np.inf)
        if not (spread > 0).any():
            raise TaskError(f"{where}: all {known} known values are equal; there is nothing to tell apart")


# Reading ------------------------------------------------------------------------------------------------------------


def _codes(column: LabelColumn, task: Task) -> NDArray[np.int64]:
    code_of = {name: code for code, name in enumerate(task.classes)}
    codes = np.full(len(column.cells), -1, dtype=np.int64)
    numeric = all(as_number(name) is not None for name in task.classes)
    unknown = []
    for at, cell in enumerate(column.cells):
        if cell is None or (numeric and is_none(cell)):
            continue
        number = as_number(cell) if numeric else None
        code = code_of.get(cell if number is None else as_class(number))
        if code is None:
            unknown.append(at)
        else:
            codes[at] = code
    if unknown:
        raise column.fail(unknown, f"one of the classes {', '.join(task.classes)}")
    return codes


def _numbers(column: LabelColumn) -> NDArray[np.float64]:
    return _converted(column, as_number, "a finite number")


def _zeros_and_ones(column: LabelColumn) -> NDArray[np.float32]:
    return _converted(column, as_truth, "0, 1 or an empty cell").astype(np.float32)


def _converted(column: LabelColumn, convert: Any, expected: str) -> NDArray[np.float64]:
    values = [None if cell is None or is_none(cell) else convert(cell) for cell in column.cells]
    wrong = [
        at
        for at, (cell, value) in enumerate(zip(column.cells, values, strict=True))
        if value is None and cell is not None and not is_none(cell)
    ]
    if wrong:
        raise column.fail(wrong, expected)
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _label_sets(column: LabelColumn, task: Task) -> NDArray[np.float32]:
    assert task.delimiter is not None
    words = frozenset(map(normal, task.negative))
    code_of = {name: code for code, name in enumerate(task.classes)}
    y = np.zeros((len(column.cells), len(task.classes)), dtype=np.float32)
    unknown, contradictory = [], []
    for at, cell in enumerate(column.cells):
        if cell is None:
            if column.written[at] or task.empty == "missing":
                y[at] = math.nan
            continue
        labels = split_labels(cell, task.delimiter)
        present = [label for label in labels if normal(label) not in words]
        if len(present) < len(labels) and present:
            contradictory.append(at)
        elif not all(label in code_of for label in present):
            unknown.append(at)
        else:
            y[at, [code_of[label] for label in present]] = 1
    if contradictory:
        raise column.fail(contradictory, f"either labels or one of {', '.join(task.negative)}, not both")
    if unknown:
        raise column.fail(unknown, f"labels among {', '.join(task.classes)}")
    return y
