"""The writer: what it refuses, when it commits, and what a crash leaves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import SampleError
from featurestore import parts as parts_module
from featurestore.errors import FingerprintMismatch, StoreUnwritable
from featurestore.features import Features
from featurestore.parts import part_names
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore

ROOT = Path(__file__).parents[3]


def open_writer(features: Features, **options: Any) -> Any:
    return features.writer(**{"durable": False, "written_by": {"encoder": "toy", "device": "cpu"}, **options})


def test_a_part_says_what_made_it(features: Features, samples: Any) -> None:
    some = samples(0, 4)
    with open_writer(features, durable=True) as writer:
        writer.add(some.keys, some.x, some.ids)
        assert len(writer) == 4
        name = writer.flush()
        assert writer.flush() is None
    part = features.refresh().parts[0]
    assert writer.parts == [name] == [part.name]
    assert part.written_by == {"encoder": "toy", "device": "cpu"}
    assert part.created.endswith("+00:00")
    assert features.refresh().provenance == [{"encoder": "toy", "device": "cpu"}]


def test_order_of_adding_does_not_matter(features: Features, samples: Any) -> None:
    some = samples(0, 50)
    order = np.random.default_rng(0).permutation(50)
    with open_writer(features, flush_rows=17) as writer:
        for position in order:
            writer.add(some.keys[[position]], some.x[[position]], [some.ids[position]])
    features = features.refresh()
    assert len(features.parts) == 3
    np.testing.assert_array_equal(features.take(some.keys), some.x)
    assert features.ids(some.keys) == some.ids
    for part in features.parts:
        keys = part.keys.read()
        assert sorted(map(tuple, keys.tolist())) == list(map(tuple, keys.tolist()))


def test_the_first_of_equal_keys_wins(features: Features, samples: Any) -> None:
    some = samples(0, 2)
    with open_writer(features) as writer:
        writer.add(some.keys, some.x, some.ids)
        writer.add(some.keys, some.x + 1, ["later"] * 2)
        writer.flush()
        writer.add(some.keys, some.x + 2, ["latest"] * 2)
    features = features.refresh()
    assert len(features) == 2
    np.testing.assert_array_equal(features.take(some.keys), some.x)
    assert features.ids(some.keys) == some.ids


@pytest.mark.parametrize("limit", [{"flush_rows": 4}, {"flush_bytes": 4 * 6 * 4}, {"flush_seconds": 0.0}], ids=str)
def test_limits_commit_by_themselves(features: Features, samples: Any, limit: dict[str, float]) -> None:
    some = samples(0, 4)
    with open_writer(features, **limit) as writer:
        writer.add(some.keys, some.x, some.ids)
        assert len(features.refresh()) == 4


def test_an_exception_drops_what_is_not_committed(features: Features, samples: Any) -> None:
    some = samples(0, 4)

    def work() -> None:
        with open_writer(features) as writer:
            writer.add(some.keys[:2], some.x[:2], some.ids[:2])
            writer.flush()
            writer.add(some.keys[2:], some.x[2:], some.ids[2:])
            raise RuntimeError("encoder")

    with pytest.raises(RuntimeError, match="encoder"):
        work()
    assert features.refresh().contains(some.keys).tolist() == [True, True, False, False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(features: Features, samples: Any, value: float) -> None:
    some = samples(0, 4)
    some.x[2, 1] = value
    with open_writer(features) as writer:
        with pytest.raises(SampleError, match=r"of 1 samples: 'sample 2 é'") as caught:
            writer.add(some.keys, some.x, some.ids)
        assert len(writer) == 0
    assert caught.value.kind == "not_finite"


def test_float16_overflow_points_to_float32(
    store: FeatureStore, spec: Callable[..., EncoderSpec], samples: Any
) -> None:
    half = store.open(spec(dtype="float16"), name="half")
    some = samples(0, 4)
    some.x[1] = 65504
    with open_writer(half) as writer:
        writer.add(some.keys, some.x, some.ids)
        some.x[1] = 1e6
        with pytest.raises(SampleError, match=r"beyond 65504.*'sample 1 é'.*dtype float32"):
            writer.add(some.keys, some.x, some.ids)
    np.testing.assert_array_equal(half.refresh().take(some.keys[1:2]), [[65504.0] * 6])


def test_any_float_is_accepted_and_stored_as_the_spec_says(features: Features, samples: Any) -> None:
    some = samples(0, 6)
    with open_writer(features) as writer:
        writer.add(some.keys[:2], some.x[:2].astype(np.float64), some.ids[:2])
        writer.add(some.keys[2:4], some.x[2:4].astype(np.float16), some.ids[2:4])
    assert features.refresh().load()[1].dtype == np.float32


def test_shapes_must_agree(features: Features, samples: Any) -> None:
    some = samples(0, 4)
    writer = open_writer(features)
    with pytest.raises(FingerprintMismatch, match=r"shape \(n, 6\) belong here, not \(4, 5\)"):
        writer.add(some.keys, some.x[:, :5], some.ids)
    with pytest.raises(ValueError, match="counts must agree"):
        writer.add(some.keys, some.x, some.ids[:3])
    with pytest.raises(ValueError, match="offsets go with ragged"):
        writer.add(some.keys, some.x, some.ids, offsets=np.arange(5))


def test_a_full_disk_shows_nothing_half_written(
    features: Features, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = samples(0, 4)
    writer = open_writer(features)
    writer.add(some.keys, some.x, some.ids)
    whole = parts_module.write_array

    def full_at_ids(directory: Path, *arguments: Any, **options: Any) -> None:
        if directory.name == "id_bytes":
            raise OSError(errno.ENOSPC, "full", str(directory))
        whole(directory, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(parts_module, "write_array", full_at_ids)
        with pytest.raises(StoreUnwritable, match="No space left on device") as caught:
            writer.flush()
    assert "\n" not in str(caught.value)
    assert part_names(features.directory) == []
    assert writer.flush() is not None, "the samples stay buffered for another try"
    np.testing.assert_array_equal(features.refresh().take(some.keys), some.x)


def test_ragged_samples(store: FeatureStore, spec: Callable[..., EncoderSpec], samples: Any) -> None:
    bags = store.open(spec(pooling="tokens"), name="bags", ragged=True)
    some, rng = samples(0, 40), np.random.default_rng(0)
    lengths = rng.integers(0, 5, 40)
    values = rng.standard_normal((lengths.sum(), 6)).astype(np.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    with open_writer(bags) as writer:
        for start, stop in [(0, 15), (15, 40)]:
            rows = slice(offsets[start], offsets[stop])
            writer.add(
                some.keys[start:stop],
                values[rows],
                some.ids[start:stop],
                offsets=offsets[start : stop + 1] - offsets[start],
            )
            writer.flush()
        with pytest.raises(ValueError, match="offsets must ascend"):
            writer.add(some.keys[:1], values[:2], ["a"], offsets=np.array([0, 3]))
        with pytest.raises(ValueError, match="offsets go with ragged"):
            writer.add(some.keys[:1], values[:1], ["a"])
    bags = bags.refresh()
    order = rng.permutation(40)
    taken = bags.take_bags(some.keys[order])
    for place, number in enumerate(order):
        expected = values[offsets[number] : offsets[number + 1]]
        np.testing.assert_array_equal(taken.values[taken.offsets[place] : taken.offsets[place + 1]], expected)
    np.testing.assert_array_equal(bags.bag_lengths(some.keys), lengths)
    with pytest.raises(ValueError, match="take_bags"):
        bags.take(some.keys)


TOGETHER = """
import sys
from pathlib import Path
import numpy as np
from data.digest import as_keys, content_key
from featurestore.maintenance import compact
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore

path, rank, spec = Path(sys.argv[1]), int(sys.argv[2]), eval(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
features = FeatureStore(path, create=True).open(spec, name=f"rank {rank}")
for batch in range(6):
    numbers = range(rank * 500 + batch * 100, rank * 500 + batch * 100 + 150)
    keys = as_keys(content_key(str(n).encode()) for n in numbers)
    x = np.repeat(np.array(numbers, np.float32)[:, None], features.dim, axis=1)
    with features.writer(written_by={"rank": rank}, durable=False) as writer:
        writer.add(keys, x, [str(n) for n in numbers])
    if batch % 3 == 2:
        compact(features, durable=False)
    now = features.refresh()
    keys, x = now.load()
    assert [str(int(value)) for value in x[:, 0]] == now.ids(keys), "a snapshot is consistent"
"""


def test_processes_make_fill_and_compact_one_store_at_once(tmp_path: Path, spec: Callable[..., EncoderSpec]) -> None:
    from data.digest import as_keys, content_key

    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
    arguments = [sys.executable, "-c", TOGETHER, str(tmp_path / "store")]
    processes = [subprocess.Popen([*arguments, str(rank), repr(spec())], **pipes) for rank in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [(process.communicate()[0], process.returncode) for process in processes] == [("", 0)] * 3
    (features,) = FeatureStore(tmp_path / "store").features()
    assert sorted(features.names) == ["rank 0", "rank 1", "rank 2"]
    numbers = range(1650)
    taken = features.take(as_keys(content_key(str(number).encode()) for number in numbers))
    np.testing.assert_array_equal(taken[:, 0], np.array(numbers, np.float32))
    assert len(features) == len(numbers)


KILLED = """
import sys
from pathlib import Path
import numpy as np
from data.digest import as_keys, content_key
from featurestore.store import FeatureStore

features = FeatureStore(Path(sys.argv[1])).features()[0]
print("ready", flush=True)
for batch in range(1000):
    numbers = range(batch * 50, batch * 50 + 50)
    keys = as_keys(content_key(str(n).encode()) for n in numbers)
    x = np.repeat(np.array(numbers, np.float32)[:, None], features.dim, axis=1)
    with features.writer(written_by={}, durable=False) as writer:
        writer.add(keys, x, [str(n) for n in numbers])
    print(batch, flush=True)
"""


def test_kill_at_any_moment_loses_no_acknowledged_row(tmp_path: Path, spec: Callable[..., EncoderSpec]) -> None:
    """Ten processes are killed with SIGKILL at random moments of their writing."""
    from data.digest import as_keys, content_key

    rng = np.random.default_rng(0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = []
    for trial in range(10):
        store = FeatureStore(tmp_path / str(trial), create=True)
        store.open(spec(), name="toy")
        command = [sys.executable, "-c", KILLED, str(store.path)]
        running.append((store, subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)))
        if len(running) % 2 == 0:
            for store, process in running[-2:]:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                time.sleep(rng.uniform(0.02, 0.5))
                process.send_signal(signal.SIGKILL)
                acknowledged = len(process.stdout.read().splitlines())
                process.wait()
                process.stdout.close()
                features = store.features()[0]
                assert acknowledged * 50 <= len(features) <= (acknowledged + 1) * 50
                numbers = range(acknowledged * 50)
                keys = as_keys(content_key(str(number).encode()) for number in numbers)
                np.testing.assert_array_equal(features.take(keys)[:, 0], np.array(numbers, np.float32))
                with open_writer(features) as writer:
                    writer.add(as_keys([content_key(b"resumed")]), np.ones((1, features.dim)), ["resumed"])
                assert len(features.refresh()) == len(features) + 1
