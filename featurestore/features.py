"""Features: read access to one encoder's embeddings, as of one moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys, canonical_json, digest_json, key_hex
from featurestore.checksums import check_rows
from featurestore.errors import FeaturesMissing, FingerprintMismatch, StoreCorrupt
from featurestore.key_index import KeyIndex
from featurestore.layout import GroupInfo, check_keys
from featurestore.parts import Part, committed_parts, live_parts, read_probe, write_probe
from featurestore.shards import Array, Rows, join
from featurestore.spec import EncoderSpec
from featurestore.writer import Writer, bag_rows

_SHUFFLE_BLOCK = 4096
_SHUFFLE_BLOCKS = 16


class Ragged(NamedTuple):
    """Samples of several vectors each.

    Attributes
    ----------
    values
        All vectors, shape (m, dim).
    offsets
        Sample i has ``values[offsets[i]:offsets[i + 1]]``, shape (n + 1,).
    """

    values: Array
    offsets: NDArray[np.int64]


class Features:
    """The embeddings of one encoder, as of the moment this object was made.

    Made by `FeatureStore.open` and `FeatureStore.find`. Nothing seen through it changes: what other
    processes add shows after `refresh`.

    Attributes
    ----------
    directory
        The encoder group.
    info
        What the group states about itself.
    parts
        The committed parts of this snapshot, in the order in which they win.
    replaced
        Names of the parts that others stand in for, until `maintenance.gc` deletes them.
    """

    def __init__(self, directory: Path, info: GroupInfo, known: Mapping[str, Part] | None = None) -> None:
        self.directory = directory
        self.info = info
        committed = committed_parts(directory, known)
        self.parts = live_parts(committed)
        self.replaced = tuple(sorted({part.name for part in committed} - {part.name for part in self.parts}))

    def __repr__(self) -> str:
        return f"Features({self.group!r}, parts={len(self.parts)})"

    def refresh(self) -> Features:
        """Return the same features as of now."""
        return Features(self.directory, self.info, {part.name: part for part in self.parts})

    # Identity ---------------------------------------------------------------

    @property
    def spec(self) -> EncoderSpec:
        """The encoder's specification."""
        return self.info.spec

    @property
    def fingerprint(self) -> str:
        """The encoder's fingerprint, 64 hexadecimal digits."""
        return self.info.fingerprint

    @property
    def names(self) -> tuple[str, ...]:
        """Every id the encoder was asked for by."""
        return self.info.names

    @property
    def group(self) -> str:
        """The group's directory name."""
        return self.directory.name

    @property
    def keyed_by(self) -> str:
        """``content`` or ``id``."""
        return self.info.keyed_by

    @property
    def dim(self) -> int:
        """Length of one embedding."""
        return self.spec.dim

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored type."""
        return np.dtype(self.spec.dtype)

    @cached_property
    def snapshot(self) -> str:
        """Digest of the names of the parts, 64 hexadecimal digits: equal snapshots hold equal embeddings."""
        return digest_json([part.name for part in self.parts])

    @property
    def nbytes(self) -> int:
        """Bytes of the embeddings of all parts."""
        return self._values.nbytes

    @property
    def provenance(self) -> list[dict[str, Any]]:
        """What made the parts, each distinct `written_by` once."""
        flat = [made for part in self.parts for made in part.written_by.get("compacted", [dict(part.written_by)])]
        return list({canonical_json(made): made for made in flat}.values())

    # What is there ----------------------------------------------------------

    def __len__(self) -> int:
        return len(self._index.keys)

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which samples are stored, shape (n,)."""
        return self.locate(keys) >= 0

    def missing(self, keys: Keys) -> NDArray[np.int64]:
        """Return the positions of the samples that are not stored, ascending."""
        return np.flatnonzero(self.locate(keys) < 0)

    def locate(self, keys: Keys) -> NDArray[np.int64]:
        """Return each sample's row number for `take_rows`, -1 for what is not stored, shape (n,)."""
        return self._index.locate(check_keys(keys))

    # Reading ----------------------------------------------------------------

    def take(self, keys: Keys, *, checked: bool = False) -> Array:
        """Return embeddings, shape (n, dim), in the order of the keys and in the stored type.

        Parameters
        ----------
        keys
            Content keys of the samples, shape (n, 2).
        checked
            Whether to check the checksums of what is read first, at about 4 GB/s.

        Raises
        ------
        FeaturesMissing
            If any of the samples is not stored.
        StoreCorrupt
            If a file of theirs is damaged.
        """
        rows = self._present(keys)
        if checked:
            check_rows(self._values, rows)
        return self.take_rows(rows)

    def take_rows(self, rows: NDArray[np.int64]) -> Array:
        """Return embeddings by row number (from `locate`), shape (n, dim)."""
        if self.info.ragged:
            raise ValueError(f"{self.group}: ragged features are read with `take_bags`")
        return self._values.take(rows)

    def take_bags(self, keys: Keys, *, checked: bool = False) -> Ragged:
        """Return the vectors of ragged samples, in the order of the keys.

        Parameters
        ----------
        keys
            Content keys of the samples, shape (n, 2).
        checked
            Whether to check the checksums of what is read first.

        Raises
        ------
        FeaturesMissing
            If any of the samples is not stored.
        StoreCorrupt
            If a file of theirs is damaged.
        """
        if not self.info.ragged:
            raise ValueError(f"{self.group}: features of one vector per sample are read with `take`")
        samples = self._present(keys)
        starts, lengths = self._bags
        rows, offsets = bag_rows(starts[samples], lengths[samples])
        if checked:
            check_rows(self._values, rows)
        return Ragged(self._values.take(rows), offsets)

    def bag_lengths(self, keys: Keys) -> NDArray[np.int64]:
        """Return the number of vectors of each sample, shape (n,); one where features are not ragged."""
        samples = self._present(keys)
        return self._bags[1][samples] if self.info.ragged else np.ones(len(samples), np.int64)

    def load(self) -> tuple[Keys, Array]:
        """Return all keys (n, 2) and embeddings (n, dim), in the order in which they are stored."""
        keys, rows = self._stored_order
        if self.info.ragged or len(rows) != len(self._values):
            return keys, self.take_rows(rows)
        return keys, self._values.read()

    def batches(self, size: int, *, seed: int | None = None) -> Iterator[tuple[Keys, Array]]:
        """Stream all embeddings once, as (keys, embeddings) of up to `size` rows.

        Parameters
        ----------
        size
            Rows per batch.
        seed
            Shuffles: blocks of rows come in random order, and rows are mixed within 16 blocks
            (65,536 rows), which keeps reading local. None streams in stored order.
        """
        keys, rows = self._stored_order
        order = np.arange(len(rows)) if seed is None else _mixed(len(rows), np.random.default_rng(seed))
        for start in range(0, len(order), size):
            picked = order[start : start + size]
            yield keys[picked], self.take_rows(rows[picked])

    def keys(self) -> Keys:
        """Return the keys of all samples, ascending, shape (n, 2)."""
        return self._index.keys

    def ids(self, keys: Keys) -> list[str]:
        """Return the id each sample was stored under first.

        Raises
        ------
        FeaturesMissing
            If any of the samples is not stored.
        """
        rows = self._present(keys)
        owner = np.searchsorted(self._part_starts, rows, side="right") - 1
        names = np.empty(len(rows), dtype=object)
        for number in np.unique(owner).tolist():
            places = np.flatnonzero(owner == number)
            names[places] = self.parts[number].ids(rows[places] - self._part_starts[number])
        return [str(name) for name in names]

    # Writing ----------------------------------------------------------------

    def writer(
        self,
        *,
        flush_rows: int = 65_536,
        flush_bytes: int = 256 << 20,
        flush_seconds: float = 120.0,
        durable: bool = True,
        written_by: Mapping[str, Any],
    ) -> Writer:
        """Return a writer of new samples; use it as a context manager.

        Parameters
        ----------
        flush_rows, flush_bytes, flush_seconds
            A part is committed when this many samples or bytes are buffered, or when the oldest is this old.
        durable
            Whether a commit waits until everything has reached the disk.
        written_by
            What makes the embeddings, JSON-ready: encoder name, library versions, device, fidelity.
            Never names of hosts, people or paths.
        """
        return Writer(
            self.directory,
            self.info,
            flush_rows=flush_rows,
            flush_bytes=flush_bytes,
            flush_seconds=flush_seconds,
            durable=durable,
            written_by=written_by,
        )

    @property
    def probe(self) -> NDArray[np.float32] | None:
        """The encoder's output on its synthetic inputs when the group was made, shape (k, dim), if recorded."""
        return read_probe(self.directory)

    def set_probe(self, x: Array) -> bool:
        """Record the probe unless there is one; return whether this one was recorded."""
        return write_probe(self.directory, np.asarray(x, np.float32))

    def check_probe(self, x: Array) -> float:
        """Return the smallest cosine between the recorded probe and the encoder's output now.

        Raises
        ------
        FingerprintMismatch
            If there is no probe, or it has another shape.
        """
        recorded = self.probe
        if recorded is None or recorded.shape != x.shape:
            found = "none" if recorded is None else f"shape {recorded.shape}"
            raise FingerprintMismatch(
                f"{self.group}: a probe of shape {tuple(x.shape)} was expected, {found} is stored"
            )
        a, b = recorded.astype(np.float64), np.asarray(x, np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(np.min((a * b).sum(axis=1) / np.maximum(norms, np.finfo(np.float64).tiny)))

    # Lazy parts of the snapshot ---------------------------------------------

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self.parts)

    @cached_property
    def _values(self) -> Rows:
        for part in self.parts:
            if part.values.item_shape != (self.dim,) or part.values.dtype != self.dtype:
                raise StoreCorrupt(
                    f"{part.directory / 'x'}: rows of {part.values.item_shape} {part.values.dtype} where "
                    f"({self.dim},) {self.dtype} belong"
                )
            if part.is_ragged != self.info.ragged:
                raise StoreCorrupt(f"{part.directory}: offsets {'should not' if part.is_ragged else 'must'} be here")
        return join([part.values for part in self.parts], (self.dim,), self.dtype)

    @cached_property
    def _part_starts(self) -> NDArray[np.int64]:
        return np.cumsum([0, *(part.rows for part in self.parts)])

    @cached_property
    def _bags(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First vector and number of vectors of every sample."""
        ends = np.cumsum([0, *(len(part.values) for part in self.parts)])
        empty = np.empty(0, np.int64)
        starts = [part.offsets[:-1] + end for part, end in zip(self.parts, ends[:-1], strict=True)]
        lengths = [np.diff(part.offsets) for part in self.parts]
        return np.concatenate([empty, *starts]), np.concatenate([empty, *lengths])

    @cached_property
    def _stored_order(self) -> tuple[Keys, NDArray[np.int64]]:
        """Keys and row numbers of all distinct samples, by row number."""
        order = np.argsort(self._index.rows, kind="stable")
        return self._index.keys[order], self._index.rows[order]

    def _present(self, keys: Keys) -> NDArray[np.int64]:
        rows = self.locate(keys)
        absent = np.flatnonzero(rows < 0)
        if len(absent):
            shown = ", ".join(key_hex(keys[i]) for i in absent[:5]) + (", ..." if len(absent) > 5 else "")
            raise FeaturesMissing(
                f"{self.group}: {len(absent)} of {len(rows)} samples are not in the store (keys {shown}); "
                "run `frostline extract` on their manifest first"
            )
        return rows


def _mixed(count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a permutation that mixes rows within groups of randomly chosen blocks."""
    blocks = rng.permutation(-(-count // _SHUFFLE_BLOCK))
    mixed = []
    for start in range(0, len(blocks), _SHUFFLE_BLOCKS):
        chosen = blocks[start : start + _SHUFFLE_BLOCKS] * _SHUFFLE_BLOCK
        rows = (chosen[:, None] + np.arange(_SHUFFLE_BLOCK)).reshape(-1)
        mixed.append(rng.permutation(rows[rows < count]))
    return np.concatenate([np.empty(0, np.int64), *mixed])
