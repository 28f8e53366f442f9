"""The batched loop against its reference: one model after another, as a user of torch would write it.

Both start from the same weights and take the same batches, which come from the streams of the seed; all
else is torch's: modules, losses, optimisers, clipping, the plateau. Dropout is off, for torch draws its
masks otherwise. Stated tolerance: losses, probabilities and metrics differ by 2e-4 at most after all epochs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import log_loss, roc_auc_score
from torch import nn

from heads.batched import logits_of, train_many
from heads.training.corpus import Corpus, Stream, Targets
from heads.training.optimizer import clipped
from heads.training.perceptron import Perceptron
from heads.training.plan import Fold, Recipe, Regime, TrainedModel

TOLERANCE = 2e-4
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
}
N, D, T = 230, 12, 3
WIDTHS = (16, 8)


class Baseline(nn.Module):
    """The published multilabel baseline: linear, ReLU, batch norm; logits minus learned shifts."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, width in zip((D, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Linear(inputs, width), nn.ReLU(), nn.BatchNorm1d(width)]
        self.hidden = nn.Sequential(*layers)
        self.last = nn.Linear(WIDTHS[-1], T)
        self.logit_shifts = nn.Parameter(torch.zeros(T))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.hidden(x)) - self.logit_shifts

    def start(self, weights: dict[str, torch.Tensor]) -> None:
        linears = [layer for layer in self.hidden if isinstance(layer, nn.Linear)]
        for layer, name in (*zip(linears, "01", strict=True), (self.last, "logits")):
            layer.weight.data, layer.bias.data = weights[f"{name}.weight"].T.clone(), weights[f"{name}.bias"].clone()


@dataclass(frozen=True)
class Course:
    """What the reference leaves behind: its losses per epoch, and the logits of the best epoch."""

    train: list[float]
    monitor: list[float]
    logits: np.ndarray


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, D)).astype(np.float32)
    y = (X @ rng.normal(size=(D, T)) + rng.normal(size=(N, T)) > 0.5).astype(float)
    y[rng.random(y.shape) < 0.2] = np.nan
    return X, y


def folds() -> list[Fold]:
    part = np.arange(N) % 5
    return [
        Fold(train=np.flatnonzero(part > 1), monitor=np.flatnonzero(part == 1), number=0),
        Fold(train=np.flatnonzero(part < 3), monitor=np.flatnonzero(part == 3), number=1),
    ]


def masked_loss(logits: torch.Tensor, y: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return the mean over the labels that are there."""
    known = ~y.isnan()
    positive = torch.tensor(recipe.pos_weight) if recipe.pos_weight else None
    smooth = y.nan_to_num() * (1 - recipe.smoothing) + recipe.smoothing / 2
    losses = nn.functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=positive, reduction="none")
    return losses[known].mean()


def train_alone(X: np.ndarray, y: np.ndarray, fold: Fold, recipe: Recipe, regime: Regime) -> Course:
    """Train one model with what torch has."""
    device = torch.device("cpu")
    features, targets = torch.from_numpy(X), torch.from_numpy(y).float()
    stream = Stream(recipe.seed, Corpus(fold, features, Targets(y, device), regime.batch_size))
    network = Baseline()
    network.start(perceptron().initial(stream.generator("initial")))
    matrices = [p for p in network.parameters() if p.ndim >= 2]
    vectors = [p for p in network.parameters() if p.ndim < 2]
    spared = 0.0 if regime.optimizer == "adamw" else recipe.weight_decay
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": spared},
    ]
    optimizer = OPTIMIZERS[regime.optimizer](groups, lr=recipe.lr)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=regime.plateau_factor, patience=5, threshold=regime.min_delta, threshold_mode="abs"
    )
    course = Course([], [], np.empty(0))
    best = float("inf")
    for epoch in range(regime.max_epochs):
        stream.begin(epoch)
        network.train()
        losses = []
        for rows, real in zip(stream.order, stream.corpus.real, strict=True):
            chosen = rows[real > 0]
            loss = masked_loss(network(features[chosen]), targets[chosen], recipe)
            optimizer.zero_grad()
            loss.backward()
            if recipe.clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
            optimizer.step()
            losses.append(loss.item())
        network.eval()
        with torch.no_grad():
            monitored = masked_loss(network(features[fold.monitor]), targets[fold.monitor], recipe).item()
            if monitored < best - regime.min_delta:
                best, course = monitored, Course(course.train, course.monitor, network(features).numpy())
        course.train.append(float(np.mean(losses)))
        course.monitor.append(monitored)
        plateau.step(monitored)
    return course


def perceptron() -> Perceptron:
    return Perceptron(
        inputs=D, outputs=T, hidden=WIDTHS, norm="batch", order="linear-activation-norm", logit_shifts=True
    )


def metrics(logits: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Return metrics of the labels that are there, all labels in one."""
    known = ~np.isnan(y)
    truth, probability = y[known], expit(logits.astype(np.float64))[known]
    return {
        "roc_auc": roc_auc_score(truth, probability),
        "log_loss": log_loss(truth, probability),
        "accuracy": float(((probability > 0.5) == truth).mean()),
    }


RECIPES: list[dict[str, Any]] = [
    {"lr": 1e-2, "weight_decay": 0.1},
    {"lr": 3e-3, "weight_decay": 1e-3, "clip_norm": 0.2},
    {"lr": 1e-2, "weight_decay": 1e-2, "clip_norm": 0.5, "pos_weight": (2.0, 1.0, 0.5), "smoothing": 0.1},
    {"lr": 5e-3, "weight_decay": 0.0, "seed": 1},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_batched_training_gives_the_metrics_of_the_sequential_reference(data, optimizer):
    X, y = data
    regime = Regime(
        loss="binary_cross_entropy", batch_size=32, max_epochs=14, patience=14, schedule="plateau", optimizer=optimizer
    )
    faster = 10 if optimizer == "sgd" else 1
    recipes = [
        Recipe(fold=fold, **{**settings, "lr": faster * settings["lr"]}) for fold in range(2) for settings in RECIPES
    ]
    models = train_many(perceptron(), X, y, folds=folds(), recipes=recipes, regime=regime)
    learned = []
    for recipe, model in zip(recipes, models, strict=True):
        assert isinstance(model, TrainedModel)
        alone = train_alone(X, y, folds()[recipe.fold], recipe, regime)
        np.testing.assert_allclose(model.history["train_loss"], alone.train, atol=TOLERANCE)
        np.testing.assert_allclose(model.history["monitor_loss"], alone.monitor, atol=TOLERANCE)
        logits = logits_of(perceptron(), {name: value[None] for name, value in model.state.items()}, X)[0]
        np.testing.assert_allclose(expit(logits), expit(alone.logits), atol=TOLERANCE)
        theirs = metrics(alone.logits, y)
        assert metrics(logits, y) == pytest.approx(theirs, abs=TOLERANCE)
        learned.append(theirs["roc_auc"])
    assert max(learned) > 0.7


def test_each_model_is_clipped_by_its_own_gradient():
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(3, 5, 4, generator=generator), torch.randn(3, 4, generator=generator)]
    longest = torch.tensor([0.5, 1e3, torch.inf])
    ours = clipped(gradients, longest)
    for g in range(3):
        parameters = [nn.Parameter(torch.zeros_like(each[g])) for each in gradients]
        for parameter, each in zip(parameters, gradients, strict=True):
            parameter.grad = each[g].clone()
        nn.utils.clip_grad_norm_(parameters, longest[g].item())
        for parameter, mine in zip(parameters, ours, strict=True):
            torch.testing.assert_close(mine[g], parameter.grad, rtol=1e-6, atol=0)
    assert torch.linalg.vector_norm(torch.cat([each[0].flatten() for each in ours])).item() == pytest.approx(0.5)
    assert torch.equal(ours[0][1:], gradients[0][1:])
