"""Platt's calibration: the logistic curve that turns scores of rows not seen into probabilities."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax


class Calibration(NamedTuple):
    """Probabilities are ``softmax(slope x scores + offset)``.

    Attributes
    ----------
    slope
        At least 1e-3, so that probabilities keep the order of the scores.
    offset
        Shape (K,).
    loss
        The cross-entropy reached, in nats; NaN where there was nothing to fit.
    """

    slope: float
    offset: NDArray[np.float64]
    loss: float


def calibrate(scores: NDArray[np.float64], y: NDArray[np.int64], weight: NDArray[np.float64]) -> Calibration:
    """Fit the calibration to the rows that have weight and scores; slope 1 where they lack a class.

    Parameters
    ----------
    scores
        Shape (n, K); NaN where a row has none.
    y
        Codes in 0..K-1, shape (n,).
    weight
        Row weights, shape (n,).
    """
    usable = (weight > 0) & ~np.isnan(scores).any(axis=1)
    if len(np.unique(y[usable])) < scores.shape[1]:
        return Calibration(1.0, np.zeros(scores.shape[1]), np.nan)
    return fit_calibration(scores[usable], y[usable], weight[usable])


def fit_calibration(scores: NDArray[np.float64], y: NDArray[np.int64], weight: NDArray[np.float64]) -> Calibration:
    """Return the calibration with the lowest cross-entropy.

    Targets are smoothed as Platt does: a row of a class that has N rows counts as N + 1 of that
    class and 1 of the others.

    Parameters
    ----------
    scores
        Shape (n, K).
    y
        Codes, shape (n,); every class occurs.
    weight
        Row weights, shape (n,), positive.
    """
    classes = scores.shape[1]
    count = np.bincount(y, minlength=classes)[y]
    targets = np.repeat((1 / ((count + 2) * (classes - 1)))[:, None], classes, axis=1)
    targets[np.arange(len(y)), y] = (count + 1) / (count + 2)
    share = (weight / weight.sum())[:, None]

    def objective(theta: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        logits = log_softmax(theta[0] * scores + theta[1:], axis=1)
        slope = share * (np.exp(logits) - targets)
        return -float((share * targets * logits).sum()), np.append((slope * scores).sum(), slope.sum(axis=0))

    bounds = [(1e-3, None)] + [(None, None)] * classes
    found: Any = minimize(objective, np.append(1.0, np.zeros(classes)), jac=True, method="L-BFGS-B", bounds=bounds)
    return Calibration(float(found.x[0]), np.asarray(found.x[1:]), float(found.fun))
