"""Names, attributes, parts and the commit."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import zarr

from featurestore import parts as parts_module
from featurestore.errors import StoreCorrupt, StoreUnwritable
from featurestore.features import Features
from featurestore.layout import GroupInfo, check_keys, group_name, read_group, write_group, writing
from featurestore.parts import (
    committed_parts,
    live_parts,
    new_part_name,
    part_names,
    part_time_ns,
    read_part,
    write_part,
)


def test_a_store_is_plain_zarr_for_everybody_else(add: Callable[..., Features]) -> None:
    features = add(0, 20)
    root = zarr.open_group(str(features.directory.parent), mode="r")
    part = root[f"{features.group}/{features.parts[0].name}"]
    assert root.attrs["feature_store"] == {"version": 1, "key": "blake2b-128"}
    assert part.attrs["rows"] == 20
    np.testing.assert_array_equal(part["x"][:], features.load()[1])
    np.testing.assert_array_equal(part["key"][:], features.load()[0])
    assert part["x"].metadata.dimension_names == ("sample", "x_1")


def test_group_names_are_readable_and_safe_for_a_file_system() -> None:
    fingerprint = "0123456789abcdef" * 4
    assert group_name("open_clip:ViT-B-32/laion2b", fingerprint) == "open_clip-ViT-B-32-laion2b-0123456789ab"
    assert group_name("../../etc", fingerprint) == "etc-0123456789ab"
    assert group_name("é€", fingerprint) == "encoder-0123456789ab"


def test_attributes_are_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_group(tmp_path, {"a": 1})

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StoreUnwritable, match="No space left"):
        write_group(tmp_path, {"a": 2})
    assert read_group(tmp_path) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["zarr.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"zarr_format": 2}', '{"zarr_format": 3, "node_type": "array"}'])
def test_damaged_attributes_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "zarr.json").write_text(content)
    with pytest.raises(StoreCorrupt, match=r"zarr\.json.*store verify"):
        read_group(tmp_path)


@pytest.mark.parametrize(
    "change", [{"fingerprint": "f" * 64}, {"names": None}, {"encoder": {"family": "x"}}, {"encoder": 3}], ids=str
)
def test_a_group_whose_specification_was_changed_is_refused(features: Features, change: dict[str, object]) -> None:
    state = read_group(features.directory)
    assert state is not None
    write_group(features.directory, {**state, **change})
    with pytest.raises(StoreCorrupt, match=features.group):
        GroupInfo.read(features.directory)


def test_a_part_without_rows_does_not_exist(add: Callable[..., Features]) -> None:
    features = add(0, 5)
    attributes = features.parts[0].directory / "zarr.json"
    state = json.loads(attributes.read_text())
    del state["attributes"]["rows"]
    attributes.write_text(json.dumps(state))
    assert len(Features(features.directory, features.info)) == 0
    assert part_names(features.directory) == [features.parts[0].name]


@pytest.mark.parametrize("change", [{"rows": "many"}, {"replaces": 3}, {"written_by": 3}], ids=str)
def test_damaged_attributes_of_a_part_are_named(add: Callable[..., Features], change: dict[str, object]) -> None:
    directory = add(0, 5).parts[0].directory
    write_group(directory, {**(read_group(directory) or {}), **change})
    with pytest.raises(StoreCorrupt, match=directory.name):
        read_part(directory)


def test_rows_must_agree_with_the_arrays(add: Callable[..., Features]) -> None:
    features = add(0, 5)
    directory = features.parts[0].directory
    write_group(directory, {**(read_group(directory) or {}), "rows": 6})
    with pytest.raises(StoreCorrupt, match="5 rows where 6 belong"):
        len(Features(features.directory, features.info))


def test_replaced_parts_are_not_live(add: Callable[..., Features]) -> None:
    first = add(0, 5).parts[0]
    features = add(5, 10)
    write_part(
        features.directory,
        keys=features.keys()[:1],
        values=lambda a, b: features.take(features.keys()[:1])[a:b],
        shape=(1, features.dim),
        dtype=features.dtype,
        ids=["x"],
        replaces=[first.name],
        written_by={},
        durable=False,
    )
    committed = committed_parts(features.directory)
    assert len(committed) == 3
    assert first.name not in [part.name for part in live_parts(committed)]


def test_part_names_order_by_time() -> None:
    early, late = new_part_name(5), new_part_name(1 << 60)
    assert early < late < new_part_name()
    assert part_time_ns(early) == 5


def test_a_failed_write_leaves_nothing(add: Callable[..., Features], monkeypatch: pytest.MonkeyPatch) -> None:
    features = add(0, 3)
    before = part_names(features.directory)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(parts_module, "fsync_tree", refuse)
    with pytest.raises(StoreUnwritable, match="what was committed before is intact"):
        write_part(
            features.directory,
            keys=features.keys(),
            values=lambda a, b: features.load()[1][a:b],
            shape=(3, features.dim),
            dtype=features.dtype,
            ids=["a", "b", "c"],
            written_by={},
        )
    assert part_names(features.directory) == before


def test_only_refusals_to_write_become_store_errors(tmp_path: Path) -> None:
    with pytest.raises(StoreUnwritable, match="Read-only file system"), writing(tmp_path):
        raise OSError(errno.EROFS, "no")
    with pytest.raises(OSError, match="io") as caught, writing(tmp_path):
        raise OSError(errno.EIO, "io")
    assert not isinstance(caught.value, StoreUnwritable)


def test_keys_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        check_keys(np.zeros(3, np.uint64))
