"""The softmax contrastive loss against open_clip's, closed forms and numerical gradients."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax, normalize

from data.errors import TaskError
from finetune.objectives.contrastive import Contrastive
from finetune.outputs import Outputs
from finetune.pairs import number_targets


def batch(size: int = 6, dim: int = 5, *, seed: int = 0, ids: list[int] | None = None) -> Outputs:
    generator = torch.Generator().manual_seed(seed)
    vectors, texts = (torch.randn(size, dim, generator=generator) * 3 for _ in range(2))
    return Outputs(vectors=vectors, texts=texts, text_ids=torch.tensor(ids or list(range(size))))


def test_equals_open_clip_where_captions_differ() -> None:
    outputs = batch()
    theirs = open_clip.ClipLoss()(
        normalize(outputs.vectors, dim=1), normalize(outputs.texts, dim=1), torch.tensor(1 / 0.0588)
    )
    for duplicates in ("masked", "shared", "negatives"):
        ours = Contrastive(temperature=0.0588, duplicates=duplicates)(outputs)
        torch.testing.assert_close(ours, theirs)


def test_label_smoothing_equals_torch() -> None:
    outputs = batch()
    objective = Contrastive(label_smoothing=0.1)
    logits = normalize(outputs.vectors, dim=1) @ normalize(outputs.texts, dim=1).T / 0.07
    theirs = sum(cross_entropy(z, torch.arange(6), label_smoothing=0.1) for z in (logits, logits.T)) / 2
    torch.testing.assert_close(objective(outputs), theirs)


@pytest.mark.parametrize("duplicates", ["masked", "shared", "negatives"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_each_treatment_of_equal_captions_equals_its_formula(duplicates: str, smoothing: float) -> None:
    ids = [0, 1, 0, 2, 0, 1]
    outputs = batch(ids=ids)
    z = normalize(outputs.vectors, dim=1) @ normalize(outputs.texts, dim=1).T / 0.07
    total = 0.0
    for logits in (z, z.T):
        for i in range(6):
            allowed = [j for j in range(6) if duplicates != "masked" or j == i or ids[j] != ids[i]]
            right = [j for j in range(6) if ids[j] == ids[i]] if duplicates == "shared" else [i]
            log_p = {j: float(logits[i, j]) - float(torch.logsumexp(logits[i, allowed], 0)) for j in allowed}
            smooth = sum(log_p.values()) / len(allowed)
            total -= (1 - smoothing) * sum(log_p[j] for j in right) / len(right) + smoothing * smooth
    ours = Contrastive(duplicates=duplicates, label_smoothing=smoothing)(outputs)
    assert ours.item() == pytest.approx(total / 12, rel=1e-5)


@pytest.mark.parametrize("duplicates", ["masked", "shared"])
def test_gradients_equal_numerical_ones(duplicates: str) -> None:
    vectors, texts = (torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    objective = Contrastive(temperature=0.5, label_smoothing=0.1, duplicates=duplicates).double()

    def loss(vectors: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
        outputs = Outputs(vectors=vectors, texts=texts, text_ids=torch.tensor([0, 1, 0, 2]))
        return torch.func.functional_call(objective, {"similarity.logit_scale": logit_scale}, (outputs,))

    scale = torch.tensor(math.log(2.0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (vectors, texts, scale))


def test_the_temperature_falls_where_pairs_are_found_and_rises_where_they_are_not() -> None:
    outputs = batch()
    aligned = Outputs(vectors=outputs.vectors, texts=outputs.vectors, text_ids=outputs.text_ids)
    opposed = Outputs(vectors=outputs.vectors, texts=-outputs.vectors, text_ids=outputs.text_ids)
    slopes = []
    for pairs in (aligned, opposed):
        objective = Contrastive()
        objective(pairs).backward()
        slopes.append(float(objective.similarity.logit_scale.grad))
    # A step goes against the gradient: a greater scale for the aligned pairs, a smaller one for the others.
    assert slopes[0] < 0 < slopes[1]


def test_the_scale_stays_at_its_bound_and_can_leave_it() -> None:
    objective = Contrastive(temperature=0.005)
    loss = objective(batch())
    assert objective.measures() == {"temperature": pytest.approx(0.01)}
    theirs = open_clip.ClipLoss()(
        normalize(batch().vectors, dim=1), normalize(batch().texts, dim=1), torch.tensor(100.0)
    )
    torch.testing.assert_close(loss, theirs)
    loss.backward()
    assert float(objective.similarity.logit_scale.grad) > 0


def fitted(duplicates: str) -> float:
    """Return the least loss of 8 images of 4 captions, found by descent."""
    torch.manual_seed(0)
    ids = torch.arange(8) % 4
    images = torch.nn.Parameter(torch.randn(8, 8))
    captions = torch.nn.Parameter(torch.randn(4, 8))
    objective = Contrastive(duplicates=duplicates)
    optimizer = torch.optim.Adam([images, captions, *objective.parameters()], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = objective(Outputs(vectors=images, texts=captions[ids], text_ids=ids))
        loss.backward()
        optimizer.step()
    return loss.item()


def test_equal_captions_keep_the_loss_above_a_floor_unless_they_are_masked() -> None:
    # Each caption stands twice: no embedding can do better than log 2. The expectation over random batches of
    # 8 from 4 captions, each drawn by itself, is about 0.91.
    for duplicates in ("negatives", "shared"):
        assert fitted(duplicates) == pytest.approx(math.log(2), abs=3e-3)
    assert fitted("masked") < 3e-3


def test_the_expected_floor_of_a_batch_of_8_from_4_captions() -> None:
    generator = torch.Generator().manual_seed(0)
    perfect = torch.eye(4)
    losses: dict[str, list[float]] = {"negatives": [], "masked": []}
    for _ in range(200):
        ids = torch.randint(4, (8,), generator=generator)
        outputs = Outputs(vectors=perfect[ids], texts=perfect[ids], text_ids=ids)
        for duplicates, values in losses.items():
            values.append(Contrastive(temperature=0.01, duplicates=duplicates)(outputs).item())
    assert sum(losses["negatives"]) / 200 == pytest.approx(0.91, abs=0.03)
    assert max(losses["masked"]) < 1e-6


def test_sharing_the_target_among_equal_captions_changes_nothing() -> None:
    ids = torch.tensor([0, 1, 0, 2, 0, 1])
    gradients = []
    for duplicates in ("shared", "negatives"):
        images, captions = (torch.randn(n, 5, generator=torch.Generator().manual_seed(n)) for n in (6, 3))
        captions.requires_grad_()
        loss = Contrastive(duplicates=duplicates)(Outputs(vectors=images, texts=captions[ids], text_ids=ids))
        loss.backward()
        gradients.append(captions.grad)
    torch.testing.assert_close(*gradients)


def test_a_batch_of_one_caption_has_no_question_and_no_gradient() -> None:
    outputs = batch(ids=[7] * 6)
    outputs.vectors.requires_grad_()
    loss = Contrastive()(outputs)
    loss.backward()
    assert loss.item() == 0
    assert not outputs.vectors.grad.any()


def test_half_precision_vectors_are_compared_in_full_precision() -> None:
    outputs = batch()
    half = Outputs(vectors=outputs.vectors.bfloat16(), texts=outputs.texts.bfloat16(), text_ids=outputs.text_ids)
    full = Outputs(vectors=half.vectors.float(), texts=half.texts.float(), text_ids=outputs.text_ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = Contrastive()(half)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, Contrastive()(full))


def test_without_settings_it_is_the_loss_it_was_bit_for_bit() -> None:
    ids = torch.tensor([0, 1, 0, 2, 0, 1])
    outputs = replace(batch(), text_ids=ids)
    objective = Contrastive()
    cosine = normalize(outputs.vectors, dim=1) @ normalize(outputs.texts, dim=1).T
    z = objective.similarity.logit_scale.exp() * cosine
    own, same = torch.eye(6, dtype=torch.bool), ids[:, None] == ids[None, :]

    def plain(logits: torch.Tensor) -> torch.Tensor:
        log_p = log_softmax(logits.masked_fill(~(own | ~same), -torch.inf), dim=1)
        return -(own / 1.0 * log_p.masked_fill(~(own | ~same), 0.0)).sum(dim=1).mean()

    assert torch.equal(objective(outputs), (plain(z) + plain(z.T)) / 2)


TARGETS = torch.tensor([5, 5, -3, 7, 7, 5])
TEXTS = [0, 1, 0, 2, 3, 4]


def expected_of_targets(outputs: Outputs, weights: list[float], *, shared: bool) -> float:
    """Return the loss by loops: of every row and column the mean over its positives."""
    z = (normalize(outputs.vectors, dim=1) @ normalize(outputs.texts, dim=1).T / 0.07).tolist()
    right = [{j for j in range(6) if TARGETS[i] == TARGETS[j] or TEXTS[i] == TEXTS[j]} for i in range(6)]
    total = 0.0
    for i in range(6):
        for row in (z[i], [z[k][i] for k in range(6)]):
            allowed = range(6) if shared else {i, *range(6)} - (right[i] - {i})
            largest = max(row)
            log_sum = largest + math.log(sum(math.exp(row[k] - largest) for k in allowed))
            chosen = right[i] if shared else {i}
            total -= weights[i] * sum(row[j] - log_sum for j in chosen) / len(chosen)
    return total / (2 * sum(weights))


@pytest.mark.parametrize("duplicates", [None, "shared", "masked"])
@pytest.mark.parametrize("weights", [None, [4.0, 0.0, 1.0, 2.0, 2.0, 3.0]])
def test_samples_of_one_target_are_right_answers_to_each_other(duplicates, weights) -> None:
    given = None if weights is None else torch.tensor(weights)
    outputs = replace(batch(ids=TEXTS), target_ids=TARGETS, weights=given)
    objective = Contrastive(positives="target", duplicates=duplicates)
    expected = expected_of_targets(outputs, weights or [1.0] * 6, shared=duplicates != "masked")
    assert objective(outputs).item() == pytest.approx(expected, rel=1e-5)


def test_with_one_positive_each_and_equal_weights_it_is_clip() -> None:
    outputs = replace(batch(), target_ids=torch.arange(6), weights=torch.full((6,), 0.3))
    theirs = open_clip.ClipLoss()(
        normalize(outputs.vectors, dim=1), normalize(outputs.texts, dim=1), torch.tensor(1 / 0.07)
    )
    torch.testing.assert_close(Contrastive(positives="target")(outputs), theirs)


def test_a_sample_of_weight_0_has_no_question_but_stays_an_answer() -> None:
    outputs = replace(batch(), weights=torch.tensor([1.0, 1, 1, 1, 1, 0]))
    z = normalize(outputs.vectors, dim=1) @ normalize(outputs.texts, dim=1).T / 0.07
    theirs = sum(cross_entropy(logits[:5], torch.arange(5)) for logits in (z, z.T)) / 2
    torch.testing.assert_close(Contrastive()(outputs), theirs)
    assert Contrastive()(replace(outputs, weights=torch.zeros(6))).item() == 0


def test_targets_are_numbered_where_they_are_known_and_equal() -> None:
    classes = number_targets(np.array([2, 0, -1, 2, -1]), "multiclass")
    assert classes[0] == classes[3]
    assert len(set(classes.tolist())) == 4
    labels = np.array([[1, 0], [0, 1], [1, 0], [np.nan, 0], [np.nan, 0]], np.float32)
    numbers = number_targets(labels, "multilabel")
    assert numbers[0] == numbers[2]
    assert len(set(numbers.tolist())) == 4
    with pytest.raises(TaskError, match="positives=target: needs classes or labels, and the task is regression"):
        number_targets(np.array([0.5, 1.5]), "regression")
