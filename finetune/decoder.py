"""A causal decoder of captions that looks at an encoder's unpooled tokens, as in LocCa [1]_.

::

    ids --> embedding + position --> layers x [ self-attention to what stands before
                                                cross-attention to linear(tokens)
                                                feed-forward                         ] --> norm --> logits

Each part of a layer is ``x + part(norm(x))`` (pre-LN). Captions are padded behind their end, where a causal
attention never looks, so that no mask of padding is needed. The tokens get no positions of their own: what their
encoder put into them says where they are.

References
----------
.. [1] Wan et al., "LocCa: Visual Pretraining with Location-aware Captioners", NeurIPS 2024.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear, scaled_dot_product_attention

from data.errors import ConfigError

_INIT_STD = 0.02


@dataclass
class LayerCache:
    """Keys and values of one layer, each of shape (b, heads, t, dim / heads)."""

    own: tuple[Tensor, Tensor] | None
    crossed: tuple[Tensor, Tensor]


@dataclass
class Cache:
    """What a decoder remembers of captions begun: of the tokens, and of the part it has read.

    Attributes
    ----------
    layers
        Keys and values.
    length
        Token numbers read so far.
    """

    layers: list[LayerCache]
    length: int = 0

    def repeat(self, count: int) -> None:
        """Go on with several copies of each caption, one behind the other."""
        for layer in self.layers:
            layer.crossed = _repeated(layer.crossed, count)
            layer.own = None if layer.own is None else _repeated(layer.own, count)

    def reorder(self, rows: Tensor) -> None:
        """Let each row go on with the caption of another, int64, shape (b,), that looks at the same tokens."""
        for layer in self.layers:
            if layer.own is not None:
                layer.own = layer.own[0][rows], layer.own[1][rows]


class CaptionDecoder(nn.Module):
    """A decoder of captions; the defaults are LocCa's base size.

    Parameters
    ----------
    vocabulary
        How many token numbers there are, as the tokenizer says (`finetune.captions`).
    memory_dim
        Length c of the encoder's tokens.
    layers, heads, dim, feedforward
        Number of layers, of attention heads in each, length of the decoder's own vectors and of the inner layer.
    positions
        The longest caption, begin and end included.
    dropout
        On the embeddings, on what each part of a layer adds, and on attention weights; 0 to below 1.
    tied
        Whether the logits are products with the embedding of the token numbers, or have weights of their own.

    Raises
    ------
    ConfigError
        If `heads` does not divide `dim`.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        memory_dim: int,
        layers: int = 6,
        heads: int = 8,
        dim: int = 512,
        feedforward: int = 2048,
        positions: int = 512,
        dropout: float = 0.1,
        tied: bool = True,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"captioning: dim has to be a multiple of heads; got dim={dim}, heads={heads}")
        self.positions = positions
        self.memory = nn.Linear(memory_dim, dim)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Embedding(positions, dim)
        self.dropout = nn.Dropout(dropout)
        self.layers: Iterable[_Layer] = nn.ModuleList(  # type: ignore[assignment]  # of which it knows no type
            _Layer(dim, heads, feedforward, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(dim)
        # Tied, there is one tensor with one name, which every format of weights can store.
        self.logits = None if tied else nn.Linear(dim, vocabulary, bias=False)
        self.apply(_initialise)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        """Return the logits of what follows each token number.

        Parameters
        ----------
        ids
            Int64, shape (b, l), l at most `positions`.
        memory
            The encoder's tokens, shape (b, t, c).

        Returns
        -------
        Tensor
            Shape (b, l, vocabulary); those at place i depend on the ids up to i only.
        """
        return self.step(ids, self.start(memory))

    def start(self, memory: Tensor) -> Cache:
        """Return the cache of captions that have not begun, of the encoder's tokens, shape (b, t, c)."""
        seen = self.memory(memory)
        return Cache([LayerCache(None, layer.crossing.remember(seen)) for layer in self.layers])

    def step(self, ids: Tensor, cache: Cache) -> Tensor:
        """Return what `forward` does for token numbers that follow those of the cache, which grows by them.

        Raises
        ------
        ConfigError
            If a caption becomes longer than the decoder has positions.
        """
        end = cache.length + ids.shape[1]
        if end > self.positions:
            raise ConfigError(f"captioning: a caption of {end} tokens is longer than the decoder's {self.positions}")
        places = torch.arange(cache.length, end, device=ids.device)
        x = self.dropout(self.embedding(ids) + self.position(places))
        for layer, remembered in zip(self.layers, cache.layers, strict=True):
            x = layer(x, remembered, past=cache.length)
        cache.length = end
        return linear(self.norm(x), self.embedding.weight if self.logits is None else self.logits.weight)


class _Attention(nn.Module):
    """Multi-head attention whose keys and values can be kept."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def remember(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, each of shape (b, heads, t, dim / heads)."""
        keys, values = self.key_value(x).chunk(2, dim=-1)
        return self._by_head(keys), self._by_head(values)

    def forward(self, x: Tensor, remembered: tuple[Tensor, Tensor], *, past: int | None = None) -> Tensor:
        """Attend to what is remembered; where there is a `past`, to it and no further than each place itself."""
        queries = self._by_head(self.query(x))
        keys, values = remembered
        mask = None
        if past:
            mask = torch.ones(x.shape[1], keys.shape[2], dtype=torch.bool, device=x.device).tril(past)
        attended = scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=past == 0,
        )
        out: Tensor = self.out(attended.transpose(1, 2).flatten(2))
        return out

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, -1).transpose(1, 2)


class _Layer(nn.Module):
    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.own_norm, self.own = nn.LayerNorm(dim), _Attention(dim, heads, dropout)
        self.crossing_norm, self.crossing = nn.LayerNorm(dim), _Attention(dim, heads, dropout)
        self.inner_norm = nn.LayerNorm(dim)
        self.inner = nn.Sequential(nn.Linear(dim, feedforward), nn.GELU(), nn.Linear(feedforward, dim))

    def forward(self, x: Tensor, cache: LayerCache, *, past: int) -> Tensor:
        normed = self.own_norm(x)
        new = self.own.remember(normed)
        if cache.own is not None:
            new = torch.cat([cache.own[0], new[0]], dim=2), torch.cat([cache.own[1], new[1]], dim=2)
        cache.own = new
        x = x + self._dropped(self.own(normed, new, past=past))
        x = x + self._dropped(self.crossing(self.crossing_norm(x), cache.crossed))
        return x + self._dropped(self.inner(self.inner_norm(x)))

    def _dropped(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, training=self.training)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _repeated(pair: tuple[Tensor, Tensor], count: int) -> tuple[Tensor, Tensor]:
    return pair[0].repeat_interleave(count, dim=0), pair[1].repeat_interleave(count, dim=0)
