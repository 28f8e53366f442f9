"""Decoded samples are kept while they fit, and read again where they do not."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from data.manifest import Source
from data.progress import Silent
from featurestore.text_encoder import LONG
from finetune.items import Items, make_augment
from finetune.partial import CachedText
from finetune.towers import Tower, load_tower

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


@pytest.mark.parametrize(
    ("text", "is_cut"),
    [
        ("a short text", False),
        ("effusion and no nodule, " * 20_000, True),
        ("x" * 50_000 + " is one unknown word", False),  # the beginning alone would lack what follows
        (" " * LONG + "effusion", False),
        ("effusion" + " " * 50_000, True),
    ],
)
def test_a_long_text_is_cut_where_its_tokens_stay_the_same(text: str, is_cut: bool) -> None:
    tower = load_tower("offline:minilm", modality="text", device="cpu")
    read = tower.read(Source(modality="text", text=text))
    assert (len(read) < len(text)) == is_cut
    whole, found = tower.collate([text]), tower.collate([read])
    assert all(torch.equal(whole[name], found[name]) for name in whole)


def test_of_a_text_in_pieces_nothing_is_cut() -> None:
    tower = load_tower("offline:minilm", modality="text", device="cpu", pooling="mean+chunks")
    text = "effusion and no nodule, " * 1_000
    assert tower.read(Source(modality="text", text=text)) == text


def test_all_frames_of_a_clip_are_augmented_alike() -> None:
    augment = make_augment(("flip", "rotation=20", "randaugment=15"), 0)
    assert augment is not None
    frame = torch.randint(0, 256, (3, 16, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number in range(8):
        clip = augment(frame.expand(4, 3, 16, 20).contiguous(), number)
        assert torch.equal(clip, augment(frame, number).expand(4, 3, 16, 20))
