"""Stored features of a frozen tower give what its network gives, and are those of `extract`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data.manifest import Manifest, Modality, Source
from featurestore.store import FeatureStore
from finetune.errors import FinetuneError
from finetune.frozen import FrozenTower
from finetune.towers import Tower, load_tower

TOWERS: list[tuple[str, Modality]] = [
    ("open_clip", "text"), ("timm-efficientnet", "image"), ("clip", "image"), ("siglip", "text"), ("bert", "text"),
]  # fmt: skip


def tower_of(zoo: Any, name: str, modality: Modality, **options: Any) -> Tower:
    kind, _, model = name.partition("-")
    folder = zoo(kind)
    checkpoint = folder / f"test_{model}.pt"
    ids = {"timm": f"timm:test_{model}@{checkpoint}", "open_clip": f"local-dir:{folder}"}
    return load_tower(ids.get(kind, f"hf:{folder}"), modality=modality, device="cpu", **options)


def rows(sources: Sequence[Source]) -> Manifest:
    """Return samples as a manifest."""
    ids = tuple(f"s{i}" for i in range(len(sources)))
    modality = sources[0].modality
    return Manifest(path=Path("rows.csv"), columns={}, ids=ids, sources=tuple(sources), input="x", modality=modality)


def vectors(tower: Tower, sources: Sequence[Source]) -> torch.Tensor:
    made: torch.Tensor = tower(tower.collate([tower.read(source) for source in sources]))[0]
    return made


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", create=True)


@pytest.mark.parametrize(("name", "modality"), TOWERS)
def test_a_frozen_tower_gives_the_vectors_of_its_network(
    name: str, modality: Modality, zoo: Any, images: list[Source], texts: list[Source], store: FeatureStore
) -> None:
    sources = images if modality == "image" else texts
    tower = tower_of(zoo, name, modality)
    tower.projection = torch.nn.Linear(tower.dim, 3)
    frozen = FrozenTower(tower, store)
    frozen.fill(rows(sources))
    assert frozen.look_up(rows(sources)) == {}
    for some in (sources, sources[1:3], sources[:1]):
        made = vectors(frozen, some)
        torch.testing.assert_close(made, vectors(tower, some), atol=1e-5, rtol=1e-5)
        made.square().sum().backward()
    assert all(parameter.grad is None for parameter in tower.network.parameters())
    assert tower.projection.weight.grad is not None
    (features,) = store.features()
    assert features.fingerprint == tower.encoder.spec.fingerprint


@pytest.mark.parametrize("name", ["timm-vit", "dinov2"])
def test_a_frozen_tower_gives_the_tokens_of_its_network(
    name: str, zoo: Any, images: list[Source], store: FeatureStore
) -> None:
    tower = tower_of(zoo, name, "image", tokens=True)
    frozen = FrozenTower(tower, store)
    frozen.fill(rows(images))
    assert frozen.look_up(rows(images)) == {}
    with torch.no_grad():
        whole = tower(tower.collate([tower.read(source) for source in images]))
    made = frozen(frozen.collate([frozen.read(source) for source in images]))
    for ours, theirs in zip(made, whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert sorted(each.spec.pooling == "tokens" for each in store.features()) == [False, True]


def test_what_another_process_should_have_stored_is_missed(zoo: Any, images: list[Source], store: FeatureStore) -> None:
    with pytest.raises(FinetuneError, match=r"holds nothing of s0 by .*; the processes of a run share one --store"):
        FrozenTower(tower_of(zoo, "vit", "image"), store).look_up(rows(images))
