"""Losses against torch's own, closed forms, and numerical gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from heads.losses import (
    absolute_error,
    binary_cross_entropy,
    cross_entropy,
    entry_losses,
    entry_slopes,
    huber,
    squared_error,
    weighted_mean,
)

MODELS, ROWS, CLASSES = 3, 7, 5


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(MODELS, ROWS, CLASSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def targets() -> torch.Tensor:
    return torch.randint(2, (ROWS, CLASSES), generator=torch.Generator().manual_seed(2)).double()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(logits, labels, smoothing):
    ours = cross_entropy(logits, labels, smoothing=smoothing)
    for g in range(MODELS):
        theirs = functional.cross_entropy(logits[g], labels, label_smoothing=smoothing, reduction="none")
        torch.testing.assert_close(ours[g], theirs)


def test_class_weighted_mean_equals_torch(logits, labels):
    class_weight = torch.tensor([0.2, 1.0, 3.0, 0.5, 2.0], dtype=torch.float64)
    ours = weighted_mean(cross_entropy(logits, labels)[..., None], class_weight[labels][:, None])
    theirs = torch.stack([functional.cross_entropy(z, labels, weight=class_weight) for z in logits])
    torch.testing.assert_close(ours, theirs)


def test_binary_cross_entropy_equals_torch(logits, targets):
    pos_weight = torch.tensor([0.5, 1.0, 2.0, 4.0, 9.0], dtype=torch.float64)
    ours = binary_cross_entropy(logits, targets, pos_weight=pos_weight)
    theirs = functional.binary_cross_entropy_with_logits(
        logits, targets.expand_as(logits), pos_weight=pos_weight, reduction="none"
    )
    torch.testing.assert_close(ours, theirs)


def test_binary_smoothing_moves_targets_half_way_to_even_odds(logits, targets):
    smooth = targets * 0.9 + 0.05
    theirs = functional.binary_cross_entropy_with_logits(logits, smooth.expand_as(logits), reduction="none")
    torch.testing.assert_close(binary_cross_entropy(logits, targets, smoothing=0.1), theirs)


@pytest.mark.parametrize("gamma", [0.0, torch.zeros(MODELS, dtype=torch.float64)])
def test_focal_loss_of_gamma_zero_is_the_loss_itself(logits, labels, targets, gamma):
    assert torch.equal(cross_entropy(logits, labels, gamma=gamma), cross_entropy(logits, labels))
    assert torch.equal(binary_cross_entropy(logits, targets, gamma=gamma), binary_cross_entropy(logits, targets))


def test_focal_loss_uses_the_probability_of_the_label(logits, labels, targets):
    p_t = logits.softmax(-1).gather(-1, labels.expand(MODELS, ROWS)[..., None])[..., 0]
    torch.testing.assert_close(cross_entropy(logits, labels, gamma=2.0), -((1 - p_t) ** 2) * p_t.log())
    p = logits.sigmoid()
    p_t = torch.where(targets == 1, p, 1 - p)
    torch.testing.assert_close(binary_cross_entropy(logits, targets, gamma=2.0), -((1 - p_t) ** 2) * p_t.log())


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_gradient_is_finite_where_the_label_is_certain(gamma):
    logits = torch.tensor([[[200.0, 0.0], [-200.0, 0.0]]], requires_grad=True)
    cross_entropy(logits, torch.tensor([0, 0]), gamma=gamma).sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1, 0] == -1.0  # the wrong one keeps the full gradient of the cross-entropy


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_regression_losses_equal_torch(logits, delta):
    targets = logits.flip(0)
    torch.testing.assert_close(
        huber(logits, targets, delta=delta), functional.huber_loss(logits, targets, reduction="none", delta=delta)
    )
    torch.testing.assert_close(squared_error(logits, targets), functional.mse_loss(logits, targets, reduction="none"))
    torch.testing.assert_close(absolute_error(logits, targets), functional.l1_loss(logits, targets, reduction="none"))


def test_settings_may_differ_between_models(logits, labels, targets):
    settings = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)
    gammas, deltas = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64), torch.tensor([0.1, 1.0, 2.0])
    for g in range(MODELS):
        one = {"smoothing": float(settings[g]), "gamma": float(gammas[g])}
        many = {"smoothing": settings, "gamma": gammas}
        torch.testing.assert_close(
            cross_entropy(logits, labels, **many)[g], cross_entropy(logits[g : g + 1], labels, **one)[0]
        )
        torch.testing.assert_close(
            binary_cross_entropy(logits, targets, **many)[g],
            binary_cross_entropy(logits[g : g + 1], targets, **one)[0],
        )
        torch.testing.assert_close(
            huber(logits, targets, delta=deltas)[g], huber(logits[g], targets, delta=float(deltas[g]))
        )


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("cross_entropy", {}),
        ("cross_entropy", {"smoothing": 0.1, "gamma": 2.0}),
        ("binary_cross_entropy", {}),
        ("binary_cross_entropy", {"smoothing": 0.1, "gamma": 1.5}),
        ("huber", {"delta": 0.5}),
        ("squared_error", {}),
        ("absolute_error", {}),
    ],
)
def test_gradients(logits, labels, targets, name, settings):
    truth = labels[:, None].double() if name == "cross_entropy" else targets
    weights = torch.rand(truth.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return weighted_mean(entry_losses(name, z, truth, **settings), weights)

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)])
@pytest.mark.parametrize("delta", [0.5, torch.tensor([0.1, 1.0, 9.0], dtype=torch.float64)])
@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "huber", "squared_error", "absolute_error"])
@pytest.mark.parametrize("classes", [1, 5, 40])
def test_slopes_are_what_autograd_finds(name, classes, gamma, delta):
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(MODELS, ROWS, classes, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    codes = name == "cross_entropy"
    shape = (MODELS, ROWS, 1 if codes else classes)
    targets = torch.randint(classes if codes else 2, shape, generator=generator).double()
    losses = entry_losses(name, logits, targets, gamma=gamma, delta=delta)
    (expected,) = torch.autograd.grad(losses.sum(), logits)
    with torch.no_grad():
        found, slopes = entry_slopes(name, logits, targets, gamma=gamma, delta=delta)
    torch.testing.assert_close(found, losses.detach())
    torch.testing.assert_close(slopes, expected)


def test_missing_entries_count_for_nothing(logits, targets):
    observed = torch.ones_like(targets)
    observed[1, 2] = observed[4] = 0
    changed = torch.where(observed > 0, targets, 1 - targets)
    logits.requires_grad_()
    loss = weighted_mean(binary_cross_entropy(logits, changed), observed)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    kept = observed.bool()
    theirs = [functional.binary_cross_entropy_with_logits(z[kept], targets[kept]) for z in logits]
    torch.testing.assert_close(loss, torch.stack(theirs))
    assert (gradient[:, ~kept] == 0).all()


def test_mean_over_nothing_is_zero():
    assert weighted_mean(torch.ones(2, 4, 1), torch.zeros(4, 1)).tolist() == [0.0, 0.0]
