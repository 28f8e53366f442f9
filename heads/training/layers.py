"""Layers of many models at once: every weight and every activation has a leading model axis G.

They are functions of stacked weights; what is random in training, and which rows of a padded batch
are real, comes with a `TrainingPass`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm as normalize_rows

_EPS = 1e-5
_MOMENTUM = 0.1
_LEVELS = 2**16


class Draws:
    """What the random streams draw in one step: once per question, whoever asks it.

    Parameters
    ----------
    generators
        One per stream.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self._generators = generators
        self._drawn: list[Tensor] = []
        self._asked = 0

    def rewind(self) -> Draws:
        """Answer the same questions again, for other models of the same streams."""
        self._asked = 0
        return self

    def next(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Return the answer to the next question, stacked over the streams."""
        if self._asked == len(self._drawn):
            self._drawn.append(torch.stack([draw(generator) for generator in self._generators]))
        self._asked += 1
        return self._drawn[self._asked - 1]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingPass:
    """What an architecture needs to know of one training step.

    Attributes
    ----------
    row_share
        1 / number of real rows for a real row and 0 for padding, shape (G, 1, b), or (1, 1, b) if it
        is that of all models.
    rates
        Dropout rate of each model, shape (G,), or None if no model has any.
    draws
        What the random streams draw; configurations of one fold share a stream, and thereby
        their dropout masks (common random numbers).
    stream
        The stream of each model: positions, or a slice, of one if all models share it.
    """

    row_share: Tensor
    rates: Tensor | None
    draws: Draws
    stream: Tensor | slice

    def random(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """Return what each model's stream draws, shape (G, ...), or (1, ...) if all models share one."""
        return self.draws.next(draw)[self.stream]

    def drop(self, hidden: Tensor, rate: float | None = None) -> Tensor:
        """Return activations (G, b, h) with a share of them set to 0 and the rest scaled up: `rate`, or the model's."""
        rates = self.rates if rate is None else hidden.new_full((len(hidden),), rate, dtype=torch.float32)
        if rates is None or rate == 0:
            return hidden
        # 16 random bits per activation: cheaper than a float draw, and a rate is met to 1e-5.
        draws = self.random(partial(_random_bits, hidden.shape[1:]))
        dropped = (rates * _LEVELS).round().clamp(max=_LEVELS - 1)[:, None, None]
        # Compared straight into floats: multiplying by booleans costs several times as much.
        keep = torch.ge(draws, dropped - _LEVELS // 2, out=torch.empty(hidden.shape, device=hidden.device))
        return hidden * keep.mul_(_LEVELS / (_LEVELS - dropped))


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return ``x @ weight + bias``: (G, b, d), (G, d, h), (G, h) -> (G, b, h)."""
    if len(weight) == 1 and 1 in weight.shape[1:]:
        # A single product with a vector is rounded otherwise than several, and results must not depend on G.
        return torch.baddbmm(*(each.expand(2, -1, -1) for each in (bias[:, None], x, weight)))[:1]
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
    x = x.float()
    if training is None:
        scale = gain * torch.rsqrt(variance + _EPS)
        return torch.addcmul((bias - mean * scale)[:, None], x, scale[:, None])
    share = training.row_share.expand(len(x), -1, -1)
    normalized: Tensor
    normalized, batch_mean, batch_variance = _BatchNorm.apply(x, gain[:, None], bias[:, None], share)
    with torch.no_grad():
        rows = (training.row_share > 0).sum(dim=-1)
        mean.lerp_(torch.where(rows > 0, batch_mean[:, 0], mean), _MOMENTUM)
        unbiased = batch_variance[:, 0] * (rows / (rows - 1).clamp(min=1))
        variance.lerp_(torch.where(rows > 1, unbiased, variance), _MOMENTUM)
    return normalized


class _BatchNorm(torch.autograd.Function):
    """``bias + gain (x - mean) / sqrt(variance + eps)`` with the moments of the batch.

    Rows i have shares s_i that sum to 1 (or to 0). With c = x - mean and r = 1 / sqrt(variance + eps),
    the gradient of what comes out, dy, gives

        dx_i = gain r (dy_i - s_i (sum_j dy_j + r^2 c_i sum_j dy_j c_j))

    in a third of the passes over memory that differentiating step by step takes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, share: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            mean = torch.bmm(share, x)
            centred = x - mean
            variance = torch.bmm(share, centred.square())
        root = torch.rsqrt(variance + _EPS)
        ctx.save_for_backward(centred, gain, root, share)
        ctx.mark_non_differentiable(mean, variance)
        return torch.addcmul(bias, centred, gain * root), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (gradient, _, _) = gradients
        centred, gain, root, share = ctx.saved_tensors
        total = gradient.sum(dim=1, keepdim=True)
        along = (gradient * centred).sum(dim=1, keepdim=True)
        common = torch.addcmul(total, centred, root.square() * along).mul_(share.transpose(1, 2))
        return torch.sub(gradient, common, out=common).mul_(gain * root), along * root, total, None


def uniform_linear(inputs: int, outputs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the weight (inputs, outputs) and bias (outputs,) that torch's ``Linear`` starts from in law."""
    bound = inputs**-0.5
    weight = torch.empty(inputs, outputs).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(outputs).uniform_(-bound, bound, generator=generator)


def _random_bits(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Return whole numbers from -2^15 to 2^15 - 1 as floats; the default range of `random_` leaves out the sign bit."""
    words = torch.empty(-(-shape.numel() // 4), dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    return words.view(torch.int16)[: shape.numel()].view(shape).float()
