"""Which samples make up each step: a function of seed and epoch only, so that any step can be done again."""

from __future__ import annotations

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


def share(rows: Rows, process: int, processes: int) -> Rows:
    """Return the consecutive rows of a forward pass that one process computes: as many as the others, or one fewer."""
    return np.array_split(rows, processes)[process]


def seed_of(*parts: int) -> int:
    """Return a seed that follows from several numbers, such as run, epoch, step and process."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
