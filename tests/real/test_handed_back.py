"""Real weights, trained for a few steps on real images and texts: cached below, handed back, encoded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from data.manifest import Manifest, Modality
from data.sources import read_manifest
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.store import FeatureStore
from finetune.handback import save_encoder
from finetune.partial import PartialTower
from finetune.towers import Tower, load_tower
from finetune.unfreeze import Policy

pytestmark = [pytest.mark.real_data]

CASES: list[tuple[str, Modality, str, str]] = [
    ("offline:efficientnet-lite0", "image", "brain_mri", "last:1"),
    ("offline:minilm", "text", "rt_polarity", "last:2"),
]


def some_of(datasets: Path, name: str, modality: Modality, count: int = 12) -> Manifest:
    manifest = read_manifest(datasets / name / "manifest.csv", input="path" if modality == "image" else "text")
    return manifest.select(range(0, len(manifest), len(manifest) // count)[:count])


@pytest.mark.parametrize(("encoder_id", "modality", "name", "policy"), CASES)
def test_cached_training_comes_back_as_an_encoder(
    encoder_id: str, modality: Modality, name: str, policy: str, datasets: Path, tmp_path: Path
) -> None:
    rows = some_of(datasets, name, modality)
    sources = [source for source in rows.sources if source is not None]
    tower = load_tower(encoder_id, modality=modality, device="cpu")
    partial = PartialTower(tower, Policy.parse(policy), FeatureStore(tmp_path / "store", create=True))
    partial.fill(rows)
    assert partial.look_up(rows) == {}
    cached = partial.collate([partial.read(source) for source in sources])
    whole = tower.collate([tower.read(source) for source in sources])
    with torch.no_grad():
        torch.testing.assert_close(partial(cached)[0], tower(whole)[0], atol=1e-5, rtol=1e-5)

    losses = train(partial, cached, policy)
    assert losses[-1] < losses[0]
    with torch.no_grad():
        trained = tower(whole)[0]
        torch.testing.assert_close(partial(cached)[0], trained, atol=1e-5, rtol=1e-5)
    save_encoder(tmp_path / "encoder", {modality: partial}, similarity=None)
    encoder = load_encoder(str(tmp_path / "encoder"), EncoderOptions(modality=modality))
    made = encoder.encode(encoder.collate([encoder.read(source) for source in sources]))
    assert isinstance(made, torch.Tensor)
    torch.testing.assert_close(made, trained, atol=1e-5, rtol=1e-5)
    assert encoder.spec.weights != tower.encoder.spec.weights


def train(tower: Tower, batch: object, policy: str) -> list[float]:
    """Learn an arbitrary label of each sample by heart; dropout is off, so that the loss can be compared."""
    chosen = Policy.parse(policy)
    chosen.apply(tower.network, 0)
    tower.network.eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = torch.nn.Linear(tower.dim, 2)
    parameters = [each for each in (*tower.network.parameters(), *classifier.parameters()) if each.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=1e-4), []
    for _ in range(3):
        optimizer.zero_grad()
        logits = classifier(tower(batch)[0])
        loss = functional.cross_entropy(logits, torch.arange(len(logits)) % 2)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
