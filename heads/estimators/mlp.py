"""Multilayer perceptron: a small network with dropout and normalisation, stopped on an inner split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import expit, softmax
from torch import Tensor
from torch.nn.functional import gelu, relu

from data.errors import SplitError
from data.split import holdout
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
from heads.batched import logits_of, train_one
from heads.losses import LossName
from heads.training.course import Schedule
from heads.training.layers import TrainingPass, batch_norm, layer_norm, linear, uniform_linear
from heads.training.plan import Fold, Recipe, Regime, TrainedModel

Norm = Literal["layer", "batch", "none"]
Activation = Literal["relu", "gelu"]
Order = Literal["linear-norm-activation", "linear-activation-norm"]
HiddenWidths = tuple[Count, ...]

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": relu, "gelu": gelu}
_REGRESSION_LOSSES: dict[str, LossName] = {"huber": "huber", "mse": "squared_error", "mae": "absolute_error"}


@dataclass(frozen=True, kw_only=True)
class Perceptron:
    """The architecture of an `mlp` head: hidden layers of linear, norm, activation and dropout, then a linear one.

    Attributes
    ----------
    inputs, outputs
        Length of an embedding, and number of logits.
    hidden
        Widths of the hidden layers.
    activation, norm, order
        What each hidden layer is made of; dropout always comes last.
    logit_shifts
        Whether a learned vector is subtracted from the logits.
    """

    inputs: int
    outputs: int
    hidden: tuple[int, ...] = (512,)
    activation: Activation = "relu"
    norm: Norm = "layer"
    order: Order = "linear-norm-activation"
    logit_shifts: bool = False

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model; the linear layers start as torch's do."""
        weights = {}
        for layer, (inputs, width) in enumerate(zip((self.inputs, *self.hidden), self.hidden, strict=False)):
            weights[f"{layer}.weight"], weights[f"{layer}.bias"] = uniform_linear(inputs, width, generator)
            if self.norm != "none":
                weights[f"{layer}.norm.gain"], weights[f"{layer}.norm.bias"] = torch.ones(width), torch.zeros(width)
        last = (self.inputs, *self.hidden)[-1]
        weights["logits.weight"], weights["logits.bias"] = uniform_linear(last, self.outputs, generator)
        if self.logit_shifts:
            weights["logits.shifts"] = torch.zeros(self.outputs)
        return weights

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model."""
        statistics = {}
        if self.norm == "batch":
            for layer, width in enumerate(self.hidden):
                statistics[f"{layer}.norm.mean"] = torch.zeros(width)
                statistics[f"{layer}.norm.variance"] = torch.ones(width)
        return statistics

    def forward(self, state: Mapping[str, Tensor], x: Tensor, training: TrainingPass | None) -> Tensor:
        """Return logits (G, b, outputs) of features (G, b, inputs)."""
        for layer in range(len(self.hidden)):
            x = linear(x, state[f"{layer}.weight"], state[f"{layer}.bias"])
            if self.order == "linear-norm-activation":
                x = _ACTIVATIONS[self.activation](self._normalized(state, layer, x, training))
            else:
                x = self._normalized(state, layer, _ACTIVATIONS[self.activation](x), training)
            if training is not None:
                x = training.drop(x)
        logits = linear(x, state["logits.weight"], state["logits.bias"])
        return logits - state["logits.shifts"][:, None] if self.logit_shifts else logits

    def _normalized(self, state: Mapping[str, Tensor], layer: int, x: Tensor, training: TrainingPass | None) -> Tensor:
        if self.norm == "none":
            return x
        gain, bias = state[f"{layer}.norm.gain"], state[f"{layer}.norm.bias"]
        if self.norm == "layer":
            return layer_norm(x, gain, bias)
        return batch_norm(x, gain, bias, state[f"{layer}.norm.mean"], state[f"{layer}.norm.variance"], training)


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
    random_state: int
    device: str

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

    def _architecture(self, outputs: int) -> Perceptron:
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
        """Fit the network, and keep its weights and history."""
        monitor = self._monitor_rows(training)
        model = train_one(
            self._architecture(outputs),
            training.X,
            y,
            fold=Fold(train=np.flatnonzero(~monitor), monitor=np.flatnonzero(monitor), weight=training.weight),
            recipe=replace(
                recipe,
                seed=self.random_state,
                lr=self.lr,
                weight_decay=self.weight_decay,
                dropout=self.dropout,
                input_noise=self.input_noise,
            ),
            regime=Regime(
                loss=loss,
                batch_size=self.batch_size,
                max_epochs=self.max_epochs,
                patience=self.patience,
                schedule=self.schedule,
            ),
            device=self.device,
        )
        self._keep(model)

    def _keep(self, model: TrainedModel) -> None:
        self.weights_ = model.state
        self.best_epoch_ = model.best_epoch
        self.history_ = model.history

    def _monitor_rows(self, training: Training) -> NDArray[np.bool_]:
        """Return the mask of the rows that decide when to stop, stratified and with groups left whole."""
        if not self.validation_fraction:
            return np.zeros(len(training.X), dtype=bool)
        try:
            return holdout(training.labels, training.kind, training.groups, self.validation_fraction, self.random_state)
        except SplitError as error:
            self._note(f"no early stopping, all {self.max_epochs} epochs are run: {error}")
            return np.zeros(len(training.X), dtype=bool)

    def _logits(self, X: Floats) -> NDArray[np.float64]:
        outputs = len(self.weights_["logits.bias"])
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
        Weights and running statistics of the best epoch, by name.
    best_epoch_
        That epoch, counted from 0.
    history_
        ``train_loss``, ``monitor_loss`` and ``lr`` of every epoch.
    """

    def __init__(
        self,
        *,
        hidden: HiddenWidths = (512,),
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
        patience: Count = 10,
        schedule: Schedule = "cosine",
        validation_fraction: Fraction = 0.1,
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
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def _fit(self, training: Training) -> None:
        loss: LossName = "cross_entropy" if training.kind == "multiclass" else "binary_cross_entropy"
        outputs = {"binary": 1, "multiclass": training.classes}.get(training.kind) or training.y.shape[1]
        self._train(training, training.y, outputs, loss, Recipe(smoothing=self.label_smoothing, gamma=self.focal_gamma))

    def _predict_proba(self, X: Floats) -> Floats:
        logits = self._logits(X)
        if self.kind_ == "multiclass":
            return np.asarray(softmax(logits, axis=1))
        positive = expit(logits)
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
    lr, weight_decay, batch_size, max_epochs, patience, schedule, validation_fraction
        The training, as for `MLPHeadClassifier`.
    standardize, random_state, device
        As for `MLPHeadClassifier`.

    Attributes
    ----------
    center_, spread_
        Mean and standard deviation of each target over the training rows, shape (T,).
    weights_, best_epoch_, history_
        As for `MLPHeadClassifier`.
    """

    def __init__(
        self,
        *,
        hidden: HiddenWidths = (512,),
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
        patience: Count = 10,
        schedule: Schedule = "cosine",
        validation_fraction: Fraction = 0.1,
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
        self.standardize = standardize
        self.random_state = random_state
        self.device = device

    def _fit(self, training: Training) -> None:
        share = training.weight / training.weight.sum(axis=0)
        self.center_ = (share * training.y).sum(axis=0)
        deviation = np.sqrt((share * np.square(training.y - self.center_)).sum(axis=0))
        self.spread_ = np.where(deviation > 0, deviation, 1.0)
        y = (training.y - self.center_) / self.spread_
        self._train(training, y, y.shape[1], _REGRESSION_LOSSES[self.loss], Recipe(delta=self.huber_delta))

    def _predict(self, X: Floats) -> Floats:
        values: Floats = self._logits(X) * self.spread_ + self.center_
        return values


HEADS = (MLPHeadClassifier, MLPHeadRegressor)
