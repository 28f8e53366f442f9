"""Context: what a head knows beyond its rows: which columns belong together, and the prompts of the classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.task import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What a head knows beyond its rows.

    Attributes
    ----------
    blocks
        Widths of the feature sets that stand side by side in X, in order; they sum to d. Empty for one
        feature set, whatever its width.
    prompts
        Embeddings of the classes' prompts, float32, shape (C, p): a row per class in the order of the
        labels, two for a binary task; a row per target for a multilabel task. None without prompts.
    negative_prompts
        Embeddings of the prompts of a label's absence, float32, shape (T, p); of a multilabel task only, whose
        labels have no other class to be compared with.
    logit_scale, logit_bias
        How the checkpoint behind the prompts makes logits of cosines, ``scale * cosine + bias``; None where it
        does not say.
    targets
        The task of each column of the targets of a mixed task; empty for others.
    """

    blocks: tuple[int, ...] = ()
    prompts: NDArray[np.float32] | None = None
    negative_prompts: NDArray[np.float32] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    targets: tuple[Task, ...] = ()

    def of_classes(self, chosen: NDArray[Any]) -> Context:
        """Return the context of some classes or targets, by positions or a mask."""
        if self.prompts is None:
            return self
        negative = None if self.negative_prompts is None else self.negative_prompts[chosen]
        return replace(self, prompts=self.prompts[chosen], negative_prompts=negative)
