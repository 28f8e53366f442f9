"""Gradient-boosted trees (LightGBM) on few bins and few features per tree, as suits embeddings."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import lightgbm as lgb
import numpy as np
from annotated_types import Ge, Interval

from heads.base import (
    ClassifierHead,
    ClassWeight,
    Count,
    Floats,
    Fraction,
    NotNegative,
    Positive,
    RegressorHead,
    Training,
)
from heads.estimators._gbm import BoostedHead
from heads.training.members import center_and_spread

Share = Annotated[float, Interval(gt=0, le=1)]
AtLeastTwo = Annotated[int, Ge(2)]

_REGRESSION_LOSSES = {"mse": "regression", "mae": "regression_l1", "huber": "huber"}


class GBMClassifier(BoostedHead, ClassifierHead):
    """Boosted trees: softmax over classes, and one model per label for multilabel.

    Parameters
    ----------
    learning_rate
        Shrinkage of each tree.
    num_leaves, min_leaf
        Leaves of a tree at most, rows in a leaf at least.
    l2
        Penalty on the values of leaves.
    feature_fraction
        Share of the features tried for a tree; ``auto`` is 0.05 but at least 20 features.
    max_bin
        Bins per feature.
    max_rounds, patience
        Rounds at most; boosting stops after `patience` rounds without a better loss on the inner split.
    validation_fraction
        Share of the training rows set aside as the inner split, stratified and without splitting
        groups; 0 runs all rounds on all rows.
    members
        Number of models per target, each with an inner split and a seed of its own; their
        probabilities are averaged.
    standardize
        Whether to centre and scale the features by the training rows; trees hardly care.
    class_weight
        None or ``balanced``.
    random_state
        Seed of the inner splits and of the features tried.

    Attributes
    ----------
    models_
        LightGBM's text of each model: all members of the first label, then of the second, and so on.
    best_rounds_
        Number of rounds kept of each model.
    history_
        ``train_loss`` and ``monitor_loss`` after every round, means over the models; one that has
        stopped counts as it is kept.

    Notes
    -----
    Bin edges are quantiles of the features of the training rows, the inner split included. Rows that are held out
    of a fit have no say in them, nor in when it stops: folds are binned and stopped each by itself. Fits to the
    same rows, such as the trials of a study on one fold, share the bins, and equal those fitted alone.
    """

    def __init__(
        self,
        *,
        learning_rate: Positive = 0.1,
        num_leaves: AtLeastTwo = 7,
        min_leaf: Count = 10,
        l2: NotNegative = 10.0,
        feature_fraction: Share | Literal["auto"] = "auto",
        max_bin: AtLeastTwo = 63,
        max_rounds: Count = 1000,
        patience: Count = 30,
        validation_fraction: Fraction = 0.2,
        members: Count = 5,
        standardize: bool = False,
        class_weight: ClassWeight = None,
        random_state: int = 0,
    ) -> None:
        self.learning_rate = learning_rate
        self.num_leaves = num_leaves
        self.min_leaf = min_leaf
        self.l2 = l2
        self.feature_fraction = feature_fraction
        self.max_bin = max_bin
        self.max_rounds = max_rounds
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.members = members
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state

    def _learn(self, training: Training, bins: lgb.Dataset) -> None:
        settings: dict[str, Any] = {"objective": "binary"}
        if training.kind == "multiclass":
            settings = {"objective": "multiclass", "num_class": training.classes}
        n = len(training.y)
        self._boost(training, bins, training.y.reshape(n, -1), training.weight.reshape(n, -1), **settings)

    def _predict_proba(self, X: Floats) -> Floats:
        outputs = self._outputs(X)
        if self.kind_ == "multiclass":
            return np.asarray(outputs[0])
        positive = outputs.T
        return np.hstack([1 - positive, positive]) if self.kind_ == "binary" else positive


class GBMRegressor(BoostedHead, RegressorHead):
    """Boosted trees, one model per target; missing values are left out, per target.

    Parameters
    ----------
    loss
        ``mse``, ``mae`` or ``huber``.
    huber_delta
        Where the Huber loss turns from square to linear, in standard deviations of the target.
    learning_rate, num_leaves, min_leaf, l2, feature_fraction, max_bin
        The trees, as for `GBMClassifier`.
    max_rounds, patience, validation_fraction, members, standardize, random_state
        As for `GBMClassifier`.

    Attributes
    ----------
    center_, spread_
        Mean and standard deviation of each target over the training rows, shape (T,).
    models_, best_rounds_, history_
        As for `GBMClassifier`; losses are those of standardised targets.
    """

    def __init__(
        self,
        *,
        loss: Literal["mse", "mae", "huber"] = "mse",
        huber_delta: Positive = 1.0,
        learning_rate: Positive = 0.1,
        num_leaves: AtLeastTwo = 7,
        min_leaf: Count = 10,
        l2: NotNegative = 10.0,
        feature_fraction: Share | Literal["auto"] = "auto",
        max_bin: AtLeastTwo = 63,
        max_rounds: Count = 1000,
        patience: Count = 30,
        validation_fraction: Fraction = 0.2,
        members: Count = 5,
        standardize: bool = False,
        random_state: int = 0,
    ) -> None:
        self.loss = loss
        self.huber_delta = huber_delta
        self.learning_rate = learning_rate
        self.num_leaves = num_leaves
        self.min_leaf = min_leaf
        self.l2 = l2
        self.feature_fraction = feature_fraction
        self.max_bin = max_bin
        self.max_rounds = max_rounds
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.members = members
        self.standardize = standardize
        self.random_state = random_state

    def _learn(self, training: Training, bins: lgb.Dataset) -> None:
        self.center_, self.spread_ = center_and_spread(training)
        y = (training.y - self.center_) / self.spread_
        self._boost(training, bins, y, training.weight, objective=_REGRESSION_LOSSES[self.loss], alpha=self.huber_delta)

    def _predict(self, X: Floats) -> Floats:
        values: Floats = self._outputs(X).T * self.spread_ + self.center_
        return values


HEADS = (GBMClassifier, GBMRegressor)
