"""Learned poolings: sets of tokens to vectors, as torch's own attention makes them; padding has no part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from featurestore.encoders._token_pooling import (
    AttentionPooling,
    ClassTokenPooling,
    TokenPooling,
    describe_token_pooling,
    make_token_pooling,
)
from featurestore.errors import WeightsUnavailable
from featurestore.weights import seeded

DIM = 32
TOKENS = torch.randn(3, 7, DIM, generator=torch.Generator().manual_seed(0))
KINDS = ("attention", "cls_token")


def pooling(kind: str, dim: int = DIM) -> AttentionPooling | ClassTokenPooling:
    with seeded(1):
        return TokenPooling(kind=kind, dim=dim).make().eval()  # type: ignore[arg-type]


def test_attention_is_that_of_torch_for_a_learned_query() -> None:
    made = pooling("attention")
    assert isinstance(made, AttentionPooling)
    reference = nn.MultiheadAttention(DIM, 8).eval()  # sequence first, weights asked for: another path
    reference.load_state_dict(made.attention.state_dict())
    query = made.query.detach().reshape(1, 1, DIM).repeat(1, 3, 1)
    attended, weights = reference(query, TOKENS.transpose(0, 1), TOKENS.transpose(0, 1))
    expected = nn.functional.layer_norm(attended[0], (DIM,), made.norm.weight, made.norm.bias)
    torch.testing.assert_close(made(TOKENS), expected, atol=1e-6, rtol=1e-5)
    assert weights.shape == (3, 1, 7)


def test_a_class_token_is_what_one_layer_makes_of_it() -> None:
    made = pooling("cls_token")
    assert isinstance(made, ClassTokenPooling)
    layer = made.layer
    x = torch.cat([made.cls_token.expand(3, 1, DIM), TOKENS], dim=1)
    reference = nn.MultiheadAttention(DIM, 8, batch_first=True).eval()
    reference.load_state_dict(layer.self_attn.state_dict())
    h = layer.norm1(x + reference(x, x, x)[0])
    h = layer.norm2(h + layer.linear2(nn.functional.gelu(layer.linear1(h))))
    torch.testing.assert_close(made(TOKENS), h[:, 0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_tokens_does_not_count(kind: str) -> None:
    made, order = pooling(kind), torch.randperm(7, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(made(TOKENS), made(TOKENS[:, order]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_short_sample_is_the_same_alone_and_beside_longer_ones(kind: str, *, inference: bool) -> None:
    made = pooling(kind)
    some = [TOKENS[0], TOKENS[1, :2], TOKENS[2, :5]]
    with torch.inference_mode(inference):
        together, alone = made(some), torch.cat([made(each[None]) for each in some])
    assert together.shape == (3, DIM)
    torch.testing.assert_close(together, alone, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_everything_and_only_the_tokens_of_their_own_sample(kind: str) -> None:
    made = pooling(kind)
    tokens = [TOKENS[0].clone().requires_grad_(), TOKENS[1, :2].clone().requires_grad_()]
    made(tokens)[0].square().sum().backward()
    assert tokens[0].grad.abs().sum(1).gt(0).all()
    assert tokens[1].grad is None or tokens[1].grad.abs().sum() == 0
    vectors = made(TOKENS)
    made.zero_grad()
    vectors[:, 0].sum().backward()  # not of all: a norm makes their sum a constant
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("dim", "heads"), [(768, 8), (24, 8), (100, 5), (36, 6), (7, 7), (11, 1)])
def test_eight_heads_or_as_many_as_divide_the_tokens(dim: int, heads: int) -> None:
    made = pooling("attention", dim)
    assert isinstance(made, AttentionPooling)
    assert made.attention.num_heads == heads
    assert made(torch.randn(2, 3, dim)).shape == (2, dim)


def test_parameters_are_those_of_the_published_poolings() -> None:
    d = 512
    attention = 4 * d * d + 4 * d
    counts = {kind: sum(each.numel() for each in pooling(kind, d).parameters()) for kind in KINDS}
    assert counts["attention"] == d + attention + 2 * d
    assert counts["cls_token"] == d + attention + 2 * d * 4 * d + 5 * d + 4 * d


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_a_tenth_and_in_training_only(kind: str) -> None:
    made = pooling(kind)
    drops = {each.p for each in made.modules() if isinstance(each, nn.Dropout)}
    drops |= {each.dropout for each in made.modules() if isinstance(each, nn.MultiheadAttention)}
    assert drops == {0.1}
    assert torch.equal(made(TOKENS), made(TOKENS))
    made.train()
    assert not torch.equal(made(TOKENS), made(TOKENS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_description_and_weights_make_it_again(kind: str) -> None:
    made = pooling(kind)
    description, state = describe_token_pooling(made)
    assert description == TokenPooling(kind=kind, dim=DIM)  # type: ignore[arg-type]
    again = make_token_pooling(description, state, path="here", device="cpu")
    assert again is not None
    module, described = again
    torch.testing.assert_close(module(TOKENS), made(TOKENS), atol=1e-6, rtol=1e-5)
    assert not any(each.requires_grad for each in module.parameters())
    with torch.no_grad():
        next(made.parameters()).add_(1)
    other = make_token_pooling(description, describe_token_pooling(made)[1], path="here", device="cpu")
    assert other is not None
    assert other[1]["weights"] != described["weights"]
    state.popitem()
    with pytest.raises(WeightsUnavailable, match="do not fit"):
        make_token_pooling(description, state, path="here", device="cpu")


def test_no_pooling_is_described_as_none() -> None:
    assert describe_token_pooling(None) == (None, {})
    assert make_token_pooling(None, {}, path="here", device="cpu") is None
