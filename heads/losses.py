"""Losses of logits against targets, one value per entry, with any number of leading model axes.

::

    cross_entropy         logits (..., n, C), labels (..., n)      -> (..., n)
    binary_cross_entropy  logits (..., n, T), targets (..., n, T)  -> (..., n, T)
    squared_error, absolute_error, huber       the same shapes     -> (..., n, T)
    weighted_mean         losses (..., n, T), weights              -> (...)

No loss reduces, and none knows of missing targets by itself: whatever stands where a target is
missing has weight 0 in `weighted_mean`. A setting (`smoothing`, `gamma`, `delta`) is a number, or a
tensor with one value per model, whose axes are the leading ones of the logits.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, softplus

LossName = Literal["cross_entropy", "binary_cross_entropy", "huber", "squared_error", "absolute_error"]
Setting = float | Tensor

_FEW_CLASSES = 32


def cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: Setting = 0.0, gamma: Setting = 0.0) -> Tensor:
    """Return the softmax cross-entropy of each row, shape (..., n).

    Parameters
    ----------
    logits
        Shape (..., n, C).
    labels
        Class codes, int64, shape (..., n) or broadcastable to it.
    smoothing
        ``e`` of label smoothing: the target is ``(1 - e) onehot + e / C``.
    gamma
        Above 0, the focal loss: the cross-entropy times ``(1 - p_t) ** gamma``, with ``p_t`` the
        softmax probability of the label [1]_. 0 is the cross-entropy itself.

    References
    ----------
    .. [1] Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017.
    """
    labels = labels.expand(logits.shape[:-1])
    logits, axis = _by_class(logits)
    log_p = log_softmax(logits, dim=axis)
    log_pt = log_p.gather(axis, labels.unsqueeze(axis)).squeeze(axis)
    loss = -log_pt
    if _is_set(smoothing):
        e = _per_model(smoothing, loss)
        loss = (1 - e) * loss - e * log_p.mean(dim=axis)
    return _focused(loss, log_pt, gamma)


def binary_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    pos_weight: Setting | None = None,
    smoothing: Setting = 0.0,
    gamma: Setting = 0.0,
) -> Tensor:
    """Return the sigmoid cross-entropy of each entry, shape (..., n, T).

    Parameters
    ----------
    logits
        Shape (..., n, T).
    targets
        0 or 1, shape (..., n, T) or broadcastable to it.
    pos_weight
        Factor of the positive term, shape (T,) or broadcastable to the logits.
    smoothing
        ``e`` of label smoothing: the target is ``y (1 - e) + e / 2``.
    gamma
        Above 0, the focal loss, with ``p_t`` the probability of the unsmoothed target.
    """
    smooth = targets
    if _is_set(smoothing):
        e = _per_model(smoothing, logits)
        smooth = targets * (1 - e) + e / 2
    positive, negative = softplus(-logits), softplus(logits)
    if pos_weight is not None:
        positive = positive * pos_weight
    loss = smooth * positive + (1 - smooth) * negative
    return _focused(loss, -softplus((1 - 2 * targets) * logits), gamma) if _is_set(gamma) else loss


def squared_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of each entry."""
    return (predictions - targets).square()


def absolute_error(predictions: Tensor, targets: Tensor) -> Tensor:
    """Return the absolute error of each entry."""
    return (predictions - targets).abs()


def huber(predictions: Tensor, targets: Tensor, *, delta: Setting = 1.0) -> Tensor:
    """Return the Huber loss of each entry: ``e**2 / 2`` up to `delta`, ``delta (|e| - delta / 2)`` beyond.

    `delta` is in the units of the targets: far below their spread it is the absolute error in disguise.
    """
    error = absolute_error(predictions, targets)
    d = _per_model(delta, error)
    inside = torch.minimum(error, d) if isinstance(d, Tensor) else error.clamp(max=d)
    return inside * (error - 0.5 * inside)


def entry_losses(
    name: LossName,
    logits: Tensor,
    targets: Tensor,
    *,
    smoothing: Setting = 0.0,
    gamma: Setting = 0.0,
    delta: Setting = 1.0,
    pos_weight: Setting | None = None,
) -> Tensor:
    """Return the losses of a loss given by name, shape (..., n, T).

    Parameters
    ----------
    name
        Which loss.
    logits
        Shape (..., n, C) for ``cross_entropy``, else (..., n, T).
    targets
        Shape (..., n, T) or broadcastable to it; for ``cross_entropy`` T is 1 and holds class codes.
    smoothing, gamma, delta, pos_weight
        See the losses; those that a loss does not have are ignored.
    """
    if name == "cross_entropy":
        return cross_entropy(logits, targets[..., 0].long(), smoothing=smoothing, gamma=gamma)[..., None]
    if name == "binary_cross_entropy":
        return binary_cross_entropy(logits, targets, pos_weight=pos_weight, smoothing=smoothing, gamma=gamma)
    if name == "huber":
        return huber(logits, targets, delta=delta)
    return squared_error(logits, targets) if name == "squared_error" else absolute_error(logits, targets)


def entry_slopes(
    name: LossName, logits: Tensor, targets: Tensor, *, gamma: Setting = 0.0, delta: Setting = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the losses of `entry_losses` and their derivatives by the logits, in closed form.

    Where a model is linear all the way to the logits, this spares autograd, which takes longer than the
    arithmetic does. Targets are hard: 0 and 1, or class codes.

    Returns
    -------
    losses
        Shape (..., n, T).
    slopes
        Shape of the logits: row by row the derivatives of the sum of its losses.
    """
    if name == "cross_entropy":
        labels = targets[..., 0].long().expand(logits.shape[:-1])
        by_class, axis = _by_class(logits)
        labels = labels.unsqueeze(axis)
        slopes = log_softmax(by_class, dim=axis)
        log_pt = slopes.gather(axis, labels)
        slopes = slopes.exp_().scatter_add_(axis, labels, log_pt.new_full((), -1.0).expand(labels.shape))
        factor = _focal_factor(log_pt, gamma)
        slopes = slopes if factor is None else slopes * factor
        losses = _focused(-log_pt, log_pt, gamma).squeeze(axis)[..., None]
        return losses, slopes if axis == -1 else slopes.transpose(-1, -2)
    losses = entry_losses(name, logits, targets, gamma=gamma, delta=delta)
    if name == "binary_cross_entropy":
        factor = _focal_factor(-softplus((1 - 2 * targets) * logits), gamma)
        slopes = torch.sigmoid(logits) - targets
        return losses, slopes if factor is None else slopes * factor
    error = logits - targets
    if name == "squared_error":
        return losses, 2 * error
    if name == "absolute_error":
        return losses, error.sign()
    # Within delta the error itself, beyond it delta with the error's sign.
    return losses, error / torch.clamp(error.abs() / _per_model(delta, error), min=1.0)


def weighted_sum(losses: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over the last two axes of ``weight * loss`` and of the weights, each of shape (...).

    Parameters
    ----------
    losses
        Shape (..., n, T).
    weights
        Shape (..., n, T) or broadcastable to it; 0 where the target is missing.
    """
    weights = weights.expand(losses.shape)
    return (weights * losses).sum(dim=(-2, -1)), weights.sum(dim=(-2, -1))


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Return the mean loss of each model over its observed entries, shape (...); 0 if it has none."""
    total, weight = weighted_sum(losses, weights)
    return total / torch.where(weight > 0, weight, 1.0)


def _focused(loss: Tensor, log_pt: Tensor, gamma: Setting) -> Tensor:
    """Return the loss times ``(1 - p_t) ** gamma``."""
    if not _is_set(gamma):
        return loss
    return _miss(log_pt).pow(_per_model(gamma, loss)) * loss


def _miss(log_pt: Tensor) -> Tensor:
    """Return 1 - p_t without cancellation; the floor keeps the gradient of a power below 1 finite at p_t = 1."""
    return (-torch.expm1(log_pt)).clamp_min(torch.finfo(log_pt.dtype).eps)


def _focal_factor(log_pt: Tensor, gamma: Setting) -> Tensor | None:
    """Return what a focal loss multiplies the slopes of the plain one by; None where there is no `gamma`.

    With q = 1 - p_t the loss is ``-q**gamma log p_t``, and d log p_t is minus the slope of the plain loss.
    """
    if not _is_set(gamma):
        return None
    g = _per_model(gamma, log_pt)
    miss = _miss(log_pt)
    return miss.pow(g) - g * miss.pow(g - 1) * log_pt.exp() * log_pt


def _by_class(logits: Tensor) -> tuple[Tensor, int]:
    """Return logits (..., n, C) or (..., C, n), and which axis their classes are on.

    On a CPU torch takes a softmax of many rows at once along any axis but the last: 10 classes in a tenth
    of the time.
    """
    by_class = logits.transpose(-1, -2)
    if by_class.is_contiguous() or (logits.device.type == "cpu" and logits.shape[-1] <= _FEW_CLASSES):
        return by_class.contiguous(), -2
    return logits, -1


def _is_set(setting: Setting) -> bool:
    return isinstance(setting, Tensor) or setting != 0.0


def _per_model(setting: Setting, like: Tensor) -> Setting:
    """Return a setting in a shape that broadcasts over the leading axes of `like`."""
    if isinstance(setting, Tensor):
        return setting.reshape(setting.shape + (1,) * (like.ndim - setting.ndim))
    return setting
