"""The architectures that fuse several blocks of features, and the prompts of the classes, into one network.

::

    ConcatFusion        block 0 --layers--,            WeightedSum    block 0 ------------- * scale 0 --,
                        block 1 --layers--+-- joined --...            block 1 --relu(linear)* scale 1 --+-- sum --...
                        prompts --layers--'                           prompts --relu(linear)* scale p --'

    PromptSimilarity    blocks --layers, joined, linear--,
                        prompts ----------linear---------+-- cosine per class

A block that is missing from a row (NaN throughout) contributes nothing, and the row's other blocks
count for more in proportion, so that the sum stays as large as it was in law.

The flattened prompts `p` are the same for every row. What the network makes of them is computed once
per step, and the first linear layer can be *collapsed*: every gradient of its weight W is a column
times p, so all that training can move is the product u = W p, a vector. The update of Adam is the
same for all entries of a row of W but for the sign of p (exactly so while its eps is small beside the
gradients), so W p moves by ||p||_1 times what u would: u learns with lr * ||p||_1, and decays as W
does. The products, and with them losses and logits, are those of the full layer, save behind a batch
norm, which lets nothing through but the rounding of a gradient that is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize, relu

from heads.training.layers import TrainingPass, linear, uniform_linear
from heads.training.perceptron import HiddenLayers, Perceptron

_FIRST_SCALE = 1 / 0.07
_LARGEST_SCALE = 100.0
_SLOWEST = 1e-9


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The blocks of features that stand side by side in x.

    Attributes
    ----------
    widths
        Their widths, in order.
    masked
        Whether blocks are missing from some of the training rows.
    dropout
        Share of the blocks that are left out in training, at random; a row keeps at least one.
    """

    widths: tuple[int, ...]
    masked: bool = False
    dropout: float = 0.0

    def split(self, x: Tensor, training: TrainingPass | None) -> tuple[list[Tensor], Tensor | None]:
        """Return the blocks of x (G, b, d), 0 where missing, and what each counts for.

        Returns
        -------
        blocks
            One tensor (G, b, d_k) for each.
        share
            0 for a missing block, else the number of blocks over that of the row's own, shape
            (G, b, K); None if no block of any row is missing.
        """
        parts = list(torch.split(x, list(self.widths), dim=-1))
        present = ~torch.stack([part[..., 0].isnan() for part in parts], dim=-1)
        # Known beforehand in training, so that a GPU need not be waited for at every step.
        masked = not bool(present.all()) if training is None else self.masked
        if masked:
            parts = [torch.where(present[..., k, None], part, 0.0) for k, part in enumerate(parts)]
        if training is not None and self.dropout:
            present = self._left(present, training)
        elif not masked:
            return parts, None
        return parts, present * (len(parts) / present.sum(dim=-1, keepdim=True).clamp(min=1))

    def _left(self, present: Tensor, training: TrainingPass) -> Tensor:
        """Return which blocks are left in; models of one stream leave out the same ones."""
        left = present & (training.random(partial(_uniform, present.shape[1:])) >= self.dropout)
        return torch.where(left.any(dim=-1, keepdim=True), left, present)


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Hidden layers for each block, whose outcomes are joined side by side."""

    blocks: Blocks
    layers: tuple[HiddenLayers, ...]

    @property
    def outputs(self) -> int:
        """Length of what comes out."""
        return sum(layers.outputs for layers in self.layers)

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model."""
        return {name: value for layers in self.layers for name, value in layers.initial(generator).items()}

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model."""
        return {name: value for layers in self.layers for name, value in layers.running().items()}

    def forward(self, state: Mapping[str, Tensor], x: Tensor, training: TrainingPass | None) -> Tensor:
        """Return (G, b, outputs) of features (G, b, d)."""
        parts, share = self.blocks.split(x, training)
        joined = []
        for k, (layers, part) in enumerate(zip(self.layers, parts, strict=True)):
            if share is None:
                joined.append(layers.forward(state, part, training))
            else:
                joined.append(layers.forward(state, part, _of_rows(training, share[..., k])) * share[..., k, None])
        return torch.cat(joined, dim=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptBranch:
    """Hidden layers of the flattened prompts, which are the same for every row.

    With batch norm the layers see as many copies as there are rows, as published: the norm takes
    the constant away. Without, they see one, and no dropout, which would be one mask for all rows.

    Attributes
    ----------
    prompts
        The flattened prompts, float32, shape (C * p,).
    layers
        Its first linear layer is the one that is large.
    collapsed
        Whether only the product of that layer and the prompts is kept, see the module's text.
    """

    prompts: NDArray[np.float32]
    layers: HiddenLayers
    collapsed: bool = True

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model; collapsed or not, the product is the same."""
        weights = self.layers.initial(generator)
        if self.collapsed:
            # A matrix of one row, for matrices decay.
            weights[self._product] = self._vector @ weights.pop(self._weight)
        return weights

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model; the full layer keeps the prompts there."""
        kept = {} if self.collapsed else {f"{self.layers.prefix}vector": self._vector}
        return self.layers.running() | kept

    def lr_factors(self) -> dict[str, float]:
        """Return what the learning rate of the product is multiplied by; next to nothing for prompts of zeros."""
        return {self._product: max(speed(self.prompts), _SLOWEST)} if self.collapsed else {}

    def forward(self, state: Mapping[str, Tensor], rows: int, training: TrainingPass | None) -> Tensor:
        """Return (G, 1, outputs) or, where rows differ, (G, rows, outputs)."""
        bias = state[f"{self.layers.prefix}0.bias"]
        if self.collapsed:
            x = state[self._product] + bias[:, None]
        else:
            x = linear(state[f"{self.layers.prefix}vector"], state[self._weight], bias)
        if self.layers.norm == "batch":
            x = x.expand(-1, rows, -1)
        else:
            training = None
        return self.layers.forward(state, self.layers.after_linear(state, 0, x, training), training, first=1)

    @property
    def _vector(self) -> Tensor:
        return torch.from_numpy(self.prompts.copy())[None]

    @property
    def _weight(self) -> str:
        return f"{self.layers.prefix}0.weight"

    @property
    def _product(self) -> str:
        return f"{self.layers.prefix}0.product"


@dataclass(frozen=True, kw_only=True, eq=False)
class ConcatFusion:
    """Each block and the prompts through hidden layers of their own, joined, and a perceptron of that.

    Attributes
    ----------
    branches
        The blocks' layers.
    prompts
        The prompts' layers, or None without prompts.
    trunk
        The perceptron; its inputs are what the branches put out, the prompts last.
    """

    branches: Branches
    prompts: PromptBranch | None
    trunk: Perceptron

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model."""
        prompts = {} if self.prompts is None else self.prompts.initial(generator)
        return self.branches.initial(generator) | prompts | self.trunk.initial(generator)

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model."""
        prompts = {} if self.prompts is None else self.prompts.running()
        return self.branches.running() | prompts | self.trunk.running()

    def lr_factors(self) -> dict[str, float]:
        """Return what the learning rate of the collapsed prompts is multiplied by."""
        return {} if self.prompts is None else self.prompts.lr_factors()

    def forward(self, state: Mapping[str, Tensor], x: Tensor, training: TrainingPass | None) -> Tensor:
        """Return logits (G, b, outputs) of features (G, b, d)."""
        joined = self.branches.forward(state, x, training)
        if self.prompts is not None:
            prompts = self.prompts.forward(state, joined.shape[1], training)
            joined = torch.cat([joined, prompts.expand(-1, joined.shape[1], -1)], dim=-1)
        return self.trunk.forward(state, joined, training)


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightedSum:
    """The first block, the others and the prompts brought to its width, each scaled by a learned vector, and summed.

    Attributes
    ----------
    blocks
        The blocks; the first one's width is that of the sum.
    prompts
        One layer of that width, or None without prompts.
    trunk
        The perceptron of the sum.
    """

    blocks: Blocks
    prompts: PromptBranch | None
    trunk: Perceptron

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model; all scales begin with ones."""
        first, *others = self.blocks.widths
        weights = {} if self.prompts is None else self.prompts.initial(generator) | {"prompt.scale": torch.ones(first)}
        for k, width in enumerate(others, start=1):
            weights[f"block{k}.weight"], weights[f"block{k}.bias"] = uniform_linear(width, first, generator)
        weights |= {f"block{k}.scale": torch.ones(first) for k in range(len(self.blocks.widths))}
        return weights | self.trunk.initial(generator)

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model."""
        prompts = {} if self.prompts is None else self.prompts.running()
        return prompts | self.trunk.running()

    def lr_factors(self) -> dict[str, float]:
        """Return what the learning rate of the collapsed prompts is multiplied by."""
        return {} if self.prompts is None else self.prompts.lr_factors()

    def forward(self, state: Mapping[str, Tensor], x: Tensor, training: TrainingPass | None) -> Tensor:
        """Return logits (G, b, outputs) of features (G, b, d)."""
        parts, share = self.blocks.split(x, training)
        parts[1:] = [
            relu(linear(part, state[f"block{k}.weight"], state[f"block{k}.bias"]))
            for k, part in enumerate(parts[1:], start=1)
        ]
        scaled = [part * state[f"block{k}.scale"][:, None] for k, part in enumerate(parts)]
        if share is not None:
            scaled = [part * share[..., k, None] for k, part in enumerate(scaled)]
        total = torch.stack(scaled).sum(dim=0) if len(scaled) > 1 else scaled[0]
        if self.prompts is not None:
            total = total + self.prompts.forward(state, x.shape[1], training) * state["prompt.scale"][:, None]
        return self.trunk.forward(state, total, training)


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptSimilarity:
    """Scaled cosine of each row and the prompt of each class, in a learned space that both are brought to.

    Attributes
    ----------
    branches
        The blocks' layers.
    prompts
        The prompts, float32, shape (C, p).
    width
        Length of vectors in the space.
    outputs
        Number of logits: C, or 1 for the difference of two classes.
    """

    branches: Branches
    prompts: NDArray[np.float32]
    width: int
    outputs: int

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model."""
        weights = self.branches.initial(generator)
        weights["row.weight"], weights["row.bias"] = uniform_linear(self.branches.outputs, self.width, generator)
        length = self.prompts.shape[1]
        weights["prompt.weight"], weights["prompt.bias"] = uniform_linear(length, self.width, generator)
        weights["logits.log_scale"] = torch.full((1,), math.log(_FIRST_SCALE))
        weights["logits.bias"] = torch.zeros(self.outputs)
        return weights

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model, with the prompts."""
        return self.branches.running() | {"prompt.vectors": torch.from_numpy(self.prompts.copy())}

    def forward(self, state: Mapping[str, Tensor], x: Tensor, training: TrainingPass | None) -> Tensor:
        """Return logits (G, b, outputs) of features (G, b, d)."""
        fused = self.branches.forward(state, x, training)
        rows = normalize(linear(fused, state["row.weight"], state["row.bias"]), dim=-1)
        prompts = normalize(linear(state["prompt.vectors"], state["prompt.weight"], state["prompt.bias"]), dim=-1)
        scale = state["logits.log_scale"].exp().clamp(max=_LARGEST_SCALE)
        logits = scale[:, None] * (rows @ prompts.transpose(1, 2))
        if self.outputs == 1:
            logits = logits[..., 1:] - logits[..., :1]
        return logits + state["logits.bias"][:, None]


def speed(prompts: NDArray[np.float32]) -> float:
    """Return how many times faster than another bias the branch of the prompts learns: the sum of absolute values."""
    return float(np.abs(prompts, dtype=np.float64).sum())


def _uniform(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _of_rows(training: TrainingPass | None, share: Tensor) -> TrainingPass | None:
    """Return the training step for the rows that are there: only they go into the statistics of a batch norm."""
    if training is None:
        return None
    real = training.row_share * (share > 0)[:, None]
    return replace(training, row_share=real / real.sum(dim=-1, keepdim=True).clamp(min=1e-9))
