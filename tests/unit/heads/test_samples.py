"""From rows to bags: which rows, in which order, with which label."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.digest import as_keys, id_key
from data.errors import ManifestError
from data.manifest import Manifest
from data.task import Task
from heads.bags import Bags
from heads.samples import agreed, bags_of, encode_samples, samples_of

TASK = Task(kind="binary", targets=("label",), classes=("no", "yes"))
LABELS = Task(kind="multilabel", targets=("a", "b"), classes=("a", "b"))


def manifest_of(bag: list[str | None], **columns: list[str | None]) -> Manifest:
    ids = tuple(f"r{i}" for i in range(len(bag)))
    cells = {"id": ids, "bag": tuple(bag), **{name: tuple(column) for name, column in columns.items()}}
    return Manifest(
        path=Path("m.csv"),
        columns=cells,
        ids=ids,
        sources=(None,) * len(ids),
        input="path",
        modality="image",
        roles={"bag": "bag"},
        rows=tuple(range(2, len(bag) + 2)),
    )


@given(st.lists(st.sampled_from("abcde"), min_size=1, max_size=30), st.data())
def test_samples_are_the_bags_in_order_of_their_first_row(bag: list[str], data: st.DataObject) -> None:
    manifest = manifest_of(list(bag))
    chosen = data.draw(st.lists(st.sampled_from(range(len(bag))), min_size=1, unique=True).map(sorted))
    keys = as_keys(map(id_key, manifest.ids))
    kept, instances, samples = samples_of(manifest, keys, np.array(chosen))
    names = list(dict.fromkeys(bag[i] for i in chosen))
    assert list(samples.ids) == names
    assert kept.tolist() == [i for name in names for i in chosen if bag[i] == name]
    assert instances.manifest.ids == tuple(f"r{i}" for i in kept)
    assert np.array_equal(instances.keys, keys[kept])
    assert instances.lengths.tolist() == [sum(bag[i] == name for i in chosen) for name in names]
    assert [bag[kept[i]] for i in instances.first] == names
    some = np.array(data.draw(st.lists(st.sampled_from(range(len(names))), min_size=1, unique=True)))
    of_some = [name for j in some for name in [names[j]] * instances.lengths[j]]
    assert [bag[kept[i]] for i in instances.at(some)] == of_some
    assert instances.of(some).lengths.tolist() == instances.lengths[some].tolist()


def test_rows_that_are_bags_themselves_become_parts() -> None:
    manifest = manifest_of(["x", "y", "x"])
    kept, instances, _ = samples_of(manifest, as_keys(map(id_key, manifest.ids)), np.arange(3))
    assert kept.tolist() == [0, 2, 1]
    rows = Bags(np.arange(10, dtype=np.float32)[:, None], np.array([0, 2, 5, 10]))
    packed = instances.packed(rows[kept])
    assert isinstance(packed, Bags)
    assert packed.offsets.tolist() == [0, 7, 10]
    assert packed.inner is not None
    assert packed.inner.tolist() == [0, 2, 7, 10]
    assert packed.values[:, 0].tolist() == [0, 1, 5, 6, 7, 8, 9, 2, 3, 4]


def test_a_label_is_that_of_all_rows_of_a_bag() -> None:
    manifest = manifest_of(["x", "y", "x", "z"], label=[None, "no", "yes", None])
    y = encode_samples(TASK, manifest, manifest)
    assert y.tolist() == [1, 0, 1, -1]
    manifest = manifest_of(["x", "x", "y"], a=["1", None, None], b=[None, "0", None])
    assert np.array_equal(
        encode_samples(LABELS, manifest, manifest), [[1, 0], [1, 0], [np.nan, np.nan]], equal_nan=True
    )


def test_contradictions_name_bags_and_rows() -> None:
    manifest = manifest_of(["x", "y", "x", "y"], label=["no", "no", "yes", None])
    with pytest.raises(ManifestError, match=r"1 bags .* 'x' is 'no' in row 2 but 'yes' in row 4") as refused:
        encode_samples(TASK, manifest, manifest)
    assert "column 'label'" in str(refused.value)


def test_rows_without_a_value_take_that_of_their_bag() -> None:
    manifest = manifest_of(["x", "x", "y"], split=[None, "train", None])
    values = np.array(["", "train", ""])
    assert agreed(manifest, "split", values, known=values != "").tolist() == ["train", "train", ""]


def test_a_row_without_a_bag_is_refused_by_row() -> None:
    with pytest.raises(ManifestError, match=r"row 3.*no bag in column 'bag' \(1 such rows\)"):
        bags_of(manifest_of(["x", None]))
