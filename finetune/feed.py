"""Feed: from positions of samples to the batch of one process, decoded while the step before it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.batches import seed_of
from finetune.items import Items
from finetune.model import Batch
from finetune.outputs import Outputs
from finetune.towers import Tower
from finetune.views import ViewChoice


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of all samples without a network; None where nothing asks for it.

    Attributes
    ----------
    targets
        As `data.task` encodes them.
    taught
        A teacher's probabilities, shape (n, c); NaN but for training samples.
    text_ids
        Numbers that are equal where texts are, shape (n,).
    target_ids
        Numbers that are equal where targets are known and equal, shape (n,).
    weights
        How much each sample counts, shape (n,).
    captions, caption_mask
        Token numbers of the texts, padded, shape (n, l).
    """

    targets: NDArray[Any] | None = None
    taught: NDArray[np.float32] | None = None
    text_ids: NDArray[np.int64] | None = None
    target_ids: NDArray[np.int64] | None = None
    weights: NDArray[np.float32] | None = None
    captions: NDArray[np.int64] | None = None
    caption_mask: NDArray[np.bool_] | None = None

    def of(self, rows: NDArray[np.int64]) -> Outputs:
        """Return what is known of some samples, as tensors."""

        def some(values: NDArray[Any] | None) -> Tensor | None:
            return None if values is None else torch.from_numpy(values[rows])

        return Outputs(
            targets=some(self.targets),
            taught=some(self.taught),
            text_ids=some(self.text_ids),
            target_ids=some(self.target_ids),
            weights=some(self.weights),
            captions=some(self.captions),
            caption_mask=some(self.caption_mask),
        )


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Makes batches.

    Attributes
    ----------
    tower, items
        Reads and collates the inputs; the decoded inputs.
    items_of
        The positions of a sample's inputs among the items: one, or those of a study's views.
    views
        Which views of a study are used.
    text_tower, texts
        The same of the texts, by sample, where an objective needs them as vectors.
    known
        The rest of a batch.
    augment
        What training images go through: from an image, uint8 (3, h, w), and a seed.
    """

    tower: Tower
    items: Items
    items_of: Callable[[int], NDArray[np.int64]]
    text_tower: Tower | None
    texts: Items | None
    known: Known
    augment: Callable[[Tensor, int], Tensor] | None = None
    views: ViewChoice = field(default_factory=ViewChoice)

    def batch(self, rows: NDArray[np.int64], *, epoch: int | None) -> Batch:
        """Return the batch of some samples; those of an epoch are augmented, each by a seed of its own."""
        views = [self._views(int(row), epoch) for row in rows]
        used = np.concatenate(views)
        items = self.items[used]
        if self.augment is not None and epoch is not None:
            items = [self.augment(item, seed_of(epoch, int(at))) for item, at in zip(items, used, strict=True)]
        texts = None
        if self.text_tower is not None and self.texts is not None:
            texts = self.text_tower.collate(self.texts[rows])
        return Batch(
            rows=rows,
            inputs=self.tower.collate(items),
            views=torch.tensor([len(each) for each in views]),
            alone=self._alone(views, rows, epoch),
            texts=texts,
            known=self.known.of(rows),
        )

    def _views(self, row: int, epoch: int | None) -> NDArray[np.int64]:
        """Return the positions of the inputs of a sample that are used, in their own order."""
        views = self.items_of(row)
        return views[self.views.used(len(views), row=row, epoch=epoch)]

    def _alone(self, views: Sequence[NDArray[np.int64]], rows: NDArray[np.int64], epoch: int | None) -> Tensor | None:
        """Return which of the inputs of a batch is the view of each study that is also seen alone; None if none is."""
        if epoch is None or not self.views.alone:
            return None
        lengths = [len(each) for each in views]
        firsts = np.cumsum([0, *lengths[:-1]])
        ones = [self.views.one(length, row=int(row), epoch=epoch) for length, row in zip(lengths, rows, strict=True)]
        return torch.from_numpy(firsts + ones)

    def ahead(self, passes: Iterable[NDArray[np.int64]], *, epoch: int | None) -> Iterator[Batch]:
        """Yield the batches of several forward passes, the next one being made while one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="batch") as pool:
            waiting = None
            for rows in passes:
                following = pool.submit(self.batch, rows, epoch=epoch)
                if waiting is not None:
                    yield waiting.result()
                waiting = following
            if waiting is not None:
                yield waiting.result()
