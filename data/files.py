"""Files that are whole or not there: written aside, then renamed into place."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def whole_text_file(path: Path) -> Iterator[TextIO]:
    """Open a text file for writing; it takes its name when the block ends without an error.

    Parameters
    ----------
    path
        The file; what is there already is replaced, or kept if anything fails. Missing folders are made.

    Raises
    ------
    OSError
        If the place cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # What is not a plain file, such as /dev/stdout, cannot be replaced: it is written as it is.
    if path.exists() and not path.is_file():
        with path.open("w", newline="", encoding="utf-8") as file:
            yield file
        return
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with aside.open("x", newline="", encoding="utf-8") as file:
            yield file
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
