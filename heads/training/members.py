"""What heads share that average several members, each stopped on rows of the training data it does not learn from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.errors import SplitError
from data.split import holdout
from heads.base import Head, Training

History = dict[str, list[float | None]]


@dataclass(frozen=True)
class Course:
    """The losses of one member, one value per epoch or round, and which of them it was kept at."""

    history: Mapping[str, Sequence[float | None]]
    best: int

    def at(self, name: str, epoch: int) -> float | None:
        """Return a value at an epoch; past the end, the one of the epoch that was kept."""
        values = self.history[name]
        return values[epoch if epoch < len(values) else self.best]


def inner_splits(
    head: Head, training: Training, *, fraction: float, members: int, seed: int
) -> list[NDArray[np.bool_]]:
    """Return, per member, the mask of the rows that decide when it stops: stratified, groups left whole.

    Parameters
    ----------
    head
        Gets a note if the rows cannot be split; the masks are then empty.
    training
        The rows.
    fraction
        Share of the rows that each mask holds; 0 for none.
    members
        Number of masks, each drawn by itself.
    seed
        Seed of the masks; those of other seeds are different ones.
    """
    none = np.zeros(len(training.X), dtype=bool)
    if not fraction:
        return [none] * members
    seeds = np.random.SeedSequence(seed).generate_state(members)
    try:
        return [holdout(training.labels, training.kind, training.groups, fraction, int(each)) for each in seeds]
    except SplitError as error:
        head._note(f"no early stopping: {error}")
        return [none] * members


def mean_history(courses: Sequence[Course]) -> History:
    """Return the mean of several histories per epoch; a member that has stopped counts as it is kept."""
    names = courses[0].history
    epochs = range(max(len(values) for course in courses for values in course.history.values()))
    return {name: [_mean(course.at(name, epoch) for course in courses) for epoch in epochs] for name in names}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def center_and_spread(training: Training) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weighted mean and standard deviation of each target, shape (T,); a constant one has spread 1."""
    share = training.weight / training.weight.sum(axis=0)
    center = (share * training.y).sum(axis=0)
    deviation = np.sqrt((share * np.square(training.y - center)).sum(axis=0))
    return center, np.where(deviation > 0, deviation, 1.0)
