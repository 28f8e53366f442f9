"""Ledger: the samples that could not be stored, and why.

Append-only JSON lines, each written by one call, so several processes may write at once and a
process that is killed leaves at most one torn line. It informs; it never keeps a sample from being
tried again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from data.digest import as_keys
from data.errors import SampleFailure
from featurestore.features import Features
from featurestore.layout import writing


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failed attempt.

    Attributes
    ----------
    key
        The sample's key, 32 hexadecimal digits; of its id where the content could not be read.
    id, source
        The sample's name and where its content was looked for.
    kind, message
        What went wrong.
    time
        UTC, ISO 8601.
    """

    key: str
    id: str
    source: str
    kind: SampleFailure
    message: str
    time: str


class Ledger:
    """The failures of one encoder group.

    Parameters
    ----------
    path
        The file; made with the first failure.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, key: bytes, *, id: str, source: str, kind: SampleFailure, message: str) -> None:  # noqa: A002
        """Append one failure.

        Raises
        ------
        StoreUnwritable
            If the disk is full or may not be written.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        failure = Failure(key=key.hex(), id=id, source=source, kind=kind, message=message, time=now)
        line = json.dumps(asdict(failure), ensure_ascii=False).encode() + b"\n"
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(descriptor, (b"" if _ends_with_newline(descriptor) else b"\n") + line)
            finally:
                os.close(descriptor)

    def failures(self) -> dict[bytes, Failure]:
        """Return the latest failure of every key, in the order in which the keys first failed."""
        latest: dict[bytes, Failure] = {}
        if not self.path.exists():
            return latest
        for line in self.path.read_bytes().split(b"\n"):
            failure = _parse(line)
            if failure is not None:
                latest[bytes.fromhex(failure.key)] = failure
        return latest

    def failed(self, features: Features) -> dict[bytes, Failure]:
        """Return the latest failure of every key that is still not stored."""
        latest = self.failures()
        if not latest:
            return {}
        stored = features.contains(as_keys(latest))
        return {key: failure for (key, failure), there in zip(latest.items(), stored, strict=True) if not there}


def _ends_with_newline(descriptor: int) -> bool:
    """Whether the file is empty or its last line is whole."""
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"


def _parse(line: bytes) -> Failure | None:
    """Return the failure on a line, or None for a line torn by a process that was killed."""
    try:
        state: Mapping[str, str] = json.loads(line)
        return Failure(
            key=bytes.fromhex(state["key"]).hex(),
            id=state["id"],
            source=state["source"],
            kind=state["kind"],  # type: ignore[arg-type]
            message=state["message"],
            time=state["time"],
        )
    except (ValueError, KeyError, TypeError):
        return None
