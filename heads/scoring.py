"""From a fitted head to scores in the task's own order, and from scores to answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.task import Task
from heads.bags import Bags, features_for
from heads.base import Head

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
        head never saw has probability 0.
    """
    X = features_for(head, X)
    if task.kind == "regression":
        return np.asarray(head.predict(X), dtype=np.float64)
    probability = np.asarray(head.predict_proba(X), dtype=np.float64)
    if task.kind == "multilabel":
        return probability
    full = np.zeros((len(X), len(task.classes)))
    full[:, np.asarray(head.classes_, dtype=np.int64)] = probability
    return full[:, 1] if task.kind == "binary" else full


def answers(scores: Scores, task: Task, thresholds: ArrayLike) -> NDArray[Any]:
    """Return what is predicted: codes (n,), 0 and 1 of shape (n, T), or the values of a regression.

    Parameters
    ----------
    scores
        As `scores_of` returns them.
    task
        The task.
    thresholds
        Of a binary or multilabel task; a score at the threshold is positive.
    """
    if task.kind == "regression":
        return scores
    if task.kind == "multiclass":
        best: NDArray[np.int64] = scores.argmax(axis=1)
        return best
    return (scores >= np.asarray(thresholds)).astype(np.int64)


def class_probabilities(scores: Scores, task: Task) -> Scores:
    """Return one column per class: (n, 2) for binary, the scores themselves otherwise."""
    return np.column_stack([1 - scores, scores]) if task.kind == "binary" else scores
