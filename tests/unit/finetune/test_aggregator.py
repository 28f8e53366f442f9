"""Views of a study to one vector: order and padding do not count, one view is enough."""

from __future__ import annotations

import pytest
import torch

from data.errors import ConfigError
from finetune.aggregator import Aggregate, MeanOfViews, TransformerOfViews

DIM = 16
LENGTHS = torch.tensor([3, 1, 2])
VECTORS = torch.randn(6, DIM, generator=torch.Generator().manual_seed(0))


def transformer() -> TransformerOfViews:
    torch.manual_seed(1)
    return TransformerOfViews(DIM, depth=2, heads=4).eval()


def test_the_mean_is_that_of_each_study() -> None:
    made = MeanOfViews()(VECTORS, LENGTHS)
    expected = torch.stack([VECTORS[:3].mean(0), VECTORS[3], VECTORS[4:].mean(0)])
    assert torch.allclose(made, expected, atol=1e-6)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("make", [MeanOfViews, transformer])
def test_a_study_is_the_same_alone_and_beside_longer_ones(make, *, inference: bool) -> None:
    aggregate = make()
    with torch.inference_mode(inference):  # where torch takes another path
        together = aggregate(VECTORS, LENGTHS)
        alone = torch.cat([aggregate(part, torch.tensor([len(part)])) for part in VECTORS.split(LENGTHS.tolist())])
    assert together.shape == (3, DIM)
    assert torch.allclose(together, alone, atol=1e-6)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("make", [MeanOfViews, transformer])
def test_the_order_of_views_does_not_count(make, *, inference: bool) -> None:
    aggregate = make()
    shuffled = VECTORS[torch.tensor([2, 0, 1, 3, 5, 4])]
    with torch.inference_mode(inference):
        assert torch.allclose(aggregate(VECTORS, LENGTHS), aggregate(shuffled, LENGTHS), atol=1e-6)


@pytest.mark.parametrize("make", [MeanOfViews, transformer])
def test_other_studies_have_no_part_whatever_they_hold(make) -> None:
    aggregate, others = make(), VECTORS.clone()
    others[:3] = torch.nan
    before, after = aggregate(VECTORS, LENGTHS), aggregate(others, LENGTHS)
    assert after[0].isnan().all()
    assert torch.equal(before[1:], after[1:])


def test_every_view_gets_a_gradient_from_its_own_study_only() -> None:
    vectors = VECTORS.clone().requires_grad_()
    transformer()(vectors, LENGTHS)[0].square().sum().backward()
    assert (vectors.grad[:3].abs().sum(1) > 0).all()
    assert torch.equal(vectors.grad[3:], torch.zeros(3, DIM))


def test_parameters_are_those_of_the_published_aggregator_without_positions() -> None:
    d, layers = 512, 2
    attention, inner = 4 * d * d + 4 * d, 2 * d * 4 * d + 5 * d
    per_block = attention + inner + 4 * d
    made = Aggregate.parse("transformer").make(d)
    assert sum(each.numel() for each in made.parameters()) == layers * per_block + 2 * d + d


@pytest.mark.parametrize("text", ["median", "mean:2", "transformer:0", "transformer:2:"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected mean or transformer"):
        Aggregate.parse(text)


def test_heads_must_divide_the_vector() -> None:
    with pytest.raises(ConfigError, match="7 heads do not divide"):
        Aggregate.parse("transformer:1:7").make(DIM)
