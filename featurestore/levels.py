"""Levels: what one forward pass gives, as blocks of arrays that can be stored, a block per specification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from featurestore.features import Ragged
from featurestore.writer import bag_rows

if TYPE_CHECKING:
    from data.manifest import Source
    from featurestore.encoder import Embeddings, Encoder, Leveled
    from featurestore.spec import EncoderSpec, StoredType

Block: TypeAlias = NDArray[np.float32] | Ragged
"""Embeddings of n samples: (n, dim), or `Ragged` where a sample has several."""


def levels_of(encoder: Encoder) -> tuple[EncoderSpec, ...]:
    """Return the specification of every level of an encoder."""
    return getattr(encoder, "levels", (encoder.spec,))


def encode(encoder: Encoder, batch: Any) -> tuple[Block, ...]:
    """Return the embeddings of a batch, level by level."""
    return tuple(map(to_block, embed(encoder, batch)))


def encode_reference(encoder: Encoder, sources: Sequence[Source]) -> tuple[Block, ...]:
    """Return the embeddings by the library's own transform in fp32, one by one, level by level."""
    return tuple(map(to_block, embed_reference(encoder, sources)))


def embed(encoder: Encoder, batch: Any) -> tuple[Embeddings, ...]:
    """Return what `encode` does, as the encoder gives it."""
    if hasattr(encoder, "encode_levels"):
        return cast("Leveled", encoder).encode_levels(batch)
    return (encoder.encode(batch),)


def embed_reference(encoder: Encoder, sources: Sequence[Source]) -> tuple[Embeddings, ...]:
    """Return what `encode_reference` does, as the encoder gives it."""
    if hasattr(encoder, "encode_reference_levels"):
        return cast("Leveled", encoder).encode_reference_levels(sources)
    return (encoder.encode_reference(sources),)


def as_levels(made: Any) -> tuple[Embeddings, ...]:
    """Return what a forward pass made, level by level: a tuple holds several, anything else is one."""
    return made if isinstance(made, tuple) else (made,)


def joined(parts: Sequence[tuple[Embeddings, ...]]) -> tuple[Embeddings, ...]:
    """Return the embeddings of several batches one after the other, level by level."""
    import torch

    def join(level: Sequence[Embeddings]) -> Embeddings:
        if isinstance(level[0], torch.Tensor) and level[0].ndim == 2:
            return torch.cat(cast("list[torch.Tensor]", level))
        return [tokens for embeddings in level for tokens in embeddings]

    return tuple(join(level) for level in zip(*parts, strict=True))


def to_block(embeddings: Embeddings) -> Block:
    """Return one level of a batch as arrays."""
    import torch

    if not isinstance(embeddings, torch.Tensor):
        return Ragged(torch.cat(list(embeddings)).numpy(), _offsets([len(tokens) for tokens in embeddings]))
    if embeddings.ndim == 2:
        vectors: NDArray[np.float32] = embeddings.numpy()
        return vectors
    n, t, dim = embeddings.shape
    return Ragged(embeddings.reshape(n * t, dim).numpy(), _offsets([t] * n))


def join_blocks(parts: Sequence[tuple[Block, ...]]) -> tuple[Block, ...]:
    """Return the blocks of several batches one after the other, level by level."""

    def join(level: Sequence[Block]) -> Block:
        if not isinstance(level[0], Ragged):
            return np.concatenate(cast("list[NDArray[np.float32]]", level))
        ragged = cast("list[Ragged]", level)
        lengths = np.concatenate([np.diff(each.offsets) for each in ragged])
        return Ragged(np.concatenate([each.values for each in ragged]), _offsets(lengths.tolist()))

    return tuple(join(level) for level in zip(*parts, strict=True))


def samples(block: Block) -> list[NDArray[np.float32]]:
    """Return the embeddings of each sample, shape (t, dim) each; t is 1 where a sample has one vector."""
    if isinstance(block, Ragged):
        return np.split(block.values, block.offsets[1:-1])
    return list(block[:, None])


def lengths(block: Block) -> NDArray[np.int64]:
    """Return how many vectors each sample has, shape (n,)."""
    return np.diff(block.offsets) if isinstance(block, Ragged) else np.ones(len(block), np.int64)


def finite(block: Block, dtype: StoredType) -> NDArray[np.bool_]:
    """Return which samples can be stored in a type: every value finite and within its range, shape (n,)."""
    values = block.values if isinstance(block, Ragged) else block
    rows: NDArray[np.bool_] = np.all(np.abs(values) <= np.finfo(dtype).max, axis=1)
    if not isinstance(block, Ragged):
        return rows
    bad = np.concatenate([[0], np.cumsum(~rows)])[block.offsets]
    return np.asarray(np.diff(bad) == 0)


def some(block: Block, chosen: NDArray[np.bool_]) -> Block:
    """Return the embeddings of some samples; as they are where that is all of them."""
    if chosen.all():
        return block
    if not isinstance(block, Ragged):
        return block[chosen]
    rows, offsets = bag_rows(block.offsets[:-1][chosen], lengths(block)[chosen])
    return Ragged(block.values[rows], offsets)


def _offsets(counts: Sequence[int]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
