"""Bags: samples that are several embeddings each, such as the videos of a study or the tiles of a slide.

::

    values   [ a a a | b | c c ]      m instances, packed: no padding, however uneven the bags
    offsets  0       3   4     6      n + 1: bag i holds the instances offsets[i]:offsets[i + 1]
    inner    0   2   3   4     6      optional second level: parts of bags, such as the videos of a study
    views    A A B | A | B B          optional: what each instance shows, such as the angle of the camera

Where a mask appears, True means that an instance is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heads.errors import HeadError

Offsets = NDArray[np.int64]
Values = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Bags:
    """Several embeddings per sample, packed in one matrix; rows are bags, so ``bags[rows]`` selects some.

    Parameters
    ----------
    values
        Embeddings of all instances, bag after bag, shape (m, d).
    offsets
        Where each bag begins and the last one ends, shape (n + 1,): from 0 to m, not decreasing. Equal
        neighbours are a bag without instances.
    inner
        The same for parts of bags, shape (k + 1,); every bag begins where a part begins, and no part is
        empty. None for one level.
    views
        The view of each instance, shape (m,): names, empty where not known; the same throughout a part. None
        where nothing is said of views.

    Raises
    ------
    HeadError
        If they do not fit together.
    """

    values: Values
    offsets: Offsets
    inner: Offsets | None = None
    views: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        values = np.asarray(self.values)
        if values.ndim != 2:
            raise HeadError(f"bags: expected values of shape (m, d), got {values.shape}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", _checked("offsets", self.offsets, len(values)))
        if self.views is not None and np.shape(self.views) != (len(values),):
            raise HeadError(f"bags: expected views of shape ({len(values)},), got {np.shape(self.views)}")
        if self.inner is None:
            return
        inner = _checked("inner", self.inner, len(values))
        if (np.diff(inner) == 0).any():
            part = int(np.flatnonzero(np.diff(inner) == 0)[0])
            raise HeadError(f"bags: part {part} of inner is empty; leave it out")
        if not np.isin(self.offsets, inner).all():
            bag = int(np.flatnonzero(~np.isin(self.offsets, inner))[0])
            raise HeadError(f"bags: instance {self.offsets[bag]}, where bag {bag} begins, is inside a part of inner")
        object.__setattr__(self, "inner", inner)
        if self.views is not None:
            begins = np.isin(np.arange(1, len(values)), inner)
            differs = np.flatnonzero((self.views[1:] != self.views[:-1]) & ~begins)
            if len(differs):
                part = int(np.searchsorted(inner, differs[0], side="right")) - 1
                raise HeadError(f"bags: the instances of part {part} are of several views; a part has one")

    @classmethod
    def of_rows(cls, X: Values) -> Bags:
        """Return the rows of a matrix as bags of one instance each."""
        return cls(X, np.arange(len(X) + 1))

    @classmethod
    def from_list(cls, bags: Sequence[Values]) -> Bags:
        """Return one bag per matrix (m_i, d)."""
        return cls(np.concatenate(bags), offsets_of([len(bag) for bag in bags]))

    @classmethod
    def from_padded(cls, values: Values, mask: ArrayLike) -> Bags:
        """Return bags from padded arrays.

        Parameters
        ----------
        values
            Shape (n, L, d), or (n, V, L, d) for parts of bags.
        mask
            True where an instance is there, shape (n, L) or (n, V, L).

        Raises
        ------
        HeadError
            If the shapes do not fit, or the mask is not of booleans.
        """
        there = np.asarray(mask)
        if values.ndim not in (3, 4) or there.shape != values.shape[:-1]:
            raise HeadError(
                f"bags: expected values (n, L, d) or (n, V, L, d) and a mask without the last axis, "
                f"got {values.shape} and {there.shape}"
            )
        if there.dtype != np.bool_:
            raise HeadError(f"bags: expected a mask of booleans, True where an instance is there, got {there.dtype}")
        inner = None
        if values.ndim == 4:
            lengths = there.sum(axis=2).ravel()
            inner = offsets_of(lengths[lengths > 0])
        return cls(values[there], offsets_of(there.reshape(len(there), -1).sum(axis=1)), inner)

    def to_padded(self) -> tuple[Values, NDArray[np.bool_]]:
        """Return values (n, L, d), 0 where padded, and the mask (n, L), True where an instance is there."""
        mask = np.arange(self.lengths.max(initial=0)) < self.lengths[:, None]
        values = np.zeros((*mask.shape, self.values.shape[1]), self.values.dtype)
        values[mask] = self.values
        return values, mask

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, rows: Any) -> Bags:
        """Return some of the bags, by positions, a mask or a slice."""
        chosen = np.arange(len(self))[rows]
        if chosen.ndim != 1:
            raise HeadError(f"bags: expected positions, a mask or a slice of bags, got {rows!r}")
        at = ranges(self.offsets[chosen], self.lengths[chosen])
        return self._some(at, offsets_of(self.lengths[chosen]))

    @property
    def shape(self) -> tuple[int, int]:
        """Number of bags, and length of an embedding."""
        return len(self), self.values.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self.values.dtype

    @property
    def lengths(self) -> Offsets:
        """Number of instances of each bag, shape (n,)."""
        return np.diff(self.offsets)

    @property
    def bag_of(self) -> Offsets:
        """The bag of each instance, shape (m,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def part_of(self) -> Offsets:
        """The part of each instance, counted over all bags, shape (m,); its bag where there is one level."""
        return self.bag_of if self.inner is None else np.repeat(np.arange(len(self.inner) - 1), np.diff(self.inner))

    @property
    def part_offsets(self) -> Offsets:
        """Where the parts of each bag begin, counted over all bags, shape (n + 1,); its instances for one level."""
        return self.offsets if self.inner is None else np.searchsorted(self.inner, self.offsets)

    def with_values(self, values: Values) -> Bags:
        """Return the same bags with other values, shape (m, anything)."""
        return replace(self, values=values)

    def with_views(self, views: NDArray[Any] | None) -> Bags:
        """Return the same bags with other views, shape (m,), or without any."""
        return replace(self, views=views)

    def instances(self, keep: NDArray[np.bool_]) -> Bags:
        """Return all bags, each with some of its instances.

        Parameters
        ----------
        keep
            Which instances stay, shape (m,).
        """
        return self._some(np.flatnonzero(keep), offsets_of(np.diff(offsets_of(keep)[self.offsets])))

    def parts(self, keep: NDArray[np.bool_]) -> Bags:
        """Return all bags, each with some of its parts, which are its instances where there is one level.

        Parameters
        ----------
        keep
            Which parts stay, counted over all bags.
        """
        return self.instances(keep if self.inner is None else np.repeat(keep, np.diff(self.inner)))

    def at_most(self, count: int) -> Bags:
        """Return all bags, each with at most `count` instances, evenly spaced over the bag."""
        return self.instances(_evenly(self.offsets, count)) if self.lengths.max(initial=0) > count else self

    def parts_at_most(self, count: int) -> Bags:
        """Return all bags, each with at most `count` parts, evenly spaced over the bag."""
        offsets = self.part_offsets
        return self.parts(_evenly(offsets, count)) if np.diff(offsets).max(initial=0) > count else self

    def mean(self) -> Values:
        """Return the mean of each bag's instances, shape (n, d), float32 or float64.

        Raises
        ------
        HeadError
            If a bag is empty.
        """
        if (self.lengths == 0).any():
            raise HeadError(f"bag {int(np.flatnonzero(self.lengths == 0)[0])} is empty: it has no mean")
        if not len(self):
            return self.values[:0]
        sums = np.add.reduceat(self.values, self.offsets[:-1], axis=0, dtype=np.float64)
        means: Values = (sums / self.lengths[:, None]).astype(self.dtype, copy=False)
        return means

    def _some(self, at: NDArray[np.int64], offsets: Offsets) -> Bags:
        """Return bags of some of the instances, by position, bag after bag."""
        inner = None if self.inner is None else _starts(self.part_of[at], offsets)
        return Bags(self.values[at], offsets, inner, None if self.views is None else self.views[at])


T = TypeVar("T")


def features_for(made: Any, X: T) -> T | Values:
    """Return what a head of a class is fitted on: bags as they are if it takes them, else the mean of each bag."""
    return X.mean() if isinstance(X, Bags) and not made.accepts_bags else X


def offsets_of(lengths: ArrayLike) -> Offsets:
    """Return where stretches of some lengths begin, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def ranges(starts: Offsets, lengths: Offsets) -> Offsets:
    """Return ``starts[i], starts[i] + 1, ...``, `lengths[i]` numbers each, one after the other."""
    return np.repeat(starts - offsets_of(lengths)[:-1], lengths) + np.arange(lengths.sum())


def _starts(part: Offsets, offsets: Offsets) -> Offsets:
    """Return the offsets of parts from the part of each instance; a part ends with its bag in any case."""
    new = np.ones(len(part) + 1, dtype=bool)
    new[1:-1] = part[1:] != part[:-1]
    new[offsets] = True
    return np.flatnonzero(new).astype(np.int64)


def _evenly(offsets: Offsets, count: int) -> NDArray[np.bool_]:
    """Return which members of each stretch stay where at most `count` may, evenly spaced."""
    length = np.repeat(np.diff(offsets), np.diff(offsets))
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    # Member p is the middle of one of `count` equal stretches of its own: counted before it and with it.
    before, with_it = (((2 * (place + i) * count + length - 1) // (2 * length)) for i in (0, 1))
    return np.asarray((length <= count) | (with_it > before))


def _checked(name: str, offsets: ArrayLike, instances: int) -> Offsets:
    checked = np.asarray(offsets)
    if checked.ndim != 1 or not len(checked) or checked.dtype.kind not in "iu":
        raise HeadError(f"bags: expected {name} of shape (n + 1,), whole numbers, got {checked.dtype} {checked.shape}")
    if checked[0] != 0 or checked[-1] != instances:
        raise HeadError(
            f"bags: {name} go from {checked[0]} to {checked[-1]}; expected 0 to {instances}, the number of instances"
        )
    if (np.diff(checked.astype(np.int64)) < 0).any():
        raise HeadError(f"bags: {name} decrease after bag {int(np.flatnonzero(np.diff(checked) < 0)[0])}")
    return checked.astype(np.int64)
