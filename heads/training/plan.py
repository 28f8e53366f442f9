"""What the training loop is told and what it hands back: folds, recipes, the regime, trained models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.losses import LossName
from heads.training.course import Schedule
from heads.training.optimizer import Optimizer
from heads.training.precision import Precision

Rows = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold:
    """The rows that a model learns from and the rows that decide when it stops; neither is ever reported.

    Attributes
    ----------
    train, monitor
        Row numbers of X. Without `monitor` rows every epoch is run and the last one is kept.
    weight
        Weight of every entry of y, in its shape (n,) or (n, T), 0 where missing; None for 1.
    shift, scale
        Features are used as ``(X - shift) / scale``, each of shape (d,); None for X as it is.
    y
        Targets of its own, of all rows of X; None for those that the folds share.
    chance
        How likely each of `train` is to be drawn, of any sum: as many rows as there are in `train` are drawn
        per epoch, with replacement. None to take each row once.
    stratum
        The class of each of `train`, counted from 0: every batch holds the classes in equal shares, as exactly as
        its size allows, and the rows of each are drawn with replacement. None to take rows as they come.
    number
        The fold's name in the random streams.
    """

    train: Rows
    monitor: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    weight: Floats | None = None
    shift: Floats | None = None
    scale: Floats | None = None
    y: NDArray[Any] | None = None
    chance: Floats | None = None
    stratum: Rows | None = None
    number: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one model is trained: what may differ between the models of a batch.

    Attributes
    ----------
    fold
        Position in the list of folds.
    seed
        Seed of the initial weights, batches, noise and dropout.
    lr, weight_decay
        Peak learning rate and weight decay of the optimiser.
    dropout
        Share of activations dropped.
    input_noise
        Standard deviation of Gaussian noise on the features, relative to each feature's own over the training rows.
    clip_norm
        Length of the gradient at most, that of all weights together; None for any.
    smoothing, gamma, delta, pos_weight
        Settings of the loss, see `heads.losses`; `pos_weight` has one number per target, or none for 1.
    """

    fold: int = 0
    seed: int = 0
    lr: float = 1e-3
    weight_decay: float = 1e-2
    dropout: float = 0.0
    input_noise: float = 0.0
    clip_norm: float | None = None
    smoothing: float = 0.0
    gamma: float = 0.0
    delta: float = 1.0
    pos_weight: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Regime:
    """How all models of a batch are trained.

    Attributes
    ----------
    loss
        The loss, and with it the meaning of y: class codes (n,), or values (n,) or (n, T), NaN where missing.
    batch_size
        Upper bound; an epoch is cut into equal batches, so that none is left over with one row.
    max_epochs
        Epochs at most; the length of the cosine and of all its restarts.
    patience
        A model stops after so many epochs without a better monitor loss.
    min_delta
        What counts as better.
    schedule
        ``constant``; ``cosine``: per step, linear warm-up and half a cosine down to 0.05;
        ``plateau``: per model, times `plateau_factor` after more than 5 epochs without a better monitor loss;
        ``step``: per epoch, times 0.3 after every 15 epochs; ``restarts``: per step, half a cosine down to 0.05
        three times over, each twice as long as the one before, which takes all of `max_epochs`.
    warmup
        Share of all steps that the cosine's warm-up takes.
    optimizer
        ``adamw``, whose decay is decoupled and spares vectors; ``adam``, or ``sgd`` with a momentum of 0.9, whose
        decay is part of the gradient and reaches all weights.
    precision
        ``fp32``; ``bf16`` or ``fp16``: matrix products in 16 bits, weights and losses in 32; fp16 with a loss
        scale per model.
    """

    loss: LossName
    batch_size: int = 128
    max_epochs: int = 100
    patience: int = 10
    min_delta: float = 1e-4
    schedule: Schedule = "cosine"
    plateau_factor: float = 0.1
    warmup: float = 0.1
    optimizer: Optimizer = "adamw"
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedModel:
    """One trained model.

    Attributes
    ----------
    state
        Weights and running statistics of the best epoch, float32.
    best_epoch
        The epoch they are from, counted from 0.
    history
        Per epoch: ``train_loss`` (mean over the steps, with noise and dropout), ``monitor_loss``
        (None without monitor rows) and ``lr`` at the end; None where a loss was not finite.
    """

    state: dict[str, NDArray[np.float32]]
    best_epoch: int
    history: dict[str, list[float | None]]
