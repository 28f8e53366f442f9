"""Mixed task: several target columns, each a task of its own: some classes to tell apart, some numbers to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from data.errors import TaskError, did_you_mean
from data.manifest import Manifest
from data.split import QUANTILE_BINS
from data.task import Targets, Task, encode_targets, read_task

PartKind = Literal["binary", "multiclass", "regression"]
"""What a target of a mixed task can be."""


def read_mixed(
    manifest: Manifest, targets: Sequence[str], *, kind: str = "auto", kinds: Mapping[str, str] | None = None
) -> tuple[Task, Targets]:
    """Find out what each target column is, and read them.

    Parameters
    ----------
    manifest
        The samples.
    targets
        The columns, one or more.
    kind
        The kind of all targets that `kinds` does not name; ``auto`` decides by the rules of `data.task.read_task`.
    kinds
        The kinds of some targets, by name.

    Returns
    -------
    Task
        A mixed task with one part per column.
    Targets
        float64, shape (n, T): codes or numbers, NaN where missing.

    Raises
    ------
    TaskError
        If a target is named twice, its values do not fit its kind, or there is nothing to tell apart.
    ManifestError
        If there is no such column.
    """
    if not targets:
        raise TaskError("no target named; expected at least one column (--target)")
    repeated = {name for name in targets if targets.count(name) > 1}
    if repeated:
        raise TaskError(f"targets named twice: {', '.join(sorted(repeated))}")
    parts = tuple(_read_part(manifest, name, (kinds or {}).get(name, kind)) for name in targets)
    task = Task(kind="mixed", targets=tuple(targets), parts=parts)
    return task, encode_targets(task, manifest)


def stratum_names(task: Task) -> tuple[str, ...]:
    """Return the names of what `data.split` stratifies by: classes of the task, or of each target of a mixed one."""
    if task.kind != "mixed":
        return task.classes
    tenths = tuple(f"tenth {k + 1}" for k in range(QUANTILE_BINS))
    return tuple(f"{part.targets[0]} {name}" for part in task.parts for name in part.classes or tenths)


def _read_part(manifest: Manifest, name: str, kind: str) -> Task:
    known = ("auto", *get_args(PartKind))
    if kind not in known:
        raise TaskError(f"target {name!r}: a head of a mixed task is no {kind} one; {did_you_mean(kind, known)}")
    part, _ = read_task(manifest, (name,), kind=kind)  # type: ignore[arg-type] # checked above
    if part.kind == "multilabel":
        raise TaskError(
            f"{manifest.path}, column {name!r}: its cells hold several labels, and a head has one answer; "
            "give a column of 0 and 1 per label, or name a --kind"
        )
    return part
