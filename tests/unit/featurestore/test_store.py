"""Opening, creating and searching a store."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.errors import ConfigError
from featurestore import layout
from featurestore.errors import FeaturesMissing, StoreCorrupt, StoreUnwritable
from featurestore.features import Features
from featurestore.layout import read_group, write_group
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore

Spec = Callable[..., EncoderSpec]


def test_no_store_names_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no feature store here; .*frostline extract"):
        FeatureStore(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_creating_twice_is_opening(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    FeatureStore(tmp_path / "s", create=True)
    again = FeatureStore(tmp_path / "s", create=True)
    assert again.groups() == []
    assert again.files_cache == tmp_path / "s" / "files.sqlite"


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(StoreUnwritable, match=r"neither empty nor a store.*thesis\.tex"):
        FeatureStore(tmp_path, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_is_not_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnwritable, match="a file, where the directory"):
        FeatureStore(tmp_path / "file", create=True)


def test_the_inner_directory_points_to_the_outer(store: FeatureStore) -> None:
    with pytest.raises(ConfigError, match="its store is"):
        FeatureStore(store.path / "features.zarr", create=True)


def test_a_zarr_group_of_somebody_else_is_refused(tmp_path: Path) -> None:
    write_group(tmp_path / "features.zarr", {"theirs": 1})
    with pytest.raises(StoreCorrupt, match="not a feature store"):
        FeatureStore(tmp_path)


def test_a_newer_format_is_refused(store: FeatureStore) -> None:
    write_group(store.path / "features.zarr", {"feature_store": {"version": 2}})
    with pytest.raises(StoreCorrupt, match="version 2, this release reads up to 1; upgrade"):
        FeatureStore(store.path)


def test_a_store_that_became_read_only_is_named_itself(
    store: FeatureStore, features: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreUnwritable) as caught:
        features.set_probe(np.zeros((2, 6), np.float32))
    assert str(caught.value).startswith(f"{store.path}: Read-only file system; ")


def test_a_read_only_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(StoreUnwritable, match="Read-only file system") as caught:
        FeatureStore(tmp_path / "s", create=True)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_the_fingerprint_not_the_name_finds_the_group(store: FeatureStore, spec: Spec) -> None:
    first = store.open(spec(), name="hub/name")
    second = store.open(spec(), name="local-dir:/copy")
    assert first.directory == second.directory
    assert second.names == ("hub/name", "local-dir:/copy")
    assert store.open(spec(weights="1" * 64), name="hub/name").directory != first.directory
    assert len(store.groups()) == 2
    assert [f.spec for f in store.features() if f.fingerprint == first.fingerprint] == [spec()]


def test_open_without_create_makes_nothing(store: FeatureStore, spec: Spec) -> None:
    with pytest.raises(FeaturesMissing, match="frostline extract MANIFEST"):
        store.open(spec(), name="toy", create=False)
    assert store.groups() == []
    store.open(spec(), name="toy")
    assert store.open(spec(), name="other", create=False).names == ("toy",)


def test_keyed_otherwise_is_refused(store: FeatureStore, spec: Spec) -> None:
    store.open(spec(), name="toy")
    with pytest.raises(ConfigError, match="keyed by content"):
        store.open(spec(), name="toy", keyed_by="id")
    with pytest.raises(ConfigError, match="ragged"):
        store.open(spec(), name="toy", ragged=True)


def test_find_by_name_and_options(store: FeatureStore, spec: Spec) -> None:
    half = store.open(spec(precision="fp16"), name="hf:org/name@main")
    full = store.open(spec(), name="hf:org/name@main")
    assert store.find("hf:org/name@main", precision="fp16").fingerprint == half.fingerprint
    assert store.find("hf:org/name@main", precision="fp32", dtype="float32").fingerprint == full.fingerprint
    assert store.find(f"hf:org/name@main@{full.fingerprint[:8]}").fingerprint == full.fingerprint
    with pytest.raises(ConfigError, match=r"2 feature groups .*precision \(.*fp16.*") as caught:
        store.find("hf:org/name@main")
    assert half.fingerprint[:12] in str(caught.value)
    assert "weights" not in str(caught.value)


def test_find_says_what_there_is(store: FeatureStore, spec: Spec) -> None:
    with pytest.raises(FeaturesMissing, match="The store is empty"):
        store.find("toy")
    store.open(spec(), name="torchvision:resnet50")
    with pytest.raises(FeaturesMissing, match=r"did you mean 'torchvision:resnet50'.*--encoder torchvision:resnet5$"):
        store.find("torchvision:resnet5")
    with pytest.raises(FeaturesMissing, match="stored with pooling native, not with pooling cls"):
        store.find("torchvision:resnet50", pooling="cls")
    with pytest.raises(FeaturesMissing):
        store.find("torchvision:resnet50@ffff00")


def test_find_accepts_any_modality_unless_asked(store: FeatureStore, spec: Spec) -> None:
    store.open(spec(), name="clip")
    text = store.open(spec(modality="text"), name="clip")
    assert store.find("clip", modality="text").fingerprint == text.fingerprint
    with pytest.raises(ConfigError, match="modality"):
        store.find("clip")


def test_a_group_that_was_never_completed_is_passed_over(store: FeatureStore, spec: Spec) -> None:
    (store.path / "features.zarr" / f"toy-{spec().fingerprint[:12]}").mkdir()
    assert store.features() == []
    assert store.open(spec(), name="toy").names == ("toy",)


def test_equal_starts_of_fingerprints_do_not_collide(
    store: FeatureStore, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.open(spec(), name="toy")
    state = read_group(first.directory) or {}
    other = spec(weights="1" * 64)
    write_group(first.directory, {**state, "encoder": other.to_dict(), "fingerprint": other.fingerprint})
    with pytest.raises(FeaturesMissing):
        store.open(spec(), name="toy", create=False)
    assert layout.GroupInfo.read(first.directory) is not None
