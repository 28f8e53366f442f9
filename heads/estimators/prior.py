"""The prior: always the share of each class, or the mean, of the training rows; what a head must beat to be one."""

from __future__ import annotations

import numpy as np
from sklearn.utils import Tags

from heads.base import ClassifierHead, ClassWeight, Floats, RegressorHead, SearchSpace, Training


class PriorClassifier(ClassifierHead):
    """Answers the shares of the training labels whatever the features, per label for multilabel.

    Parameters
    ----------
    standardize, class_weight
        As for the other heads; ``balanced`` makes all classes equally likely.

    Attributes
    ----------
    share_
        Weighted share of each class (C,), or of the positives of each label (T,).
    """

    name = "prior"

    def __init__(self, *, standardize: bool = False, class_weight: ClassWeight = None) -> None:
        self.standardize = standardize
        self.class_weight = class_weight

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.poor_score = True
        return tags

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return nothing: there is nothing to search."""
        return {}

    def _fit(self, training: Training) -> None:
        if training.kind == "multilabel":
            self.share_ = (training.weight * training.y).sum(axis=0) / training.weight.sum(axis=0)
        else:
            totals = np.bincount(training.y, weights=training.weight, minlength=training.classes)
            self.share_ = totals / totals.sum()

    def _predict_proba(self, X: Floats) -> Floats:
        return np.tile(self.share_, (len(X), 1))


class PriorRegressor(RegressorHead):
    """Answers the mean of the training values whatever the features, per target.

    Parameters
    ----------
    standardize
        As for the other heads.

    Attributes
    ----------
    average_
        Weighted mean of each target, shape (T,).
    """

    name = "prior"

    def __init__(self, *, standardize: bool = False) -> None:
        self.standardize = standardize

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = True
        return tags

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return nothing: there is nothing to search."""
        return {}

    def _fit(self, training: Training) -> None:
        self.average_ = (training.weight * training.y).sum(axis=0) / training.weight.sum(axis=0)

    def _predict(self, X: Floats) -> Floats:
        return np.tile(self.average_, (len(X), 1))


HEADS = (PriorClassifier, PriorRegressor)
