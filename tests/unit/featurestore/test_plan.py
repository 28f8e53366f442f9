from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.digest import as_keys, content_key
from data.errors import ConfigError, SampleError
from data.manifest import Manifest, Source
from featurestore.plan import Shard, make_plan


class Stored:
    """Stands for features: knows some keys."""

    def __init__(self, texts: list[str]) -> None:
        self._known = {content_key(text.encode()) for text in texts}

    def contains(self, keys: np.ndarray) -> np.ndarray:
        return np.array([row.astype(">u8").tobytes() in self._known for row in keys], bool)


def manifest_of(texts: list[str | None]) -> Manifest:
    return Manifest(
        path=Path("m.csv"),
        columns={"text": tuple(texts)},
        ids=tuple(f"t{i}" for i in range(len(texts))),
        sources=tuple(None if text is None else Source("text", text=text) for text in texts),
        input="text",
        modality="text",
        rows=tuple(range(2, len(texts) + 2)),
    )


def plan_of(texts: list[str | None], stored: list[str] | None = None, **options: object):
    keys = as_keys(content_key((text or "").encode()) for text in texts)
    features = None if stored is None else Stored(stored)
    arguments = {"batch_size": 2, "shard": Shard(), **options}
    return make_plan(manifest_of(texts), keys, options.pop("unreadable", {}), features, **arguments)


def test_texts_are_batched_by_falling_length() -> None:
    assert plan_of(["a", "dddd", "bb", "ccc"]).batches == ((1, 3), (2, 0))


def test_equal_contents_are_encoded_once() -> None:
    plan = plan_of(["same", "other", "same"])
    assert sorted(i for batch in plan.batches for i in batch) == [0, 1]
    assert plan.duplicates == 1


def test_stored_samples_stop_here_and_empty_cells_are_counted() -> None:
    plan = plan_of(["aaaa", "bbb", None, "c"], stored=["bbb"])
    assert plan.batches == ((0,), (3,))
    assert (plan.cached, plan.missing, plan.absent) == (1, 2, 1)


def test_a_resumed_plan_keeps_the_batches_that_were_left() -> None:
    texts: list[str | None] = ["x" * n for n in range(12, 0, -1)]
    whole = plan_of(texts, batch_size=3).batches
    done = [texts[i] for batch in whole[:2] for i in batch]
    assert plan_of(texts, stored=[text for text in done if text], batch_size=3).batches == whole[2:]


def test_shards_are_disjoint_and_together_complete() -> None:
    texts: list[str | None] = ["x" * n for n in range(1, 12)]
    whole = plan_of(texts).batches
    shards = [plan_of(texts, shard=Shard(i, 3)).batches for i in range(3)]
    assert sorted(batch for shard in shards for batch in shard) == sorted(whole)
    assert sum(map(len, shards)) == len(whole)


def test_a_shard_is_the_same_whatever_the_others_have_stored() -> None:
    texts: list[str | None] = ["x" * n for n in range(12, 0, -1)]
    second = plan_of(texts, shard=Shard(1, 2))
    done = [texts[i] for batch in plan_of(texts, shard=Shard(0, 2)).batches for i in batch]
    assert plan_of(texts, stored=[text for text in done if text], shard=Shard(1, 2)).batches == second.batches


def test_unreadable_samples_are_counted_and_not_planned() -> None:
    texts: list[str | None] = ["a", "b", "c"]
    keys = as_keys(content_key((text or "").encode()) for text in texts)
    bad = {1: SampleError("missing", "no file")}
    plan = make_plan(manifest_of(texts), keys, bad, None, batch_size=8, shard=Shard())
    assert plan.batches == ((0, 2),)
    assert plan.unreadable == 1


@pytest.mark.parametrize("text", ["1", "1/1", "3/2", "-1/2", "a/b", "0/0", "1/2/3"])
def test_a_shard_is_i_of_n(text: str) -> None:
    with pytest.raises(ConfigError, match="--shard: expected i/n"):
        Shard.parse(text)


def test_the_first_shard_is_number_zero() -> None:
    assert Shard.parse("0/4") == Shard(0, 4)
