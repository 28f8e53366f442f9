"""Nearest neighbours by cosine similarity or Euclidean distance: nothing to train, a baseline that is hard to fool."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from heads.base import (
    Choice,
    ClassifierHead,
    ClassWeight,
    Count,
    Floats,
    Head,
    Range,
    RegressorHead,
    SearchSpace,
    Training,
)

Metric = Literal["cosine", "euclidean"]
Weights = Literal["uniform", "distance"]

BLOCK = 256
"""Rows compared with all training rows at once."""


class _KNNHead(Head):
    """What the two heads share: the votes of the nearest rows that know the target.

    Attributes
    ----------
    rows_
        Training rows, standardised, of unit length for cosine; shape (n, d).
    votes_
        What each row says: one-hot classes (n, C), or values (n, T).
    weight_
        How much it says so, shape (n, 1) or (n, T); 0 where the value is missing.
    """

    k: int
    metric: Metric
    weights: Weights

    name = "knn"
    kept_rows = frozenset({"rows_", "votes_", "weight_"})

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {
            "k": Range(1, 50, log=True),
            "metric": Choice(("cosine", "euclidean")),
            "weights": Choice(("uniform", "distance")),
        }

    def _keep(self, X: Floats, votes: NDArray[np.float64], weight: NDArray[np.float64]) -> None:
        self.rows_ = self._placed(X)
        self.votes_ = votes
        self.weight_ = weight

    def _placed(self, X: Floats) -> Floats:
        """Return rows where distance is Euclidean: scaled to unit length for cosine, a zero row as it is."""
        if self.metric == "euclidean":
            return X
        length = np.linalg.norm(X, axis=1, keepdims=True)
        unit: Floats = X / np.where(length > 0, length, 1).astype(X.dtype)
        return unit

    def _means(self, X: Floats) -> NDArray[np.float64]:
        """Return the weighted mean of the neighbours' votes, shape (n, C) or (n, T)."""
        placed, lengths = self._placed(X), np.square(self.rows_).sum(axis=1)
        known = self.weight_ > 0
        # One search serves all targets, unless some rows know only some of them.
        searches = [np.ones(len(known), dtype=bool)] if known.all() else list(known.T)
        means = np.empty((len(X), self.votes_.shape[1]))
        for start in range(0, len(X), BLOCK):
            block = placed[start : start + BLOCK]
            squares = lengths - 2 * (block @ self.rows_.T)  # + |x|^2, which orders nothing
            for target, candidates in enumerate(searches):
                columns = slice(None) if len(searches) == 1 else slice(target, target + 1)
                means[start : start + BLOCK, columns] = self._vote(block, squares, np.flatnonzero(candidates), columns)
        return means

    def _vote(
        self, block: Floats, squares: Floats, candidates: NDArray[np.intp], columns: slice
    ) -> NDArray[np.float64]:
        """Return the weighted mean of the votes of the k nearest candidates; of all if there are fewer."""
        k = min(self.k, len(candidates))
        nearest = candidates[np.argpartition(squares[:, candidates], k - 1, axis=1)[:, :k]]
        votes, strength = self.votes_[nearest][:, :, columns], self.weight_[nearest]
        strength = strength if strength.shape[2] == 1 else strength[:, :, columns]
        if self.weights == "distance":
            # The differences are taken anew: an expanded square has no digits left between near rows.
            gaps = np.linalg.norm(np.subtract(block[:, None], self.rows_[nearest], dtype=np.float64), axis=2)
            touching = gaps <= 1e-6 * np.linalg.norm(block, axis=1, keepdims=True)
            inverse = np.where(touching.any(axis=1, keepdims=True), touching, 1 / np.where(touching, 1, gaps))
            strength = strength * inverse[:, :, None]
        return np.asarray((strength * votes).sum(axis=1) / strength.sum(axis=1))


class KNNClassifier(_KNNHead, ClassifierHead):
    """Share of each class among the nearest training rows; per label for multilabel.

    Parameters
    ----------
    k
        Number of neighbours; rows whose label is missing are passed over.
    metric
        ``cosine`` or ``euclidean``.
    weights
        ``uniform``, or ``distance`` for votes in inverse proportion to the distance; rows at
        distance zero then decide alone.
    standardize
        Whether to centre and scale the features by the training rows.
    class_weight
        None or ``balanced``: votes of a class count in inverse proportion to its share.

    Attributes
    ----------
    rows_, votes_, weight_
        The training rows and their votes.
    """

    def __init__(
        self,
        *,
        k: Count = 15,
        metric: Metric = "cosine",
        weights: Weights = "distance",
        standardize: bool = True,
        class_weight: ClassWeight = None,
    ) -> None:
        self.k = k
        self.metric = metric
        self.weights = weights
        self.standardize = standardize
        self.class_weight = class_weight

    def _fit(self, training: Training) -> None:
        if training.kind == "multilabel":
            self._keep(training.X, training.y, training.weight)
        else:
            self._keep(training.X, np.eye(training.classes)[training.y], training.weight[:, None])

    def _predict_proba(self, X: Floats) -> Floats:
        return np.clip(self._means(X), 0, 1)


class KNNRegressor(_KNNHead, RegressorHead):
    """Mean of the nearest training rows.

    Parameters
    ----------
    k, metric, weights, standardize
        As for `KNNClassifier`; rows whose value is missing are passed over, per target.

    Attributes
    ----------
    rows_, votes_, weight_
        The training rows and their values.
    """

    def __init__(
        self, *, k: Count = 15, metric: Metric = "cosine", weights: Weights = "distance", standardize: bool = True
    ) -> None:
        self.k = k
        self.metric = metric
        self.weights = weights
        self.standardize = standardize

    def _fit(self, training: Training) -> None:
        self._keep(training.X, training.y, training.weight)

    def _predict(self, X: Floats) -> Floats:
        return self._means(X)


HEADS = (KNNClassifier, KNNRegressor)
