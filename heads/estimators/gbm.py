"""Gradient-boosted trees (LightGBM) on few bins and few features per tree, as suits embeddings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import lightgbm as lgb
import numpy as np
from annotated_types import Ge, Interval
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from heads.base import (
    ClassifierHead,
    ClassWeight,
    Count,
    Floats,
    Fraction,
    Head,
    HeadState,
    NotNegative,
    Positive,
    Range,
    RegressorHead,
    SearchSpace,
    Training,
)
from heads.training.members import Course, center_and_spread, inner_splits, mean_history

Share = Annotated[float, Interval(gt=0, le=1)]
AtLeastTwo = Annotated[int, Ge(2)]

FEATURES_PER_TREE = 20
"""At least so many features are tried for a tree where `feature_fraction` is ``auto``."""
SMALLEST_FRACTION = 0.05

_REGRESSION_LOSSES = {"mse": "regression", "mae": "regression_l1", "huber": "huber"}

# LightGBM writes to stdout by itself; whatever it has to say goes where the application's log goes.
lgb.register_logger(logging.getLogger("lightgbm"))


class _BoostedHead(Head):
    """What the two heads share: the parameters of the trees, and one boosting per target and member.

    Attributes
    ----------
    models_
        LightGBM's text of each model: all members of the first target, then of the second, and so on.
    best_rounds_
        Number of rounds kept of each model.
    history_
        ``train_loss`` and ``monitor_loss`` after every round, means over the models; one that has
        stopped counts as it is kept.
    """

    learning_rate: float
    num_leaves: int
    min_leaf: int
    l2: float
    feature_fraction: float | str
    max_bin: int
    max_rounds: int
    patience: int
    validation_fraction: float
    members: int
    random_state: int

    name = "gbm"

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {
            "learning_rate": Range(0.02, 0.3, log=True),
            "num_leaves": Range(3, 31, log=True),
            "min_leaf": Range(2, 40, log=True),
            "l2": Range(0.1, 100.0, log=True),
            "feature_fraction": Range(0.01, 1.0, log=True),
        }

    @property
    def feature_importances_(self) -> NDArray[np.float64]:
        """Share of each feature in the total gain of all splits, shape (d,); all 0 if nothing was split."""
        check_is_fitted(self)
        gain = np.sum([model.feature_importance("gain") for model in self._boosters], axis=0)
        share: NDArray[np.float64] = gain / max(gain.sum(), np.finfo(np.float64).tiny)
        return share

    def get_state(self) -> HeadState:
        """Return everything learned; the models as texts."""
        state = super().get_state()
        models = state.meta.pop("models_", [])
        return replace(state, texts={f"model-{i:04d}.txt": text for i, text in enumerate(models)})

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: HeadState) -> Self:
        """Return the fitted head that `get_params` and `get_state` described."""
        head = super().from_state(params, state)
        head._keep([state.texts[name] for name in sorted(state.texts)])
        return head

    def _keep(self, models: list[str]) -> None:
        self.models_ = models
        self._boosters = [lgb.Booster(model_str=text) for text in models]

    def _boost(self, training: Training, y: NDArray[Any], weight: NDArray[np.float64], **settings: Any) -> None:
        """Fit all members of all targets, the columns of `y`, on features that are binned once."""
        monitors = inner_splits(
            self, training, fraction=self.validation_fraction, members=self.members, seed=self.random_state
        )
        params = self._parameters(training.X.shape[1]) | settings
        binned = lgb.Dataset(training.X, params=params, free_raw_data=False).construct()
        models, courses = [], []
        for values, known in zip(y.T, weight.T, strict=True):
            for member, monitor in enumerate(monitors):
                parts = [_part(binned, values, known, (known > 0) & held) for held in (~monitor, monitor)]
                text, course = self._boost_one(params | {"seed": self._seed(member)}, parts)
                models.append(text)
                courses.append(course)
        self._keep(models)
        self.best_rounds_ = [course.best + 1 for course in courses]
        self.history_ = mean_history(courses)

    def _boost_one(self, params: dict[str, Any], parts: list[lgb.Dataset | None]) -> tuple[str, Course]:
        """Return one model, cut at its best round, and the way there."""
        train, monitor = parts
        losses: dict[str, dict[str, list[float]]] = {}
        callbacks = [lgb.record_evaluation(losses)]
        if monitor is not None:
            callbacks.append(lgb.early_stopping(self.patience, verbose=False))
        sets = {"train": train} | ({} if monitor is None else {"monitor": monitor})
        model = lgb.train(
            params,
            train,
            num_boost_round=self.max_rounds,
            valid_sets=list(sets.values()),
            valid_names=list(sets),
            callbacks=callbacks,
        )
        rounds = model.best_iteration if monitor is not None else model.current_iteration()
        series: dict[str, Sequence[float | None]] = {f"{name}_loss": next(iter(losses[name].values())) for name in sets}
        series.setdefault("monitor_loss", [None] * len(series["train_loss"]))
        return model.model_to_string(num_iteration=rounds), Course(series, rounds - 1)

    def _parameters(self, features: int) -> dict[str, Any]:
        fraction = self.feature_fraction
        if fraction == "auto":
            fraction = min(1.0, max(SMALLEST_FRACTION, FEATURES_PER_TREE / features))
        return {
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_data_in_leaf": self.min_leaf,
            "lambda_l2": self.l2,
            "feature_fraction": fraction,
            "max_bin": self.max_bin,
            # The bins are shared by targets and members, so no feature is dropped for the sake of one of them.
            "feature_pre_filter": False,
            # Fits run side by side, one per core; by columns, unused features cost nothing.
            "num_threads": 1,
            "force_col_wise": True,
            "deterministic": True,
            "verbosity": -1,
        }

    def _seed(self, member: int) -> int:
        return int(np.random.SeedSequence([self.random_state, member]).generate_state(1)[0] >> 1)

    def _outputs(self, X: Floats) -> NDArray[np.float64]:
        """Return the members' mean prediction of each target, shape (T, n) or (T, n, C)."""
        outputs = np.stack([model.predict(X) for model in self._boosters])
        means: NDArray[np.float64] = outputs.reshape(-1, self.members, *outputs.shape[1:]).mean(axis=1)
        return means


class GBMClassifier(_BoostedHead, ClassifierHead):
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
    Bin edges are those of all training rows, the inner split included.
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

    def _fit(self, training: Training) -> None:
        settings: dict[str, Any] = {"objective": "binary"}
        if training.kind == "multiclass":
            settings = {"objective": "multiclass", "num_class": training.classes}
        n = len(training.y)
        self._boost(training, training.y.reshape(n, -1), training.weight.reshape(n, -1), **settings)

    def _predict_proba(self, X: Floats) -> Floats:
        outputs = self._outputs(X)
        if self.kind_ == "multiclass":
            return np.asarray(outputs[0])
        positive = outputs.T
        return np.hstack([1 - positive, positive]) if self.kind_ == "binary" else positive


class GBMRegressor(_BoostedHead, RegressorHead):
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

    def _fit(self, training: Training) -> None:
        self.center_, self.spread_ = center_and_spread(training)
        y = (training.y - self.center_) / self.spread_
        self._boost(training, y, training.weight, objective=_REGRESSION_LOSSES[self.loss], alpha=self.huber_delta)

    def _predict(self, X: Floats) -> Floats:
        values: Floats = self._outputs(X).T * self.spread_ + self.center_
        return values


HEADS = (GBMClassifier, GBMRegressor)


def _part(
    binned: lgb.Dataset, values: NDArray[Any], weight: NDArray[np.float64], rows: NDArray[np.bool_]
) -> lgb.Dataset | None:
    """Return some rows of binned features with the labels and weights of one target; None for no rows."""
    chosen = np.flatnonzero(rows)
    if not len(chosen):
        return None
    # Labels given before the subset is constructed are lost.
    return binned.subset(chosen).construct().set_label(values[chosen]).set_weight(weight[chosen])
