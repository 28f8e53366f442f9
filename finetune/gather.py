"""Joint batches: every process sees the rows of all, and the averaged gradients are those of one process.

A loss of all pairs is no mean of the losses of parts. Every process therefore gathers the rows of all W
processes and computes the same loss L of the joint batch. Averaging over processes, as
`DistributedDataParallel` does, then gives for a parameter of the loss itself, such as a temperature, the
mean of W equal gradients, which is right. A parameter of a network is reached on each process through the
process's own rows only, so the mean would be 1/W of the gradient: hence a gathered row passes W times its
gradient on.

Every process has to call these functions equally often, in the same order; without a process group they
return what they are given.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def count_processes() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, in the order of their ranks.

    Parameters
    ----------
    rows
        Those of this process, shape (b, ...); b may differ between the processes, and be 0.

    Returns
    -------
    Tensor
        Shape (B, ...), with B the sum of all b. The gradient of `rows` is W times that of its place in it; it is
        the joint one once averaged over W processes that compute the same loss.
    """
    if count_processes() == 1:
        return rows
    sizes = _gather(torch.tensor([len(rows)], device=rows.device))
    lengths = [int(size) for size in sizes]
    # Collectives take tensors of one size only: short batches are padded, and trimmed again.
    padded = rows.new_zeros(max(lengths), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    joint = [part[:length] for part, length in zip(_gather(padded), lengths, strict=True)]
    own = _ScaledGradient.apply(rows, len(joint)) if rows.requires_grad else rows
    joint[distributed.get_rank()] = own
    return torch.cat(joint)


def joint_mean(total: Tensor, count: Tensor) -> Tensor:
    """Return a loss whose gradients, averaged over the processes, are those of the mean over the joint batch.

    The mean of the processes' means is not it, where they hold unequally many rows, tokens or known targets.

    Parameters
    ----------
    total
        Sum of the weighted losses of this process, a scalar.
    count
        Sum of their weights, a scalar; 0 where this process has none.

    Returns
    -------
    Tensor
        ``W total / (sum of the counts)``, whose mean over the processes is the joint mean; 0 if there is nothing
        to average.
    """
    processes = count_processes()
    joint = count.detach().to(total.dtype, copy=True)
    if processes > 1:
        distributed.all_reduce(joint)
    return processes * total / torch.where(joint > 0, joint, 1.0)


def _gather(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(count_processes())]
    distributed.all_gather(parts, tensor.contiguous())
    return parts


class _ScaledGradient(torch.autograd.Function):
    """The identity, with a gradient that is multiplied by a factor."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient * ctx.factor, None
