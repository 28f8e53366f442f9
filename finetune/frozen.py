"""Frozen towers: a tower that does not train is computed once per sample, and its features are those of `extract`.

::

    samples -> network -> vector, tokens | stored, float32 | pooling, projection -> objectives
               frozen: computed once                         trained: computed in every step
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from featurestore.catalog import canonical
from featurestore.encoder import Embeddings
from featurestore.store import FeatureStore
from featurestore.text_encoder import TextEncoder
from finetune.stored import StoredTower
from finetune.towers import Tower


class FrozenTower(StoredTower):
    """A tower whose network never trains: its features are read from a store, and the network is not run.

    They are under the encoder's own specification, so that `extract` and `fit-head` find them, and those that
    `extract` has stored in fp32 as float32 are not computed again.

    Parameters
    ----------
    tower
        Whose pooling and projection may train.
    store
        Where features are kept.
    """

    def __init__(self, tower: Tower, store: FeatureStore) -> None:
        super().__init__(tower, store)
        self._keep(tower.encoder, name=canonical(tower.name))
        self.kept = " and ".join(each.parts if each.ragged else "vectors" for each in tower.encoder.levels)

    def collate(self, items: Sequence[tuple[Tensor, ...]]) -> tuple[Embeddings, ...]:
        """Return a batch of what `read` gave, as the encoder gives it: a list of the tokens of texts, else a tensor."""
        of_texts = isinstance(self.encoder, TextEncoder)
        return tuple(
            list(level) if spec.ragged and of_texts else torch.stack(level)
            for spec, level in zip(self.encoder.levels, zip(*items, strict=True), strict=True)
        )

    def embed(self, batch: tuple[Embeddings, ...]) -> tuple[Embeddings, ...]:
        """Return a batch on the device."""
        device = next(self.network.parameters()).device
        return tuple(
            level.to(device, non_blocking=True)
            if isinstance(level, Tensor)
            else [each.to(device, non_blocking=True) for each in level]
            for level in batch
        )
