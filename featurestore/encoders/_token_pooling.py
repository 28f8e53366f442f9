"""Learned poolings: what training put between the tokens of an encoder and its vector, described in JSON.

Both see tokens as a set: where a token lies in the input is in the token itself, not in the pooling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from featurestore.encoder import Embeddings
from featurestore.forward import freeze
from featurestore.weights import assign_weights, weights_digest

_HEADS = 8
_DROPOUT = 0.1
_INIT_STD = 0.02


class TokenPooling(BaseModel):
    """A learned pooling of tokens of length `dim`; `kind` is ``attention`` or ``cls_token``."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["attention", "cls_token"]
    dim: PositiveInt

    def make(self) -> AttentionPooling | ClassTokenPooling:
        """Return the module with new weights."""
        return AttentionPooling(self.dim) if self.kind == "attention" else ClassTokenPooling(self.dim)


class AttentionPooling(nn.Module):
    r"""A learned query that attends to the tokens.

    .. math:: v = \mathrm{LN}\big(\mathrm{attention}(q;\ x_1 \dots x_t)\big)

    with the multi-head attention of `torch.nn.MultiheadAttention`, and dropout of .1 of its weights in training.

    Parameters
    ----------
    dim
        Length of the tokens and of the vector. There are 8 heads, or the greatest number below that divides it.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Parameter(_INIT_STD * torch.randn(dim))
        self.attention = nn.MultiheadAttention(dim, _heads(dim), dropout=_DROPOUT, batch_first=True)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Embeddings) -> Tensor:
        """Return vectors (n, d) of tokens (n, t, d), or of n times (t, d) where samples have different numbers."""
        padded, absent = _padded(tokens)
        query = self.query.expand(len(padded), 1, -1)
        made, _ = self.attention(query, padded, padded, key_padding_mask=absent, need_weights=False)
        vectors: Tensor = self.norm(made[:, 0])
        return vectors


class ClassTokenPooling(nn.Module):
    """A learned token before the others, after one transformer layer that all of them go through.

    The layer is `torch.nn.TransformerEncoderLayer` with norms behind its halves, GELU, an inner layer 4 `dim` wide and
    dropout of .1 in training.

    Parameters
    ----------
    dim
        As of `AttentionPooling`.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(_INIT_STD * torch.randn(dim))
        self.layer = nn.TransformerEncoderLayer(
            dim, _heads(dim), 4 * dim, dropout=_DROPOUT, activation="gelu", batch_first=True
        )

    def forward(self, tokens: Embeddings) -> Tensor:
        """Return vectors (n, d), as `AttentionPooling` does."""
        padded, absent = _padded(tokens)
        first = self.cls_token.expand(len(padded), 1, -1)
        if absent is not None:
            absent = torch.cat([absent.new_zeros(len(absent), 1), absent], dim=1)
        vectors: Tensor = self.layer(torch.cat([first, padded], dim=1), src_key_padding_mask=absent)[:, 0]
        return vectors


def describe_token_pooling(module: nn.Module | None) -> tuple[TokenPooling | None, dict[str, Tensor]]:
    """Return a learned pooling's description and weights, as `make_token_pooling` takes them; None of none."""
    if module is None:
        return None, {}
    assert isinstance(module, AttentionPooling | ClassTokenPooling)
    if isinstance(module, AttentionPooling):
        description = TokenPooling(kind="attention", dim=len(module.query))
    else:
        description = TokenPooling(kind="cls_token", dim=len(module.cls_token))
    return description, {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}


def make_token_pooling(
    description: TokenPooling | None, state: Mapping[str, Tensor], *, path: object, device: str
) -> tuple[nn.Module, dict[str, Any]] | None:
    """Return a frozen pooling and what identifies it, or None of none.

    Parameters
    ----------
    description, state
        What `describe_token_pooling` returned.
    path
        Where they are from, for the message.
    device
        A torch device.

    Raises
    ------
    WeightsUnavailable
        If the weights do not fit the description.
    """
    if description is None:
        return None
    module = description.make()
    assign_weights(module, state, path=path)
    return freeze(module, device), {**description.model_dump(), "weights": weights_digest(module)}


def _heads(dim: int) -> int:
    return max(heads for heads in range(1, _HEADS + 1) if dim % heads == 0)


def _padded(tokens: Embeddings) -> tuple[Tensor, Tensor | None]:
    """Return tokens (n, t, d), and True where there is none of a sample, (n, t); None where there are all."""
    if isinstance(tokens, Tensor):
        return tokens, None
    padded = pad_sequence(list(tokens), batch_first=True)
    lengths = torch.tensor([len(each) for each in tokens], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) >= lengths[:, None]
