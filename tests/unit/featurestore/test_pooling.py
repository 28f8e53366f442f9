"""Poolings against arithmetic written out."""

from __future__ import annotations

import pytest
import torch

from featurestore.errors import EncoderError
from featurestore.pooling import choose_pooling, pool
from featurestore.pooling_text import Pooling

TOKENS = torch.tensor([[[9.0, 9.0], [1.0, -2.0], [3.0, -4.0], [50.0, 50.0]]])
MASK = torch.tensor([[1, 1, 1, 0]])


@pytest.mark.parametrize(
    ("pooling", "prefix", "mask", "expected"),
    [
        ("cls", 1, MASK, [9.0, 9.0]),
        ("mean", 0, None, [15.75, 13.25]),
        ("mean", 1, None, [18.0, 44 / 3]),
        ("mean", 1, MASK, [2.0, -3.0]),
        ("max", 0, None, [50.0, 50.0]),
        ("max", 1, MASK, [3.0, -2.0]),
        ("mean", 0, MASK, [13 / 3, 1.0]),
    ],
)
def test_pool(pooling: str, prefix: int, mask: torch.Tensor | None, expected: list[float]) -> None:
    torch.testing.assert_close(pool(TOKENS, pooling, prefix=prefix, mask=mask), torch.tensor([expected]))


def test_padding_changes_nothing() -> None:
    padded = torch.cat([TOKENS, torch.full((1, 5, 2), float("nan")).nan_to_num(1e6)], dim=1)
    mask = torch.cat([MASK, torch.zeros(1, 5, dtype=torch.long)], dim=1)
    for pooling in ("cls", "mean", "max"):
        assert torch.equal(pool(padded, pooling, mask=mask), pool(TOKENS, pooling, mask=MASK))


def test_an_unknown_pooling_is_refused() -> None:
    with pytest.raises(EncoderError, match="did you mean 'mean'"):
        pool(TOKENS, "meen")


def test_auto_takes_the_encoders_own() -> None:
    assert choose_pooling("auto", ("mean", "cls"), encoder="x") == "mean"
    assert choose_pooling("cls", ("mean", "cls"), encoder="x") == "cls"
    with pytest.raises(EncoderError, match=r"hf:some: no pooling 'atention'; .*Known: auto, native"):
        choose_pooling("atention", ("native",), encoder="hf:some")


@pytest.mark.parametrize(
    ("text", "how", "block", "chunks"),
    [
        ("mean", "mean", None, False),
        ("cls@6", "cls", 6, False),
        ("tokens@-2", "tokens", -2, False),
        ("auto+chunks", "auto", None, True),
        ("mean@12+chunks", "mean", 12, True),
        # Words of an encoder's own are left alone.
        ("mean_std", "mean_std", None, False),
        ("mean@last", "mean@last", None, False),
        ("mean@0", "mean@0", None, False),
        ("mean@06", "mean@06", None, False),
        ("mean+chunks@6", "mean+chunks", 6, False),
    ],
)
def test_a_pooling_is_read_and_written(text: str, how: str, block: int | None, chunks: bool) -> None:
    pooling = Pooling.parse(text)
    assert (pooling.how, pooling.block, pooling.chunks) == (how, block, chunks)
    assert str(pooling) == text


def test_a_block_is_counted_from_either_end() -> None:
    offered = ("native", "mean", "tokens")
    assert choose_pooling("mean@-1", offered, encoder="x", blocks=12) == "mean@12"
    assert choose_pooling("tokens@1", offered, encoder="x", blocks=12) == "tokens@1"
    assert choose_pooling("mean@-12", offered, encoder="x", blocks=12) == "mean@1"
    with pytest.raises(EncoderError, match=r"x: no pooling 'cls@3'; .*Known: mean@3, tokens@3"):
        choose_pooling("cls@3", offered, encoder="x", blocks=12)
