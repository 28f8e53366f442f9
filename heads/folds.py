"""Independent fits, one per core: each runs on a single thread, which beats threads inside small matrix products.

A head's products are small: threads inside them mostly wait for each other, and on a busy machine they
wait for the scheduler. Fits side by side share nothing, and every fit is seeded by itself, so results do
not depend on the number of cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

Job = TypeVar("Job")
Result = TypeVar("Result")


def side_by_side(
    fit: Callable[[Job], Result], jobs: Sequence[Job], *, torch_threads: bool, workers: int | None = None
) -> Iterator[Result]:
    """Yield the result of each job, in order, while as many run as there are cores.

    Parameters
    ----------
    fit
        Does one job; called from several threads.
    jobs
        What to do.
    torch_threads
        Whether the jobs compute with torch, whose threads must be limited as well.
    workers
        How many run at once; by default one per core that this process may use.
    """
    with _one_thread_each(torch_threads=torch_threads), ThreadPoolExecutor(workers or cores()) as pool:
        yield from pool.map(lambda job: _limited(fit, job), jobs)


def cores() -> int:
    """Return how many cores this process may use, which can be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _limited(fit: Callable[[Job], Result], job: Job) -> Result:
    # OpenMP keeps its limit per thread, so it is set in the thread that does the work.
    with threadpool_limits(1):
        return fit(job)


@contextmanager
def _one_thread_each(*, torch_threads: bool) -> Iterator[None]:
    """Make torch use one thread in every thread that starts inside the block."""
    if not torch_threads:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
