"""Which samples make up each step: a function of seed and epoch only, so that any step can be done again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def steps_of(
    rows: Rows, *, batch_size: int, accumulate: int = 1, processes: int = 1, shuffle: tuple[int, int] | None = None
) -> list[list[Rows]]:
    """Return the forward passes of each step of the optimizer.

    Every row occurs once. A last pass that is too short to be shared out, or has a single row, of which no
    statistics of a batch can be made, joins the one before it.

    Parameters
    ----------
    rows
        Positions of samples.
    batch_size
        Rows of one forward pass, over all processes.
    accumulate
        Forward passes per step; the last step may have fewer.
    processes
        How many processes share a forward pass.
    shuffle
        Seed and epoch of the order; None keeps it.
    """
    order = rows if shuffle is None else np.random.default_rng(shuffle).permutation(rows)
    cuts = list(range(batch_size, len(order), batch_size))
    if cuts and len(order) - cuts[-1] < max(2, processes):
        cuts.pop()
    passes = np.split(order, cuts)
    return [passes[i : i + accumulate] for i in range(0, len(passes), accumulate)]


def split(passes: Sequence[Rows], processes: int) -> list[tuple[Rows, ...]]:
    """Return the rows of each forward pass of a step, by the process that computes them: as many, but for one.

    A process's rows follow each other in the step, so that those of all, gathered in the order of the processes, are in
    the step's order.
    """
    shares = np.array_split(np.concatenate(passes), processes)
    return list(zip(*(np.array_split(each, len(passes)) for each in shares), strict=True))


def seed_of(*parts: int) -> int:
    """Return a seed that follows from several numbers, such as run, epoch, step and process."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
