"""Verify: whether a store's files are whole, without stopping at the first that is not."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from data.progress import Progress, Silent
from featurestore.errors import StoreCorrupt
from featurestore.layout import GroupInfo
from featurestore.parts import Part, live_parts, part_names, read_part
from featurestore.shards import Array, Layout, Rows, Shard, shard_files
from featurestore.store import FeatureStore

_READ_ROWS = 1 << 16
_ARRAYS = ("key", "x", "id_bytes", "id_offsets")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `verify_store` found.

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

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return {**asdict(self), "ok": self.ok, "damaged": [str(path) for path in self.damaged]}

    def explain(self) -> str:
        """Return the report in words."""
        depth = "all checksums and values" if self.deep else "the structure"
        head = (
            f"{self.samples} samples in {self.parts} parts of {self.groups} feature sets, "
            f"{self.nbytes / 1e6:.1f} MB: {depth} checked in {self.seconds:.1f} s"
        )
        if self.ok:
            return f"{head}; nothing is wrong"
        remedy = [f"To mend it, delete {path} and extract again." for path in self.damaged]
        return "\n".join([f"{head}; {len(self.problems)} problems", *self.problems, *remedy])


def verify_store(
    store: FeatureStore,
    groups: Sequence[str] | None = None,
    *,
    deep: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Check a store's files; report every damaged one rather than stop at the first.

    Parameters
    ----------
    store
        The store.
    groups
        Directory names of the encoder groups to check; all by default.
    deep
        Also read everything: CRC-32C of every chunk and index, finite embeddings.
    progress
        Is told of every part.

    Returns
    -------
    Report
    """
    start = time.perf_counter()
    chosen = store.groups() if groups is None else list(groups)
    check = _Check(deep=deep, progress=progress or Silent())
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

    def __init__(self, *, deep: bool, progress: Progress) -> None:
        self.deep = deep
        self.progress = progress
        self.parts = self.samples = self.nbytes = 0
        self.problems: list[str] = []
        self.damaged: list[Path] = []

    def group(self, directory: Path) -> None:
        """Check one encoder group."""
        info = None
        try:
            info = GroupInfo.read(directory)
        except StoreCorrupt as error:
            self.problems.append(error.damage)
        committed = []
        for name in part_names(directory):
            try:
                part = read_part(directory / name)
            except StoreCorrupt as error:
                self.problems.append(error.damage)
                self.damaged.append(directory / name)
            else:
                committed += [part] if part else []
                if part is None and _is_headless(directory / name):
                    self.problems.append(
                        f"{directory / name}: a part without zarr.json, so none of its samples count: the file is "
                        f"lost, or a deletion was cut short"
                    )
                    self.damaged.append(directory / name)
        live = live_parts(committed)
        self.progress.stage(f"verifying {directory.name}", len(live))
        for part in live:
            before = len(self.problems)
            self.part(part, info)
            self.progress.advance()
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
            self.problems.append(error.damage)

    def array(self, directory: Path) -> None:
        """Check every file of one array."""
        try:
            layout = Layout.read(directory)
            files = list(shard_files(directory, layout)) if layout.linear else []
            if not layout.linear and self.deep:
                _read_foreign(directory)
        except StoreCorrupt as error:
            self.problems.append(error.damage)
            return
        for path, rows in files:
            try:
                shard = Shard(path, layout, rows)
            except StoreCorrupt as error:
                self.problems.append(error.damage)
                continue
            self.nbytes += shard.bytes.size
            if self.deep:
                self.problems += _damage(shard, layout, finite=directory.name == "x")


def _is_headless(directory: Path) -> bool:
    """Whether a part's folder has arrays but no ``zarr.json``, which writers make first and deletion removes first."""
    return not (directory / "zarr.json").exists() and any((directory / name).is_dir() for name in _ARRAYS)


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
