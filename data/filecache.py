"""Remember what reading a file has shown, so that an unchanged file is not read again.

Two tables in one SQLite file: (path, size, times) -> digest of the content, and sample key -> perceptual
hash. It is only a cache: losing it costs time, never correctness, so nothing that goes wrong with it stops
the work. It keeps SQLite's rollback journal rather than the write-ahead log, which cannot be read in a
folder without write access and is unsafe on network file systems; each write is one short transaction.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeVar

from data.digest import KEY_BYTES, Keys, as_keys, content_key, file_digest, joined_key, selected_key
from data.errors import SampleError
from data.manifest import Source

Advance = Callable[[int], None]
"""Called with the number of samples finished since the last call."""
T = TypeVar("T")

APPLICATION_ID = 0x46726F73  # "Fros"
VERSION = 1
LOCK_TIMEOUT_S = 30.0
RACY_NS = 2_000_000_000
"""A file changed less than this before it was looked at may change again within one tick of its clock."""
AT_ONCE = 500
"""Files between two writes, which is what a kill can lose; also the parameters of one query."""

_SCHEMA = (
    """
    CREATE TABLE digests (
        path BLOB PRIMARY KEY,
        size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL,
        digest BLOB NOT NULL
    ) WITHOUT ROWID
    """,
    "CREATE TABLE hashes (method TEXT, key BLOB, hash BLOB NOT NULL, PRIMARY KEY (method, key)) WITHOUT ROWID",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {VERSION}",
)
_NO_HASH = b""

log = logging.getLogger(__name__)


class FileCache:
    """Digests and perceptual hashes of files, kept between runs and shared by processes.

    Parameters
    ----------
    path
        The SQLite file; it is kept if its folder exists. A file that is damaged or something else is set aside and
        begun anew. None keeps nothing beyond this object.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._database = _Database(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; the cache cannot be used any more."""
        self._database.close()

    def keys(
        self, sources: Sequence[Source | None], *, workers: int = 8, progress: Advance | None = None
    ) -> tuple[Keys, dict[int, SampleError]]:
        """Return the content key of every sample.

        Parameters
        ----------
        sources
            The samples; None where there is no content.
        workers
            Number of threads that read files.
        progress
            Called with the number of samples finished since the last call.

        Returns
        -------
        keys : ndarray of uint64, shape (n, 2)
            One key per sample; zeros where there is none.
        failures : dict of int to SampleError
            What is wrong with the samples that have no key, by position.
        """
        found: list[bytes | SampleError] = [SampleError("missing", "the cell of the input column is empty")] * len(
            sources
        )
        positions: defaultdict[str, list[int]] = defaultdict(list)
        several: dict[int, list[str]] = {}
        for position, source in enumerate(sources):
            if source is not None and source.path is None:
                found[position] = _text_key(source.text or "")
            elif source is not None and source.rest:
                several[position] = [_absolute(path) for path in (source.path, *source.rest) if path is not None]
            elif source is not None:
                positions[_absolute(source.path)].append(position)
        tell = progress or (lambda _: None)
        tell(len(sources) - len(several) - sum(map(len, positions.values())))
        shared: dict[str, bytes | SampleError] = dict.fromkeys(chain.from_iterable(several.values()), b"")
        for path, digest in self._digests({**positions, **shared}, workers):
            if path in shared:
                shared[path] = digest
            for position in positions.get(path, ()):
                found[position] = _part_key(digest, sources[position])
            tell(len(positions.get(path, ())))
        for position, paths in several.items():
            found[position] = _joined_key([shared[path] for path in paths])
        tell(len(several))
        failures = {position: key for position, key in enumerate(found) if isinstance(key, SampleError)}
        return as_keys(bytes(KEY_BYTES) if isinstance(key, SampleError) else key for key in found), failures

    def hashes(self, method: str, keys: Iterable[bytes]) -> dict[bytes, bytes | None]:
        """Return the perceptual hashes that are known, by sample key; None for a sample that has none.

        Parameters
        ----------
        method
            The name and version of the hash.
        keys
            16-byte sample keys.
        """
        known: dict[bytes, bytes | None] = {}
        for some in chunks(list(keys), AT_ONCE):
            query = f"SELECT key, hash FROM hashes WHERE method = ? AND key IN ({_marks(some)})"  # noqa: S608
            known.update((key, value or None) for key, value in self._database.select(query, [method, *some]))
        return known

    def add_hashes(self, method: str, hashes: Mapping[bytes, bytes | None]) -> None:
        """Remember perceptual hashes by sample key."""
        rows = [(method, key, _NO_HASH if value is None else value) for key, value in hashes.items()]
        self._database.insert("INSERT OR REPLACE INTO hashes VALUES (?, ?, ?)", rows)

    def _digests(self, paths: Iterable[str], workers: int) -> Iterator[tuple[str, bytes | SampleError]]:
        """Yield the digest of each file's content, remembered or read; each file is looked at once."""
        with ThreadPoolExecutor(workers, thread_name_prefix="digest") as pool:
            for some in chunks(list(paths), AT_ONCE):
                known = self._known_digests(some)
                found: dict[str, bytes | SampleError] = {}
                stale: list[_Look] = []
                for path, look in zip(some, pool.map(_look, some), strict=True):
                    if isinstance(look, SampleError):
                        found[path] = look
                    elif look in known:
                        found[path] = known[look]
                    else:
                        stale.append(look)
                read = list(pool.map(_digest, stale))
                self._remember(stale, read)
                found.update(zip((look.path for look in stale), read, strict=True))
                yield from found.items()

    def _known_digests(self, paths: Sequence[str]) -> dict[_Look, bytes]:
        query = f"SELECT path, size, mtime_ns, ctime_ns, digest FROM digests WHERE path IN ({_marks(paths)})"  # noqa: S608
        rows = self._database.select(query, [os.fsencode(path) for path in paths])
        return {_Look(os.fsdecode(path), *stamp): digest for path, *stamp, digest in rows if len(digest) == KEY_BYTES}

    def _remember(self, looks: Sequence[_Look], digests: Sequence[bytes | SampleError]) -> None:
        rows = [
            (os.fsencode(look.path), look.size, look.mtime_ns, look.ctime_ns, digest)
            for look, digest in zip(looks, digests, strict=True)
            if isinstance(digest, bytes) and look.is_settled
        ]
        self._database.insert("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?)", rows)


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in runs of at most `size`."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _marks(parameters: Sequence[object]) -> str:
    return ",".join("?" * len(parameters))


# Files --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What a file looked like; two equal looks are one content.

    The time of the last change of the inode is part of it, because copying tools set the time of the last
    modification back.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    seen_ns: int = field(default=0, compare=False)

    @property
    def is_settled(self) -> bool:
        """Whether a later change would show in the times."""
        return self.seen_ns - max(self.mtime_ns, self.ctime_ns) > RACY_NS


def _absolute(path: Path | None) -> str:
    return os.path.abspath(str(path))  # noqa: PTH100  a tenth of the time


def _look(path: str) -> _Look | SampleError:
    seen_ns = time.time_ns()
    try:
        status = os.stat(path)  # noqa: PTH116  a text path, once per file
    except (FileNotFoundError, NotADirectoryError):
        return SampleError("missing", f"{path}: no such file")
    except (OSError, ValueError) as error:
        return SampleError("unreadable", f"{path}: {_reason(error)}")
    # A pipe or a device would be waited for, or read for ever.
    if not stat.S_ISREG(status.st_mode):
        return SampleError("unreadable", f"{path}: not a file; expected a file, not a folder, pipe or device")
    if status.st_size == 0:
        return SampleError("empty", f"{path}: the file is empty (0 bytes)")
    return _Look(path, status.st_size, status.st_mtime_ns, status.st_ctime_ns, seen_ns)


def _digest(look: _Look) -> bytes | SampleError:
    try:
        return file_digest(Path(look.path))
    except FileNotFoundError:
        return SampleError("missing", f"{look.path}: the file vanished while it was read")
    except OSError as error:
        return SampleError("unreadable", f"{look.path}: {_reason(error)}")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _text_key(text: str) -> bytes | SampleError:
    return content_key(text.encode()) if text.strip() else SampleError("empty", "the text is empty")


def _joined_key(digests: Sequence[bytes | SampleError]) -> bytes | SampleError:
    problem = next((digest for digest in digests if isinstance(digest, SampleError)), None)
    return problem or joined_key([digest for digest in digests if isinstance(digest, bytes)])


def _part_key(digest: bytes | SampleError, source: Source | None) -> bytes | SampleError:
    selector = "" if source is None else source.selector
    return digest if isinstance(digest, SampleError) else selected_key(digest, selector=selector)


# SQLite -------------------------------------------------------------------------------------------------------------


class _Foreign(sqlite3.DatabaseError):
    """A sound database that is not this cache, or one of another version."""


class _Database:
    """A SQLite file that may fail: a damaged one is begun anew, one that cannot be written is only read."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = Lock()
        self._writable = True
        self._connection = self._open()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def select(self, query: str, parameters: Sequence[Any]) -> list[Any]:
        """Return the rows, or none if the file fails."""
        with self._lock:
            try:
                return self._connection.execute(query, parameters).fetchall()
            except sqlite3.DatabaseError as error:
                self._recover(error)
                return []

    def insert(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        """Write the rows in one transaction, or none if the file fails."""
        if not rows or not self._writable:
            return
        with self._lock:
            try:
                with self._connection:
                    self._connection.executemany(statement, rows)
            except sqlite3.DatabaseError as error:
                self._recover(error)

    def _recover(self, error: sqlite3.DatabaseError) -> None:
        """Begin anew if the file is damaged; else go on without writing."""
        if self._path is not None and _is_damage(error) and self._writable:
            self._connection.close()
            self._writable = _set_aside(self._path, error)
            self._connection = self._open()
        elif self._writable:
            self._writable = False
            log.warning("%s: cannot be written (%s); files will be read again next time", self._path, error)

    def _open(self) -> sqlite3.Connection:
        if self._path is not None and self._path.parent.is_dir():
            try:
                return _connect(self._path)
            except sqlite3.DatabaseError as error:
                if _is_damage(error) and _set_aside(self._path, error):
                    return self._open()
                log.warning("%s: cannot be used (%s); files will be read again next time", self._path, error)
        return _connect(":memory:")


def _connect(path: Path | str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=LOCK_TIMEOUT_S, check_same_thread=False)
    try:
        if not _is_ours(connection):
            _create(connection)
        connection.execute("SELECT count(*) FROM digests WHERE path = x''")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _is_ours(connection: sqlite3.Connection) -> bool:
    """Return True for this cache, False for a database that holds nothing yet; refuse all others."""
    identity = tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version"))
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if identity == (APPLICATION_ID, VERSION):
        return True
    if tables or any(identity):
        raise _Foreign(f"not a file cache of version {VERSION}")
    return False


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    with connection:
        # Another process may have come first.
        if not _is_ours(connection):
            for statement in _SCHEMA:
                connection.execute(statement)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, _Foreign) or code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _set_aside(path: Path, error: Exception) -> bool:
    """Rename a file that is not a usable cache, with what SQLite left beside it; return whether that was possible."""
    aside = path.with_name(path.name + ".broken")
    try:
        path.replace(aside)
        for ending in ("-journal", "-wal", "-shm"):
            path.with_name(path.name + ending).unlink(missing_ok=True)
    except OSError:
        return False
    log.warning("%s: not a usable cache (%s); moved to %s and begun anew", path, error, aside.name)
    return True
