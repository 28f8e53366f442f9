"""The seal of a test split: openings are noted, counted per run, and survive torn lines."""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data.digest import as_keys, content_key
from featurestore.store import FeatureStore
from heads.evaluation.seal import digest_of_test, open_test, run_digest


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", create=True)


KEYS = as_keys(content_key(bytes([i])) for i in range(5))


def test_openings_are_counted_per_run(store: FeatureStore) -> None:
    first = open_test(store, KEYS, ["label"], "a")
    assert (first.number, first.count) == (1, 1)
    assert first.explain() == "This test split has been opened once, by this run."
    second = open_test(store, KEYS[::-1], ["label"], "b", command="evaluate")
    assert (second.number, second.count) == (2, 2), "the order of rows does not matter"
    again = open_test(store, KEYS, ["label"], "a")
    assert (again.number, again.count) == (1, 2), "the same run is the same opening"
    assert "opened 2 times; this is opening number 1" in again.explain()
    lines = [json.loads(line) for line in store.openings.read_text().splitlines()]
    assert [line["run"] for line in lines] == ["a", "b", "a"]
    assert lines[1] == {**lines[1], "rows": 5, "target": ["label"], "command": "evaluate"}


def test_other_rows_and_other_targets_are_other_splits(store: FeatureStore) -> None:
    open_test(store, KEYS, ["label"], "a")
    assert open_test(store, KEYS[:4], ["label"], "b").count == 1
    assert open_test(store, KEYS, ["age"], "b").count == 1
    assert digest_of_test(KEYS, ["x"]) == digest_of_test(KEYS[[3, 1, 2, 0, 4]], ("x",))


def test_a_torn_line_costs_itself_only(store: FeatureStore) -> None:
    open_test(store, KEYS, ["label"], "a")
    open_test(store, KEYS, ["label"], "b")
    os.truncate(store.openings, store.openings.stat().st_size - 20)
    third = open_test(store, KEYS, ["label"], "c")
    assert (third.number, third.count) == (2, 2)


def test_many_openings_at_once_are_all_noted(store: FeatureStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        openings = list(pool.map(lambda i: open_test(store, KEYS, ["label"], str(i)), range(40)))
    assert open_test(store, KEYS, ["label"], "0").count == 40
    assert sorted(opening.number for opening in openings) == list(range(1, 41))


def test_a_store_that_may_not_be_written_says_so(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    open_test(store, KEYS, ["label"], "a")

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "write", refuse)
    opening = open_test(store, KEYS, ["label"], "b")
    assert (opening.number, opening.count, opening.recorded) == (2, 2, False)
    assert "could not be noted" in opening.explain()


def test_the_identity_of_a_run_is_what_it_computes_from_what() -> None:
    config = {"head": "linear", "seed": 0, "out": "runs/a", "sealed": True, "store": "s"}
    inputs = [{"fingerprint": "f", "snapshot": "1"}]
    same = run_digest({**config, "out": "b", "sealed": False, "store": "/s"}, "m", [{"fingerprint": "f"}])
    assert run_digest(config, "m", inputs) == same
    assert run_digest({**config, "seed": 1}, "m", inputs) != same
    assert run_digest(config, "n", inputs) != same
    assert run_digest(config, "m", [{"fingerprint": "g"}]) != same
