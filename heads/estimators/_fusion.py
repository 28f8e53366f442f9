"""What the heads share that fuse blocks of features, and prompts, in one network."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heads.bags import Bags
from heads.base import Choice, Context, Range, SearchSpace, Training
from heads.errors import HeadError
from heads.estimators.mlp import _PerceptronHead
from heads.training.fusion import Blocks, Branches, PromptBranch, speed
from heads.training.perceptron import HiddenLayers, Norm, Perceptron


class FusionHead(_PerceptronHead):
    """A network of several branches; it knows which columns belong together, and rows may lack some of them.

    Attributes
    ----------
    blocks_
        Widths of the blocks of features.
    prompts_
        The prompts of the learned classes or targets, shape (C, p); not there without prompts.
    masked_
        Whether a block was missing from a training row.
    """

    accepts_missing = True
    uses_prompts = True
    branch_hidden: tuple[Any, ...]
    modality_dropout: float

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {
            "dropout": Range(0.0, 0.7),
            "input_noise": Range(0.0, 0.5),
            "modality_dropout": Choice((0.0, 0.2)),
            "lr": Range(1e-4, 1e-2, log=True),
            "weight_decay": Range(1e-4, 1.0, log=True),
        }

    def _context(self, context: Context | None, width: int) -> Context:
        context = super()._context(context, width)
        if len(context.blocks) < 2 and context.prompts is None:
            raise HeadError(
                f"{self.name} fuses two or more sets of features, or features and prompts, and there is one set of "
                f"features; give several --encoder, or --prompt-encoder"
            )
        return context

    def _prepare(
        self,
        X: ArrayLike | Bags,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        groups: Any = None,
        context: Context | None = None,
    ) -> Training:
        training = super()._prepare(X, y, sample_weight=sample_weight, groups=groups, context=context)
        absent = np.isnan(training.X)
        self.masked_ = bool(absent.any())
        for block, start in enumerate(np.cumsum([0, *self.blocks_[:-1]])):
            if len(absent) and absent[:, start].all():
                raise HeadError(f"{self.name}: block {block} is missing from all training rows")
        if training.context.prompts is not None:
            self.prompts_: NDArray[np.float32] = np.asarray(training.context.prompts, dtype=np.float32)
            self._note_on_prompts()
        return training

    def _blocks(self) -> Blocks:
        return Blocks(widths=tuple(self.blocks_), masked=self.masked_, dropout=self.modality_dropout)

    def _branches(self) -> Branches:
        """Return hidden layers for each block."""
        return Branches(blocks=self._blocks(), layers=tuple(self._branch(k) for k in range(len(self.blocks_))))

    def _branch(self, block: int) -> HiddenLayers:
        """Return the hidden layers of one block."""
        return HiddenLayers(
            inputs=self.blocks_[block],
            widths=tuple(self.branch_hidden),
            activation=self.activation,
            norm=self.norm,
            order=self.order,
            prefix=f"block{block}.",
        )

    def _trunk(self, inputs: int, outputs: int) -> Perceptron:
        """Return the perceptron of what the branches put out."""
        return Perceptron(
            inputs=inputs,
            outputs=outputs,
            hidden=tuple(self.hidden),
            activation=self.activation,
            norm=self.norm,
            order=self.order,
            logit_shifts=getattr(self, "logit_shifts", False),
        )

    def _prompt_branch(self, widths: tuple[int, ...], norm: Norm, *, collapsed: bool) -> PromptBranch | None:
        """Return hidden layers of the flattened prompts, or None without prompts."""
        if not hasattr(self, "prompts_"):
            return None
        if collapsed and (self.optimizer == "sgd" or (self.optimizer == "adam" and self.weight_decay)):
            raise HeadError(
                f"{self.name}: prompt_branch=collapsed is not exact with optimizer={self.optimizer} and "
                f"weight_decay={self.weight_decay:g}; use prompt_branch=full, or optimizer=adamw"
            )
        layers = HiddenLayers(
            inputs=self.prompts_.size,
            widths=widths,
            activation=self.activation,
            norm=norm,
            order=self.order,
            prefix="prompt.",
        )
        return PromptBranch(prompts=self.prompts_.ravel(), layers=layers, collapsed=collapsed)

    def _note_on_prompts(self) -> None:
        """Say what prompts can do that are the same for every row."""
        self._note(
            f"the prompts are the same for every sample: their branch is a learned bias, which learns "
            f"{speed(self.prompts_):.3g} times as fast as others; the head "
            f"prompt_similarity compares each sample with them"
        )
