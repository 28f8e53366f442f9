"""The architecture of the `mlp` head: hidden layers, then a linear one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu

from heads.training.layers import TrainingPass, batch_norm, layer_norm, linear, uniform_linear

Norm = Literal["layer", "batch", "none"]
Activation = Literal["relu", "gelu"]
Order = Literal["linear-norm-activation", "linear-activation-norm"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu}


@dataclass(frozen=True, kw_only=True)
class Perceptron:
    """A multilayer perceptron: hidden layers of linear, norm, activation and dropout, then a linear one.

    Attributes
    ----------
    inputs, outputs
        Length of an embedding, and number of logits.
    hidden
        Widths of the hidden layers.
    activation, norm, order
        What each hidden layer is made of; dropout always comes last.
    logit_shifts
        Whether a learned vector is subtracted from the logits.
    """

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = (512,)
    activation: Activation = "relu"
    norm: Norm = "layer"
    order: Order = "linear-norm-activation"
    logit_shifts: bool = False

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model; the linear layers start as torch's do."""
        weights = {}
        for layer, (inputs, width) in enumerate(zip((self.inputs, *self.hidden), self.hidden, strict=False)):
            weights[f"{layer}.weight"], weights[f"{layer}.bias"] = uniform_linear(inputs, width, generator)
            if self.norm != "none":
                weights[f"{layer}.norm.gain"], weights[f"{layer}.norm.bias"] = torch.ones(width), torch.zeros(width)
        last = (self.inputs, *self.hidden)[-1]
        weights["logits.weight"], weights["logits.bias"] = uniform_linear(last, self.outputs, generator)
        if self.logit_shifts:
            weights["logits.shifts"] = torch.zeros(self.outputs)
        return weights

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model."""
        statistics = {}
        if self.norm == "batch":
            for layer, width in enumerate(self.hidden):
                statistics[f"{layer}.norm.mean"] = torch.zeros(width)
                statistics[f"{layer}.norm.variance"] = torch.ones(width)
        return statistics

    def forward(self, state: Mapping[str, Tensor], x: Tensor, training: TrainingPass | None) -> Tensor:
        """Return logits (G, b, outputs) of features (G, b, inputs)."""
        for layer in range(len(self.hidden)):
            x = linear(x, state[f"{layer}.weight"], state[f"{layer}.bias"])
            if self.order == "linear-norm-activation":
                x = _ACTIVATIONS[self.activation](self._normalized(state, layer, x, training))
            else:
                x = self._normalized(state, layer, _ACTIVATIONS[self.activation](x), training)
            if training is not None:
                x = training.drop(x)
        logits = linear(x, state["logits.weight"], state["logits.bias"])
        return logits - state["logits.shifts"][:, None] if self.logit_shifts else logits

    def _normalized(self, state: Mapping[str, Tensor], layer: int, x: Tensor, training: TrainingPass | None) -> Tensor:
        if self.norm == "none":
            return x
        gain, bias = state[f"{layer}.norm.gain"], state[f"{layer}.norm.bias"]
        if self.norm == "layer":
            return layer_norm(x, gain, bias)
        return batch_norm(x, gain, bias, state[f"{layer}.norm.mean"], state[f"{layer}.norm.variance"], training)
