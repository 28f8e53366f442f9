"""Triplet margin loss: an input is nearer to its own text than to another one, by a margin."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize, pairwise_distance

from finetune.outputs import Objective, Outputs
from finetune.pairs import PAIRED, Pairs, full_precision
from heads.params import Positive

Negative = Literal["roll", "random", "hardest"]
Distance = Literal["l2", "cosine"]


class Triplet(Objective):
    r"""Mean hinge over the inputs of the joint batch [1]_.

    .. math:: L = \operatorname{mean}_i \max\big(0,\ m + d(u_i, v_i) - d(u_i, v_{n(i)})\big)

    The anchor is an input, the positive its text, the negative n(i) another text of the batch, never one equal to
    the positive. Embeddings that have collapsed to a point cost exactly the margin. An input without a possible
    negative (all texts of the batch are equal to its own) is left out of the mean and counted.

    Parameters
    ----------
    margin
        m; 1 as in `torch.nn.functional.triplet_margin_loss`.
    negative
        ``roll``: the next pair of the batch whose text differs. ``random``: any that differs, with equal chances.
        ``hardest``: the nearest one [2]_.
    distance
        ``l2`` between the vectors as they are, as torch computes it (p = 2, eps = 1e-6); ``cosine``: 1 - cosine,
        from 0 to 2, so that a margin of 1 asks for a right angle: 0.2 is usual.
    seed
        Of the random negatives. The k-th training batch has the same draws in every run and process; every batch
        that is evaluated has those of the first.

    Attributes
    ----------
    drawn
        How many training batches have drawn negatives; part of the state, so that a resumed run goes on with it.
    without_negative
        How many inputs had no possible negative in training so far.

    References
    ----------
    .. [1] Schroff et al., "FaceNet: A Unified Embedding for Face Recognition and Clustering", CVPR 2015.
    .. [2] Hermans et al., "In Defense of the Triplet Loss for Person Re-Identification", 2017.
    """

    name: ClassVar[str] = "triplet"
    needs: ClassVar[frozenset[str]] = PAIRED
    joint: ClassVar[bool] = True

    drawn: Tensor
    without_negative: Tensor

    def __init__(
        self, *, margin: Positive = 1.0, negative: Negative = "roll", distance: Distance = "l2", seed: int = 0
    ) -> None:
        super().__init__()
        self.margin = margin
        self.negative = negative
        self.distance = distance
        self.seed = seed
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.register_buffer("without_negative", torch.zeros((), dtype=torch.int64))

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of the joint batch; 0 if no input of it has a possible negative."""
        pairs = Pairs.gather(outputs)
        with full_precision(pairs.vectors):
            possible = ~pairs.same
            has_one = possible.any(dim=1)
            nearest = self._distance(pairs.vectors, pairs.texts)
            farther = self._distance(pairs.vectors, pairs.texts[self._negatives(pairs, possible)])
            hinge = (self.margin + (nearest - farther)).clamp(min=0)
            if self.training:
                self.without_negative += (~has_one).sum()
            return torch.where(has_one, hinge, 0.0).sum() / has_one.sum().clamp(min=1)

    def measures(self) -> dict[str, float]:
        """Return how many inputs have been left out in training so far."""
        return {"without_negative": float(self.without_negative)}

    def _negatives(self, pairs: Pairs, possible: Tensor) -> Tensor:
        """Return the negative's row of each anchor, shape (B,); any row where none is possible."""
        if self.negative == "hardest":
            with torch.no_grad():
                return self._distances(pairs).masked_fill(~possible, torch.inf).argmin(dim=1)
        size = len(possible)
        if self.negative == "roll":
            row = torch.arange(size, device=possible.device)
            steps = (row[None, :] - row[:, None]) % size
            return steps.masked_fill(~possible, size).argmin(dim=1)
        # Drawn on the CPU, whose generator gives the same numbers everywhere.
        keys = torch.rand(size, size, generator=self._generator()).to(possible.device)
        return keys.masked_fill(~possible, -1.0).argmax(dim=1)

    def _generator(self) -> torch.Generator:
        batch = int(self.drawn) if self.training else 0
        if self.training:
            self.drawn += 1
        # A product with an odd number permutes the 64-bit numbers: seeds and batches do not share streams.
        mixed = (self.seed * 0x9E3779B97F4A7C15 + batch) % 2**63
        return torch.Generator().manual_seed(mixed)

    def _distances(self, pairs: Pairs) -> Tensor:
        """Return the distance of every input and every text, shape (B, B)."""
        if self.distance == "cosine":
            return 1 - normalize(pairs.vectors, dim=1) @ normalize(pairs.texts, dim=1).T
        return torch.cdist(pairs.vectors, pairs.texts)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        return pairwise_distance(a, b) if self.distance == "l2" else 1 - cosine_similarity(a, b, dim=-1)
