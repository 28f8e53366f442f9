"""Multiple instance learning: each bag of embeddings is pooled, by attention or otherwise, then a linear layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax

from heads.bag_views import coded, known_views
from heads.bags import Bags
from heads.base import (
    Choice,
    ClassifierHead,
    ClassWeight,
    Count,
    Floats,
    Fraction,
    Head,
    NotNegative,
    Positive,
    Range,
    RegressorHead,
    SearchSpace,
    Training,
)
from heads.errors import HeadError
from heads.losses import LossName
from heads.training.course import Schedule
from heads.training.members import Course, center_and_spread, inner_splits, mean_history
from heads.training.packed import Sampling, pass_through, train_on_bags
from heads.training.plan import Fold, Recipe, Regime
from heads.training.pooling import BagNetwork, Pooling

_REGRESSION_LOSSES: dict[str, LossName] = {"huber": "huber", "mse": "squared_error", "mae": "absolute_error"}


class _BagHead(Head):
    """What the two heads share: the constructor's network and training parameters, one fit, and the evidence."""

    pooling: Pooling
    hidden: int
    attention_heads: int
    instance_dropout: float
    max_instances: int | None
    max_parts: int | None
    dropout: float
    lr: float
    weight_decay: float
    bags_per_step: int
    max_epochs: int
    patience: int
    schedule: Schedule
    validation_fraction: float
    members: int
    random_state: int
    device: str

    name = "attention_mil"
    uses_torch = True
    accepts_bags = True
    accepts_views = True

    views_: list[str] | None = None  # bundles of before there were views hold none

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {
            "pooling": Choice(("mean", "max", "attention", "cls_token", "mean+cls_token", "attention+cls_token")),
            "instance_dropout": Range(0.0, 0.5),
            "dropout": Range(0.0, 0.7),
            "lr": Range(1e-4, 1e-2, log=True),
            "weight_decay": Range(1e-4, 1.0, log=True),
        }

    def attention(self, X: ArrayLike | Bags) -> NDArray[np.float64]:
        """Return how much each instance counts in its bag.

        Parameters
        ----------
        X
            Bags, or a matrix whose rows are bags of one.

        Returns
        -------
        ndarray of float64, shape (m,)
            Weights that sum to one over each bag, means over the members. Of ``max``, the share of the
            features taken from the instance; of ``cls_token``, the mean over its heads, without what goes to
            the token itself; of a hybrid, the mean of the two; with two levels, the product of the weight
            within the part and that of the part. 0 for instances beyond `max_instances` or `max_parts`.
        """
        bags = self._leveled(self._features(X))
        used = self._sampling.fixed(bags.with_values(np.arange(len(bags.values))[:, None]))
        weights = np.zeros(len(bags.values))
        at = used.values[:, 0]
        weights[at] = self._pass(used.with_values(bags.values[at]), "shares").mean(axis=0)
        return weights

    @property
    def _sampling(self) -> Sampling:
        return Sampling(at_most=self.max_instances, dropout=self.instance_dropout, parts=self.max_parts)

    def _network(self, outputs: int) -> BagNetwork:
        d = self.n_features_in_
        heads = max(count for count in range(1, min(self.attention_heads, d) + 1) if d % count == 0)
        return BagNetwork(
            inputs=d,
            outputs=outputs,
            pooling=self.pooling,
            hidden=self.hidden,
            heads=heads,
            levels=self.levels_,
            views=0 if self.views_ is None else 1 + len(self.views_),
        )

    def _train(self, training: Training, y: NDArray[Any], outputs: int, loss: LossName, recipe: Recipe) -> None:
        """Fit the members, and keep their weights and their history."""
        bags = cast("Bags", training.X)
        self.levels_ = 1 if bags.inner is None else 2
        if self.max_parts is not None and self.levels_ == 1:
            raise HeadError(f"{self.name}: max_parts={self.max_parts}: these bags have no parts; use max_instances")
        self.views_ = None if bags.views is None else known_views(bags.views)
        bags = coded(bags, self.views_)
        monitors = inner_splits(
            self, training, fraction=self.validation_fraction, members=self.members, seed=self.random_state
        )
        recipe = replace(
            recipe, seed=self.random_state, lr=self.lr, weight_decay=self.weight_decay, dropout=self.dropout
        )
        regime = Regime(
            loss=loss,
            batch_size=self.bags_per_step,
            max_epochs=self.max_epochs,
            patience=self.patience,
            schedule=self.schedule,
        )
        trained = [
            train_on_bags(
                self._network(outputs),
                bags,
                y,
                fold=Fold(
                    train=np.flatnonzero(~monitor),
                    monitor=np.flatnonzero(monitor),
                    weight=training.weight,
                    number=member,
                ),
                recipe=recipe,
                regime=regime,
                sampling=self._sampling,
                device=self.device,
            )
            for member, monitor in enumerate(monitors)
        ]
        self.weights_ = {name: np.stack([model.state[name] for model in trained]) for name in trained[0].state}
        self.best_epochs_ = [model.best_epoch for model in trained]
        self.history_ = mean_history([Course(model.history, model.best_epoch) for model in trained])

    def _logits(self, X: Floats) -> NDArray[np.float64]:
        """Return the logits of every member, shape (members, n, outputs)."""
        return self._pass(self._sampling.fixed(self._leveled(X)), "forward")

    def _pass(self, bags: Bags, what: Literal["forward", "shares"]) -> NDArray[np.float64]:
        network = self._network(self.weights_["logits.bias"].shape[1])
        return pass_through(network, self.weights_, bags, what, device=self.device).astype(np.float64)

    def _leveled(self, X: Floats) -> Bags:
        """Return the bags as the network takes them, refused unless they are like those of the fit."""
        bags = cast("Bags", X)
        levels = 1 if bags.inner is None else 2
        if levels != self.levels_:
            raise HeadError(f"{self.name}: fitted on bags of {self.levels_} levels, got bags of {levels}")
        if bags.views is not None and self.views_ is None:
            raise HeadError(f"{self.name}: fitted on bags without views, got bags with them")
        return coded(bags, self.views_)


class AttentionMILClassifier(_BagHead, ClassifierHead):
    """Pooling of bags, then softmax over classes, one sigmoid for two classes, one per label for multilabel.

    Parameters
    ----------
    pooling
        How a bag becomes one vector: ``mean``; ``max``; ``attention``, gated as by Ilse et al. [1]_;
        ``cls_token``, a learned token that attends to the instances; or two of these, joined. Bags of two
        levels are pooled within their parts, then across them. A
        learned vector of its view, where bags say what that is, is first added to what is pooled to the bag.
    hidden
        Width of the gated attention.
    attention_heads
        Attention heads of the class token; the greatest number up to it that divides the features' length.
    instance_dropout
        Share of the instances left out in an epoch of training; one of each bag always stays, and the
        weights of the others sum to one.
    max_instances
        Instances of a bag that are used at most: drawn each epoch in training, evenly spaced otherwise.
    max_parts
        The same of the parts of bags of two levels, such as the videos of a study.
    dropout
        Share of the pooled features dropped in training.
    label_smoothing
        ``e``: targets become ``(1 - e) y + e / C`` with C classes, 2 for labels.
    focal_gamma
        Above 0, the focal loss of that gamma; with class weights it corrects imbalance twice.
    lr, weight_decay
        Peak learning rate and decoupled weight decay of AdamW; biases and the token do not decay.
    bags_per_step
        Bags per step at most; an epoch is cut into equal steps.
    max_epochs, patience
        Epochs at most; training stops after `patience` epochs without a better loss on the inner split.
    schedule
        ``cosine`` with warm-up over `max_epochs`, ``restarts``, ``step``, ``plateau`` or ``constant``; see
        `heads.training.plan.Regime`.
    validation_fraction
        Share of the training bags set aside as the inner split, stratified and without splitting groups;
        0 runs all epochs on all bags.
    members
        Number of networks, each with an inner split and a seed of its own; their probabilities are averaged.
    standardize
        Whether to centre and scale the features by the training instances, each bag weighing the same. A
        bag without instances then counts as one of average features.
    class_weight
        None or ``balanced``.
    random_state
        Seed of the inner split, initial weights, instances, steps and dropout.
    device
        ``cpu``, ``cuda`` or ``cuda:i``.

    Attributes
    ----------
    levels_
        1, or 2 if the bags have parts.
    views_
        Names of the views that have a vector of their own; all others share one. None for bags without views.
    weights_
        Weights by name, each of shape (members, ...), from each member's best epoch.
    best_epochs_
        Those epochs, counted from 0.
    history_
        ``train_loss``, ``monitor_loss`` and ``lr`` of every epoch, means over the members; one that has
        stopped counts as it was at its best epoch.

    References
    ----------
    .. [1] Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018.
    """

    def __init__(
        self,
        *,
        pooling: Pooling = "attention",
        hidden: Count = 128,
        attention_heads: Count = 8,
        instance_dropout: Fraction = 0.1,
        max_instances: Count | None = None,
        max_parts: Count | None = None,
        dropout: Fraction = 0.25,
        label_smoothing: Fraction = 0.0,
        focal_gamma: NotNegative = 0.0,
        lr: Positive = 1e-3,
        weight_decay: NotNegative = 1e-2,
        bags_per_step: Count = 16,
        max_epochs: Count = 60,
        patience: Count = 8,
        schedule: Schedule = "cosine",
        validation_fraction: Fraction = 0.1,
        members: Count = 3,
        standardize: bool = True,
        class_weight: ClassWeight = None,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.pooling = pooling
        self.hidden = hidden
        self.attention_heads = attention_heads
        self.instance_dropout = instance_dropout
        self.max_instances = max_instances
        self.max_parts = max_parts
        self.dropout = dropout
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.lr = lr
        self.weight_decay = weight_decay
        self.bags_per_step = bags_per_step
        self.max_epochs = max_epochs
        self.patience = patience
        self.schedule = schedule
        self.validation_fraction = validation_fraction
        self.members = members
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def _fit(self, training: Training) -> None:
        loss: LossName = "cross_entropy" if training.kind == "multiclass" else "binary_cross_entropy"
        outputs = {"binary": 1, "multiclass": training.classes}.get(training.kind) or training.y.shape[1]
        self._train(training, training.y, outputs, loss, Recipe(smoothing=self.label_smoothing, gamma=self.focal_gamma))

    def _predict_proba(self, X: Floats) -> Floats:
        if self.kind_ == "multiclass":
            return np.asarray(softmax(self._logits(X), axis=-1).mean(axis=0))
        positive = expit(self._logits(X)).mean(axis=0)
        return np.hstack([1 - positive, positive]) if self.kind_ == "binary" else np.asarray(positive)


class AttentionMILRegressor(_BagHead, RegressorHead):
    """Pooling of bags, then one output per target; missing values are masked, per target.

    Targets are standardised for training, so the learning rate and `huber_delta` mean the same
    whatever the unit.

    Parameters
    ----------
    pooling, hidden, attention_heads, instance_dropout, max_instances, max_parts, dropout
        The network, as for `AttentionMILClassifier`.
    loss
        ``huber``, ``mse`` or ``mae``.
    huber_delta
        Where the Huber loss turns from square to linear, in standard deviations of the target.
    lr, weight_decay, bags_per_step, max_epochs, patience, schedule, validation_fraction, members
        The training, as for `AttentionMILClassifier`.
    standardize, random_state, device
        As for `AttentionMILClassifier`.

    Attributes
    ----------
    center_, spread_
        Mean and standard deviation of each target over the training bags, shape (T,).
    levels_, views_, weights_, best_epochs_, history_
        As for `AttentionMILClassifier`.
    """

    def __init__(
        self,
        *,
        pooling: Pooling = "attention",
        hidden: Count = 128,
        attention_heads: Count = 8,
        instance_dropout: Fraction = 0.1,
        max_instances: Count | None = None,
        max_parts: Count | None = None,
        dropout: Fraction = 0.25,
        loss: Literal["huber", "mse", "mae"] = "huber",
        huber_delta: Positive = 1.0,
        lr: Positive = 1e-3,
        weight_decay: NotNegative = 1e-2,
        bags_per_step: Count = 16,
        max_epochs: Count = 60,
        patience: Count = 8,
        schedule: Schedule = "cosine",
        validation_fraction: Fraction = 0.1,
        members: Count = 3,
        standardize: bool = True,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.pooling = pooling
        self.hidden = hidden
        self.attention_heads = attention_heads
        self.instance_dropout = instance_dropout
        self.max_instances = max_instances
        self.max_parts = max_parts
        self.dropout = dropout
        self.loss = loss
        self.huber_delta = huber_delta
        self.lr = lr
        self.weight_decay = weight_decay
        self.bags_per_step = bags_per_step
        self.max_epochs = max_epochs
        self.patience = patience
        self.schedule = schedule
        self.validation_fraction = validation_fraction
        self.members = members
        self.standardize = standardize
        self.random_state = random_state
        self.device = device

    def _fit(self, training: Training) -> None:
        self.center_, self.spread_ = center_and_spread(training)
        y = (training.y - self.center_) / self.spread_
        self._train(training, y, y.shape[1], _REGRESSION_LOSSES[self.loss], Recipe(delta=self.huber_delta))

    def _predict(self, X: Floats) -> Floats:
        values: Floats = self._logits(X).mean(axis=0) * self.spread_ + self.center_
        return values


HEADS = (AttentionMILClassifier, AttentionMILRegressor)
