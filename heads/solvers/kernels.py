"""Kernel values of all pairs of rows: one product for every kernel and every gamma."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kernel = Literal["rbf", "linear"]


def resolve_gamma(gamma: float | str, X: NDArray[Any]) -> float:
    """Return gamma as a number, as scikit-learn does: ``scale`` is 1 / (d x variance of X), ``auto`` is 1 / d."""
    if not isinstance(gamma, str):
        return float(gamma)
    spread = float(X.var(dtype=np.float64)) if gamma == "scale" else 1.0
    return float(1 / (X.shape[1] * (spread or 1.0)))


def kernel_values(
    products: NDArray[np.float64],
    left: NDArray[np.float64],
    right: NDArray[np.float64],
    kernel: Kernel,
    gamma: float,
) -> NDArray[np.float64]:
    """Turn inner products into kernel values, in place.

    Parameters
    ----------
    products
        Inner products of rows a and b, shape (a, b).
    left, right
        The squared lengths of the rows, shapes (a,) and (b,).
    kernel, gamma
        ``rbf``, exp(-gamma |a - b|^2), or ``linear``.
    """
    if kernel == "linear":
        return products
    products *= -2
    products += left[:, None]
    products += right
    np.maximum(products, 0, out=products)
    products *= -gamma
    return np.exp(products, out=products)


class Kernels:
    """The inner products of some rows, made once, and any kernel of them.

    Parameters
    ----------
    X
        Rows, shape (n, d).

    Notes
    -----
    The products take 8 n^2 bytes for as long as the object lives, and `of` as much again.
    """

    def __init__(self, X: NDArray[Any]) -> None:
        self.X = X
        rows = X.astype(np.float64, copy=False)
        self.products: NDArray[np.float64] = rows @ rows.T
        self.squares = self.products.diagonal().copy()

    def of(self, kernel: Kernel, gamma: float) -> NDArray[np.float64]:
        """Return kernel values of all rows with all, shape (n, n); a new array."""
        return kernel_values(self.products.copy(), self.squares, self.squares, kernel, gamma)
