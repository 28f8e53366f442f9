"""The sigmoid loss of pairs against open_clip's, transformers' and its formula."""

from __future__ import annotations

import math

import pytest
import torch
from open_clip.loss import SigLipLoss
from torch.nn.functional import normalize

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
