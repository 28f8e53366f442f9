"""Writer: buffers embeddings and commits them as sorted, immutable parts."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys
from data.errors import SampleError
from featurestore.errors import FingerprintMismatch
from featurestore.layout import GroupInfo, check_keys
from featurestore.parts import write_part
from featurestore.shards import Array


class Writer:
    """Adds samples to one encoder group. Made by `Features.writer`; one per thread or process.

    Leaving the ``with`` block normally commits what is buffered; leaving it by an exception drops
    it, so a part holds only what was meant to be stored. What earlier flushes committed stays.

    Attributes
    ----------
    parts
        Names of the parts committed so far.
    """

    def __init__(
        self,
        group: Path,
        info: GroupInfo,
        *,
        flush_rows: int,
        flush_bytes: int,
        flush_seconds: float,
        durable: bool,
        written_by: Mapping[str, Any],
    ) -> None:
        self._group = group
        self._dim = info.spec.dim
        self._dtype = np.dtype(info.spec.dtype)
        self._ragged = info.ragged
        self._flush_rows = flush_rows
        self._flush_bytes = flush_bytes
        self._flush_seconds = flush_seconds
        self._durable = durable
        self._written_by = written_by
        self._keys: list[Keys] = []
        self._values: list[Array] = []
        self._lengths: list[NDArray[np.int64]] = []
        self._ids: list[str] = []
        self._bytes = 0
        self._since = 0.0
        self.parts: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.flush()
        else:
            self._clear()

    def __len__(self) -> int:
        """Return the number of samples buffered."""
        return len(self._ids)

    def add(self, keys: Keys, x: Array, ids: Sequence[str], *, offsets: NDArray[np.int64] | None = None) -> None:
        """Buffer samples, and commit a part when enough have come together.

        Parameters
        ----------
        keys
            Shape (n, 2).
        x
            Embeddings, any float type, shape (n, dim); for ragged features (m, dim).
        ids
            One name per sample, for people and for export.
        offsets
            For ragged features: where each sample's vectors start in `x`, shape (n + 1,).

        Raises
        ------
        SampleError
            Kind ``not_finite``: NaN or infinity, or beyond what float16 can hold. Nothing is buffered.
        FingerprintMismatch
            If the embeddings do not have the encoder's dimension.
        StoreUnwritable
            If the disk is full or may not be written; the samples stay buffered.
        """
        keys, offsets = self._check_shapes(keys, x, ids, offsets)
        with np.errstate(over="ignore"):
            stored = x.astype(self._dtype)
        self._check_finite(x, stored, ids, offsets)
        if not self._ids:
            self._since = time.monotonic()
        self._keys.append(keys)
        self._values.append(stored)
        self._lengths.append(np.diff(offsets))
        self._ids.extend(ids)
        self._bytes += stored.nbytes
        if (
            len(self._ids) >= self._flush_rows
            or self._bytes >= self._flush_bytes
            or time.monotonic() - self._since >= self._flush_seconds
        ):
            self.flush()

    def flush(self) -> str | None:
        """Commit what is buffered as one part and return its name; None if nothing is buffered.

        Raises
        ------
        StoreUnwritable
            If the disk is full or may not be written; nothing becomes visible, the samples stay buffered.
        """
        if not self._ids:
            return None
        keys = np.concatenate(self._keys)
        order = _distinct_ascending(keys)
        values = np.concatenate(self._values)
        self._values[:] = [values]
        lengths = np.concatenate(self._lengths)
        rows, offsets = (order, None) if not self._ragged else _ragged_order(lengths, order)
        name = write_part(
            self._group,
            keys=keys[order],
            values=lambda start, stop: values[rows[start:stop]],
            shape=(len(rows), self._dim),
            dtype=self._dtype,
            ids=[self._ids[position] for position in order.tolist()],
            offsets=offsets,
            written_by=self._written_by,
            durable=self._durable,
        )
        self.parts.append(name)
        self._clear()
        return name

    def _clear(self) -> None:
        for buffer in (self._keys, self._values, self._lengths, self._ids):
            buffer.clear()
        self._bytes = 0

    def _check_shapes(
        self, keys: Keys, x: Array, ids: Sequence[str], offsets: NDArray[np.int64] | None
    ) -> tuple[Keys, NDArray[np.int64]]:
        keys = check_keys(keys)
        if x.ndim != 2 or x.shape[1] != self._dim:
            raise FingerprintMismatch(
                f"{self._group.name}: embeddings of shape (n, {self._dim}) belong here, not {tuple(x.shape)}"
            )
        if self._ragged == (offsets is None):
            raise ValueError(f"{self._group.name}: offsets go with ragged features, and only with them")
        bounds = np.arange(len(x) + 1) if offsets is None else np.asarray(offsets, np.int64)
        if not len(keys) == len(ids) == len(bounds) - 1:
            raise ValueError(f"{len(keys)} keys, {len(ids)} ids, {len(bounds) - 1} samples: the counts must agree")
        if bounds[0] != 0 or bounds[-1] != len(x) or (np.diff(bounds) < 0).any():
            raise ValueError("offsets must ascend from 0 to the number of vectors")
        return keys, bounds

    def _check_finite(self, x: Array, stored: Array, ids: Sequence[str], offsets: NDArray[np.int64]) -> None:
        bad = ~np.isfinite(stored).all(axis=1)
        if not bad.any():
            return
        rows = np.flatnonzero(bad)
        samples = [ids[i] for i in np.unique(np.searchsorted(offsets, rows, side="right") - 1)]
        named = ", ".join(map(repr, samples[:5])) + (", ..." if len(samples) > 5 else "")
        message = f"NaN or infinite embeddings of {len(samples)} samples: {named}"
        if np.isfinite(x[rows]).all():
            limit = f"{np.finfo(self._dtype).max:g}"
            message = f"embeddings beyond {limit}, the largest {self._dtype}, in {named}"
            if self._dtype == np.float16:
                message += "; store this encoder with dtype float32"
        raise SampleError("not_finite", message)


def _distinct_ascending(keys: Keys) -> NDArray[np.int64]:
    """Return the positions that sort the keys, the first of each equal run only."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    ascending = keys[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (ascending[1:] != ascending[:-1]).any(axis=1)
    return order[fresh]


def _ragged_order(lengths: NDArray[np.int64], order: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of all vectors when samples are taken in `order`, and the new offsets."""
    return bag_rows(np.concatenate([[0], np.cumsum(lengths)])[:-1][order], lengths[order])


def bag_rows(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of all vectors of some samples, and the offsets of the samples among them.

    Parameters
    ----------
    starts, lengths
        First vector and number of vectors of each sample, shape (n,).

    Returns
    -------
    rows
        Shape (sum of lengths,).
    offsets
        Shape (n + 1,).
    """
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1]), offsets
