"""The consistency of views: its formula, what it pulls, and that evaluation knows nothing of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from data.errors import ConfigError
from finetune.aggregator import MeanOfViews, TransformerOfViews
from finetune.consistency import Consistency
from finetune.model import Batch, Model
from finetune.objectives.weighted import Weighted
from finetune.outputs import Objective, Outputs

DIM = 16
COUNTS = (3, 1, 2)
ALONE = torch.tensor([1, 3, 5])
VIEWS = torch.randn(6, DIM, generator=torch.Generator().manual_seed(0))


class Given(nn.Module):
    """A tower that gives what it is given."""

    def forward(self, vectors: torch.Tensor) -> tuple[torch.Tensor, None]:
        return vectors, None


class Length(Objective):
    name = "length"
    needs = frozenset({"vectors"})

    def forward(self, outputs: Outputs) -> torch.Tensor:
        assert outputs.vectors is not None
        return outputs.vectors.square().mean()


def model(aggregator: nn.Module) -> Model:
    objectives = Weighted({"length": Length(), "consistency": Consistency()}, {"consistency": 0.2})
    tower: Any = Given()
    return Model(tower, None, objectives, aggregator=aggregator, device=torch.device("cpu"))


def batch(alone: torch.Tensor | None = ALONE, views: torch.Tensor = VIEWS) -> Batch:
    return Batch(rows=np.arange(3), inputs=views, views=torch.tensor(COUNTS), alone=alone, known=Outputs())


def transformer() -> TransformerOfViews:
    torch.manual_seed(1)
    return TransformerOfViews(DIM, depth=1, heads=4)


def test_it_is_one_minus_the_cosine_of_the_study_and_one_view_through_the_same_aggregator() -> None:
    aggregate = transformer().eval()
    whole = aggregate(VIEWS, torch.tensor(COUNTS))
    alone = torch.cat([aggregate(VIEWS[i : i + 1], torch.tensor([1])) for i in ALONE])
    expected = (1 - cosine_similarity(whole, alone)).mean()
    losses = model(aggregate).train(mode=False)
    found = Consistency()(losses.outputs(batch()))
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert found > 0.01


def test_its_weight_is_in_the_sum_and_it_is_logged_by_its_name() -> None:
    made = model(MeanOfViews())
    losses = made(batch(), 0, {})
    assert set(losses) == {"length", "consistency"}
    torch.testing.assert_close(made.objectives.total(losses, 0), losses["length"] + 0.2 * losses["consistency"])


def test_a_study_of_one_view_is_consistent_even_under_dropout() -> None:
    made = model(transformer()).train()
    views = VIEWS[:3].clone().requires_grad_()
    one = Batch(rows=np.arange(3), inputs=views, views=torch.tensor([1, 1, 1]), alone=torch.arange(3), known=Outputs())
    loss = Consistency()(made.outputs(one))
    assert loss == 0
    loss.backward()
    assert torch.equal(views.grad, torch.zeros_like(views))


def test_only_the_single_view_is_pulled() -> None:
    views = VIEWS.clone().requires_grad_()
    Consistency()(model(MeanOfViews()).outputs(batch(views=views))).backward()
    moved = views.grad.abs().sum(1) > 0
    assert moved.tolist() == [i in (1, 5) for i in range(6)]


def test_the_aggregator_learns_from_it() -> None:
    made = model(transformer()).train()
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    found = []
    for _ in range(60):
        torch.manual_seed(0)
        optimizer.zero_grad()
        loss = Consistency()(made.outputs(batch()))
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    assert found[-1] < 0.3 * found[0]


def test_evaluation_leaves_it_out() -> None:
    made = model(transformer()).eval()
    assert set(made(batch(alone=None), 0, {})) == {"length"}
    aggregate = made.aggregator
    assert aggregate is not None
    assert torch.equal(made.outputs(batch()).vectors, aggregate(VIEWS, torch.tensor(COUNTS)))


def test_it_is_no_objective_to_train_by_alone() -> None:
    weighted = Weighted({"length": Length(), "consistency": Consistency()}, {"length": 0.0, "consistency": 0.2})
    with pytest.raises(ConfigError, match="nothing would be learned"):
        weighted.weights(0)
