"""Which stored features an encoder's id means."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import ConfigError
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore
from heads.inputs import find_features

SPEC = EncoderSpec(
    family="test",
    modality="text",
    architecture={},
    weights="0" * 64,
    preprocess={},
    layer="output",
    pooling="mean",
    precision="fp32",
    dtype="float32",
    dim=4,
    version=1,
)


def test_an_id_with_two_poolings_is_told_by_them_whatever_the_manifest_holds(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    made = [store.open(replace(SPEC, pooling=pooling), name="test:a") for pooling in ("mean", "cls")]
    with pytest.raises(ConfigError, match=r"differ in pooling .*choose with --pooling") as raised:
        find_features(store, ["test:a"], modality="image")
    assert f"test:a@{made[0].fingerprint[:12]}" in str(raised.value)
    assert find_features(store, ["test:a"], pooling="cls", modality="image")[0].fingerprint == made[1].fingerprint


def test_an_id_of_two_towers_is_that_of_the_modality(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "store", create=True)
    made = {kind: store.open(replace(SPEC, modality=kind), name="test:a").fingerprint for kind in ("image", "text")}
    assert [each.fingerprint for each in find_features(store, ["test:a"], modality="image")] == [made["image"]]
