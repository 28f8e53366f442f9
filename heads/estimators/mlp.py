"""Multilayer perceptron: small networks, each stopped on rows it does not learn from, and averaged."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy.special import expit, softmax

from heads.base import (
    Choice,
    ClassifierHead,
    ClassWeight,
    Count,
    Floats,
    Fraction,
    NotNegative,
    Positive,
    Range,
    RegressorHead,
    SearchSpace,
    Training,
)
from heads.batched import Architecture
from heads.errors import HeadError
from heads.estimators._network import Goal, NetworkHead, Sampler
from heads.losses import LossName
from heads.training.course import Schedule
from heads.training.members import center_and_spread
from heads.training.optimizer import Optimizer
from heads.training.perceptron import Activation, InputNorm, Norm, Order, Perceptron
from heads.training.plan import Recipe
from heads.training.precision import Precision

HiddenWidths = tuple[Count, ...]

_REGRESSION_LOSSES: dict[str, LossName] = {"huber": "huber", "mse": "squared_error", "mae": "absolute_error"}


class _PerceptronHead(NetworkHead):
    """What the two heads share: the constructor's network parameters."""

    hidden: tuple[int, ...]
    activation: Activation
    norm: Norm
    order: Order
    input_norm: InputNorm

    name = "mlp"

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {
            "hidden": Choice(((128,), (512,), (512, 256))),
            "dropout": Range(0.0, 0.7),
            "input_noise": Range(0.0, 0.5),
            "lr": Range(1e-4, 1e-2, log=True),
            "weight_decay": Range(1e-4, 1.0, log=True),
        }

    def _architecture(self, outputs: int) -> Architecture:
        return Perceptron(
            inputs=self.n_features_in_,
            outputs=outputs,
            hidden=tuple(self.hidden),
            activation=self.activation,
            norm=self.norm,
            order=self.order,
            logit_shifts=getattr(self, "logit_shifts", False),
            input_norm=self.input_norm,
        )


class MLPHeadClassifier(_PerceptronHead, ClassifierHead):
    """Perceptron with softmax over classes, one sigmoid for two classes, one per label for multilabel.

    One published baseline for findings on chest X-rays is reached by these parameters::

        hidden=512,256,128 order=linear-activation-norm norm=batch dropout=0.3 logit_shifts=true
        optimizer=adam lr=1e-3 weight_decay=1e-4 batch_size=32 max_epochs=50 patience=50 schedule=plateau
        members=1 standardize=false

    Another, one hidden layer behind a norm of the embedding as it is, by these::

        hidden=256 norm=none input_norm=layer dropout=0.5 members=1 standardize=false

    Several corrections of imbalance (`class_weight`, `pos_weight`, `sampler`, `focal_gamma`) add up, and
    the head says so.

    Parameters
    ----------
    hidden
        Widths of the hidden layers; empty for none.
    activation
        ``relu`` or ``gelu``.
    norm
        ``layer``, ``batch`` or ``none``.
    order
        What a hidden layer does before its dropout.
    dropout
        Share of hidden activations dropped in training.
    input_noise
        Standard deviation of Gaussian noise on the features in training, relative to that of each feature.
    input_norm
        ``layer`` brings each embedding to mean 0 and variance 1, then scales and shifts it by learned vectors.
    logit_shifts
        Whether a learned vector is subtracted from the logits. It can express nothing that the last
        bias cannot, but is part of published baselines.
    label_smoothing
        ``e``: targets become ``(1 - e) y + e / C`` with C classes, 2 for labels.
    focal_gamma
        Above 0, the focal loss of that gamma; its alpha is `class_weight`.
    pos_weight
        Of two classes or labels: factor of the loss of positives, ``balanced`` for negatives / positives
        among the training rows of each label, or None.
    sampler
        ``shuffle`` takes each row once per epoch; ``weighted`` draws as many rows with replacement, each
        class equally often; ``balanced`` does so in every batch, which holds the classes in equal shares as exactly
        as its size allows.
    lr, weight_decay
        Peak learning rate and weight decay.
    optimizer
        ``adamw``, whose decay is decoupled and spares biases and norms; ``adam``, or ``sgd`` with a
        momentum of 0.9, whose decay is a penalty of all weights in the gradient.
    clip_norm
        Gradients of a network that are longer than this are scaled down to it; None for as long as they are.
    batch_size
        Rows per step at most.
    max_epochs, patience
        Epochs at most; training stops after `patience` epochs without a better loss on the inner split.
    schedule
        ``cosine`` with warm-up over `max_epochs`, ``restarts``, ``step``, ``plateau`` or ``constant``; see
        `heads.training.plan.Regime`.
    plateau_factor
        What ``plateau`` multiplies the learning rate by when the loss on the inner split gets no better.
    validation_fraction
        Share of the training rows set aside as the inner split, stratified and without splitting
        groups; 0 runs all epochs on all rows.
    members
        Number of networks, each with an inner split and a seed of its own; their probabilities are
        averaged. On small data one network depends on a few rows that happen to decide when it stops.
    standardize
        Whether to centre and scale the features by the training rows.
    class_weight
        None or ``balanced``.
    precision
        ``fp32``, or ``bf16`` or ``fp16`` for matrix products in 16 bits while training.
    random_state
        Seed of the inner split, initial weights, batches, noise and dropout.
    device
        ``cpu``, ``cuda`` or ``cuda:i``.

    Attributes
    ----------
    weights_
        Weights and running statistics by name, each of shape (members, ...), from each member's best epoch.
    best_epochs_
        Those epochs, counted from 0.
    history_
        ``train_loss``, ``monitor_loss`` and ``lr`` of every epoch, means over the members; one that has
        stopped counts as it was at its best epoch.
    """

    def __init__(
        self,
        *,
        hidden: HiddenWidths = (256,),
        activation: Activation = "relu",
        norm: Norm = "layer",
        order: Order = "linear-norm-activation",
        dropout: Fraction = 0.5,
        input_noise: NotNegative = 0.0,
        input_norm: InputNorm = "none",
        logit_shifts: bool = False,
        label_smoothing: Fraction = 0.0,
        focal_gamma: NotNegative = 0.0,
        pos_weight: Positive | Literal["balanced"] | None = None,
        sampler: Sampler = "shuffle",
        lr: Positive = 1e-3,
        weight_decay: NotNegative = 1e-2,
        optimizer: Optimizer = "adamw",
        clip_norm: Positive | None = None,
        batch_size: Count = 128,
        max_epochs: Count = 60,
        patience: Count = 8,
        schedule: Schedule = "cosine",
        plateau_factor: Fraction = 0.1,
        validation_fraction: Fraction = 0.1,
        members: Count = 5,
        standardize: bool = True,
        class_weight: ClassWeight = None,
        precision: Precision = "fp32",
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.norm = norm
        self.order = order
        self.dropout = dropout
        self.input_noise = input_noise
        self.input_norm = input_norm
        self.logit_shifts = logit_shifts
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.pos_weight = pos_weight
        self.sampler = sampler
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.schedule = schedule
        self.plateau_factor = plateau_factor
        self.validation_fraction = validation_fraction
        self.members = members
        self.standardize = standardize
        self.class_weight = class_weight
        self.precision = precision
        self.random_state = random_state
        self.device = device

    def _goal(self, training: Training) -> Goal:
        self._check_balance(training)
        loss: LossName = "cross_entropy" if training.kind == "multiclass" else "binary_cross_entropy"
        outputs = {"binary": 1, "multiclass": training.classes}.get(training.kind) or training.y.shape[1]
        recipe = Recipe(smoothing=self.label_smoothing, gamma=self.focal_gamma, pos_weight=self._pos_weight(training))
        return Goal(y=training.y, outputs=outputs, loss=loss, recipe=recipe)

    def _check_balance(self, training: Training) -> None:
        """Refuse what a task does not have, and remark on several corrections of imbalance at once."""
        if self.pos_weight is not None and training.kind == "multiclass":
            raise HeadError(
                f"{self.name}: pos_weight={self.pos_weight} needs positives, and the task is multiclass; "
                "use class_weight=balanced"
            )
        if self.sampler != "shuffle" and training.kind == "multilabel":
            raise HeadError(
                f"{self.name}: sampler={self.sampler} needs one label per row, and the task is multilabel; "
                "use pos_weight=balanced"
            )
        corrections = {
            "class_weight=balanced": self.class_weight is not None,
            f"sampler={self.sampler}": self.sampler != "shuffle",
            f"pos_weight={self.pos_weight}": self.pos_weight is not None,
            f"focal_gamma={self.focal_gamma:g}": self.focal_gamma > 0,
        }
        used = [name for name, there in corrections.items() if there]
        if len(used) > 1:
            self._note(
                f"{', '.join(used)} correct imbalance {len(used)} times over, and favour rare classes too much together"
            )

    def _pos_weight(self, training: Training) -> tuple[float, ...]:
        """Return the weight of positives per target; ``balanced`` is negatives / positives among the training rows."""
        if self.pos_weight is None:
            return ()
        y, known = (values.reshape(len(training.y), -1) for values in (training.y, training.weight > 0))
        if self.pos_weight != "balanced":
            return (float(self.pos_weight),) * y.shape[1]
        positive = ((y == 1) & known).sum(axis=0)
        return tuple(((known.sum(axis=0) - positive) / positive).tolist())

    def _predict_proba(self, X: Floats) -> Floats:
        if self.kind_ == "multiclass":
            return np.asarray(softmax(self._logits(X), axis=-1).mean(axis=0))
        positive = expit(self._logits(X)).mean(axis=0)
        return np.hstack([1 - positive, positive]) if self.kind_ == "binary" else np.asarray(positive)


class MLPHeadRegressor(_PerceptronHead, RegressorHead):
    """Perceptron with one output per target; missing values are masked, per target.

    Targets are standardised for training, so the learning rate and `huber_delta` mean the same
    whatever the unit.

    Parameters
    ----------
    hidden, activation, norm, order, dropout, input_noise, input_norm
        The network, as for `MLPHeadClassifier`.
    loss
        ``huber``, ``mse`` or ``mae``.
    huber_delta
        Where the Huber loss turns from square to linear, in standard deviations of the target.
    lr, weight_decay, optimizer, clip_norm, batch_size, max_epochs, patience, schedule, plateau_factor
        The optimiser and its learning rate, as for `MLPHeadClassifier`.
    validation_fraction, members, precision
        The training, as for `MLPHeadClassifier`.
    standardize, random_state, device
        As for `MLPHeadClassifier`.

    Attributes
    ----------
    center_, spread_
        Mean and standard deviation of each target over the training rows, shape (T,).
    weights_, best_epochs_, history_
        As for `MLPHeadClassifier`.
    """

    def __init__(
        self,
        *,
        hidden: HiddenWidths = (256,),
        activation: Activation = "relu",
        norm: Norm = "layer",
        order: Order = "linear-norm-activation",
        dropout: Fraction = 0.5,
        input_noise: NotNegative = 0.0,
        input_norm: InputNorm = "none",
        loss: Literal["huber", "mse", "mae"] = "huber",
        huber_delta: Positive = 1.0,
        lr: Positive = 1e-3,
        weight_decay: NotNegative = 1e-2,
        optimizer: Optimizer = "adamw",
        clip_norm: Positive | None = None,
        batch_size: Count = 128,
        max_epochs: Count = 60,
        patience: Count = 8,
        schedule: Schedule = "cosine",
        plateau_factor: Fraction = 0.1,
        validation_fraction: Fraction = 0.1,
        members: Count = 5,
        standardize: bool = True,
        precision: Precision = "fp32",
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.norm = norm
        self.order = order
        self.dropout = dropout
        self.input_noise = input_noise
        self.input_norm = input_norm
        self.loss = loss
        self.huber_delta = huber_delta
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.clip_norm = clip_norm
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.schedule = schedule
        self.plateau_factor = plateau_factor
        self.validation_fraction = validation_fraction
        self.members = members
        self.standardize = standardize
        self.precision = precision
        self.random_state = random_state
        self.device = device

    def _goal(self, training: Training) -> Goal:
        self.center_, self.spread_ = center_and_spread(training)
        y = (training.y - self.center_) / self.spread_
        recipe = Recipe(delta=self.huber_delta)
        return Goal(y=y, outputs=y.shape[1], loss=_REGRESSION_LOSSES[self.loss], recipe=recipe)

    def _predict(self, X: Floats) -> Floats:
        values: Floats = self._logits(X).mean(axis=0) * self.spread_ + self.center_
        return values


HEADS = (MLPHeadClassifier, MLPHeadRegressor)
