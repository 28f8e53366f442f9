"""Ridge regression for every penalty at once, from one eigendecomposition per fold."""

from __future__ import annotations

from collections.abc import Iterator
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
    return _rescaled(left, values, right, alphas, mean, level)


def fold_ridge(
    X: NDArray[np.floating[Any]],
    Y: NDArray[np.float64],
    weight: NDArray[np.float64],
    fold: NDArray[np.int64],
    alphas: NDArray[np.float64],
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]]:
    """Yield, for each fold, its rows and the solutions of `ridge_path` on all other rows.

    A fold's Gram matrix is that of all rows less that of the fold's own, so each row is multiplied once
    whatever the number of folds. With fewer rows than features each fold is solved by itself.

    Parameters
    ----------
    X, Y, weight, alphas
        As for `ridge_path`.
    fold
        The fold that each row is held out of, shape (n,); rows with -1 are in every fit. A fold without
        weight outside it is left out.

    Yields
    ------
    held : ndarray of bool, shape (n,)
    coef : ndarray of shape (A, T, d)
    intercept : ndarray of shape (A, T)
    """
    masks = [fold == k for k in range(int(fold.max(initial=-1)) + 1)]
    masks = [held for held in masks if weight[~held].any()]
    if not masks:
        return
    if any((weight[~held] > 0).sum() < X.shape[1] for held in masks):
        for held in masks:
            yield held, *ridge_path(X, Y, np.where(held, 0, weight), alphas)
        return
    middle = X.mean(axis=0, dtype=np.float64)
    whole = _moments(X, Y, weight, fold < 0, middle)
    parts = [_moments(X, Y, weight, held, middle) for held in masks]
    total = [sum(each, start=first) for first, *each in zip(whole, *parts, strict=True)]
    for held, part in zip(masks, parts, strict=True):
        gram, cross, features, targets, size = (a - b for a, b in zip(total, part, strict=True))
        mean, level = features / size, targets / size
        values, vectors = eigh(gram - np.outer(features, mean), driver="evd")
        right = vectors.T @ (cross - np.outer(features, level))
        yield held, *_rescaled(vectors, values, right, alphas, mean + middle, level)


def _moments(
    X: NDArray[np.floating[Any]],
    Y: NDArray[np.float64],
    weight: NDArray[np.float64],
    rows: NDArray[np.bool_],
    middle: NDArray[np.float64],
) -> list[Any]:
    """Return the weighted sums of x x', x y', x, y and 1 over some rows, x from the middle."""
    rows = rows & (weight > 0)
    share, features, targets = weight[rows], X[rows] - middle, Y[rows]
    weighted = features if (share == 1).all() else features * share[:, None]
    return [weighted.T @ features, weighted.T @ targets, weighted.sum(axis=0), share @ targets, share.sum()]


def _rescaled(
    left: NDArray[np.float64],
    values: NDArray[np.float64],
    right: NDArray[np.float64],
    alphas: NDArray[np.float64],
    mean: NDArray[np.float64],
    level: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the weights and intercepts of every penalty."""
    shrunk = right / (np.maximum(values, 0)[:, None] + alphas[:, None, None])
    coef = np.swapaxes(left @ shrunk, 1, 2)
    return coef, level - coef @ mean
