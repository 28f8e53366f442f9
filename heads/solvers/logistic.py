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

Arrays have the problems first: the products are then faster by half, and a problem leaves as whole rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEMORY = 10
LINE_STEPS = 12
PATIENCE = 30
"""Iterations without a smaller bound after which a problem is left: it falls by fits and starts."""
_RARE = 1e-6  # the least share of a class that a problem starts from
BLOCK = 2**26
"""Logits (rows x problems x classes) held at once; the work takes about six such arrays."""


@dataclass(frozen=True)
class Design:
    """A feature matrix in the eigenbasis of its covariance.

    Attributes
    ----------
    rotated
        Centred, rotated features and a last column of ones, shape (n, r + 1), float32.
    variance
        Their variances, shape (r,), float64, falling.
    basis
        The eigenvectors, shape (d, r), float64.
    mean
        What was subtracted, the column means to the precision of the features, shape (d,), float64.
    source
        The features as they came, shape (n, d).
    """

    rotated: Tensor
    variance: Tensor
    basis: Tensor
    mean: Tensor
    source: Tensor

    @classmethod
    def of(cls, X: NDArray[np.floating[Any]]) -> Design:
        """Rotate a feature matrix of shape (n, d); the smaller of its two Gram matrices is decomposed."""
        source = torch.from_numpy(np.ascontiguousarray(X))
        n, d = source.shape
        # The intercept absorbs any centre, and any orthonormal basis is exact: both may come from float32.
        mean = source.mean(0)
        if d <= n:
            centred = (source - mean).float()
            values, vectors = torch.linalg.eigh((centred.T @ centred).double())
            values, basis = values.flip(0).clamp(min=0), vectors.flip(1)
            rotated = torch.ones(n, d + 1)
            torch.mm(centred, basis.float(), out=rotated[:, :-1])
        else:
            wide = source.double() - mean.double()
            values, vectors = torch.linalg.eigh(wide @ wide.T)
            values, vectors = values.flip(0), vectors.flip(1)
            keep = values > values[0].clamp(min=0) * 1e-12
            values, vectors = values[keep], vectors[:, keep]
            basis, rotated = wide.T @ (vectors / values.sqrt()), _with_ones(vectors * values.sqrt()).float()
        return cls(rotated, values / n, basis.contiguous(), mean.double(), source)

    @cached_property
    def exact(self) -> Tensor:
        """`rotated` in float64, made from the features again."""
        return _with_ones((self.source.double() - self.mean) @ self.basis)


@dataclass(frozen=True)
class Solution:
    """Solved problems.

    Attributes
    ----------
    theta
        Weights in the eigenbasis and intercepts, shape (P, K, r + 1), float64; a neighbouring problem can
        be started from them.
    gap
        Bound on objective minus optimum (see 3. above), shape (P,), float64.
    relative_gap
        The same over the objective.
    """

    theta: Tensor
    gap: NDArray[np.float64]
    relative_gap: NDArray[np.float64]
    design: Design
    problems: _Problems

    @cached_property
    def coef(self) -> NDArray[np.float64]:
        """Weights in the coordinates of the original features, shape (P, K, d), float64."""
        coef: NDArray[np.float64] = (self.theta[..., :-1] @ self.design.basis.T).numpy()
        return coef

    @cached_property
    def intercept(self) -> NDArray[np.float64]:
        """Intercepts in the coordinates of the original features, shape (P, K), float64."""
        intercept: NDArray[np.float64] = self.theta[..., -1].numpy() - self.coef @ self.design.mean.numpy()
        return intercept

    @cached_property
    def losses(self) -> NDArray[np.float64]:
        """Losses of all rows, those of weight zero too (held-out rows of a fold), shape (P, n), float64."""
        losses: NDArray[np.float64] = self.problems.loss(_logits(self.design.exact, self.theta))[0].numpy()
        return losses

    @cached_property
    def objective(self) -> NDArray[np.float64]:
        """Objective in the units of the text above, shape (P,), float64."""
        mean = (torch.from_numpy(self.losses) * self.problems.share).sum(1)
        objective: NDArray[np.float64] = (mean + _ridge(self.problems.penalty, self.theta)).numpy()
        return objective


def fit_logistic(
    design: Design,
    y: NDArray[Any],
    weight: NDArray[np.floating[Any]],
    C: float | NDArray[np.float64],
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
        Class codes of shape (n,) for softmax over `classes`; 0 and 1 for sigmoid, shape (P, n), or (1, n) for
        labels that all problems share.
    weight
        Row weights of each problem, shape (P, n), not negative, none all zero.
    C
        Inverse strength of the penalty, one for all problems or one for each, shape (P,).
    classes
        Number of classes for softmax.
    start
        `theta` of a neighbouring solution, shape (P, K, r + 1).
    tol
        Relative distance to the optimum, by the bound, at which a problem is done.
    max_iter
        Iterations after which a problem is left as it is, in each precision.
    """
    shares = torch.from_numpy(np.ascontiguousarray(weight))
    total = shares.sum(1, dtype=torch.float64)
    strength = torch.from_numpy(np.broadcast_to(np.asarray(C, dtype=np.float64), len(weight)).copy())
    problems = _Problems(
        design.rotated,
        design.variance,
        (shares / total[:, None]).to(shares.dtype),
        1 / (strength * total),
        _Softmax(torch.from_numpy(y)) if y.ndim == 1 else _Sigmoid(torch.from_numpy(1.0 - 2.0 * y)[:, None]),
    )
    outputs = classes if y.ndim == 1 else 1
    theta = torch.zeros(len(weight), outputs, design.rotated.shape[1], dtype=torch.float64)
    if start is None:
        theta[..., -1] = problems.loss.constant(problems.share, outputs)
    else:
        theta.copy_(start)
    gap, objective = torch.full_like(total, np.inf), torch.ones_like(total)
    for block in torch.arange(len(weight)).tensor_split(max(1, math.ceil(weight.size * outputs / BLOCK))):
        left = block
        for dtype in (torch.float32, torch.float64):
            part = problems.select(left).to(dtype, design.rotated if dtype == torch.float32 else design.exact)
            theta[left], gap[left], objective[left] = _minimise(part, theta[left].to(dtype), tol, max_iter)
            left = left[~(gap[left] <= tol * objective[left])]
            if not len(left):
                break
    return Solution(theta, gap.numpy(), (gap / objective).numpy(), design, problems)


@dataclass(frozen=True)
class _Softmax:
    """Cross-entropy over classes; all problems share the codes."""

    codes: Tensor

    def select(self, index: Tensor) -> _Softmax:  # noqa: ARG002
        return self

    def to(self, dtype: torch.dtype) -> _Softmax:  # noqa: ARG002
        return self

    def constant(self, share: Tensor, classes: int) -> Tensor:
        """Return the best intercepts without any weights, shape (P, K): there the curvature is that of rare classes."""
        found = torch.zeros(len(share), classes, dtype=torch.float64)
        found.index_add_(1, self.codes, share.double())
        return found.clamp_(min=_RARE).log_()

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses (P, n) and their derivatives (P, K, n) at logits (P, K, n)."""
        codes = self.codes.expand(len(logits), 1, -1)
        top = logits.amax(1, keepdim=True)
        powers = (logits - top).exp_()
        total = powers.sum(1, keepdim=True)
        loss = (total.log() + top - logits.gather(1, codes)).squeeze(1)
        slope = powers.div_(total)
        slope.scatter_add_(1, codes, slope.new_full((), -1.0).expand(codes.shape))
        return loss, slope


@dataclass(frozen=True)
class _Sigmoid:
    """Binary cross-entropy; `sign` (P, 1, n), or (1, 1, n) for all problems, is 1 where the label is 0, else -1."""

    sign: Tensor

    def select(self, index: Tensor) -> _Sigmoid:
        return self if len(self.sign) == 1 else _Sigmoid(self.sign[index])

    def to(self, dtype: torch.dtype) -> _Sigmoid:
        return _Sigmoid(self.sign.to(dtype))

    def constant(self, share: Tensor, _classes: int) -> Tensor:
        """Return the best intercepts without any weights, shape (P, 1)."""
        positive = (share.double() * (self.sign[:, 0] < 0)).sum(1, keepdim=True)
        return positive.clamp_(_RARE, 1 - _RARE).logit_()

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the losses (P, n) and their derivatives (P, 1, n) at logits (P, 1, n)."""
        signed = logits * self.sign
        loss = torch.nn.functional.softplus(signed, threshold=40).squeeze(1)
        return loss, signed.sigmoid_().mul_(self.sign)


@dataclass(frozen=True)
class _Problems:
    """A batch of problems in one precision: features (n, r + 1), shares of the rows (P, n), penalties (P,)."""

    X: Tensor
    variance: Tensor
    share: Tensor
    penalty: Tensor
    loss: _Softmax | _Sigmoid

    def select(self, index: Tensor) -> _Problems:
        return replace(self, share=self.share[index], penalty=self.penalty[index], loss=self.loss.select(index))

    def to(self, dtype: torch.dtype, X: Tensor) -> _Problems:
        return _Problems(
            X=X,
            variance=self.variance.to(dtype),
            share=self.share.to(dtype),
            penalty=self.penalty.to(dtype),
            loss=self.loss.to(dtype),
        )

    def at(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean losses (P,) and the weighted residuals (P, K, n)."""
        loss, slope = self.loss(logits)
        return torch.linalg.vecdot(loss, self.share), slope.mul_(self.share[:, None])

    def gradient(self, residual: Tensor, theta: Tensor) -> Tensor:
        p, k, n = residual.shape
        gradient = (residual.view(p * k, n) @ self.X).view(p, k, -1)
        gradient[..., :-1].addcmul_(theta[..., :-1], self.penalty[:, None, None])
        return gradient

    def inverse_curvature(self, logits: Tensor) -> Tensor:
        """Return the diagonal preconditioner (P, 1, r + 1): the mean curvature of the loss x variance + penalty."""
        probability = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
        bend = (probability * (1 - probability)).mean(1).mul_(self.share).sum(1).clamp_(min=1e-4)[:, None]
        curvature = torch.cat([bend * self.variance + self.penalty[:, None], bend], dim=1)
        return (1 / curvature)[:, None]

    def gap(self, gradient: Tensor, scale: Tensor) -> Tensor:
        """Return the bound on objective minus optimum; the intercept's part rests on its curvature."""
        slope, level = gradient[..., :-1], gradient[..., -1]
        return (slope.square().sum((1, 2)) / self.penalty + (level.square() * scale[..., -1]).sum(1)) / 2


def _with_ones(X: Tensor) -> Tensor:
    return torch.cat([X, X.new_ones(len(X), 1)], dim=1)


def _logits(X: Tensor, theta: Tensor) -> Tensor:
    p, k, _ = theta.shape
    return (theta.reshape(p * k, -1) @ X.T).view(p, k, -1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return product


def _ridge(penalty: Tensor, theta: Tensor) -> Tensor:
    return penalty * theta[..., :-1].square().sum((1, 2)) / 2


def _minimise(problems: _Problems, theta: Tensor, tol: float, max_iter: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run L-BFGS on all problems; return theta, gap and objective, each problem's best, in float64."""
    logits = _logits(problems.X, theta)
    scale = problems.inverse_curvature(logits)
    loss, residual = problems.at(logits)
    value = loss + _ridge(problems.penalty, theta)
    gradient = problems.gradient(residual, theta)

    best = theta.clone(), problems.gap(gradient, scale), value.clone()
    index = torch.arange(len(value))
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    idle = torch.zeros(len(value), dtype=torch.long)
    for _ in range(max_iter):
        gap = problems.gap(gradient, scale)
        better = gap < best[1][index]
        for kept, now in zip(best, (theta, gap, value), strict=True):
            kept[index[better]] = now[better]
        idle = torch.where(better, 0, idle + 1)
        going = ~((best[1][index] <= tol * best[2][index]) | (idle >= PATIENCE))
        if not going.any():
            break
        if going.float().mean() <= 0.9:
            keep = torch.nonzero(going).flatten()
            problems, index, idle, value = problems.select(keep), index[keep], idle[keep], value[keep]
            theta, gradient, logits, scale = (tensor[keep] for tensor in (theta, gradient, logits, scale))
            history = [(s[keep], y[keep], r[keep]) for s, y, r in history]

        direction = _direction(gradient, scale, history)
        step_logits = _logits(problems.X, direction)
        step, value, residual = _line_search(problems, theta, direction, _dot(gradient, direction), logits, step_logits)
        moved = direction * step[:, None, None]
        theta = theta + moved
        logits.addcmul_(step_logits, step[:, None, None])
        previous, gradient = gradient, problems.gradient(residual, theta)
        change = gradient - previous
        bend = _dot(moved, change)
        history.append((moved, change, torch.where(bend > 0, 1 / bend, 0)))
        del history[:-MEMORY]
    return best[0].double(), best[1].double(), best[2].double()


def _direction(gradient: Tensor, scale: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return the L-BFGS direction (two-loop recursion) that starts from the diagonal preconditioner."""
    q, alphas = gradient.clone(), []
    for s, y, r in reversed(history):
        alphas.append(r * _dot(s, q))
        q.addcmul_(y, -alphas[-1][:, None, None])
    q.mul_(scale)
    if history:
        _, y, r = history[-1]
        bend = r * _dot(y * scale, y)
        q.mul_(torch.where(bend > 0, 1 / bend, 1)[:, None, None])
    for (s, y, r), alpha in zip(history, reversed(alphas), strict=True):
        q.addcmul_(s, (alpha - r * _dot(y, q))[:, None, None])
    uphill = _dot(q, gradient) <= 0
    return torch.where(uphill[:, None, None], gradient * scale, q).neg_()


def _line_search(
    problems: _Problems, theta: Tensor, direction: Tensor, slope: Tensor, logits: Tensor, step_logits: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Find where the slope along the direction has fallen enough; return step, objective, residual there.

    A slope between -1/2 and 9/10 of the first is accepted. Convexity makes the root of the slope
    easy to bracket; inside the bracket the safeguarded secant is taken.
    """
    here, there = _dot(theta[..., :-1], direction[..., :-1]), _dot(direction[..., :-1], direction[..., :-1])
    length = _dot(theta[..., :-1], theta[..., :-1])
    step = torch.ones_like(slope)
    low, low_slope = torch.zeros_like(slope), slope
    high, high_slope = torch.full_like(slope, np.inf), torch.zeros_like(slope)
    for turn in range(LINE_STEPS):
        loss, residual = problems.at(torch.addcmul(logits, step_logits, step[:, None, None]))
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
