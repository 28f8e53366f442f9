"""From token embeddings to one vector per sample, or to none: the pure functions behind `--pooling`.

Prefix tokens (the class token, registers) never enter a mean or a maximum; neither does padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from data.errors import did_you_mean
from featurestore.encoder import Embeddings, EncoderOptions
from featurestore.errors import EncoderError
from featurestore.pooling_text import CHUNKS, TOKENS, Pooling
from featurestore.spec import EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor

_PIECES = {"chunks": {"overlap": 0, "weights": "tokens"}}
"""What `preprocess` says of long texts that are encoded in pieces; nothing where they are cut."""


def choose_pooling(asked: str, offered: Sequence[str], *, encoder: str, blocks: int = 0) -> str:
    """Return the pooling to use.

    Parameters
    ----------
    asked
        What the user wrote; ``auto`` takes the first one offered. ``mean@6`` is that of the tokens behind the sixth
        block, ``mean@-1`` that of those behind the last.
    offered
        The poolings that the encoder has, its own first. All but ``native`` can be had behind a block.
    encoder
        The encoder's id, for the message.
    blocks
        Number of the encoder's blocks; 0 where none can be read.

    Returns
    -------
    str
        One of those offered, or one of them behind a block counted from 1.

    Raises
    ------
    EncoderError
        If the encoder has no such pooling, or no such block.
    """
    if asked == "auto":
        return offered[0]
    pooling = Pooling.parse(asked)
    if pooling.block is not None:
        return str(replace(pooling, block=_block(pooling, asked, offered, encoder=encoder, blocks=blocks)))
    if asked not in offered:
        raise EncoderError(f"{encoder}: no pooling {asked!r}; {did_you_mean(asked, ['auto', *offered])}")
    return asked


def _block(pooling: Pooling, asked: str, offered: Sequence[str], *, encoder: str, blocks: int) -> int:
    """Return the number of a block, counted from 1."""
    known = [each for each in map(Pooling.parse, offered) if each.how != "native"]
    if not known or not blocks:
        raise EncoderError(f"{encoder}: no pooling {asked!r}: it has no blocks whose tokens can be read")
    if replace(pooling, block=None) not in known:
        words = [str(replace(each, block=pooling.block)) for each in known]
        raise EncoderError(f"{encoder}: no pooling {asked!r}; {did_you_mean(asked, words)}")
    assert pooling.block is not None
    number = pooling.block if pooling.block > 0 else blocks + 1 + pooling.block
    if not 1 <= number <= blocks:
        raise EncoderError(
            f"{encoder}: no block {pooling.block} for --pooling {asked}; it has blocks 1 to {blocks}, or -{blocks} to "
            f"-1 counted from the end"
        )
    return number


def choose_text_poolings(
    options: EncoderOptions, offered: Sequence[str], *, encoder: str, blocks: int = 0
) -> tuple[str, ...]:
    """Return the poolings to read off texts: as `choose_poolings`, each one but tokens also with `CHUNKS`."""
    asked = tuple(map(Pooling.parse, options.poolings))
    if any(each.is_tokens and each.chunks for each in asked):
        raise EncoderError(
            f"{encoder}: pieces of a text are averaged, which tokens cannot be; choose {TOKENS} or auto{CHUNKS}"
        )
    chunked = tuple(f"{pooling}{CHUNKS}" for pooling in offered if pooling != TOKENS)
    texts = [chunked[0] if text == f"auto{CHUNKS}" else text for text in options.poolings]
    every = (*offered, *chunked)
    return tuple(dict.fromkeys(choose_pooling(text, every, encoder=encoder, blocks=blocks) for text in texts))


def choose_poolings(
    options: EncoderOptions, offered: Sequence[str], *, encoder: str, blocks: int = 0
) -> tuple[str, ...]:
    """Return the poolings to read off one forward pass, each once; see `choose_pooling`."""
    asked = options.poolings
    return tuple(dict.fromkeys(choose_pooling(text, offered, encoder=encoder, blocks=blocks) for text in asked))


def level_specs(
    native: EncoderSpec,
    poolings: Sequence[str],
    options: EncoderOptions,
    *,
    layer: str,
    dims: Sequence[int],
    tokens: Mapping[str, Any],
) -> tuple[EncoderSpec, ...]:
    """Return the specification of each pooling.

    Parameters
    ----------
    native
        The specification of the encoder's own embedding.
    poolings
        ``native``, or poolings of tokens, behind blocks too; of texts also with `CHUNKS` behind them.
    options
        Know the stored types.
    layer
        Where the tokens of the whole network are taken; of block 6 it is ``block_6``.
    dims
        Length of an embedding at each pooling.
    tokens
        What the tokens are; recorded where they are stored themselves: ``order``, and ``prefix``, the names of the
        leading ones that stand for no part of the sample.
    """

    def of(text: str, dim: int) -> EncoderSpec:
        pooling, spec = Pooling.parse(text), replace(native, pooling=text)
        if pooling.chunks:
            spec = replace(spec, preprocess={**spec.preprocess, **_PIECES})
        if pooling.how == "native":
            return spec
        where = layer if pooling.block is None else f"block_{pooling.block}"
        spec = replace(spec, layer=where, dim=dim, dtype=options.dtype_of(text))
        return replace(spec, architecture={**spec.architecture, "tokens": dict(tokens)}) if spec.ragged else spec

    return tuple(of(text, dim) for text, dim in zip(poolings, dims, strict=True))


def raster(maps: Tensor, *, channels_last: bool = False) -> Tensor:
    """Return feature maps (n, d, h, w), or (n, h, w, d), as tokens (n, h * w, d): row by row from the upper left."""
    return maps.flatten(1, 2) if channels_last else maps.flatten(2).transpose(1, 2)


def pool(tokens: Tensor, pooling: str, *, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
    """Pool token embeddings.

    Parameters
    ----------
    tokens
        Token embeddings, shape (n, t, d).
    pooling
        ``cls`` takes the first token, ``mean`` and ``max`` go over the tokens after the prefix.
    prefix
        Number of leading tokens that stand for no part of the sample.
    mask
        Shape (n, t); nonzero where a token is real. None means that all are.

    Returns
    -------
    Tensor
        Shape (n, d).
    """
    if pooling == "cls":
        return tokens[:, 0]
    real, kept = tokens[:, prefix:], None if mask is None else mask[:, prefix:].bool().unsqueeze(-1)
    if pooling == "mean":
        return real.mean(1) if kept is None else (real * kept).sum(1) / kept.sum(1).clamp(min=1)
    if pooling == "max":
        return (real if kept is None else real.masked_fill(~kept, float("-inf"))).amax(1)
    raise EncoderError(f"no pooling {pooling!r}; {did_you_mean(pooling, ['cls', 'mean', 'max'])}")


def pool_or_keep(tokens: Tensor, pooling: str, *, prefix: int = 0, mask: Tensor | None = None) -> Embeddings:
    """Return what `pool` does, or with ``tokens`` all that are real, the prefix included.

    Returns
    -------
    Tensor or list of Tensor
        Shape (n, d); of ``tokens`` (n, t, d), or where there is a mask n tensors of shape (t, d), t as it masks.
    """
    if pooling != TOKENS:
        return pool(tokens, pooling, prefix=prefix, mask=mask)
    if mask is None:
        return tokens
    kept: Any = tokens[mask.bool()]  # of all samples at once: a GPU is waited for once
    return list(kept.split(mask.sum(1).tolist()))
