"""Care of a store: delete what is dead, merge many parts into few."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featurestore.features import Features
from featurestore.layout import writing
from featurestore.parts import committed_parts, new_part_name, part_names, part_time_ns, remove_part, write_part
from featurestore.shards import Array
from featurestore.store import FeatureStore
from featurestore.verify import Report, verify_store

__all__ = ["Compaction", "Garbage", "Report", "compact", "gc", "verify_store"]

COMPACT_BYTES = 256 << 20
COMPACT_ROWS = 1 << 20


@dataclass(frozen=True)
class Garbage:
    """What `gc` deletes.

    Attributes
    ----------
    paths
        Parts and leftovers, in the order of deletion.
    nbytes
        Their size.
    deleted
        Whether they are gone, or were only looked for.
    """

    paths: tuple[Path, ...]
    nbytes: int
    deleted: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the list as JSON-ready values."""
        return {**asdict(self), "paths": [str(path) for path in self.paths]}

    def explain(self) -> str:
        """Return the list in words."""
        if not self.paths:
            return "nothing to delete"
        verb = "deleted" if self.deleted else "to delete"
        return "\n".join([*map(str, self.paths), f"{verb}: {len(self.paths)} leftovers, {self.nbytes / 1e6:.1f} MB"])


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
    garbage = Garbage(tuple(paths), sum(_size(path) for path in paths), deleted=not dry_run)
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


@dataclass(frozen=True)
class Compaction:
    """What `compact` did to one encoder group.

    Attributes
    ----------
    group
        The group's directory name.
    merged
        Names of the parts that were replaced; empty if there was nothing to merge.
    parts
        Names of the parts that took their place.
    samples
        Distinct samples.
    """

    group: str
    merged: tuple[str, ...]
    parts: tuple[str, ...]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)

    def explain(self) -> str:
        """Return the result in words."""
        if not self.merged:
            return f"{self.group}: nothing to merge"
        return (
            f"{self.group}: {len(self.merged)} parts merged into {len(self.parts)}, {self.samples} samples; "
            "`store gc` frees the space of the old ones after a day"
        )


def compact(
    features: Features, *, part_bytes: int = COMPACT_BYTES, part_rows: int = COMPACT_ROWS, durable: bool = True
) -> Compaction:
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
    Compaction

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
        return Compaction(features.group, (), (), len(keys))
    oldest = part_time_ns(features.parts[0].name)
    merged = tuple(part.name for part in features.parts)
    # Naming what earlier merges replaced too, these parts stay dead whatever `gc` deletes first.
    replaced = [*features.replaced, *merged]
    # The new parts take the place of the oldest, so that the first to hold a key stays the first.
    parts = [
        _copy(features, keys[start:stop], oldest + number, replaced if stop == len(keys) else [], durable=durable)
        for number, (start, stop) in enumerate(pairwise(bounds))
    ]
    return Compaction(features.group, merged, tuple(parts), len(keys))


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
