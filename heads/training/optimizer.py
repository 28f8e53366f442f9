"""AdamW, Adam and SGD over the weights of many models, each with its own learning rate and weight decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import torch
from torch import Tensor

Optimizer = Literal["adamw", "adam", "sgd"]

_MOMENTUM: Final = 0.9
_BETA1: Final = 0.9
_BETA2: Final = 0.999
_EPS: Final = 1e-8
_CLIP_EPS: Final = 1e-6  # as in torch.nn.utils.clip_grad_norm_


@dataclass(frozen=True, eq=False)
class Block:
    """Neighbouring models whose gradients are taken together.

    Attributes
    ----------
    models
        Which ones.
    leaves
        Their weights by name, shape (g, ...), as views that gradients are taken of.
    """

    models: slice
    leaves: dict[str, Tensor]


@dataclass(frozen=True)
class _Segment:
    """Neighbouring weights in a model's row that decay alike and learn alike."""

    names: tuple[str, ...]
    decays: bool
    factor: float


class StackedOptimizer:
    """Weights of G models as rows of one matrix, and AdamW [1]_, Adam or SGD with momentum over them.

    The weight decay of AdamW is decoupled and reaches matrices only: biases, gains and shifts are
    vectors. That of Adam and SGD is added to the gradient, as a penalty of all weights. On a CPU torch's
    fused kernel of Adam makes one pass over each model's weights; else a few passes are made over those
    of all models.

    Parameters
    ----------
    initial
        The initial weights of each model, by name; all models have the same names and shapes.
    device
        Where to keep them.
    lr_factors
        What the learning rate of some weights is multiplied by, by name. Their weight decay stays as it is.
    block
        Number of models in a block at most; None for all.
    fused
        Whether to use the fused kernel, which SGD does not; None for a CPU only.
    optimizer
        ``adamw``, ``adam``, or ``sgd`` with a momentum of 0.9.

    Attributes
    ----------
    weights
        The weights by name, shape (G, ...), as views of the matrix.
    blocks
        The models in blocks, in order.

    References
    ----------
    .. [1] Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    def __init__(
        self,
        initial: Sequence[dict[str, Tensor]],
        device: torch.device,
        lr_factors: Mapping[str, float] | None = None,
        *,
        block: int | None = None,
        fused: bool | None = None,
        optimizer: Optimizer = "adamw",
    ) -> None:
        first, factors = initial[0], lr_factors or {}
        self._rolls = optimizer == "sgd"
        self._penalized = optimizer != "adamw"
        self._kernel = torch._fused_adam_ if self._penalized else torch._fused_adamw_
        names = sorted(first, key=lambda name: (first[name].ndim < 2, factors.get(name, 1.0)))
        self._shapes = {name: first[name].shape for name in names}
        self._segments = _segments(self._shapes, factors)
        self._decayed = sum(shape.numel() for shape in self._shapes.values() if len(shape) >= 2)
        self._factors = _factor_of_each(self._shapes, factors, device) if factors else None
        self._block = block or len(initial)
        self._fused = not self._rolls and (device.type == "cpu" if fused is None else fused)
        rows = [torch.cat([model[name].flatten() for name in names]) for model in initial]
        self._flat = torch.stack(rows).to(device)
        self._mean, self._square = torch.zeros_like(self._flat), torch.zeros_like(self._flat)
        self._steps = torch.zeros(len(initial), device=device)
        self._allocate()

    def step(
        self,
        block: Block,
        gradients: Sequence[Tensor],
        lr: Tensor,
        weight_decay: Tensor,
        valid: Tensor | None = None,
    ) -> None:
        """Move the models of a block against their gradients.

        Parameters
        ----------
        block
            One of `blocks`.
        gradients
            In the order of the block's leaves.
        lr, weight_decay
            Of each of its models, shape (g,).
        valid
            Which models move, shape (g,); None for all. The others stay as if there had been no step.
        """
        with torch.no_grad():
            if self._fused:
                self._move_one_by_one(block, gradients, lr, weight_decay, valid)
            else:
                self._move_together(block, gradients, lr[:, None], weight_decay[:, None], valid)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The leaves of the only block."""
        (block,) = self.blocks
        return block.leaves

    def empty_gradient(self) -> Tensor:
        """Return an unfilled matrix of gradients: a row per model, in it its matrices in order and then its vectors."""
        return torch.empty_like(self._flat)

    def descend(self, gradient: Tensor, lr: Tensor, weight_decay: Tensor | None) -> None:
        """Move all models against a matrix of gradients, see `empty_gradient`, which is overwritten.

        `lr` and `weight_decay` are of each model, shape (G,); None is no decay at all.
        """
        with torch.no_grad():
            decay = None if weight_decay is None else weight_decay[:, None]
            self._move(self._flat, self._mean, self._square, self._steps, gradient, lr[:, None], decay)

    def select(self, models: Tensor) -> None:
        """Keep some of the models, by position."""
        self._flat, self._mean, self._square = self._flat[models], self._mean[models], self._square[models]
        self._steps = self._steps[models]
        self._allocate()

    def _move_one_by_one(
        self, block: Block, gradients: Sequence[Tensor], lr: Tensor, weight_decay: Tensor, valid: Tensor | None
    ) -> None:
        rows = dict(zip(block.leaves, [gradient.contiguous().unbind() for gradient in gradients], strict=True))
        moving = [True] * len(lr) if valid is None else valid.tolist()
        self._steps[block.models] += 1.0 if valid is None else valid
        for g, (rate, decay, moves) in enumerate(zip(lr.tolist(), weight_decay.tolist(), moving, strict=True)):
            for segment, (weights, means, squares, steps) in zip(
                self._segments, self._places[block.models.start + g] if moves else (), strict=moves
            ):
                self._kernel(
                    weights,
                    [rows[name][g] for name in segment.names],
                    means,
                    squares,
                    [],
                    steps,
                    lr=rate * segment.factor,
                    beta1=_BETA1,
                    beta2=_BETA2,
                    weight_decay=self._decay(decay, segment),
                    eps=_EPS,
                    amsgrad=False,
                    maximize=False,
                )

    def _decay(self, decay: float, segment: _Segment) -> float:
        """Return the weight decay of a segment as the kernel takes it, which multiplies it by the learning rate."""
        if self._penalized:
            return decay
        return decay / segment.factor if segment.decays else 0.0

    def _move_together(
        self, block: Block, gradients: Sequence[Tensor], lr: Tensor, weight_decay: Tensor, valid: Tensor | None
    ) -> None:
        gradient = torch.cat([part.flatten(start_dim=1) for part in gradients], dim=1)
        flat, mean, square, steps = (each[block.models] for each in (self._flat, self._mean, self._square, self._steps))
        before = None if valid is None else (flat.clone(), mean.clone(), square.clone(), steps.clone())
        self._move(flat, mean, square, steps, gradient, lr, weight_decay)
        if valid is not None and before is not None:
            for now, old in zip((flat, mean, square, steps), before, strict=True):
                now.copy_(torch.where(valid.reshape(-1, *[1] * (now.ndim - 1)), now, old))

    def _move(
        self,
        flat: Tensor,
        mean: Tensor,
        square: Tensor,
        steps: Tensor,
        gradient: Tensor,
        lr: Tensor,
        weight_decay: Tensor | None,
    ) -> None:
        """Take one step in place; the gradient serves as scratch memory."""
        if weight_decay is not None:
            if self._penalized:
                gradient.addcmul_(flat, weight_decay)
            else:
                flat[:, : self._decayed].mul_(1 - lr * weight_decay)
        if self._rolls:
            update = torch.add(gradient, mean, alpha=_MOMENTUM, out=mean)
            flat.addcmul_(update if self._factors is None else update * self._factors, -lr)
            return
        steps += 1
        correction1, correction2 = 1 - _BETA1 ** steps[:, None], 1 - _BETA2 ** steps[:, None]
        mean.lerp_(gradient, 1 - _BETA1)
        square.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        # The update in one scratch buffer, the bias corrections moved into two numbers per model.
        update = torch.sqrt(square, out=gradient).add_(_EPS * correction2.sqrt())
        torch.div(mean, update, out=update)
        if self._factors is not None:
            update.mul_(self._factors)
        flat.addcmul_(update, lr * (-correction2.sqrt() / correction1))

    def _allocate(self) -> None:
        """Make the views of the models that are there."""
        self.weights = self._named(self._flat)
        self.blocks = []
        for start in range(0, len(self._flat), self._block):
            models = slice(start, min(start + self._block, len(self._flat)))
            leaves = {name: part[models].detach().requires_grad_() for name, part in self.weights.items()}
            self.blocks.append(Block(models, leaves))
        if self._fused:
            parts = [self._named(each) for each in (self._flat, self._mean, self._square)]
            self._places = [
                [
                    (
                        *([part[name][g] for name in segment.names] for part in parts),
                        [self._steps[g]] * len(segment.names),
                    )
                    for segment in self._segments
                ]
                for g in range(len(self._flat))
            ]

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        parts = torch.split(flat, [shape.numel() for shape in self._shapes.values()], dim=1)
        return {name: part.view(-1, *shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}


def clipped(gradients: Sequence[Tensor], longest: Tensor) -> tuple[Tensor, ...]:
    """Return the gradients of models, those of each scaled down to a length at most.

    Parameters
    ----------
    gradients
        One tensor (g, ...) for each weight.
    longest
        The length that all gradients of a model may have together, shape (g,); infinite for any.
    """
    parts = [torch.linalg.vector_norm(gradient.contiguous().flatten(start_dim=1), dim=1) for gradient in gradients]
    length = torch.linalg.vector_norm(torch.stack(parts, dim=1), dim=1)
    factor = (longest / (length + _CLIP_EPS)).clamp(max=1.0)
    return tuple(gradient * factor.reshape(-1, *[1] * (gradient.ndim - 1)) for gradient in gradients)


def _segments(shapes: Mapping[str, torch.Size], factors: Mapping[str, float]) -> list[_Segment]:
    """Return the runs of weights that decay alike and learn alike, given weights in such an order."""
    alike: dict[tuple[bool, float], list[str]] = {}
    for name, shape in shapes.items():
        alike.setdefault((len(shape) >= 2, factors.get(name, 1.0)), []).append(name)
    return [_Segment(tuple(names), decays, factor) for (decays, factor), names in alike.items()]


def _factor_of_each(shapes: Mapping[str, torch.Size], factors: Mapping[str, float], device: torch.device) -> Tensor:
    """Return the factor of every weight in the order in which they lie in a row, shape (weights,)."""
    parts = [torch.full((shape.numel(),), factors.get(name, 1.0)) for name, shape in shapes.items()]
    return torch.cat(parts).to(device)
