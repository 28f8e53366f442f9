from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from featurestore.errors import EncoderError
from finetune.groups import parameter_groups
from finetune.unfreeze import Policy

Make = Callable[[str], nn.Module]


def by_name(groups: list[dict]) -> dict[str, dict]:
    return {name: group for group in groups for name in group["names"]}


def test_every_trainable_parameter_is_in_one_group(kind: str, make_network: Make) -> None:
    network = make_network(kind)
    Policy.parse("gradual:0:1").apply(network, 0)
    projection = nn.Linear(3, 2)
    decay = {"image": 0.5}
    groups = parameter_groups(
        {"image": (network, 0.1), "projection": (projection, 1.0)}, lr=1.0, weight_decay=0.05, layer_decay=decay
    )
    names = [name for group in groups for name in group["names"]]
    wanted = [f"image.{name}" for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert sorted(names) == sorted([*wanted, "projection.weight", "projection.bias"])
    assert [len(group["params"]) for group in groups] == [len(group["names"]) for group in groups]
    assert len({group["name"] for group in groups}) == len(groups)
    torch.optim.AdamW(groups)  # refuses a parameter that is in two groups


def test_layer_decay_is_that_of_timm() -> None:
    """The last norm apart: timm counts it to the last block, Bao et al. and we to the top."""
    import timm
    from timm.optim import param_groups_layer_decay

    network = timm.create_model("test_vit", num_classes=3)
    ours = by_name(parameter_groups({"": (network, 1.0)}, lr=1.0, weight_decay=0.05, layer_decay={"": 0.75}))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    kept = network.no_weight_decay()
    theirs = {
        names[id(parameter)]: group
        for group in param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.75, no_weight_decay_list=kept)
        for parameter in group["params"]
    }
    assert {f".{name}" for name in theirs} == ours.keys()
    for name, group in theirs.items():
        expected = 1.0 if name.startswith("norm.") else group["lr_scale"]
        assert ours[f".{name}"]["lr"] == pytest.approx(expected, rel=1e-12), name
        assert ours[f".{name}"]["weight_decay"] == group["weight_decay"], name
    assert ours[".cls_token"]["lr"] == pytest.approx(0.75**7)


def test_parts_have_learning_rates_of_their_own(make_network: Make) -> None:
    parts = {
        "image": (make_network("bert").requires_grad_(True), 0.05),
        "projection": (nn.Linear(2, 2), 1.0),
        "objective": (nn.ParameterDict({"logit_scale": torch.ones([]), "logit_bias": torch.ones(1)}), 2.0),
    }
    groups = parameter_groups(parts, lr=1e-3, weight_decay=0.1)
    rates = {group["name"]: (group["lr"], group["weight_decay"]) for group in groups}
    assert rates == {
        "image": (pytest.approx(5e-5), 0.1),
        "image/no decay": (pytest.approx(5e-5), 0.0),
        "projection": (1e-3, 0.1),
        "projection/no decay": (1e-3, 0.0),
        "objective/no decay": (2e-3, 0.0),
    }


UNDECAYED: dict[str, set[str]] = {  # of those with two dimensions or more
    "hf-vit": {"embeddings.cls_token", "embeddings.position_embeddings"},
    "dinov3": {"embeddings.cls_token", "embeddings.register_tokens"},
    "clip-image": {"vision_model.embeddings.position_embedding.weight"},
    "bert": {"embeddings.position_embeddings.weight"},
    "open_clip-image": {"positional_embedding"},
    "open_clip-custom-text": {"text.positional_embedding"},
    "torchvision-vit": {"class_token", "encoder.pos_embedding"},
    "mvit": {f"blocks.{i}.attn.rel_pos_{side}" for i in (0, 1) for side in "hwt"},
    "timm-vit-reg": {"cls_token", "reg_token", "pos_embed"},
    "timm-efficientnet": set(),
}


@pytest.mark.parametrize("kind", UNDECAYED)
def test_tokens_positions_biases_and_norms_have_no_decay(kind: str, make_network: Make) -> None:
    network = make_network(kind)
    Policy.parse("all").apply(network, 0)
    decays = {
        name.removeprefix("image."): group["weight_decay"]
        for name, group in by_name(parameter_groups({"image": (network, 1.0)}, lr=1.0, weight_decay=0.1)).items()
    }
    matrices = {name for name, parameter in network.named_parameters() if name in decays and parameter.ndim >= 2}
    assert {name for name in matrices if decays[name] == 0} == UNDECAYED[kind]
    assert {decays[name] for name in decays.keys() - matrices} == {0.0}


def test_layer_decay_needs_known_blocks() -> None:
    with pytest.raises(EncoderError, match="Sequential: its blocks are not known"):
        parameter_groups(
            {"image": (nn.Sequential(nn.Linear(2, 2)), 1.0)}, lr=1.0, weight_decay=0.0, layer_decay={"image": 0.5}
        )


def test_a_parameter_of_two_parts_is_an_error_of_the_program() -> None:
    shared = nn.Linear(2, 2)
    with pytest.raises(AssertionError, match="in two parts"):
        parameter_groups({"a": (shared, 1.0), "b": (shared, 0.5)}, lr=1.0, weight_decay=0.0)


class _Pair(nn.Module):
    """A network of two layers whose lower one is opened later."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.low, self.high = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.high(torch.tanh(self.low(x)))


def test_what_is_unfrozen_later_starts_as_new_at_the_scheduled_rate() -> None:
    """Against a second Adam that gets the lower layer at the switch, its first step corrected as a first step."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    factors = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5]

    def course(*, late: bool) -> list[Tensor]:
        pair = _Pair()
        groups = parameter_groups({"low": (pair.low, 0.5), "high": (pair.high, 1.0)}, lr=0.01, weight_decay=0.1)
        if late:
            opened = [group for group in groups if group["name"].startswith("low")]
            groups = [group for group in groups if group["name"].startswith("high")]
        optimizer = torch.optim.AdamW(groups)
        made = []
        for step, factor in enumerate(factors):
            pair.low.requires_grad_(step >= 3)
            if late and step == 3:
                for group in opened:
                    optimizer.add_param_group(group)
            for group in optimizer.param_groups:
                group["lr"] = factor * (0.005 if group["name"].startswith("low") else 0.01)
            optimizer.zero_grad()
            pair(x).square().mean().backward()
            optimizer.step()
            made.append(torch.cat([parameter.detach().flatten() for parameter in pair.parameters()]))
        return made

    for ours, reference in zip(course(late=False), course(late=True), strict=True):
        torch.testing.assert_close(ours, reference, atol=0, rtol=0)
    still = course(late=False)
    low = sum(parameter.numel() for parameter in _Pair().low.parameters())
    first = torch.cat([parameter.detach().flatten() for parameter in _Pair().parameters()])
    torch.testing.assert_close(still[2][:low], first[:low], atol=0, rtol=0)
    assert not torch.equal(still[3][:low], first[:low])
