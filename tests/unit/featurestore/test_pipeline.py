from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from data.errors import SampleError
from data.manifest import Source
from featurestore.pipeline import AHEAD, Pipeline


class Fake:
    """Encodes a text as its number; `limit` is the largest batch the device can take."""

    def __init__(self, limit: int = 1000, seconds: float = 0.0) -> None:
        self.limit = limit
        self.seconds = seconds
        self.sizes: list[int] = []
        self.reading = 0
        self.most_ahead = 0
        self._lock = threading.Lock()
        self.spec = type("Spec", (), {"dim": 1})()

    def read(self, source: Source) -> int:
        with self._lock:
            self.reading += 1
            self.most_ahead = max(self.most_ahead, self.reading - sum(self.sizes))
        assert source.text is not None
        if source.text == "bad":
            raise SampleError("unreadable", "a bad sample")
        return int(source.text)

    def collate(self, items: list[int]) -> torch.Tensor:
        return torch.tensor(items, dtype=torch.float32)[:, None]

    def encode(self, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > self.limit:
            raise torch.OutOfMemoryError("out of memory")
        time.sleep(self.seconds)
        self.sizes.append(len(batch))
        return batch


def run(fake: Fake, texts: list[str], size: int) -> list:
    batches = [list(range(start, min(start + size, len(texts)))) for start in range(0, len(texts), size)]
    pipeline = Pipeline(fake, workers=3)
    return list(pipeline.run(batches, lambda i: Source("text", text=texts[i])))


def test_batches_come_back_in_order_with_their_positions() -> None:
    results = run(Fake(), [str(n) for n in range(10)], size=4)
    assert [result.positions for result in results] == [(0, 1, 2, 3), (4, 5, 6, 7), (8, 9)]
    assert np.concatenate([result.blocks[0] for result in results])[:, 0].tolist() == list(range(10))


def test_what_cannot_be_decoded_is_reported_and_the_rest_goes_on() -> None:
    (result,) = run(Fake(), ["1", "bad", "3"], size=3)
    assert result.positions == (0, 2)
    assert [(position, error.kind) for position, error in result.failures] == [(1, "unreadable")]


def test_a_batch_of_failures_only_encodes_nothing() -> None:
    fake = Fake()
    (result,) = run(fake, ["bad", "bad"], size=2)
    assert (result.positions, result.blocks) == ((), ())
    assert not fake.sizes


def test_a_batch_that_does_not_fit_is_split_until_it_does() -> None:
    fake = Fake(limit=3)
    pipeline = Pipeline(fake, workers=2)
    (result,) = list(pipeline.run([list(range(8))], lambda i: Source("text", text=str(i))))
    assert result.blocks[0][:, 0].tolist() == list(range(8))
    assert fake.sizes == [2, 2, 2, 2]
    assert pipeline.splits == 3


def test_one_sample_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        run(Fake(limit=0), ["1"], size=1)


def test_reading_ahead_is_bounded() -> None:
    fake = Fake(seconds=0.01)
    run(fake, [str(n) for n in range(100)], size=2)
    assert fake.most_ahead <= (AHEAD + 2) * 2


def test_timings_name_the_bottleneck() -> None:
    fake = Fake(seconds=0.02)
    pipeline = Pipeline(fake, workers=2)
    list(pipeline.run([[0], [1], [2]], lambda i: Source("text", text=str(i))))
    assert pipeline.timings.bottleneck == "encoding"
    assert pipeline.timings.encoding >= 0.06


def test_several_streams_encode_at_once_each_with_one_thread_and_keep_the_order() -> None:
    fake = Fake()
    together = threading.Barrier(2, timeout=10)
    threads = set()

    def encode(batch: torch.Tensor) -> torch.Tensor:
        together.wait()
        threads.add(torch.get_num_threads())
        return batch

    fake.encode = encode  # type: ignore[method-assign]
    before = torch.get_num_threads()
    pipeline = Pipeline(fake, workers=2, streams=2)
    results = list(pipeline.run([[0, 1], [2], [3], [4]], lambda i: Source("text", text=str(i))))
    assert [result.blocks[0][:, 0].tolist() for result in results] == [[0, 1], [2], [3], [4]]
    assert threads == {1}
    assert torch.get_num_threads() == before


def test_whoever_holds_the_device_of_a_single_stream_keeps_it_from_encoding() -> None:
    fake = Fake()
    pipeline = Pipeline(fake, workers=2)
    results = pipeline.run([[0], [1]], lambda i: Source("text", text=str(i)))
    with pipeline.device:
        waiter = threading.Thread(target=lambda: next(results))
        waiter.start()
        waiter.join(0.1)
        assert waiter.is_alive()
        assert not fake.sizes
    waiter.join(10)
    assert fake.sizes


def test_an_error_of_the_encoder_ends_the_run_and_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    pipeline = Pipeline(Fake(limit=0), workers=2, streams=2)
    with pytest.raises(torch.OutOfMemoryError):
        list(pipeline.run([[0], [1], [2]], lambda i: Source("text", text=str(i))))
    assert torch.get_num_threads() == before
