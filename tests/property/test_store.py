"""Whatever is done to a store, in whatever order, its committed rows are those of a dictionary."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from data.digest import Keys, as_keys, content_key
from featurestore.features import Features
from featurestore.maintenance import compact, gc, verify_store
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore
from featurestore.writer import Writer

DIM = 2
SPEC = EncoderSpec(
    family="toy",
    modality="text",
    architecture={},
    weights="0" * 64,
    preprocess={},
    layer="last",
    pooling="native",
    precision="fp32",
    dtype="float32",
    dim=DIM,
)
NUMBERS = st.lists(st.integers(0, 30), max_size=12)


def keys_of(numbers: list[int]) -> Keys:
    return as_keys(content_key(str(number).encode()) for number in numbers)


class Store(RuleBasedStateMachine):
    """Adds, commits, crashes, merges and cleans; the model is a dictionary from number to value."""

    @initialize()
    def create(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.store = FeatureStore(self.directory / "store", create=True)
        self.store.open(SPEC, name="toy")
        self.committed: dict[int, float] = {}
        self.buffered: dict[int, float] = {}
        self.value = 0.0
        self.writer = self.fresh_writer()

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            shutil.rmtree(self.directory)

    def features(self) -> Features:
        return self.store.features()[0]

    def fresh_writer(self) -> Writer:
        return self.features().writer(durable=False, flush_seconds=1e9, written_by={})

    @rule(numbers=NUMBERS)
    def add(self, numbers: list[int]) -> None:
        self.value += 1
        self.writer.add(
            keys_of(numbers), np.full((len(numbers), DIM), self.value, np.float32), [str(number) for number in numbers]
        )
        for number in numbers:
            self.buffered.setdefault(number, self.value)

    @rule()
    def flush(self) -> None:
        self.writer.flush()
        self.committed = {**self.buffered, **self.committed}
        self.buffered = {}

    @rule()
    def crash_before_the_commit(self) -> None:
        """Leave everything a flush writes except the attributes that publish it."""
        name = self.writer.flush()
        if name is not None:
            attributes = self.features().directory / name / "zarr.json"
            attributes.write_text(json.dumps({"attributes": {}, "zarr_format": 3, "node_type": "group"}))
        self.buffered = {}
        self.writer = self.fresh_writer()

    @rule(part_rows=st.integers(1, 40))
    def compact(self, part_rows: int) -> None:
        compact(self.features(), part_rows=part_rows, durable=False)

    @precondition(lambda self: len(self.committed) > 3)
    @rule()
    def crash_before_the_last_commit_of_a_compaction(self) -> None:
        """Leave all merged parts but the last, which would have replaced the old ones."""
        result = compact(self.features(), part_rows=2, durable=False)
        if result.parts:
            shutil.rmtree(self.features().directory / result.parts[-1])

    @rule()
    def gc(self) -> None:
        gc(self.store, older_than_hours=0)

    @invariant()
    def reads_as_the_dictionary(self) -> None:
        if not hasattr(self, "store"):
            return
        features = self.features()
        numbers = list(self.committed)
        assert len(features) == len(numbers)
        np.testing.assert_array_equal(features.take(keys_of(numbers))[:, 0], [self.committed[n] for n in numbers])
        assert features.ids(keys_of(numbers)) == [str(number) for number in numbers]
        absent = [number for number in range(31) if number not in self.committed]
        assert not features.contains(keys_of(absent)).any()
        keys, x = features.load()
        np.testing.assert_array_equal(features.take(keys), x)

    @invariant()
    def is_whole(self) -> None:
        if hasattr(self, "store"):
            assert verify_store(self.store, deep=True).problems == ()


TestStore = Store.TestCase
TestStore.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
