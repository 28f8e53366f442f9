"""From the vectors of a study's views to one vector: their mean, or a small transformer over them.

Views are a set: their order in a table means nothing, so nothing here depends on it. What pads shorter studies is
masked, and cannot reach a result.
"""

from __future__ import annotations

import re
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from data.errors import ConfigError

_FORM = re.compile(r"(?P<kind>mean|transformer)(:(?P<depth>[1-9]\d*)(:(?P<heads>[1-9]\d*))?)?")
_INIT_STD = 0.02


class MeanOfViews(nn.Module):
    """The mean of a study's views."""

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Return one vector per study.

        Parameters
        ----------
        vectors
            Those of all views, study after study, shape (m, d).
        lengths
            Views of each study, one at least, int64, shape (b,).

        Returns
        -------
        Tensor
            Shape (b, d).
        """
        owners = torch.repeat_interleave(torch.arange(len(lengths), device=vectors.device), lengths)
        sums = vectors.new_zeros(len(lengths), vectors.shape[1]).index_add_(0, owners, vectors)
        return sums / lengths[:, None]


class TransformerOfViews(nn.Module):
    r"""Pre-norm transformer blocks over the views of a study, then their mean weighted by a learned query.

    .. math:: h = \mathrm{LN}(\mathrm{blocks}(v_1 \dots v_n)), \qquad
              s = \sum_i \mathrm{softmax}_i(q \cdot h_i / \sqrt d) \, h_i

    Without embeddings of positions, which would make the order of the rows of a table count.

    Parameters
    ----------
    dim
        Length of the vectors.
    depth, heads
        Blocks, and attention heads of each; a block's inner layer is 4 `dim` wide.
    dropout
        In the blocks, in training.

    Raises
    ------
    ConfigError
        If `heads` does not divide `dim`.
    """

    def __init__(self, dim: int, *, depth: int = 2, heads: int = 8, dropout: float = 0.1) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"--aggregate: {heads} heads do not divide vectors of length {dim}; name another number")
        block = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, depth, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.query = nn.Parameter(_INIT_STD * torch.randn(dim))

    def forward(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Return one vector per study; see `MeanOfViews`."""
        padded = pad_sequence(list(torch.split(vectors, lengths.tolist())), batch_first=True)
        absent = torch.arange(padded.shape[1], device=vectors.device) >= lengths[:, None]
        hidden = self.blocks(padded, src_key_padding_mask=absent)
        scores = (hidden @ self.query / vectors.shape[1] ** 0.5).masked_fill(absent, -torch.inf)
        pooled: Tensor = (scores.softmax(dim=1)[:, :, None] * hidden.masked_fill(absent[:, :, None], 0.0)).sum(dim=1)
        return pooled


class Aggregate:
    """What ``--aggregate`` says: ``mean``, or ``transformer:DEPTH:HEADS``.

    Attributes
    ----------
    kind, depth, heads
        Its parts; 2 blocks of 8 heads where it does not say.
    """

    def __init__(self, kind: str, depth: int, heads: int) -> None:
        self.kind, self.depth, self.heads = kind, depth, heads

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what a text says.

        Raises
        ------
        ConfigError
            If it is of another form.
        """
        found = _FORM.fullmatch(text.strip())
        if found is None or (found["kind"] == "mean" and found["depth"]):
            raise ConfigError(
                f"--aggregate {text}: expected mean or transformer[:DEPTH[:HEADS]], such as transformer:2:8"
            )
        return cls(found["kind"], int(found["depth"] or 2), int(found["heads"] or 8))

    def make(self, dim: int) -> nn.Module:
        """Return the module for vectors of some length."""
        return MeanOfViews() if self.kind == "mean" else TransformerOfViews(dim, depth=self.depth, heads=self.heads)
