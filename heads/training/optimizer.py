"""AdamW over the weights of many models, each with its own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import Tensor

_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPS: Final = 1e-8


class StackedAdamW:
    """Weights of G models as rows of one matrix, so that a step of AdamW [1]_ is a few passes over memory.

    Weight decay is decoupled and reaches matrices only: biases, gains and shifts are vectors.

    Parameters
    ----------
    initial
        The initial weights of each model, by name; all models have the same names and shapes.
    device
        Where to keep them.
    lr_factors
        What the learning rate of some weights is multiplied by, by name. Their weight decay stays as it is.

    Attributes
    ----------
    leaves
        The weights by name, shape (G, ...), as views of the matrix's memory that gradients are taken of.

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    def __init__(
        self,
        initial: Sequence[dict[str, Tensor]],
        device: torch.device,
        lr_factors: Mapping[str, float] | None = None,
    ) -> None:
        first = initial[0]
        names = sorted(first, key=lambda name: first[name].ndim < 2)
        self._shapes = {name: first[name].shape for name in names}
        self._decayed = sum(first[name].numel() for name in names if first[name].ndim >= 2)
        rows = [torch.cat([model[name].flatten() for name in names]) for model in initial]
        self._flat = torch.stack(rows).to(device)
        self._mean, self._square = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._steps = 0
        self._factors = _factor_of_each(self._shapes, lr_factors, device) if lr_factors else None
        self._allocate()

    def step(self, loss: Tensor, lr: Tensor, weight_decay: Tensor) -> None:
        """Move every model against the gradient of a loss that sums over the models.

        Parameters
        ----------
        loss
            A scalar.
        lr, weight_decay
            Shape (G, 1).
        """
        gradients = torch.autograd.grad(loss, list(self.leaves.values()))
        self._steps += 1
        correction1, correction2 = 1 - _BETA1**self._steps, 1 - _BETA2**self._steps
        with torch.no_grad():
            torch.cat([part.flatten(start_dim=1) for part in gradients], dim=1, out=self._gradient)
            self._flat[:, : self._decayed].mul_(1 - lr * weight_decay)
            self._mean.lerp_(self._gradient, 1 - _BETA1)
            self._square.mul_(_BETA2).addcmul_(self._gradient, self._gradient, value=1 - _BETA2)
            # The update in one scratch buffer, the bias corrections moved into two scalars.
            update = torch.sqrt(self._square, out=self._gradient).add_(_EPS * correction2**0.5)
            torch.div(self._mean, update, out=update)
            if self._factors is not None:
                update.mul_(self._factors)
            self._flat.addcmul_(update, lr * (-(correction2**0.5) / correction1))

    def select(self, models: Tensor) -> None:
        """Keep some of the models, by position."""
        self._flat, self._mean, self._square = self._flat[models], self._mean[models], self._square[models]
        self._allocate()

    def _allocate(self) -> None:
        self._gradient = torch.empty_like(self._flat)
        self.leaves: dict[str, Tensor] = {}
        start = 0
        for name, shape in self._shapes.items():
            part = self._flat[:, start : start + shape.numel()].view(-1, *shape)
            self.leaves[name] = part.detach().requires_grad_()
            start += shape.numel()


def _factor_of_each(shapes: Mapping[str, torch.Size], factors: Mapping[str, float], device: torch.device) -> Tensor:
    """Return the factor of every weight in the order in which they lie in a row, shape (weights,)."""
    parts = [torch.full((shape.numel(),), factors.get(name, 1.0)) for name, shape in shapes.items()]
    return torch.cat(parts).to(device)
