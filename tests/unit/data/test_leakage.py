from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data.digest import Keys, as_keys, content_key
from data.duplicates import NearPairs, near_pairs, perceptual_hashes
from data.filecache import FileCache
from data.images import load_image
from data.leakage import audit, connected_groups
from data.sources import read_manifest
from data.split import make_folds, parse_split


def keys_of(*contents: str | None) -> Keys:
    return as_keys(bytes(16) if content is None else content_key(content.encode()) for content in contents)


def near(looks: list[int], *pairs: tuple[int, int]) -> NearPairs:
    return NearPairs(np.array(looks), np.array(pairs, dtype=np.int64).reshape(-1, 2))


def splits(*names: str) -> NDArray[np.str_]:
    return np.array(names, dtype="<U5")


IDS = [f"s{i}" for i in range(10)]


class TestConnectedGroups:
    def test_nothing_in_common(self) -> None:
        assert connected_groups(3).tolist() == [0, 1, 2]

    def test_groups_contents_and_looks_are_joined(self) -> None:
        groups = connected_groups(
            6,
            ["p", "p", "q", None, "", "r"],
            keys_of("a", "b", "b", "c", "d", "e"),
            near([0, -1, -1, 1, -1, 2], (0, 2)),
        )
        assert groups.tolist() == [0, 0, 0, 1, 2, 0]

    def test_samples_without_a_key_or_look_are_not_alike(self) -> None:
        assert connected_groups(2, None, keys_of(None, None), near([-1, -1])).tolist() == [0, 1]

    def test_no_samples(self) -> None:
        assert connected_groups(0, [], keys_of(), near([])).tolist() == []


class TestAudit:
    def test_clean(self) -> None:
        report = audit(
            splits("train", "train", "test", "test"), ["p", "p", "q", "q"], keys_of(*"aabb"), near([0, 0, 1, 1]), IDS
        )
        assert report.clean
        assert report.message() == "the splits share no group, no content and no near-duplicate"
        assert report.to_dict()["clean"] is True

    def test_group_in_several_splits(self) -> None:
        report = audit(splits("train", "train", "test", "val"), ["p", "p", "p", None], None, None, IDS)
        assert not report.clean
        assert (report.groups.count, dict(report.groups.rows)) == (1, {"val": 0, "test": 1})
        assert report.groups.examples == ("group 'p': 2 train, 1 test",)
        assert "1 groups in several splits (1 test rows), e.g. group 'p'" in report.message()
        assert "--allow-leakage" in report.message()
        assert "\n" not in report.message()

    def test_identical_content_in_any_later_split(self) -> None:
        report = audit(splits("test", "val", "train", "test"), None, keys_of("a", "b", "b", "b"), None, IDS)
        assert (report.identical.count, dict(report.identical.rows)) == (1, {"val": 1, "test": 1})
        assert report.identical.examples == ("'s1' (val) and 's2' (train)",)

    def test_near_duplicates_by_look_and_by_pair(self) -> None:
        order = splits("train", "test", "test", "test", "train", "test")
        report = audit(order, None, None, near([0, 1, 1, 2, 3, 3], (0, 1)), IDS)
        assert (report.near.count, dict(report.near.rows)) == (3, {"val": 0, "test": 3})
        assert report.near.examples == ("'s1' (test) and 's0' (train)", "'s5' (test) and 's4' (train)")
        assert "3 test rows with a near-duplicate" in report.message()

    def test_pairs_are_not_followed_further(self) -> None:
        """Near is not transitive: a chain of near-duplicates ties groups together but is no leak by itself."""
        report = audit(splits("train", "", "test"), None, None, near([0, 1, 2], (0, 1), (1, 2)), IDS)
        assert report.clean

    def test_unused_samples_do_not_count(self) -> None:
        assert audit(splits("", "test"), ["p", "p"], keys_of("a", "a"), near([0, 0]), IDS).clean

    def test_samples_without_group_or_key(self) -> None:
        assert audit(splits("train", "test"), ["", None], keys_of(None, None), near([-1, -1]), IDS).clean

    def test_at_most_five_examples(self) -> None:
        contents = [f"{i}" for i in range(8)]
        report = audit(splits(*["train"] * 8, *["test"] * 8), None, keys_of(*contents, *contents), None, range(16))  # type: ignore[arg-type]
        assert report.identical.count == 8
        assert len(report.identical.examples) == 5

    def test_conflicting_labels_are_told_but_are_no_leak(self) -> None:
        labels = ["cat", "dog", None, "cat"]
        report = audit(splits(*["train"] * 4), None, keys_of("a", "a", "a", "b"), None, IDS, labels=labels)
        assert report.clean
        assert report.conflicting.count == 1
        assert report.conflicting.examples == ("'s0' (cat) and 's1' (dog)",)

    def test_record_is_json(self) -> None:
        report = audit(splits("train", "test"), ["p", "p"], keys_of("a", "a"), near([0, 0]), IDS)
        record = json.loads(json.dumps(report.to_dict()))
        assert record["groups"] == {
            "count": 1,
            "rows": {"val": 0, "test": 1},
            "examples": ["group 'p': 1 train, 1 test"],
        }
        assert set(record) == {"clean", "groups", "identical", "near", "conflicting"}


@pytest.mark.real_data
def test_brain_mri_splits(datasets: Path) -> None:
    """The original split has 133 test rows with a near-duplicate in train, the clean one none."""
    manifest = read_manifest(datasets / "brain_mri" / "manifest.csv", group="group_id")
    cache = FileCache()
    keys, failures = cache.keys(manifest.sources)
    assert not failures
    looks = near_pairs(perceptual_hashes(manifest.sources, keys, cache, load_image))
    report = audit(parse_split(manifest.column("split")), manifest.role("group"), keys, looks, manifest.ids)
    assert dict(report.near.rows) == {"val": 0, "test": 133}
    assert dict(report.groups.rows) == {"val": 0, "test": 133}
    given = np.array([mark == "1" for mark in manifest.column("near_dup_of_train")])
    assert given.sum() == 133
    clean = audit(parse_split(manifest.column("split_clean")), manifest.role("group"), keys, looks, manifest.ids)
    assert clean.clean, clean.message()
    groups = connected_groups(len(manifest), manifest.role("group"), keys, looks)
    assert len(np.unique(groups)) == 1579
    codes = np.unique(np.array(manifest.column("label")), return_inverse=True)[1]
    folds = make_folds(codes, "multiclass", groups, 5, 0).assignment
    # Any pair of folds, seen as train and test, is clean as well.
    for fold in range(5):
        by_fold = np.where(folds == fold, "test", "train")
        assert audit(by_fold, manifest.role("group"), keys, looks, manifest.ids).clean
