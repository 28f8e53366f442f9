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
from featurestore.spec import TOKENS, EncoderSpec

if TYPE_CHECKING:
    from torch import Tensor


def choose_pooling(asked: str, offered: Sequence[str], *, encoder: str) -> str:
    """Return the pooling to use.

    Parameters
    ----------
    asked
        What the user wrote; ``auto`` takes the first one offered.
    offered
        The poolings that the encoder has, its own first.
    encoder
        The encoder's id, for the message.

    Raises
    ------
    EncoderError
        If the encoder has no such pooling.
    """
    if asked == "auto":
        return offered[0]
    if asked not in offered:
        raise EncoderError(f"{encoder}: no pooling {asked!r}; {did_you_mean(asked, ['auto', *offered])}")
    return asked


def choose_poolings(options: EncoderOptions, offered: Sequence[str], *, encoder: str) -> tuple[str, ...]:
    """Return the poolings to read off one forward pass, each once; see `choose_pooling`."""
    return tuple(dict.fromkeys(choose_pooling(asked, offered, encoder=encoder) for asked in options.poolings))


def level_specs(
    native: EncoderSpec,
    poolings: Sequence[str],
    options: EncoderOptions,
    *,
    layer: str,
    dim: int,
    tokens: Mapping[str, Any],
) -> tuple[EncoderSpec, ...]:
    """Return the specification of each pooling.

    Parameters
    ----------
    native
        The specification of the encoder's own embedding.
    poolings
        ``native``, or poolings of tokens.
    options
        Know the stored types.
    layer, dim
        Where the tokens are taken, and their length.
    tokens
        What the tokens are; recorded where they are stored themselves: ``order``, and ``prefix``, the names of the
        leading ones that stand for no part of the sample.
    """

    def of(pooling: str) -> EncoderSpec:
        if pooling == "native":
            return native
        spec = replace(native, pooling=pooling, layer=layer, dim=dim, dtype=options.dtype_of(pooling))
        return replace(spec, architecture={**spec.architecture, "tokens": dict(tokens)}) if spec.ragged else spec

    return tuple(of(pooling) for pooling in poolings)


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
