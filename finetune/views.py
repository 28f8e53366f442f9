"""Which views of a study are used: all of them, or some that are drawn anew in every epoch of training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_ALONE = 1
"""Keeps the draw of the view that is also seen alone apart from that of the views that are used."""


@dataclass(frozen=True, kw_only=True)
class ViewChoice:
    """Chooses among the views of a study.

    Draws follow from seed, epoch and row only, so that they are the same on any number of processes and in a run that
    goes on. Without an epoch nothing is drawn: evaluation uses all views, or `limit` evenly spaced ones.

    Attributes
    ----------
    limit
        Views that are used at most; None uses all.
    single
        Chance that a study is seen by one of these only, any as likely.
    dropout
        Chance of each of these to be left out otherwise; where that leaves none, one of them stays, any as likely.
    alone
        Whether one of the views that are used is also seen alone, for `finetune.consistency`.
    seed
        Of the draws.
    """

    limit: int | None = None
    single: float = 0.0
    dropout: float = 0.0
    alone: bool = False
    seed: int = 0

    def used(self, count: int, *, row: int, epoch: int | None) -> NDArray[np.int64]:
        """Return which of a study's views are used, from 0, in their own order; at least one.

        Parameters
        ----------
        count
            Views of the study, at least 1.
        row
            Position of the study among the samples.
        epoch
            Of training; None in evaluation.
        """
        limit = min(self.limit or count, count)
        if epoch is None or count == 1:
            return np.linspace(0, count - 1, limit).round().astype(np.int64)
        draw = np.random.default_rng([self.seed, epoch, row])
        kept = np.sort(draw.choice(count, limit, replace=False)) if limit < count else np.arange(count)
        if draw.random() < self.single:
            return draw.choice(kept, 1)
        stays = draw.random(len(kept)) >= self.dropout
        return kept[stays] if stays.any() else draw.choice(kept, 1)

    def one(self, count: int, *, row: int, epoch: int) -> int:
        """Return which of the `count` views that are used is also seen alone."""
        return int(np.random.default_rng([self.seed, epoch, row, _ALONE]).integers(count))
