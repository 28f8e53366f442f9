"""Hidden layers, and the architecture of the `mlp` head: hidden layers, then a linear one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import gelu, relu

from heads.training.layers import TrainingPass, batch_norm, layer_norm, linear, uniform_linear

Norm = Literal["layer", "batch", "none"]
InputNorm = Literal["none", "layer"]
Activation = Literal["relu", "gelu"]
Order = Literal["linear-norm-activation", "linear-activation-norm"]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu}


@dataclass(frozen=True, kw_only=True)
class HiddenLayers:
    """Layers of linear, norm, activation and dropout, in this or the other order.

    Attributes
    ----------
    inputs
        Length of what comes in.
    widths
        Widths of the layers.
    activation, norm, order
        What each layer is made of; dropout always comes last.
    prefix
        What the names of the weights begin with.
    dropout
        Rate of each layer; None for the model's own, see `heads.training.plan.Recipe`.
    """

    inputs: int
    widths: tuple[int, ...]
    activation: Activation = "relu"
    norm: Norm = "layer"
    order: Order = "linear-norm-activation"
    prefix: str = ""
    dropout: tuple[float, ...] | None = None

    @property
    def outputs(self) -> int:
        """Length of what comes out."""
        return (self.inputs, *self.widths)[-1]

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model; the linear layers start as torch's do."""
        weights = {}
        for layer, (inputs, width) in enumerate(zip((self.inputs, *self.widths), self.widths, strict=False)):
            name = f"{self.prefix}{layer}"
            weights[f"{name}.weight"], weights[f"{name}.bias"] = uniform_linear(inputs, width, generator)
            if self.norm != "none":
                weights[f"{name}.norm.gain"], weights[f"{name}.norm.bias"] = torch.ones(width), torch.zeros(width)
        return weights

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model."""
        statistics = {}
        if self.norm == "batch":
            for layer, width in enumerate(self.widths):
                statistics[f"{self.prefix}{layer}.norm.mean"] = torch.zeros(width)
                statistics[f"{self.prefix}{layer}.norm.variance"] = torch.ones(width)
        return statistics

    def forward(self, state: Mapping[str, Tensor], x: Tensor, training: TrainingPass | None, first: int = 0) -> Tensor:
        """Return what comes out, (G, b, outputs), of what goes into the layer `first`."""
        for layer in range(first, len(self.widths)):
            name = f"{self.prefix}{layer}"
            x = self.after_linear(state, layer, linear(x, state[f"{name}.weight"], state[f"{name}.bias"]), training)
        return x

    def after_linear(self, state: Mapping[str, Tensor], layer: int, x: Tensor, training: TrainingPass | None) -> Tensor:
        """Return what comes out of one layer, given what its linear part says."""
        if self.order == "linear-norm-activation":
            x = _ACTIVATIONS[self.activation](self._normalized(state, layer, x, training))
        else:
            x = self._normalized(state, layer, _ACTIVATIONS[self.activation](x), training)
        rate = None if self.dropout is None else self.dropout[layer]
        return x if training is None else training.drop(x, rate)

    def _normalized(self, state: Mapping[str, Tensor], layer: int, x: Tensor, training: TrainingPass | None) -> Tensor:
        if self.norm == "none":
            return x
        name = f"{self.prefix}{layer}.norm"
        gain, bias = state[f"{name}.gain"], state[f"{name}.bias"]
        if self.norm == "layer":
            return layer_norm(x, gain, bias)
        return batch_norm(x, gain, bias, state[f"{name}.mean"], state[f"{name}.variance"], training)


@dataclass(frozen=True, kw_only=True)
class Perceptron:
    """A multilayer perceptron: maybe a norm, hidden layers of linear, norm, activation and dropout, then a linear one.

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
    input_norm
        ``layer``: each embedding is first brought to mean 0 and variance 1, then scaled and shifted by learned vectors.
    dropout
        Rate of each hidden layer; None for the model's own.
    """

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = (512,)
    activation: Activation = "relu"
    norm: Norm = "layer"
    order: Order = "linear-norm-activation"
    logit_shifts: bool = False
    input_norm: InputNorm = "none"
    dropout: tuple[float, ...] | None = None

    @property
    def layers(self) -> HiddenLayers:
        """The hidden layers."""
        return HiddenLayers(
            inputs=self.inputs,
            widths=self.hidden,
            activation=self.activation,
            norm=self.norm,
            order=self.order,
            dropout=self.dropout,
        )

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model; the linear layers start as torch's do."""
        weights = self.layers.initial(generator)
        last = self.layers.outputs
        weights["logits.weight"], weights["logits.bias"] = uniform_linear(last, self.outputs, generator)
        if self.logit_shifts:
            weights["logits.shifts"] = torch.zeros(self.outputs)
        if self.input_norm == "layer":
            weights["input.norm.gain"], weights["input.norm.bias"] = torch.ones(self.inputs), torch.zeros(self.inputs)
        return weights

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model."""
        return self.layers.running()

    def forward(self, state: Mapping[str, Tensor], x: Tensor, training: TrainingPass | None) -> Tensor:
        """Return logits (G, b, outputs) of features (G, b, inputs)."""
        if self.input_norm == "layer":
            x = layer_norm(x, state["input.norm.gain"], state["input.norm.bias"])
        x = self.layers.forward(state, x, training)
        logits = linear(x, state["logits.weight"], state["logits.bias"])
        return logits - state["logits.shifts"][:, None] if self.logit_shifts else logits
