"""Context: what a head knows beyond its rows: which columns belong together, and the prompts of the classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    """

    blocks: tuple[int, ...] = ()
    prompts: NDArray[np.float32] | None = None

    def of_classes(self, chosen: NDArray[Any]) -> Context:
        """Return the context of some classes or targets, by positions or a mask."""
        return self if self.prompts is None else replace(self, prompts=self.prompts[chosen])
