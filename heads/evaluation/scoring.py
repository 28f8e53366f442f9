"""From a fitted head to scores in the task's own order, and from scores to answers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.task import Task
from heads.bags import Bags, features_for
from heads.base import Head
from heads.mixed import MixedHead

Scores = NDArray[np.float64]


def scores_of(head: Head, X: NDArray[Any] | Bags, task: Task) -> Scores:
    """Return a head's scores in the order of the task.

    Parameters
    ----------
    head
        A fitted head; its labels are the task's codes.
    X
        Embeddings, shape (n, d), or bags; a head that does not take bags sees the mean of each.
    task
        The task.

    Returns
    -------
    ndarray of float64
        Probability of the positive class (n,) for binary, of each class (n, C) for multiclass, of
        each label (n, T) for multilabel; values (n,) or (n, T) for regression. A class that the
        head never saw has probability 0. For a mixed task, side by side: the probability of each class
        of a target, or its value; see `score_columns`.
    """
    X = features_for(head, X)
    if isinstance(head, MixedHead):
        own = head.predict_scores(X)
        return np.column_stack(
            [
                own[part.targets[0]] if part.kind == "regression" else _in_order(own[part.targets[0]], labels, part)
                for part, labels in zip(task.parts, head.labels_, strict=True)
            ]
        )
    if task.kind == "regression":
        return np.asarray(head.predict(X), dtype=np.float64)
    probability = np.asarray(head.predict_proba(X), dtype=np.float64)
    if task.kind == "multilabel":
        return probability
    full = _in_order(probability, head.classes_, task)
    return full[:, 1] if task.kind == "binary" else full


def _in_order(probability: Scores, codes: ArrayLike, task: Task) -> Scores:
    """Return one column per class of the task, from one per code that a head knows."""
    full = np.zeros((len(probability), len(task.classes)))
    full[:, np.asarray(codes, dtype=np.int64)] = probability
    return full


def score_columns(task: Task) -> list[slice]:
    """Return which columns of the scores of a mixed task belong to each of its targets."""
    ends = np.cumsum([0, *(max(1, len(part.classes)) for part in task.parts)])
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def part_scores(scores: Scores, task: Task) -> list[Scores]:
    """Return the scores of each target of a mixed task, in the form of a task of its own kind."""
    own = [scores[:, columns] for columns in score_columns(task)]
    return [
        values if part.kind == "multiclass" else values[:, -1] for part, values in zip(task.parts, own, strict=True)
    ]


def part_thresholds(task: Task, thresholds: ArrayLike) -> list[float]:
    """Return a threshold for each target of a mixed task, from one for all or one per binary target; else 0.5."""
    binary = np.array([part.kind == "binary" for part in task.parts])
    cuts = np.full(len(binary), 0.5)
    cuts[binary] = thresholds
    return [float(cut) for cut in cuts]


def answers(scores: Scores, task: Task, thresholds: ArrayLike) -> NDArray[Any]:
    """Return what is predicted: codes (n,), 0 and 1 of shape (n, T), the values of a regression, or both (n, T).

    Parameters
    ----------
    scores
        As `scores_of` returns them.
    task
        The task.
    thresholds
        Of a binary or multilabel task; a score at the threshold is positive. Of a mixed one, those of its
        binary targets.
    """
    if task.kind == "mixed":
        own = zip(part_scores(scores, task), task.parts, part_thresholds(task, thresholds), strict=True)
        return np.column_stack([answers(values, part, cut) for values, part, cut in own]).astype(np.float64)
    if task.kind == "regression":
        return scores
    if task.kind == "multiclass":
        best: NDArray[np.int64] = scores.argmax(axis=1)
        return best
    return (scores >= np.asarray(thresholds)).astype(np.int64)


def class_probabilities(scores: Scores, task: Task) -> Scores:
    """Return one column per class: (n, 2) for binary, the scores themselves otherwise."""
    return np.column_stack([1 - scores, scores]) if task.kind == "binary" else scores
