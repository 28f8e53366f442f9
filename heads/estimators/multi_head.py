"""Linear probes for many targets at once: each has a kind, a loss, a learning rate and an end of its own."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.special import expit, softmax

from heads.bags import Bags
from heads.base import ClassWeight, Count, Fraction, NotNegative, Positive, Range, SearchSpace, Training
from heads.errors import HeadError
from heads.losses import LossName
from heads.mixed import MixedHead, TargetSettings
from heads.training.course import Schedule
from heads.training.members import center_and_spread, inner_splits
from heads.training.probes import Init, Plan, Probe, Rows, train_probes

Loss = Literal["cross_entropy", "focal", "huber", "mse", "mae"]

_LOSSES: dict[str, tuple[Loss, ...]] = {
    "binary": ("cross_entropy", "focal"),
    "multiclass": ("cross_entropy", "focal"),
    "regression": ("huber", "mse", "mae"),
}
"""The losses of each kind, its default first."""
_REGRESSION_LOSSES: dict[str, LossName] = {"huber": "huber", "mse": "squared_error", "mae": "absolute_error"}


class ProbeSettings(TargetSettings):
    """What can be said of one target; what is not said is as for all of them."""

    loss: Loss | None = None
    weight: float = Field(default=1.0, gt=0)
    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)


class MultiHead(MixedHead[ProbeSettings]):
    """A linear probe per target, all trained at once by AdamW, each stopped by itself.

    The loss is the sum of the targets' mean losses times their weights. A missing value counts in no loss,
    and the loss of one target has no gradient in the weights of another. Two classes have one sigmoid, more a softmax;
    numbers are standardised for training, so that `lr` and `huber_delta` mean the same whatever the unit.

    Parameters
    ----------
    heads
        Settings of some targets by name, a mapping of ``kind``, ``loss``, ``weight``, ``lr`` and ``weight_decay``.
        Where nobody else names the columns of y, it names each of them, in order; without it they are
        ``target 0``, ``target 1`` and so on. Losses are ``cross_entropy`` or ``focal`` for classes, ``huber``,
        ``mse`` or ``mae`` for numbers. The ``weight`` of a loss scales its gradient, which AdamW divides out again
        but for its epsilon: it tells how much a target counts in the summed loss that the learning curves show.
    lr, weight_decay
        Peak learning rate and weight decay of targets that have none of their own; biases do not decay.
    focal_gamma
        Of the focal loss.
    huber_delta
        Where the Huber loss turns from square to linear, in standard deviations of the target.
    batch_size
        Rows per step at most.
    max_epochs, patience
        Epochs at most; a target stops after `patience` epochs without a better loss on the inner split.
    schedule
        ``cosine`` with warm-up over `max_epochs`, ``restarts``, ``step``, ``plateau`` per target, or ``constant``;
        see `heads.training.plan.Regime`.
    init
        What weights begin as: ``zeros``, or ``xavier`` as published probes have it. With more features than
        rows the noise that ``xavier`` begins with is never unlearned, and stays in the predictions. Biases begin at 0.
    validation_fraction
        Share of the training rows set aside as the inner split, stratified by all targets and without splitting
        groups; 0 runs all epochs on all rows.
    standardize
        Whether to centre and scale the features by the training rows.
    class_weight
        None or ``balanced``, for all targets that are classes.
    random_state
        Seed of the inner split, initial weights and batches.
    device
        ``cpu``, ``cuda`` or ``cuda:i``.

    Attributes
    ----------
    coef_, intercept_
        One row per output, those of a target together: shapes (O, d) and (O,).
    center_, spread_
        Mean and standard deviation of each target that is a number, shape (T,); 0 and 1 for classes.
    best_epochs_
        The epoch that each target's weights are from, counted from 0.
    history_
        ``train_loss``, ``monitor_loss`` (the summed losses) and ``lr`` of every epoch.

    Notes
    -----
    All targets are one matrix product per step. Initial weights depend on the name, batches on `random_state`:
    on complete data without an inner split, a target gets the weights that it would get alone, up to rounding.
    """

    name = "multi_head"
    version = 1
    uses_torch = True
    settings_class = ProbeSettings

    def __init__(
        self,
        *,
        heads: dict[str, dict[str, Any]] | None = None,
        lr: Positive = 1e-3,
        weight_decay: NotNegative = 1e-2,
        focal_gamma: NotNegative = 2.0,
        huber_delta: Positive = 1.0,
        batch_size: Count = 128,
        max_epochs: Count = 60,
        patience: Count = 8,
        schedule: Schedule = "cosine",
        init: Init = "zeros",
        validation_fraction: Fraction = 0.1,
        standardize: bool = True,
        class_weight: ClassWeight = None,
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        self.heads = heads
        self.lr = lr
        self.weight_decay = weight_decay
        self.focal_gamma = focal_gamma
        self.huber_delta = huber_delta
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.patience = patience
        self.schedule = schedule
        self.init = init
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"lr": Range(1e-4, 1e-1, log=True), "weight_decay": Range(1e-4, 1.0, log=True)}

    def predict_scores(self, X: ArrayLike | Bags) -> dict[str, NDArray[np.float64]]:
        """Return each target's scores by name: probabilities (n, C) in the order of `labels_`, or numbers (n,)."""
        features = self._features(X)
        logits = np.asarray(features, np.float64) @ self.coef_.T.astype(np.float64) + self.intercept_
        widths = [_outputs(kind, labels) for kind, labels in zip(self.kinds_, self.labels_, strict=True)]
        own = np.split(logits, np.cumsum(widths)[:-1], axis=1)
        return {name: self._scores(h, own[h]) for h, name in enumerate(self.names_)}

    def _scores(self, head: int, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.kinds_[head] == "regression":
            return np.asarray(logits[:, 0] * self.spread_[head] + self.center_[head])
        if len(self.labels_[head]) == 2:
            positive = expit(logits)
            return np.hstack([1 - positive, positive])
        return np.asarray(softmax(logits, axis=1))

    def _fit(self, training: Training) -> None:
        (monitor,) = inner_splits(self, training, fraction=self.validation_fraction, members=1, seed=self.random_state)
        classes = np.array([kind != "regression" for kind in self.kinds_])
        center, spread = center_and_spread(training)
        self.center_, self.spread_ = np.where(classes, 0.0, center), np.where(classes, 1.0, spread)
        trained = train_probes(
            self._probes(),
            Rows(
                X=training.X.astype(np.float32, copy=False),
                y=((training.y - self.center_) / self.spread_).astype(np.float32),
                weight=training.weight.astype(np.float32),
                train=np.flatnonzero(~monitor),
                monitor=np.flatnonzero(monitor),
            ),
            Plan(
                batch_size=self.batch_size,
                max_epochs=self.max_epochs,
                patience=self.patience,
                schedule=self.schedule,
                init=self.init,
                seed=self.random_state,
                device=self.device,
            ),
        )
        self.coef_, self.intercept_ = trained.weight, trained.bias
        self.best_epochs_, self.history_ = trained.best_epochs, trained.history

    def _probes(self) -> list[Probe]:
        settings, probes = self.settings(), []
        for name, kind, labels in zip(self.names_, self.kinds_, self.labels_, strict=True):
            own = settings.get(name, ProbeSettings())
            loss = own.loss or _LOSSES[kind][0]
            if loss not in _LOSSES[kind]:
                raise HeadError(
                    f"{self.name}, head {name!r}: loss {loss!r} is none of a {kind} target; "
                    f"expected {' or '.join(_LOSSES[kind])}"
                )
            probes.append(
                Probe(
                    name=name,
                    loss=_REGRESSION_LOSSES.get(loss)
                    or ("binary_cross_entropy" if len(labels) == 2 else "cross_entropy"),
                    outputs=_outputs(kind, labels),
                    share=own.weight,
                    lr=self.lr if own.lr is None else own.lr,
                    weight_decay=self.weight_decay if own.weight_decay is None else own.weight_decay,
                    gamma=self.focal_gamma if loss == "focal" else 0.0,
                    delta=self.huber_delta,
                )
            )
        return probes


def _outputs(kind: str, labels: list[Any]) -> int:
    """Return the number of logits of a target: one for a number and for two classes."""
    return 1 if kind == "regression" or len(labels) == 2 else len(labels)


HEADS = (MultiHead,)
