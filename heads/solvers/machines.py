"""How tasks of all kinds become problems of two classes, and what their outputs say together."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.training_set import Training

Problem = tuple[NDArray[Any], NDArray[np.float64]]
"""What a machine is to learn: the value of each row, and its weight; both of shape (n,)."""


def two_class_problems(training: Training) -> list[Problem]:
    """Return the two-class problems as (is positive, weight): one, one per pair of classes, or one per label."""
    y, weight = training.y, training.weight
    if training.kind == "binary":
        return [(y == 1, weight)]
    if training.kind == "multilabel":
        return [(y[:, t] == 1, weight[:, t]) for t in range(y.shape[1])]
    pairs = combinations(range(training.classes), 2)
    return [(y == second, np.where((y == first) | (y == second), weight, 0)) for first, second in pairs]


def summed_margins(outputs: NDArray[np.float64], classes: int) -> NDArray[np.float64]:
    """Return each class's sum of margins over its pairs, shape (n, C), from outputs (n, C (C - 1) / 2)."""
    total = np.zeros((len(outputs), classes))
    for column, (first, second) in enumerate(combinations(range(classes), 2)):
        total[:, first] -= outputs[:, column]
        total[:, second] += outputs[:, column]
    return total


def squared_errors(
    outputs: NDArray[np.float64], targets: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return weighted mean squared errors, shape (values of C, T), from outputs (values of C, n, T); NaN if unknown."""
    seen = np.where(np.isnan(outputs[0]), 0, weight)
    total = seen.sum(axis=0)
    errors = np.square(np.nan_to_num(outputs) - targets)
    return np.asarray((seen * errors).sum(axis=1) / np.where(total > 0, total, np.nan))
