"""Heads for mixed tasks: several targets, each a task of its own, of which any may be missing from a row.

A head of this kind writes its maths in `_fit` and `predict_scores`; what the targets are, and their codes,
is found here.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from numbers import Real
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Tags

from data.config import Config
from data.errors import ConfigError, did_you_mean
from heads.bags import Bags
from heads.base import INFINITE, ClassWeight, Context, Floats, Head, Training
from heads.errors import HeadError

MOST_CLASSES = 20
"""A column of more different whole numbers is a quantity, unless it is said to be something else."""


class TargetSettings(Config):
    """What can be said of one target."""

    kind: Literal["auto", "binary", "multiclass", "regression"] = "auto"


Settings = TypeVar("Settings", bound=TargetSettings)


class MixedHead(Head, Generic[Settings]):
    """Base of heads for mixed tasks.

    The `Training` that `_fit` gets has codes or numbers of shape (n, T) as `y`, and 0 where one is missing.

    Attributes
    ----------
    settings_class
        What can be said of a target of this head.
    heads
        What is said of some, by name: a parameter of the constructor.
    names_, kinds_
        Name of each target, and its kind: binary, multiclass or regression.
    labels_
        The labels of each target in the order of their codes; none of a number.
    single_
        Whether y was one-dimensional, and predictions are.
    """

    kinds: ClassVar = frozenset({"mixed"})
    kind_ = "mixed"
    settings_class: type[Settings]

    heads: dict[str, dict[str, Any]] | None
    class_weight: ClassWeight

    @abstractmethod
    def predict_scores(self, X: ArrayLike | Bags) -> dict[str, NDArray[np.float64]]:
        """Return each target's scores by name: probabilities (n, C) in the order of `labels_`, or numbers (n,)."""

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags

    def settings(self) -> dict[str, Settings]:
        """Return what is said of targets, by name.

        Raises
        ------
        HeadError
            If a setting does not exist or fit.
        """
        try:
            return {
                name: self.settings_class.build(values, where=f"{self.name}, head {name!r}")
                for name, values in (self.heads or {}).items()
            }
        except ConfigError as error:
            raise HeadError(str(error).replace(": --", ": ")) from error

    def check_names(self, names: Collection[str]) -> None:
        """Raise HeadError if something is said of what is no target."""
        for name in self.settings():
            if name not in names:
                raise HeadError(f"{self.name}: heads names {name!r}, which is no target; {did_you_mean(name, names)}")

    def predict(self, X: ArrayLike | Bags) -> NDArray[Any]:
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

    def _training(
        self, y: ArrayLike, X: Floats, weight: NDArray[np.float64], groups: Any, context: Context
    ) -> Training:
        columns = self._columns(y)
        classes = self._name(len(columns), context)
        self.labels_: list[list[Any]] = []
        encoded = [self._encoded(h, column, weight, classes[h]) for h, column in enumerate(columns)]
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

    def _name(self, count: int, context: Context) -> list[tuple[str, ...]]:
        """Set the names and kinds of the targets; return the classes that stand for their codes, where that is known.

        A kind that nobody says is found by `_encoded`.
        """
        settings = self.settings()
        told = {part.targets[0]: part for part in context.targets}
        known: dict[str, str] = {name: part.kind for name, part in told.items()}
        known = known or {name: each.kind for name, each in settings.items()}
        known = known or dict.fromkeys((f"target {h}" for h in range(count)), "auto")
        if len(known) != count:
            raise HeadError(f"{self.name}: y has {count} columns, but {len(known)} heads are named: {', '.join(known)}")
        self.check_names(known)
        self.names_, self.kinds_ = list(known), list(known.values())
        return [told[name].classes if name in told else () for name in known]

    def _encoded(
        self, head: int, column: NDArray[Any], weight: NDArray[np.float64], classes: tuple[str, ...]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the codes or numbers of a target, 0 where missing, and their weights; set its kind and labels."""
        name = f"{self.name}, head {self.names_[head]!r}"
        missing = _missing(column)
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
            label = self.labels_[head][0]
            found = f"all {len(codes)} values are {(classes[label] if classes else label)!r}"
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
            if number and not (whole and len(labels) <= MOST_CLASSES):
                self.kinds_[head] = "regression"
            else:
                self.kinds_[head] = "binary" if len(labels) <= 2 else "multiclass"
        return self.kinds_[head]


def _missing(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which values are None or NaN."""
    if column.dtype.kind == "f":
        return np.asarray(np.isnan(column), dtype=bool)
    return np.array([value is None or value != value for value in column.tolist()], dtype=bool)


def _as_numbers(column: NDArray[Any]) -> NDArray[Any]:
    """Return a column of numbers as floats, NaN where missing; any other as it is."""
    if column.dtype.kind in "biuf":
        return column.astype(np.float64)
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
