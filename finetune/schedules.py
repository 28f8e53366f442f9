"""Schedules of learning rates and of loss weights: closed forms of the step, so that a resumed run has the same ones.

The factors of learning rates are those of ``transformers.get_scheduler`` and of `torch.optim.lr_scheduler.StepLR`.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from data.errors import ConfigError

Schedule = Literal["constant", "linear", "cosine", "restarts", "polynomial", "step"]
Ramp = Literal["linear", "cosine", "step"]


def lr_factor(
    name: Schedule,
    step: int,
    *,
    total: int,
    warmup: int = 0,
    floor: float = 0.0,
    cycles: int = 1,
    power: float = 1.0,
    gamma: float = 0.1,
    every: int = 1,
    from_zero: bool = True,
) -> float:
    """Return what a learning rate is multiplied with at a step.

    With p the share of the steps after the warm-up that are done, and f the floor:

    =============== ==========================================================
    ``constant``     1
    ``linear``       f + (1 - f) (1 - p)
    ``cosine``       f + (1 - f) (1 + cos(pi p)) / 2
    ``restarts``     f + (1 - f) (1 + cos(pi (cycles p mod 1))) / 2
    ``polynomial``   f + (1 - f) (1 - p) ** power
    ``step``         gamma ** (steps after the warm-up // every)
    =============== ==========================================================

    Parameters
    ----------
    name
        The form.
    step
        Optimizer steps done before this one, from 0; or epochs, with `total`, `warmup` and `every` in epochs too.
    total
        Steps of the whole training; from there on the floor.
    warmup
        Steps in which the factor rises linearly to 1.
    floor
        The factor at the end.
    cycles, power, gamma, every
        Of ``restarts``, ``polynomial`` and ``step``.
    from_zero
        Whether the warm-up begins at 0, ``step / warmup``; else it ends at 1, ``(step + 1) / warmup``, which is for
        epochs: the first would be spent at a learning rate of 0.

    Raises
    ------
    ConfigError
        If there is no such schedule, or the warm-up is longer than the training.
    """
    if name not in get_args(Schedule):
        raise ConfigError(f"schedule {name!r}: expected {', '.join(get_args(Schedule))}")
    if warmup > total:
        raise ConfigError(f"warm-up of {warmup} steps: the training has {total}; choose fewer")
    if step < warmup:
        return (step if from_zero else step + 1) / warmup
    if name == "constant":
        return 1.0
    if name == "step":
        return gamma ** ((step - warmup) // every)
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    if name == "linear":
        share = 1 - done
    elif name == "polynomial":
        share = (1 - done) ** power
    elif done == 1.0:
        share = 0.0
    else:
        share = (1 + math.cos(math.pi * (cycles * done % 1.0 if name == "restarts" else done))) / 2
    return floor + (1 - floor) * share


def weight_factor(name: Ramp, step: int, *, begin: int, end: int, start: float = 0.0, stop: float = 1.0) -> float:
    """Return the weight of a loss at a step: `start` until `begin`, `stop` from `end` on.

    In between, with p from 0 to 1: ``linear`` start + (stop - start) p; ``cosine`` start + (stop - start)
    (1 - cos(pi p)) / 2; ``step`` stays at start and jumps at `end`.

    Raises
    ------
    ConfigError
        If there is no such form, or `end` is before `begin`.
    """
    if name not in get_args(Ramp):
        raise ConfigError(f"loss-weight schedule {name!r}: expected {', '.join(get_args(Ramp))}")
    if end < begin:
        raise ConfigError(f"loss-weight schedule: ends at step {end}, before it begins at {begin}")
    if step >= end:
        return stop
    if step < begin or name == "step":
        return start
    done = (step - begin) / (end - begin)
    return start + (stop - start) * (done if name == "linear" else (1 - math.cos(math.pi * done)) / 2)
