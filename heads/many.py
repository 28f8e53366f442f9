"""Many fits at once: every head on its own rows, with what the fits have in common computed once.

Cross-validation, studies and comparisons all come here. How the work is shared is the head's own
business (`Head.fit_together`); by default fits run side by side, one per core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heads.bags import features_for
from heads.context import Context
from heads.errors import HeadError

if TYPE_CHECKING:
    from heads.base import Head


@dataclass(frozen=True, eq=False)
class Job:
    """One fit: an unfitted head, the rows of the shared data that it learns from, and what each weighs; None: 1."""

    head: Head
    rows: NDArray[np.int64]
    weight: NDArray[np.float64] | None = None


def fit_many(
    jobs: Sequence[Job],
    X: Any,
    y: NDArray[Any],
    *,
    groups: NDArray[Any] | None = None,
    context: Context | None = None,
) -> Iterator[Head | HeadError]:
    """Yield each job's head, fitted, in the order of the jobs.

    Parameters
    ----------
    jobs
        What to fit; heads of one class are fitted together.
    X, y, groups, context
        The shared data, see `Head.fit`. Heads that do not take bags learn from the mean of each.

    Yields
    ------
    Head or HeadError
        A HeadError stands where a head could not be fitted; the others are not touched by it.
    """
    cohorts: dict[type[Head], list[int]] = {}
    for position, job in enumerate(jobs):
        cohorts.setdefault(type(job.head), []).append(position)
    fitted: dict[int, Head | HeadError] = {}
    position = 0
    for made, positions in cohorts.items():
        together = made.fit_together(
            [jobs[i] for i in positions], features_for(made, X), y, groups=groups, context=context
        )
        for place, head in zip(positions, together, strict=True):
            fitted[place] = head
            while position in fitted:
                yield fitted.pop(position)
                position += 1
