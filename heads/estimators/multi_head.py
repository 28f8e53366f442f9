"""Linear probes for many targets at once: each has a kind, a loss, a learning rate and an end of its own."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from scipy.special import expit, softmax
from sklearn.utils import Tags

from data.config import Config
from data.errors import ConfigError, did_you_mean
from heads.base import (
    INFINITE,
    ClassWeight,
    Context,
    Count,
    Floats,
    Fraction,
    Head,
    NotNegative,
    Positive,
    Range,
    SearchSpace,
    Training,
)
from heads.errors import HeadError
from heads.losses import LossName
from heads.training.course import Schedule
from heads.training.members import center_and_spread, inner_splits
from heads.training.probes import Plan, Probe, Rows, train_probes

Loss = Literal["cross_entropy", "focal", "huber", "mse", "mae"]

_LOSSES: dict[str, tuple[Loss, ...]] = {
    "binary": ("cross_entropy", "focal"),
    "multiclass": ("cross_entropy", "focal"),
    "regression": ("huber", "mse", "mae"),
}
"""The losses of each kind, its default first."""
_REGRESSION_LOSSES: dict[str, LossName] = {"huber": "huber", "mse": "squared_error", "mae": "absolute_error"}
_MOST_CLASSES = 20
"""A column of more different whole numbers is a quantity, unless it is said to be something else."""


class HeadSettings(Config):
    """What can be said of one target; what is not said is as for all of them."""

    kind: Literal["auto", "binary", "multiclass", "regression"] = "auto"
    loss: Loss | None = None
    weight: float = Field(default=1.0, gt=0)
    lr: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)


class MultiHead(Head):
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
        ``cosine`` with warm-up over `max_epochs`, ``plateau`` per target, or ``constant``.
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
    names_, kinds_
        Name and kind of each target.
    labels_
        The labels of each target in order; none for a number.
    coef_, intercept_
        One row per output, those of a target together: shapes (O, d) and (O,).
    center_, spread_
        Mean and standard deviation of each target that is a number, shape (T,); 0 and 1 for classes.
    best_epochs_
        The epoch that each target's weights are from, counted from 0.
    history_
        ``train_loss``, ``monitor_loss`` (the summed losses) and ``lr`` of every epoch.
    single_
        Whether y was one-dimensional, and predictions are.

    Notes
    -----
    All targets are one matrix product per step. Initial weights are drawn by name, batches by `random_state`:
    on complete data without an inner split, a target gets the weights that it would get alone, up to rounding.
    """

    name = "multi_head"
    version = 1
    kinds: ClassVar = frozenset({"mixed"})
    uses_torch = True
    kind_ = "mixed"

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
        self.validation_fraction = validation_fraction
        self.standardize = standardize
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"lr": Range(1e-4, 1e-1, log=True), "weight_decay": Range(1e-4, 1.0, log=True)}

    def settings(self) -> dict[str, HeadSettings]:
        """Return what is said of targets, by name.

        Raises
        ------
        HeadError
            If a setting does not exist or fit.
        """
        try:
            return {
                name: HeadSettings.build(values, where=f"{self.name}, head {name!r}")
                for name, values in (self.heads or {}).items()
            }
        except ConfigError as error:
            raise HeadError(str(error).replace(": --", ": ")) from error

    def predict_scores(self, X: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """Return each target's scores by name: probabilities (n, C) in the order of `labels_`, or numbers (n,)."""
        features = self._features(X)
        logits = np.asarray(features, np.float64) @ self.coef_.T.astype(np.float64) + self.intercept_
        widths = [_outputs(kind, labels) for kind, labels in zip(self.kinds_, self.labels_, strict=True)]
        own = np.split(logits, np.cumsum(widths)[:-1], axis=1)
        return {name: self._scores(h, own[h]) for h, name in enumerate(self.names_)}

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Return the most probable labels and the numbers, shape (n, T): objects where a label is text, else float64.

        One-dimensional if y was.
        """
        scores = self.predict_scores(X)
        columns = [
            values if kind == "regression" else np.array(labels)[values.argmax(axis=1)]
            for values, kind, labels in zip(scores.values(), self.kinds_, self.labels_, strict=True)
        ]
        if self.single_:
            return columns[0]
        text = any(column.dtype.kind not in "biuf" for column in columns)
        return np.column_stack([column.astype(object if text else np.float64) for column in columns])

    def _scores(self, head: int, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.kinds_[head] == "regression":
            return np.asarray(logits[:, 0] * self.spread_[head] + self.center_[head])
        if len(self.labels_[head]) == 2:
            positive = expit(logits)
            return np.hstack([1 - positive, positive])
        return np.asarray(softmax(logits, axis=1))

    def _training(
        self, y: ArrayLike, X: Floats, weight: NDArray[np.float64], groups: Any, context: Context
    ) -> Training:
        columns = self._columns(y)
        settings = self.settings()
        self._name(len(columns), context, settings)
        self.labels_: list[list[Any]] = []
        encoded = [self._encoded(h, column, weight) for h, column in enumerate(columns)]
        values, weights = (np.column_stack(parts) for parts in zip(*encoded, strict=True))
        keep = weights.any(axis=1)
        return Training(
            X=self._fit_scaling(X[keep], weight[keep]),
            y=values[keep],
            weight=weights[keep],
            groups=None if groups is None else groups[keep],
            kind="mixed",
            classes=0,
            context=context,
            kept=np.flatnonzero(keep),
        )

    def _columns(self, y: ArrayLike) -> list[NDArray[Any]]:
        """Return the columns of y, each of numbers or of objects."""
        array = np.asarray(y) if isinstance(y, np.ndarray) else np.asarray(y, dtype=object)
        if array.ndim not in (1, 2) or not array.size:
            raise HeadError(f"{self.name}: expected targets of shape (n,) or (n, T), got {array.shape}")
        self.single_ = array.ndim == 1
        return [_as_numbers(column) for column in array.reshape(len(array), -1).T]

    def _name(self, count: int, context: Context, settings: Mapping[str, HeadSettings]) -> None:
        """Set the names and kinds of the targets; a kind that nobody says is found by `_encoded`."""
        known: dict[str, str] = dict(context.targets) or {name: each.kind for name, each in settings.items()}
        known = known or dict.fromkeys((f"target {h}" for h in range(count)), "auto")
        if len(known) != count:
            raise HeadError(f"{self.name}: y has {count} columns, but {len(known)} heads are named: {', '.join(known)}")
        for name in settings:
            if name not in known:
                raise HeadError(f"{self.name}: heads names {name!r}, which is no target; {did_you_mean(name, known)}")
        self.names_, self.kinds_ = list(known), list(known.values())

    def _encoded(
        self, head: int, column: NDArray[Any], weight: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the codes or numbers of a target, 0 where missing, and their weights; set its kind and labels."""
        name = f"{self.name}, head {self.names_[head]!r}"
        missing = np.array([value is None or value != value for value in column.tolist()], dtype=bool)
        known = ~missing & (weight > 0)
        if not known.any():
            raise HeadError(f"{self.name}: no value of {self.names_[head]} in the training rows")
        values, own = np.zeros(len(column)), np.where(known, weight, 0.0)
        try:
            labels, codes = np.unique(column[known], return_inverse=True)
        except TypeError as error:
            raise HeadError(f"{name}: its values are of several types: {error}") from error
        kind = self._kind(head, labels)
        if kind == "regression":
            values[known] = _finite(name, column[known])
            self.labels_.append([])
            return values, own
        if kind == "binary" and len(labels) > 2:
            raise HeadError(f"{name}: a binary target has 2 classes, found {len(labels)}")
        whole = labels.dtype.kind == "f" and bool((labels == np.round(labels)).all())
        self.labels_.append((labels.astype(np.int64) if whole else labels).tolist())
        values[known] = codes
        if len(labels) == 1:
            found = f"all {len(codes)} values are {self.labels_[head][0]!r}"
            self._note(f"head {self.names_[head]!r}: {found} in the training rows, so its prediction is constant")
        if self.class_weight == "balanced":
            share = np.bincount(codes, weights=own[known])
            own[known] *= (own.sum() / (len(share) * share))[codes]
        return values, own

    def _kind(self, head: int, labels: NDArray[Any]) -> str:
        """Return a target's kind, found from its values where nobody said it."""
        if self.kinds_[head] == "auto":
            number = labels.dtype.kind in "iuf"
            whole = number and np.isfinite(labels.astype(float)).all() and (labels == np.round(labels)).all()
            if number and not (whole and len(labels) <= _MOST_CLASSES):
                self.kinds_[head] = "regression"
            else:
                self.kinds_[head] = "binary" if len(labels) <= 2 else "multiclass"
        return self.kinds_[head]

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
                seed=self.random_state,
                device=self.device,
            ),
        )
        self.coef_, self.intercept_ = trained.weight, trained.bias
        self.best_epochs_, self.history_ = trained.best_epochs, trained.history

    def _probes(self) -> list[Probe]:
        settings, probes = self.settings(), []
        for name, kind, labels in zip(self.names_, self.kinds_, self.labels_, strict=True):
            own = settings.get(name, HeadSettings())
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


def _as_numbers(column: NDArray[Any]) -> NDArray[Any]:
    """Return a column of numbers as floats, NaN where missing; any other as it is."""
    values = column.tolist()
    if all(value is None or isinstance(value, Real | np.bool_) for value in values):
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return column


def _finite(name: str, column: NDArray[Any]) -> NDArray[np.float64]:
    try:
        values = column.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise HeadError(f"{name}: its values are not numbers: {error}") from error
    if not np.isfinite(values).all():
        raise HeadError(f"{name}: {INFINITE}")
    return values


HEADS = (MultiHead,)
