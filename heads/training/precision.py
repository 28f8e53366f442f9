"""Mixed precision: matrix products in 16 bits, everything else in 32, and the loss scaling that fp16 needs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Final, Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]

_DTYPES: Final = {"bf16": torch.bfloat16, "fp16": torch.float16}
_FIRST, _GROWTH, _BACKOFF, _INTERVAL = 2.0**16, 2.0, 0.5, 2000


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which products are computed in a precision."""
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False)


class LossScale:
    """What the loss of each model is multiplied by, so that its gradients do not vanish in fp16.

    The numbers are those of ``torch.amp.GradScaler``, but every model has a scale of its own: a
    gradient that is not finite halves it and the model does not move in this step; 2000 steps without
    such a gradient double it.
    """

    def __init__(self, models: int, device: torch.device) -> None:
        self._scale = torch.full((models,), _FIRST, device=device)
        self._good = torch.zeros(models, device=device)

    def scaled(self, loss: Tensor, models: slice) -> Tensor:
        """Return the sum of the scaled losses of some models."""
        return (loss * self._scale[models]).sum()

    def unscaled(self, gradients: Sequence[Tensor], models: slice) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the gradients of the losses themselves, and which models' are finite, and move the scales."""
        scale, good = self._scale[models], self._good[models]
        finite = torch.stack([g.flatten(start_dim=1).isfinite().all(dim=1) for g in gradients]).all(dim=0)
        result = tuple(g / scale.reshape(-1, *[1] * (g.ndim - 1)) for g in gradients)
        good.add_(1).mul_(finite)
        grown = good >= _INTERVAL
        scale.mul_(torch.where(finite, torch.where(grown, _GROWTH, 1.0), _BACKOFF))
        good.mul_(~grown)
        return result, finite

    def select(self, models: Tensor) -> None:
        """Keep some of the models, by position."""
        self._scale, self._good = self._scale[models], self._good[models]
