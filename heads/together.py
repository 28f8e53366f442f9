"""Heads that share a fit: those that learn from the same rows in the same form are fitted in one go."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from heads.base import Context, Head
from heads.errors import HeadError
from heads.folds import side_by_side
from heads.many import Job
from heads.params import check_params
from heads.state import is_learned
from heads.training_set import Training


class SharingHead(Head):
    """Base of heads whose grid points share work on the rows that they learn from.

    Attributes
    ----------
    varied
        Parameters that may differ among heads fitted in one go; all others decide what the training
        set looks like, or are alike for simplicity.
    """

    varied: ClassVar[frozenset[str]]

    @classmethod
    @abstractmethod
    def _fit_all(cls, heads: Sequence[Self], training: Training) -> None:
        """Fit heads that differ in `varied` only to one training set, as if each were fitted alone."""

    def _fit(self, training: Training) -> None:
        self._fit_all([self], training)

    @classmethod
    def fit_together(
        cls,
        jobs: Sequence[Job],
        X: Any,
        y: NDArray[Any],
        *,
        groups: NDArray[Any] | None = None,
        context: Context | None = None,
    ) -> Iterator[Head | HeadError]:
        """Yield the head of each job; jobs on the same rows that differ in `varied` only are fitted in one go."""
        alike = sharing(jobs, cls.varied)
        fit = partial(_fit_alike, cls, X=X, y=y, groups=groups, context=context)
        batches = [[jobs[position] for position in positions] for positions in alike]
        done: dict[int, Head | HeadError] = {}
        position = 0
        for positions, heads in zip(alike, side_by_side(fit, batches, torch_threads=cls.uses_torch), strict=True):
            done.update(zip(positions, heads, strict=True))
            while position in done:
                yield done.pop(position)
                position += 1


def sharing(jobs: Sequence[Job], varied: frozenset[str]) -> list[list[int]]:
    """Return the positions of the jobs, those together that learn from the same rows and differ in `varied` only."""
    alike: dict[Any, list[int]] = {}
    for position, job in enumerate(jobs):
        alike.setdefault(_key(job, varied), []).append(position)
    return list(alike.values())


def prepared(
    heads: Sequence[Head],
    job: Job,
    X: Any,
    y: NDArray[Any],
    *,
    groups: NDArray[Any] | None,
    context: Context | None,
) -> Training:
    """Return the training set that heads share, the rows of a job; the first prepares it, the others learn of it.

    Raises
    ------
    HeadError
        If the data are wrong.
    """
    first, *others = heads
    rows, own = job.rows, None if groups is None else groups[job.rows]
    training = first._prepare(X[rows], y[rows], sample_weight=job.weight, groups=own, context=context)
    learned = {name: value for name, value in vars(first).items() if is_learned(name)}
    for head in others:
        for name, value in learned.items():
            setattr(head, name, list(value) if name == "notes_" else value)
    return training


def _key(job: Job, varied: frozenset[str]) -> tuple[bytes, bytes, str]:
    """Return what jobs have in common that share a training set."""
    params = {name: value for name, value in job.head.get_params(deep=False).items() if name not in varied}
    weight = b"" if job.weight is None else job.weight.tobytes()
    return np.asarray(job.rows, dtype=np.int64).tobytes(), weight, repr(sorted(params.items()))


def _fit_alike(
    cls: type[SharingHead],
    jobs: Sequence[Job],
    *,
    X: Any,
    y: NDArray[Any],
    groups: NDArray[Any] | None,
    context: Context | None,
) -> list[Head | HeadError]:
    """Fit heads that share rows and form of the training set; it is prepared by the first of them."""
    results: list[Head | HeadError] = [checked(job.head) for job in jobs]
    heads = [head for head in results if isinstance(head, cls)]
    if not heads:
        return results
    try:
        training = prepared(heads, jobs[0], X, y, groups=groups, context=context)
        if training.y.size:
            cls._fit_all(heads, training)
    except HeadError as error:
        return [error if isinstance(result, cls) else result for result in results]
    return results


def checked(head: Head) -> Head | HeadError:
    """Return a head, or what is wrong with its parameters."""
    try:
        check_params(head)
    except HeadError as error:
        return error
    return head
