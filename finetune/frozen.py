"""Frozen towers: a tower that does not train is computed once per sample, and its features are those of `extract`.

::

    samples -> network -> vector, tokens | stored, float32 | projection -> objectives
               frozen: computed once                         trained: computed in every step
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from featurestore.catalog import canonical
from featurestore.encoder import Embeddings
from featurestore.pooling_text import TOKENS
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
        Whose projection may train.
    store
        Where features are kept.
    """

    def __init__(self, tower: Tower, store: FeatureStore) -> None:
        super().__init__(tower, store)
        self._keep(tower.encoder, name=canonical(tower.name))
        tokens = [level.pooling == TOKENS for level in tower.encoder.levels]
        self.kept = " and ".join(dict.fromkeys("tokens" if each else "vectors" for each in tokens))

    def collate(self, items: Sequence[tuple[Tensor, ...]]) -> tuple[Embeddings, ...]:
        """Return a batch of what `read` gave: levels of vectors (b, d) or tokens (b, t, c), of texts b times (t, c)."""
        return tuple(map(self._joined, zip(*items, strict=True)))

    def features(self, batch: tuple[Embeddings, ...]) -> tuple[Tensor, Tensor | None]:
        """Return vectors, (b, d), and, where the encoder gives them, tokens, (b, t, c)."""
        device = next(self.network.parameters()).device
        return self.pooled([_moved(level, device) for level in batch])

    def _joined(self, level: Sequence[Tensor]) -> Embeddings:
        ragged = level[0].ndim > 1 and isinstance(self.encoder, TextEncoder)
        return list(level) if ragged else torch.stack(list(level))


def _moved(level: Embeddings, device: torch.device) -> Embeddings:
    if isinstance(level, Tensor):
        return level.to(device, non_blocking=True)
    return [each.to(device, non_blocking=True) for each in level]
