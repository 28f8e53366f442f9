"""The networks of the `attention_mil` head: pool a bag to one vector, then one linear layer.

Each branch of the pooling gives a vector of the embeddings' own length; a hybrid joins two. Bags of two
levels are pooled within their parts and then across them, by weights of their own. A learned vector of its
view may be added to each instance, or part, before these are pooled to their bag's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from heads.training.layers import layer_norm, linear, uniform_linear
from heads.training.segments import Packed, Segments, segment_attention, segment_max

Pooling = Literal["mean", "max", "attention", "cls_token", "mean+cls_token", "attention+cls_token"]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Branch(ABC):
    """One way to pool rows; the names of its weights begin with `name`."""

    name: str

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG002 - for those that have weights
        """Return the initial weights of one model."""
        return {}

    @abstractmethod
    def pool(self, state: State, x: Tensor, segments: Segments) -> Tensor:
        """Return one vector per segment, (G, n, d), of rows (G, m, d); that of a segment without rows is finite."""

    @abstractmethod
    def shares(self, state: State, x: Tensor, segments: Segments) -> Tensor:
        """Return how much each row counts in its segment, (G, m), summing to one."""


class Max(Branch):
    """Each feature is taken from the row where it is greatest."""

    def pool(self, state: State, x: Tensor, segments: Segments) -> Tensor:  # noqa: ARG002
        """Return the maxima; 0 for a segment without rows."""
        return segment_max(x, segments)

    def shares(self, state: State, x: Tensor, segments: Segments) -> Tensor:
        """Return the share of the features that are taken from a row; rows that tie share them."""
        greatest = (x == self.pool(state, x, segments)[:, segments.of]).to(x)
        tied = x.new_zeros(len(x), len(segments), x.shape[2]).index_add(1, segments.of, greatest)
        return (greatest / tied[:, segments.of]).mean(dim=2)


class Mean(Branch):
    """All rows count the same, and for those that derive from it, by the softmax of their scores."""

    def scores(self, state: State, x: Tensor) -> Tensor:  # noqa: ARG002
        """Return the score of each row and attention head, (G, m, H)."""
        return x.new_zeros(*x.shape[:2], 1)

    def pool(self, state: State, x: Tensor, segments: Segments) -> Tensor:
        """Return the weighted means; 0 for a segment without rows."""
        return segment_attention(self.scores(state, x), x, segments)[0][:, :, 0]

    def shares(self, state: State, x: Tensor, segments: Segments) -> Tensor:
        """Return the weights, means over the attention heads."""
        scores = self.scores(state, x)
        return torch.exp(scores - segment_attention(scores, x, segments)[1][:, segments.of]).mean(dim=2)


@dataclass(frozen=True)
class GatedAttention(Mean):
    """Scores ``w (tanh(V x) * sigmoid(U x))`` [1]_.

    References
    ----------
    .. [1] Ilse, Tomczak and Welling, "Attention-based Deep Multiple Instance Learning", ICML 2018.
    """

    inputs: int
    hidden: int

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return V and U side by side, and w; a bias of the scores would cancel in the softmax."""
        weight, bias = uniform_linear(self.inputs, 2 * self.hidden, generator)
        score, _ = uniform_linear(self.hidden, 1, generator)
        return {f"{self.name}.gate.weight": weight, f"{self.name}.gate.bias": bias, f"{self.name}.score.weight": score}

    def scores(self, state: State, x: Tensor) -> Tensor:
        """Return the score of each row, (G, m, 1)."""
        gates = linear(x, state[f"{self.name}.gate.weight"], state[f"{self.name}.gate.bias"])
        value, gate = gates[..., : self.hidden], gates[..., self.hidden :]
        return (torch.tanh(value) * torch.sigmoid(gate)) @ state[f"{self.name}.score.weight"]


@dataclass(frozen=True)
class ClassToken(Mean):
    """A learned token before the rows, which attends to them and to itself: ``norm(t + attention(t, [t, x]))``.

    Multi-head attention as in torch's ``MultiheadAttention``, for the token alone. As its query is the
    same for all segments, and the weights sum to one, the projections of keys and values move to the other
    side of the sums: the rows meet H vectors instead of two matrices (d, d).
    """

    inputs: int
    heads: int

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the token, the projections, and the norm; a bias of the keys would cancel in the softmax."""
        d = self.inputs
        weights = {"token": torch.empty(d).normal_(0, 0.02, generator=generator)}
        for part in ("query", "key", "value", "out"):
            weights[f"{part}.weight"], weights[f"{part}.bias"] = uniform_linear(d, d, generator)
        del weights["key.bias"]
        weights |= {"norm.gain": torch.ones(d), "norm.bias": torch.zeros(d)}
        return {f"{self.name}.{part}": weight for part, weight in weights.items()}

    def scores(self, state: State, x: Tensor) -> Tensor:
        """Return the score of each row and attention head, (G, m, H)."""
        query = linear(self._token(state), state[f"{self.name}.query.weight"], state[f"{self.name}.query.bias"])
        query = query.view(len(query), self.heads, -1)
        key = self._by_head(state[f"{self.name}.key.weight"])
        directions = torch.einsum("gdhe,ghe->gdh", key, query) * float(query.shape[2]) ** -0.5
        return torch.matmul(x, directions)

    def pool(self, state: State, x: Tensor, segments: Segments) -> Tensor:
        """Return what the token has become; it is alone in a segment without rows."""
        token = self._token(state)
        pooled, log_total = segment_attention(self.scores(state, x), x, segments)
        # What the rows weigh beside the token itself, (G, n, H, 1).
        rows = torch.sigmoid(log_total - self.scores(state, token))[..., None]
        pooled = rows * pooled + (1 - rows) * token[:, None]
        value = self._by_head(state[f"{self.name}.value.weight"])
        heads = torch.einsum("gnhd,gdhe->gnhe", pooled, value).flatten(2) + state[f"{self.name}.value.bias"][:, None]
        attended = linear(heads, state[f"{self.name}.out.weight"], state[f"{self.name}.out.bias"])
        return layer_norm(token + attended, state[f"{self.name}.norm.gain"], state[f"{self.name}.norm.bias"])

    def _by_head(self, weight: Tensor) -> Tensor:
        """Return a projection (G, d, d) as one per attention head, (G, d, H, d / H)."""
        return weight.view(*weight.shape[:2], self.heads, -1)

    def _token(self, state: State) -> Tensor:
        return state[f"{self.name}.token"][:, None]


@dataclass(frozen=True, kw_only=True)
class BagNetwork:
    """A pooling, and a linear layer on what it gives.

    Attributes
    ----------
    inputs
        Length of an embedding.
    outputs
        Number of logits.
    pooling
        How a bag becomes one vector; a hybrid's are joined.
    hidden
        Width of the gated attention.
    heads
        Attention heads of the class token, which must divide `inputs`.
    levels
        1, or 2 for bags of parts.
    views
        Number of views, one of which stands for all that are not known; 0 for bags without views.
    """

    inputs: int
    outputs: int
    pooling: Pooling
    hidden: int = 128
    heads: int = 1
    levels: int = 1
    views: int = 0

    @property
    def branches(self) -> list[tuple[Branch, ...]]:
        """The poolings side by side, each one per level."""
        return [tuple(self._branch(kind, level) for level in range(self.levels)) for kind in self.pooling.split("+")]

    @property
    def width(self) -> int:
        """Length of the vector that a bag is pooled to."""
        return self.inputs * len(self.branches)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model."""
        weights: dict[str, Tensor] = {}
        for branch in (branch for levels in self.branches for branch in levels):
            weights.update(branch.initial(generator))
        weights["logits.weight"], weights["logits.bias"] = uniform_linear(self.width, self.outputs, generator)
        if self.views:
            weights["view.weight"] = torch.zeros(self.views, self.inputs)
        return weights

    def forward(self, state: State, bags: Packed, scale: Tensor | None = None) -> Tensor:
        """Return logits (G, n, outputs).

        Parameters
        ----------
        state
            Weights stacked over models.
        bags
            n bags.
        scale
            What the pooled vectors are multiplied by, shape (n, width): the dropout of a training step.
        """
        pooled = self.pool(state, bags)
        if scale is not None:
            pooled = pooled * scale
        return linear(pooled, state["logits.weight"], state["logits.bias"])

    def pool(self, state: State, bags: Packed) -> Tensor:
        """Return the vector of each bag, (G, n, width)."""
        joined = []
        for branch in self.branches:
            x = self._rows(state, bags)
            for level, segments in zip(branch, bags.levels, strict=True):
                x = level.pool(state, self._viewed(state, x, bags, segments), segments)
            joined.append(x)
        return torch.cat(joined, dim=2)

    def shares(self, state: State, bags: Packed) -> Tensor:
        """Return how much each instance counts in its bag, (G, m), summing to one; of a hybrid, the mean."""
        shares = []
        for branch in self.branches:
            x = self._rows(state, bags)
            share, at = x.new_ones(x.shape[:2]), torch.arange(x.shape[1], device=x.device)
            for level, segments in zip(branch, bags.levels, strict=True):
                x = self._viewed(state, x, bags, segments)
                share = share * level.shares(state, x, segments)[:, at]
                x, at = level.pool(state, x, segments), segments.of[at]
            shares.append(share)
        return torch.stack(shares).mean(dim=0)

    @staticmethod
    def _rows(state: State, bags: Packed) -> Tensor:
        """Return the instances for every model, (G, m, d)."""
        return bags.x.expand(len(state["logits.bias"]), *bags.x.shape)

    def _viewed(self, state: State, x: Tensor, bags: Packed, segments: Segments) -> Tensor:
        """Return the rows of a level, each with the vector of its view added to it where they are pooled to bags."""
        if bags.views is None or segments is not bags.levels[-1]:
            return x
        # A product with few views: unlike that of an index, its gradient is deterministic on every device.
        return x + one_hot(bags.views, self.views).to(x) @ state["view.weight"]

    def _branch(self, kind: str, level: int) -> Branch:
        name = f"{kind}.{level}"
        if kind == "attention":
            return GatedAttention(name, self.inputs, self.hidden)
        if kind == "cls_token":
            return ClassToken(name, self.inputs, self.heads)
        return Mean(name) if kind == "mean" else Max(name)
