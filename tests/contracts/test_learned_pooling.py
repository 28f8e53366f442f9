"""Poolings that are learned on the tokens of an encoder, in training and as a part of the encoder handed back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.errors import ConfigError
from data.manifest import Manifest, Modality, Source
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.errors import EncoderError, WeightsUnavailable
from featurestore.store import FeatureStore
from finetune.frozen import FrozenTower
from finetune.handback import save_encoder
from finetune.partial import PartialTower
from finetune.stored import StoredTower
from finetune.towers import Tower, learned_pooling, load_tower
from finetune.unfreeze import Policy

IDS = {
    "timm-vit": "timm:test_vit@{folder}/test_vit.pt",
    "timm-efficientnet": "timm:test_efficientnet@{folder}/test_efficientnet.pt",
    **dict.fromkeys(("clip", "dinov2", "bert"), "hf:{folder}"),
}
TOWERS: list[tuple[str, Modality]] = [
    ("clip", "image"), ("clip", "text"), ("dinov2", "image"), ("bert", "text"), ("timm-vit", "image"),
    ("timm-efficientnet", "image"),
]  # fmt: skip
KINDS = ("learned:attention", "learned:cls_token")


def tower_of(zoo: Any, name: str, modality: Modality, pooling: str, **options: Any) -> Tower:
    folder = zoo("timm" if name.startswith("timm") else name)
    return load_tower(IDS[name].format(folder=folder), modality=modality, device="cpu", pooling=pooling, **options)


def train(tower: Tower, sources: Sequence[Source], policy: str = "last:1") -> None:
    """Move what a policy lets move, the pooling and the projection."""
    Policy.parse(policy).apply(tower.network, 0)
    optimizer = torch.optim.AdamW([each for each in tower.parameters() if each.requires_grad], lr=1e-2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(2):
            optimizer.zero_grad()
            vectors_of(tower, sources)[:, 0].square().sum().backward()
            optimizer.step()
    tower.eval()


def vectors_of(tower: Tower, sources: Sequence[Source]) -> Tensor:
    vectors: Tensor = tower(tower.collate([tower.read(source) for source in sources]))[0]
    return vectors


def batch_of(encoder: Any, sources: Sequence[Source]) -> Any:
    return encoder.collate([encoder.read(source) for source in sources])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "modality"), TOWERS)
def test_it_comes_back_with_the_encoder(
    name: str, modality: Modality, kind: str, zoo: Any, images: list[Source], texts: list[Source], tmp_path: Path
) -> None:
    sources = images if modality == "image" else texts
    tower = tower_of(zoo, name, modality, kind)
    assert tower.pooling is not None
    before = {key: value.clone() for key, value in tower.pooling.state_dict().items()}
    train(tower, sources)
    moved = [key for key, value in tower.pooling.state_dict().items() if not torch.equal(value, before[key])]
    assert len(moved) == len(before)
    save_encoder(tmp_path / "encoder", {modality: tower}, similarity=None)

    encoder: Any = load_encoder(str(tmp_path / "encoder"), EncoderOptions(modality=modality))
    made = encoder.encode(batch_of(encoder, sources))
    torch.testing.assert_close(made, vectors_of(tower, sources).detach(), atol=1e-5, rtol=0)
    reference = torch.as_tensor(encoder.encode_reference(sources))
    torch.testing.assert_close(reference, made, atol=1e-5, rtol=1e-4)
    spec = encoder.spec
    assert (spec.pooling, spec.layer, spec.ragged, spec.dtype) == ("native", "token_pooling", False, "float16")
    assert spec.architecture["token_pooling"]["kind"] == kind.removeprefix("learned:")
    assert spec.fingerprint != tower.encoder.spec.fingerprint


def test_the_fingerprint_knows_its_kind_and_its_weights(zoo: Any, tmp_path: Path) -> None:
    prints = set()
    for number, (kind, seed) in enumerate([(KINDS[0], 0), (KINDS[0], 1), (KINDS[1], 0)]):
        tower = tower_of(zoo, "bert", "text", kind, seed=seed)
        save_encoder(tmp_path / f"{number}", {"text": tower}, similarity=None)
        prints.add(load_encoder(str(tmp_path / f"{number}"), EncoderOptions()).spec.fingerprint)
    save_encoder(tmp_path / "again", {"text": tower_of(zoo, "bert", "text", KINDS[0])}, similarity=None)
    assert len(prints) == 3
    assert load_encoder(str(tmp_path / "again"), EncoderOptions()).spec.fingerprint in prints


def test_a_projection_follows_it(zoo: Any, images: list[Source], tmp_path: Path) -> None:
    tower = tower_of(zoo, "clip", "image", KINDS[0])
    tower.projection = nn.Linear(tower.dim, 5)
    train(tower, images)
    save_encoder(tmp_path / "encoder", {"image": tower}, similarity=None)
    encoder: Any = load_encoder(str(tmp_path / "encoder"), EncoderOptions())
    found = encoder.encode(batch_of(encoder, images))
    torch.testing.assert_close(found, vectors_of(tower, images).detach(), atol=1e-5, rtol=0)
    assert (encoder.spec.layer, encoder.spec.dim) == ("projection", 5)
    assert {"token_pooling", "projection"} <= set(encoder.spec.architecture)


def test_padding_has_no_part(zoo: Any, texts: list[Source]) -> None:
    for kind in KINDS:
        tower = tower_of(zoo, "bert", "text", kind)
        together = vectors_of(tower, texts)
        alone = torch.cat([vectors_of(tower, [each]) for each in texts])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_tokens_and_other_poolings_are_still_there(zoo: Any, images: list[Source], tmp_path: Path) -> None:
    tower = tower_of(zoo, "dinov2", "image", KINDS[0])
    train(tower, images)
    save_encoder(tmp_path / "encoder", {"image": tower}, similarity=None)
    folder = str(tmp_path / "encoder")
    options = EncoderOptions(also=("tokens", "mean", "tokens@1"))
    encoder: Any = load_encoder(folder, options)
    assert [each.pooling for each in encoder.levels] == ["native", "tokens", "mean", "tokens@1"]
    pooled, tokens, mean, _ = encoder.encode_levels(batch_of(encoder, images))
    assert tower.pooling is not None
    torch.testing.assert_close(pooled, tower.pooling(tokens).detach(), atol=1e-5, rtol=0)
    torch.testing.assert_close(mean, tokens[:, 1:].mean(1), atol=1e-5, rtol=0)
    for asked in ("tokens", "mean", "native"):
        alone = load_encoder(folder, EncoderOptions(pooling=asked))
        assert alone.spec in encoder.levels
        assert alone.spec.pooling == asked
    reverse: Any = load_encoder(folder, replace(options, pooling="tokens", also=("native",)))
    assert [each.pooling for each in reverse.levels] == ["tokens", "native"]
    assert torch.equal(reverse.encode_levels(batch_of(reverse, images))[1], pooled)


def test_tokens_stay_beside_the_vector_where_something_reads_them(zoo: Any, images: list[Source]) -> None:
    for asked in (False, True):
        tower = tower_of(zoo, "clip", "image", KINDS[1], tokens=asked)
        vectors, tokens = tower(tower.collate([tower.read(each) for each in images]))
        assert vectors.shape == (len(images), 32)
        assert (tokens is not None) == asked
    assert tokens.shape == (len(images), 17, 32)


def test_it_can_be_trained_further(zoo: Any, images: list[Source], tmp_path: Path) -> None:
    tower = tower_of(zoo, "clip", "image", KINDS[0])
    train(tower, images)
    save_encoder(tmp_path / "one", {"image": tower}, similarity=None)
    for pooling in ("auto", KINDS[1]):
        second = load_tower(str(tmp_path / "one"), modality="image", device="cpu", pooling=pooling)
        train(second, images)
        save_encoder(tmp_path / pooling, {"image": second}, similarity=None)
        encoder: Any = load_encoder(str(tmp_path / pooling), EncoderOptions())
        made = encoder.encode(batch_of(encoder, images))
        torch.testing.assert_close(made, vectors_of(second, images).detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("policy", ["last:1", "none"])
@pytest.mark.parametrize(("name", "modality"), [("clip", "image"), ("bert", "text")])
def test_it_reads_the_tokens_of_a_tower_that_is_kept(
    name: str, modality: Modality, policy: str, zoo: Any, images: list[Source], texts: list[Source], tmp_path: Path
) -> None:
    sources, store = images if modality == "image" else texts, FeatureStore(tmp_path / "store", create=True)
    tower = tower_of(zoo, name, modality, KINDS[0], tokens=modality == "image")
    kept: StoredTower = (
        FrozenTower(tower, store) if policy == "none" else PartialTower(tower, Policy.parse(policy), store)
    )
    assert kept.pooling is tower.pooling
    ids = tuple(f"s{i}" for i in range(len(sources)))
    rows = Manifest(path=Path("rows.csv"), columns={}, ids=ids, sources=tuple(sources), input="x", modality=modality)
    kept.fill(rows)
    assert kept.look_up(rows) == {}
    torch.testing.assert_close(vectors_of(kept, sources), vectors_of(tower, sources), atol=1e-5, rtol=1e-5)
    assert (kept(kept.collate([kept.read(each) for each in sources]))[1] is not None) == (modality == "image")


def test_damage_is_refused(zoo: Any, texts: list[Source], tmp_path: Path) -> None:
    tower = tower_of(zoo, "bert", "text", KINDS[0])
    train(tower, texts)
    folder = tmp_path / "encoder"
    save_encoder(folder, {"text": tower}, similarity=None)
    state = load_file(folder / "text.safetensors")
    save_file({name: each for name, each in state.items() if name != "pooling.query"}, folder / "text.safetensors")
    with pytest.raises(WeightsUnavailable, match="do not fit AttentionPooling"):
        load_encoder(str(folder), EncoderOptions())
    described = json.loads((folder / "encoder.json").read_text())
    described["towers"]["text"]["token_pooling"]["kind"] = "median"
    (folder / "encoder.json").write_text(json.dumps(described))
    with pytest.raises(WeightsUnavailable, match=r"towers\.text\.token_pooling\.kind"):
        load_encoder(str(folder), EncoderOptions())


def test_what_there_is_not_is_refused_in_one_line(zoo: Any) -> None:
    assert [learned_pooling(each) for each in ("auto", "cls", *KINDS)] == [None, None, "attention", "cls_token"]
    with pytest.raises(ConfigError, match="did you mean 'learned:attention'"):
        learned_pooling("learned:atention")
    folder = zoo("open_clip")
    with pytest.raises(EncoderError, match=r"pooling learned:attention reads the tokens of .* no pooling 'tokens'"):
        load_tower(f"local-dir:{folder}", modality="text", device="cpu", pooling=KINDS[0])
