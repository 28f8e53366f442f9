"""Stored activations below the lowest trained block give what the whole network gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from data.errors import SampleError
from data.manifest import Manifest, Modality, Source
from featurestore.errors import EncoderError
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore
from featurestore.video_encoder import ClipTransform, VideoEncoder
from finetune.partial import PartialTower
from finetune.towers import Tower, load_tower
from finetune.unfreeze import Policy

IDS = {
    "open_clip": "local-dir:{folder}",
    "open_clip_resnet": "local-dir:{folder}",
    "timm-vit": "timm:test_vit@{folder}/test_vit.pt",
    "timm-efficientnet": "timm:test_efficientnet@{folder}/test_efficientnet.pt",
    "resnet18": "torchvision:resnet18@{folder}/resnet18.pt",
    **dict.fromkeys(("clip", "siglip", "dinov2", "vit", "bert", "distilbert", "roberta"), "hf:{folder}"),
}
TOWERS: list[tuple[str, Modality]] = [
    ("open_clip", "image"), ("open_clip", "text"), ("open_clip_resnet", "image"), ("timm-vit", "image"),
    ("timm-efficientnet", "image"), ("resnet18", "image"), ("clip", "image"), ("clip", "text"), ("siglip", "image"),
    ("siglip", "text"), ("dinov2", "image"), ("vit", "image"), ("bert", "text"), ("distilbert", "text"),
    ("roberta", "text"),
]  # fmt: skip
SIDE = 32
LAST = Policy.parse("last:1")


def tower_of(zoo: Any, name: str, modality: Modality, **options: Any) -> Tower:
    folder = zoo("timm" if name.startswith("timm") else name)
    return load_tower(IDS[name].format(folder=folder), modality=modality, device="cpu", **options)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", create=True)


def rows(sources: Sequence[Source]) -> Manifest:
    """Return samples as a manifest."""
    ids = tuple(f"s{i}" for i in range(len(sources)))
    modality = sources[0].modality
    return Manifest(path=Path("rows.csv"), columns={}, ids=ids, sources=tuple(sources), input="x", modality=modality)


def filled(tower: PartialTower, sources: Sequence[Source]) -> dict[int, SampleError]:
    """Compute what the store lacks, and return what is wrong with samples."""
    tower.fill(rows(sources))
    return tower.look_up(rows(sources))


def vectors(tower: Tower, sources: Sequence[Source]) -> torch.Tensor:
    made: torch.Tensor = tower(tower.collate([tower.read(source) for source in sources]))[0]
    return made


@pytest.mark.parametrize(("name", "modality"), TOWERS)
def test_vectors_and_gradients_are_those_of_the_whole_network(
    name: str, modality: Modality, zoo: Any, images: list[Source], texts: list[Source], store: FeatureStore
) -> None:
    sources = images if modality == "image" else texts
    tower = tower_of(zoo, name, modality)
    partial = PartialTower(tower, LAST, store)
    assert filled(partial, sources) == {}
    LAST.apply(tower.network, 0)
    tower.network.eval()  # dropout would draw other numbers
    for some in (sources, sources[1:3], sources[:1]):  # other batches have other paddings
        grads = []
        for each in (tower, partial):
            tower.zero_grad()
            made = vectors(each, some)
            made.square().sum().backward()
            grads.append({n: p.grad.clone() for n, p in tower.network.named_parameters() if p.grad is not None})
            if each is tower:
                whole = made
        torch.testing.assert_close(made, whole, atol=1e-5, rtol=1e-5)
        assert grads[0].keys() == grads[1].keys() != set()
        for key, grad in grads[0].items():
            torch.testing.assert_close(grads[1][key], grad, atol=1e-4 * float(grad.abs().max()) + 1e-6, rtol=0)
    # The network is as it was: whoever has it sees no trace.
    assert not any("forward" in vars(module) for module in tower.network.modules())


def test_clips_are_cut_where_blocks_pass_on_the_size_of_their_grid(videos: list[Source], store: FeatureStore) -> None:
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    blocks = [
        MSBlockConfig(1, 8, 8, [3, 3, 3], [1, 1, 1], [1, 2, 2], [1, 1, 1]),
        MSBlockConfig(1, 8, 16, [3, 3, 3], [1, 1, 1], [1, 2, 2], [1, 1, 1]),
        MSBlockConfig(2, 16, 16, [3, 3, 3], [1, 1, 1], [1, 1, 1], [1, 1, 1]),
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MViT((SIDE, SIDE), 4, blocks, residual_pool=False, residual_with_cls_embed=False, rel_pos_embed=True,
                     proj_after_attn=True).eval()  # fmt: skip
    model.head = torch.nn.Identity()
    mean = (0.5, 0.5, 0.5)
    size = (SIDE, SIDE)
    transform = ClipTransform(frames=4, resize=size, crop=size, interpolation="bilinear", mean=mean, std=mean)
    spec = EncoderSpec(
        family="torchvision", modality="video", architecture={}, weights="0" * 64, preprocess={}, layer="pre_logits",
        pooling="native", precision="fp32", dtype="float32", dim=16,
    )  # fmt: skip
    encoder = VideoEncoder(
        spec=spec, transform=transform, compute=model, reference_transform=model, device="cpu", network=model
    )
    tower = Tower("torchvision:mvit_v2_s/random:0", encoder)
    partial = PartialTower(tower, LAST, store)
    assert filled(partial, videos) == {}
    torch.testing.assert_close(vectors(partial, videos), vectors(tower, videos), atol=1e-5, rtol=0)
    assert vectors(partial, videos).requires_grad


def test_only_the_upper_part_is_computed_and_only_once_below(
    zoo: Any, images: list[Source], store: FeatureStore
) -> None:
    tower = tower_of(zoo, "timm-efficientnet", "image")
    partial = PartialTower(tower, LAST, store)
    calls = {"below": 0, "above": 0}
    parts = {"below": tower.network.blocks[-2][0].conv_dw, "above": tower.network.blocks[-1][0].conv_dw}  # type: ignore[index,union-attr]
    for where, module in parts.items():
        module.register_forward_hook(lambda *_, where=where: calls.__setitem__(where, calls[where] + 1))
    filled(partial, images)
    assert calls["above"] == 0
    done = calls["below"]
    filled(partial, images)
    for _ in range(3):
        vectors(partial, images)
    assert calls == {"below": done, "above": 3}

    # Another process finds what this one has stored.
    again = PartialTower(tower_of(zoo, "timm-efficientnet", "image"), LAST, FeatureStore(store.path))
    assert again.specification == partial.specification
    assert again.look_up(rows(images)) == {}
    torch.testing.assert_close(vectors(again, images), vectors(partial, images), atol=0, rtol=0)
    assert len(store.features()) == 1
    assert len(store.features()[0]) == len(images)


def test_the_specification_says_what_is_stored(zoo: Any, store: FeatureStore) -> None:
    spec = PartialTower(tower_of(zoo, "timm-efficientnet", "image"), LAST, store).specification
    assert (spec.pooling, spec.dtype, spec.layer, spec.dim) == ("tokens", "float32", "block 4", 48)
    assert spec.architecture["activations"] == {"block": 4, "of": 5, "shape": [10, 10]}
    lower = PartialTower(tower_of(zoo, "timm-efficientnet", "image"), Policy.parse("last:2"), store).specification
    assert lower.fingerprint != spec.fingerprint
    # What is made of the activations above is not what they are.
    cls, mean = (PartialTower(tower_of(zoo, "bert", "text", pooling=p), LAST, store) for p in ("cls", "mean"))
    assert cls.specification == mean.specification
    assert cls.specification.architecture["activations"]["shape"] is None


def test_training_moves_the_upper_part_only(zoo: Any, texts: list[Source], store: FeatureStore) -> None:
    tower = tower_of(zoo, "bert", "text")
    partial = PartialTower(tower, LAST, store)
    filled(partial, texts)
    LAST.apply(tower.network, 0)
    before = {name: tensor.clone() for name, tensor in tower.network.state_dict().items()}
    optimizer = torch.optim.AdamW(tower.network.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        vectors(partial, texts).square().sum().backward()
        optimizer.step()
    moved = {name for name, tensor in tower.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert all(name.startswith("encoder.layer.1.") for name in moved)
    tower.network.eval()
    torch.testing.assert_close(vectors(partial, texts), vectors(tower, texts), atol=1e-5, rtol=1e-5)


def test_a_bad_sample_is_named_and_the_others_are_kept(
    zoo: Any, images: list[Source], store: FeatureStore, tmp_path: Path
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    bad = Source("image", path=tmp_path / "bad.png")
    gone = Source("image", path=tmp_path / "gone.png")
    partial = PartialTower(tower_of(zoo, "vit", "image"), LAST, store)
    failures = filled(partial, [bad, *images, gone, images[0]])
    assert {i: error.kind for i, error in failures.items()} == {0: "unreadable", len(images) + 1: "missing"}
    for source in (bad, gone):
        with pytest.raises(SampleError):
            partial.read(source)
    assert len(store.features()[0]) == len(images)


@pytest.mark.parametrize(
    "policy", ["none", "all", "frozen:0", "frozen:1", "frozen:0.5:linear:2", "gradual:2:1", "lora:2"]
)
def test_other_policies_are_refused(policy: str, zoo: Any, store: FeatureStore) -> None:
    with pytest.raises(EncoderError, match=f"of --unfreeze {policy} no lower blocks stay as they are"):
        PartialTower(tower_of(zoo, "vit", "image"), Policy.parse(policy), store)


def test_what_cannot_be_kept_is_refused(zoo: Any, store: FeatureStore) -> None:
    with pytest.raises(EncoderError, match=r"--unfreeze last:2 freezes none of the 2 blocks of ViTModel"):
        PartialTower(tower_of(zoo, "vit", "image"), Policy.parse("last:2"), store)
    with pytest.raises(EncoderError, match="does not call the blocks of its network"):
        # Its tokens are read off a traced copy of the network, whose blocks are no modules any more.
        PartialTower(tower_of(zoo, "resnet18", "image", tokens=True), LAST, store)
    assert store.features() == []


def test_a_network_that_looks_below_again_is_refused(zoo: Any, store: FeatureStore) -> None:
    tower = tower_of(zoo, "vit", "image")
    network: Any = tower.network
    plain = network.layernorm.forward
    seen: list[torch.Tensor] = []
    network.embeddings.register_forward_hook(lambda module, inputs, output: seen.append(output))
    network.layernorm.forward = lambda hidden: plain(hidden + seen[-1].mean(1, keepdim=True))
    with pytest.raises(EncoderError, match=r"cannot go on from the stored output of block 1: its vectors are others"):
        PartialTower(tower, LAST, store)
