"""HDF5 in and out: fingerprints survive, foreign files are keyed by id, malformed ones are named."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data.digest import as_keys, id_key
from featurestore.errors import FeatureFileError, StoreUnwritable
from featurestore.features import Features
from featurestore.hdf5 import export_hdf5, import_hdf5
from featurestore.store import FeatureStore

Add = Callable[..., Features]


@pytest.fixture
def target(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "target", create=True)


@pytest.fixture
def exported(add: Add, tmp_path: Path) -> Path:
    add(0, 20)
    return export_hdf5([add(20, 30)], tmp_path / "out" / "features.h5")


def write(path: Path, **datasets: Any) -> Path:
    path.parent.mkdir(exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


def ids_to_keys(ids: list[str]) -> Any:
    return as_keys(map(id_key, ids))


# Our own files ------------------------------------------------------------------------------------


def test_export_then_import_keeps_everything(
    exported: Path, target: FeatureStore, samples: Any, store: FeatureStore
) -> None:
    original = store.find("toy")
    some = samples(0, 30)
    (imported,) = import_hdf5(exported, target)
    assert (imported.added, imported.known) == (30, 0)
    assert imported.explain() == f"{original.group}: 30 samples added, 0 were there; --encoder toy"
    copy = target.find("toy")
    assert (copy.fingerprint, copy.spec, copy.keyed_by) == (original.fingerprint, original.spec, "content")
    np.testing.assert_array_equal(copy.take(some.keys), some.x)
    assert copy.ids(some.keys) == some.ids
    assert copy.provenance == original.provenance
    (again,) = import_hdf5(exported, target)
    assert (again.added, again.known) == (0, 30)
    assert len(target.find("toy").parts) == 1


def test_the_exported_file_is_plain_and_mappable(exported: Path, samples: Any) -> None:
    with h5py.File(exported) as file:
        (group,) = file.values()
        assert group["features"].chunks is None
        offset, shape = group["features"].id.get_offset(), group["features"].shape
        ids = list(group["ids"].asstr()[:])
    mapped = np.memmap(exported, np.float32, "r", offset, shape)
    np.testing.assert_array_equal(mapped[ids.index("sample 3 é")], samples(3, 4).x[0])


def test_several_encoders_and_ragged_ones_share_a_file(
    store: FeatureStore,
    add: Add,
    target: FeatureStore,
    spec: Any,
    samples: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("featurestore.hdf5._ROWS", 7)
    add(0, 20)
    some = samples(0, 12)
    bags = store.open(spec(pooling="tokens"), name="bags", ragged=True)
    store.open(spec(dtype="float16"), name="empty")
    lengths = np.arange(12)
    with bags.writer(durable=False, written_by={}) as writer:
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        writer.add(some.keys, np.repeat(some.x, lengths, axis=0), some.ids, offsets=offsets)
    imported = import_hdf5(export_hdf5(store.features(), tmp_path / "all.h5"), target)
    assert sorted(each.added for each in imported) == [0, 12, 20]
    np.testing.assert_array_equal(target.find("bags").take_bags(some.keys).values, np.repeat(some.x, lengths, axis=0))
    np.testing.assert_array_equal(target.find("toy").take(samples(0, 20).keys), samples(0, 20).x)


def test_export_overwrites_nothing(exported: Path, features: Features) -> None:
    before = exported.read_bytes()
    with pytest.raises(FeatureFileError, match="exists already and is not overwritten"):
        export_hdf5([features], exported)
    assert exported.read_bytes() == before
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


def test_a_failed_export_leaves_nothing(add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("featurestore.hdf5._export_group", refuse)
    with pytest.raises(StoreUnwritable, match="No space left"):
        export_hdf5([add(0, 3)], tmp_path / "out" / "x.h5")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("attribute", "value"),
    [("fingerprint", "0" * 64), ("encoder", "{"), ("encoder", "3"), ("keyed_by", "x"), ("names", "[]")],
)
def test_tampered_attributes_are_refused(exported: Path, target: FeatureStore, attribute: str, value: str) -> None:
    with h5py.File(exported, "r+") as file:
        next(iter(file.values())).attrs[attribute] = value
    with pytest.raises(FeatureFileError, match=r"features\.h5/toy-"):
        import_hdf5(exported, target)
    assert target.groups() == []


@pytest.mark.parametrize("name", ["features", "key", "ids"])
def test_a_lost_or_shortened_dataset_is_refused(exported: Path, target: FeatureStore, name: str) -> None:
    with h5py.File(exported, "r+") as file:
        group = next(iter(file.values()))
        kept = group[name][:-1]
        del group[name]
        group[name] = kept
    with pytest.raises(FeatureFileError, match=r"do not fit together|number of vectors"):
        import_hdf5(exported, target)
    with h5py.File(exported, "r+") as file:
        del next(iter(file.values()))[name]
    with pytest.raises(FeatureFileError, match=f"/{name}: no such dataset"):
        import_hdf5(exported, target)


# CLAM and TRIDENT ---------------------------------------------------------------------------------


def test_a_directory_of_bags(tmp_path: Path, target: FeatureStore) -> None:
    rng = np.random.default_rng(0)
    bags = {f"slide.{i}": rng.standard_normal((i + 1, 4)).astype(np.float16) for i in range(5)}
    for name, bag in bags.items():
        shaped = bag[None] if name.endswith("3") else bag
        path = write(tmp_path / "slides" / f"{name}.h5", features=shaped, coords=np.zeros((len(bag), 2), int))
        with h5py.File(path, "r+") as file:
            file["features"].attrs["encoder"] = "uni_v1"
    (tmp_path / "slides" / "notes.txt").write_text("not features")
    (imported,) = import_hdf5(tmp_path / "slides", target)
    features = target.find("imported:slides")
    assert (imported.added, features.keyed_by, features.dtype, features.info.ragged) == (5, "id", np.float16, True)
    assert features.spec.family == "imported"
    assert features.spec.architecture["encoder"] == "uni_v1"
    taken = features.take_bags(ids_to_keys(list(bags)))
    np.testing.assert_array_equal(taken.values, np.concatenate(list(bags.values())))
    np.testing.assert_array_equal(np.diff(taken.offsets), [1, 2, 3, 4, 5])
    (again,) = import_hdf5(tmp_path / "slides", target)
    assert (again.added, again.known, len(target.groups())) == (0, 5, 1)


@pytest.mark.parametrize("shape", [(6,), (1, 6), (1, 1, 6)])
def test_one_vector_per_file_is_dense(tmp_path: Path, target: FeatureStore, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).standard_normal((3, 6))
    for i, row in enumerate(values):
        write(tmp_path / "clips" / f"{i}.hdf5", features=row.reshape(shape))
    import_hdf5(tmp_path / "clips", target, name="mine", modality="video")
    features = target.find("mine", modality="video")
    assert (features.dtype, features.info.ragged) == (np.float32, False)
    np.testing.assert_array_equal(features.take(ids_to_keys(["2", "0"])), values[[2, 0]].astype(np.float32))


def test_other_contents_are_another_encoder(tmp_path: Path, target: FeatureStore) -> None:
    write(tmp_path / "a" / "s.h5", features=np.ones((2, 3), np.float32))
    write(tmp_path / "b" / "s.h5", features=np.zeros((2, 3), np.float32))
    for folder in ("a", "b"):
        import_hdf5(tmp_path / folder, target, name="same name")
    assert len(target.groups()) == 2


def test_a_single_file(tmp_path: Path, target: FeatureStore) -> None:
    import_hdf5(write(tmp_path / "slide.h5", features=np.eye(3, dtype=np.float32)), target)
    np.testing.assert_array_equal(target.find("imported:slide").take_bags(ids_to_keys(["slide"])).values, np.eye(3))


# Any file with features and ids -------------------------------------------------------------------


@pytest.mark.parametrize(
    "ids", [["a", "é", "c"], np.array([b"a", b"b", b"c"]), np.array([7, 8, 9])], ids=["str", "S", "int"]
)
def test_a_table_of_features(tmp_path: Path, target: FeatureStore, ids: Any) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    (imported,) = import_hdf5(write(tmp_path / "table.h5", features=x, ids=ids), target)
    names = [value.decode() if isinstance(value, bytes) else str(value) for value in ids]
    np.testing.assert_array_equal(imported.features.take(ids_to_keys(names)), x)
    assert imported.features.ids(ids_to_keys(names)) == names
    assert target.find("imported:table").keyed_by == "id"


@pytest.mark.parametrize(
    ("datasets", "message"),
    [
        ({"other": np.zeros(3)}, "/features: no such dataset; the file has 'other'"),
        ({"features": np.zeros((2, 3), int)}, "/features: values of type int64, float16"),
        ({"features": np.array(["a"], dtype=object)}, "/features: values of type object"),
        ({"features": np.zeros((2, 3, 4))}, r"/features: shape \(2, 3, 4\); \(n, d\)"),
        ({"features": np.zeros(())}, r"/features: shape \(\)"),
        ({"features": np.zeros((2, 3)), "ids": ["a"]}, "/ids: 1 ids for the 2 rows"),
        ({"features": np.zeros((2, 3)), "ids": ["a", "a"]}, "/ids: 1 ids occur twice"),
        ({"features": np.zeros((2, 3)), "ids": [0.5, 1.5]}, "/ids: values of type float64, text or integers"),
        ({"features": np.zeros((2, 3)), "ids": np.array([b"\xff", b"b"])}, "/ids: not UTF-8"),
        ({"features": np.zeros((2, 2, 3)), "ids": ["a", "b"]}, r"/features: shape \(2, 2, 3\), 2 axes"),
        ({"features": np.full((2, 3), np.nan), "ids": ["a", "b"]}, "/features: NaN or infinite embeddings of 2"),
        ({"features": np.array([[1.0, np.inf]])}, "/features: NaN or infinite embeddings of 1 samples: 'bad'"),
    ],
)
def test_malformed_files_are_named(
    tmp_path: Path, target: FeatureStore, datasets: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "bad.h5", **datasets)
    with pytest.raises(FeatureFileError, match=message) as caught:
        import_hdf5(path, target)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert sum(len(features) for features in target.features()) == 0


def test_links_and_virtual_datasets_are_not_followed(tmp_path: Path, target: FeatureStore) -> None:
    secret = write(tmp_path / "secret.h5", features=np.ones((2, 3)))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(secret), "/features")
    with h5py.File(tmp_path / "virtual.h5", "w") as file:
        layout = h5py.VirtualLayout((2, 3), np.float64)
        layout[:] = h5py.VirtualSource(str(secret), "features", (2, 3))
        file.create_virtual_dataset("features", layout)
    with h5py.File(tmp_path / "external.h5", "w") as file:
        file.create_dataset("features", (2, 3), "f8", external=[(str(tmp_path / "raw"), 0, 48)])
    for name in ("link", "virtual", "external"):
        with pytest.raises(FeatureFileError, match="links are not followed"):
            import_hdf5(tmp_path / f"{name}.h5", target)


def test_what_is_no_hdf5_file_is_named(tmp_path: Path, target: FeatureStore, exported: Path) -> None:
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.h5").write_bytes(exported.read_bytes()[:3000])
    for name, message in [
        ("text.h5", "not a readable HDF5"),
        ("empty", r"no \.h5 files"),
        ("none", "no such file"),
        ("cut.h5", "not a readable"),
    ]:
        with pytest.raises(FeatureFileError, match=message):
            import_hdf5(tmp_path / name, target)


def test_bags_of_different_length_vectors_are_refused(tmp_path: Path, target: FeatureStore) -> None:
    write(tmp_path / "slides" / "a.h5", features=np.zeros((2, 3)))
    write(tmp_path / "slides" / "b.h5", features=np.zeros((2, 4)))
    with pytest.raises(FeatureFileError, match=r"b\.h5/features: 4 columns, a\.h5 has 3"):
        import_hdf5(tmp_path / "slides", target)


def test_what_was_imported_before_a_bad_file_stays_out(tmp_path: Path, target: FeatureStore) -> None:
    write(tmp_path / "slides" / "a.h5", features=np.zeros((2, 3)))
    write(tmp_path / "slides" / "b.h5", features=np.full((2, 3), np.nan))
    with pytest.raises(FeatureFileError, match=r"b\.h5/features: NaN"):
        import_hdf5(tmp_path / "slides", target)
    assert [len(features) for features in target.features()] == [0]
