"""Reader, encoder and writer, overlapped: threads decode the next batches while others are encoded and stored.

A GPU encodes one batch at a time. A CPU encodes one batch per core, each with one thread: no core waits for
another at the end of every layer, which costs little on an idle machine and most of the time on a busy one,
and the values do not depend on the number of cores.

Memory is bounded by the batches in flight, never by the length of the manifest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from data.errors import SampleError
from data.manifest import Source
from featurestore import levels
from featurestore.encoder import Encoder

AHEAD = 3
"""Batches that are decoded ahead of those being encoded; more if there are more streams."""


@dataclass
class Timings:
    """Where the wall time of a run went, in seconds.

    Attributes
    ----------
    waiting, encoding
        The device had nothing to do, because reading was the bottleneck; it worked. Averages over the streams.
    writing
        The store was written.
    """

    waiting: float = 0.0
    encoding: float = 0.0
    writing: float = 0.0

    @property
    def bottleneck(self) -> str:
        """The step that took most of the time: ``reading``, ``encoding`` or ``writing``."""
        return max((self.waiting, "reading"), (self.encoding, "encoding"), (self.writing, "writing"))[1]


@dataclass(frozen=True)
class Encoded:
    """One encoded batch: positions in the manifest, their embeddings by level, and what could not be decoded."""

    positions: tuple[int, ...]
    blocks: tuple[levels.Block, ...]
    failures: tuple[tuple[int, SampleError], ...]


@dataclass
class _Prepared:
    positions: tuple[int, ...]
    batch: Any
    items: Sequence[Any]
    failures: tuple[tuple[int, SampleError], ...]


@dataclass
class Pipeline:
    """Encodes batches of samples.

    Parameters
    ----------
    encoder
        The encoder; its `read` and `collate` run in threads.
    workers
        Threads that decode.
    streams
        Threads that encode; more than one only on a CPU, and only if the encoder is `thread_safe`.
    timings
        Filled while `run` is iterated.
    splits
        How many times a batch was split because the device ran out of memory.
    device
        What a single stream holds while it encodes. Whoever else computes with the encoder meanwhile holds it too.
    """

    encoder: Encoder
    workers: int
    streams: int = 1
    timings: Timings = field(default_factory=Timings)
    splits: int = 0
    device: AbstractContextManager[object] = field(init=False, repr=False)
    _lock: Lock = field(default_factory=Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        self.device = nullcontext() if self.streams > 1 else Lock()

    def run(self, batches: Iterable[Sequence[int]], source_of: Callable[[int], Source]) -> Iterator[Encoded]:
        """Yield the batches in order, encoded; later batches are worked on while the caller has one.

        Parameters
        ----------
        batches
            Positions of samples.
        source_of
            The content of the sample at a position.
        """
        in_flight = self.streams + max(AHEAD, self.streams)
        with (
            one_thread_each(self.streams),
            ThreadPoolExecutor(self.workers, thread_name_prefix="read") as readers,
            ThreadPoolExecutor(1, thread_name_prefix="collate") as collator,
            ThreadPoolExecutor(self.streams, thread_name_prefix="encode") as encoders,
        ):
            window: deque[Future[Encoded]] = deque()
            try:
                for positions in batches:
                    reads = [(i, readers.submit(self.encoder.read, source_of(i))) for i in positions]
                    window.append(encoders.submit(self._encode, collator.submit(self._collate, reads)))
                    if len(window) >= in_flight:
                        yield window.popleft().result()
                while window:
                    yield window.popleft().result()
            finally:
                for pool in (readers, collator, encoders):
                    pool.shutdown(wait=False, cancel_futures=True)

    def _collate(self, reads: Sequence[tuple[int, Future[Any]]]) -> _Prepared:
        positions, items, failures = [], [], []
        for position, read in reads:
            try:
                items.append(read.result())
                positions.append(position)
            except SampleError as error:
                failures.append((position, error))
        batch = self.encoder.collate(items) if items else None
        return _Prepared(tuple(positions), batch, items, tuple(failures))

    def _encode(self, future: Future[_Prepared]) -> Encoded:
        started = time.perf_counter()
        prepared = future.result()
        ready = time.perf_counter()
        blocks = self._encode_or_split(prepared.batch, prepared.items) if prepared.positions else ()
        with self._lock:
            self.timings.waiting += (ready - started) / self.streams
            self.timings.encoding += (time.perf_counter() - ready) / self.streams
        return Encoded(prepared.positions, blocks, prepared.failures)

    def _encode_or_split(self, batch: Any, items: Sequence[Any]) -> tuple[levels.Block, ...]:
        """Encode a batch; if the device's memory is too small for it, encode its halves."""
        import torch

        try:
            with self.device:
                blocks = levels.encode(self.encoder, batch)
        except torch.OutOfMemoryError:
            if len(items) == 1:
                raise
        else:
            return blocks
        # Outside the handler, so that the exception no longer holds the failed attempt's tensors.
        torch.cuda.empty_cache()
        self.splits += 1
        half = len(items) // 2
        return levels.join_blocks(
            [self._encode_or_split(self.encoder.collate(part), part) for part in (items[:half], items[half:])]
        )


@contextmanager
def one_thread_each(streams: int) -> Iterator[None]:
    """Let every batch be computed with one thread if there are several streams."""
    import torch

    before = torch.get_num_threads()
    if streams > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
