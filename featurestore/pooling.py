"""From token embeddings to one vector per sample: the pure functions behind `--pooling`.

Prefix tokens (the class token, registers) never enter a mean or a maximum; neither does padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data.errors import did_you_mean
from featurestore.errors import EncoderError

if TYPE_CHECKING:
    from torch import Tensor


CHUNKS = "+chunks"
"""What follows the pooling of a text encoder that encodes long texts in pieces, see `featurestore.chunks`."""


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


def choose_text_pooling(asked: str, offered: Sequence[str], *, encoder: str) -> str:
    """Return the pooling to use for texts: as `choose_pooling`, each one also with `CHUNKS`."""
    chunked = tuple(f"{pooling}{CHUNKS}" for pooling in offered)
    return chunked[0] if asked == f"auto{CHUNKS}" else choose_pooling(asked, (*offered, *chunked), encoder=encoder)


def pool(tokens: Tensor, pooling: str, *, prefix: int = 0, mask: Tensor | None = None) -> Tensor:
    """Pool token embeddings.

    Parameters
    ----------
    tokens
        Token embeddings, shape (n, t, d).
    pooling
        ``cls`` takes the first token, ``mean`` and ``max`` go over the tokens after the prefix; `CHUNKS` behind it
        concerns what a text's tokens are, not how they are pooled.
    prefix
        Number of leading tokens that stand for no part of the sample.
    mask
        Shape (n, t); nonzero where a token is real. None means that all are.

    Returns
    -------
    Tensor
        Shape (n, d).
    """
    pooling = pooling.removesuffix(CHUNKS)
    if pooling == "cls":
        return tokens[:, 0]
    real, kept = tokens[:, prefix:], None if mask is None else mask[:, prefix:].bool().unsqueeze(-1)
    if pooling == "mean":
        return real.mean(1) if kept is None else (real * kept).sum(1) / kept.sum(1).clamp(min=1)
    if pooling == "max":
        return (real if kept is None else real.masked_fill(~kept, float("-inf"))).amax(1)
    raise EncoderError(f"no pooling {pooling!r}; {did_you_mean(pooling, ['cls', 'mean', 'max'])}")
