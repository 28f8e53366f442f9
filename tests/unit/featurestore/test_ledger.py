"""The ledger of failed samples."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from data.digest import content_key
from featurestore.errors import StoreUnwritable
from featurestore.features import Features
from featurestore.ledger import Ledger
from featurestore.store import FeatureStore


@pytest.fixture
def ledger(store: FeatureStore, features: Features) -> Ledger:
    return store.ledger(features.group)


def fail(ledger: Ledger, number: int, message: str = "cut short") -> bytes:
    key = content_key(str(number).encode())
    ledger.add(key, id=f"s{number}", source=f"images/é {number}.png", kind="truncated", message=message)
    return key


def test_the_latest_failure_of_a_key_counts(ledger: Ledger, store: FeatureStore, features: Features) -> None:
    assert ledger.failures() == {}
    first, second = fail(ledger, 1), fail(ledger, 2)
    fail(ledger, 1, "still\ncut short")
    failures = store.ledger(features.group).failures()
    assert list(failures) == [first, second]
    assert failures[first].message == "still\ncut short"
    assert (failures[second].id, failures[second].source, failures[second].kind) == (
        "s2",
        "images/é 2.png",
        "truncated",
    )
    assert failures[first].key == first.hex()
    assert failures[first].time.endswith("+00:00")


def test_what_is_stored_meanwhile_is_no_failure(
    ledger: Ledger, add: Callable[..., Features], features: Features
) -> None:
    assert ledger.failed(features) == {}
    keys = [fail(ledger, number) for number in range(5)]
    stored = add(0, 3)
    assert list(ledger.failed(stored)) == keys[3:]
    assert list(ledger.failed(features)) == keys, "a snapshot from before knows nothing of it"


@pytest.mark.parametrize("cut", [1, 2, 30, 60])
def test_a_torn_line_costs_itself_only(ledger: Ledger, cut: int) -> None:
    first = fail(ledger, 1)
    fail(ledger, 2)
    os.truncate(ledger.path, ledger.path.stat().st_size - cut)
    kept = ledger.failures()
    assert first in kept
    third = fail(ledger, 3)
    assert list(ledger.failures()) == [*kept, third]


def test_foreign_lines_are_passed_over(ledger: Ledger) -> None:
    ledger.path.parent.mkdir(parents=True)
    ledger.path.write_text('null\n3\n{"key": "zz"}\n\n{"key": 5}\n')
    key = fail(ledger, 1)
    assert list(ledger.failures()) == [key]


def test_many_writers_at_once(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda number: fail(ledger, number), range(200)))
    assert set(ledger.failures()) == set(keys)


def test_a_full_disk_is_one_line(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(StoreUnwritable, match="No space left"):
        fail(ledger, 1)
