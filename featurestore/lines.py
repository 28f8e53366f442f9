"""Append-only files of JSON lines, each written by one call.

Several processes may write at once, and a process that is killed leaves at most one torn line, which
costs itself only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from featurestore.layout import fsync, writing


def append_line(path: Path, values: Mapping[str, Any], *, durable: bool = False) -> None:
    """Append one JSON object as a line; the file and its folder are made with the first.

    Parameters
    ----------
    path
        The file.
    values
        JSON-ready values.
    durable
        Whether the line must have reached the disk before the return.

    Raises
    ------
    StoreUnwritable
        If the disk is full or may not be written.
    """
    line = json.dumps(values, ensure_ascii=False).encode() + b"\n"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(descriptor, (b"" if _ends_with_newline(descriptor) else b"\n") + line)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if durable:
            fsync(path.parent)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a file, oldest first; none where there is no file, and none for a torn line."""
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            yield values


def _ends_with_newline(descriptor: int) -> bool:
    """Whether the file is empty or its last line is whole."""
    size = os.fstat(descriptor).st_size
    return size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
