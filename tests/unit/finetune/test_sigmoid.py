"""The sigmoid loss of pairs against open_clip's, transformers' and its formula."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from open_clip.loss import SigLipLoss
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, normalize

from data.errors import ConfigError
from finetune.objectives.sigmoid import Sigmoid
from finetune.outputs import Outputs


def batch(size: int = 6, *, ids: list[int] | None = None) -> Outputs:
    generator = torch.Generator().manual_seed(0)
    vectors, texts = (torch.randn(size, 5, generator=generator) for _ in range(2))
    return Outputs(vectors=vectors, texts=texts, text_ids=torch.tensor(ids or list(range(size))))


def test_it_begins_as_published() -> None:
    objective = Sigmoid()
    assert objective.similarity.logit_scale.item() == pytest.approx(math.log(10))
    assert objective.measures() == {"temperature": pytest.approx(0.1), "bias": -10.0}


def test_equals_open_clip_where_captions_differ() -> None:
    outputs = batch()
    theirs = SigLipLoss()(
        normalize(outputs.vectors, dim=1), normalize(outputs.texts, dim=1), torch.tensor(10.0), torch.tensor(-10.0)
    )
    torch.testing.assert_close(Sigmoid()(outputs), theirs)


def test_equals_transformers_where_captions_differ() -> None:
    from transformers import SiglipConfig, SiglipModel

    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        vision_config=tiny | {"image_size": 16, "patch_size": 8}, text_config=tiny | {"vocab_size": 32}
    )
    torch.manual_seed(0)
    model = SiglipModel(config).eval()
    with torch.no_grad():
        theirs = model(input_ids=torch.randint(32, (3, 8)), pixel_values=torch.randn(3, 3, 16, 16), return_loss=True)
        objective = Sigmoid(temperature=float(1 / model.logit_scale.exp()), bias=float(model.logit_bias))
        outputs = Outputs(vectors=theirs.image_embeds, texts=theirs.text_embeds, text_ids=torch.arange(3))
        torch.testing.assert_close(objective(outputs), theirs.loss)


def test_equal_captions_are_positives_of_one_another() -> None:
    ids = [0, 1, 0, 2, 0, 1]
    outputs = batch(ids=ids)
    cosine = normalize(outputs.vectors, dim=1) @ normalize(outputs.texts, dim=1).T
    total = 0.0
    for i in range(6):
        for j in range(6):
            sign = 1 if ids[i] == ids[j] else -1
            total += math.log1p(math.exp(-sign * (4 * cosine[i, j].item() - 1.5)))
    assert Sigmoid(temperature=0.25, bias=-1.5)(outputs).item() == pytest.approx(total / 6, rel=1e-5)


def test_gradients_equal_numerical_ones() -> None:
    vectors, texts = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.3, -0.5))
    objective = Sigmoid().double()

    def loss(vectors: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        outputs = Outputs(vectors=vectors, texts=texts, text_ids=torch.tensor([0, 1, 0, 2]))
        learned = {"similarity.logit_scale": scale, "similarity.logit_bias": bias}
        return torch.func.functional_call(objective, learned, (outputs,))

    assert torch.autograd.gradcheck(loss, (vectors, texts, scale, bias))


@pytest.mark.parametrize("size", [2, 8])
def test_the_gradient_of_a_pair_times_b_does_not_depend_on_the_rest_of_the_batch(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs = batch(size)
    logits = torch.linspace(-2, 2, 64).reshape(8, 8)[:size, :size].clone().requires_grad_()
    objective = Sigmoid()
    monkeypatch.setattr(objective.similarity, "forward", lambda pairs: logits)
    objective(outputs).backward()
    pair = torch.linspace(-2, 2, 64).reshape(8, 8)[:2, :2]
    expected = torch.sigmoid(pair) - torch.eye(2)
    torch.testing.assert_close(size * logits.grad[:2, :2], expected)


def terms(outputs: Outputs, same: torch.Tensor, *, clamp: float = math.inf) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits at a temperature of 0.02 and a bias of -1, and the binary cross-entropy of each."""
    cosine = normalize(outputs.vectors, dim=1) @ normalize(outputs.texts, dim=1).T
    logits = (cosine / 0.02 - 1).clamp(-clamp, clamp)
    return logits, binary_cross_entropy_with_logits(logits, same.float(), reduction="none")


def alike(ids: list[int]) -> torch.Tensor:
    return torch.tensor([[a == b for b in ids] for a in ids])


IDS = [0, 1, 0, 2, 0, 1]
LEARNED = {"temperature": 0.02, "bias": -1.0}


def test_without_settings_it_is_the_loss_of_the_paper_bit_for_bit() -> None:
    outputs = batch(ids=IDS)
    objective = Sigmoid()
    cosine = normalize(outputs.vectors, dim=1) @ normalize(outputs.texts, dim=1).T
    logits = objective.similarity.logit_scale.exp() * cosine + objective.similarity.logit_bias
    plain = -logsigmoid(torch.where(alike(IDS), logits, -logits)).sum() / 6
    assert torch.equal(objective(outputs), plain)


def test_positives_and_negatives_have_weights() -> None:
    outputs, same = batch(ids=IDS), alike(IDS)
    _, bce = terms(outputs, same)
    expected = (3 * bce[same].sum() + 0.5 * bce[~same].sum()) / 6
    torch.testing.assert_close(Sigmoid(**LEARNED, positive_weight=3, negative_weight=0.5)(outputs), expected)


def test_balanced_positives_and_negatives_weigh_the_same_in_sum() -> None:
    outputs, same = batch(ids=IDS), alike(IDS)
    _, bce = terms(outputs, same)
    expected = 36 / 6 * (bce[same].mean() + bce[~same].mean()) / 2
    torch.testing.assert_close(Sigmoid(**LEARNED, balance="auto")(outputs), expected)


def test_balance_has_nothing_to_do_with_one_sign_only() -> None:
    outputs = batch(ids=[3] * 6)
    assert torch.equal(Sigmoid(**LEARNED, balance="auto")(outputs), Sigmoid(**LEARNED)(outputs))


def test_balance_and_weights_exclude_each_other() -> None:
    for weights in ({"positive_weight": 2.0}, {"negative_weight": 0.1}):
        with pytest.raises(ConfigError, match="sigmoid: balance=auto makes the weights of positives and negatives"):
            Sigmoid(balance="auto", **weights)


def test_clamped_logits_cost_what_the_bound_costs_and_have_no_gradient() -> None:
    outputs, same = batch(ids=IDS), alike(IDS)
    logits, bce = terms(outputs, same, clamp=30)
    assert (logits.abs() == 30).any()
    outputs.vectors.requires_grad_()
    loss = Sigmoid(**LEARNED, clamp=30)(outputs)
    torch.testing.assert_close(loss, bce.sum() / 6)
    both = Outputs(vectors=torch.eye(2, requires_grad=True), texts=-torch.eye(2), text_ids=torch.arange(2))
    Sigmoid(**LEARNED, clamp=0.5)(both).backward()
    assert not both.vectors.grad.any()


@pytest.mark.parametrize("floor", [0.5, 1.0, 2.0])
def test_a_lack_of_entropy_costs(floor: float) -> None:
    outputs, same = batch(ids=IDS), alike(IDS)
    logits, bce = terms(outputs, same)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    assert entropy.max() < math.log(6) < 2
    expected = bce.sum() / 6 + 0.1 * (floor - entropy).clamp(min=0).mean()
    torch.testing.assert_close(Sigmoid(**LEARNED, entropy_weight=0.1, entropy_floor=floor)(outputs), expected)
    even = Outputs(vectors=torch.ones(8, 3), texts=torch.ones(8, 3), text_ids=torch.arange(8))
    none = Sigmoid(entropy_weight=0.1)(even) - Sigmoid()(even)
    assert none.item() == 0  # the entropy of an even choice among 8, log 8, is above 2


def test_samples_have_weights_of_any_scale() -> None:
    outputs, same = batch(ids=IDS), alike(IDS)
    weights = torch.tensor([4.0, 0.0, 1.0, 2.0, 2.0, 3.0])
    logits, bce = terms(outputs, same)
    lack = (1.5 - torch.distributions.Categorical(logits=logits).entropy()).clamp(min=0)
    expected = 0.0
    for i in range(6):
        expected += weights[i] / 2 * lack[i] / 6 * 0.1
        for j in range(6):
            expected += (weights[i] + weights[j]) / 4 * bce[i, j] / 6
    objective = Sigmoid(**LEARNED, entropy_weight=0.1, entropy_floor=1.5)
    for factor in (1.0, 7.0):
        torch.testing.assert_close(objective(replace(outputs, weights=factor * weights)), expected)
    assert torch.equal(objective(replace(outputs, weights=torch.full((6,), 3.0))), objective(outputs))
    assert objective(replace(outputs, weights=torch.zeros(6))).item() == 0


def test_pairs_of_the_same_target_are_positives_too() -> None:
    outputs = replace(batch(ids=[0, 1, 0, 2, 3, 4]), target_ids=torch.tensor([5, 5, -3, 7, 7, 5]))
    same = alike([0, 1, 0, 2, 3, 4]) | alike([5, 5, -3, 7, 7, 5])
    assert same.sum() == 6 + 2 + 2 + 6
    _, bce = terms(outputs, same)
    torch.testing.assert_close(Sigmoid(**LEARNED, positives="target")(outputs), bce.sum() / 6)
    assert "target_ids" in Sigmoid.needed({"positives": "target"})
    assert Sigmoid.needed({}) == Sigmoid.needed({"positives": "text"}) == Sigmoid.needs


def test_gradients_of_all_settings_together_equal_numerical_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, texts = (torch.randn(5, 3, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(2))
    objective = Sigmoid(
        temperature=0.5, bias=-0.5, clamp=30, balance="auto", entropy_weight=0.3, positives="target"
    ).double()

    def loss(vectors: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return objective(
            Outputs(
                vectors=vectors,
                texts=texts,
                text_ids=torch.arange(5),
                target_ids=torch.tensor([0, 1, 0, 2, 1]),
                weights=torch.tensor([1.0, 2.0, 0.5, 0.0, 3.0]),
            )
        )

    assert torch.autograd.gradcheck(loss, (vectors, texts))


def test_with_fixed_weights_the_gradient_of_a_pair_times_b_does_not_depend_on_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid = torch.linspace(-2, 2, 64).reshape(8, 8)
    found = []
    for size in (2, 8):
        logits = grid[:size, :size].clone().requires_grad_()
        objective = Sigmoid(positive_weight=2, negative_weight=0.25, clamp=30)
        monkeypatch.setattr(objective.similarity, "forward", lambda pairs, logits=logits: logits)
        objective(batch(size)).backward()
        found.append(size * logits.grad[:2, :2])
    torch.testing.assert_close(found[0], found[1])
    weights = torch.tensor([[2, 0.25], [0.25, 2]])
    torch.testing.assert_close(found[0], weights * (torch.sigmoid(grid[:2, :2]) - torch.eye(2)))
