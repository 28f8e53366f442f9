"""Parts: immutable, key-sorted runs of samples, and the one step that makes them visible."""

from __future__ import annotations

import errno
import re
import secrets
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys
from featurestore.errors import StoreCorrupt
from featurestore.layout import fsync, fsync_tree, list_directories, read_group, write_group, writing
from featurestore.shards import Array, Rows, write_array

_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{8}")
_DIMENSIONS = {"key": "sample", "offsets": "boundary", "id_bytes": "byte", "id_offsets": "boundary", "probe": "input"}


@dataclass(frozen=True)
class Part:
    """One committed, immutable run of samples, sorted by key.

    Attributes
    ----------
    directory
        Its zarr group; the name orders parts, and the first to hold a key wins.
    rows
        Number of samples.
    replaces
        Names of the parts it stands in for.
    written_by
        What made it: encoder name, library versions, device, fidelity.
    created
        UTC time, ISO 8601.
    """

    directory: Path
    rows: int
    replaces: tuple[str, ...]
    written_by: Mapping[str, Any]
    created: str

    @property
    def name(self) -> str:
        """Name within the encoder group."""
        return self.directory.name

    @cached_property
    def keys(self) -> Rows:
        """Keys, shape (rows, 2), ascending."""
        return self._open("key", self.rows)

    @cached_property
    def values(self) -> Rows:
        """Embeddings: (rows, dim), or (m, dim) where `offsets` says which belong together."""
        return self._open("x", None if self.is_ragged else self.rows)

    @cached_property
    def is_ragged(self) -> bool:
        """Whether the part has offsets."""
        return (self.directory / "offsets").is_dir()

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """Where each sample's vectors start in `values`, shape (rows + 1,)."""
        return self._read_offsets("offsets", len(self.values))

    @cached_property
    def id_offsets(self) -> NDArray[np.int64]:
        """Where each sample's id starts in the id bytes, shape (rows + 1,)."""
        return self._read_offsets("id_offsets", None)

    @cached_property
    def id_bytes(self) -> Rows:
        """All ids, UTF-8, one after the other."""
        return self._open("id_bytes", int(self.id_offsets[-1]))

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the ids that some rows were stored under."""
        if not len(rows):
            return []
        starts, stops = self.id_offsets[rows], self.id_offsets[rows + 1]
        first = int(starts.min())
        content = self.id_bytes.read(first, int(stops.max())).tobytes()
        spans = zip((starts - first).tolist(), (stops - first).tolist(), strict=True)
        try:
            return [content[start:stop].decode() for start, stop in spans]
        except UnicodeDecodeError as error:
            raise StoreCorrupt(f"{self.directory / 'id_bytes'}: not UTF-8 ({error}): damaged") from error

    def _open(self, name: str, rows: int | None) -> Rows:
        array = Rows.open(self.directory / name)
        if rows is not None and len(array) != rows:
            raise StoreCorrupt(f"{self.directory / name}: {len(array)} rows where {rows} belong: damaged")
        return array

    def _read_offsets(self, name: str, end: int | None) -> NDArray[np.int64]:
        offsets: NDArray[np.int64] = self._open(name, self.rows + 1).read().astype(np.int64, copy=False)
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or (end is not None and offsets[-1] != end):
            raise StoreCorrupt(f"{self.directory / name}: offsets do not ascend from 0 to the end: damaged")
        return offsets


# Reading ------------------------------------------------------------------------------------------


def part_names(group: Path) -> list[str]:
    """Return the names of all parts of a group, committed or not, in order."""
    return [name for name in list_directories(group) if _NAME.fullmatch(name)]


def read_part(directory: Path) -> Part | None:
    """Return a committed part, or None if it was never committed.

    Raises
    ------
    StoreCorrupt
        If its attributes cannot be read.
    """
    state = read_group(directory)
    if state is None or "rows" not in state:
        return None
    try:
        return Part(
            directory=directory,
            rows=int(state["rows"]),
            replaces=tuple(state.get("replaces", ())),
            written_by=dict(state.get("written_by", {})),
            created=str(state.get("created", "")),
        )
    except (TypeError, ValueError) as error:
        raise StoreCorrupt(f"{directory / 'zarr.json'}: attributes of a part are damaged ({error})") from error


def committed_parts(group: Path, known: Mapping[str, Part] | None = None) -> list[Part]:
    """Return every committed part of a group, replaced ones too, in order.

    Parameters
    ----------
    group
        The encoder group's directory.
    known
        Parts read earlier; being immutable they are not read again.
    """
    parts = []
    for name in part_names(group):
        part = (known or {}).get(name) or read_part(group / name)
        if part is not None:
            parts.append(part)
    return parts


def live_parts(parts: Sequence[Part]) -> list[Part]:
    """Return the parts that no other part replaces."""
    replaced = {name for part in parts for name in part.replaces}
    return [part for part in parts if part.name not in replaced]


# Writing ------------------------------------------------------------------------------------------


def new_part_name(time_ns: int | None = None) -> str:
    """Return a fresh part name: names order parts by the time given, now by default."""
    return f"{time.time_ns() if time_ns is None else time_ns:016x}-{secrets.token_hex(4)}"


def part_time_ns(name: str) -> int:
    """Return the time in a part's name."""
    return int(name.partition("-")[0], 16)


def write_part(
    group: Path,
    *,
    keys: Keys,
    values: Callable[[int, int], Array],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    ids: Sequence[str],
    offsets: NDArray[np.int64] | None = None,
    replaces: Sequence[str] = (),
    written_by: Mapping[str, Any],
    durable: bool = True,
    name: str | None = None,
) -> str:
    """Write one part and commit it; until the last step nothing of it is visible.

    Parameters
    ----------
    group
        The encoder group's directory.
    keys
        Distinct and ascending, shape (n, 2).
    values
        Returns embeddings from a start to a stop, in the order of `keys`.
    shape, dtype
        Of all the embeddings.
    ids
        One per key.
    offsets
        For ragged features, shape (n + 1,).
    replaces
        Parts that disappear as this one appears.
    written_by
        What made it, JSON-ready, without names of hosts or people.
    durable
        Whether everything must have reached the disk before the commit, and the commit before the return.
    name
        From `new_part_name`; by default a fresh one.

    Returns
    -------
    str
        The part's name.

    Raises
    ------
    StoreUnwritable
        If the disk is full or may not be written; the unfinished part is removed.
    """
    directory = group / (name or new_part_name())
    encoded = [sample_id.encode() for sample_id in ids]
    try:
        with writing(directory):
            write_group(directory, {}, durable=False)
            _write_whole(directory / "key", keys)
            write_array(directory / "x", shape, dtype, values, dimension="sample" if offsets is None else "vector")
            if offsets is not None:
                _write_whole(directory / "offsets", offsets)
            _write_whole(directory / "id_bytes", np.frombuffer(b"".join(encoded), np.uint8))
            _write_whole(directory / "id_offsets", np.cumsum([0, *map(len, encoded)], dtype=np.int64))
            if durable:
                fsync_tree(directory)
                fsync(group)
    except BaseException:
        # Not committed, so nobody has seen it; on a full disk its space is needed at once.
        shutil.rmtree(directory, ignore_errors=True)
        raise
    attributes = {
        "rows": len(keys),
        "replaces": list(replaces),
        "written_by": dict(written_by),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_group(directory, attributes, durable=durable)
    return directory.name


def remove_part(directory: Path) -> None:
    """Delete a part, uncommitting it first so that no reader meets it half gone."""
    with writing(directory):
        (directory / "zarr.json").unlink(missing_ok=True)
        shutil.rmtree(directory)


def _write_whole(directory: Path, values: Array) -> None:
    dimension = _DIMENSIONS[directory.name]
    write_array(directory, values.shape, values.dtype, lambda start, stop: values[start:stop], dimension=dimension)


# The probe ----------------------------------------------------------------------------------------


def write_probe(group: Path, values: Array) -> bool:
    """Store a group's probe unless it has one; return whether this one was stored."""
    aside = group / f".probe-{secrets.token_hex(4)}"
    with writing(aside):
        write_group(aside, {}, durable=False)
        _write_whole(aside / "probe", values)
        fsync_tree(aside)
        try:
            (aside / "probe").rename(group / "probe")
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            return False
        finally:
            shutil.rmtree(aside)
        fsync(group)
    return True


def read_probe(group: Path) -> NDArray[np.float32] | None:
    """Return a group's probe, shape (k, dim), or None if it has none."""
    if not (group / "probe").is_dir():
        return None
    values: NDArray[np.float32] = Rows.open(group / "probe").read()
    return values
