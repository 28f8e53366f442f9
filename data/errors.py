"""The root of every error a user can cause.

::

    FrostlineError                exit code 2: the user's input or configuration
    ├── ConfigError               an option, a key or a combination of them
    ├── ManifestError             a table or folder of samples, or one of its rows
    ├── SampleError               one sample that cannot be decoded (goes to the ledger)
    ├── TaskError                 targets, classes, kinds
    ├── SplitError                splits, folds, groups
    └── LeakageError              samples or groups shared between splits

A message names what failed and where (file, row, option), what was expected, what was found and
what to do, in one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Literal

SampleFailure = Literal["missing", "empty", "truncated", "too_large", "unsupported", "not_finite", "unreadable"]


class FrostlineError(Exception):
    """Root of all errors that a user's input can cause; `exit_code` is the process's answer."""

    exit_code: ClassVar[int] = 2


class ConfigError(FrostlineError, ValueError):
    """An option, a configuration key or a combination of them is wrong."""


class ManifestError(FrostlineError, ValueError):
    """A manifest, or one of its rows, is wrong."""


class SampleError(FrostlineError, ValueError):
    """One sample cannot be decoded or encoded.

    Parameters
    ----------
    kind
        The ledger's type of the failure.
    message
        One line: the file, what was expected, what was found.
    """

    def __init__(self, kind: SampleFailure, message: str) -> None:
        super().__init__(message)
        self.kind: SampleFailure = kind


class TaskError(FrostlineError, ValueError):
    """Targets, classes or the task's kind are wrong."""


class SplitError(FrostlineError, ValueError):
    """A split, a fold or a group cannot be made as asked."""


class LeakageError(FrostlineError, ValueError):
    """Samples or groups are shared between splits."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a sentence that lists what exists, nearest match first.

    Parameters
    ----------
    name
        What the user wrote.
    known
        The names that exist.
    """
    names = sorted(known)
    folded = {known_name.casefold(): known_name for known_name in names}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    hint = f"did you mean {folded[near[0]]!r}? " if near else ""
    return f"{hint}Known: {', '.join(names)}."
