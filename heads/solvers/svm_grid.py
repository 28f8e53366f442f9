"""Grid search of support vector classifiers: what `GridSearchCV(SVC(), ...)` computes, with the kernels shared.

scikit-learn computes the inner products anew for every cell; here they are made once, each kernel once
per fold, and values of C share it. Points are in the order of `sklearn.model_selection.ParameterGrid`, and the
first of equally good ones wins, as there. Kernel values differ from libsvm's in the last digits, and libsvm
stops at a tolerance of 1e-3: a row on the very border of two classes may fall on its other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.svm import SVC

from heads.solvers.kernels import Kernel, Kernels, resolve_gamma


class Point(NamedTuple):
    """One point of the grid, as `SVC` takes it."""

    C: float
    gamma: float | str
    kernel: Kernel


def grid(Cs: Sequence[float], gammas: Sequence[float | str], kernels: Sequence[Kernel]) -> tuple[Point, ...]:
    """Return all points in the order of scikit-learn."""
    return tuple(Point(*values) for values in product(Cs, gammas, kernels))


GRID = grid((0.1, 1.0, 10.0, 100.0), ("scale", "auto", 0.1, 0.01), ("linear", "rbf"))
"""32 points of which 20 differ: ``linear`` does not use gamma."""


def grid_accuracies(
    kernels: Kernels,
    y: NDArray[Any],
    weight: NDArray[np.float64],
    fold: NDArray[np.int64],
    points: Sequence[Point] = GRID,
) -> NDArray[np.float64]:
    """Return the accuracy of each point on each held-out fold.

    Parameters
    ----------
    kernels
        The rows, n of them.
    y
        Labels, shape (n,).
    weight
        Weights of the rows in the fit, shape (n,); rows without weight are neither learned from nor scored.
    fold
        The fold that each row is held out of, shape (n,); rows with -1 are in every fit.
    points
        What to try.

    Returns
    -------
    ndarray of shape (points, folds)
        NaN for a fold outside which there is one class.
    """
    scores = np.full((len(points), int(fold.max()) + 1), np.nan)
    for k in range(scores.shape[1]):
        learned, held = (np.flatnonzero(rows & (weight > 0)) for rows in (fold != k, fold == k))
        if len(np.unique(y[learned])) < 2 or not len(held):
            continue
        for kernel, gamma in dict.fromkeys(_kernel(point) for point in points):
            value = resolve_gamma(gamma, kernels.X[learned])
            own = kernels.of(kernel, value, learned, learned)
            across = kernels.of(kernel, value, held, learned)
            for C in dict.fromkeys(point.C for point in points if _kernel(point) == (kernel, gamma)):
                machine = SVC(C=C, kernel="precomputed").fit(own, y[learned], weight[learned])
                accuracy = float((machine.predict(across) == y[held]).mean())
                same = [p for p, point in enumerate(points) if point.C == C and _kernel(point) == (kernel, gamma)]
                scores[same, k] = accuracy
    return scores


def best_point(scores: NDArray[np.float64], points: Sequence[Point] = GRID) -> Point | None:
    """Return the first point of the highest mean accuracy over folds, or None if there is no score at all."""
    known = ~np.isnan(scores).any(axis=0)
    if not known.any():
        return None
    return points[int(np.average(scores[:, known], axis=1).argmax())]


def _kernel(point: Point) -> tuple[Kernel, float | str]:
    """Return what the kernel of a point depends on."""
    return point.kernel, "auto" if point.kernel == "linear" else point.gamma
