"""The triplet margin loss against torch's, and its negatives."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import triplet_margin_loss, triplet_margin_with_distance_loss

from finetune.objectives.triplet import Triplet
from finetune.outputs import Outputs

IDS = [0, 0, 1, 2, 1, 0]


def batch(ids: list[int] = IDS, *, seed: int = 0) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    vectors, texts = (torch.randn(len(ids), 5, generator=generator) for _ in range(2))
    return Outputs(vectors=vectors, texts=texts, text_ids=torch.tensor(ids))


def negatives(objective: Triplet, outputs: Outputs) -> list[int]:
    from finetune.pairs import Pairs

    pairs = Pairs.gather(outputs)
    return objective._negatives(pairs, ~pairs.same).tolist()


def test_roll_equals_torch_with_the_next_caption_that_differs() -> None:
    outputs = batch()
    following = [2, 2, 3, 4, 5, 2]
    theirs = triplet_margin_loss(outputs.vectors, outputs.texts, outputs.texts[following])
    torch.testing.assert_close(Triplet()(outputs), theirs)
    distinct = batch([0, 1, 2, 3])
    theirs = triplet_margin_loss(distinct.vectors, distinct.texts, distinct.texts.roll(-1, dims=0), margin=0.3)
    torch.testing.assert_close(Triplet(margin=0.3)(distinct), theirs)


def test_cosine_equals_torch_with_that_distance() -> None:
    outputs = batch([0, 1, 2, 3])
    theirs = triplet_margin_with_distance_loss(
        outputs.vectors,
        outputs.texts,
        outputs.texts.roll(-1, dims=0),
        distance_function=lambda a, b: 1 - torch.cosine_similarity(a, b),
        margin=0.2,
    )
    torch.testing.assert_close(Triplet(margin=0.2, distance="cosine")(outputs), theirs)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_the_hardest_negative_is_the_nearest_other_caption(distance: str) -> None:
    outputs = batch(seed=3)
    measure = {
        "l2": lambda a, b: (a - b).norm().item(),
        "cosine": lambda a, b: 1 - torch.cosine_similarity(a, b, dim=0).item(),
    }[distance]
    expected = []
    for i, anchor in enumerate(outputs.vectors):
        others = [j for j in range(6) if IDS[j] != IDS[i]]
        expected.append(min(others, key=lambda j: measure(anchor, outputs.texts[j])))
    assert negatives(Triplet(negative="hardest", distance=distance), outputs) == expected


def test_random_negatives_are_seeded_uniform_and_never_the_own_caption() -> None:
    outputs = batch()
    drawn = [Triplet(negative="random", seed=seed) for seed in range(300)]
    chosen = torch.tensor([negatives(objective, outputs) for objective in drawn])
    for i in range(6):
        counts = torch.bincount(chosen[:, i], minlength=6)
        others = [j for j in range(6) if IDS[j] != IDS[i]]
        assert counts.nonzero().flatten().tolist() == others
        expected = 300 / len(others)
        # Four standard deviations of a binomial count.
        assert (counts[others] - expected).abs().max() < 4 * (expected * (1 - 1 / len(others))) ** 0.5
    assert negatives(Triplet(negative="random", seed=5), outputs) == chosen[5].tolist()


def test_random_negatives_change_from_batch_to_batch_and_go_on_after_a_resume() -> None:
    outputs = batch(list(range(6)))
    first = Triplet(negative="random")
    draws = [negatives(first, outputs) for _ in range(4)]
    assert len(set(map(tuple, draws))) > 1
    resumed = Triplet(negative="random")
    negatives(resumed, outputs)
    again = Triplet(negative="random")
    again.load_state_dict(resumed.state_dict())
    assert [negatives(again, outputs) for _ in range(3)] == draws[1:]
    again.eval()
    assert negatives(again, outputs) == negatives(again, outputs) == draws[0]


def test_collapsed_embeddings_cost_exactly_the_margin() -> None:
    point = torch.ones(6, 5)
    outputs = Outputs(vectors=point, texts=point, text_ids=torch.tensor(IDS))
    for negative in ("roll", "random", "hardest"):
        for distance in ("l2", "cosine"):
            assert Triplet(negative=negative, distance=distance)(outputs).item() == 1.0


def test_no_loss_where_the_other_caption_is_farther_by_the_margin() -> None:
    corners = 5 * torch.eye(4)
    outputs = Outputs(vectors=corners, texts=corners, text_ids=torch.arange(4))
    assert Triplet(negative="hardest")(outputs).item() == 0


def test_inputs_without_a_possible_negative_are_counted_and_not_nan() -> None:
    outputs = batch([3, 3, 3])
    outputs.vectors.requires_grad_()
    for negative in ("roll", "random", "hardest"):
        objective = Triplet(negative=negative)
        loss = objective(outputs)
        loss.backward()
        assert loss.item() == 0
        assert not outputs.vectors.grad.any()
        assert objective.measures() == {"without_negative": 3}
        objective.eval()(outputs)
        assert objective.measures() == {"without_negative": 3}


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_gradients_equal_numerical_ones(distance: str) -> None:
    vectors, texts = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def loss(vectors: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        outputs = Outputs(vectors=vectors, texts=texts, text_ids=torch.tensor([0, 1, 0, 2]))
        return Triplet(distance=distance)(outputs)

    torch.manual_seed(0)
    assert torch.autograd.gradcheck(loss, (vectors, texts))
