from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch.optim.lr_scheduler import LambdaLR, StepLR

from data.errors import ConfigError
from finetune.schedules import lr_factor, weight_factor

TOTAL = 37
WARMUP = 5


def trace(make: Callable[[torch.optim.Optimizer], Any], steps: int = TOTAL + 3) -> list[float]:
    """Return the learning rates of a scheduler, as factors of the first."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(name: Any, steps: int = TOTAL + 3, **options: Any) -> list[float]:
    return [lr_factor(name, step, **{"total": TOTAL, **options}) for step in range(steps)]


@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_traces_are_those_of_transformers(warmup: int) -> None:
    t, steps = transformers, (warmup, TOTAL)
    references = {
        "constant": (lambda o: t.get_constant_schedule_with_warmup(o, warmup), {}),
        "linear": (lambda o: t.get_linear_schedule_with_warmup(o, *steps), {}),
        "cosine": (lambda o: t.get_cosine_schedule_with_warmup(o, *steps), {}),
        "restarts": (
            lambda o: t.get_cosine_with_hard_restarts_schedule_with_warmup(o, *steps, num_cycles=3),
            {"cycles": 3},
        ),
        "polynomial": (
            lambda o: t.get_polynomial_decay_schedule_with_warmup(o, *steps, lr_end=0.02, power=2.5),
            {"power": 2.5, "floor": 0.02},
        ),
    }
    for name, (make, options) in references.items():
        # Beyond the end transformers' cosine rises again; ours stays at the floor.
        count = TOTAL + 1 if name == "cosine" else TOTAL + 3
        reference = trace(make, count)
        assert ours(name, count, warmup=warmup, **options) == pytest.approx(reference, abs=1e-12), name


def test_cosine_with_a_floor_is_that_of_transformers() -> None:
    reference = trace(
        lambda o: transformers.get_cosine_with_min_lr_schedule_with_warmup(o, WARMUP, TOTAL, min_lr_rate=0.05), TOTAL
    )
    assert ours("cosine", TOTAL, warmup=WARMUP, floor=0.05) == pytest.approx(reference, abs=1e-12)


@pytest.mark.parametrize(("every", "gamma"), [(15, 0.3), (1, 0.9)])
def test_steps_are_those_of_torch(every: int, gamma: float) -> None:
    reference = trace(lambda o: StepLR(o, step_size=every, gamma=gamma))
    assert ours("step", every=every, gamma=gamma) == pytest.approx(reference, rel=1e-12)


def test_epochs_warm_up_to_the_peak_and_fall_to_a_twentieth() -> None:
    """Four epochs of warm-up, the first not at zero, then a cosine: as a LambdaLR that is stepped per epoch."""

    def factor(epoch: int) -> float:
        if epoch < 4:
            return (epoch + 1) / 4
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (epoch - 4) / (30 - 4)))

    reference = trace(lambda o: LambdaLR(o, factor), 30)
    made = ours("cosine", 30, total=30, warmup=4, floor=0.05, from_zero=False)
    assert made == pytest.approx(reference, abs=1e-12)
    assert made[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_beyond_the_end_the_floor_is_kept() -> None:
    for name in ("linear", "cosine", "restarts", "polynomial"):
        made = [lr_factor(name, step, total=10, floor=0.1) for step in (10, 11, 500)]  # type: ignore[arg-type]
        assert made == pytest.approx([0.1] * 3)


def test_wrong_schedules_are_refused() -> None:
    with pytest.raises(ConfigError, match="schedule 'cosinus': expected constant, linear, cosine"):
        lr_factor("cosinus", 0, total=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="warm-up of 5 steps: the training has 3"):
        lr_factor("linear", 0, total=3, warmup=5)
    with pytest.raises(ConfigError, match="loss-weight schedule 'up': expected linear, cosine, step"):
        weight_factor("up", 0, begin=0, end=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ends at step 1, before it begins at 2"):
        weight_factor("linear", 0, begin=2, end=1)


@pytest.mark.parametrize("name", ["linear", "cosine", "step"])
@pytest.mark.parametrize(("start", "stop"), [(0.1, 1.0), (1.0, 0.5)])
def test_loss_weights_go_from_start_to_stop_and_never_back(name: Any, start: float, stop: float) -> None:
    made = [weight_factor(name, step, begin=4, end=20, start=start, stop=stop) for step in range(30)]
    assert made[:5] == [start] * 5
    assert made[20:] == [stop] * 10
    assert made == sorted(made, reverse=start > stop)


def test_loss_weights_are_their_formulas() -> None:
    def at(name: Any, step: int) -> float:
        return weight_factor(name, step, begin=0, end=8, start=1.0, stop=3.0)

    assert [at("linear", step) for step in (0, 2, 4, 8)] == [1.0, 1.5, 2.0, 3.0]
    assert at("cosine", 2) == pytest.approx(1 + 2 * (1 - math.cos(math.pi / 4)) / 2)
    assert [at("step", step) for step in (7, 8)] == [1.0, 3.0]
