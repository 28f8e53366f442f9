"""Ridge regression for every penalty at once, from one eigendecomposition."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh


def ridge_path(
    X: NDArray[np.floating[Any]], Y: NDArray[np.float64], weight: NDArray[np.float64], alphas: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimise ``sum_i w_i |y_i - x_i W - b|^2 + alpha |W|^2`` for every alpha; the intercept b is free.

    With the weighted, centred Gram matrix ``G = V diag(e) V'`` the solution is
    ``V diag(1 / (e + alpha)) V' X' Y``, so a further alpha costs a rescaling. The smaller of the two
    Gram matrices is decomposed.

    Parameters
    ----------
    X
        Features, shape (n, d).
    Y
        Targets, shape (n, T), without missing values where the weight is positive.
    weight
        Row weights, shape (n,), not all zero.
    alphas
        Penalties, shape (A,), positive.

    Returns
    -------
    coef : ndarray of shape (A, T, d)
    intercept : ndarray of shape (A, T)
    """
    rows = weight > 0
    root = np.sqrt(weight[rows])[:, None]
    share = weight[rows] / weight[rows].sum()
    features, targets = X[rows].astype(np.float64), Y[rows]
    mean, level = share @ features, share @ targets
    features, targets = (features - mean) * root, (targets - level) * root
    if features.shape[1] <= features.shape[0]:
        values, vectors = eigh(features.T @ features)
        left, right = vectors, vectors.T @ (features.T @ targets)
    else:
        values, vectors = eigh(features @ features.T)
        left, right = features.T @ vectors, vectors.T @ targets
    shrunk = right / (np.maximum(values, 0)[:, None] + alphas[:, None, None])
    coef = np.swapaxes(left @ shrunk, 1, 2)
    return coef, level - coef @ mean
