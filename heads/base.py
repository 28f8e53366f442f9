"""The head contract: a scikit-learn estimator that learns from embeddings and whose state is plain arrays and JSON.

::

    fit:      X, y, sample_weight, groups --check, encode, mask, standardise--> Training --_fit--> learned attributes_
    predict:  X --check, standardise--> scores of the learnable targets --_expand--> answers for all targets

A head is one module of `heads.estimators`. It offers ``HEADS``, one class per family of task kinds,
and writes only the maths: `_fit` sees clean numbers (labels are codes, a missing label has weight
zero, a target that cannot be learned is not there), and the state is whatever learned attributes
(names that end in ``_``) the fit left behind.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_consistent_length, check_is_fitted, validate_data

from data.task import Kind
from heads.bags import Bags
from heads.catalog import list_heads, takes_bags
from heads.context import Context
from heads.errors import HeadError
from heads.folds import side_by_side
from heads.many import Job
from heads.missing import check_missing, known_mean
from heads.params import ClassWeight, Count, Fraction, NotNegative, Positive, check_params, parse_params
from heads.search_space import Choice, Range, SearchSpace
from heads.state import HeadState, is_learned, learned_from, state_of
from heads.training_set import Floats, Training

__all__ = [
    "Choice",
    "ClassWeight",
    "ClassifierHead",
    "Context",
    "Count",
    "Floats",
    "Fraction",
    "Head",
    "HeadState",
    "HeadWarning",
    "NotNegative",
    "Positive",
    "Range",
    "RegressorHead",
    "SearchSpace",
    "Training",
]

INFINITE = "Input y contains infinity or a value too large for dtype('float64')."


class HeadWarning(UserWarning):
    """A head was fitted, but not on all that was asked for."""


class Head(BaseEstimator, ABC):  # type: ignore[misc]
    """Base of all heads; see the module's text.

    Attributes
    ----------
    name
        The head's name, which is the name of its module.
    version
        Version of the maths; a change that moves predictions of a saved state raises it.
    kinds
        The task kinds that the class can learn.
    uses_torch
        Whether it is fitted with torch.
    needs_prompts
        Whether it learns from the prompts of the classes as well, see `heads.context.Context`.
    uses_prompts
        Whether it learns from them if there are any.
    compares_prompts
        Whether it compares rows with prompts, which then must be of one space.
    learns_from_rows
        Whether it learns more from rows than which classes there are.
    accepts_missing
        Whether a block of features may be missing from a row, where it is NaN throughout.
    accepts_bags
        Whether a row may be several embeddings, see `heads.bags.Bags`. Such a head gets bags only: rows of
        a matrix reach it as bags of one.
    accepts_views
        Whether it learns from the views of bags (`heads.bags.Bags.views`), which others do not see.
    kept_rows
        Learned attributes that keep training rows as they are, which are no parameters (`heads.size`).
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    kinds: ClassVar[frozenset[Kind]]
    uses_torch: ClassVar[bool] = False
    needs_prompts: ClassVar[bool] = False
    uses_prompts: ClassVar[bool] = False
    compares_prompts: ClassVar[bool] = False
    learns_from_rows: ClassVar[bool] = True
    accepts_missing: ClassVar[bool] = False
    accepts_bags: ClassVar[bool] = False
    accepts_views: ClassVar[bool] = False
    kept_rows: ClassVar[frozenset[str]] = frozenset()

    standardize: bool | tuple[bool, ...]
    kind_: Kind

    @classmethod
    @abstractmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""

    @abstractmethod
    def _fit(self, training: Training) -> None:
        """Learn; set attributes whose names end in ``_``."""

    @abstractmethod
    def _training(
        self, y: ArrayLike, X: Floats, weight: NDArray[np.float64], groups: Any, context: Context
    ) -> Training:
        """Check and encode the targets; set what follows from them."""

    @classmethod
    def fit_together(
        cls,
        jobs: Sequence[Job],
        X: Any,
        y: NDArray[Any],
        *,
        groups: NDArray[Any] | None = None,
        context: Context | None = None,
    ) -> Iterator[Head | HeadError]:
        """Yield the head of each job, fitted on its rows; a HeadError stands for one that could not be.

        Whoever overrides this shares work between the fits; the fitted heads must not depend on who is
        fitted beside them beyond rounding.
        """
        yield from side_by_side(
            partial(_fit_job, X=X, y=y, groups=groups, context=context), jobs, torch_threads=cls.uses_torch
        )

    def fit(
        self,
        X: ArrayLike | Bags,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        groups: Any = None,
        context: Context | None = None,
    ) -> Self:
        """Fit the head.

        Parameters
        ----------
        X
            Embeddings, shape (n, d), finite; or `Bags` of them, for a head that accepts these.
        y
            Labels of shape (n,) for binary and multiclass; 0, 1 or NaN of shape (n, T) for
            multilabel; numbers or NaN of shape (n,) or (n, T) for regression. NaN is a missing
            value: it is masked, per target.
        sample_weight
            Weights of the rows, shape (n,), not negative.
        groups
            What must not straddle the inner splits that some heads make, shape (n,).
        context
            Which columns belong together, and the prompts of the classes.

        Raises
        ------
        HeadError
            If a parameter or the data are wrong.
        """
        training = self._prepare(X, y, sample_weight=sample_weight, groups=groups, context=context)
        if training.y.size:
            self._fit(training)
        return self

    def _prepare(
        self,
        X: ArrayLike | Bags,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        groups: Any = None,
        context: Context | None = None,
    ) -> Training:
        """Check everything, and return the training set; `_fit` is all that is left of `fit`."""
        check_params(self)
        if y is None:
            raise HeadError(f"{self.name} requires y to be passed, but the target y is None")
        features = self._validate(X, reset=True)
        weight = _check_sample_weight(sample_weight, features, dtype=np.float64, ensure_non_negative=True)
        self.notes_: list[str] = []
        try:
            check_consistent_length(features, y, groups)
        except ValueError as error:
            raise HeadError(str(error)) from error
        context = self._context(context, features.shape[1])
        if self.accepts_missing:
            self.blocks_ = list(context.blocks) or [features.shape[1]]
            check_missing(self.name, features, self.blocks_)
        return self._training(y, features, weight, None if groups is None else np.asarray(groups), context)

    def _context(self, context: Context | None, width: int) -> Context:
        """Return the context, refused where it does not fit the head or the features."""
        context = context or Context()
        if context.blocks and sum(context.blocks) != width:
            raise HeadError(f"{self.name}: blocks of {context.blocks} columns, but X has {width}")
        if self.needs_prompts and context.prompts is None:
            raise HeadError(f"{self.name} needs the prompts of the classes, and there are none; give --prompt-encoder")
        return context

    def get_state(self) -> HeadState:
        """Return everything learned: the attributes whose names end in ``_``.

        Raises
        ------
        HeadError
            If an attribute is neither numeric arrays nor JSON.
        """
        check_is_fitted(self)
        learned = {name: value for name, value in vars(self).items() if is_learned(name)}
        try:
            return state_of(learned)
        except TypeError as error:
            raise HeadError(f"{self.name}: {error}") from error

    @classmethod
    def from_state(cls, params: Mapping[str, Any], state: HeadState) -> Self:
        """Return the fitted head that `get_params` and `get_state` described.

        Raises
        ------
        HeadError
            If the parameters do not fit, or the state holds what no fit leaves behind.
        """
        head = cls(**parse_params(cls, params))
        for name, value in learned_from(state).items():
            if not is_learned(name):
                raise HeadError(f"{cls.name}: {name!r} is no learned attribute")
            setattr(head, name, value)
        return head

    def _validate(self, X: ArrayLike | Bags, *, reset: bool) -> Floats:
        """Return X as a finite float32 or float64 matrix, or raise HeadError (TypeError for a sparse one).

        NaN passes where blocks may be missing, which `heads.missing` judges. A head that takes bags gets `Bags`.
        """
        if not isinstance(X, Bags):
            checked = self._matrix(X, reset=reset, fewest=1)
            return cast("Floats", Bags.of_rows(checked)) if self.accepts_bags else checked
        if not self.accepts_bags:
            takers = ", ".join(name for name in list_heads() if takes_bags(name))
            raise HeadError(f"{self.name} does not take bags; give it their mean, X.mean(), or use one of: {takers}")
        if not len(X):
            raise HeadError(f"{self.name}: no bags; expected at least one")
        return cast("Floats", X.with_values(self._matrix(X.values, reset=reset, fewest=0)))

    def _matrix(self, X: ArrayLike, *, reset: bool, fewest: int) -> Floats:
        """Return a matrix that scikit-learn has checked, of at least so many rows."""
        finite: bool | str = "allow-nan" if self.accepts_missing else True
        try:
            checked: Floats = validate_data(
                self,
                X,
                reset=reset,
                dtype=[np.float64, np.float32],
                ensure_all_finite=finite,
                ensure_min_samples=fewest,
            )
        except ValueError as error:
            raise HeadError(f"{self.name}: {error}") from error
        return checked

    def _features(self, X: ArrayLike | Bags) -> Floats:
        """Return the features of new rows, checked and standardised as in training."""
        check_is_fitted(self)
        features = self._validate(X, reset=False)
        if self.accepts_missing:
            check_missing(self.name, features, self.blocks_)
        return self._standardized(features)

    def _fit_scaling(self, X: Floats, weight: NDArray[np.float64]) -> Floats:
        """Learn the mean and the standard deviation of the training rows, and apply them."""
        if isinstance(X, Bags):
            # Every bag weighs the same, however many instances it has.
            each = (weight / np.maximum(X.lengths, 1))[X.bag_of]
            if not each.any():
                raise HeadError(f"{self.name}: all {len(X)} bags to learn from are empty; expected some instances")
            return cast("Floats", X.with_values(self._fit_scaling(X.values, each)))
        if self.standardize:
            share = weight / weight.sum()
            self.mean_: NDArray[np.float64] = known_mean(share, X)
            deviation = np.sqrt(known_mean(share, np.square(X - self.mean_)))
            noise = 10 * np.finfo(X.dtype).eps * np.abs(self.mean_)
            self.scale_: NDArray[np.float64] = np.where(deviation > noise, deviation, 1.0)
        return self._standardized(X)

    def _standardized(self, X: Floats) -> Floats:
        if isinstance(X, Bags):
            return cast("Floats", X.with_values(self._standardized(X.values)))
        if not self.standardize:
            return X
        scaled: Floats = ((X - self.mean_) / self.scale_).astype(X.dtype, copy=False)
        return scaled

    def _note(self, text: str) -> None:
        """Keep a remark on the fit and warn about it."""
        self.notes_.append(text)
        warnings.warn(f"{self.name}: {text}", HeadWarning, stacklevel=2)


class ClassifierHead(ClassifierMixin, Head):  # type: ignore[misc]
    """Base of heads for binary, multiclass and multilabel tasks.

    Attributes
    ----------
    classes_
        The labels in order, shape (C,); ``[0, 1]`` for multilabel.
    kind_
        The task kind found in `y`.
    constant_
        Multilabel only, shape (T,): NaN for a learned target, else the constant probability of a
        target whose training labels were all alike (or all missing: 0.5).
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({"binary", "multiclass", "multilabel"})
    class_weight: ClassWeight

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = "multiclass" in self.kinds
        tags.classifier_tags.multi_label = "multilabel" in self.kinds
        return tags

    @abstractmethod
    def _predict_proba(self, X: Floats) -> Floats:
        """Return probabilities: (n, C) for one label per row, (n, T) of the learned targets for multilabel."""

    def predict_proba(self, X: ArrayLike | Bags) -> NDArray[np.float64]:
        """Return probabilities, float64: (n, C) in the order of `classes_`, or (n, T) of the positive class."""
        return self._expand(self._predict_proba, X, constant=lambda probability: probability)

    def predict(self, X: ArrayLike | Bags) -> NDArray[Any]:
        """Return the most probable labels: (n,) of `classes_`, or (n, T) of 0 and 1."""
        probability = self.predict_proba(X)
        if self.kind_ == "multilabel":
            return (probability > 0.5).astype(np.int64)
        labels: NDArray[Any] = self.classes_[probability.argmax(axis=1)]
        return labels

    def _expand(self, score: Any, X: ArrayLike | Bags, *, constant: Any) -> NDArray[np.float64]:
        """Return the scores of all targets, those of constant targets made from their probability."""
        features = self._features(X)
        if self.kind_ != "multilabel":
            return np.asarray(score(features), dtype=np.float64)
        learned = np.isnan(self.constant_)
        scores = np.tile(constant(self.constant_), (len(features), 1))
        if learned.any():
            scores[:, learned] = score(features)
        return scores

    def _training(
        self, y: ArrayLike, X: Floats, weight: NDArray[np.float64], groups: Any, context: Context
    ) -> Training:
        if np.ndim(np.asarray(y, dtype=object)) == 2:
            return self._multilabel(y, X, weight, groups, context)
        return self._single_label(y, X, weight, groups, context)

    def _learnable(self, kind: Kind) -> Kind:
        if kind not in self.kinds:
            raise HeadError(f"{self.name} does not learn {kind} tasks; it learns {', '.join(sorted(self.kinds))}")
        return kind

    def _single_label(
        self, y: ArrayLike, X: Floats, weight: NDArray[np.float64], groups: Any, context: Context
    ) -> Training:
        labels = np.asarray(y)
        if labels.dtype.kind == "f":
            if np.isinf(labels).any():
                raise HeadError(f"{self.name}: {INFINITE}")
            missing = int(np.isnan(labels).sum())
            if missing:
                raise HeadError(f"{self.name}: {missing} of {len(labels)} labels are NaN; drop those rows")
        try:
            check_classification_targets(labels)
        except ValueError as error:
            raise HeadError(f"{self.name}: {error}") from error
        keep = weight > 0
        self.classes_, codes = np.unique(labels[keep], return_inverse=True)
        if len(self.classes_) < 2:
            raise HeadError(
                f"{self.name}: expected at least two classes in the training rows, found one class: "
                f"{', '.join(map(repr, self.classes_.tolist()))}"
            )
        self.kind_ = self._learnable("binary" if len(self.classes_) == 2 else "multiclass")
        total = weight[keep]
        if self.class_weight == "balanced":
            share = np.bincount(codes, weights=total)
            total = total * (total.sum() / (len(share) * share))[codes]
        return Training(
            X=self._fit_scaling(X[keep], weight[keep]),
            y=codes.astype(np.int64),
            weight=total,
            groups=None if groups is None else groups[keep],
            kind=self.kind_,
            classes=len(self.classes_),
            context=context.of_classes(self._prompt_rows(labels, context)),
            kept=np.flatnonzero(keep),
        )

    def _prompt_rows(self, labels: NDArray[Any], context: Context) -> NDArray[Any]:
        """Return which prompts belong to the classes learned: labels are the prompts' numbers, or all are present."""
        if context.prompts is None:
            return np.arange(0)
        if labels.dtype.kind in "iu" and labels.min() >= 0 and labels.max() < len(context.prompts):
            return np.asarray(self.classes_)
        if len(self.classes_) != len(context.prompts):
            raise HeadError(f"{self.name}: {len(context.prompts)} prompts for {len(self.classes_)} classes")
        return np.arange(len(self.classes_))

    def _multilabel(
        self, y: ArrayLike, X: Floats, weight: NDArray[np.float64], groups: Any, context: Context
    ) -> Training:
        self.kind_ = self._learnable("multilabel")
        labels = _numbers(self.name, y)
        observed = ~np.isnan(labels) & (weight[:, None] > 0)
        wrong = observed & (labels != 0) & (labels != 1)
        if wrong.any():
            row, target = np.argwhere(wrong)[0]
            raise HeadError(
                f"{self.name}: a multilabel target is 0, 1 or NaN (missing); "
                f"row {row}, target {target} is {labels[row, target]:g}"
            )
        self.classes_ = np.array([0, 1])
        positives = (observed & (labels == 1)).sum(axis=0)
        counts = observed.sum(axis=0)
        alike = (positives == 0) | (positives == counts)
        self.constant_: NDArray[np.float64] = np.where(alike, np.where(counts > 0, positives > 0, 0.5), np.nan)
        for target in np.flatnonzero(alike):
            found = f"all {counts[target]} labels are {int(positives[target] > 0)}" if counts[target] else "no label"
            self._note(f"target {target}: {found} in the training rows, so its prediction is constant")

        if context.prompts is not None and len(context.prompts) != len(alike):
            raise HeadError(f"{self.name}: {len(context.prompts)} prompts for {len(alike)} targets")
        labels, observed = np.nan_to_num(labels[:, ~alike]), observed[:, ~alike]
        total = observed * weight[:, None]
        if self.class_weight == "balanced":
            share = np.stack([(total * (labels == c)).sum(axis=0) for c in (0, 1)])
            balance = total.sum(axis=0) / (2 * share)
            total = total * np.where(labels == 1, balance[1], balance[0])
        keep = observed.any(axis=1)
        return Training(
            X=self._fit_scaling(X[keep], weight[keep]) if keep.any() else self._fit_scaling(X, np.ones(len(X)))[keep],
            y=labels[keep],
            weight=total[keep],
            groups=None if groups is None else groups[keep],
            kind="multilabel",
            classes=2,
            context=context.of_classes(~alike),
            kept=np.flatnonzero(keep),
        )


class RegressorHead(RegressorMixin, Head):  # type: ignore[misc]
    """Base of heads for regression on one or several targets.

    Attributes
    ----------
    n_targets_
        Number of targets; 0 if `y` was one-dimensional, and predictions then are.
    """

    kinds: ClassVar[frozenset[Kind]] = frozenset({"regression"})
    kind_: Kind = "regression"

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @abstractmethod
    def _predict(self, X: Floats) -> Floats:
        """Return predictions, shape (n, T)."""

    def predict(self, X: ArrayLike | Bags) -> NDArray[np.float64]:
        """Return predictions, float64, shape (n,) or (n, T) as `y` was."""
        values = np.asarray(self._predict(self._features(X)), dtype=np.float64)
        return values if self.n_targets_ else values[:, 0]

    def _training(
        self, y: ArrayLike, X: Floats, weight: NDArray[np.float64], groups: Any, context: Context
    ) -> Training:
        values = _numbers(self.name, y)
        self.n_targets_ = values.shape[1] if values.ndim == 2 else 0
        values = values.reshape(len(values), -1)
        observed = ~np.isnan(values) & (weight[:, None] > 0)
        if not observed.any(axis=0).all():
            missing = np.flatnonzero(~observed.any(axis=0)).tolist()
            raise HeadError(f"{self.name}: no value of target {', '.join(map(str, missing))} in the training rows")
        keep = observed.any(axis=1)
        return Training(
            X=self._fit_scaling(X[keep], weight[keep]),
            y=np.where(observed, values, 0.0)[keep],
            weight=(observed * weight[:, None])[keep],
            groups=None if groups is None else groups[keep],
            kind="regression",
            classes=0,
            context=context,
            kept=np.flatnonzero(keep),
        )


def _fit_job(
    job: Job, *, X: Any, y: NDArray[Any], groups: NDArray[Any] | None, context: Context | None
) -> Head | HeadError:
    """Fit one head on its rows, or return why it cannot be."""
    try:
        own = None if groups is None else groups[job.rows]
        return job.head.fit(X[job.rows], y[job.rows], sample_weight=job.weight, groups=own, context=context)
    except HeadError as error:
        return error


def _numbers(head: str, y: ArrayLike) -> NDArray[np.float64]:
    """Return targets as float64; NaN passes, infinity and text do not."""
    try:
        values = np.asarray(y, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise HeadError(f"{head}: the targets are not numbers: {error}") from error
    if values.ndim not in (1, 2):
        raise HeadError(f"{head}: expected targets of shape (n,) or (n, T), got {values.shape}")
    if np.isinf(values).any():
        raise HeadError(f"{head}: {INFINITE}")
    return values
