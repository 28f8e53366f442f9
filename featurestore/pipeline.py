"""Reader, encoder and writer, overlapped: threads decode the next batches while the device encodes this one.

Memory is bounded by the batches in flight, never by the length of the manifest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import SampleError
from data.manifest import Source
from featurestore.encoder import Encoder

AHEAD = 3
"""Batches that are decoded ahead of the one being encoded."""


@dataclass
class Timings:
    """Where the wall time of a run went, in seconds.

    Attributes
    ----------
    waiting
        The encoder had nothing to do: reading was the bottleneck.
    encoding, writing
        The device worked; the store was written.
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
    """One encoded batch: positions in the manifest, their vectors, and what could not be decoded."""

    positions: tuple[int, ...]
    vectors: NDArray[np.float32]
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
    timings
        Filled while `run` is iterated.
    splits
        How many times a batch was split because the device ran out of memory.
    """

    encoder: Encoder
    workers: int
    timings: Timings = field(default_factory=Timings)
    splits: int = 0

    def run(self, batches: Iterable[Sequence[int]], source_of: Callable[[int], Source]) -> Iterator[Encoded]:
        """Yield the batches in order, encoded.

        Parameters
        ----------
        batches
            Positions of samples.
        source_of
            The content of the sample at a position.
        """
        for prepared in self._prepare(batches, source_of):
            started = time.perf_counter()
            vectors = self._encode(prepared)
            self.timings.encoding += time.perf_counter() - started
            yield Encoded(prepared.positions, vectors, prepared.failures)

    def _prepare(self, batches: Iterable[Sequence[int]], source_of: Callable[[int], Source]) -> Iterator[_Prepared]:
        """Decode `AHEAD` batches ahead; a second pool joins them, so that joining overlaps encoding too."""
        with (
            ThreadPoolExecutor(self.workers, thread_name_prefix="read") as readers,
            ThreadPoolExecutor(1, thread_name_prefix="collate") as collator,
        ):
            window: deque[Future[_Prepared]] = deque()
            try:
                for positions in batches:
                    reads = [(i, readers.submit(self.encoder.read, source_of(i))) for i in positions]
                    window.append(collator.submit(self._collate, reads))
                    if len(window) > AHEAD:
                        yield self._wait(window.popleft())
                while window:
                    yield self._wait(window.popleft())
            finally:
                readers.shutdown(wait=False, cancel_futures=True)
                collator.shutdown(wait=False, cancel_futures=True)

    def _wait(self, future: Future[_Prepared]) -> _Prepared:
        started = time.perf_counter()
        prepared = future.result()
        self.timings.waiting += time.perf_counter() - started
        return prepared

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

    def _encode(self, prepared: _Prepared) -> NDArray[np.float32]:
        if not prepared.positions:
            return np.empty((0, self.encoder.spec.dim), np.float32)
        return self._encode_or_split(prepared.batch, prepared.items)

    def _encode_or_split(self, batch: Any, items: Sequence[Any]) -> NDArray[np.float32]:
        """Encode a batch; if the device's memory is too small for it, encode its halves."""
        import torch

        try:
            vectors: NDArray[np.float32] = self.encoder.encode(batch).numpy()
        except torch.OutOfMemoryError:
            if len(items) == 1:
                raise
        else:
            return vectors
        # Outside the handler, so that the exception no longer holds the failed attempt's tensors.
        torch.cuda.empty_cache()
        self.splits += 1
        half = len(items) // 2
        return np.concatenate(
            [self._encode_or_split(self.encoder.collate(part), part) for part in (items[:half], items[half:])]
        )
