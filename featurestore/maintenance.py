"""Care of a store: verify that nothing is damaged, delete what is dead, merge many parts into few."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featurestore.errors import StoreCorrupt
from featurestore.features import Features
from featurestore.layout import GroupInfo, writing
from featurestore.parts import (
    Part,
    committed_parts,
    live_parts,
    new_part_name,
    part_names,
    part_time_ns,
    read_part,
    remove_part,
    write_part,
)
from featurestore.shards import Array, Layout, Rows, Shard, shard_files
from featurestore.store import FeatureStore

COMPACT_BYTES = 256 << 20
COMPACT_ROWS = 1 << 20
_READ_ROWS = 1 << 16
_ARRAYS = ("key", "x", "id_bytes", "id_offsets")


# Verify -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify` found.

    Attributes
    ----------
    deep
        Whether checksums and values were read, not only the structure.
    groups, parts, samples
        How many were looked at.
    nbytes
        Size of the files looked at.
    seconds
        Wall time.
    problems
        One line per damaged file: which, and what is wrong.
    damaged
        Directories of the parts with a problem. Delete one and extract again: only its samples are encoded anew.
    """

    deep: bool
    groups: int
    parts: int
    samples: int
    nbytes: int
    seconds: float
    problems: tuple[str, ...]
    damaged: tuple[Path, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(store: FeatureStore, groups: Sequence[str] | None = None, *, deep: bool = False) -> Report:
    """Check a store's files; report every damaged one rather than stop at the first.

    Parameters
    ----------
    store
        The store.
    groups
        Directory names of the encoder groups to check; all by default.
    deep
        Also read everything: CRC-32C of every chunk and index, finite embeddings.

    Returns
    -------
    Report
    """
    start = time.perf_counter()
    chosen = store.groups() if groups is None else list(groups)
    check = _Check(deep=deep)
    for group in chosen:
        check.group(store.group_directory(group))
    return Report(
        deep=deep,
        groups=len(chosen),
        parts=check.parts,
        samples=check.samples,
        nbytes=check.nbytes,
        seconds=time.perf_counter() - start,
        problems=tuple(check.problems),
        damaged=tuple(check.damaged),
    )


class _Check:
    """Walks groups, parts, arrays and files, and collects what is wrong."""

    def __init__(self, *, deep: bool) -> None:
        self.deep = deep
        self.parts = self.samples = self.nbytes = 0
        self.problems: list[str] = []
        self.damaged: list[Path] = []

    def group(self, directory: Path) -> None:
        """Check one encoder group."""
        info = None
        try:
            info = GroupInfo.read(directory)
        except StoreCorrupt as error:
            self.problems.append(str(error))
        committed = []
        for name in part_names(directory):
            try:
                part = read_part(directory / name)
            except StoreCorrupt as error:
                self.problems.append(str(error))
                self.damaged.append(directory / name)
            else:
                committed += [part] if part else []
        for part in live_parts(committed):
            before = len(self.problems)
            self.part(part, info)
            if len(self.problems) > before:
                self.damaged.append(part.directory)

    def part(self, part: Part, info: GroupInfo | None) -> None:
        """Check one part: first file by file, then how its arrays fit together."""
        self.parts += 1
        self.samples += part.rows
        before = len(self.problems)
        for name in (*_ARRAYS, *(["offsets"] if info and info.ragged else [])):
            self.array(part.directory / name)
        if len(self.problems) > before:
            return
        try:
            _check_structure(part, info)
        except StoreCorrupt as error:
            self.problems.append(str(error))

    def array(self, directory: Path) -> None:
        """Check every file of one array."""
        try:
            layout = Layout.read(directory)
            files = list(shard_files(directory, layout)) if layout.linear else []
            if not layout.linear and self.deep:
                _read_foreign(directory)
        except StoreCorrupt as error:
            self.problems.append(str(error))
            return
        for path, rows in files:
            try:
                shard = Shard(path, layout, rows)
            except StoreCorrupt as error:
                self.problems.append(str(error))
                continue
            self.nbytes += shard.bytes.size
            if self.deep:
                self.problems += _damage(shard, layout, finite=directory.name == "x")


def _check_structure(part: Part, info: GroupInfo | None) -> None:
    """Raise `StoreCorrupt` if a part's arrays do not fit together or its group."""
    keys = part.keys.read()
    high, low = keys[:, 0], keys[:, 1]
    if not ((high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))).all():
        raise StoreCorrupt(f"{part.directory / 'key'}: keys do not ascend: damaged")
    if part.is_ragged:
        _ = part.offsets
    _ = part.id_bytes
    if info and (part.values.item_shape, part.values.dtype) != ((info.spec.dim,), np.dtype(info.spec.dtype)):
        raise StoreCorrupt(f"{part.directory / 'x'}: rows of another shape or type than the encoder's: damaged")


def _damage(shard: Shard, layout: Layout, *, finite: bool) -> list[str]:
    """Return at most one line about a file whose checksums or values are wrong."""
    if google_crc32c.value(shard.index) != shard.index_crc:
        return [f"{shard.path}: the checksum of the shard's index is wrong: damaged"]
    for number, (content, crc, rows) in enumerate(shard.chunks()):
        if google_crc32c.value(content) != crc:
            return [f"{shard.path}: the checksum of chunk {number} is wrong: damaged"]
        if finite and not _all_finite(content[: rows * layout.row_bytes].view(layout.dtype)):
            return [f"{shard.path}: NaN or infinite embeddings in chunk {number}"]
    return []


def _all_finite(values: Array) -> bool:
    """Whether all values are finite; float16 by its bits, four times as fast as `numpy.isfinite`."""
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    # Exponent all ones: at least 0x7c00, and as a negative number at least 0xfc00.
    return bool(values.view(np.int16).max() < 0x7C00 and values.view(np.uint16).max() < 0xFC00)


def _read_foreign(directory: Path) -> None:
    """Read an array that only zarr-python understands; it checks what checksums there are."""
    rows = Rows.open(directory)
    try:
        for start in range(0, len(rows), _READ_ROWS):
            values = rows.read(start, min(start + _READ_ROWS, len(rows)))
            if directory.name == "x" and not _all_finite(values):
                raise StoreCorrupt(f"{directory}: NaN or infinite embeddings, or a missing chunk")
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, StoreCorrupt):
            raise
        raise StoreCorrupt(f"{directory}: {error}") from error


# Garbage ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Garbage:
    """What `gc` deletes.

    Attributes
    ----------
    paths
        Parts and leftovers, in the order of deletion.
    nbytes
        Their size.
    """

    paths: tuple[Path, ...]
    nbytes: int


def gc(store: FeatureStore, *, older_than_hours: float = 24.0, dry_run: bool = False) -> Garbage:
    """Delete parts that were never committed, parts that others replace, and leftovers of killed processes.

    Parameters
    ----------
    store
        The store.
    older_than_hours
        What was touched, or replaced, later than this stays: another process may be writing or reading it.
    dry_run
        Only say what would be deleted.

    Returns
    -------
    Garbage

    Raises
    ------
    StoreUnwritable
        If the store may not be written.
    StoreCorrupt
        If the attributes of a part cannot be read, so that nothing tells what it replaces.
    """
    deadline = time.time() - older_than_hours * 3600
    paths = [path for group in store.groups() for path in _dead(store.group_directory(group), deadline)]
    garbage = Garbage(tuple(paths), sum(_size(path) for path in paths))
    if not dry_run:
        for path in paths:
            with writing(path):
                if path.is_dir():
                    remove_part(path)
                else:
                    path.unlink(missing_ok=True)
    return garbage


def _dead(group: Path, deadline: float) -> list[Path]:
    """Return a group's garbage whose last use lies before a deadline (seconds since the epoch)."""
    committed = committed_parts(group)
    names = {part.name for part in committed}
    replaced = {name for part in committed if _touched(part.directory) < deadline for name in part.replaces}
    unfinished = [group / name for name in part_names(group) if name not in names]
    leftovers = [*group.glob("zarr.json.*.partial"), *group.glob(".probe-*")]
    return [
        *(path for path in (*unfinished, *leftovers) if _touched(path) < deadline),
        *(group / name for name in sorted(replaced & names)),
    ]


def _touched(path: Path) -> float:
    """Return the time of the last change in a directory or to a file, seconds since the epoch."""
    return max((inside.stat().st_mtime for inside in path.rglob("*")), default=path.stat().st_mtime)


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(inside.stat().st_size for inside in path.rglob("*") if inside.is_file())


# Compact ------------------------------------------------------------------------------------------


def compact(
    features: Features, *, part_bytes: int = COMPACT_BYTES, part_rows: int = COMPACT_ROWS, durable: bool = True
) -> list[str]:
    """Merge all parts into as few as possible, each holding one range of keys.

    Readers and writers go on meanwhile. The last part written names all the old ones as replaced;
    until then, and if this is killed, both exist and read the same. Keys being hashes, stored order
    is random order afterwards: reading from front to back is a shuffled stream.

    Parameters
    ----------
    features
        The encoder's features; the newest snapshot is taken.
    part_bytes, part_rows
        Largest part, which also bounds the memory.
    durable
        Whether commits wait for the disk.

    Returns
    -------
    list of str
        Names of the new parts; empty if there was nothing to merge.

    Raises
    ------
    StoreUnwritable
        If the disk is full or may not be written; every sample is still there.
    StoreCorrupt
        If an old part is damaged.
    """
    features = features.refresh()
    keys = features.keys()
    vector_bytes = features.dim * features.dtype.itemsize
    bounds = _ranges(features.bag_lengths(keys) * vector_bytes, part_bytes, part_rows)
    stored = sum(part.rows for part in features.parts)
    if len(features.parts) <= len(bounds) - 1 and stored == len(keys):
        return []
    oldest = part_time_ns(features.parts[0].name)
    replaced = [*features.replaced, *(part.name for part in features.parts)]
    # The new parts take the place of the oldest, so that the first to hold a key stays the first.
    return [
        _copy(features, keys[start:stop], oldest + number, replaced if stop == len(keys) else [], durable=durable)
        for number, (start, stop) in enumerate(pairwise(bounds))
    ]


def _ranges(sizes: NDArray[np.int64], part_bytes: int, part_rows: int) -> list[int]:
    """Return the bounds of runs of samples of at most so many bytes and rows, one sample at least."""
    ends = np.cumsum(sizes)
    bounds = [0]
    while bounds[-1] < len(sizes):
        start = bounds[-1]
        before = int(ends[start - 1]) if start else 0
        fitting = int(np.searchsorted(ends, before + part_bytes, side="right"))
        bounds.append(max(start + 1, min(fitting, start + part_rows)))
    return bounds


def _copy(features: Features, keys: Array, time_ns: int, replaces: list[str], *, durable: bool) -> str:
    """Write some samples as a new part and return its name."""
    offsets = None
    if features.info.ragged:
        bags, offsets = features.take_bags(keys)
        count = len(bags)

        def values(start: int, stop: int) -> Array:
            return bags[start:stop]
    else:
        rows = features.locate(keys)
        count = len(rows)

        def values(start: int, stop: int) -> Array:
            return features.take_rows(rows[start:stop])

    return write_part(
        features.directory,
        keys=keys,
        values=values,
        shape=(count, features.dim),
        dtype=features.dtype,
        ids=features.ids(keys),
        offsets=offsets,
        replaces=replaces,
        written_by={"compacted": features.provenance},
        durable=durable,
        name=new_part_name(time_ns),
    )
