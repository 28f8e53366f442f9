"""Balanced subsets: n samples per label, for few-shot curves and for data where one label drowns the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import TaskError
from data.task import Kind, Targets

Rows = NDArray[np.intp]


def balanced_subset(
    y: Targets,
    kind: Kind,
    n: int,
    seed: int,
    groups: NDArray[Any] | None = None,
    include_negatives: bool = True,  # noqa: FBT001, FBT002 - the name says it
) -> Rows:
    """Return the positions of up to `n` samples per label, ascending.

    Parameters
    ----------
    y
        Targets as `data.task` encodes them: class codes (n,), or 0, 1 and NaN of shape (n, T).
    kind
        ``binary``, ``multiclass`` or ``multilabel``.
    n
        Samples per class, or positive samples per label; all there are where there are fewer.
    seed
        Seed of the choice. The subset of a smaller `n` is part of that of a larger one.
    groups
        Shape (n,): each label takes a second sample of a group only when it has one of every group.
    include_negatives
        Of a multilabel task: also take `n` samples that are known to have no label.

    Returns
    -------
    positions
        The union of what the labels took. A sample with several labels counts for each, so the
        union of a multilabel task is not balanced: a label may have more than `n` positives.

    Raises
    ------
    TaskError
        If the task has no labels (a regression), or `n` is below 1.

    Notes
    -----
    Labels are more even in the subset than in the population: probabilities and thresholds learned
    from it do not carry over to the population by themselves.
    """
    if kind == "regression":
        raise TaskError(
            "a regression has no labels to take samples of; expected a binary, multiclass or multilabel task"
        )
    if n < 1:
        raise TaskError(f"{n} samples per label; expected at least 1")
    order = np.random.default_rng(seed).permutation(len(y))
    taken = [
        _first(order[member[order]], n, groups) for member in _members(y, kind, include_negatives=include_negatives)
    ]
    return np.unique(np.concatenate([np.empty(0, np.intp), *taken]))


def _members(y: Targets, kind: Kind, *, include_negatives: bool) -> list[NDArray[np.bool_]]:
    """Return which samples each label may take, shape (n,) each."""
    if kind != "multilabel":
        return [y == code for code in np.unique(y[y >= 0])]
    members = [column == 1 for column in y.T]
    known_negative = ~np.isnan(y).all(axis=1) & ~(y == 1).any(axis=1)
    return [*members, known_negative] if include_negatives else members


def _first(candidates: Rows, n: int, groups: NDArray[Any] | None) -> Rows:
    """Return the first `n`, all groups taking turns."""
    if groups is not None:
        candidates = candidates[np.argsort(_turns(groups[candidates]), kind="stable")]
    return candidates[:n]


def _turns(groups: NDArray[Any]) -> NDArray[np.intp]:
    """Return how many of the same group come before each, shape (n,)."""
    by_group = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[by_group], return_index=True, return_counts=True)
    turns = np.empty(len(groups), np.intp)
    turns[by_group] = np.arange(len(groups)) - np.repeat(starts, sizes)
    return turns
