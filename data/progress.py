"""How long work tells its caller how far it is; libraries never print.

Work takes a `Progress`. The command line hands it `Bars` on a terminal and `Lines` elsewhere.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress(Protocol):
    """Receives the stages of a piece of work and their advance."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` steps; the stage before it is finished."""
        ...

    def advance(self, steps: int = 1) -> None:
        """Count some steps of the current stage as done."""
        ...

    def note(self, message: str) -> None:
        """Say one line that a person should read."""
        ...


class Silent:
    """The progress of work that nobody watches."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage."""

    def advance(self, steps: int = 1) -> None:
        """Advance the stage."""

    def note(self, message: str) -> None:
        """Say one line."""


class Lines:
    """Plain lines on a stream that is no terminal: one per stage, and one every `every` seconds.

    Parameters
    ----------
    stream
        Where to write.
    every
        Seconds between two lines of one stage.
    """

    def __init__(self, stream: TextIO, *, every: float = 10.0) -> None:
        self._stream = stream
        self._every = every
        self._name, self._total, self._done = "", 0, 0
        self._began = self._said = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def stage(self, name: str, total: int) -> None:
        """Begin a stage."""
        self._name, self._total, self._done = name, total, 0
        self._began = self._said = time.monotonic()
        self.note(f"{name}: {total}")

    def advance(self, steps: int = 1) -> None:
        """Advance the stage."""
        self._done += steps
        now = time.monotonic()
        if now - self._said >= self._every:
            self._said = now
            rate = self._done / (now - self._began)
            self.note(f"{self._name}: {self._done}/{self._total}, {rate:.1f}/s, {self._left(rate)} left")

    def note(self, message: str) -> None:
        """Say one line."""
        self._stream.write(message + "\n")
        self._stream.flush()

    def _left(self, rate: float) -> str:
        seconds = (self._total - self._done) / rate if rate else 0.0
        return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"


class Bars:
    """Live bars on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int) -> None:
        """Begin a stage."""
        self._task = self._bars.add_task(name, total=total)

    def advance(self, steps: int = 1) -> None:
        """Advance the stage."""
        if self._task is not None:
            self._bars.advance(self._task, steps)

    def note(self, message: str) -> None:
        """Say one line."""
        self._bars.console.print(message, markup=False, highlight=False)
