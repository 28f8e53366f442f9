"""Partial-depth caching: what lies below the lowest trained block is computed once per sample and kept in the store.

::

    samples -> stem -> block 1 ... j | stored, float32 | block j + 1 ... n -> top -> vector
               frozen: computed once                     trained: computed in every step
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data.digest import Keys, as_keys, key_bytes, key_hex
from data.errors import SampleError
from data.filecache import FileCache, chunks
from data.manifest import Source
from data.progress import Progress, Silent
from featurestore.catalog import canonical
from featurestore.chunks import ChunkedTextEncoder
from featurestore.errors import EncoderError
from featurestore.features import Ragged
from featurestore.levels import finite, some, to_block
from featurestore.pooling_text import TOKENS
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore
from featurestore.text_encoder import TextEncoder
from featurestore.writer import Writer
from finetune.blocks import blocks
from finetune.cut import Cut
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


class PartialTower(Tower):
    """A tower that reads the activations below its lowest trained block from a store; else it is like any other.

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
        Where activations are kept, under a specification of their own, by the content of the sample.
    augmented
        Whether samples are changed at random before they are encoded, so that nothing could be kept.

    Raises
    ------
    EncoderError
        If samples are augmented, another policy is used, or the network cannot be cut between two blocks.
    """

    def __init__(self, tower: Tower, policy: Policy, store: FeatureStore, *, augmented: bool = False) -> None:
        super().__init__(tower.name, tower.encoder, tower.projection, tower.pooling, keeps_tokens=tower.keeps_tokens)
        self.network.eval()
        lower, count = _lower_blocks(tower, policy, augmented=augmented)
        self._cut = Cut(self.name, self.network, lower, self.encoder.differentiable)
        self._block = len(lower)
        trial = _trial_items(self.encoder)
        self._blank = self.encoder.collate(trial[:1])
        dim = self._try_both_ways(trial)
        spec = _specification(self.encoder.spec, block=self._block, of=count, shape=self._cut.shape, dim=dim)
        self._features = store.open(spec, name=f"{canonical(self.name)} up to block {self._block}", ragged=True)
        self._cache = FileCache(store.files_cache)
        self._known: dict[Source, Keys | SampleError] = {}
        self._filling = Lock()

    @property
    def specification(self) -> EncoderSpec:
        """The identity of the activations."""
        return self._features.spec

    def fill(
        self, sources: Sequence[Source], *, batch_size: int = 32, workers: int = 4, progress: Progress | None = None
    ) -> dict[int, SampleError]:
        """Compute the activations that the store does not hold, and return what is wrong with samples, by position.

        Parameters
        ----------
        sources
            Samples that will be read.
        batch_size
            Samples per forward pass.
        workers
            Threads that decode.
        progress
            Told about encoding.
        """
        progress = progress or Silent()
        with self._filling:
            keys, failures = self._cache.keys(sources, workers=workers)
            missing = [i for i in self._features.missing(keys).tolist() if i not in failures]
            # Equal contents are encoded once.
            wanted = {key_bytes(keys[i]): sources[i] for i in missing}
            failed = self._encode(wanted, batch_size, workers, progress)
            failures |= {i: failed[key] for i in missing if (key := key_bytes(keys[i])) in failed}
            self._features = self._features.refresh()
            self._known |= {source: failures.get(i, keys[i : i + 1]) for i, source in enumerate(sources)}
            return failures

    def read(self, source: Source) -> Tensor | CachedText:
        """Return the activations of one sample, float32, (t, c), with its text where it is one.

        Raises
        ------
        SampleError
            If it cannot be encoded.
        """
        if source not in self._known:
            self.fill([source])
        key = self._known[source]
        if isinstance(key, SampleError):
            raise key
        activations = torch.from_numpy(np.array(self._features.take_bags(key).values))
        if isinstance(self.encoder, TextEncoder):
            return CachedText(self.encoder.read(source), activations)
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

    def _encode(
        self, wanted: Mapping[bytes, Source], batch_size: int, workers: int, progress: Progress
    ) -> dict[bytes, SampleError]:
        """Store the activations of samples, and return what is wrong with others, by key."""
        failed: dict[bytes, SampleError] = {}
        progress.stage(f"encoding up to block {self._block}", len(wanted))
        made_by = {"encoder": canonical(self.name), "block": self._block}
        with self._features.writer(written_by=made_by) as writer, ThreadPoolExecutor(workers) as pool:
            for some_keys in chunks(list(wanted), batch_size):
                read = dict(
                    zip(some_keys, pool.map(self._try_to_read, map(wanted.__getitem__, some_keys)), strict=True)
                )
                failed |= {key: item for key, item in read.items() if isinstance(item, SampleError)}
                good = {key: item for key, item in read.items() if not isinstance(item, SampleError)}
                if good:
                    failed |= self._store(writer, good)
                progress.advance(len(some_keys))
        return failed

    def _store(self, writer: Writer, items: Mapping[bytes, Any]) -> dict[bytes, SampleError]:
        """Encode a batch and store what is finite of it; return what is not."""
        keys = as_keys(items)
        block = to_block(self._tokens(self.encoder.collate(list(items.values()))))
        right = finite(block, "float32")
        if right.any():
            kept = some(block, right)
            assert isinstance(kept, Ragged)  # tokens always are
            writer.add(keys[right], kept.values, [key_hex(key) for key in keys[right]], offsets=kept.offsets)
        damage = SampleError("not_finite", f"its activations at block {self._block} are not finite")
        return {key: damage for key, ok in zip(items, right, strict=True) if not ok}

    def _tokens(self, inputs: Any) -> Tensor | list[Tensor]:
        """Return the activations of a batch, (b, t, c); of texts with a mask those of the tokens that it has."""
        made = self._cut.below(inputs)
        if not (isinstance(self.encoder, TextEncoder) and _MASK in inputs):
            return made
        return [tokens[there.bool()] for tokens, there in zip(made, inputs[_MASK].cpu(), strict=True)]

    def _try_to_read(self, source: Source) -> Any:
        try:
            return self.encoder.read(source)
        except SampleError as error:
            return error

    def _try_both_ways(self, items: Sequence[Any]) -> int:
        """Return the length of an activation; refuse a network whose vectors are others when it is cut."""
        inputs = self.encoder.collate(items)
        made: list[Any] = list(self._tokens(inputs))
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
        return EncoderError(
            f"{self.name}: cannot go on from the stored output of block {self._block}: {why}; train without the cache "
            f"of activations"
        )


def _lower_blocks(tower: Tower, policy: Policy, *, augmented: bool) -> tuple[list[nn.Module], int]:
    """Return the blocks below the lowest trained one, bottom to top, and the number of all."""
    if augmented:
        raise EncoderError(
            f"{tower.name}: augmented samples are new in every epoch, so nothing of them can be kept; leave out the "
            f"augmentation or the cache of activations"
        )
    stack = blocks(tower.network)
    trained = policy.as_last(len(stack))
    if trained is None:
        raise EncoderError(
            f"--unfreeze {policy}: nothing but last:K keeps the lower blocks as they are, or a constant frozen:S "
            f"between 0 and 1; choose one of these, or leave out the cache of activations"
        )
    policy.prepare(tower.network)
    if trained == len(stack):
        raise EncoderError(
            f"--unfreeze {policy}: {type(tower.network).__name__} has {len(stack)} blocks, so that none is frozen and "
            f"nothing can be kept; choose at most last:{len(stack) - 1}, or leave out the cache of activations"
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
