"""Zero-shot: the class whose prompt points in the direction of the features; learns from no sample."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax

from heads.base import ClassifierHead, Context, Floats, Positive, SearchSpace, Training
from heads.errors import HeadError

CLIP_SCALE = 100.0
"""The scale that CLIP's training is capped at, and ends at."""


class ZeroShotClassifier(ClassifierHead):
    """Softmax or sigmoid of the scaled cosines between features and prompts of one common space.

    Of the samples it keeps the names of the classes, and nothing else. With cosines c and a scale s, a class of a
    binary or multiclass task has the probability softmax(s c) over the classes, and a label of a multilabel task
    softmax over its own pair of prompts, sigmoid(s (c_positive - c_negative)).

    Parameters
    ----------
    scoring
        ``softmax``, as above; ``sigmoid`` is SigLIP's own, sigmoid(s c + b) of each label by itself, where a binary
        task has one label, its positive class.
    logit_scale
        s; ``checkpoint`` takes the checkpoint's own, and CLIP's 100 with a remark if it states none.
    logit_bias
        b; ``checkpoint`` takes the checkpoint's own, and 0 with a remark if it states none.

    Attributes
    ----------
    prompts_, negative_prompts_
        Unit vectors of the prompts, shape (C, d) or (T, d); the negative ones of multilabel tasks only.
    scale_of_logits_, bias_of_logits_
        s and b.
    """

    name = "zero_shot"
    needs_prompts = True
    compares_prompts = True
    learns_from_rows = False

    # A common space has an origin and a scale that the rows at hand do not move.
    standardize = False
    class_weight = None

    def __init__(
        self,
        *,
        scoring: Literal["softmax", "sigmoid"] = "softmax",
        logit_scale: Positive | Literal["checkpoint"] = "checkpoint",
        logit_bias: float | Literal["checkpoint"] = "checkpoint",
    ) -> None:
        self.scoring = scoring
        self.logit_scale = logit_scale
        self.logit_bias = logit_bias

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return nothing: there is nothing to search."""
        return {}

    def _training(
        self,
        y: ArrayLike,
        X: Floats,
        weight: NDArray[np.float64],
        groups: Any,  # noqa: ARG002  there is no inner split
        context: Context,
    ) -> Training:
        assert context.prompts is not None  # the base has refused that
        labels, n = np.asarray(y), len(context.prompts)
        # The prompts know every class, whichever the rows at hand happen to show: rows of no meaning show them all.
        shown = _every_class(labels, n)
        return super()._training(
            np.concatenate([labels, shown]),
            np.concatenate([X, np.zeros((len(shown), X.shape[1]), X.dtype)]),
            np.concatenate([weight, np.ones(len(shown))]),
            None,
            context,
        )

    def _fit(self, training: Training) -> None:
        context = training.context
        assert context.prompts is not None
        if self.scoring == "sigmoid" and training.kind == "multiclass":
            raise HeadError(
                "zero_shot: scoring=sigmoid judges each label by itself, and exactly one of several classes is true; "
                "use scoring=softmax"
            )
        if context.prompts.shape[1] != training.X.shape[1]:
            raise HeadError(
                f"zero_shot compares features with prompts of the same space, but features have "
                f"{training.X.shape[1]} dimensions and prompts {context.prompts.shape[1]}; "
                f"encode both by one checkpoint"
            )
        self.prompts_ = unit(context.prompts)
        self.scale_of_logits_ = self._stated("scale", self.logit_scale, context.logit_scale, CLIP_SCALE)
        if self.scoring == "sigmoid":
            self.bias_of_logits_ = self._stated("bias", self.logit_bias, context.logit_bias, 0.0)
        elif training.kind == "multilabel":
            if context.negative_prompts is None:
                raise HeadError(
                    "zero_shot: a label is told by a pair of prompts, and there are no negative prompts; "
                    "give them, or use scoring=sigmoid"
                )
            self.negative_prompts_ = unit(context.negative_prompts)

    def _stated(self, what: str, chosen: float | str, checkpoints: float | None, default: float) -> float:
        """Return a parameter as it is chosen, else the checkpoint's, else the default with a remark."""
        if not isinstance(chosen, str):
            return float(chosen)
        if checkpoints is None:
            self._note(
                f"the checkpoint states no {what} of logits, so {default:g} is taken (--set logit_{what}=...); "
                f"probabilities depend on it"
            )
        return default if checkpoints is None else checkpoints

    def _predict_proba(self, X: Floats) -> Floats:
        rows = unit(X)
        logits = self.scale_of_logits_ * (rows @ self.prompts_.T)
        if self.scoring == "sigmoid":
            probability = expit(logits + self.bias_of_logits_)
            if self.kind_ == "multilabel":
                return np.asarray(probability)
            return np.column_stack([1 - probability[:, 1], probability[:, 1]])
        if self.kind_ == "multilabel":
            return np.asarray(expit(logits - self.scale_of_logits_ * (rows @ self.negative_prompts_.T)))
        return np.asarray(softmax(logits, axis=1))


def unit(X: NDArray[Any]) -> NDArray[np.float64]:
    """Return rows scaled to unit length, float64; a row of zeros stays one."""
    rows = X.astype(np.float64)
    scaled: NDArray[np.float64] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def _every_class(labels: NDArray[Any], n: int) -> NDArray[Any]:
    """Return labels of made-up rows that show every class, or each label present and absent.

    Labels that are no codes have names that only the rows know; the base counts them against the prompts.
    """
    if labels.ndim == 2:
        return np.repeat([[0.0], [1.0]], labels.shape[1], axis=1)
    return np.arange(n, dtype=labels.dtype) if labels.dtype.kind in "iu" and (labels < n).all() else labels[:0]


HEADS = (ZeroShotClassifier,)
