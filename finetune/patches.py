"""Where the tokens of a transformer lie in its input, and how some of them are hidden before it computes.

::

    pixels --> [hidden cells blank] --> patch embedding --> [hidden places: a learned vector] --> the network

A cell is what becomes one token at the end: a patch of a ViT; of a network that pools on its way (MViT, Swin) the
block of patches that becomes one token. Both steps are needed: patches of MViT overlap, so that a neighbour of a
hidden cell would see its border; and a blank cell is not the same as one that is not there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.manifest import Source
from featurestore.errors import EncoderError
from featurestore.forward import is_convolutional
from featurestore.image_encoder import ImageEncoder
from featurestore.pooling_text import TOKENS
from featurestore.video_encoder import VideoEncoder
from finetune.towers import Tower

_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class Patches:
    """The tokens of a tower as cells of its input.

    Attributes
    ----------
    embedding
        The convolution that makes patches of pixels.
    places
        Patches along each axis: height and width, of clips time before them.
    grid
        Tokens along each axis.
    cell
        Pixels, and of clips frames, of a token along each axis.
    prefix
        Leading tokens that stand for no cell.
    """

    embedding: nn.Conv2d | nn.Conv3d
    places: tuple[int, ...]
    grid: tuple[int, ...]
    cell: tuple[int, ...]
    prefix: int

    @classmethod
    def of(cls, tower: Tower) -> Patches:
        """Return the patches of a tower that gives tokens.

        Raises
        ------
        EncoderError
            If it is no transformer of image patches or of clips, or its tokens do not lie on a grid.
        """
        embedding = _patch_embedding(tower)
        seen: list[tuple[Tensor, Tensor]] = []
        handle = embedding.register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
        try:
            with torch.no_grad():
                _, tokens = tower(_blank_batch(tower))
        finally:
            handle.remove()
        if len(seen) != 1 or tokens is None:
            raise EncoderError(f"{tower.name}: masked modelling needs tokens of patches; it shows none")
        size, places = tuple(seen[0][0].shape[2:]), tuple(seen[0][1].shape[2:])
        prefix = _prefix(tower)
        count = tokens.shape[1] - prefix
        grid = _grid(places, count)
        if grid is None or any(pixels % tokens_ for pixels, tokens_ in zip(size, grid, strict=True)):
            raise EncoderError(
                f"{tower.name}: masked modelling needs tokens that share out the input evenly; found {count} of "
                f"{'x'.join(map(str, places))} patches and an input of {'x'.join(map(str, size))}"
            )
        cell = tuple(pixels // tokens_ for pixels, tokens_ in zip(size, grid, strict=True))
        return cls(embedding=embedding, places=places, grid=grid, cell=cell, prefix=prefix)

    @property
    def count(self) -> int:
        """Number of cells."""
        return prod(self.grid)

    @property
    def values(self) -> int:
        """Number of values in a cell: pixels times channels."""
        return prod(self.cell) * self.embedding.in_channels

    @contextmanager
    def hidden(self, mask: Tensor, vector: Tensor) -> Iterator[list[Tensor]]:
        """Hide cells from the tower as long as the context lasts.

        Parameters
        ----------
        mask
            True where a cell is hidden, bool, shape (b, cells), in the order of the tokens.
        vector
            What stands for each hidden patch, shape (channels of the patches,).

        Yields
        ------
        list of Tensor
            The normalised input of each forward pass before anything was hidden: (b, 3, h, w), or (b, 3, t, h, w).
        """
        at = mask.view(-1, 1, *self.grid)
        seen: list[Tensor] = []

        def blank(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(given[0])
            return (given[0].masked_fill(_enlarged(at, self.cell), 0), *given[1:])

        def replace(_: nn.Module, __: Any, made: Tensor) -> Tensor:
            factors = [places // tokens for places, tokens in zip(self.places, self.grid, strict=True)]
            shaped = vector.to(made.dtype).view(1, -1, *[1] * len(self.grid))
            return torch.where(_enlarged(at, factors), shaped, made)

        handles = self.embedding.register_forward_pre_hook(blank), self.embedding.register_forward_hook(replace)
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def cut(self, pixels: Tensor) -> Tensor:
        """Return the values of each cell.

        Parameters
        ----------
        pixels
            (b, c, h, w) or (b, c, t, h, w).

        Returns
        -------
        Tensor
            (b, cells, values), the cells in the order of the tokens; in a cell frame by frame, each in raster order,
            the channels innermost.
        """
        axes = len(self.grid)
        sizes = [size for pair in zip(self.grid, self.cell, strict=True) for size in pair]
        split = pixels.reshape(*pixels.shape[:2], *sizes)
        outer, inner = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
        return split.permute(0, *outer, *inner, 1).reshape(len(pixels), self.count, self.values)


def _patch_embedding(tower: Tower) -> nn.Conv2d | nn.Conv3d:
    first = next((part for part in tower.network.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)), None)
    encoder = tower.encoder
    if first is None or is_convolutional(tower.network) or not isinstance(encoder, ImageEncoder | VideoEncoder):
        raise EncoderError(
            f"{tower.name}: masked modelling needs a transformer of image patches or of clips, such as "
            f"timm:vit_small_patch16_224 or torchvision:mvit_v2_s"
        )
    return first


def _prefix(tower: Tower) -> int:
    levels = [level for level in tower.encoder.levels if level.pooling == TOKENS]
    return len(levels[0].architecture["tokens"]["prefix"]) if levels else 0


def _grid(places: Sequence[int], count: int) -> tuple[int, ...] | None:
    """Return how many tokens there are along each axis, if height and width were pooled alike, or not at all."""
    total = prod(places)
    factor = next((each for each in range(1, min(places[-2:]) + 1) if each**2 * count == total), None)
    if factor is None or places[-1] % factor or places[-2] % factor:
        return None
    return (*places[:-2], places[-2] // factor, places[-1] // factor)


def _blank_batch(tower: Tower) -> Any:
    encoder = tower.encoder
    if isinstance(encoder, VideoEncoder):
        frames = np.zeros((encoder.transform.frames, _SIDE, _SIDE, 3), np.uint8)
        return tower.collate([encoder.prepare((Source("video"), frames))])
    assert isinstance(encoder, ImageEncoder)
    return tower.collate([encoder.prepare(np.zeros((_SIDE, _SIDE, 3), np.uint8))])


def _enlarged(mask: Tensor, factors: Sequence[int]) -> Tensor:
    """Return a mask with each of its entries repeated along the axes behind the second."""
    for axis, factor in enumerate(factors, start=2):
        mask = mask.repeat_interleave(factor, dim=axis)
    return mask
