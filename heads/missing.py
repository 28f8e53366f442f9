"""Missing blocks: rows that lack the features of some encoders, which are NaN there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.errors import HeadError

Floats = NDArray[np.floating[Any]]


def check_missing(head: str, X: Floats, blocks: Sequence[int]) -> None:
    """Refuse NaN that does not fill a whole block of a row, and rows without any block.

    Parameters
    ----------
    head
        The head's name, for the error.
    X
        Features, shape (n, d).
    blocks
        Widths of the blocks, which sum to d.

    Raises
    ------
    HeadError
        If NaN stands anywhere else than throughout some, but not all, blocks of a row.
    """
    absent = np.isnan(X)
    if not absent.any():
        return
    starts = np.concatenate([[0], np.cumsum(blocks)[:-1]])
    missing = np.add.reduceat(absent, starts, axis=1, dtype=np.int64)
    torn = (missing > 0) & (missing < blocks)
    if torn.any():
        row, block = np.argwhere(torn)[0]
        raise HeadError(
            f"{head}: Input X contains NaN in a part of block {block} of row {row}; a missing block is NaN throughout"
        )
    empty = np.flatnonzero((missing > 0).all(axis=1))
    if len(empty):
        raise HeadError(f"{head}: Input X contains nothing but NaN in row {empty[0]}: all its blocks are missing")


def known_mean(share: NDArray[np.float64], values: Floats) -> NDArray[np.float64]:
    """Return the weighted mean of each column over the rows where it is known.

    Parameters
    ----------
    share
        Weights of the rows, which sum to 1, shape (n,).
    values
        Shape (n, d), NaN where not known.

    Returns
    -------
    mean
        Shape (d,); 0 where a column is known in no row.
    """
    absent = np.isnan(values)
    if not absent.any():
        return np.asarray(share @ values.astype(np.float64, copy=False))
    observed = share @ ~absent
    return np.asarray(share @ np.where(absent, 0.0, values) / np.where(observed > 0, observed, 1.0))
