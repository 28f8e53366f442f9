"""Arrays on disk: what zarr-python wrote is what the memory map reads, and damage is named."""

from __future__ import annotations

import gc
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from featurestore import shards
from featurestore.errors import StoreCorrupt
from featurestore.layout import write_group
from featurestore.shards import Layout, Rows, join, write_array

SHAPES = [
    ((1000, 16), "f2"),
    ((5, 3), "f4"),
    ((1, 1), "f2"),
    ((0, 4), "f2"),
    ((77,), "i8"),
    ((4099,), "u1"),
    ((33, 2), "u8"),
]


@pytest.fixture(params=[(1 << 20, 128 << 20), (512, 2048)], ids=["one-shard", "many-shards"])
def grid(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    chunk, shard = request.param
    monkeypatch.setattr(shards, "CHUNK_BYTES", chunk)
    monkeypatch.setattr(shards, "SHARD_BYTES", shard)


def write(directory: Path, values: np.ndarray) -> Path:
    write_group(directory.parent, {}, durable=False)
    write_array(directory, values.shape, values.dtype, lambda a, b: values[a:b], dimension="sample")
    return directory


def random(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.standard_normal(shape) * 100).astype(dtype) if dtype[0] == "f" else rng.integers(0, 99, shape, dtype)


@pytest.mark.usefixtures("grid")
@pytest.mark.parametrize(("shape", "dtype"), SHAPES)
def test_every_way_of_reading_agrees_with_zarr(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    values = random(shape, dtype)
    rows = Rows.open(write(tmp_path / "a", values))
    assert Layout.read(tmp_path / "a").linear
    assert len(rows) == len(values)
    assert rows.nbytes == values.nbytes
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a"), mode="r")[...], values)
    np.testing.assert_array_equal(rows.read(), values)
    for start, stop in [(0, 0), (0, 1), (3, 29), (len(values) - 1, len(values))]:
        if 0 <= start <= stop <= len(values):
            np.testing.assert_array_equal(rows.read(start, stop), values[start:stop])
    picked = np.random.default_rng(1).integers(0, max(1, len(values)), 300 if len(values) else 0)
    np.testing.assert_array_equal(rows.take(picked), values[picked])


@pytest.mark.usefixtures("grid")
def test_all_nan_rows_keep_the_shard_linear(tmp_path: Path) -> None:
    values = np.full((300, 4), np.nan, np.float32)
    rows = Rows.open(write(tmp_path / "a", values))
    assert np.isnan(rows.read()).all()


def test_joined_arrays_are_numbered_through(tmp_path: Path) -> None:
    values = random((50, 3), "f4")
    arrays = [
        Rows.open(write(tmp_path / str(i), values[a:b])) for i, (a, b) in enumerate([(0, 20), (20, 20), (20, 50)])
    ]
    joined = join(arrays, (3,), np.dtype("f4"))
    np.testing.assert_array_equal(joined.read(15, 33), values[15:33])
    picked = np.array([49, 0, 20, 19, 0])
    np.testing.assert_array_equal(joined.take(picked), values[picked])


def test_rows_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    values = random((20, 3), "f4")
    arrays = [Rows.open(write(tmp_path / name, values)) for name in "ab"]
    for rows in (arrays[0], join(arrays, (3,), values.dtype)):
        for wrong in (-1, len(rows)):
            with pytest.raises(IndexError, match=f"0 to {len(rows) - 1} exist"):
                rows.take(np.array([0, wrong]))


def test_what_was_read_outlives_the_files_and_the_maps(tmp_path: Path) -> None:
    values = random((300, 8), "f4")
    arrays = [Rows.open(write(tmp_path / name, values)) for name in "ab"]
    joined = join(arrays, (8,), values.dtype)
    picked = np.arange(600)[::-1]
    joined.take(picked[:1])
    shutil.rmtree(tmp_path / "a")
    del arrays
    taken = joined.take(picked)
    del joined
    gc.collect()
    np.testing.assert_array_equal(taken, np.concatenate([values, values])[::-1])


@pytest.mark.parametrize(
    "settings",
    [
        {"chunks": (8, 3), "compressors": None},
        {"chunks": (8, 2), "shards": (16, 4)},
        {"chunks": (8, 3), "shards": (16, 3), "compressors": [zarr.codecs.ZstdCodec()]},
    ],
    ids=["unsharded", "split-columns", "compressed"],
)
def test_other_layouts_are_read_through_zarr(tmp_path: Path, settings: dict[str, object]) -> None:
    values = random((50, 3), "f4")
    write_group(tmp_path, {}, durable=False)
    array = zarr.create_array(store=str(tmp_path), name="a", shape=values.shape, dtype="f4", **settings)  # type: ignore[arg-type]
    array[:] = values
    rows = Rows.open(tmp_path / "a")
    assert not Layout.read(tmp_path / "a").linear
    np.testing.assert_array_equal(rows.read(5, 31), values[5:31])
    np.testing.assert_array_equal(rows.take(np.array([49, 3])), values[[49, 3]])
    np.testing.assert_array_equal(join([rows, rows], (3,), rows.dtype).take(np.array([51, 3])), values[[1, 3]])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: f.unlink(), "missing"),
        (lambda f: f.write_bytes(b""), "0 bytes where"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "cut short or damaged"),
        (lambda f: f.write_bytes(f.read_bytes() + b"x"), "cut short or damaged"),
        (lambda f: f.write_bytes(f.read_bytes()[:-20] + bytes(16) + f.read_bytes()[-4:]), "index does not fit"),
    ],
    ids=["missing", "empty", "truncated", "longer", "index"],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: object, message: str) -> None:
    shard = write(tmp_path / "a", random((20, 3), "f4")) / "c" / "0" / "0"
    damage(shard)  # type: ignore[operator]
    with pytest.raises(StoreCorrupt, match=message) as caught:
        Rows.open(tmp_path / "a")
    assert str(caught.value).startswith(str(shard))


@pytest.mark.parametrize(
    "state",
    [
        "",
        "{",
        "[]",
        "{}",
        {"shape": [-1, 3]},
        {"shape": [20]},
        {"data_type": "bfloat16"},
        {"codecs": []},
        {"shape": "xy"},
    ],
)
def test_damaged_metadata_is_named(tmp_path: Path, state: str | dict[str, object]) -> None:
    path = write(tmp_path / "a", random((20, 3), "f4")) / "zarr.json"
    path.write_text(state if isinstance(state, str) else json.dumps({**json.loads(path.read_text()), **state}))
    if isinstance(state, dict) and state == {"codecs": []}:
        assert not Layout.read(tmp_path / "a").linear
        return
    with pytest.raises(StoreCorrupt, match=r"zarr\.json"):
        Rows.open(tmp_path / "a")
