"""Which rows a study may see: inner folds of the training rows; the rows of the final judgement stay outside."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data.split import holdout, make_folds
from heads.labelled import Labelled


@dataclass(frozen=True, eq=False)
class InnerFold:
    """One fold: what a head learns from, and what it is scored on; positions among all rows."""

    fit: NDArray[np.int64]
    score: NDArray[np.int64]


def set_aside(data: Labelled, fraction: float, seed: int) -> tuple[Labelled, str, list[str]]:
    """Return the data with rows for the final judgement, the name of their split, and remarks.

    The test rows are the judges; without any the val rows are, and without these a share of the rows,
    stratified and in whole groups, becomes the test split.
    """
    for split in ("test", "val"):
        if len(data.rows(split)):
            return data, split, []
    held = holdout(data.y, data.task.kind, data.groups, fraction, seed)
    remark = (
        f"no test rows are given, so {int(held.sum())} of {len(held)} rows in whole groups were set aside for the "
        f"final judgement (--holdout {fraction:g})"
    )
    return replace(data, split=np.where(held, "test", "train")), "test", [remark]


def inner_folds(data: Labelled, folds: int, seed: int) -> list[InnerFold]:
    """Return grouped, stratified folds of the training rows, the same that `fit-head` makes."""
    train = data.rows("train")
    dealt = make_folds(data.y[train], data.task.kind, data.groups[train], folds, seed, classes=data.task.classes)
    return [InnerFold(train[dealt.assignment != k], train[dealt.assignment == k]) for k in range(folds)]
