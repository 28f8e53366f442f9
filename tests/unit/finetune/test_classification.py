"""The classifier on vectors: every kind of task against torch's losses, missing targets, balance, warm start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from data.errors import TaskError
from data.task import Kind, Task
from finetune.objectives.classification import Classification
from finetune.outputs import Outputs
from finetune.warm_start import UnitLength

DIM = 4
VECTORS = torch.randn(7, DIM, generator=torch.Generator().manual_seed(0))
TARGETS: dict[Kind, np.ndarray] = {
    "binary": np.array([0, 1, 1, -1, 0, 0, 0]),
    "multiclass": np.array([0, 1, 2, -1, 2, 2, 0]),
    "multilabel": np.array(
        [[0, 1, 1], [1, np.nan, 0], [0, 0, 0], [np.nan, 1, np.nan], [0, 0, 1], [1, 0, 1], [0, 0, np.nan]], np.float32
    ),
    "regression": np.array([[50, 1e-3], [62, np.nan], [41, 3e-3], [55, 2e-3], [np.nan, np.nan], [70, 1e-3], [48, 0]]),
}


def task(kind: Kind) -> Task:
    classes = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "multilabel": ("p", "q", "r")}.get(kind, ())
    return Task(kind=kind, targets=("u", "v") if kind == "regression" else ("label",), classes=classes)


def objective(kind: Kind, **settings: Any) -> Classification:
    torch.manual_seed(1)
    return Classification(task=task(kind), dim=DIM, targets=TARGETS[kind], **settings)


def loss(made: Classification, kind: Kind) -> Tensor:
    return made(Outputs(vectors=VECTORS, targets=torch.from_numpy(TARGETS[kind])))


def z_of(made: Classification) -> Tensor:
    return made.classifier(VECTORS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_multiclass_equals_torch_without_the_missing(smoothing: float) -> None:
    made = objective("multiclass", label_smoothing=smoothing)
    theirs = functional.cross_entropy(
        z_of(made), torch.from_numpy(TARGETS["multiclass"]), label_smoothing=smoothing, ignore_index=-1
    )
    torch.testing.assert_close(loss(made, "multiclass"), theirs)


def test_balanced_classes_equal_scikit_learns_weights_in_torchs_loss() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    y = TARGETS["multiclass"]
    weight = compute_class_weight("balanced", classes=np.arange(3), y=y[y >= 0])
    made = objective("multiclass", class_weight="balanced")
    theirs = functional.cross_entropy(
        z_of(made), torch.from_numpy(y), weight=torch.tensor(weight, dtype=torch.float32), ignore_index=-1
    )
    torch.testing.assert_close(loss(made, "multiclass"), theirs)


def test_the_focal_loss_is_the_cross_entropy_times_a_power_of_the_miss() -> None:
    made = objective("multiclass", focal_gamma=2.0)
    y = torch.from_numpy(TARGETS["multiclass"])
    known = y >= 0
    ce = functional.cross_entropy(z_of(made)[known], y[known], reduction="none")
    torch.testing.assert_close(loss(made, "multiclass"), ((1 - torch.exp(-ce)) ** 2 * ce).mean())


def test_binary_has_one_logit_and_equals_torch() -> None:
    y = torch.from_numpy(TARGETS["binary"])
    known = y >= 0
    for setting, weight in ((None, 1.0), (3.0, 3.0), ("balanced", 2.0)):
        made = objective("binary", pos_weight=setting)
        z = z_of(made)
        assert z.shape == (7, 1)
        theirs = functional.binary_cross_entropy_with_logits(
            z[known, 0], y[known].float(), pos_weight=torch.tensor(weight)
        )
        torch.testing.assert_close(loss(made, "binary"), theirs)


@pytest.mark.parametrize("pos_weight", [None, "balanced"])
def test_multilabel_equals_torch_over_the_known_labels(pos_weight: Any) -> None:
    made = objective("multilabel", pos_weight=pos_weight)
    y = torch.from_numpy(TARGETS["multilabel"])
    known = ~y.isnan()
    weight = torch.tensor([4 / 2, 4 / 2, 2 / 3]) if pos_weight else torch.ones(3)
    entries = functional.binary_cross_entropy_with_logits(
        z_of(made), y.nan_to_num(), pos_weight=weight, reduction="none"
    )
    torch.testing.assert_close(loss(made, "multilabel"), entries[known].mean())


def test_balanced_labels_weigh_both_values_of_each_label_alike() -> None:
    made = objective("multilabel", class_weight="balanced")
    y = torch.from_numpy(TARGETS["multilabel"])
    known = ~y.isnan()
    weights = made._weights(y.nan_to_num()) * known
    for label in range(3):
        ones = weights[y[:, label] == 1, label].sum()
        torch.testing.assert_close(ones, weights[y[:, label] == 0, label].sum())
        torch.testing.assert_close(2 * ones, known[:, label].sum().float())


@pytest.mark.parametrize(
    ("name", "reference"),
    [("huber", functional.huber_loss), ("mse", functional.mse_loss), ("mae", functional.l1_loss)],
)
def test_regression_equals_torch_in_standard_deviations(name: Any, reference: Any) -> None:
    made = objective("regression", loss=name)
    y = torch.from_numpy(TARGETS["regression"])
    known = ~y.isnan()
    mean, deviation = np.nanmean(y.numpy(), axis=0), np.nanstd(y.numpy(), axis=0)
    scaled = ((y - torch.from_numpy(mean)) / torch.from_numpy(deviation)).float()
    torch.testing.assert_close(loss(made, "regression"), reference(z_of(made)[known], scaled[known]))
    scores = made.scores(VECTORS)
    expected = z_of(made).double() * torch.from_numpy(deviation) + torch.from_numpy(mean)
    torch.testing.assert_close(scores, expected.float())


def test_scores_are_those_of_the_task() -> None:
    binary = objective("binary")
    torch.testing.assert_close(binary.scores(VECTORS), z_of(binary)[:, 0].sigmoid())
    multiclass = objective("multiclass")
    torch.testing.assert_close(multiclass.scores(VECTORS), z_of(multiclass).softmax(dim=1))
    assert objective("multilabel").scores(VECTORS).shape == (7, 3)
    one = Classification(
        task=Task(kind="regression", targets=("age",)), dim=DIM, targets=np.array([50.0, 60.0, np.nan])
    )
    assert one.scores(VECTORS).shape == (7,)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_batch_without_a_known_target_costs_nothing(kind: Kind) -> None:
    made = objective(kind)
    vectors = VECTORS.clone().requires_grad_()
    missing = torch.full(TARGETS[kind].shape, -1 if TARGETS[kind].dtype.kind == "i" else torch.nan)
    value = made(Outputs(vectors=vectors, targets=missing))
    value.backward()
    assert value.item() == 0
    assert not vectors.grad.any()


def test_a_hidden_layer_of_the_vectors_width_is_distilberts_head() -> None:
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    config = DistilBertConfig(vocab_size=20, dim=8, hidden_dim=8, n_layers=1, n_heads=2, num_labels=3)
    torch.manual_seed(0)
    theirs = DistilBertForSequenceClassification(config).train()
    made = Classification(task=task("multiclass"), dim=8, targets=TARGETS["multiclass"], hidden=(8,), dropout=0.2)
    assert isinstance(made.classifier, nn.Sequential)
    made.classifier[0].load_state_dict(theirs.pre_classifier.state_dict())
    made.classifier[3].load_state_dict(theirs.classifier.state_dict())
    tokens = torch.randint(20, (5, 6))
    with torch.no_grad():
        pooled = theirs.eval().distilbert(tokens)[0][:, 0]
        torch.testing.assert_close(made.eval().classifier(pooled), theirs(tokens).logits)
    assert made.classifier[2].p == theirs.dropout.p == 0.2


@pytest.mark.parametrize("kind", TARGETS)
def test_a_fitted_classifier_can_be_where_it_starts(kind: Kind) -> None:
    made = objective(kind)
    outputs = made.classifier[-1].out_features
    fitted = nn.Linear(DIM, outputs)
    before = fitted.weight.clone()
    made.start_from(fitted)
    expected = fitted(VECTORS)
    if kind in ("binary", "multilabel"):
        expected = expected.sigmoid()
    elif kind == "multiclass":
        expected = expected.softmax(dim=1)
    scores = made.scores(VECTORS)
    torch.testing.assert_close(scores.reshape(7, -1), expected.reshape(7, -1), rtol=1e-4, atol=1e-5)
    made.classifier[-1].weight.data.zero_()
    assert torch.equal(fitted.weight, before)


def test_a_classifier_of_unit_vectors_keeps_its_drop_out_and_is_read_back_whole() -> None:
    made, fresh = objective("multiclass", dropout=0.5), objective("multiclass", dropout=0.5)
    fitted = nn.Sequential(UnitLength(), nn.Linear(DIM, 3))
    made.start_from(fitted)
    fresh.load_state_dict(made.state_dict())
    expected = fitted(VECTORS).softmax(dim=1)
    torch.testing.assert_close(fresh.eval().scores(VECTORS), expected)
    assert any(isinstance(module, nn.Dropout) for module in made.classifier)


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(TaskError, match="ends in a linear layer of 3 outputs, found Linear"):
        objective("multiclass").start_from(nn.Linear(DIM, 2))
    with pytest.raises(TaskError, match="ends in a linear layer of 3 outputs, found ReLU"):
        objective("multiclass").start_from(nn.Sequential(nn.Linear(DIM, 3), nn.ReLU()))
    with pytest.raises(TaskError, match="has no hidden layers; leave out hidden"):
        objective("multiclass", hidden=(DIM,)).start_from(nn.Linear(DIM, 3))
    with pytest.raises(TaskError, match=r"pos_weight=2\.0 needs positives, and the task is multiclass"):
        objective("multiclass", pos_weight=2.0)
    with pytest.raises(TaskError, match="class_weight=balanced needs classes, and the task is regression"):
        objective("regression", class_weight="balanced")
    mixed = Task(kind="mixed", targets=("a", "b"))
    with pytest.raises(TaskError, match="a mixed task cannot be fine-tuned"):
        Classification(task=mixed, dim=DIM, targets=np.zeros((3, 2)))


@pytest.mark.parametrize("kind", TARGETS)
def test_samples_count_by_their_weights(kind: Kind) -> None:
    """A weight of 2 is a sample that is there twice, and a weight of 0 one that is not there."""
    made = objective(kind)
    targets = torch.from_numpy(TARGETS[kind])
    weights = torch.tensor([2.0, 1, 1, 5, 0, 3, 0])
    rows = torch.repeat_interleave(torch.arange(7), weights.long())
    weighted = made(Outputs(vectors=VECTORS, targets=targets, weights=weights / 7))
    torch.testing.assert_close(weighted, made(Outputs(vectors=VECTORS[rows], targets=targets[rows])))
    even = made(Outputs(vectors=VECTORS, targets=targets, weights=torch.ones(7)))
    assert torch.equal(even, made(Outputs(vectors=VECTORS, targets=targets)))


TAUGHT = {
    "binary": torch.rand(7, 1, generator=torch.Generator().manual_seed(2)),
    "multiclass": torch.randn(7, 3, generator=torch.Generator().manual_seed(2)).softmax(dim=1),
    "multilabel": torch.rand(7, 3, generator=torch.Generator().manual_seed(2)),
}


def divergences(kind: str, z: Tensor, temperature: float) -> Tensor:
    """Return the divergence of each sample by torch's distributions."""
    if kind == "multiclass":
        theirs = torch.distributions.Categorical(logits=TAUGHT[kind].log() / temperature)
        return torch.distributions.kl_divergence(theirs, torch.distributions.Categorical(logits=z / temperature))
    odds = torch.log(TAUGHT[kind] / (1 - TAUGHT[kind]))
    theirs, ours = (torch.distributions.Bernoulli(logits=each / temperature) for each in (odds, z))
    return torch.distributions.kl_divergence(theirs, ours).mean(dim=1)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2, 0, 1, 0.5, 1, 3])])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("kind", TAUGHT)
def test_a_teacher_is_learned_beside_the_targets(kind: Kind, temperature: float, weights: Tensor | None) -> None:
    made = objective(kind, teacher_weight=0.3, teacher_temperature=temperature)
    outputs = Outputs(vectors=VECTORS, targets=torch.from_numpy(TARGETS[kind]), weights=weights)
    each = divergences(kind, z_of(made), temperature)
    known = torch.from_numpy(TARGETS[kind]).reshape(7, -1) >= 0
    w = known.sum(dim=1) * (torch.ones(7) if weights is None else weights)
    expected = 0.7 * made(outputs) + 0.3 * temperature**2 * (w * each).sum() / w.sum()
    torch.testing.assert_close(made(replace(outputs, taught=TAUGHT[kind])), expected)


@pytest.mark.parametrize("kind", TAUGHT)
def test_a_teacher_says_nothing_where_it_has_no_weight_and_where_rows_are_judged(kind: Kind) -> None:
    outputs = Outputs(vectors=VECTORS, targets=torch.from_numpy(TARGETS[kind]))
    made = objective(kind, teacher_weight=0.0)
    assert torch.equal(made(replace(outputs, taught=TAUGHT[kind])), made(outputs))
    made = objective(kind, teacher_weight=1.0).eval()
    assert torch.equal(made(replace(outputs, taught=TAUGHT[kind])), made(outputs))


@pytest.mark.parametrize("kind", TAUGHT)
def test_a_teacher_alone_is_agreed_with_when_there_is_nothing_left_to_learn(kind: Kind) -> None:
    made = objective(kind, teacher_weight=1.0)
    vectors = VECTORS.clone().requires_grad_()
    scores = made.scores(VECTORS).detach().reshape(7, -1)
    value = made(Outputs(vectors=vectors, targets=torch.from_numpy(TARGETS[kind]), taught=scores))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(vectors.grad, torch.zeros_like(vectors), atol=1e-6, rtol=0)


def test_a_teacher_that_is_sure_costs_a_finite_loss() -> None:
    made = objective("multiclass", teacher_weight=1.0, teacher_temperature=1.0)
    sure = functional.one_hot(torch.tensor([0, 1, 2, 0, 1, 2, 0]), 3).float()
    value = made(Outputs(vectors=VECTORS, targets=sure.argmax(dim=1), taught=sure))
    cross = functional.cross_entropy(z_of(made), sure.argmax(dim=1))
    torch.testing.assert_close(value, cross, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", TAUGHT)
def test_passes_add_up_to_the_whole_by_their_counts(kind: Kind) -> None:
    """With missing targets, balanced classes, weights of samples and a teacher."""
    made = objective(kind, teacher_weight=0.3, class_weight="balanced")
    targets, weights = torch.from_numpy(TARGETS[kind]), torch.tensor([1.0, 2, 0, 1, 0.5, 1, 3])
    whole = Outputs(vectors=VECTORS, targets=targets, weights=weights, taught=TAUGHT[kind])
    parts = [
        Outputs(vectors=VECTORS[rows], targets=targets[rows], weights=weights[rows], taught=TAUGHT[kind][rows])
        for rows in (slice(0, 3), slice(3, 7))
    ]
    counts = [made.count(part, len(part.vectors)) for part in parts]
    total = sum(made(part) * count for part, count in zip(parts, counts, strict=True)) / sum(counts)
    torch.testing.assert_close(total, made(whole))
