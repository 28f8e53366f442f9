"""Many L2-penalised logistic regressions on one feature matrix, solved together.

A *problem* is one column of row weights: a fold, a label, a class weighting. All problems share X, so
one iteration costs two matrix products for all of them. Problem p minimises scikit-learn's objective

    1/2 |W|^2 + C sum_i w_ip loss(y_ip, x_i W + b),        divided by C sum_i w_ip,

over W (d, K) and the unpenalised intercept b (K): softmax loss over K classes, or sigmoid loss (K = 1).

1. X is centred and rotated into the eigenbasis of its covariance. The penalty is invariant under
   rotation and the intercept absorbs the centring, so the optimum is the same; but there the
   Hessian is nearly diagonal, (curvature x variance_j + penalty), and a diagonal preconditioner
   cuts the iterations of L-BFGS by a factor of five to ten. With n < d the basis has n axes only.
2. L-BFGS runs on all problems at once. The line search moves along cached logits Z + t Zd, costs no
   matrix product, and accepts by slopes alone: the loss is convex, and in float32 differences of
   slopes can be trusted where differences of losses cannot.
3. Problems that are done leave the batch. Done is judged by a bound, not by small steps: the objective
   is strongly convex in W, so |gradient|^2 / (2 penalty) bounds its distance to the optimum. Only
   the intercept, which is not penalised, adds an estimate by its curvature.
4. What float32 could not finish is finished in float64 from where it stopped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEMORY = 10
LINE_STEPS = 12
PATIENCE = 8
BLOCK = 2**26
"""Logits (rows x problems x classes) held at once; the work takes about six such arrays."""


@dataclass(frozen=True)
class Design:
    """A feature matrix in the eigenbasis of its covariance.

    Attributes
    ----------
    rotated
        Centred, rotated features, shape (n, r), float64.
    variance
        Their variances, shape (r,), float64, falling.
    basis
        The eigenvectors, shape (d, r), float64.
    mean
        The column means, shape (d,), float64.
    """

    rotated: Tensor
    variance: Tensor
    basis: Tensor
    mean: Tensor

    @classmethod
    def of(cls, X: NDArray[np.floating[Any]]) -> Design:
        """Rotate a feature matrix of shape (n, d); the smaller of its two Gram matrices is decomposed."""
        features = torch.from_numpy(np.ascontiguousarray(X, dtype=np.float64))
        mean = features.mean(0)
        centred = features - mean
        n, d = centred.shape
        values, vectors = torch.linalg.eigh(centred.T @ centred if d <= n else centred @ centred.T)
        values, vectors = values.flip(0), vectors.flip(1)
        keep = values > values[0].clamp(min=0) * 1e-12
        values, vectors = values[keep], vectors[:, keep]
        if d <= n:
            basis, rotated = vectors, centred @ vectors
        else:
            basis, rotated = centred.T @ (vectors / values.sqrt()), vectors * values.sqrt()
        return cls(rotated.contiguous(), values / n, basis.contiguous(), mean)


@dataclass(frozen=True)
class Solution:
    """Solved problems.

    Attributes
    ----------
    coef
        Shape (P, K, d), float64, in the coordinates of the original features.
    intercept
        Shape (P, K), float64.
    theta
        The same in the eigenbasis, shape (r + 1, P, K), to start a neighbouring problem from.
    losses
        Losses of all rows, those of weight zero too (held-out rows of a fold), shape (n, P), float64.
    objective
        Objective in the units of the text above, shape (P,), float64.
    gap
        Bound on objective minus optimum (see 3. above), shape (P,), float64.
    """

    coef: NDArray[np.float64]
    intercept: NDArray[np.float64]
    theta: Tensor
    losses: NDArray[np.float64]
    objective: NDArray[np.float64]
    gap: NDArray[np.float64]


def fit_logistic(
    design: Design,
    y: NDArray[Any],
    weight: NDArray[np.float64],
    C: float,
    *,
    classes: int = 2,
    start: Tensor | None = None,
    tol: float = 1e-10,
    max_iter: int = 1000,
) -> Solution:
    """Solve all problems.

    Parameters
    ----------
    design
        The shared features, n rows.
    y
        Class codes of shape (n,) for softmax over `classes`; 0 and 1 of shape (n, P) for sigmoid.
    weight
        Row weights of each problem, shape (n, P), not negative, none all zero.
    C
        Inverse strength of the penalty.
    classes
        Number of classes for softmax.
    start
        `theta` of a neighbouring solution.
    tol
        Relative distance to the optimum, by the bound, at which a problem is done.
    max_iter
        Iterations after which a problem is left as it is, in each precision.
    """
    outputs = classes if y.ndim == 1 else 1
    theta = torch.zeros(design.rotated.shape[1] + 1, weight.shape[1], outputs, dtype=torch.float64)
    if start is not None:
        theta.copy_(start)
    blocks = max(1, math.ceil(weight.size * outputs / BLOCK))
    parts = [
        _solve(design, y if y.ndim == 1 else y[:, block], weight[:, block], C, theta[:, block], tol, max_iter)
        for block in np.array_split(np.arange(weight.shape[1]), blocks)
    ]
    thetas, *others = zip(*parts, strict=True)
    theta, (losses, objective, gap) = torch.cat(thetas, dim=1), (torch.cat(values, dim=-1) for values in others)
    coef = torch.einsum("dr,rpk->pkd", design.basis, theta[:-1])
    return Solution(
        coef=coef.numpy(),
        intercept=(theta[-1] - coef @ design.mean).numpy(),
        theta=theta,
        losses=losses.numpy(),
        objective=objective.numpy(),
        gap=gap.numpy(),
    )


def _solve(
    design: Design, y: NDArray[Any], weight: NDArray[np.float64], C: float, theta: Tensor, tol: float, max_iter: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Solve one block of problems, first in float32, then what is left in float64.

    Returns theta, losses, objective and gap, see `Solution`.
    """
    total = weight.sum(axis=0)
    loss = _Softmax(torch.from_numpy(y)) if y.ndim == 1 else _Sigmoid(torch.from_numpy(1.0 - 2.0 * y)[:, :, None])
    problems = _Problems(
        design.rotated, design.variance, torch.from_numpy(weight / total), torch.from_numpy(1 / (C * total)), loss
    )
    gap = torch.full_like(problems.penalty, np.inf)
    left = torch.arange(len(total))
    for dtype in (torch.float32, torch.float64):
        part, done = _minimise(problems.select(left).to(dtype), theta[:, left].to(dtype), tol, max_iter)
        theta[:, left], gap[left] = part.double(), done.double()
        losses, _ = loss(_logits(design.rotated, theta))
        objective = (losses * problems.share).sum(0) + problems.penalty * _dot(theta[:-1], theta[:-1]) / 2
        left = torch.nonzero(~(gap <= tol * objective)).flatten()
        if not len(left):
            break
    return theta, losses, objective, gap


@dataclass(frozen=True)
class _Softmax:
    """Cross-entropy over classes; all problems share the codes."""

    codes: Tensor

    def select(self, index: Tensor) -> _Softmax:  # noqa: ARG002
        return self

    def to(self, dtype: torch.dtype) -> _Softmax:  # noqa: ARG002
        return self

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses (n, P) and their derivatives (n, P, K) at logits (n, P, K)."""
        codes = self.codes[:, None, None].expand(-1, logits.shape[1], 1)
        top = logits.amax(2, keepdim=True)
        powers = (logits - top).exp_()
        total = powers.sum(2, keepdim=True)
        loss = (total.log() + top - logits.gather(2, codes)).squeeze(2)
        slope = powers.div_(total)
        slope.scatter_add_(2, codes, slope.new_full((), -1.0).expand(codes.shape))
        return loss, slope


@dataclass(frozen=True)
class _Sigmoid:
    """Binary cross-entropy; `sign` (n, P, 1) is 1 where the label is 0 and -1 where it is 1."""

    sign: Tensor

    def select(self, index: Tensor) -> _Sigmoid:
        return _Sigmoid(self.sign[:, index])

    def to(self, dtype: torch.dtype) -> _Sigmoid:
        return _Sigmoid(self.sign.to(dtype))

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses (n, P) and their derivatives (n, P, 1) at logits (n, P, 1)."""
        signed = logits * self.sign
        loss = torch.nn.functional.softplus(signed, threshold=40).squeeze(2)
        return loss, signed.sigmoid_().mul_(self.sign)


@dataclass(frozen=True)
class _Problems:
    """A batch of problems in one precision."""

    X: Tensor
    variance: Tensor
    share: Tensor
    penalty: Tensor
    loss: _Softmax | _Sigmoid

    def select(self, index: Tensor) -> _Problems:
        return replace(self, share=self.share[:, index], penalty=self.penalty[index], loss=self.loss.select(index))

    def to(self, dtype: torch.dtype) -> _Problems:
        return _Problems(
            X=self.X.to(dtype),
            variance=self.variance.to(dtype),
            share=self.share.to(dtype),
            penalty=self.penalty.to(dtype),
            loss=self.loss.to(dtype),
        )

    def at(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean losses (P,) and the weighted residuals (n, P, K)."""
        loss, slope = self.loss(logits)
        return (loss * self.share).sum(0), slope.mul_(self.share[:, :, None])

    def gradient(self, residual: Tensor, theta: Tensor) -> Tensor:
        n, p, k = residual.shape
        gradient = torch.empty_like(theta)
        torch.mm(self.X.T, residual.view(n, p * k), out=gradient[:-1].view(-1, p * k))
        gradient[:-1].addcmul_(theta[:-1], self.penalty[None, :, None])
        gradient[-1] = residual.sum(0)
        return gradient

    def inverse_curvature(self, logits: Tensor) -> Tensor:
        """Return the diagonal preconditioner (r + 1, P, 1): the mean curvature of the loss x variance + penalty."""
        probability = logits.sigmoid() if logits.shape[2] == 1 else logits.softmax(2)
        bend = (probability * (1 - probability)).mean(2).mul_(self.share).sum(0).clamp_(min=1e-4)
        curvature = torch.cat([self.variance[:, None] * bend + self.penalty, bend[None]])
        return (1 / curvature)[:, :, None]

    def gap(self, gradient: Tensor, scale: Tensor) -> Tensor:
        """Return the bound on objective minus optimum; the intercept's part rests on its curvature."""
        return (
            gradient[:-1].square().sum((0, 2)) / self.penalty + (gradient[-1:].square() * scale[-1:]).sum((0, 2))
        ) / 2


def _logits(X: Tensor, theta: Tensor) -> Tensor:
    rows, p, k = theta.shape
    return torch.addmm(theta[-1].reshape(1, p * k), X, theta[:-1].reshape(rows - 1, p * k)).view(-1, p, k)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((0, 2))


def _minimise(problems: _Problems, theta: Tensor, tol: float, max_iter: int) -> tuple[Tensor, Tensor]:
    """Run L-BFGS on all problems; return theta and gap, each problem's best."""
    logits = _logits(problems.X, theta)
    scale = problems.inverse_curvature(logits)
    loss, residual = problems.at(logits)
    value = loss + problems.penalty * _dot(theta[:-1], theta[:-1]) / 2
    gradient = problems.gradient(residual, theta)

    best = theta.clone(), value.clone(), problems.gap(gradient, scale)
    index = torch.arange(len(value))
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    idle = torch.zeros(len(value), dtype=torch.long)
    for _ in range(max_iter):
        gap = problems.gap(gradient, scale)
        better = gap < best[2][index]
        for kept, now, axis in zip(best, (theta, value, gap), (1, 0, 0), strict=True):
            kept.index_copy_(axis, index[better], now.index_select(axis, torch.nonzero(better).flatten()))
        idle = torch.where(better, 0, idle + 1)
        going = ~((best[2][index] <= tol * best[1][index]) | (idle >= PATIENCE))
        if not going.any():
            break
        if going.float().mean() <= 0.8:
            keep = torch.nonzero(going).flatten()
            problems, index, idle, value = problems.select(keep), index[keep], idle[keep], value[keep]
            theta, gradient, logits, scale = (tensor[:, keep] for tensor in (theta, gradient, logits, scale))
            history = [(s[:, keep], y[:, keep], r[keep]) for s, y, r in history]

        direction = _direction(gradient, scale, history)
        step_logits = _logits(problems.X, direction)
        step, value, residual = _line_search(problems, theta, direction, _dot(gradient, direction), logits, step_logits)
        moved = direction * step[None, :, None]
        theta = theta + moved
        logits.addcmul_(step_logits, step[None, :, None])
        previous, gradient = gradient, problems.gradient(residual, theta)
        change = gradient - previous
        bend = _dot(moved, change)
        history.append((moved, change, torch.where(bend > 0, 1 / bend, 0)))
        del history[:-MEMORY]
    return best[0], best[2]


def _direction(gradient: Tensor, scale: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the L-BFGS direction (two-loop recursion) that starts from the diagonal preconditioner."""
    q, alphas = gradient.clone(), []
    for s, y, r in reversed(history):
        alphas.append(r * _dot(s, q))
        q.addcmul_(y, -alphas[-1][None, :, None])
    q.mul_(scale)
    if history:
        _, y, r = history[-1]
        bend = r * _dot(y * scale, y)
        q.mul_(torch.where(bend > 0, 1 / bend, 1)[None, :, None])
    for (s, y, r), alpha in zip(history, reversed(alphas), strict=True):
        q.addcmul_(s, (alpha - r * _dot(y, q))[None, :, None])
    uphill = _dot(q, gradient) <= 0
    return torch.where(uphill[None, :, None], gradient * scale, q).neg_()


def _line_search(
    problems: _Problems, theta: Tensor, direction: Tensor, slope: Tensor, logits: Tensor, step_logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Find where the slope along the direction has fallen enough; return step, objective, residual there.

    A slope between -1/2 and 9/10 of the first is accepted. Convexity makes the root of the slope
    easy to bracket; inside the bracket the safeguarded secant is taken.
    """
    here, there = _dot(theta[:-1], direction[:-1]), _dot(direction[:-1], direction[:-1])
    length = _dot(theta[:-1], theta[:-1])
    step = torch.ones_like(slope)
    low, low_slope = torch.zeros_like(slope), slope
    high, high_slope = torch.full_like(slope, np.inf), torch.zeros_like(slope)
    for turn in range(LINE_STEPS):
        loss, residual = problems.at(torch.addcmul(logits, step_logits, step[None, :, None]))
        now = _dot(residual, step_logits) + problems.penalty * (here + step * there)
        good = (now <= -0.5 * slope) & (now >= 0.9 * slope)
        if good.all() or turn == LINE_STEPS - 1:
            break
        falling = now < 0
        low, low_slope = torch.where(falling, step, low), torch.where(falling, now, low_slope)
        high, high_slope = torch.where(falling, high, step), torch.where(falling, high_slope, now)
        width = high - low
        secant = low - low_slope * width / (high_slope - low_slope)
        inside = torch.minimum(torch.maximum(secant, low + 0.05 * width), high - 0.05 * width)
        grown = step * (slope / (slope - now)).clamp(2, 10)
        grown = torch.where(slope < now, grown, step * 4)
        step = torch.where(good, step, torch.where(torch.isfinite(high), inside, grown).clamp(max=1e4))
    value = loss + problems.penalty * (length + 2 * step * here + step * step * there) / 2
    return step, value, residual
