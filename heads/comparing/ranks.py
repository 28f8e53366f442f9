"""Ranks: who is best per data set, and on average over data sets."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from heads.evaluation.bootstrap import Floats


def ranks_of(values: ArrayLike, *, lower_is_better: bool = False) -> Floats:
    """Return ranks, 1 for the best; equal values share their mean rank, an undefined value (NaN) has none (NaN)."""
    numbers = np.asarray(values, dtype=np.float64)
    ranks: Floats = rankdata(numbers if lower_is_better else -numbers, nan_policy="omit")
    return ranks


@dataclass(frozen=True)
class MeanRank:
    """The mean rank of a competitor.

    Attributes
    ----------
    name
        Who.
    mean
        Mean of `ranks`.
    ranks
        Its rank in each block that it took part in.
    """

    name: str
    mean: float
    ranks: Mapping[Hashable, float]


def mean_ranks(blocks: Mapping[Hashable, Mapping[str, float]], *, lower_is_better: bool = False) -> list[MeanRank]:
    """Rank competitors within each block, and return their mean ranks, the best first.

    Parameters
    ----------
    blocks
        Values by competitor, for each block, such as a data set. A block of fewer than two says nothing
        and is left out.
    lower_is_better
        Whether the lowest value ranks first.
    """
    ranks: dict[str, dict[Hashable, float]] = {}
    for block, values in blocks.items():
        names = [name for name, value in values.items() if not np.isnan(value)]
        if len(names) < 2:
            continue
        found = ranks_of([values[name] for name in names], lower_is_better=lower_is_better)
        for name, rank in zip(names, found, strict=True):
            ranks.setdefault(name, {})[block] = float(rank)
    means = [MeanRank(name, float(np.mean(list(each.values()))), each) for name, each in ranks.items()]
    return sorted(means, key=lambda each: (each.mean, each.name))


def common_blocks(means: Sequence[MeanRank]) -> bool:
    """Return whether all competitors were ranked in the same blocks, so that their means compare."""
    return len({tuple(each.ranks) for each in means}) <= 1
