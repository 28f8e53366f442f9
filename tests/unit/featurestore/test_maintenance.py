"""Verify names every damaged file; gc deletes only what is dead; compact changes nothing one can read."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from data.progress import Silent
from featurestore import maintenance
from featurestore.errors import StoreUnwritable
from featurestore.features import Features
from featurestore.layout import read_group, write_group
from featurestore.maintenance import compact, gc, verify_store
from featurestore.parts import part_names, remove_part
from featurestore.store import FeatureStore

Add = Callable[..., Features]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def age(directory: Path, hours: float) -> None:
    for path in (directory, *directory.rglob("*")):
        os.utime(path, (time.time() - hours * 3600,) * 2)


# Verify -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_store_has_no_problems(store: FeatureStore, add: Add, deep: bool) -> None:
    add(0, 20)
    add(20, 25)
    report = verify_store(store, deep=deep)
    assert report.ok
    assert (report.groups, report.parts, report.samples, report.deep) == (1, 2, 25, deep)
    assert report.nbytes > 25 * 6 * 4
    assert "25 samples in 2 parts of 1 feature sets" in report.explain()
    assert report.explain().endswith("nothing is wrong")
    assert report.to_dict()["ok"] is True


@pytest.mark.parametrize(
    ("damage", "shallow"),
    [
        (lambda f: f.write_bytes(b""), True),
        (lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]), True),
        (lambda f: f.unlink(), True),
        (lambda f: flip(f, 5), False),
        (lambda f: flip(f, -2), False),
        (lambda f: f.write_bytes(bytes(32) + f.read_bytes()[32:]), False),
    ],
    ids=["empty", "truncated", "missing", "bit", "index checksum", "zeroed"],
)
@pytest.mark.parametrize("array", ["key", "x", "id_bytes", "id_offsets"])
def test_every_kind_of_damage_is_found(
    store: FeatureStore, add: Add, damage: Callable[[Path], None], shallow: bool, array: str
) -> None:
    features = add(0, 20)
    shard = next(path for path in (features.parts[0].directory / array / "c").rglob("*") if path.is_file())
    damage(shard)
    if shallow or array in ("x", "id_bytes"):
        assert verify_store(store).ok is not shallow
    report = verify_store(store, deep=True)
    assert len(report.problems) == 1
    assert report.problems[0].startswith(str(shard))
    assert report.damaged == (features.parts[0].directory,)
    assert f"delete {features.parts[0].directory} and extract again" in report.explain()


def test_all_damaged_files_are_listed(store: FeatureStore, add: Add) -> None:
    add(0, 20)
    add(20, 40)
    features = add(40, 60)
    files = [features.parts[0].directory / "x/c/0/0", features.parts[2].directory / "id_offsets/c/0"]
    for file in files:
        file.unlink()
    (features.parts[1].directory / "zarr.json").write_text("{")
    report = verify_store(store)
    assert [problem.split(": ")[0] for problem in report.problems] == [
        str(features.parts[1].directory / "zarr.json"),
        *map(str, files),
    ]
    assert len(report.damaged) == 3
    for directory in report.damaged:
        remove_part(directory)
    assert verify_store(store, deep=True).ok
    assert len(Features(features.directory, features.info)) == 0


def test_a_part_without_its_zarr_json_is_reported(store: FeatureStore, add: Add) -> None:
    add(0, 20)
    features = add(20, 40)
    lost = features.parts[0].directory
    (lost / "zarr.json").unlink()
    (features.directory / f"{0:016x}-00000000").mkdir()  # a writer's first instant: nothing is lost
    report = verify_store(store)
    assert report.damaged == (lost,)
    assert [problem.split(": ")[0] for problem in report.problems] == [str(lost)]
    assert "a part without zarr.json, so none of its samples count" in report.explain()
    remove_part(lost)
    assert verify_store(store).ok


def test_not_finite_values_are_found(store: FeatureStore, spec: Any, samples: Any) -> None:
    for dtype, bad in [("float16", np.inf), ("float16", -np.inf), ("float16", np.nan), ("float32", np.nan)]:
        features = store.open(spec(dtype=dtype, layer=str(bad)), name="toy")
        some = samples(0, 20)
        with features.writer(durable=False, written_by={}) as writer:
            writer.add(some.keys, some.x, some.ids)
        part = features.refresh().parts[0].directory
        assert verify_store(store, [features.group], deep=True).ok
        zarr.open_array(str(part / "x"), mode="r+")[3, 2] = bad
        report = verify_store(store, [features.group], deep=True)
        assert [problem.split(": ")[1] for problem in report.problems] == ["NaN or infinite embeddings in chunk 0"]


def test_keys_out_of_order_are_found(store: FeatureStore, add: Add) -> None:
    part = add(0, 20).parts[0].directory
    array = zarr.open_array(str(part / "key"), mode="r+")
    array[:2] = array[:2][::-1]
    assert "keys do not ascend" in verify_store(store).problems[0]


def test_a_damaged_group_is_reported_with_its_parts(store: FeatureStore, add: Add) -> None:
    features = add(0, 20)
    write_group(features.directory, {**(read_group(features.directory) or {}), "fingerprint": "0" * 64})
    (features.parts[0].directory / "x/c/0/0").unlink()
    report = verify_store(store)
    assert len(report.problems) == 2
    assert "does not have the fingerprint" in report.problems[0]


def test_foreign_layouts_are_verified_too(store: FeatureStore, add: Add) -> None:
    features = add(0, 20)
    _, x = features.load()
    directory = features.parts[0].directory
    array = zarr.create_array(str(directory), name="x", data=x, chunks=(8, 6), overwrite=True)
    assert verify_store(store, deep=True).ok
    np.testing.assert_array_equal(Features(features.directory, features.info).load()[1], x)
    array[3] = np.nan
    assert "NaN or infinite" in verify_store(store, deep=True).problems[0]
    next(path for path in (directory / "x/c").rglob("*") if path.is_file()).write_bytes(b"short")
    assert verify_store(store, deep=True).problems[0].startswith(str(directory / "x"))


def test_progress_counts_parts(store: FeatureStore, add: Add) -> None:
    add(0, 5)
    add(5, 9)
    seen: list[object] = []

    class Recorder(Silent):
        def stage(self, name: str, total: int) -> None:
            seen.append((name, total))

        def advance(self, steps: int = 1) -> None:
            seen.append(steps)

    verify_store(store, progress=Recorder())
    assert seen == [(f"verifying {store.groups()[0]}", 2), 1, 1]


def test_the_checksum_library_is_compiled() -> None:
    assert google_crc32c.implementation == "c", "deep verify would take minutes in pure Python"


# Compact ------------------------------------------------------------------------------------------


def test_compaction_changes_nothing_one_can_read(store: FeatureStore, add: Add, samples: Any) -> None:
    for start in range(0, 100, 10):
        features = add(start, start + 15)
    some = samples(0, 105)
    order = np.random.default_rng(0).permutation(105)
    result = compact(features, durable=False)
    after = features.refresh()
    assert (len(result.merged), len(result.parts), result.samples) == (10, 1, 105)
    assert [part.name for part in after.parts] == list(result.parts)
    np.testing.assert_array_equal(after.take(some.keys[order]), some.x[order])
    assert after.ids(some.keys[order]) == [some.ids[i] for i in order]
    assert after.provenance == [{"encoder": "toy"}]
    assert after.snapshot != features.snapshot
    assert verify_store(store, deep=True).ok
    assert compact(after).merged == ()
    assert compact(after).explain().endswith("nothing to merge")
    np.testing.assert_array_equal(features.take(some.keys), some.x, err_msg="an old snapshot reads on")


def test_compaction_is_bounded_by_key_ranges(add: Add, samples: Any) -> None:
    for start in range(0, 130, 10):
        features = add(start, start + 10)
    result = compact(features, part_rows=40, durable=False)
    after = features.refresh()
    assert [part.rows for part in after.parts] == [40, 40, 40, 10]
    assert sorted(result.parts) == [part.name for part in after.parts]
    ordered = sorted((part.keys.read() for part in after.parts), key=lambda keys: tuple(keys[0]))
    np.testing.assert_array_equal(np.concatenate(ordered), after.keys())
    assert compact(after, part_rows=40).merged == ()
    assert compact(after, part_bytes=130 * 24, durable=False).parts != ()
    np.testing.assert_array_equal(features.refresh().take(samples(0, 130).keys), samples(0, 130).x)


def test_the_first_part_still_wins_after_compaction(features: Features, samples: Any) -> None:
    some = samples(0, 10)
    for shift in (0, 1, 2):
        with features.writer(durable=False, written_by={"run": shift}) as writer:
            writer.add(some.keys, some.x + shift, some.ids)
        if shift:
            compact(features, durable=False)
    features = features.refresh()
    np.testing.assert_array_equal(features.take(some.keys), some.x)
    assert len(features.parts) == 1
    assert [made["run"] for made in features.provenance] == [0, 1, 2]


def test_a_compaction_that_dies_half_way_loses_nothing(
    store: FeatureStore, add: Add, samples: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for start in range(0, 60, 10):
        features = add(start, start + 10)
    copy, calls = maintenance._copy, []

    def die_on_third(*arguments: Any, **options: Any) -> str:
        calls.append(1)
        if len(calls) == 3:
            raise StoreUnwritable("disk full")
        return copy(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(maintenance, "_copy", die_on_third)
        with pytest.raises(StoreUnwritable):
            compact(features, part_rows=15, durable=False)
    some = samples(0, 60)
    assert len(features.refresh().parts) == 8
    np.testing.assert_array_equal(features.refresh().take(some.keys), some.x)
    compact(features, part_rows=15, durable=False)
    gc(store, older_than_hours=0)
    assert len(part_names(features.directory)) == 4
    np.testing.assert_array_equal(Features(features.directory, features.info).take(some.keys), some.x)


def test_ragged_features_compact(store: FeatureStore, spec: Any, samples: Any) -> None:
    bags = store.open(spec(pooling="tokens"), name="bags", ragged=True)
    some = samples(0, 20)
    for start in range(0, 20, 4):
        with bags.writer(durable=False, written_by={}) as writer:
            for i in range(start, start + 4):
                writer.add(some.keys[[i]], np.repeat(some.x[[i]], i, axis=0), [some.ids[i]], offsets=np.array([0, i]))
    bags = bags.refresh()
    compact(bags, part_rows=6, durable=False)
    after = bags.refresh()
    assert len(after.parts) == 4
    np.testing.assert_array_equal(after.bag_lengths(some.keys), np.arange(20))
    np.testing.assert_array_equal(after.take_bags(some.keys).values, bags.take_bags(some.keys).values)
    assert verify_store(store, deep=True).ok


def test_compaction_needs_the_memory_of_one_part(store: FeatureStore, spec: Any) -> None:
    wide = store.open(spec(dim=1024), name="wide")
    rng = np.random.default_rng(0)
    with wide.writer(durable=False, written_by={}) as writer:
        for _ in range(20):
            keys = rng.integers(0, 2**63, (200, 2), dtype=np.uint64)
            writer.add(keys, rng.standard_normal((200, 1024)), ["x"] * 200)
            writer.flush()
    assert wide.refresh().nbytes == 16_384_000
    tracemalloc.start()
    result = compact(wide, part_bytes=2 << 20, durable=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(result.parts) == 8
    assert peak < 8 << 20


def test_an_empty_group_compacts_to_nothing(features: Features) -> None:
    assert compact(features).parts == ()


# Garbage ------------------------------------------------------------------------------------------


def test_gc_deletes_replaced_parts_after_a_day(store: FeatureStore, add: Add, samples: Any) -> None:
    add(0, 10)
    features = add(10, 20)
    compact(features, durable=False)
    assert gc(store).paths == ()
    assert gc(store).explain() == "nothing to delete"
    age(features.directory, 25)
    planned = gc(store, dry_run=True)
    assert {path.name for path in planned.paths} == {part.name for part in features.parts}
    assert planned.nbytes > 0
    assert "to delete: 2 leftovers" in planned.explain()
    assert len(part_names(features.directory)) == 3
    done = gc(store)
    assert done.paths == planned.paths
    assert done.to_dict()["deleted"] is True
    assert "deleted: 2 leftovers" in done.explain()
    assert len(part_names(features.directory)) == 1
    np.testing.assert_array_equal(features.refresh().take(samples(0, 20).keys), samples(0, 20).x)


def test_gc_deletes_what_was_never_committed(store: FeatureStore, add: Add) -> None:
    features = add(0, 10)
    part = features.parts[0].directory
    unfinished = part.with_name("0" * 16 + "-" + "0" * 8)
    unfinished.mkdir()
    write_group(unfinished, {}, durable=False)
    leftovers = [features.directory / "zarr.json.ab12.partial", features.directory / ".probe-ab12"]
    leftovers[0].write_text("x")
    leftovers[1].mkdir()
    assert gc(store).paths == (), "another process may be at work"
    age(features.directory, 30)
    os.utime(unfinished / "zarr.json")
    assert set(gc(store, dry_run=True).paths) == set(leftovers)
    assert set(gc(store, older_than_hours=0).paths) == {unfinished, *leftovers}
    assert sorted(path.name for path in features.directory.iterdir()) == [part.name, "zarr.json"]


def test_old_compactions_stay_dead_when_gc_is_cut_off(store: FeatureStore, add: Add, features: Features) -> None:
    add(0, 10)
    add(10, 20)
    compact(features, durable=False)
    add(20, 30)
    compact(features, durable=False)
    garbage = gc(store, older_than_hours=0, dry_run=True).paths
    assert len(garbage) == 4
    live = [part.name for part in features.refresh().parts]
    for path in garbage[::-1]:
        remove_part(path)
        assert [part.name for part in Features(features.directory, features.info).parts] == live
