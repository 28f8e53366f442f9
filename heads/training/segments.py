"""Packed bags on a device, and the one operation that all weighted poolings are made of.

::

    scores (G, m, H), rows (G, m, d) --softmax within each segment--> weights --sum--> (G, n, H, d)

Segments are stretches of packed rows: the instances of a part or of a bag, the parts of a bag. There is
no padding, so nothing can leak out of it, and a segment without rows is 0 with gradient 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from heads.bags import Bags


@dataclass(frozen=True, eq=False)
class Segments:
    """Stretches of rows: segment i holds the rows ``bounds[i]:bounds[i + 1]``."""

    bounds: Sequence[int]
    device: torch.device

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @cached_property
    def single(self) -> bool:
        """Whether every segment is one row, so that there is nothing to pool."""
        return len(self) == self.bounds[-1] and all(b - a == 1 for a, b in pairwise(self.bounds))

    @cached_property
    def of(self) -> Tensor:
        """The segment of each row, shape (m,)."""
        return torch.repeat_interleave(torch.tensor(np.diff(self.bounds), device=self.device))


@dataclass(frozen=True, eq=False)
class Packed:
    """Some bags, ready to be pooled.

    Attributes
    ----------
    x
        Their instances, shape (m, d).
    levels
        The segments to pool by: instances to bags; or instances to parts, then parts to bags.
    views
        Codes of the views of what the last level pools, instances or parts; None without views.
    """

    x: Tensor
    levels: tuple[Segments, ...]
    views: Tensor | None = None

    def __len__(self) -> int:
        return len(self.levels[-1])


def packed(x: Tensor, bags: Bags) -> Packed:
    """Return the bags whose instances' embeddings are the rows of `x`; their views, if any, are codes."""
    bounds = [bags.part_offsets] if bags.inner is None else [bags.inner, bags.part_offsets]
    levels = tuple(Segments(each.tolist(), x.device) for each in bounds)
    if bags.views is None:
        return Packed(x, levels)
    codes = bags.views if bags.inner is None else bags.views[bags.inner[:-1]]
    return Packed(x, levels, torch.from_numpy(codes).to(x.device))


def segment_attention(scores: Tensor, x: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
    """Return, for each segment, the mean of its rows weighted by the softmax of their scores.

    Parameters
    ----------
    scores
        Shape (G, m, H): one score per row and attention head.
    x
        Rows, shape (G, m, d) or (1, m, d).
    segments
        The rows' segments.

    Returns
    -------
    pooled
        Shape (G, n, H, d); 0 for a segment without rows.
    log_total
        Logarithm of the sum of ``exp(score)`` over each segment, shape (G, n, H); -inf for one without rows.
    """
    if segments.single:
        return x[:, :, None].expand(*scores.shape, x.shape[2]), scores
    return _SegmentAttention.apply(scores, x, segments)  # type: ignore[no-any-return]


def segment_max(x: Tensor, segments: Segments) -> Tensor:
    """Return the maximum of each segment's rows (G, m, d), shape (G, n, d); 0 for a segment without rows."""
    if segments.single:
        return x
    nothing = x.new_zeros(len(x), x.shape[2])
    return torch.stack([x[:, a:b].amax(dim=1) if b > a else nothing for a, b in pairwise(segments.bounds)], dim=1)


class _SegmentAttention(torch.autograd.Function):
    """A loop of small matrix products, which beats scattering weighted rows, and is deterministic on every device."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, x: Tensor, segments: Segments) -> tuple[Tensor, Tensor]:
        of, shape = segments.of, (len(scores), len(segments), scores.shape[2])
        top = scores.new_full(shape, -torch.inf)
        top.scatter_reduce_(1, of[None, :, None].expand(scores.shape), scores, "amax")
        weights = torch.exp(scores - top[:, of])
        total, pooled = scores.new_zeros(shape), scores.new_zeros(*shape, x.shape[2])
        for i, (a, b) in enumerate(pairwise(segments.bounds)):
            if b > a:
                total[:, i] = weights[:, a:b].sum(dim=1)
                pooled[:, i] = weights[:, a:b].mT @ x[:, a:b]
        real = torch.where(total > 0, total, 1.0)
        weights /= real[:, of]
        pooled /= real[..., None]
        ctx.save_for_backward(weights, x, pooled)
        ctx.segments = segments
        return pooled, top + total.log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weights, x, pooled = ctx.saved_tensors
        by_pooled, by_log_total = gradients
        by_weights = torch.empty_like(weights)
        by_x = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        for i, (a, b) in enumerate(pairwise(ctx.segments.bounds)):
            if b > a:
                by_weights[:, a:b] = x[:, a:b] @ by_pooled[:, i].mT
                if by_x is not None:
                    by_x[:, a:b] = weights[:, a:b] @ by_pooled[:, i]
        # The softmax's own gradient: the weighted mean of `by_weights` over a segment is <pooled, by_pooled>.
        inner = (pooled * by_pooled).sum(dim=-1) - by_log_total
        return weights * (by_weights - inner[:, ctx.segments.of]), by_x, None
