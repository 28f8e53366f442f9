"""Partial-depth caching: what lies below the lowest trained block is computed once per sample and kept in the store.

::

    samples -> stem -> block 1 ... j | stored, float32 | block j + 1 ... n -> top -> vector
               frozen: computed once                     trained: computed in every step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data.manifest import Source
from featurestore.catalog import canonical
from featurestore.chunks import ChunkedTextEncoder
from featurestore.errors import EncoderError
from featurestore.pooling_text import TOKENS
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore
from featurestore.text_encoder import TextEncoder
from finetune.blocks import blocks
from finetune.cut import Cut
from finetune.stored import StoredTower
from finetune.towers import Tower
from finetune.unfreeze import Policy

_TOLERANCE = 1e-5
"""Largest difference of a vector by the two ways, relative to the largest value."""

_MASK = "attention_mask"
_OF_A_LEVEL = ("tokens", "token_pooling", "projection", "similarity")


class CachedText(NamedTuple):
    """A text and the activations of its tokens.

    Attributes
    ----------
    text
        Is tokenised again, for what is computed of the tokens above: masks, and where a text ends.
    activations
        float32, (t, c).
    """

    text: str
    activations: Tensor


class CachedBatch(NamedTuple):
    """A batch of activations.

    Attributes
    ----------
    inputs
        What the encoder collates: of texts their tokens, of images a single one that stands for any.
    activations
        float32, (b, t, c); of texts, zero where there is padding.
    """

    inputs: Any
    activations: Tensor


class LowerPart:
    """What lies below a cut, as an encoder of activations; fulfils `featurestore.encoder.Encoder`.

    Parameters
    ----------
    encoder
        Reads and collates samples.
    cut
        Its network, cut.
    spec
        The identity of the activations.
    """

    def __init__(self, encoder: Any, cut: Cut, spec: EncoderSpec) -> None:
        self.spec = spec
        self.images_per_sample = getattr(encoder, "images_per_sample", 1)
        self.read = encoder.read
        self.collate = encoder.collate
        self._cut = cut

    def encode(self, batch: Any) -> Tensor | list[Tensor]:
        """Return the activations of a batch, float32, on the CPU: (b, t, c), or of texts b times (t, c)."""
        return _tokens(self._cut, batch)

    def encode_reference(self, sources: Sequence[Source]) -> list[Tensor]:
        """Return the activations of samples, each computed by itself."""
        return [self.encode(self.collate([self.read(source)]))[0] for source in sources]


class PartialTower(StoredTower):
    """A tower that reads the activations below its lowest trained block from a store.

    Nothing is assumed of the network but that it works block by block: the two ways are compared on noise, and a
    network that gives other vectors when it is cut is refused.

    Parameters
    ----------
    tower
        Whose network and projection are used. The network is as its encoder was loaded.
    policy
        ``last:K`` of fewer blocks than there are, or ``frozen:S`` that is one; nothing else may decide what of the
        network trains.
    store
        Where activations are kept, under a specification of their own.

    Raises
    ------
    EncoderError
        If another policy is used, or the network cannot be cut between two blocks.
    """

    def __init__(self, tower: Tower, policy: Policy, store: FeatureStore) -> None:
        super().__init__(tower, store)
        lower, count = _lower_blocks(tower, policy)
        self._cut = Cut(self.name, self.network, lower, self.encoder.differentiable)
        self._block = len(lower)
        trial = _trial_items(self.encoder)
        self._blank = self.encoder.collate(trial[:1])
        dim = self._try_both_ways(trial)
        self.specification = _specification(
            self.encoder.spec, block=self._block, of=count, shape=self._cut.shape, dim=dim
        )
        lowest = LowerPart(self.encoder, self._cut, self.specification)
        self._keep(lowest, name=f"{canonical(self.name)} up to block {self._block}")
        self.kept = f"activations behind block {self._block} of {count}"

    def read(self, source: Source) -> Tensor | CachedText:
        """Return the activations of a sample that was looked up, float32, (t, c), with its text where it is one.

        Raises
        ------
        SampleError
            If it cannot be encoded.
        """
        activations: Tensor
        (activations,) = super().read(source)
        if isinstance(self.encoder, TextEncoder):
            return CachedText(self.encoder.shortened(self.encoder.read(source)), activations)
        return activations

    def collate(self, items: Sequence[Any]) -> CachedBatch:
        """Return a batch of what `read` gave."""
        if not isinstance(self.encoder, TextEncoder):
            return CachedBatch(self._blank, torch.stack(list(items)))
        inputs = self.encoder.collate([item.text for item in items])
        return CachedBatch(inputs, _padded([item.activations for item in items], inputs))

    def forward(self, batch: CachedBatch) -> tuple[Tensor, Tensor | None]:
        """Return vectors of shape (b, d) and, where the encoder gives them, tokens of shape (b, t, c)."""
        with self._cut.above(batch.activations):
            return super().forward(batch.inputs)

    def _try_both_ways(self, items: Sequence[Any]) -> int:
        """Return the length of an activation; refuse a network whose vectors are others when it is cut."""
        inputs = self.encoder.collate(items)
        made: list[Any] = list(_tokens(self._cut, inputs))
        is_text = isinstance(self.encoder, TextEncoder)
        cached = [CachedText(*each) for each in zip(items, made, strict=True)] if is_text else made
        with torch.no_grad():
            try:
                whole, cut = super().forward(inputs)[0], self(self.collate(cached))[0]
            except (RuntimeError, TypeError, ValueError) as error:
                raise self._uncuttable(f"it fails: {' '.join(str(error).split())[:200]}") from error
        if whole.shape != cut.shape or not (whole - cut).abs().max() <= _TOLERANCE * whole.abs().max():
            raise self._uncuttable("its vectors are others")
        return int(made[0].shape[-1])

    def _uncuttable(self, why: str) -> EncoderError:
        return EncoderError(f"{self.name}: cannot go on from the stored output of block {self._block}: {why}")


def _tokens(cut: Cut, inputs: Any) -> Tensor | list[Tensor]:
    """Return the activations of a batch, (b, t, c); of texts with a mask those of the tokens that it has."""
    made = cut.below(inputs)
    if not (isinstance(inputs, Mapping) and _MASK in inputs):
        return made
    return [tokens[there.bool()] for tokens, there in zip(made, inputs[_MASK].cpu(), strict=True)]


def _lower_blocks(tower: Tower, policy: Policy) -> tuple[list[nn.Module], int]:
    """Return the blocks below the lowest trained one, bottom to top, and the number of all."""
    stack = blocks(tower.network)
    trained = policy.as_last(len(stack))
    if trained is None:
        raise EncoderError(f"{tower.name}: of {policy.option} {policy} no lower blocks stay as they are in every epoch")
    policy.prepare(tower.network)
    if trained == len(stack):
        raise EncoderError(
            f"{tower.name}: {policy.option} {policy} freezes none of the {len(stack)} blocks of "
            f"{type(tower.network).__name__}; choose at most last:{len(stack) - 1}"
        )
    if isinstance(tower.encoder, ChunkedTextEncoder):
        raise EncoderError(f"{tower.name}: the activations of texts in pieces are not kept; choose another pooling")
    return stack[:-trained], len(stack)


def _specification(spec: EncoderSpec, *, block: int, of: int, shape: tuple[int, ...] | None, dim: int) -> EncoderSpec:
    """Return the identity of activations; of feature maps they are the places, in raster order."""
    architecture = {name: value for name, value in spec.architecture.items() if name not in _OF_A_LEVEL}
    cut = {"block": block, "of": of, "shape": list(shape) if shape else None}
    return replace(
        spec,
        architecture={**architecture, "activations": cut},
        layer=f"block {block}",
        pooling=TOKENS,
        precision="fp32",
        dtype="float32",
        dim=dim,
    )


def _trial_items(encoder: Any) -> list[Any]:
    """Return two samples as the encoder reads them: noise, or texts of different lengths."""
    if isinstance(encoder, TextEncoder):
        return ["a", "a b c d e f"]
    rng = np.random.default_rng(0)
    transform = encoder.transform
    shape = (transform.frames, 64, 64, 3) if hasattr(transform, "frames") else (64, 64, 3)
    return [transform.apply(rng.integers(0, 256, shape, dtype=np.uint8)) for _ in range(2)]


def _padded(tokens: Sequence[Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the tokens of each text where its mask has them, and zeros elsewhere, (b, t, c)."""
    if _MASK not in inputs:
        return torch.stack(list(tokens))
    there = inputs[_MASK].bool()
    padded = tokens[0].new_zeros(*there.shape, tokens[0].shape[-1])
    padded[there] = torch.cat(list(tokens))
    return padded
