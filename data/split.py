"""Splits and folds: parse a given split column, or make seeded, stratified and grouped ones.

One greedy algorithm serves every kind of task. Each row belongs to *strata* (its class; each of its
positive labels; its quantile bin), each group is the vector of how many of its rows are in each
stratum, and whole groups are dealt out, those that hold the largest share of any stratum first, to the
part that lacks those strata most. For rows without groups this is stratification; for several labels
it is iterative stratification [1]_; for groups of unequal size it is longest-first scheduling [2]_.

References
----------
.. [1] K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the Stratification of Multi-Label Data", ECML PKDD 2011.
.. [2] R. L. Graham, "Bounds on Multiprocessing Timing Anomalies", SIAM J. Appl. Math. 17, 1969.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import SplitError
from data.manifest import Column
from data.task import Kind, Targets, labelled

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What the values of a split column mean, in lower case."""

QUANTILE_BINS = 10
"""Strata of a regression target."""
SIZE_WEIGHT = 0.1
"""How much an even number of rows counts beside an even number of each label."""


@dataclass(frozen=True)
class Folds:
    """A partition of the rows into folds.

    Attributes
    ----------
    assignment
        The fold of each row, shape (n,), intp, in 0..n_folds-1.
    warnings
        What the folds could not give, one line each.
    """

    assignment: NDArray[np.intp]
    warnings: tuple[str, ...] = ()


def parse_split(column: Column, *, rows: Sequence[int] = (), where: str = "split column") -> NDArray[np.str_]:
    """Return ``train``, ``val``, ``test`` or an empty text (not used) for each cell of a split column.

    Parameters
    ----------
    column
        The cells; any of `SPLIT_NAMES` in any letter case, or None.
    rows
        The row of each cell in its file, for messages; by default counted from 1.
    where
        The column in words, for messages.

    Raises
    ------
    SplitError
        If a cell names no split, or no cell does.
    """
    names = ["" if cell is None else SPLIT_NAMES.get(cell.strip().casefold()) for cell in column]
    unknown = [position for position, name in enumerate(names) if name is None]
    if unknown:
        at = unknown[0]
        raise SplitError(
            f"{where}, row {rows[at] if rows else at + 1}: {column[at]!r} is no split ({len(unknown)} such rows); "
            f"expected one of {', '.join(SPLIT_NAMES)}, or an empty cell for a row that is not used"
        )
    if not any(names):
        raise SplitError(f"{where}: all {len(column)} cells are empty; expected {', '.join(SPLIT_NAMES)}")
    return np.array(names, dtype="<U5")


def make_folds(
    y: Targets,
    kind: Kind,
    groups: NDArray[np.generic] | None,
    n_folds: int,
    seed: int,
    *,
    classes: Sequence[str] = (),
) -> Folds:
    """Deal the rows out to folds of equal size and label mix, never splitting a group.

    Parameters
    ----------
    y
        Targets as `read_task` returns them: codes (n,) with -1 missing, 0/1/NaN (n, T), numbers (n,) or (n, T), or
        codes and numbers (n, T), NaN missing, of a mixed task.
    kind
        Kind of the task.
    groups
        One label per row, shape (n,); rows of one group share a fold. None: each row is its own group.
    n_folds
        Number of folds, at least 2.
    seed
        Decides between equally good folds.
    classes
        Names of the classes, for warnings.

    Raises
    ------
    SplitError
        If there are fewer groups with a label than folds.
    """
    if n_folds < 2:
        raise SplitError(f"{n_folds} folds asked for; cross-validation needs at least 2")
    members, n_groups = _group_codes(groups, len(y))
    strata = _strata(y, kind)
    n_labelled = len(np.unique(members[strata.labelled]))
    if n_labelled < n_folds:
        raise SplitError(
            f"{n_folds} folds asked for, but there are only {n_labelled} groups with a label ({len(y)} rows); "
            + (f"use at most --folds {n_labelled}" if n_labelled >= 2 else "check the group column and the labels")
        )
    parts = _deal(strata, members, n_groups, np.full(n_folds, 1 / n_folds), seed)
    return Folds(parts[members], _scarce(strata, members, n_folds, classes))


def holdout(
    y: Targets, kind: Kind, groups: NDArray[np.generic] | None, fraction: float, seed: int
) -> NDArray[np.bool_]:
    """Return the mask of rows to hold out, stratified like `make_folds` and never splitting a group.

    Parameters
    ----------
    y, kind, groups, seed
        As for `make_folds`.
    fraction
        The share of the rows to hold out, between 0 and 1 (both excluded).

    Returns
    -------
    ndarray of bool, shape (n,)
        True for held-out rows; both sides have at least one group with a label.

    Raises
    ------
    SplitError
        If there are fewer than two groups with a label, or the fraction is out of range.
    """
    if not 0 < fraction < 1:
        raise SplitError(f"cannot hold out a fraction of {fraction}; expected a number between 0 and 1")
    members, n_groups = _group_codes(groups, len(y))
    strata = _strata(y, kind)
    n_labelled = len(np.unique(members[strata.labelled]))
    if n_labelled < 2:
        raise SplitError(
            f"cannot hold out rows: only {n_labelled} groups with a label ({len(y)} rows); need at least 2"
        )
    parts = _deal(strata, members, n_groups, np.array([1 - fraction, fraction]), seed)
    return np.asarray(parts[members] == 1)


@dataclass(frozen=True)
class _Strata:
    """Which strata each row belongs to, as pairs.

    The strata are the labels, then all rows that have a label, then all that have none.

    Attributes
    ----------
    rows, strata
        One pair per membership, both of shape (p,).
    labels
        How many of the strata are labels.
    labelled
        Which rows have any label, shape (n,).
    """

    rows: NDArray[np.intp]
    strata: NDArray[np.intp]
    labels: int
    labelled: NDArray[np.bool_]

    @property
    def count(self) -> int:
        return self.labels + 2


def _strata(y: Targets, kind: Kind) -> _Strata:
    if kind in ("binary", "multiclass"):
        y = y.astype(np.int64)
    known = labelled(y)
    rows, label, labels = _label_pairs(y, kind)
    # The labelled rows as a stratum of their own keep the parts of equal size where the labels leave a choice.
    return _Strata(
        rows=np.concatenate([rows, np.arange(len(y))]),
        strata=np.concatenate([label, np.where(known, labels, labels + 1)]),
        labels=labels,
        labelled=known,
    )


def _label_pairs(y: Targets, kind: Kind) -> tuple[NDArray[np.intp], NDArray[np.intp], int]:
    """Return the rows and labels of all (row, label) pairs, and how many labels there are."""
    if kind in ("binary", "multiclass"):
        rows = np.flatnonzero(y >= 0)
        return rows, y[rows].astype(np.intp), int(y.max(initial=-1)) + 1
    values = y.astype(np.float64).reshape(len(y), -1)
    if kind == "multilabel":
        rows, columns = np.nonzero(values == 1)
        return rows, columns, values.shape[1]
    rows, columns = np.nonzero(~np.isnan(values))
    if kind == "mixed":
        strata, counts = zip(*map(_codes_or_bins, values.T), strict=True)
        first = np.concatenate([[0], np.cumsum(counts)])
        return rows, first[columns] + np.column_stack(strata)[rows, columns], int(first[-1])
    bins = np.column_stack([_quantile_bins(column) for column in values.T])
    return rows, columns * QUANTILE_BINS + bins[rows, columns], values.shape[1] * QUANTILE_BINS


def _codes_or_bins(values: NDArray[np.float64]) -> tuple[NDArray[np.intp], int]:
    """Return the stratum of each value and how many there are: its code where all are codes from 0 on, else its bin."""
    known = np.unique(values[~np.isnan(values)])
    if np.array_equal(known, np.arange(len(known))):
        return np.nan_to_num(values, nan=0.0).astype(np.intp), len(known)
    return _quantile_bins(values), QUANTILE_BINS


def _quantile_bins(values: NDArray[np.float64]) -> NDArray[np.intp]:
    known = values[~np.isnan(values)]
    edges = np.quantile(known, np.linspace(0, 1, QUANTILE_BINS + 1)[1:-1]) if len(known) else np.zeros(0)
    return np.searchsorted(edges, values, side="right")


def _group_codes(groups: NDArray[np.generic] | None, n: int) -> tuple[NDArray[np.intp], int]:
    if groups is None:
        return np.arange(n), n
    names, codes = np.unique(groups, return_inverse=True)
    return codes.astype(np.intp), len(names)


def _deal(
    strata: _Strata, members: NDArray[np.intp], n_groups: int, shares: NDArray[np.float64], seed: int
) -> NDArray[np.intp]:
    r"""Return the part of each group, shape (n_groups,).

    With :math:`T_k` rows in stratum k, :math:`c_k` of them in the group at hand and :math:`N_{fk}` already
    in part f, which is to get the share :math:`p_f`, the group goes to the part that minimises

    .. math:: \frac{1}{p_f} \sum_k w_k c_k (2 N_{fk} + c_k), \qquad w_k = T_k^{-2},

    the increase of the squared relative deviation :math:`\sum_{fk} w_k (N_{fk} - p_f T_k)^2 / p_f`.
    """
    rng = np.random.default_rng(seed)
    counts = _GroupCounts.of(strata, members, n_groups)
    share = counts.values * counts.weights
    has_label = np.zeros(n_groups, dtype=bool)
    has_label[members[strata.labelled]] = True
    prominence = np.bincount(counts.owners, share * counts.values, minlength=n_groups)
    # Last key first: groups with a label, then the largest share of any stratum, then by chance.
    order = np.lexsort((rng.random(n_groups), -prominence, ~has_label))

    parts = np.zeros(n_groups, dtype=np.intp)
    filled = np.zeros((strata.count, len(shares)))
    luck = rng.random((n_groups, len(shares)))
    for group in order:
        held = slice(counts.starts[group], counts.starts[group + 1])
        where, values = counts.strata[held], counts.values[held]
        current = filled[where]
        costs = share[held] @ (2 * current + values[:, None]) / shares
        best = costs <= costs.min() * (1 + 1e-13)
        part = int(np.argmax(best * (1 + luck[group])))
        parts[group] = part
        filled[where, part] += values
    empty = np.setdiff1d(np.arange(len(shares)), parts[has_label])
    if empty.size:  # a small share of few groups: give it the least of them
        last = order[: has_label.sum()][::-1]
        parts[last[: len(empty)]] = empty
    return parts


@dataclass(frozen=True)
class _GroupCounts:
    """How many rows of each group are in each stratum: a sparse matrix (n_groups, strata), row by row.

    Attributes
    ----------
    starts
        Where each group's entries start, shape (n_groups + 1,).
    owners, strata, values, weights
        Group, stratum, number of rows and the stratum's weight of each entry, shape (p,).
    """

    starts: NDArray[np.intp]
    owners: NDArray[np.intp]
    strata: NDArray[np.intp]
    values: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, strata: _Strata, members: NDArray[np.intp], n_groups: int) -> _GroupCounts:
        entries, values = np.unique(members[strata.rows] * strata.count + strata.strata, return_counts=True)
        owners, which = np.divmod(entries, strata.count)
        totals = np.bincount(which, values, minlength=strata.count)
        weights = np.asarray(totals[which] ** -2.0, dtype=np.float64)
        weights[which == strata.labels] *= SIZE_WEIGHT
        starts = np.searchsorted(owners, np.arange(n_groups + 1))
        return cls(starts, owners, which, values.astype(np.float64), weights)


def _scarce(strata: _Strata, members: NDArray[np.intp], n_folds: int, classes: Sequence[str]) -> tuple[str, ...]:
    """Return a warning if some labels are in fewer groups than there are folds."""
    entries = np.unique(np.column_stack([strata.strata, members[strata.rows]]), axis=0)
    groups = np.bincount(entries[:, 0], minlength=strata.count)[: strata.labels]
    scarce = (
        np.flatnonzero((groups > 0) & (groups < n_folds)) if len(classes) in (0, strata.labels) else np.zeros(0, int)
    )
    if not scarce.size:
        return ()
    named = ", ".join(f"{classes[label] if classes else label} ({groups[label]})" for label in scarce.tolist())
    return (f"classes in fewer groups than the {n_folds} folds, so that some folds have none of them: {named}",)
