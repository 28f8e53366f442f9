"""Ledger: the samples that could not be stored, and why.

Append-only JSON lines. It informs; it never keeps a sample from being tried again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data.digest import as_keys
from data.errors import SampleFailure
from featurestore.features import Features
from featurestore.lines import append_line, read_lines


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
        append_line(self.path, asdict(failure))

    def failures(self) -> dict[bytes, Failure]:
        """Return the latest failure of every key, in the order in which the keys first failed."""
        latest: dict[bytes, Failure] = {}
        for values in read_lines(self.path):
            failure = _parse(values)
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


def _parse(state: Mapping[str, Any]) -> Failure | None:
    """Return the failure on a line, or None for a line that holds something else."""
    try:
        return Failure(
            key=bytes.fromhex(state["key"]).hex(),
            id=state["id"],
            source=state["source"],
            kind=state["kind"],
            message=state["message"],
            time=state["time"],
        )
    except (ValueError, KeyError, TypeError):
        return None
