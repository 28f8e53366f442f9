"""Decoded samples are kept while they fit, and read again where they do not."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from data.manifest import Source
from data.progress import Silent
from finetune.items import Items
from finetune.partial import CachedText
from finetune.towers import Tower

PIXELS = torch.zeros(3, 10, 10, dtype=torch.uint8)
"""300 bytes."""
TEXT = CachedText("ten bytes.", torch.zeros(9, 10))
"""370 bytes."""


class Reader:
    """Counts how often a sample is read."""

    def __init__(self, item: Any) -> None:
        self.item, self.times = item, 0

    def read(self, source: Source) -> Any:
        self.times += 1
        return self.item


@pytest.mark.parametrize(("item", "taken"), [(PIXELS, 300), (TEXT, 370), ("a text", 6)])
def test_what_fits_is_read_once_and_the_rest_again(item: Any, taken: int) -> None:
    reader = Reader(item)
    items = Items(cast("Tower", reader), [Source(modality="text", text="")] * 5, workers=1, limit=3 * taken)
    assert items.decode_all(Silent()) == {}
    assert reader.times == 5
    assert len(items[range(5)]) == 5
    assert reader.times == 5 + 2
