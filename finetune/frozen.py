"""Frozen towers: a tower that does not train is computed once per sample, and its features are those of `extract`.

::

    samples -> network -> vector, tokens | stored, float32 | projection -> objectives
               frozen: computed once                         trained: computed in every step
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from featurestore.catalog import canonical
from featurestore.store import FeatureStore
from featurestore.text_encoder import TextEncoder
from finetune.stored import StoredTower
from finetune.towers import Tower


class FrozenBatch(NamedTuple):
    """A batch of features.

    Attributes
    ----------
    vectors
        float32, (b, d).
    tokens
        float32, (b, t, c); None where the encoder gives none, or of texts, whose numbers differ.
    """

    vectors: Tensor
    tokens: Tensor | None


class FrozenTower(StoredTower):
    """A tower whose network never trains: its features are read from a store, and the network is not run.

    They are under the encoder's own specification, so that `extract` and `fit-head` find them, and those that
    `extract` has stored in fp32 as float32 are not computed again.

    Parameters
    ----------
    tower
        Whose projection may train.
    store
        Where features are kept.
    """

    def __init__(self, tower: Tower, store: FeatureStore) -> None:
        super().__init__(tower, store)
        self._keep(tower.encoder, name=canonical(tower.name))
        self.kept = "vectors and tokens" if len(tower.encoder.levels) > 1 else "vectors"

    def collate(self, items: Sequence[tuple[Tensor, ...]]) -> FrozenBatch:
        """Return a batch of what `read` gave."""
        vectors, *tokens = zip(*items, strict=True)
        has_tokens = bool(tokens) and not isinstance(self.encoder, TextEncoder)
        return FrozenBatch(torch.stack(vectors), torch.stack(tokens[0]) if has_tokens else None)

    def features(self, batch: FrozenBatch) -> tuple[Tensor, Tensor | None]:
        """Return the encoder's own vectors, (b, d), and, where it gives them, tokens, (b, t, c)."""
        device = next(self.network.parameters()).device
        vectors, tokens = batch
        return vectors.to(device, non_blocking=True), tokens if tokens is None else tokens.to(device, non_blocking=True)
