"""Nearest class mean: one prototype per class, or two per label, in closed form; at home with few samples."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

from heads.base import Choice, ClassifierHead, ClassWeight, Floats, Fraction, Positive, Range, SearchSpace, Training

Metric = Literal["cosine", "euclidean"]
TINY = 1e-12


class PrototypeClassifier(ClassifierHead):
    """Probability of each class by the squared distance to its mean, weighed by how common the class is.

    The classes are taken as round clouds of one width s around their means m_c:
    p(c | x) is proportional to p(c) exp(-|x - m_c|^2 / (2 s^2)). A label of a multilabel task has two clouds, of the
    rows with it and without it.

    Parameters
    ----------
    metric
        ``cosine`` puts rows and means on the unit sphere first; ``euclidean`` takes them as they are.
    shrinkage
        How far each mean is drawn towards the mean of all rows: 0 not at all, 1 would be all the way.
    width
        s; ``auto`` is the deviation of the training rows from their class means in the directions in which the means
        differ, the only ones that matter.
    standardize
        Whether to centre and scale the features by the training rows.
    class_weight
        None, or ``balanced``: all classes are taken as equally common.

    Attributes
    ----------
    means_
        Shape (C, d); of multilabel tasks (T, 2, d), without and with the label.
    log_share_
        Logarithm of the share of each class in the training weight, shape (C,) or (T, 2).
    width_
        s, shape () or (T,).
    """

    name = "prototype"

    def __init__(
        self,
        *,
        metric: Metric = "cosine",
        shrinkage: Fraction = 0.0,
        width: Positive | Literal["auto"] = "auto",
        standardize: bool = True,
        class_weight: ClassWeight = None,
    ) -> None:
        self.metric = metric
        self.shrinkage = shrinkage
        self.width = width
        self.standardize = standardize
        self.class_weight = class_weight

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {
            "metric": Choice(("cosine", "euclidean")),
            "shrinkage": Range(0.0, 0.9),
            "standardize": Choice((True, False)),
        }

    def _fit(self, training: Training) -> None:
        rows = self._placed(training.X)
        if training.kind == "multilabel":
            columns = range(training.y.shape[1])
            clouds = [self._clouds(rows, training.y[:, t], training.weight[:, t], 2) for t in columns]
        else:
            clouds = [self._clouds(rows, training.y, training.weight, training.classes)]
        means, log_share, width = (np.stack(parts) for parts in zip(*clouds, strict=True))
        single = training.kind != "multilabel"
        self.means_ = means[0] if single else means
        self.log_share_ = log_share[0] if single else log_share
        self.width_ = width[0] if single else width

    def _clouds(
        self, rows: NDArray[np.float64], codes: NDArray[Any], weight: NDArray[np.float64], classes: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return means (C, d), logarithms of the shares (C,) and the width of the clouds of some classes."""
        member = np.eye(classes)[codes.astype(np.int64)] * weight[:, None]
        total = member.sum(axis=0)
        means = (member / total).T @ rows
        means += self.shrinkage * (weight @ rows / weight.sum() - means)
        means = self._placed(means)
        if self.width != "auto":
            return means, np.log(total / total.sum()), np.array(float(self.width))
        _, strength, directions = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
        # Of C points the differences span C - 1 directions; fewer where means lie on a line or coincide.
        directions = directions[strength > TINY * max(1.0, strength[0])]
        away = (rows - means[codes.astype(np.int64)]) @ directions.T
        # Means that coincide tell nothing at any width; rows that sit on their means tell all at the smallest.
        variance = weight @ np.square(away).mean(axis=1) / weight.sum() if len(directions) else 1.0
        return means, np.log(total / total.sum()), np.array(np.sqrt(max(variance, TINY)))

    def _placed(self, X: Floats) -> NDArray[np.float64]:
        """Return rows where distance is Euclidean: of unit length for cosine, a zero row as it is."""
        rows = X.astype(np.float64)
        if self.metric == "euclidean":
            return rows
        placed: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), TINY)
        return placed

    def _predict_proba(self, X: Floats) -> Floats:
        rows = self._placed(X)
        # |x|^2 is the same for all classes and left out.
        closeness = rows @ np.swapaxes(self.means_, -1, -2) - np.square(self.means_).sum(axis=-1)[..., None, :] / 2
        if self.kind_ != "multilabel":
            return np.asarray(softmax(closeness / self.width_**2 + self.log_share_, axis=1))
        logits = (closeness[..., 1] - closeness[..., 0]) / self.width_[:, None] ** 2
        return np.asarray(expit(logits + (self.log_share_[:, 1] - self.log_share_[:, 0])[:, None])).T


HEADS = (PrototypeClassifier,)
