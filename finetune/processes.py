"""Several processes of one run: what the first one does before the others, and what is said when it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from finetune.errors import FinetuneError


class SaidByTheFirst(FinetuneError):
    """The first process could not go on and says why; this one has nothing to add, and no message."""


@contextmanager
def first_before_others(accelerator: Accelerator) -> Iterator[None]:
    """Run a block on the first process, then on the others: it makes directories and fills caches, they find them.

    Parameters
    ----------
    accelerator
        Knows the processes.

    Raises
    ------
    SaidByTheFirst
        On the others, if the block failed on the first. They would wait for it forever, or end in an error of theirs.
    """
    is_first = accelerator.is_main_process
    if not is_first and broadcast_object_list([None])[0]:
        raise SaidByTheFirst
    try:
        yield
    except Exception:
        if is_first:
            broadcast_object_list([True])
        raise
    if is_first:
        broadcast_object_list([False])
