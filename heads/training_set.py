"""The training set as a head's maths sees it: clean numbers, weights and masks in one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.task import Kind
from heads.context import Context

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True)
class Training:
    """What `_fit` learns from: checked, encoded, and without anything that cannot be learned.

    Attributes
    ----------
    X
        Features, shape (n, d), float32 or float64, standardised if the head says so.
    y
        Class codes of shape (n,), int64, for one label per row; else values of shape (n, T),
        float64, with 0 where the value is missing.
    weight
        Sample weight x class weight, in the shape of `y`, float64; 0 where the value is missing.
    groups
        What must not straddle an inner split, shape (n,), or None.
    kind
        The task kind.
    classes
        Number of classes for one label per row, else 2 for multilabel and 0 for regression.
    context
        Which columns belong together, and the prompts of the classes or targets that are learned.
    kept
        Which of the given rows these are, shape (n,): those with a weight and a value.
    """

    X: Floats
    y: NDArray[Any]
    weight: NDArray[np.float64]
    groups: NDArray[Any] | None
    kind: Kind
    classes: int
    context: Context = field(default_factory=Context)
    kept: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def labels(self) -> NDArray[Any]:
        """The values as users give them, NaN where missing: what a splitter stratifies on."""
        return self.y if self.y.ndim == 1 else np.where(self.weight > 0, self.y, np.nan)

    def rows(self, index: NDArray[Any]) -> Training:
        """Return some of the rows, by positions or a mask."""
        groups = None if self.groups is None else self.groups[index]
        return replace(self, X=self.X[index], y=self.y[index], weight=self.weight[index], groups=groups)
