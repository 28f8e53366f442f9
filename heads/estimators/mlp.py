"""Multilayer perceptron: small networks, each stopped on rows it does not learn from, and averaged."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, softmax

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
from heads.batched import Architecture, logits_of, train_many
from heads.errors import HeadError
from heads.losses import LossName
from heads.training.course import Schedule
from heads.training.members import Course, center_and_spread, inner_splits, mean_history
from heads.training.perceptron import Activation, Norm, Order, Perceptron
from heads.training.plan import Fold, Recipe, Regime, TrainedModel

HiddenWidths = tuple[Count, ...]

_REGRESSION_LOSSES: dict[str, LossName] = {"huber": "huber", "mse": "squared_error", "mae": "absolute_error"}


class _PerceptronHead(Head):
    """What the two heads share: the constructor's network and training parameters, and one fit."""

    hidden: tuple[int, ...]
    activation: Activation
    norm: Norm
    order: Order
    dropout: float
    input_noise: float
    lr: float
    weight_decay: float
    batch_size: int
    max_epochs: int
    patience: int
    schedule: Schedule
    validation_fraction: float
    members: int
    random_state: int
    device: str

    name = "mlp"
    uses_torch = True

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
        )

    def _train(self, training: Training, y: NDArray[Any], outputs: int, loss: LossName, recipe: Recipe) -> None:
        """Fit the members, and keep their weights and their history."""
        recipe = replace(
            recipe,
            seed=self.random_state,
            lr=self.lr,
            weight_decay=self.weight_decay,
            dropout=self.dropout,
            input_noise=self.input_noise,
        )
        monitors = inner_splits(
            self, training, fraction=self.validation_fraction, members=self.members, seed=self.random_state
        )
        models = train_many(
            self._architecture(outputs),
            training.X,
            y,
            folds=[
                Fold(
                    train=np.flatnonzero(~monitor),
                    monitor=np.flatnonzero(monitor),
                    weight=training.weight,
                    number=member,
                )
                for member, monitor in enumerate(monitors)
            ],
            recipes=[replace(recipe, fold=member) for member in range(self.members)],
            regime=Regime(
                loss=loss,
                batch_size=self.batch_size,
                max_epochs=self.max_epochs,
                patience=self.patience,
                schedule=self.schedule,
            ),
            device=self.device,
        )
        trained = [model for model in models if isinstance(model, TrainedModel)]
        problems = [str(model) for model in models if isinstance(model, HeadError)]
        if problems:
            raise HeadError(f"{self.name}: {problems[0]}")
        self.weights_ = {name: np.stack([model.state[name] for model in trained]) for name in trained[0].state}
        self.best_epochs_ = [model.best_epoch for model in trained]
        self.history_ = mean_history([Course(model.history, model.best_epoch) for model in trained])

    def _logits(self, X: Floats) -> NDArray[np.float64]:
        """Return the logits of every member, shape (members, n, outputs)."""
        outputs = self.weights_["logits.bias"].shape[1]
        return logits_of(self._architecture(outputs), self.weights_, X, device=self.device).astype(np.float64)


class MLPHeadClassifier(_PerceptronHead, ClassifierHead):
    """Perceptron with softmax over classes, one sigmoid for two classes, one per label for multilabel.

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
    logit_shifts
        Whether a learned vector is subtracted from the logits. It can express nothing that the last
        bias cannot, but is part of published baselines.
    label_smoothing
        ``e``: targets become ``(1 - e) y + e / C`` with C classes, 2 for labels.
    focal_gamma
        Above 0, the focal loss of that gamma; with class weights it corrects imbalance twice.
    lr, weight_decay
        Peak learning rate and decoupled weight decay of AdamW; biases and norms do not decay.
    batch_size
        Rows per step at most.
    max_epochs, patience
        Epochs at most; training stops after `patience` epochs without a better loss on the inner split.
    schedule
        ``cosine`` with warm-up over `max_epochs`, ``plateau`` or ``constant``; see `heads.training.plan.Regime`.
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
        logit_shifts: bool = False,
        label_smoothing: Fraction = 0.0,
        focal_gamma: NotNegative = 0.0,
        lr: Positive = 1e-3,
        weight_decay: NotNegative = 1e-2,
        batch_size: Count = 128,
        max_epochs: Count = 60,
        patience: Count = 8,
        schedule: Schedule = "cosine",
        validation_fraction: Fraction = 0.1,
        members: Count = 5,
        standardize: bool = True,
        class_weight: ClassWeight = None,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.norm = norm
        self.order = order
        self.dropout = dropout
        self.input_noise = input_noise
        self.logit_shifts = logit_shifts
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
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


class MLPHeadRegressor(_PerceptronHead, RegressorHead):
    """Perceptron with one output per target; missing values are masked, per target.

    Targets are standardised for training, so the learning rate and `huber_delta` mean the same
    whatever the unit.

    Parameters
    ----------
    hidden, activation, norm, order, dropout, input_noise
        The network, as for `MLPHeadClassifier`.
    loss
        ``huber``, ``mse`` or ``mae``.
    huber_delta
        Where the Huber loss turns from square to linear, in standard deviations of the target.
    lr, weight_decay, batch_size, max_epochs, patience, schedule, validation_fraction, members
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
        loss: Literal["huber", "mse", "mae"] = "huber",
        huber_delta: Positive = 1.0,
        lr: Positive = 1e-3,
        weight_decay: NotNegative = 1e-2,
        batch_size: Count = 128,
        max_epochs: Count = 60,
        patience: Count = 8,
        schedule: Schedule = "cosine",
        validation_fraction: Fraction = 0.1,
        members: Count = 5,
        standardize: bool = True,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden = hidden
        self.activation = activation
        self.norm = norm
        self.order = order
        self.dropout = dropout
        self.input_noise = input_noise
        self.loss = loss
        self.huber_delta = huber_delta
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
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


HEADS = (MLPHeadClassifier, MLPHeadRegressor)
