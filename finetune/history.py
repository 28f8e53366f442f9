"""History: what was found at each look at the rows that choose, for the record and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune.tracking import read_lines


class History:
    """A tracker that keeps what is said at looks: at the end of every epoch, or every so many steps.

    Parameters
    ----------
    run
        The run directory, of which a stopped run's looks are read.
    until
        The step that it goes on from.
    """

    def __init__(self, run: Path, *, until: int) -> None:
        self._looks: dict[int, dict[str, float]] = {}
        self.before: dict[str, float] = {}
        for values in read_lines(run, until=until):
            self.log(int(values["step"]), values)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep ``train/...`` and ``val/...`` of a look, and ``before/...`` of the network before any training."""
        self.before |= {
            name.removeprefix("before/"): each for name, each in values.items() if name.startswith("before/")
        }
        own = {name: value for name, value in values.items() if name.startswith(("train/", "val/"))}
        if own:
            self._looks[step] = own

    def close(self) -> None:
        """Nothing is left to write."""

    @property
    def looks(self) -> list[int]:
        """How many steps had been made at each look."""
        return sorted(self._looks)

    @property
    def columns(self) -> dict[str, list[float | None]]:
        """The values by name, one per look; None where a look has none."""
        names = dict.fromkeys(name for values in self._looks.values() for name in values)
        return {name: [self._looks[step].get(name) for step in self.looks] for name in names}

    def at(self, step: int | None, name: str) -> float | None:
        """Return a value of the look after some steps; None where it has none, or nobody was told of it."""
        return self._looks.get(step, {}).get(name) if step else None
