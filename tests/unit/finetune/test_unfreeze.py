from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.errors import ConfigError
from featurestore.errors import EncoderError
from finetune.blocks import anatomy, is_outside, norms
from finetune.unfreeze import Policy, merged_state

Make = Callable[[str], nn.Module]
Run = Callable[[nn.Module], Tensor]

SMALL = (
    "timm-vit", "torchvision-vit", "mvit", "open_clip-image", "open_clip-text", "hf-vit", "dinov2", "clip-image",
    "clip-text", "siglip-image", "siglip-text", "bert", "distilbert",
)  # fmt: skip


def trains(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def applied(policy: str, network: nn.Module, epoch: int = 0) -> set[str]:
    Policy.parse(policy).apply(network, epoch)
    return trains(network)


def train(network: nn.Module, run: Run, steps: int = 2) -> None:
    """Take steps that move whatever can be moved, weight decay included."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        run(network).square().sum().backward()
        optimizer.step()


def test_messages_name_the_option_that_a_policy_was_given_with() -> None:
    with pytest.raises(ConfigError, match="--text-unfreeze last: expected none"):
        Policy.parse("last", option="--text-unfreeze")
    network = nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 4), 2, enable_nested_tensor=False)
    policy = Policy.parse("last:9", option="--text-unfreeze")
    with pytest.raises(EncoderError, match="--text-unfreeze last:9: TransformerEncoder has"):
        policy.prepare(network)
    assert Policy.parse("last:1", option="--text-unfreeze") == Policy.parse("last:1")


@pytest.mark.parametrize(
    "text",
    ["none", "all", "last:2", "frozen:0", "frozen:1", "frozen:0.87", "frozen:0.5:cosine:3", "gradual:8:2", "lora:4"],
)
def test_a_policy_is_read_as_it_is_written(text: str) -> None:
    assert str(Policy.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "last", "last:0", "last:-1", "gradual:3", "lora:0", "all:2", "half", "last:1.5"),
        *("frozen", "frozen:1.5", "frozen:-0.1", "frozen:2", "frozen:0.5:linear", "frozen:0.5:linear:0"),
        *("frozen:0.5:quadratic:3", "frozen:0.5:3"),
    ],
)
def test_another_word_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--unfreeze {text}: expected none, last:K"):
        Policy.parse(text)


def test_first_epoch_and_change() -> None:
    assert [Policy.parse(each).first_epoch for each in ("none", "last:1", "gradual:8:2", "lora:1")] == [None, 0, 8, 0]
    gradual = Policy.parse("gradual:8:2")
    assert [epoch for epoch in range(20) if gradual.changes_at(epoch)] == [8]
    assert not any(
        Policy.parse(each).changes_at(epoch) for each in ("none", "all", "gradual:0:2") for epoch in range(9)
    )


FROZEN_SHARES = {
    "constant": [0.25] * 6,
    "linear": [1, 1 - 0.75 / 4, 1 - 0.75 / 2, 1 - 0.75 * 3 / 4, 0.25, 0.25],
    "cosine": [1, 1 - 0.75 * (1 - 0.5**0.5) / 2, 1 - 0.75 / 2, 1 - 0.75 * (1 + 0.5**0.5) / 2, 0.25, 0.25],
    "step": [1, 1, 1, 1, 0.25, 0.25],
}


@pytest.mark.parametrize("form", FROZEN_SHARES)
def test_the_frozen_share_has_its_closed_form_and_names_the_epochs_that_change(form: str) -> None:
    policy = Policy.parse(f"frozen:0.25:{form}:4")
    shares = [policy.frozen_share(epoch) for epoch in range(6)]
    assert shares == pytest.approx(FROZEN_SHARES[form])
    assert [e for e in range(1, 6) if policy.changes_at(e)] == [e for e in range(1, 6) if shares[e] != shares[e - 1]]
    assert policy.first_epoch == next(epoch for epoch, share in enumerate(shares) if share < 1)
    assert not policy.changes_at(0)
    assert Policy.parse(f"frozen:1:{form}:4").first_epoch is None


@pytest.mark.parametrize(
    ("share", "count", "blocks"),
    [
        ("0.87", 16, 2), ("0.92", 12, 1), ("0.5", 12, 6), ("0.75", 4, 1), ("0.99", 4, 1), ("0.01", 4, 4),
        ("0.9", 5, 1), ("0.7", 5, 2), ("0.5", 5, 3), ("0.3", 5, 4), ("0.1", 5, 5),
    ],
)  # fmt: skip
def test_a_frozen_share_is_a_number_of_blocks_half_up(share: str, count: int, blocks: int) -> None:
    assert Policy.parse(f"frozen:{share}").as_last(count) == blocks


def test_what_is_the_same_blocks_in_every_epoch() -> None:
    assert Policy.parse("last:2").as_last(9) == 2
    assert Policy.parse("frozen:0.5:constant:3").as_last(9) == 5
    others = ("none", "all", "frozen:0", "frozen:1", "frozen:0.5:step:3", "gradual:0:1", "lora:2")
    assert [Policy.parse(each).as_last(9) for each in others] == [None] * 7


def test_a_frozen_share_trains_what_last_does_and_its_ends_are_all_and_none(
    kind: str, count: int, make_network: Make
) -> None:
    network = make_network(kind)

    def state(policy: str, epoch: int = 0) -> tuple[set[str], list[bool]]:
        return applied(policy, network, epoch), [module.training for module in network.modules()]

    for k in range(1, count + 1):
        share = f"{1 - k / count:.4f}" if k < count else "0.001"
        assert state(f"frozen:{share}") == state(f"last:{k}")
        assert state(f"frozen:{share}:cosine:3", 3) == state(f"last:{k}")
    assert state("frozen:0") == state("frozen:0:linear:3", 7) == state("all")
    assert state("frozen:1") == state("frozen:1:cosine:3", 9) == state("frozen:0:step:3", 2) == state("none")


@pytest.mark.parametrize("form", FROZEN_SHARES)
def test_what_trains_in_an_epoch_trains_in_the_next(form: str, kind: str, count: int, make_network: Make) -> None:
    network = make_network(kind)
    policy = Policy.parse(f"frozen:0.3:{form}:5")
    policy.prepare(network)
    sets = [applied(str(policy), network, epoch) for epoch in range(8)]
    assert all(small <= large for small, large in pairwise(sets))
    assert [epoch for epoch in range(1, 8) if sets[epoch] != sets[epoch - 1] and not policy.changes_at(epoch)] == []
    assert (sets[0] == set()) == (form != "constant")
    assert sets[5] == sets[7] == applied(f"last:{policy.as_last(count) or round(0.7 * count + 1e-9)}", network)


def test_more_blocks_train_more_and_none_is_in_all(kind: str, count: int, make_network: Make) -> None:
    network = make_network(kind)
    sets = [applied(f"last:{k}", network) for k in range(1, count + 1)]
    depths = anatomy(network).depths
    assert applied("none", network) == set()
    assert all(small < large for small, large in pairwise(sets))
    assert sets[-1] == {name for name, depth in depths.items() if depth > 0} < applied("all", network)
    assert applied("all", network) == {name for name in depths if not is_outside(name)}
    assert all(depths[name] >= count for name in sets[0])


@pytest.mark.parametrize("kind", [*SMALL, "timm-efficientnet", "timm-convnext", "open_clip-resnet"])
def test_frozen_parts_stay_to_the_bit_and_the_others_move(kind: str, make_network: Make, run_network: Run) -> None:
    network = make_network(kind)
    opened = applied("last:1", network)
    before = deepcopy(network.state_dict())
    train(network, run_network)
    after = network.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    # What is only read off another layer than this vector has no gradient; all else must move.
    grads = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert grads <= opened
    assert {name for name in moved if name in dict(network.named_parameters())} == grads
    assert len(grads) > len(opened) / 2
    upper = [f"{name}." for name, module in network.named_modules() if module is anatomy(network).blocks[-1]]
    upper += [
        f"{name}." for name, module in network.named_modules() if any(module is top for top in anatomy(network).top)
    ]
    assert all(name in opened or name.startswith(tuple(upper)) for name in moved)


@pytest.mark.parametrize("policy", ["last:1", "gradual:0:1", "all"])
@pytest.mark.parametrize("kind", ["resnet18", "timm-efficientnet"])
def test_statistics_of_batch_norms_stay_and_training_sees_what_inference_sees(
    kind: str, policy: str, make_network: Make
) -> None:
    network = make_network(kind)
    Policy.parse(policy).apply(network, 0)
    # What is left is drop-out.
    for module in network.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
    x = torch.randn(4, 3, 32, 32)
    before = {name: value.clone() for name, value in network.named_buffers()}
    found = network(x)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
    assert found.requires_grad
    assert torch.equal(found, network.eval()(x))


def test_frozen_modules_are_in_eval_mode_after_somebody_called_train(kind: str, make_network: Make) -> None:
    network = make_network(kind)
    network.train()
    Policy.parse("last:1").apply(network, 3)
    parts = anatomy(network)
    upper = {id(inner) for module in (parts.blocks[-1], *parts.top) for inner in module.modules()}
    upper -= {id(module) for module in network.modules() if isinstance(module, _BatchNorm)}
    assert all(module.training == (id(module) in upper) for module in network.modules())
    Policy.parse("none").apply(network, 0)
    assert not any(module.training for module in network.modules())


@pytest.mark.parametrize("kind", ["timm-convnext", "open_clip-resnet", "mvit", "siglip-text", "bert"])
def test_gradual_is_frozen_then_opens_the_blocks_and_all_norms(kind: str, make_network: Make) -> None:
    network = make_network(kind)
    last = applied("last:1", network)
    names = {
        f"{name}.{own}"
        for name, module in network.named_modules()
        if module in norms(network)
        for own, _ in module.named_parameters(recurse=False)
    }
    assert [len(applied("gradual:2:1", network, epoch)) for epoch in (0, 1)] == [0, 0]
    assert applied("gradual:2:1", network, 2) == last | names
    assert applied("gradual:2:1", network, 9) == last | names


def test_norms_that_train_keep_their_statistics(make_network: Make, run_network: Run) -> None:
    network = make_network("timm-efficientnet")
    Policy.parse("gradual:0:1").apply(network, 0)
    before = deepcopy(network.state_dict())
    train(network, run_network, steps=1)
    after = network.state_dict()
    assert not torch.equal(after["bn1.weight"], before["bn1.weight"])
    assert torch.equal(after["bn1.running_mean"], before["bn1.running_mean"])
    assert torch.equal(after["conv_stem.weight"], before["conv_stem.weight"])
    assert torch.equal(after["bn2.running_mean"], before["bn2.running_mean"])
    assert not torch.equal(after["bn2.weight"], before["bn2.weight"])


def test_more_blocks_than_there_are_is_refused(make_network: Make) -> None:
    for policy in ("last:3", "gradual:1:3"):
        with pytest.raises(EncoderError, match=f"--unfreeze {policy}: BertModel has 2 blocks, fewer than 3"):
            Policy.parse(policy).prepare(make_network("bert"))


def test_a_network_without_known_blocks_can_train_wholly_or_not_at_all() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    for policy in ("last:1", "frozen:0.5", "frozen:0:linear:3", "gradual:1:1", "lora:2"):
        with pytest.raises(EncoderError, match="its blocks are not known"):
            Policy.parse(policy).prepare(network)
    for policy in ("all", "frozen:0"):
        Policy.parse(policy).prepare(network)
        assert applied(policy, network) == {"0.weight", "0.bias"}
    assert applied("none", network) == set()


@pytest.mark.parametrize("kind", SMALL)
def test_lora_trains_its_additions_only_and_merges(kind: str, make_network: Make, run_network: Run) -> None:
    network, plain = make_network(kind), make_network(kind)
    before = run_network(plain)
    policy = Policy.parse("lora:2")
    policy.prepare(network)
    policy.apply(network, 0)
    torch.testing.assert_close(run_network(network), before, atol=1e-6, rtol=0)
    assert trains(network)
    assert all("lora_" in name for name in trains(network))

    base = {name: tensor.clone() for name, tensor in network.state_dict().items() if "lora_" not in name}
    train(network, run_network, steps=3)
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    # The first step moves B from zero; from the second on A has a gradient: all additions take part in the output.
    assert all(parameter.grad.any() for parameter in network.parameters() if parameter.requires_grad)
    assert all(torch.equal(tensor, network.state_dict()[name]) for name, tensor in base.items())

    trained = run_network(network).detach()
    state = merged_state(network)
    assert state.keys() == plain.state_dict().keys()
    plain.load_state_dict(state)
    torch.testing.assert_close(run_network(plain), trained, atol=1e-5, rtol=0)
    assert (trained - before).abs().max() > 1e-3
    torch.testing.assert_close(run_network(network), trained, atol=0, rtol=0)  # and is as it was


def test_lora_is_the_same_for_the_same_seed(make_network: Make) -> None:
    def state(seed: int) -> dict[str, Tensor]:
        network = make_network("bert")
        Policy.parse("lora:2").prepare(network, seed=seed)
        return network.state_dict()

    first, same, other = state(0), state(0), state(1)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_lora_needs_linear_layers(make_network: Make) -> None:
    with pytest.raises(EncoderError, match="--unfreeze lora:2: the blocks of ResNet have no linear layers"):
        Policy.parse("lora:2").prepare(make_network("resnet18"))


def test_the_state_of_a_network_without_lora_is_its_own(make_network: Make) -> None:
    network = make_network("bert")
    state = merged_state(network)
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
