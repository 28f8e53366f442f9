"""Pairs of inputs and texts: the joint batch that the losses of pairs share, and its learned similarity."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import normalize

from data.errors import TaskError
from data.task import Kind, Targets
from finetune.gather import gather_rows
from finetune.outputs import Objective, Outputs

PAIRED = frozenset({"vectors", "texts", "text_ids"})
"""What the losses of pairs need."""

Positives = Literal["text", "target"]
"""What makes two pairs alike: the same text, or also the same target."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of all processes; row i of both sides is one pair.

    Attributes
    ----------
    vectors, texts
        Embeddings of inputs and texts, float32 (float64 if they were), shape (B, d).
    same
        Whether pairs i and j are alike, shape (B, B), bool; true on the diagonal.
    weights
        How much each pair counts, shape (B,), with a mean of 1; all 0 where no pair of the batch counts.
    """

    vectors: Tensor
    texts: Tensor
    same: Tensor
    weights: Tensor

    @classmethod
    def gather(cls, outputs: Outputs, positives: Positives = "text") -> Pairs:
        """Return the pairs of the joint batch; gathered and compared in full precision.

        Parameters
        ----------
        outputs
            Of this process.
        positives
            Whether pairs are alike with equal texts, or with equal texts or equal known targets.
        """
        vectors, texts, text_ids = outputs.vectors, outputs.texts, outputs.text_ids
        assert vectors is not None
        assert texts is not None
        assert text_ids is not None
        same = _equal(gather_rows(text_ids))
        if positives == "target":
            assert outputs.target_ids is not None
            same = same | _equal(gather_rows(outputs.target_ids))
        vectors, texts = gather_rows(in_full(vectors)), gather_rows(in_full(texts))
        weights = vectors.new_ones(len(vectors))
        if outputs.weights is not None:
            given = gather_rows(outputs.weights).to(vectors.dtype)
            weights = given / torch.where(given.any(), given.mean(), 1.0)
        return cls(vectors, texts, same, weights)


class LossOfPairs(Objective):
    """A loss of all pairs of a batch that has a setting ``positives`` and heeds the weights of samples."""

    needs: ClassVar[frozenset[str]] = PAIRED
    weighted: ClassVar[bool] = True
    joint: ClassVar[bool] = True

    @classmethod
    def needed(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """Return the fields of `Outputs` that have to be there."""
        return PAIRED | {"target_ids"} if settings.get("positives") == "target" else PAIRED


class Similarity(nn.Module):
    """Logits of all pairs: a learned scale times the cosine, plus a learned bias where there is one.

    Parameters
    ----------
    temperature
        What the scale begins with the inverse of.
    bias
        What the bias begins with; None for no bias.
    max_scale
        The scale is held to this at most: a greater one makes the loss a maximum over the batch and its
        gradients noise [1]_.

    References
    ----------
    .. [1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, 2.5.
    """

    def __init__(self, *, temperature: float, bias: float | None = None, max_scale: float = 100.0) -> None:
        super().__init__()
        self.max_scale = max_scale
        self.logit_scale = nn.Parameter(torch.tensor(-math.log(temperature)))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def forward(self, pairs: Pairs) -> Tensor:
        """Return the logit of every input (rows) with every text (columns), shape (B, B)."""
        cosine = normalize(pairs.vectors, dim=1) @ normalize(pairs.texts, dim=1).T
        # The parameter itself is held, not its value alone: beyond the bound a clamped value has no gradient.
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(self.max_scale))
        logits = self.logit_scale.exp() * cosine
        return logits if self.logit_bias is None else logits + self.logit_bias

    def values(self) -> dict[str, float]:
        """Return ``scale`` and, where there is one, ``bias``: logits are ``scale * cosine + bias``."""
        scale = {"scale": min(math.exp(self.logit_scale.item()), self.max_scale)}
        return scale if self.logit_bias is None else scale | {"bias": self.logit_bias.item()}


def number_texts(texts: Sequence[str]) -> Tensor:
    """Return numbers that are equal where texts are, in every process and every run: int64, shape (n,).

    They are 63 bits of BLAKE2b; among a million different texts two share a number with a chance of 5e-8.
    """
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)


def number_targets(targets: Targets, kind: Kind) -> NDArray[np.int64]:
    """Return numbers that are equal where targets are known and equal, of several labels all of them, shape (n,).

    Raises
    ------
    TaskError
        If the targets are numbers, which are equal by chance only.
    """
    if kind == "regression":
        raise TaskError("positives=target: needs classes or labels, and the task is regression; use positives=text")
    columns = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
    numbers = np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)
    known = (columns >= 0).all(axis=1)
    return np.where(known, numbers, -1 - np.arange(len(numbers)))


def _equal(ids: Tensor) -> Tensor:
    return ids[:, None] == ids[None, :]


def in_full(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def full_precision(like: Tensor) -> torch.autocast:
    """Return a context in which products are not rounded to 16 bits on the device of a tensor."""
    return torch.autocast(like.device.type, enabled=False)
