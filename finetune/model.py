"""The network that is trained: towers, and objectives over what they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.objectives.weighted import Weighted
from finetune.outputs import Outputs
from finetune.towers import Tower


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A forward pass's samples, as one process sees them.

    Attributes
    ----------
    rows
        Their positions, shape (b,).
    inputs, texts
        What the towers collated; no texts where there is no text tower.
    views
        How many of the inputs belong to each sample, int64, shape (b,); 1 where samples are no studies.
    alone
        Which of the inputs is the view of each study that is also seen alone, int64, shape (b,); None where none is.
    known
        What is known of the samples without a network: targets, numbers and tokens of texts.
    """

    rows: NDArray[np.int64]
    inputs: Any
    views: Tensor
    alone: Tensor | None = None
    texts: Any = None
    known: Outputs


class Model(nn.Module):
    """Towers and objectives as one network, so that one optimizer, one checkpoint and one wrapper hold all of it.

    Parameters
    ----------
    tower, text_tower
        Of the samples, and of their texts where an objective needs these as vectors.
    objectives
        By name, and the weight of each in the sum.
    aggregator
        Makes one vector of those of a study's views, given how many each has; None where samples are no studies.
    device
        Where it computes.
    """

    def __init__(
        self,
        tower: Tower,
        text_tower: Tower | None,
        objectives: Weighted,
        *,
        aggregator: nn.Module | None = None,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.tower = tower
        self.text_tower = text_tower
        self.objectives = objectives
        self.aggregator = aggregator
        self.device = device
        self.to(device)

    def outputs(self, batch: Batch) -> Outputs:
        """Return what the towers make of a batch, in float32."""
        vectors, tokens = self.tower(batch.inputs)
        single = None
        if self.aggregator is not None:
            of_views, counts = vectors, batch.views.to(self.device)
            vectors = self.aggregator(of_views, counts)
            if batch.alone is not None:
                single = self.aggregator(of_views[batch.alone.to(self.device)], torch.ones_like(counts))
                # One view twice is one vector, although dropout in the aggregator makes two of it.
                single = torch.where(counts[:, None] == 1, vectors, single)
        texts = self.text_tower(batch.texts)[0] if self.text_tower is not None else None
        known = {
            each.name: value.to(self.device, non_blocking=True)
            for each in fields(batch.known)
            if (value := getattr(batch.known, each.name)) is not None
        }
        made = {"vectors": vectors, "single": single, "tokens": tokens, "texts": texts}
        full = {name: value.float() for name, value in made.items() if value is not None}
        return Outputs(**known, **full, inputs=batch.inputs)

    def forward(self, batch: Batch, step: int, instead: Mapping[str, Callable[[Outputs], Tensor]]) -> dict[str, Tensor]:
        """Return the loss of each objective that has a weight at a step; of some, what is computed instead."""
        outputs = self.outputs(batch)
        losses: dict[str, Tensor] = self.objectives(outputs, step, without=instead)
        return losses | {name: computed(outputs) for name, computed in instead.items()}
