"""Grid search of support vector classifiers: what `GridSearchCV(SVC(), ...)` computes, with the kernels shared.

scikit-learn computes the inner products anew for every cell; here they are made once, each kernel once for all
folds and values of C. Points are in the order of `sklearn.model_selection.ParameterGrid`, and the
first of equally good ones wins, as there. Kernel values differ from libsvm's in the last digits, and libsvm
stops at a tolerance of 1e-3: a row on the very border of two classes may fall on its other side.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
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
    # libsvm takes the rows class by class anyway; in that order it reads the kernel from end to end.
    order = np.argsort(y, kind="stable")
    order = order[weight[order] > 0]
    parts = [[order[rows[order]] for rows in (fold != k, fold == k)] for k in range(scores.shape[1])]
    usable = [k for k, (learned, held) in enumerate(parts) if len(np.unique(y[learned])) > 1 and len(held)]
    for kernel, gamma in dict.fromkeys(_kernel(point) for point in points):
        alike = [place for place, point in enumerate(points) if _kernel(point) == (kernel, gamma)]
        made, values = float("nan"), np.empty((0, 0))
        for k in usable:
            learned, held = parts[k]
            needed = resolve_gamma(gamma, kernels.X[learned])
            if needed != made:  # "scale" is another number in each fold
                made, values = needed, kernels.of(kernel, needed)
            own, across = values[np.ix_(learned, learned)], values[np.ix_(held, learned)]
            for C in dict.fromkeys(points[place].C for place in alike):
                same = [place for place in alike if points[place].C == C]
                scores[same, k] = _accuracy(C, own, y[learned], weight[learned], across, y[held])
    return scores


def _accuracy(
    C: float,
    own: NDArray[np.float64],
    y: NDArray[Any],
    weight: NDArray[np.float64],
    across: NDArray[np.float64],
    truth: NDArray[Any],
) -> float:
    """Return the share of held-out rows that a machine answers right, from kernel values, which are finite."""
    with config_context(assume_finite=True, skip_parameter_validation=True):
        machine = SVC(C=C, kernel="precomputed").fit(own, y, weight)
        return float((machine.predict(across) == truth).mean())


def best_point(scores: NDArray[np.float64], points: Sequence[Point] = GRID) -> Point | None:
    """Return the first point of the highest mean accuracy over folds, or None if there is no score at all."""
    known = ~np.isnan(scores).any(axis=0)
    if not known.any():
        return None
    return points[int(np.average(scores[:, known], axis=1).argmax())]


def _kernel(point: Point) -> tuple[Kernel, float | str]:
    """Return what the kernel of a point depends on."""
    return point.kernel, "auto" if point.kernel == "linear" else point.gamma
