"""Gradients of a cached large batch are those of the batch at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from finetune.gradcache import stand_ins
from finetune.objectives.contrastive import Contrastive
from finetune.objectives.sigmoid import Sigmoid
from finetune.objectives.triplet import Triplet
from finetune.outputs import Objective, Outputs

IMAGES, TEXTS = (torch.randn(10, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
IDS = torch.tensor([0, 1, 2, 0, 3, 4, 5, 1, 6, 7])
PARTS = [slice(0, 4), slice(4, 8), slice(8, 10)]


class Towers(nn.Module):
    def __init__(self, objective: Objective, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 4))
        self.text = nn.Linear(6, 4)
        self.objective = objective

    def embed(self, rows: slice) -> Outputs:
        return Outputs(vectors=self.image(IMAGES[rows]), texts=self.text(TEXTS[rows]), text_ids=IDS[rows])

    def gradients(self) -> dict[str, Tensor]:
        return {name: each.grad for name, each in self.named_parameters() if each.grad is not None}


def add_gradients(towers: Towers, seed: int = 0, factor: float = 1.0) -> Tensor:
    """Add the gradients of all parts as the loop does; return the loss."""
    embedded = []
    for number, part in enumerate(PARTS):
        torch.manual_seed(seed + number)
        with torch.no_grad():
            embedded.append(towers.embed(part))
    value, forms = stand_ins(towers.objective, embedded)
    for number, (part, form) in enumerate(zip(PARTS, forms, strict=True)):
        torch.manual_seed(seed + number)
        (factor * form(towers.embed(part))).backward()
    return value


@pytest.mark.parametrize("make", [Contrastive, Sigmoid, Triplet], ids=lambda made: made.name)
def test_parts_give_the_gradients_of_the_whole(make: type[Objective]) -> None:
    whole, cached, summed = (Towers(make()) for _ in range(3))
    loss = whole.objective(whole.embed(slice(0, 10)))
    loss.backward()
    value = add_gradients(cached)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(cached.gradients(), whole.gradients(), atol=1e-6, rtol=1e-6)
    assert "image.0.weight" in cached.gradients()
    # What accumulating the parts' own losses would give is another problem's gradient.
    for part in PARTS:
        (summed.objective(summed.embed(part)) * len(IDS[part]) / 10).backward()
    assert not torch.allclose(summed.image[0].weight.grad, whole.image[0].weight.grad, rtol=0.1)


def test_dropout_is_that_of_the_first_pass() -> None:
    kept, cached = Towers(Contrastive(), 0.5), Towers(Contrastive(), 0.5)
    parts = []
    for number, part in enumerate(PARTS):
        torch.manual_seed(7 + number)
        parts.append(kept.embed(part))
    vectors, texts = (torch.cat([getattr(part, name) for part in parts]) for name in ("vectors", "texts"))
    kept.objective(Outputs(vectors=vectors, texts=texts, text_ids=IDS)).backward()
    add_gradients(cached, seed=7)
    torch.testing.assert_close(cached.gradients(), kept.gradients(), atol=1e-6, rtol=1e-6)


def test_a_frozen_tower_gets_no_gradient_and_a_scaled_loss_scaled_ones() -> None:
    plain, scaled = Towers(Sigmoid()), Towers(Sigmoid())
    for towers in (plain, scaled):
        towers.image.requires_grad_(requires_grad=False)
    add_gradients(plain)
    add_gradients(scaled, factor=1024.0)
    assert plain.image[0].weight.grad is None
    for name, gradient in plain.gradients().items():
        torch.testing.assert_close(scaled.gradients()[name], 1024 * gradient, msg=name)


def test_frozen_towers_leave_the_gradients_of_the_objective() -> None:
    whole, cached = Towers(Sigmoid()), Towers(Sigmoid())
    for towers in (whole, cached):
        towers.image.requires_grad_(requires_grad=False)
        towers.text.requires_grad_(requires_grad=False)
    whole.objective(whole.embed(slice(0, 10))).backward()
    add_gradients(cached)
    assert cached.gradients().keys() == {"objective.similarity.logit_scale", "objective.similarity.logit_bias"}
    torch.testing.assert_close(cached.gradients(), whole.gradients())
