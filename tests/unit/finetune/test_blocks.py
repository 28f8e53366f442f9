from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor, nn

from featurestore.errors import EncoderError
from finetune.blocks import anatomy, blocks, is_outside, norms

Make = Callable[[str], nn.Module]
Run = Callable[[nn.Module], Tensor]


def test_blocks_are_those_of_the_kind(kind: str, count: int, make_network: Make) -> None:
    network = make_network(kind)
    found = anatomy(network)
    assert len(blocks(network)) == count
    assert set(found.depths.values()) >= set(range(1, count + 1))
    assert found.depths.keys() == {name for name, _ in network.named_parameters() if not is_outside(name)}


def test_what_lies_above_is_computed_later(kind: str, make_network: Make, run_network: Run) -> None:
    network = make_network(kind)
    depths, order = anatomy(network).depths, []

    def note(name: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            order.append(name)

        return hook

    for name, module in network.named_modules():
        own = next((f"{name}.{own}" for own, _ in module.named_parameters(recurse=False)), None)
        if own is not None and not any(True for _ in module.children()):
            module.register_forward_pre_hook(note(own))
    run_network(network)
    computed = [depths[name] for name in order if name in depths]
    assert computed == sorted(computed)
    assert computed[0] == 0


def test_norms_hold_the_parameters_named_after_norms(make_network: Make) -> None:
    assert len(norms(make_network("bert"))) == 5  # two per block, and that of the embeddings
    assert len(norms(make_network("resnet18"))) == 20
    assert not norms(nn.Sequential(nn.Linear(2, 2), nn.Identity()))


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(EncoderError, match=r"Sequential: its blocks are not known; known are ViT.*--unfreeze all"):
        blocks(nn.Sequential(nn.Linear(2, 2)))


def test_a_part_of_unknown_place_is_refused(make_network: Make) -> None:
    network = make_network("bert")
    network.encoder.register_module("relative_attention_bias", nn.Embedding(4, 2))
    with pytest.raises(EncoderError, match="BertModel: its blocks are not known"):
        blocks(network)
