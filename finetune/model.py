"""The network that is trained: towers, and objectives over what they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from finetune.outputs import Objective, Outputs
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
    known
        What is known of the samples without a network: targets, numbers and tokens of texts.
    """

    rows: NDArray[np.int64]
    inputs: Any
    texts: Any = None
    known: Outputs


class Model(nn.Module):
    """Towers and objectives as one network, so that one optimizer, one checkpoint and one wrapper hold all of it.

    Parameters
    ----------
    tower, text_tower
        Of the samples, and of their texts where an objective needs these as vectors.
    objectives
        By name; each is summed with a weight of its own.
    device
        Where it computes.
    """

    def __init__(
        self, tower: Tower, text_tower: Tower | None, objectives: Mapping[str, Objective], *, device: torch.device
    ) -> None:
        super().__init__()
        self.tower = tower
        self.text_tower = text_tower
        self.objectives = nn.ModuleDict(dict(objectives))
        self.device = device
        self.to(device)

    def outputs(self, batch: Batch) -> Outputs:
        """Return what the towers make of a batch, in float32."""
        vectors, tokens = self.tower(batch.inputs)
        texts = self.text_tower(batch.texts)[0] if self.text_tower is not None else None
        known = {
            each.name: value.to(self.device, non_blocking=True)
            for each in fields(batch.known)
            if (value := getattr(batch.known, each.name)) is not None
        }
        made = {"vectors": vectors, "tokens": tokens, "texts": texts}
        return replace(Outputs(**known), **{name: value.float() for name, value in made.items() if value is not None})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of each objective."""
        return self.losses(self.outputs(batch))

    def losses(self, outputs: Outputs) -> dict[str, Tensor]:
        """Return the loss of each objective from what the towers gave, in float32 whatever is around the call."""
        with torch.autocast(self.device.type, enabled=False):
            return {name: objective(outputs) for name, objective in self.objectives.items()}
