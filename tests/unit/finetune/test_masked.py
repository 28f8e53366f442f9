"""Masked modelling: what is hidden is hidden before the encoder computes, in every kind of transformer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d

from data.errors import ConfigError
from data.manifest import Source
from featurestore.encoder import EncoderOptions
from featurestore.encoders import torchvision as torchvision_family
from featurestore.encoders._torchvision_video import video_encoder
from featurestore.errors import EncoderError
from featurestore.forward import freeze
from finetune.objectives.masked import Masked
from finetune.outputs import Outputs
from finetune.patches import Patches
from finetune.registry import make_objective
from finetune.towers import Tower, load_tower

SIDE = 32
SHAPE = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": 8,
}  # fmt: skip
SQUARE = {"size": {"height": SIDE, "width": SIDE}}


def image_tower(name: str) -> Tower:
    return load_tower(name, modality="image", device="cpu", tokens=True)


def of_open_clip(folder: Path) -> Tower:
    vision = {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 4, "vocab_size": 20, "width": 8, "heads": 1, "layers": 1}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {"size": SIDE, "mode": "RGB", "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    preprocess |= {"resize_mode": "shortest", "fill_color": 0}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return image_tower(f"open_clip:local-dir:{folder}")


def of_transformers(model: nn.Module, processor: object) -> Callable[[Path], Tower]:
    def make(folder: Path) -> Tower:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return image_tower(f"hf:{folder}")

    return make


def of_timm(_: Path) -> Tower:
    return image_tower("timm:test_vit/random:0")


def of_torchvision(_: Path) -> Tower:
    torch.manual_seed(0)
    model = models.VisionTransformer(224, 56, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
    model.heads = nn.Identity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision_family, "_build", lambda *_: (model, 16))
        return image_tower("torchvision:vit_b_16/random:0")


def of_clips(model: nn.Module, dim: int) -> Tower:
    encoder = video_encoder(
        freeze(model, "cpu"),
        name="tiny",
        dim=dim,
        weights=models.video.MViT_V2_S_Weights.DEFAULT,
        options=EncoderOptions(modality="video", also=("tokens",)),
        encoder="tiny",
    )
    encoder.transform = replace(encoder.transform, frames=4, resize=(SIDE,), crop=(SIDE, SIDE))
    return Tower("tiny", encoder)


def of_mvit(_: Path) -> Tower:
    torch.manual_seed(0)
    blocks = [
        MSBlockConfig(1, 16, 32, [], [3, 3, 3], [], [1, 2, 2]),
        MSBlockConfig(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
    ]
    options = {"residual_pool": True, "residual_with_cls_embed": False, "rel_pos_embed": True, "proj_after_attn": True}
    model = MViT((SIDE, SIDE), 4, blocks, **options)
    model.head[1] = nn.Identity()
    return of_clips(model, 32)


def of_swin(_: Path) -> Tower:
    torch.manual_seed(0)
    model = SwinTransformer3d([2, 4, 4], 24, [1, 1], [2, 2], [2, 2, 2])
    model.head = nn.Identity()
    return of_clips(model, 48)


def of_vit(folder: Path) -> Tower:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SHAPE)
    return of_transformers(transformers.ViTModel(config), transformers.ViTImageProcessor(**SQUARE))(folder)


def of_clip(folder: Path) -> Tower:
    torch.manual_seed(0)
    config = transformers.CLIPVisionConfig(**SHAPE, projection_dim=8)
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE["size"])
    return of_transformers(transformers.CLIPVisionModelWithProjection(config), processor)(folder)


def of_siglip(folder: Path) -> Tower:
    torch.manual_seed(0)
    config = transformers.SiglipVisionConfig(**SHAPE)
    return of_transformers(transformers.SiglipVisionModel(config), transformers.SiglipImageProcessor(**SQUARE))(folder)


def of_dinov2(folder: Path) -> Tower:
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(**SHAPE, num_register_tokens=4)
    processor = transformers.BitImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE["size"])
    return of_transformers(transformers.Dinov2WithRegistersModel(config), processor)(folder)


# name: how it is made, its grid of tokens, its cell, its prefix
TOWERS = {
    "open_clip": (of_open_clip, (4, 4), (8, 8), 1),
    "timm": (of_timm, (10, 10), (16, 16), 1),
    "torchvision": (of_torchvision, (4, 4), (56, 56), 1),
    "vit": (of_vit, (4, 4), (8, 8), 1),
    "clip": (of_clip, (4, 4), (8, 8), 1),
    "siglip": (of_siglip, (4, 4), (8, 8), 0),
    "dinov2": (of_dinov2, (4, 4), (8, 8), 5),
    "mvit": (of_mvit, (2, 4, 4), (2, 8, 8), 1),
    "swin3d": (of_swin, (2, 4, 4), (2, 8, 8), 0),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Callable[[str], Tower]:
    kept: dict[str, Tower] = {}

    def make(name: str) -> Tower:
        if name not in kept:
            kept[name] = TOWERS[name][0](tmp_path_factory.mktemp(name))
        return kept[name]

    return make


@pytest.fixture
def tower(made) -> Tower:
    """A tiny ViT of 4 x 4 patches; the tests leave it as it is."""
    return made("open_clip")


def batch_of(tower: Tower, n: int, *, seed: int = 0) -> Tensor:
    """Return n coarse pictures or clips as the tower collates them."""
    rng = np.random.default_rng(seed)
    frames = getattr(tower.encoder.transform, "frames", None)
    items = []
    for _ in range(n):
        coarse = rng.integers(0, 256, size=(frames or 1, 6, 6, 3), dtype=np.uint8)
        large = coarse.repeat(12, axis=1).repeat(12, axis=2)
        items.append(tower.encoder.prepare((Source("video"), large) if frames else large[0]))
    return tower.collate(items)


def inputs_of(tower: Tower, patches: Patches, batch: Tensor) -> Tensor:
    """Return the normalised input of a tower."""
    seen: list[Tensor] = []
    handle = patches.embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    tower(batch)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", TOWERS)
def test_nothing_of_a_hidden_cell_reaches_the_encoder(made, name: str) -> None:
    tower = made(name)
    patches = Patches.of(tower)
    _, grid, cell, prefix = TOWERS[name]
    assert (patches.grid, patches.cell, patches.prefix) == (grid, cell, prefix)
    mask = torch.arange(patches.count) % 3 > 0
    mask = torch.stack([mask, mask.roll(1)])
    vector = torch.randn(patches.embedding.out_channels, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)

    def tokens(changed: Tensor | None) -> Tensor:
        """Compute with other values in the cells that `changed` says."""

        def change(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
            cells = patches.cut(given[0])
            other = torch.randn(cells.shape, generator=noise)
            return (pasted(patches, torch.where(changed[..., None], other, cells), given[0].shape),)

        handle = None if changed is None else patches.embedding.register_forward_pre_hook(change)
        with torch.no_grad(), patches.hidden(mask, vector):
            _, made = tower(batch_of(tower, 2))
        if handle is not None:
            handle.remove()
        return made

    plain = tokens(None)
    assert torch.equal(tokens(mask), plain)
    assert not torch.allclose(tokens(~mask), plain, atol=1e-4)
    with torch.no_grad():
        _, sighted = tower(batch_of(tower, 2))
    assert not torch.allclose(sighted, plain, atol=1e-4)


def pasted(patches: Patches, cells: Tensor, shape: torch.Size) -> Tensor:
    """Return the pixels of cells: the inverse of `cut`, one cell at a time."""
    pixels = torch.empty(shape)
    for k, place in enumerate(np.ndindex(*patches.grid)):
        window = [slice(at * size, (at + 1) * size) for at, size in zip(place, patches.cell, strict=True)]
        values = cells[:, k].reshape(len(cells), *patches.cell, shape[1]).movedim(-1, 1)
        pixels[(slice(None), slice(None), *window)] = values
    return pixels


@pytest.mark.parametrize("name", ["open_clip", "mvit"])
def test_cells_are_cut_in_the_order_of_the_tokens(made, name: str) -> None:
    tower = made(name)
    patches = Patches.of(tower)
    pixels = inputs_of(tower, patches, batch_of(tower, 2))
    cells = patches.cut(pixels)
    assert cells.shape == (2, patches.count, patches.values)
    assert torch.equal(pasted(patches, cells, pixels.shape), pixels)


def test_a_hidden_patch_is_the_learned_vector(tower: Tower) -> None:
    patches = Patches.of(tower)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[0, 5] = mask[1, 14] = True
    vector = torch.arange(32.0)
    seen: list[Tensor] = []
    with patches.hidden(mask, vector):
        handle = patches.embedding.register_forward_hook(lambda _, __, out: seen.append(out))
        tower(batch_of(tower, 2))
        handle.remove()
    embedded = seen[0].flatten(2).transpose(1, 2)
    assert torch.equal(embedded[mask], vector.expand(2, -1))
    assert not (embedded[~mask] == vector).all(dim=1).any()
    assert not patches.embedding._forward_hooks
    assert not patches.embedding._forward_pre_hooks


@pytest.mark.parametrize(("share", "hidden"), [(0.75, 75), (0.29, 29), (0.333, 33), (0.999, 99)])
def test_the_share_is_exact_in_every_row(made, share: float, hidden: int) -> None:
    objective = Masked(tower=made("timm"), share=share, layers=1, dim=8, heads=1)
    mask = objective.draw(50)
    assert mask.shape == (50, 100)
    assert mask.sum(dim=1).tolist() == [hidden] * 50


def test_every_cell_is_as_likely_to_be_hidden(tower: Tower) -> None:
    objective = Masked(tower=tower, layers=1, dim=8, heads=1)
    torch.manual_seed(0)
    shares = objective.draw(4000).double().mean(dim=0)
    torch.testing.assert_close(shares, torch.full((16,), 0.75, dtype=torch.float64), atol=0.03, rtol=0)


def test_masks_follow_the_random_state(tower: Tower) -> None:
    objective = Masked(tower=tower, layers=1, dim=8, heads=1).eval()
    outputs = Outputs(inputs=batch_of(tower, 3))

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return objective(outputs).item()

    assert loss(0) == loss(0) != loss(1)


@pytest.mark.parametrize("target", ["pixels", "features"])
def test_the_loss_is_its_formula_and_only_hidden_cells_count(made, target: str) -> None:
    tower = made("mvit" if target == "pixels" else "open_clip")
    objective = Masked(tower=tower, target=target, layers=1, dim=8, heads=1)
    batch = batch_of(tower, 3)
    told: list[Tensor] = []
    objective.decoder.register_forward_hook(lambda _, __, out: (out.retain_grad(), told.append(out))[0])
    torch.manual_seed(0)
    loss = objective(Outputs(inputs=batch))
    loss.backward()
    torch.manual_seed(0)
    mask = objective.draw(3)
    if target == "pixels":
        right = objective.patches.cut(inputs_of(tower, objective.patches, batch))
    else:
        right = tower(batch)[1][:, 1:]
    right = (right - right.mean(-1, keepdim=True)) / (right.var(-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    terms = [((told[0][i, k] - right[i, k]) ** 2).mean() for i, k in mask.nonzero().tolist()]
    assert len(terms) == 3 * (24 if target == "pixels" else 12)
    torch.testing.assert_close(loss, torch.stack(terms).mean(), atol=1e-5, rtol=1e-5)
    reached = told[0].grad.abs().sum(dim=2) > 0
    assert torch.equal(reached, mask)


def test_no_gradient_flows_through_the_target(tower: Tower) -> None:
    objective = Masked(tower=tower, target="features", layers=1, dim=8, heads=1)
    embedding = tower.network.conv1.weight.requires_grad_()
    batch = batch_of(tower, 3)
    torch.manual_seed(0)
    (found,) = torch.autograd.grad(objective(Outputs(inputs=batch)), [embedding])
    torch.manual_seed(0)
    mask = objective.draw(3)
    constant = torch.from_numpy(tower(batch)[1][:, 1:].detach().numpy())
    constant = nn.functional.layer_norm(constant, (32,), eps=1e-6)
    with objective.patches.hidden(mask, objective.vector):
        told = objective.decoder(tower(batch)[1][:, 1:])
    (expected,) = torch.autograd.grad((told - constant)[mask].square().mean(), [embedding])
    embedding.requires_grad_(requires_grad=False)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    assert found.abs().max() > 0


def test_equal_tokens_are_told_apart_by_their_places(tower: Tower) -> None:
    objective = Masked(tower=tower, layers=1, dim=8, heads=1)
    told = objective.decoder(torch.ones(1, 16, 32))[0]
    assert torch.pdist(told).min() > 0


def test_the_tower_is_no_part_of_the_objective(tower: Tower) -> None:
    objective = Masked(tower=tower)
    theirs = set(tower.parameters())
    assert not theirs & set(objective.parameters())
    assert len(objective.decoder.layers.layers) == 2
    assert objective.decoder.inner.out_features == 256
    assert objective.decoder.layers.layers[0].self_attn.num_heads == 8
    assert objective.hidden == 12


def test_the_loss_of_real_pictures_falls(tmp_path) -> None:
    """Ramps of eight directions: a visible cell tells the direction, and so what the hidden ones are."""
    tower = of_vit(tmp_path / "tower")
    across, down = np.meshgrid(np.arange(48), np.arange(48))
    for i, angle in enumerate(np.arange(8) * np.pi / 4):
        ramp = 128 + 2.5 * ((across - 24) * np.cos(angle) + (down - 24) * np.sin(angle))
        Image.fromarray(ramp.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    sources = [Source("image", path=tmp_path / f"{i}.png") for i in range(8)]
    outputs = Outputs(inputs=tower.collate([tower.read(source) for source in sources]))
    torch.manual_seed(0)
    objective = Masked(tower=tower, layers=1, dim=32, heads=2)
    tower.requires_grad_()
    optimizer = torch.optim.AdamW([*objective.parameters(), *tower.parameters()], lr=5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(outputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[:3]) > 0.95
    assert np.mean(losses[-10:]) < 0.5  # 1 is what knows nothing


def test_the_table_of_objectives_makes_it(tower: Tower) -> None:
    settings = {"share": "0.5", "target": "features", "dim": "16", "heads": "2"}
    made = make_objective("masked", settings, tower=tower, dim=3, task=None)
    assert isinstance(made, Masked)
    assert (made.hidden, made.target, made.decoder.inner.out_features) == (8, "features", 16)


def test_other_networks_are_refused_by_name() -> None:
    with pytest.raises(EncoderError, match="timm:test_efficientnet/random:0: masked modelling needs a transformer"):
        Masked(tower=image_tower("timm:test_efficientnet/random:0"))
    text = load_tower("offline:minilm", modality="text", device="cpu", tokens=True)
    with pytest.raises(EncoderError, match="offline:minilm: masked modelling needs a transformer"):
        Masked(tower=text)
    blind = load_tower("timm:test_vit/random:0", modality="image", device="cpu")
    with pytest.raises(EncoderError, match="needs tokens of patches"):
        Masked(tower=blind)


def test_settings_that_do_not_fit_are_refused(tower: Tower) -> None:
    with pytest.raises(ConfigError, match=r"share=0.05 hides none of 16 cells"):
        Masked(tower=tower, share=0.05)
    with pytest.raises(ConfigError, match="dim=10, heads=4"):
        Masked(tower=tower, dim=10, heads=4)
