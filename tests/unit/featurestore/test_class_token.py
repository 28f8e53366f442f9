from __future__ import annotations

from typing import Any

import pytest
import torch
from open_clip.transformer import QuickGELU, VisionTransformer

from featurestore.encoders._class_token import class_token_only


def tower(**options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    shape = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 3, "heads": 4, "mlp_ratio": 2.0, "output_dim": 8}
    visual = VisionTransformer(**{**shape, **options}).eval().requires_grad_(requires_grad=False)
    for parameter in visual.parameters():  # biases and scales that begin at 0 or 1 would hide what is forgotten
        parameter.copy_(torch.randn_like(parameter) / 4)
    return visual


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ls_init_value": 0.1},
        {"act_layer": QuickGELU},
        {"final_ln_after_pool": True},
        {"no_ln_pre": True},
        {"layers": 1},
        {"heads": 1},
    ],
)
def test_the_embedding_is_that_of_the_whole_tower(options: dict[str, Any]) -> None:
    visual = tower(**options)
    compute = class_token_only(visual)
    assert compute is not None
    images = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(compute(images), visual(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"pool_type": "avg"},
        {"attentional_pool": True, "attn_pooler_heads": 4},
        {"qk_norm": True},
        {"output_tokens": True},
    ],
)
def test_a_tower_whose_embedding_reads_more_is_left_alone(options: dict[str, Any]) -> None:
    assert class_token_only(tower(**options)) is None


def test_a_tower_of_another_kind_is_left_alone() -> None:
    assert class_token_only(torch.nn.Linear(2, 2)) is None
