"""Tiny networks of every known kind with random weights, as encoders show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

SIDE = 32
_SHAPE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_TEXT = {**_SHAPE, "vocab_size": 50, "max_position_embeddings": 16}
_IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_TRUNK = {"image_size": 160, "timm_model_name": "test_vit", "timm_proj": "linear", "timm_pool": ""}
_VISION = {**_SHAPE, "image_size": SIDE, "patch_size": 16}


def _images() -> Tensor:
    return torch.randn(4, 3, SIDE, SIDE)


def _tokens() -> dict[str, Tensor]:
    mask = torch.ones(4, 8, dtype=torch.long)
    mask[0, 5:] = 0
    return {"input_ids": torch.randint(2, 50, (4, 8)), "attention_mask": mask}


def _hf(name: str, config: str, settings: dict[str, Any], **options: Any) -> nn.Module:
    import transformers

    network: nn.Module = getattr(transformers, name)(getattr(transformers, config)(**settings), **options)
    if getattr(network, "pooler", None) is not None:
        network.register_module("pooler", None)
    return network


def _timm(name: str, **options: Any) -> nn.Module:
    import timm

    made: nn.Module = timm.create_model(name, num_classes=0, **options)
    return made


def _open_clip(**vision: Any) -> nn.Module:
    import open_clip

    text = {"context_length": 16, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2}
    vision = vision or {"image_size": SIDE, "layers": 2, "width": 16, "head_width": 8, "patch_size": 16}
    if "timm_model_name" in vision:
        return open_clip.CustomTextCLIP(8, vision, {**text, "embed_cls": True})
    return open_clip.CLIP(8, vision, text)


def _without_visual(model: nn.Module) -> nn.Module:
    model.register_module("visual", None)
    return model


def _torchvision(name: str) -> nn.Module:
    from torchvision import models

    if name == "vit":
        model: Any = models.VisionTransformer(SIDE, 16, 2, 2, 16, 16)
        model.heads = nn.Identity()
        return model
    if name == "mvit":
        from torchvision.models.video.mvit import MSBlockConfig, MViT

        blocks = [
            MSBlockConfig(1, 16, 16, [3, 3, 3], [1, 2, 2], [1, 1, 1], [1, 1, 1]),
            MSBlockConfig(2, 16, 32, [3, 3, 3], [1, 1, 1], [1, 2, 2], [1, 1, 1]),
        ]
        model = MViT((SIDE, SIDE), 4, blocks, residual_pool=False, residual_with_cls_embed=False, rel_pos_embed=True,
                     proj_after_attn=True, stochastic_depth_prob=0.2)  # fmt: skip
        model.head = nn.Identity()
        return model
    model = models.get_model(name, weights=None)
    last = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)][-1]
    model.set_submodule(last, nn.Identity())
    return model


def _run(network: nn.Module) -> Tensor:
    """Return vectors of a batch, as the encoders read them."""
    kind = type(network).__name__
    if kind in ("CLIP", "CustomTextCLIP"):
        made: Any = network.encode_text(torch.randint(2, 50, (4, 16)))
    elif hasattr(network, "config") and hasattr(network.config, "vocab_size"):
        made = network(**_tokens())
    elif hasattr(network, "config"):
        made = network(pixel_values=_images())
    elif kind in ("MViT", "VideoResNet"):
        made = network(torch.randn(4, 3, 4, SIDE, SIDE))
    else:
        made = network(_images())
    if isinstance(made, Tensor):
        return made
    for field in ("image_embeds", "text_embeds", "pooler_output"):
        if getattr(made, field, None) is not None:
            return getattr(made, field)
    return made.last_hidden_state[:, 0]


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm-vit": (lambda: _timm("test_vit"), 6),
    "timm-vit-reg": (lambda: _timm("vit_tiny_patch16_224", img_size=SIDE, depth=2, reg_tokens=2), 2),
    "timm-efficientnet": (lambda: _timm("test_efficientnet"), 5),
    "efficientnet-lite0": (lambda: _timm("tf_efficientnet_lite0"), 7),
    "timm-resnet": (lambda: _timm("test_resnet"), 4),
    "timm-convnext": (lambda: _timm("test_convnext"), 4),
    "resnet18": (lambda: _torchvision("resnet18"), 4),
    "efficientnet_b0": (lambda: _torchvision("efficientnet_b0"), 7),
    "mobilenet_v3_small": (lambda: _torchvision("mobilenet_v3_small"), 11),
    "torchvision-vit": (lambda: _torchvision("vit"), 2),
    "mvit": (lambda: _torchvision("mvit"), 2),
    "open_clip-image": (lambda: _open_clip().visual, 2),
    "open_clip-text": (lambda: _without_visual(_open_clip()), 2),
    "open_clip-resnet": (lambda: _open_clip(image_size=SIDE, layers=(1, 1, 1, 1), width=8).visual, 4),
    "open_clip-timm": (lambda: _open_clip(**_TRUNK).visual, 6),
    "open_clip-custom-text": (lambda: _without_visual(_open_clip(**_TRUNK)), 2),
    "hf-vit": (lambda: _hf("ViTModel", "ViTConfig", _VISION, add_pooling_layer=False), 2),
    "dinov2": (lambda: _hf("Dinov2Model", "Dinov2Config", _VISION), 2),
    "dinov3": (lambda: _hf("DINOv3ViTModel", "DINOv3ViTConfig", _VISION), 2),
    "clip-image": (lambda: _hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", _VISION), 2),
    "clip-text": (lambda: _hf("CLIPTextModelWithProjection", "CLIPTextConfig", {**_TEXT, **_IDS}), 2),
    "siglip-image": (lambda: _hf("SiglipVisionModel", "SiglipVisionConfig", _VISION), 2),
    "siglip-text": (lambda: _hf("SiglipTextModel", "SiglipTextConfig", {**_TEXT, **_IDS}), 2),
    "bert": (lambda: _hf("BertModel", "BertConfig", _TEXT), 2),
    "roberta": (lambda: _hf("RobertaModel", "RobertaConfig", _TEXT), 2),
    "distilbert": (
        lambda: _hf(
            "DistilBertModel",
            "DistilBertConfig",
            {"vocab_size": 50, "dim": 16, "hidden_dim": 16, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 16},
        ),
        2,
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def make_network() -> Callable[[str], nn.Module]:
    """Make a network by its kind, frozen as an encoder shows it."""

    def make(kind: str) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = NETWORKS[kind][0]()
            for parameter in network.parameters():  # where libraries begin with zeros, nothing flows back
                if not parameter.any():
                    nn.init.normal_(parameter, std=0.02)
        return network.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def run_network() -> Callable[[nn.Module], Tensor]:
    """Run a network on random inputs, always the same ones."""

    def run(network: nn.Module) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return _run(network)

    return run


@pytest.fixture(params=NETWORKS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of network in turn."""
    return str(request.param)


@pytest.fixture
def count(kind: str) -> int:
    """How many blocks it has."""
    return NETWORKS[kind][1]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
