"""Masked modelling: what hidden cells of an image or a clip hold, told from the visible ones."""

from __future__ import annotations

from fractions import Fraction as Exact
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from data.errors import ConfigError
from finetune.gather import joint_mean
from finetune.outputs import Objective, Outputs
from finetune.patches import Patches
from finetune.towers import Tower
from heads.params import Count, Fraction

Target = Literal["pixels", "features"]

_EPS = 1e-6
_INIT_STD = 0.02


class Masked(Objective):
    r"""The squared error on hidden cells, mean over those of all processes.

    .. math:: L = \frac{1}{|M|} \sum_{(i,k) \in M} \frac{1}{v} \lVert f(\text{tokens of } i)_k - y_{ik} \rVert^2

    M are the hidden cells, ``floor(share * cells)`` of each sample, drawn anew in every forward pass. They are hidden
    before the encoder computes (`finetune.patches`): it sees of them where they are and nothing else. f is a small
    transformer with position embeddings; the target y takes no gradient:

    ============  ========================================================================================
    ``pixels``    the cell's normalised pixels, minus their mean, over their standard deviation [1]_
    ``features``  the token that the tower itself makes of the cell in sight of everything, normalised alike
    ============  ========================================================================================

    With ``features`` the tower sets its own target, and a tower that gives every cell the same token has no loss:
    have another objective beside it.

    Parameters
    ----------
    tower
        What is trained; a transformer of image patches or of clips that gives tokens. It stays a part of the network
        that it is in, and does not become one of the objective.
    share
        Of the cells, how many are hidden.
    target
        What is told of them.
    layers, dim, heads
        Of f.

    Raises
    ------
    EncoderError
        If the tower is no such transformer.
    ConfigError
        If `share` hides no cell, or `heads` does not divide `dim`.

    References
    ----------
    .. [1] He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022; hidden patches are replaced and
       not left out as in Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling", CVPR 2022.
    """

    name: ClassVar[str] = "masked"
    needs: ClassVar[frozenset[str]] = frozenset({"inputs", "tokens"})

    def __init__(
        self,
        *,
        tower: Tower,
        share: Fraction = 0.75,
        target: Target = "pixels",
        layers: Count = 2,
        dim: Count = 256,
        heads: Count = 8,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ConfigError(f"{self.name}: dim has to be a multiple of heads; got dim={dim}, heads={heads}")
        self.patches = Patches.of(tower)
        # As decimals: 0.29 of 100 cells are 29, although 0.29 * 100 is less.
        self.hidden = int(Exact(str(share)) * self.patches.count)
        if not self.hidden:
            raise ConfigError(f"{self.name}: share={share} hides none of {self.patches.count} cells")
        self.target = target
        # In a tuple, where torch does not look for parts of this one.
        self._tower = (tower,)
        token_dim = tower.encoder.levels[-1].dim
        self.vector = nn.Parameter(_INIT_STD * torch.randn(self.patches.embedding.out_channels))
        self.decoder = _Decoder(
            token_dim,
            self.patches.values if target == "pixels" else token_dim,
            cells=self.patches.count,
            layers=layers,
            dim=dim,
            heads=heads,
        )

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch; which cells are hidden follows from torch's random state on the CPU."""
        mask = self.draw(_rows(outputs.inputs)).to(self.vector.device)
        with self.patches.hidden(mask, self.vector) as seen:
            told = self.decoder(self._tokens(outputs.inputs))
        with torch.no_grad():
            right = self.patches.cut(seen[0]) if self.target == "pixels" else self._tokens(outputs.inputs)
            right = layer_norm(right.float(), right.shape[-1:], eps=_EPS)
        errors = (told[mask].float() - right[mask]).square().mean(dim=1)
        return joint_mean(errors.sum(), mask.sum())

    def draw(self, rows: int) -> Tensor:
        """Return which cells are hidden, bool, shape (rows, cells): the same number in each row, any as likely."""
        order = torch.rand(rows, self.patches.count).argsort(dim=1)
        return order < self.hidden

    def _tokens(self, inputs: Any) -> Tensor:
        _, tokens = self._tower[0](inputs)
        assert tokens is not None
        cells: Tensor = tokens[:, self.patches.prefix :]
        return cells


class _Decoder(nn.Module):
    """From tokens (b, cells, c) to what is told of each cell (b, cells, v)."""

    def __init__(self, token_dim: int, values: int, *, cells: int, layers: int, dim: int, heads: int) -> None:
        super().__init__()
        self.inner = nn.Linear(token_dim, dim)
        self.position = nn.Parameter(_INIT_STD * torch.randn(cells, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(dim), enable_nested_tensor=False)
        self.values = nn.Linear(dim, values)

    def forward(self, tokens: Tensor) -> Tensor:
        told: Tensor = self.values(self.layers(self.inner(tokens) + self.position))
        return told


def _rows(inputs: Any) -> int:
    """Return the number of samples of what a tower collated: a tensor, or a list of images."""
    return len(inputs)
