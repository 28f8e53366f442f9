"""The store against a .npy memory map, in one process: ratios of CPU time, median of five rounds.

``python benchmarks/perf/bench_store.py [--rows 200000] [--dim 768] [--json]``

Every round runs the two sides of a row one after the other, so that both meet the same machine.
Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import zarr
from _race import Result, report

from featurestore.features import Features
from featurestore.maintenance import verify_store
from featurestore.shards import Rows, join
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore

ROUNDS = 5
COLD = "from the disk, in wall time: what else the machine and its disk do is in it"
BLOCK = 8192
GATHER = 10_000
MINIBATCH = 256
BAGS = 2000


def make_spec(dim: int, pooling: str = "native") -> EncoderSpec:
    return EncoderSpec(
        family="benchmark",
        modality="image",
        architecture={},
        weights="0" * 64,
        preprocess={},
        layer="last",
        pooling=pooling,
        precision="fp32",
        dtype="float16",
        dim=dim,
    )


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        work()
    return (time.process_time() - start) / repeats


def ratio(
    name: str, ours: Callable[[], object], theirs: Callable[[], object], limit: float, *, repeats: int = 1
) -> Result:
    """Time two callables round about and return the median ratio of ours to theirs."""
    ours(), theirs()
    ratios = [cpu_seconds(ours, repeats) / cpu_seconds(theirs, repeats) for _ in range(ROUNDS)]
    return Result(name, statistics.median(ratios), "x", limit)


def speedup(name: str, ours: Callable[[], object], theirs: Callable[[], object], limit: float) -> Result:
    """Return how many times faster ours is; theirs is so slow that three rounds will do."""
    ours(), theirs()
    ratios = [cpu_seconds(theirs, 1) / cpu_seconds(ours, 5) for _ in range(3)]
    return Result(name, statistics.median(ratios), "x faster", limit, at_least=True)


def seconds_cold(files: list[Path], work: Callable[[], object]) -> float:
    """Return the wall time of some work on files that are not in the page cache, and are not mapped."""
    gc.collect()
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cold(features: Features, path: Path, count: int) -> list[Result]:
    """Compare reading from the disk; both sides open their files anew each time."""
    arrays = [part.directory / "x" for part in features.parts]
    files = [file for array in arrays for file in array.rglob("*") if file.is_file()]
    picks = np.random.default_rng(6).permutation(count)[:1000]
    shape, dtype = (features.dim,), features.dtype

    def ours() -> Rows:
        return join([Rows.open(array) for array in arrays], shape, dtype)

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "cold full load": (lambda: ours().read(), lambda: np.array(np.load(path, mmap_mode="r"))),
        "cold gather 1k": (lambda: ours().take(picks), lambda: np.load(path, mmap_mode="r")[picks]),
    }
    results = []
    for name, (mine, theirs) in pairs.items():
        ratios = [seconds_cold(files, mine) / seconds_cold([path], theirs) for _ in range(ROUNDS)]
        results.append(Result(name, statistics.median(ratios), "x wall", 1.15, reason=COLD))
    return results


def memory(name: str, work: Callable[[], np.ndarray], limit: float) -> Result:
    """Return the peak of allocated memory in units of what is returned; mapped files are not counted."""
    work()
    tracemalloc.start()
    payload = work().nbytes
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return Result(name, peak / payload, "x payload", limit)


def random_rows(count: int, dim: int) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        yield rng.standard_normal((min(10_000, count - start), dim), dtype=np.float32).astype(np.float16)


def random_keys(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**63, (count, 2), dtype=np.uint64)


def fill(features: Features, count: int) -> tuple[Features, Result]:
    """Write all rows durably; generating them is not timed."""
    keys = random_keys(count, 1)
    spent, done = 0.0, 0
    with features.writer(written_by={"encoder": "benchmark"}, flush_seconds=1e9) as writer:
        for block in random_rows(count, features.dim):
            ids = [f"sample-{number:09d}" for number in range(done, done + len(block))]
            start = time.process_time()
            writer.add(keys[done : done + len(block)], block, ids)
            spent += time.process_time() - start
            done += len(block)
        start = time.process_time()
        writer.flush()
        spent += time.process_time() - start
    return features.refresh(), Result("durable write", count / spent / 1000, "k rows/s/core", 50, at_least=True)


def dense(store: FeatureStore, folder: Path, count: int, dim: int) -> list[Result]:
    features, write = fill(store.open(make_spec(dim), name="dense"), count)
    keys, x = features.load()
    path = folder / "x.npy"
    np.save(path, x)
    del x
    os.sync()  # a page that is not on the disk yet cannot be evicted
    features = store.find("dense")  # has nothing mapped yet, unlike the one just read
    chilled = cold(features, path, count)
    mapped = np.load(path, mmap_mode="r")
    rng = np.random.default_rng(2)
    rows = features.locate(keys)
    assert (rows == np.arange(count)).all()
    picks = rng.permutation(count)[: min(GATHER, count)]
    batches = [rng.permutation(count)[:MINIBATCH] for _ in range(50)]
    start = count // 3
    values = features._values
    assert (features.take(keys[picks]) == mapped[picks]).all()

    part = max(features.parts, key=lambda part: part.rows)
    foreign: Any = zarr.open_array(str(part.directory / "x"), mode="r")
    few = rng.permutation(part.rows)[: min(GATHER, part.rows)]
    small = few[:MINIBATCH]

    return [
        write,
        *chilled,
        ratio("full load", features.load, lambda: np.array(mapped), 1.25),
        ratio(
            "contiguous 8k slice",
            lambda: values.read(start, start + BLOCK),
            lambda: np.array(mapped[start : start + BLOCK]),
            1.15,
            repeats=10,
        ),
        ratio(
            "stream 64k blocks",
            lambda: stream(values.read, count),
            lambda: stream(lambda a, b: np.array(mapped[a:b]), count),
            1.15,
        ),
        ratio("gather 10k random rows", lambda: features.take_rows(picks), lambda: mapped[picks], 2.5, repeats=5),
        ratio("gather 10k random keys", lambda: features.take(keys[picks]), lambda: mapped[picks], 2.5, repeats=5),
        ratio(
            "256-row minibatch",
            lambda: [features.take_rows(b) for b in batches],
            lambda: [mapped[b] for b in batches],
            2.5,
        ),
        speedup("10k gather vs zarr-python", lambda: part.values.take(few), lambda: foreign.oindex[np.sort(few)], 40),
        speedup(
            "minibatch vs zarr-python", lambda: part.values.take(small), lambda: foreign.oindex[np.sort(small)], 400
        ),
        memory("memory of load", lambda: features.load()[1], 1.1),
        memory("memory of take 10k", lambda: features.take(keys[picks]), 1.5),
    ]


def stream(read: Callable[[int, int], np.ndarray], count: int) -> None:
    for start in range(0, count, 65_536):
        read(start, min(start + 65_536, count))


def ragged(store: FeatureStore, folder: Path) -> list[Result]:
    rng = np.random.default_rng(3)
    lengths = rng.integers(1, 425, BAGS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    keys = random_keys(BAGS, 4)
    features = store.open(make_spec(384, "tokens"), name="ragged", ragged=True)
    values = np.concatenate(list(random_rows(int(offsets[-1]), 384)))
    with features.writer(written_by={}) as writer:
        writer.add(keys, values, [str(number) for number in range(BAGS)], offsets=offsets)
    features = features.refresh()
    path = folder / "bags.npy"
    np.save(path, values)
    mapped = np.load(path, mmap_mode="r")
    chosen = rng.permutation(BAGS)[:256]

    def theirs() -> np.ndarray:
        return np.concatenate([mapped[offsets[bag] : offsets[bag + 1]] for bag in chosen])

    assert (features.take_bags(keys[chosen]).values == theirs()).all()
    return [ratio("ragged: 256 bags", lambda: features.take_bags(keys[chosen]), theirs, 1.4, repeats=3)]


def many_parts(store: FeatureStore, parts: int) -> list[Result]:
    features = store.open(make_spec(8), name="parts")
    keys, x = random_keys(parts * 4, 5), np.ones((4, 8), np.float16)
    with features.writer(written_by={}, durable=False) as writer:
        for number in range(parts):
            writer.add(keys[number * 4 : number * 4 + 4], x, ["a", "b", "c", "d"])
            writer.flush()

    def open_and_look() -> None:
        assert not len(store.find("parts").missing(keys[:1]))

    return [Result(f"open {parts} parts", cpu_seconds(open_and_look, 3), "s cpu", 1.5)]


def deep_verify(store: FeatureStore) -> Result:
    group = store.find("dense").group
    speeds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        report = verify_store(store, [group], deep=True)
        speeds.append(report.nbytes / 1e9 / (time.process_time() - start))
        assert report.ok
    return Result("deep verify", statistics.median(speeds), "GB/s/core", 2.0, at_least=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--parts", type=int, default=1526)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help="Where to write; a temporary folder by default.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        store = FeatureStore(folder / "store", create=True)
        results = dense(store, folder, options.rows, options.dim)
        results += [deep_verify(store), *ragged(store, folder), *many_parts(store, options.parts)]
    title = f"{options.rows} x {options.dim} float16, zarr {zarr.__version__}, numpy {np.__version__}"
    return report(title, {}, results, samples=options.rows, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
