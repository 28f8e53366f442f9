"""Reading: keys, order, snapshots, streams, the probe, and damage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from featurestore import shards
from featurestore.errors import FeaturesMissing, FingerprintMismatch, StoreCorrupt
from featurestore.features import Features
from featurestore.layout import write_group
from featurestore.parts import write_part
from featurestore.store import FeatureStore

Add = Callable[..., Features]


def test_identity(store: FeatureStore, features: Features, spec: Any) -> None:
    assert features.spec == spec()
    assert features.fingerprint == spec().fingerprint
    assert features.group == f"toy-{spec().fingerprint[:12]}"
    assert (features.names, features.keyed_by, features.dim, features.dtype) == (("toy",), "content", 6, np.float32)
    assert store.group_directory(features.group) == features.directory


def test_an_empty_group_reads_as_empty(features: Features, samples: Any) -> None:
    keys = samples(0, 3).keys
    assert len(features) == 0
    assert features.nbytes == 0
    assert features.missing(keys).tolist() == [0, 1, 2]
    assert [array.shape for array in features.load()] == [(0, 2), (0, 6)]
    assert features.take(keys[:0]).shape == (0, 6)
    assert list(features.batches(4, seed=0)) == []


def test_take_is_in_the_order_of_the_keys(add: Add, samples: Any) -> None:
    add(0, 30)
    features = add(30, 70)
    some = samples(0, 70)
    order = np.random.default_rng(0).integers(0, 70, 200)
    np.testing.assert_array_equal(features.take(some.keys[order]), some.x[order])
    assert features.ids(some.keys[order]) == [some.ids[i] for i in order]


def test_what_is_missing_never_reads_as_zero(add: Add, samples: Any) -> None:
    features = add(0, 5)
    some = samples(0, 8)
    assert features.contains(some.keys).tolist() == [True] * 5 + [False] * 3
    assert features.missing(some.keys).tolist() == [5, 6, 7]
    with pytest.raises(FeaturesMissing, match=r"3 of 8 samples are not in the store.*frostline extract"):
        features.take(some.keys)
    with pytest.raises(FeaturesMissing):
        features.ids(some.keys)


def test_a_snapshot_does_not_move(add: Add, samples: Any) -> None:
    before = add(0, 5)
    snapshot = before.snapshot
    after = add(5, 9)
    assert (len(before), len(after)) == (5, 9)
    assert before.snapshot == snapshot != after.snapshot
    assert before.missing(samples(0, 9).keys).tolist() == [5, 6, 7, 8]
    assert before.refresh().snapshot == after.snapshot


def test_load_has_every_sample_once(add: Add, samples: Any) -> None:
    add(0, 20)
    features = add(10, 40)
    keys, x = features.load()
    assert len(keys) == len(features) == 40
    np.testing.assert_array_equal(features.take(keys), x)
    np.testing.assert_array_equal(features.take(samples(0, 40).keys), samples(0, 40).x)
    assert features.nbytes == 50 * 6 * 4


@pytest.mark.parametrize("seed", [None, 0])
def test_batches_stream_every_sample_once(add: Add, seed: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featurestore.features._SHUFFLE_BLOCK", 8)
    add(0, 150)
    features = add(140, 301)
    batches = list(features.batches(32, seed=seed))
    assert [len(keys) for keys, _ in batches] == [32] * 9 + [13]
    keys = np.concatenate([keys for keys, _ in batches])
    np.testing.assert_array_equal(np.concatenate([x for _, x in batches]), features.take(keys))
    assert features.locate(keys).tolist() != sorted(features.locate(keys)) if seed == 0 else True
    assert sorted(map(tuple, keys.tolist())) == list(map(tuple, features.keys().tolist()))
    again = np.concatenate([keys for keys, _ in features.batches(32, seed=seed)])
    np.testing.assert_array_equal(keys, again)


def test_keys_that_share_their_first_half_are_told_apart(features: Features) -> None:
    keys = np.array([[7, low] for low in range(40)] + [[8, 0], [9, 5]], np.uint64)
    x = np.arange(42, dtype=np.float32)[:, None].repeat(6, axis=1)
    with features.writer(durable=False, written_by={}, flush_rows=10) as writer:
        for start in range(0, 42, 10):
            writer.add(keys[start : start + 10], x[start : start + 10], ["id"] * len(keys[start : start + 10]))
    features = features.refresh()
    order = np.random.default_rng(0).permutation(42)
    np.testing.assert_array_equal(features.take(keys[order]), x[order])
    assert features.contains(np.array([[7, 41], [8, 1], [9, 4], [10, 0], [0, 0]], np.uint64)).tolist() == [False] * 5


def test_reading_across_many_shards(add: Add, samples: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "CHUNK_BYTES", 96)
    monkeypatch.setattr(shards, "SHARD_BYTES", 192)
    features = add(0, 100)
    assert len(features.parts[0].values.pieces) > 5
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(features.take(samples(0, 100).keys[order]), samples(0, 100).x[order])


def test_the_probe_guards_against_drift(features: Features) -> None:
    probe = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    assert features.probe is None
    with pytest.raises(FingerprintMismatch, match="none is stored"):
        features.check_probe(probe)
    assert features.set_probe(probe)
    assert not features.set_probe(probe + 1), "the first probe stays"
    np.testing.assert_array_equal(features.probe, probe)
    assert features.check_probe(probe * 3) == pytest.approx(1)
    assert features.check_probe(-probe) == pytest.approx(-1)
    turned = probe.copy()
    turned[2] = -turned[2]
    assert features.check_probe(turned) == pytest.approx(-1), "one bad row shows"
    with pytest.raises(FingerprintMismatch, match=r"\(3, 6\) was expected"):
        features.check_probe(probe[:3])
    assert sorted(path.name for path in features.directory.iterdir()) == ["probe", "zarr.json"]


@pytest.mark.parametrize("array", ["key", "x", "id_offsets", "id_bytes"])
def test_a_lost_file_is_an_error_that_names_it(add: Add, array: str) -> None:
    features = add(0, 5)
    lost = next((features.parts[0].directory / array / "c").rglob("0"))
    lost = lost / "0" if lost.is_dir() else lost
    lost.unlink()
    fresh = Features(features.directory, features.info)
    with pytest.raises(StoreCorrupt, match="missing") as caught:
        fresh.ids(fresh.load()[0])
    assert str(lost) in str(caught.value)


def test_a_part_of_another_shape_is_refused(add: Add, samples: Any) -> None:
    features = add(0, 5)
    some = samples(5, 6)
    write_part(
        features.directory,
        keys=some.keys,
        values=lambda a, b: np.zeros((b - a, 7), np.float32),
        shape=(1, 7),
        dtype=np.dtype(np.float32),
        ids=some.ids,
        written_by={},
        durable=False,
    )
    with pytest.raises(StoreCorrupt, match=r"rows of \(7,\) float32 where \(6,\) float32 belong"):
        features.refresh().load()


def test_offsets_belong_to_ragged_groups_only(add: Add) -> None:
    features = add(0, 5)
    write_group(features.parts[0].directory / "offsets", {})
    fresh = Features(features.directory, features.info)
    with pytest.raises(StoreCorrupt, match="offsets should not be here"):
        fresh.load()
    with pytest.raises(ValueError, match="are read with `take`"):
        features.take_bags(features.keys())
