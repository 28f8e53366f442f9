"""Blocks: a network that is read behind some of its blocks too, in the pass that makes its other embeddings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from featurestore.encoder import Embeddings
from featurestore.errors import EncoderError
from featurestore.levels import as_levels
from featurestore.pooling import pool_or_keep, raster
from featurestore.pooling_text import Pooling

Inputs = TypeVar("Inputs")
Compute: TypeAlias = Callable[[Inputs, Sequence[str]], tuple[Embeddings, ...]]
"""From the inputs of a network, and poolings, to the embeddings of each pooling."""


def with_blocks(
    compute: Compute[Inputs],
    blocks: Sequence[nn.Module],
    poolings: Sequence[str],
    *,
    prefix: int = 0,
    mask_of: Callable[[Inputs], Tensor | None] = lambda _: None,
    channels_last: bool = False,
) -> Compute[Inputs]:
    """Return a forward pass that takes poolings behind blocks, too.

    What is read is a block's output as it is handed to the next: before any normalisation that follows the last
    block. The network runs once, whatever is read of it.

    Parameters
    ----------
    compute
        Runs the network once, for any poolings of the whole network, none of them included.
    blocks
        The network's blocks, the first one first; each runs once in a pass.
    poolings
        All that will be asked for; numbers of blocks are counted from 1.
    prefix
        Number of leading tokens that stand for no part of the sample.
    mask_of
        From the inputs to a mask of shape (n, t), nonzero where a token is real; None means that all are.
    channels_last
        Whether a feature map is (n, h, w, d) instead of (n, d, h, w).
    """
    wanted = {number for number in (Pooling.parse(each).block for each in poolings) if number is not None}
    if not wanted:
        return compute
    running = threading.local()  # several threads may run the network at once

    def keep(number: int, _module: nn.Module, _args: Any, out: Any) -> None:
        running.outputs[number] = out

    for number in wanted:
        blocks[number - 1].register_forward_hook(partial(keep, number))

    def compute_all(inputs: Inputs, poolings: Sequence[str]) -> tuple[Embeddings, ...]:
        running.outputs = {}
        asked = [(text, Pooling.parse(text)) for text in poolings]
        whole = iter(compute(inputs, [text for text, pooling in asked if pooling.block is None]))
        outputs, running.outputs = running.outputs, {}

        def read(pooling: Pooling) -> Embeddings:
            if pooling.block is None:
                return next(whole)
            tokens = as_tokens(outputs[pooling.block], channels_last=channels_last)
            return pool_or_keep(tokens, pooling.how, prefix=prefix, mask=mask_of(inputs))

        return tuple(read(pooling) for _, pooling in asked)

    return compute_all


def listed_blocks(encoder: str, model: nn.Module, poolings: Sequence[str], *, count: int) -> Sequence[nn.Module]:
    """Return the blocks of a transformer, the only list of as many parts; none where none is to be read.

    Parameters
    ----------
    encoder
        The encoder's id, for the message.
    model
        The network.
    poolings
        What is to be read.
    count
        How many blocks the network's configuration states.

    Raises
    ------
    EncoderError
        If there is no such list, as where one block runs several times, or there are several.
    """
    if all(Pooling.parse(pooling).block is None for pooling in poolings):
        return ()
    found = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    if len(found) != 1:
        raise EncoderError(
            f"{encoder}: --pooling {', '.join(poolings)}: expected one list of the {count} blocks that the "
            f"configuration states, found {len(found)} in {type(model).__name__}"
        )
    return list(found[0])


def as_tokens(out: Any, *, channels_last: bool = False) -> Tensor:
    """Return what a block gives as tokens (n, t, d): those of a transformer, or the places of a feature map.

    Parameters
    ----------
    out
        Shape (n, t, d), (n, d, h, w) or (n, h, w, d); of several outputs the first is meant.
    channels_last
        Which of the two a feature map is.
    """
    tokens: Tensor = out[0] if isinstance(out, tuple) else out
    return tokens if tokens.ndim == 3 else raster(tokens, channels_last=channels_last)


def output_dims(compute: Callable[[Inputs], Any], inputs: Inputs) -> list[int]:
    """Return the length of an embedding at each level, by running the network once.

    Parameters
    ----------
    compute
        From inputs to embeddings.
    inputs
        Of one sample, on the network's device.
    """
    with torch.inference_mode():
        return [int(each[0].shape[-1]) for each in as_levels(compute(inputs))]
