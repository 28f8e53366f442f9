"""Small stores of random embeddings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from data.digest import Keys, as_keys, content_key
from featurestore.features import Features
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore

DIM = 6


class Samples(NamedTuple):
    keys: Keys
    x: np.ndarray
    ids: list[str]


def make_spec(**changes: Any) -> EncoderSpec:
    """Return the specification of an encoder that does not exist."""
    fields: dict[str, Any] = {
        "family": "toy",
        "modality": "image",
        "architecture": {"name": "toy", "layers": [1, 2]},
        "weights": "0" * 64,
        "preprocess": {"size": 8},
        "layer": "last",
        "pooling": "native",
        "precision": "fp32",
        "dtype": "float32",
        "dim": DIM,
    }
    return EncoderSpec(**{**fields, **changes})


def make_samples(start: int, stop: int) -> Samples:
    """Return samples number `start` to `stop`; equal numbers give equal samples."""
    keys = as_keys(content_key(str(number).encode()) for number in range(start, stop))
    rows = [np.random.default_rng(number).standard_normal(DIM) for number in range(start, stop)]
    x = np.array(rows, np.float32).reshape(-1, DIM)
    return Samples(keys, x, [f"sample {number} é" for number in range(start, stop)])


@pytest.fixture
def spec() -> Callable[..., EncoderSpec]:
    return make_spec


@pytest.fixture
def samples() -> Callable[[int, int], Samples]:
    return make_samples


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", create=True)


@pytest.fixture
def features(store: FeatureStore) -> Features:
    """The empty features of one encoder, called ``toy``."""
    return store.open(make_spec(), name="toy")


@pytest.fixture
def add(features: Features) -> Callable[..., Features]:
    """Add samples of a range of numbers as one part; return the features as they are then."""

    def write(start: int, stop: int, **options: Any) -> Features:
        some = make_samples(start, stop)
        with features.writer(durable=False, written_by={"encoder": "toy"}, **options) as writer:
            writer.add(some.keys, some.x, some.ids)
        return features.refresh()

    return write
