"""What an earlier release wrote is read by this one, to the last bit."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from data.digest import content_key
from featurestore.hdf5 import import_hdf5
from featurestore.layout import VERSION
from featurestore.maintenance import compact, verify_store
from featurestore.store import FeatureStore

HERE = Path(__file__).parent
VERSIONS = sorted(path.name for path in (HERE / "archives").iterdir())


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The script that made the archives, which knows their contents."""
    spec = importlib.util.spec_from_file_location("make_archive", HERE / "make_archive.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=VERSIONS)
def archived(request: pytest.FixtureRequest, tmp_path: Path) -> FeatureStore:
    with zipfile.ZipFile(HERE / "archives" / request.param / "store.zip") as archive:
        archive.extractall(tmp_path / "store")
    return FeatureStore(tmp_path / "store")


def check(store: FeatureStore, made: ModuleType) -> None:
    numbers = range(made.COUNT)
    dense = store.find("toy:image")
    assert dense.spec == made.DENSE
    assert dense.fingerprint == made.DENSE.fingerprint
    np.testing.assert_array_equal(dense.take(made.keys(numbers)), made.vectors(numbers, 5))
    assert dense.ids(made.keys(numbers)) == [f"sample {number} ü" for number in numbers]
    assert len(dense) == made.COUNT
    bags = store.find("toy:text", modality="text")
    taken = bags.take_bags(made.keys(numbers))
    lengths = [made.bag_length(number) for number in numbers]
    np.testing.assert_array_equal(np.diff(taken.offsets), lengths)
    np.testing.assert_array_equal(taken.values, np.repeat(made.vectors(numbers, 3), lengths, axis=0))


def test_the_current_version_has_an_archive() -> None:
    assert f"v{VERSION}" in VERSIONS


def test_an_archived_store_reads_as_it_was_written(archived: FeatureStore, made: ModuleType) -> None:
    check(archived, made)
    assert verify_store(archived, deep=True).problems == ()
    dense = archived.find("local-dir:copy of toy")
    assert dense.check_probe(made.PROBE) == pytest.approx(1)
    assert dense.provenance == [{"encoder": "toy:image", "torch": "2.15"}]
    assert len(dense.replaced) == 2
    assert archived.ledger(dense.group).failures()[content_key(b"broken")].kind == "truncated"


def test_an_archived_store_can_be_continued(archived: FeatureStore, made: ModuleType) -> None:
    dense = archived.open(made.DENSE, name="toy:image")
    fresh = range(made.COUNT, made.COUNT + 5)
    with dense.writer(written_by={}) as writer:
        writer.add(made.keys(fresh), made.vectors(fresh, 5), [str(number) for number in fresh])
    compact(dense)
    every = range(made.COUNT + 5)
    np.testing.assert_array_equal(dense.refresh().take(made.keys(every)), made.vectors(every, 5))


@pytest.mark.parametrize("version", VERSIONS)
def test_an_archived_export_is_imported(version: str, tmp_path: Path, made: ModuleType) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    import_hdf5(HERE / "archives" / version / "features.h5", store)
    check(store, made)


def test_the_script_still_makes_what_it_checks(made: ModuleType, tmp_path: Path) -> None:
    check(made.fill(tmp_path / "store"), made)
