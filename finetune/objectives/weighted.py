"""Weighted sum of objectives, whose weights may change from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping
from functools import partial
from typing import cast

from torch import Tensor, nn

from data.errors import ConfigError
from finetune.outputs import Objective, Outputs
from finetune.schedules import Ramp, weight_factor

Weight = float | Callable[[int], float]
"""A weight, or what it is at an optimizer step, from 0."""


class Weighted(nn.ModuleDict):
    r"""Objectives by name, and the weight of each.

    .. math:: L(\text{step}) = \sum_k w_k(\text{step}) \, L_k

    An objective whose weight is 0 at a step is not computed in it; under `DistributedDataParallel` its parameters
    are then unused.

    Parameters
    ----------
    objectives
        By name.
    weights
        By name, not negative; 1 where none is named.

    Raises
    ------
    ConfigError
        If there is a weight of no objective.
    """

    def __init__(self, objectives: Mapping[str, Objective], weights: Mapping[str, Weight] | None = None) -> None:
        super().__init__(dict(objectives))
        given = dict(weights or {})
        for name in given:
            if name not in objectives:
                raise ConfigError(f"weight of {name!r}: no objective of this run; it has {', '.join(objectives)}")
        self._weights: dict[str, Weight] = {name: given.get(name, 1.0) for name in objectives}

    def weights(self, step: int) -> dict[str, float]:
        """Return the weights at a step, without those that are 0.

        Raises
        ------
        ConfigError
            If a weight is negative, or all are 0.
        """
        at = {name: float(each(step) if callable(each) else each) for name, each in self._weights.items()}
        for name, weight in at.items():
            if not weight >= 0:
                raise ConfigError(f"the weight of {name} is {weight:g} at step {step}; expected a number >= 0")
        if not any(weight for name, weight in at.items() if self._objective(name).in_evaluation):
            raise ConfigError(f"the weights of {', '.join(at)} are all 0 at step {step}; nothing would be learned")
        return {name: weight for name, weight in at.items() if weight}

    def joint(self, step: int) -> dict[str, Objective]:
        """Return the objectives with a weight at a step whose losses are not means over samples."""
        active = {name: self._objective(name) for name in self.weights(step)}
        return {name: objective for name, objective in active.items() if objective.joint}

    def forward(self, outputs: Outputs, step: int, *, without: Container[str] = ()) -> dict[str, Tensor]:
        """Return the loss of each objective with a weight at a step, not yet weighted; without some.

        In eval mode those that only regularise training are left out.
        """
        active = (name for name in self.weights(step) if self.training or self._objective(name).in_evaluation)
        return {name: self[name](outputs) for name in active if name not in without}

    def _objective(self, name: str) -> Objective:
        return cast("Objective", self[name])

    def total(self, losses: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the weighted sum of what `forward` returned for a step."""
        first, *others = (weight * losses[name] for name, weight in self.weights(step).items())
        for other in others:
            first = first + other
        return first


def parse_weight(text: str | float) -> Weight:
    """Return a weight written as a number, or as ``form:start:stop:begin:end``.

    Parameters
    ----------
    text
        ``0.1``; or such as ``cosine:0:1:1000:10000``, which is `start` up to step `begin`, `stop` from step `end`
        on, and in between as `finetune.schedules.weight_factor` says.

    Raises
    ------
    ConfigError
        If it is neither, there is no such form, or `end` is before `begin`.
    """
    form, *values = str(text).split(":")
    try:
        if not values:
            return _not_negative(form)
        first, last, begin, end = values
        ramp = partial(
            weight_factor,
            cast("Ramp", form),
            begin=int(begin),
            end=int(end),
            start=_not_negative(first),
            stop=_not_negative(last),
        )
    except ValueError as error:
        raise ConfigError(
            f"weight {text!r}: expected a number >= 0, or form:start:stop:begin:end, such as cosine:0:1:1000:10000"
        ) from error
    ramp(0)  # an unknown form, or an end before the beginning, is refused now and not in the first step
    return ramp


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError(text)
    return number
