"""History: the values of whole epochs, for the record and the report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from finetune.tracking import read_lines


class History:
    """A tracker that keeps what is said of whole epochs.

    Parameters
    ----------
    run
        The run directory, of which a stopped run's epochs are read.
    until
        The step that it goes on from.
    """

    def __init__(self, run: Path, *, until: int) -> None:
        self._epochs: dict[int, dict[str, float]] = {}
        self.before: dict[str, float] = {}
        for values in read_lines(run, until=until):
            self.log(int(values["step"]), values)

    def log(self, step: int, values: Mapping[str, float]) -> None:  # noqa: ARG002 - a tracker is told of steps
        """Keep ``train/...`` and ``val/...`` of an epoch, and ``before/...`` of the network before the first."""
        self.before |= {
            name.removeprefix("before/"): each for name, each in values.items() if name.startswith("before/")
        }
        own = {name: value for name, value in values.items() if name.startswith(("train/", "val/"))}
        if own:
            self._epochs[int(values["epoch"])] = own

    def close(self) -> None:
        """Nothing is left to write."""

    @property
    def columns(self) -> dict[str, list[float | None]]:
        """The values by name, one per epoch; None where an epoch has none."""
        names = dict.fromkeys(name for values in self._epochs.values() for name in values)
        return {name: [self._epochs[epoch].get(name) for epoch in sorted(self._epochs)] for name in names}
