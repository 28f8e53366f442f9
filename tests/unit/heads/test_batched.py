"""The training loop: grouping changes nothing, optimiser and schedules equal torch's, early stopping, divergence."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from heads.batched import logits_of, train_many, train_one
from heads.errors import HeadError
from heads.training.corpus import Corpus, Stream, Targets
from heads.training.course import Course, schedule_factor
from heads.training.layers import Draws, TrainingPass, _BatchNorm, batch_norm
from heads.training.optimizer import StackedOptimizer
from heads.training.perceptron import Perceptron
from heads.training.plan import Fold, Recipe, Regime, TrainedModel
from heads.training.precision import LossScale

N, D, C = 203, 12, 3
REGIME = Regime(loss="cross_entropy", batch_size=50, max_epochs=10, patience=2)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, C, N)
    X = rng.normal(size=(N, D)) + rng.normal(size=(C, D))[y]
    noisy = rng.random(N) < 0.2
    return X.astype(np.float32), np.where(noisy, rng.integers(0, C, N), y)


def scores(architecture: Perceptron, model: TrainedModel, X: np.ndarray) -> np.ndarray:
    return logits_of(architecture, {name: value[None] for name, value in model.state.items()}, X)[0]


def folds_of() -> list[Fold]:
    """Two folds of nearly one size, which train in lock-step, and one that is far smaller."""
    part = np.minimum(np.arange(N) % 5, 2)
    return [Fold(train=np.flatnonzero(part != k), monitor=np.flatnonzero(part == k), number=k) for k in range(3)]


def grid() -> list[Recipe]:
    """Every fold with configurations that differ in all that may differ."""
    different = [
        {"lr": 1e-3},
        {"lr": 1e-2, "dropout": 0.3, "weight_decay": 0.1, "clip_norm": 0.3},
        {"lr": 3e-2, "input_noise": 0.2, "smoothing": 0.1},
        {"lr": 3e-3, "dropout": 0.6, "input_noise": 0.1, "gamma": 2.0, "seed": 1},
    ]
    return [Recipe(fold=fold, **settings) for fold, settings in itertools.product(range(3), different)]


@pytest.mark.parametrize(("schedule", "optimizer"), [("constant", "sgd"), ("cosine", "adamw"), ("plateau", "adam")])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_results_do_not_depend_on_grouping(data, norm, schedule, optimizer):
    X, y = data
    architecture = Perceptron(inputs=D, outputs=C, hidden=(16, 8), norm=norm)
    common = {"folds": folds_of(), "regime": replace(REGIME, schedule=schedule, optimizer=optimizer)}
    together = train_many(architecture, X, y, recipes=grid(), **common)
    in_chunks = train_many(architecture, X, y, recipes=grid(), at_once=5, **common)
    alone = [train_many(architecture, X, y, recipes=[recipe], **common)[0] for recipe in grid()]
    assert len({model.best_epoch for model in together}) > 1  # models stop at different times
    for models in (in_chunks, alone):
        for one, other in zip(together, models, strict=True):
            assert one.history == other.history
            for name in one.state:
                np.testing.assert_array_equal(one.state[name], other.state[name])


@pytest.mark.parametrize(
    ("inputs", "hidden", "batch_size"), [(D, (64,), 40), (D, (7, 1), 16), (1, (9,), 50), (D, (), 60)]
)
@pytest.mark.parametrize("loss", ["binary_cross_entropy", "huber"])
def test_one_output_does_not_depend_on_grouping(data, loss, inputs, hidden, batch_size):
    X, y = data
    architecture = Perceptron(inputs=inputs, outputs=1, hidden=hidden, activation="gelu", norm="layer")
    regime = replace(REGIME, loss=loss, batch_size=batch_size, max_epochs=3)
    common = {"folds": folds_of(), "regime": regime}
    together = train_many(architecture, X[:, :inputs], y > 0, recipes=grid(), workers=1, **common)
    for recipe, model in zip(grid(), together, strict=True):
        (alone,) = train_many(architecture, X[:, :inputs], y > 0, recipes=[recipe], **common)
        assert alone.history == model.history
        for name in model.state:
            np.testing.assert_array_equal(model.state[name], alone.state[name])


def test_configurations_of_a_fold_share_their_randomness_and_folds_do_not(data):
    X, y = data
    architecture = Perceptron(inputs=D, outputs=C, hidden=(8,))
    recipes = [Recipe(lr=1e-30), Recipe(lr=2e-30), Recipe(lr=1e-30, seed=1), Recipe(lr=1e-30, fold=1)]
    models = train_many(architecture, X, y, folds=folds_of(), recipes=recipes, regime=REGIME)
    first = [model.state["0.weight"] for model in models]
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])
    assert not np.array_equal(first[0], first[3])


def test_global_random_state_is_untouched(data):
    X, y = data
    before = torch.get_rng_state()
    train_one(
        Perceptron(inputs=D, outputs=C),
        X,
        y,
        fold=folds_of()[0],
        recipe=Recipe(dropout=0.5, input_noise=0.1),
        regime=REGIME,
    )
    assert torch.equal(before, torch.get_rng_state())


def test_rows_outside_the_fold_are_never_seen(data):
    X, y = data
    fold = Fold(train=np.arange(100), monitor=np.arange(100, 130))
    poisoned, wrong = X.copy(), y.copy()
    poisoned[130:], wrong[130:] = np.nan, 0
    architecture = Perceptron(inputs=D, outputs=C, hidden=(8,), norm="batch")
    clean, other = (
        train_one(architecture, a, b, fold=fold, recipe=Recipe(input_noise=0.1), regime=REGIME)
        for a, b in ((X, y), (poisoned, wrong))
    )
    for name in clean.state:
        np.testing.assert_array_equal(clean.state[name], other.state[name])


def test_shift_and_scale_equal_standardised_features(data):
    X, y = data
    fold = folds_of()[0]
    shift, scale = X.mean(axis=0), X.std(axis=0)
    architecture = Perceptron(inputs=D, outputs=C, hidden=(8,))
    inside = train_one(architecture, X, y, fold=replace(fold, shift=shift, scale=scale), recipe=Recipe(), regime=REGIME)
    outside = train_one(architecture, (X - shift) / scale, y, fold=fold, recipe=Recipe(), regime=REGIME)
    np.testing.assert_array_equal(inside.state["0.weight"], outside.state["0.weight"])


def test_features_of_double_precision_are_standardised_as_such(data):
    X, y = data
    far = X.astype(np.float64) + 1e8
    fold = replace(folds_of()[0], shift=far.mean(axis=0), scale=far.std(axis=0))
    near = replace(folds_of()[0], shift=X.astype(np.float64).mean(axis=0), scale=X.astype(np.float64).std(axis=0))
    architecture = Perceptron(inputs=D, outputs=C, hidden=(8,))
    one = train_one(architecture, far, y, fold=fold, recipe=Recipe(), regime=REGIME)
    other = train_one(architecture, X.astype(np.float64), y, fold=near, recipe=Recipe(), regime=REGIME)
    np.testing.assert_allclose(one.state["0.weight"], other.state["0.weight"], atol=1e-4)


def test_missing_labels_are_masked(data):
    X, _ = data
    rng = np.random.default_rng(1)
    y = (rng.random((N, 4)) < 0.4).astype(np.float64)
    hidden = rng.random((N, 4)) < 0.3
    weight = np.where(hidden, 0.0, 1.0)
    regime = replace(REGIME, loss="binary_cross_entropy")
    architecture = Perceptron(inputs=D, outputs=4, hidden=(8,))
    by_nan = train_one(architecture, X, np.where(hidden, np.nan, y), fold=folds_of()[0], recipe=Recipe(), regime=regime)
    by_weight = train_one(
        architecture,
        X,
        np.where(hidden, 1 - y, y),
        fold=replace(folds_of()[0], weight=weight),
        recipe=Recipe(),
        regime=regime,
    )
    for name in by_nan.state:
        np.testing.assert_array_equal(by_nan.state[name], by_weight.state[name])


def test_full_batch_training_equals_torch(data):
    X, y = data
    epochs, lr, decay = 20, 0.01, 0.1
    architecture = Perceptron(inputs=D, outputs=C, hidden=(8,), norm="batch", order="linear-activation-norm")
    regime = Regime(loss="cross_entropy", batch_size=N, max_epochs=epochs, schedule="constant")
    start = train_one(
        architecture, X, y, fold=Fold(train=np.arange(N)), recipe=Recipe(lr=1e-30), regime=replace(regime, max_epochs=1)
    )
    ours = train_one(
        architecture, X, y, fold=Fold(train=np.arange(N)), recipe=Recipe(lr=lr, weight_decay=decay), regime=regime
    )
    hidden, norm, last = torch.nn.Linear(D, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, C)
    with torch.no_grad():
        for layer, name in ((hidden, "0"), (last, "logits")):
            layer.weight.copy_(torch.from_numpy(start.state[f"{name}.weight"]).T)
            layer.bias.copy_(torch.from_numpy(start.state[f"{name}.bias"]))
    network = torch.nn.Sequential(hidden, torch.nn.ReLU(), norm, last)
    optimizer = torch.optim.AdamW(
        [
            {"params": [hidden.weight, last.weight], "weight_decay": decay},
            {"params": [hidden.bias, last.bias, norm.weight, norm.bias], "weight_decay": 0.0},
        ],
        lr=lr,
    )
    for _ in range(epochs):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(network(torch.from_numpy(X)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
    assert ours.history["train_loss"][-1] == pytest.approx(loss.item(), abs=1e-5)
    np.testing.assert_allclose(ours.state["0.weight"], hidden.weight.detach().numpy().T, atol=2e-5)
    np.testing.assert_allclose(ours.state["0.norm.mean"], norm.running_mean.numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.state["0.norm.variance"], norm.running_var.numpy(), rtol=1e-4)
    network.eval()
    np.testing.assert_allclose(scores(architecture, ours, X), network(torch.from_numpy(X)).detach().numpy(), atol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_decay_reaches_matrices_only(fused):
    start = {"a.weight": torch.ones(2, 2), "a.bias": torch.ones(2), "shifts": torch.ones(2)}
    optimizer = StackedOptimizer([start, start], torch.device("cpu"), fused=fused)
    nothing = [torch.zeros_like(leaf) for leaf in optimizer.leaves.values()]
    optimizer.step(optimizer.blocks[0], nothing, torch.tensor([0.1, 0.5]), torch.tensor([1.0, 1.0]))
    assert optimizer.leaves["a.weight"].unique().tolist() == pytest.approx([0.5, 0.9])
    assert optimizer.leaves["a.bias"].unique().tolist() == [1.0]
    assert optimizer.leaves["shifts"].unique().tolist() == [1.0]


@pytest.mark.parametrize("fused", [False, True])
def test_every_model_moves_as_torchs_adamw_moves_it(fused):
    generator = torch.Generator().manual_seed(0)
    start = [{"a.weight": torch.randn(5, 3, generator=generator), "a.bias": torch.randn(3, generator=generator)}] * 3
    lr, decay = torch.tensor([1e-1, 1e-2, 1e-3]), torch.tensor([0.0, 0.1, 0.5])
    ours = StackedOptimizer(start, torch.device("cpu"), {"a.bias": 2.0}, block=2, fused=fused)
    steps = [torch.randn(3, 5, 3, generator=generator) for _ in range(20)]
    for step in steps:
        for block in ours.blocks:
            gradient = {"a.weight": step[block.models], "a.bias": step[block.models].sum(dim=1)}
            ours.step(block, [gradient[name] for name in block.leaves], lr[block.models], decay[block.models])
    for g in range(3):
        weight, bias = (torch.nn.Parameter(start[g][name].clone()) for name in ("a.weight", "a.bias"))
        theirs = torch.optim.AdamW(
            [
                {"params": [weight], "weight_decay": decay[g].item(), "lr": lr[g].item()},
                {"params": [bias], "weight_decay": 0.0, "lr": 2 * lr[g].item()},
            ]
        )
        for step in steps:
            weight.grad, bias.grad = step[g], step[g].sum(dim=0)
            theirs.step()
        torch.testing.assert_close(ours.weights["a.weight"][g], weight.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.weights["a.bias"][g], bias.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_a_model_that_may_not_move_is_as_if_there_had_been_no_step(fused):
    start = {"a.weight": torch.ones(2, 2)}
    skipping, other = (StackedOptimizer([start, start], torch.device("cpu"), fused=fused) for _ in range(2))
    lr, decay = torch.tensor([0.1, 0.1]), torch.tensor([0.1, 0.1])
    gradient, wrong = torch.full((2, 2, 2), 0.5), torch.full((2, 2, 2), torch.nan)
    skipping.step(skipping.blocks[0], [wrong], lr, decay, torch.tensor([False, False]))
    skipping.step(skipping.blocks[0], [gradient], lr, decay, torch.tensor([True, False]))
    other.step(other.blocks[0], [gradient], lr, decay)
    torch.testing.assert_close(skipping.weights["a.weight"][0], other.weights["a.weight"][0], rtol=0, atol=0)
    assert (skipping.weights["a.weight"][1] == 1).all()


def test_the_gradient_of_batch_norm_is_that_of_its_formula():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(2, 6, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    gain, bias = (torch.randn(2, 1, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    real = torch.tensor([[1.0] * 4 + [0] * 2, [1.0] * 6], dtype=torch.float64)
    share = (real / real.sum(1, keepdim=True))[:, None]
    weight *= real[..., None]  # rows that are padding reach no loss
    leaves = [each.requires_grad_() for each in (x, gain, bias)]
    ours = torch.autograd.grad((_BatchNorm.apply(*leaves, share)[0].tanh() * weight).sum(), leaves)
    mean = share @ x
    plain = (x - mean) / torch.sqrt(share @ (x - mean) ** 2 + 1e-5) * gain + bias
    theirs = torch.autograd.grad((plain.tanh() * weight).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("rows", [1, 51, 101])
def test_a_left_over_row_does_not_upset_batch_norm(data, rows):
    X, y = data
    architecture = Perceptron(inputs=D, outputs=C, hidden=(8,), norm="batch")
    model = train_one(architecture, X, y, fold=Fold(train=np.arange(rows)), recipe=Recipe(), regime=REGIME)
    assert all(np.isfinite(value).all() for value in model.state.values())
    assert np.isfinite(scores(architecture, model, X)).all()


def test_batch_norm_ignores_padding():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 4, generator=generator)
    real = torch.tensor([[1.0] * 4 + [0] * 2, [1.0] * 6])
    share = (real / real.sum(1, keepdim=True))[:, None]
    step = TrainingPass(row_share=share, rates=None, draws=Draws([]), stream=torch.arange(2))
    gain, bias = torch.rand(2, 4, generator=generator), torch.rand(2, 4, generator=generator)
    mean, variance = torch.zeros(2, 4), torch.ones(2, 4)
    out = batch_norm(x, gain, bias, mean, variance, step)
    for model, rows in ((0, 4), (1, 6)):
        theirs = torch.nn.BatchNorm1d(4)
        with torch.no_grad():
            theirs.weight.copy_(gain[model])
            theirs.bias.copy_(bias[model])
        torch.testing.assert_close(out[model, :rows], theirs(x[model, :rows]))
        torch.testing.assert_close(mean[model], theirs.running_mean)
        torch.testing.assert_close(variance[model], theirs.running_var)


def test_dropout_meets_each_models_rate_and_keeps_the_mean():
    rates = torch.tensor([0.0, 0.3, 0.9])
    step = TrainingPass(
        row_share=torch.empty(0),
        rates=rates,
        draws=Draws([torch.Generator().manual_seed(0)]),
        stream=torch.zeros(3, dtype=torch.int64),
    )
    out = step.drop(torch.ones(3, 400, 500))
    assert (out == 0).float().mean(dim=(1, 2)).numpy() == pytest.approx(rates.numpy(), abs=5e-3)
    assert out.mean(dim=(1, 2)).numpy() == pytest.approx([1, 1, 1], abs=2e-2)
    assert ((out[2] > 0) <= (out[1] > 0)).all()  # common random numbers: what survives 0.9 survives 0.3


def test_input_noise_is_relative_to_each_feature_and_absent_from_scoring():
    X = np.random.default_rng(0).normal(size=(4000, 2)) * [1.0, 100.0]
    seen: list[torch.Tensor] = []

    class Spy(Perceptron):
        def forward(self, state, x, training):
            if training is not None:
                seen.append(x[0].clone())
            return super().forward(state, x, training)

    regime = Regime(loss="squared_error", batch_size=4000, max_epochs=1)
    architecture = Spy(inputs=2, outputs=1, hidden=())
    fold = Fold(train=np.arange(4000))
    for noise in (0.0, 0.25):
        train_one(architecture, X, np.zeros(4000), fold=fold, recipe=Recipe(input_noise=noise, lr=1e-30), regime=regime)
    assert (seen[1] - seen[0]).std(dim=0).numpy() == pytest.approx([0.25, 25.0], rel=0.05)


def test_cosine_equals_its_closed_form_at_every_step():
    factors = [schedule_factor("cosine", step, 100, 0.1) for step in range(100)]
    assert factors[:10] == pytest.approx(np.arange(1, 11) / 10)
    rest = np.arange(90) / 90
    assert factors[10:] == pytest.approx(0.05 + 0.95 * (1 + np.cos(np.pi * rest)) / 2)
    assert {schedule_factor("constant", step, 100, 0.1) for step in range(100)} == {1.0}


def torch_factors(scheduler, count: int) -> list[float]:
    """Return the learning rates that a scheduler of torch goes through, from 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, factors = scheduler(optimizer), []
    for _ in range(count):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return factors


def test_step_equals_torch_at_every_step():
    epochs, steps = 60, 7
    factors = [schedule_factor("step", step, epochs * steps, 0.1, epochs) for step in range(epochs * steps)]
    theirs = torch_factors(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 15, gamma=0.3), epochs)
    assert factors == pytest.approx(np.repeat(theirs, steps))
    assert set(factors) == {1.0, 0.3, 0.3**2, 0.3**3}


@pytest.mark.parametrize("cycle", [1, 10, 33])
def test_restarts_equal_torch_at_every_step(cycle):
    factors = [schedule_factor("restarts", step, 7 * cycle, 0.1, 7) for step in range(7 * cycle)]
    restarting = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts
    theirs = torch_factors(lambda optimizer: restarting(optimizer, cycle, T_mult=2, eta_min=0.05), 7 * cycle)
    assert factors == pytest.approx(theirs)
    assert [step for step, factor in enumerate(factors) if factor == 1.0] == [0, cycle, 3 * cycle]


@pytest.mark.parametrize("total", [1, 2, 5, 24, 100])
def test_restarts_fill_any_number_of_steps(total):
    factors = [schedule_factor("restarts", step, total, 0.1) for step in range(total)]
    starts = [total * begin / 7 for begin in (0, 1, 3)]
    for step, factor in enumerate(factors):
        cycle = sum(step >= start for start in starts) - 1
        place = (step - starts[cycle]) / (total / 7 * 2**cycle)
        assert factor == pytest.approx(0.05 + 0.95 * np.cos(np.pi / 2 * place) ** 2)


@pytest.mark.parametrize("factor", [0.1, 0.2])
def test_plateau_equals_torch(factor):
    losses = [1.0, 0.9, *[0.9] * 9, 0.5, *[0.6] * 14]
    course = Course(patience=100, min_delta=0.0, schedule="plateau", plateau_factor=factor)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=5, threshold=0.0)
    for loss in losses:
        course.observe(loss, loss, course.factor)
        theirs.step(loss)
        assert course.factor == pytest.approx(optimizer.param_groups[0]["lr"])
    assert course.factor == pytest.approx(factor**3)


def test_early_stopping_on_a_scripted_loss():
    course = Course(patience=3, min_delta=0.01, schedule="constant")
    answers = []
    for loss in (1.0, 0.8, 0.795, 0.9, 0.85, 0.1):
        answers.append(course.observe(0.0, loss, 1.0))
        if course.finished:
            break
    assert answers == [True, True, False, False, False]
    assert course.best_epoch == 1
    assert course.history["monitor_loss"] == [1.0, 0.8, 0.795, 0.9, 0.85]


def test_a_loss_that_is_not_finite_is_never_the_best():
    course = Course(patience=3, min_delta=0.0, schedule="constant")
    assert course.observe(1.0, 0.5, 1.0)
    assert not course.observe(float("nan"), -1.0, 1.0)
    assert course.finished
    assert course.best_epoch == 0
    assert course.history["train_loss"] == [1.0, None]


def test_best_weights_are_restored(data):
    X, y = data
    architecture = Perceptron(inputs=D, outputs=C, hidden=(64,))
    regime = replace(REGIME, max_epochs=60, patience=4, schedule="constant")
    fold = folds_of()[0]
    model = train_one(architecture, X, y, fold=fold, recipe=Recipe(lr=0.03), regime=regime)
    monitored = model.history["monitor_loss"]
    assert len(monitored) == model.best_epoch + 1 + 4 < 60
    logits = torch.from_numpy(scores(architecture, model, X[fold.monitor]))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(y[fold.monitor])).item()
    assert loss == pytest.approx(monitored[model.best_epoch], abs=1e-6)
    assert monitored[model.best_epoch] <= min(monitored) + regime.min_delta


def test_without_monitor_rows_all_epochs_are_run(data):
    X, y = data
    model = train_one(
        Perceptron(inputs=D, outputs=C), X, y, fold=Fold(train=np.arange(N)), recipe=Recipe(), regime=REGIME
    )
    assert model.best_epoch == REGIME.max_epochs - 1
    assert model.history["monitor_loss"] == [None] * REGIME.max_epochs


def test_divergence_names_the_model_and_spares_the_others(data):
    X, y = data
    regime = replace(REGIME, loss="squared_error", schedule="constant")
    architecture = Perceptron(inputs=D, outputs=1, hidden=(8,), norm="none")
    recipes = [Recipe(lr=1e-3), Recipe(lr=1e30)]
    good, bad = train_many(architecture, X, y.astype(float), folds=folds_of(), recipes=recipes, regime=regime)
    assert isinstance(bad, HeadError)
    assert "lower lr (now 1e+30)" in str(bad)
    alone = train_one(architecture, X, y.astype(float), fold=folds_of()[0], recipe=recipes[0], regime=regime)
    np.testing.assert_array_equal(good.state["0.weight"], alone.state["0.weight"])
    with pytest.raises(HeadError, match="diverged"):
        train_one(architecture, X, y.astype(float), fold=folds_of()[0], recipe=recipes[1], regime=regime)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns_as_full_precision_does(data, precision):
    X, y = data
    architecture = Perceptron(inputs=D, outputs=C, hidden=(16, 8), norm="batch")
    common = {"folds": folds_of(), "recipes": [Recipe(lr=1e-2), Recipe(lr=3e-3, dropout=0.2)]}
    full = train_many(architecture, X, y, regime=REGIME, **common)
    regime = replace(REGIME, precision=precision)
    mixed = train_many(architecture, X, y, regime=regime, **common)
    alone = train_many(architecture, X, y, regime=regime, folds=folds_of(), recipes=common["recipes"][1:])
    for one, other in zip(full, mixed, strict=True):
        assert one.history["train_loss"] != other.history["train_loss"]
        assert min(other.history["monitor_loss"]) == pytest.approx(min(one.history["monitor_loss"]), rel=0.05)
        assert all(value.dtype == np.float32 for value in other.state.values())
    np.testing.assert_array_equal(mixed[1].state["0.weight"], alone[0].state["0.weight"])


def test_the_loss_scale_moves_as_torchs_does():
    ours = LossScale(2, torch.device("cpu"))
    theirs = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD([parameter := torch.nn.Parameter(torch.ones(3))], lr=0.0)
    models = slice(0, 2)
    for wrong in (True, False, True, *[False] * 2005):
        gradient = torch.full((3,), torch.inf if wrong else 1.0)
        scale = theirs.scale(torch.ones(()))
        parameter.grad = gradient * scale
        theirs.step(optimizer)
        theirs.update()
        assert ours.scaled(torch.tensor([1.0, 0.0]), models) == scale
        (unscaled,), finite = ours.unscaled([torch.stack([gradient * scale, torch.ones(3)])], models)
        assert finite.tolist() == [not wrong, True]
        if not wrong:
            torch.testing.assert_close(unscaled[0], gradient)
    assert ours.scaled(torch.tensor([1.0, 0.0]), models) == theirs.get_scale() == 2.0**15


def test_weighted_draws_are_seeded_and_even_out_the_classes():
    y = np.array([0] * 900 + [1] * 100)
    seen: list[torch.Tensor] = []

    class Spy(Perceptron):
        def forward(self, state, x, training):
            if training is not None:
                seen.append(x[0, training.row_share[0, 0] > 0])
            return super().forward(state, x, training)

    fold = Fold(train=np.arange(1000), chance=1 / np.bincount(y)[y])
    regime = Regime(loss="cross_entropy", batch_size=1000, max_epochs=20)
    for _ in range(2):
        train_one(
            Spy(inputs=1, outputs=2, hidden=()),
            y[:, None].astype(np.float32),
            y,
            fold=fold,
            recipe=Recipe(),
            regime=regime,
        )
    assert torch.equal(torch.stack(seen[:20]), torch.stack(seen[20:]))
    assert all(len(batch) == 1000 for batch in seen)
    assert torch.cat(seen).mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("sizes", "batch_size"), [((97, 3), 10), ((90, 11), 7), ((60, 30, 9, 1), 32), ((5, 4, 3), 2)])
def test_every_batch_holds_the_classes_in_equal_shares(sizes, batch_size):
    y = np.repeat(np.arange(len(sizes)), sizes)
    train = np.random.default_rng(0).permutation(len(y))
    fold = Fold(train=train, stratum=y[train])
    features = torch.zeros(len(y), 1)
    corpus = Corpus(fold, features, Targets(y, features.device), batch_size)
    drawn = []
    for epoch in range(30):
        stream, again = Stream(0, corpus), Stream(0, corpus)
        stream.begin(epoch)
        again.begin(epoch)
        assert torch.equal(stream.order, again.order)
        for rows, real in zip(stream.order, corpus.real, strict=True):
            batch = rows[real > 0].numpy()
            counts = np.bincount(y[batch], minlength=len(sizes))
            assert counts.sum() <= batch_size
            assert counts.max() - counts.min() <= 1
            drawn.append(batch)
        taken = np.bincount(y[np.concatenate(drawn[-corpus.layout[0] :])], minlength=len(sizes))
        assert taken.max() - taken.min() <= 1
    times = np.bincount(np.concatenate(drawn), minlength=len(y))
    size = np.repeat(sizes, sizes)
    expected = 30 * len(y) / len(sizes) / size
    # Draws with replacement: each row's count is binomial, of as many draws as its class has, up to one per epoch.
    assert (np.abs(times - expected) <= 5 * np.sqrt(expected) + 30 / size).all()
    first, second, *_ = np.array_split(np.concatenate(drawn), 30)
    assert (first != second).any()


def test_half_precision_and_read_only_features(data):
    X, y = data
    stored = X.astype(np.float16)
    stored.flags.writeable = False
    architecture = Perceptron(inputs=D, outputs=C, hidden=(8,))
    half = train_one(architecture, stored, y, fold=folds_of()[0], recipe=Recipe(), regime=REGIME)
    full = train_one(architecture, stored.astype(np.float32), y, fold=folds_of()[0], recipe=Recipe(), regime=REGIME)
    np.testing.assert_array_equal(half.state["0.weight"], full.state["0.weight"])


def test_a_fold_without_rows_and_an_unknown_device_are_refused(data):
    X, y = data
    architecture = Perceptron(inputs=D, outputs=C)
    with pytest.raises(HeadError, match="fold 4 has no training rows"):
        train_one(architecture, X, y, fold=Fold(train=np.empty(0, np.int64), number=4), recipe=Recipe(), regime=REGIME)
    for name, message in (("cudda", "expected 'cpu'"), ("cuda:99", "CUDA devices found")):
        with pytest.raises(HeadError, match=message):
            train_one(architecture, X, y, fold=folds_of()[0], recipe=Recipe(), regime=REGIME, device=name)
