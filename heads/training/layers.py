"""Layers of many models at once: every weight and every activation has a leading model axis G.

They are functions of stacked weights; what is random in training, and which rows of a padded batch
are real, comes with a `TrainingPass`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import layer_norm as normalize_rows

_EPS = 1e-5
_MOMENTUM = 0.1
_LEVELS = 2**16


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingPass:
    """What an architecture needs to know of one training step.

    Attributes
    ----------
    row_share
        1 / number of real rows for a real row and 0 for padding, shape (G, 1, b).
    rates
        Dropout rate of each model, shape (G,), or None if no model has any.
    generators
        One generator per random stream; configurations of one fold share a stream, and thereby
        their dropout masks (common random numbers).
    stream
        The stream of each model, shape (G,).
    """

    row_share: Tensor
    rates: Tensor | None
    generators: Sequence[torch.Generator]
    stream: Tensor

    def drop(self, hidden: Tensor) -> Tensor:
        """Return activations (G, b, h) with each model's share of them set to 0 and the rest scaled up."""
        if self.rates is None:
            return hidden
        # 16 random bits per activation: cheaper than a float draw, and a rate is met to 1e-5.
        draws = torch.stack([_random_bits(hidden.shape[1:], generator) for generator in self.generators]).float()
        dropped = (self.rates * _LEVELS).round().clamp(max=_LEVELS - 1)[:, None, None]
        draws = draws[self.stream] if len(draws) > 1 else draws
        # Compared straight into floats: multiplying by booleans costs several times as much.
        keep = torch.ge(draws, dropped - _LEVELS // 2, out=torch.empty_like(hidden, requires_grad=False))
        return hidden * keep.mul_(_LEVELS / (_LEVELS - dropped))


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x @ weight + bias``: (G, b, d), (G, d, h), (G, h) -> (G, b, h)."""
    return torch.baddbmm(bias[:, None], x, weight)


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Return layer normalisation over the last axis of (G, b, h), with gain and bias (G, h)."""
    return torch.addcmul(bias[:, None], normalize_rows(x, x.shape[-1:], eps=_EPS), gain[:, None])


def batch_norm(
    x: Tensor, gain: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, training: TrainingPass | None
) -> Tensor:
    """Return batch normalisation of (G, b, h) over the real rows of each model's batch.

    Parameters
    ----------
    x, gain, bias
        Activations (G, b, h), and what they are scaled and shifted by, (G, h).
    mean, variance
        Running statistics, (G, h): used outside training, moved in place within it (momentum 0.1,
        unbiased variance, as in torch). A batch of one row has variance 0 and moves only the mean,
        one without real rows moves nothing.
    training
        The training step, or None.
    """
    if training is None:
        scale = gain * torch.rsqrt(variance + _EPS)
        return torch.addcmul((bias - mean * scale)[:, None], x, scale[:, None])
    batch_mean = training.row_share @ x
    centred = x - batch_mean
    batch_variance = training.row_share @ centred.square()
    with torch.no_grad():
        rows = (training.row_share > 0).sum(dim=-1)
        mean.lerp_(torch.where(rows > 0, batch_mean[:, 0], mean), _MOMENTUM)
        unbiased = batch_variance[:, 0] * (rows / (rows - 1).clamp(min=1))
        variance.lerp_(torch.where(rows > 1, unbiased, variance), _MOMENTUM)
    return torch.addcmul(bias[:, None], centred, gain[:, None] * torch.rsqrt(batch_variance + _EPS))


def uniform_linear(inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the weight (inputs, outputs) and bias (outputs,) that torch's ``Linear`` starts from in law."""
    bound = inputs**-0.5
    weight = torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(outputs).uniform_(-bound, bound, generator=generator)


def _random_bits(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return uniform int16 values; the range is given in full, for the default one leaves out the sign bit."""
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[: shape.numel()].view(shape)
