"""Tiny weightless encoders of a user's own, for tests: `py:tests/assets/toy.py:image` and `:text`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.images import load_image
from data.manifest import Source
from featurestore.encoder import EncoderOptions
from featurestore.spec import EncoderSpec

DIM = 16


def _spec(modality: Any, options: EncoderOptions, version: int) -> EncoderSpec:
    return EncoderSpec(
        family="python",
        modality=modality,
        architecture={"class": "Toy"},
        weights="0" * 64,
        preprocess={"size": 8},
        layer="output",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=DIM,
        version=version,
    )


class Toy:
    """Embeds by a fixed random projection; `calls` counts the samples that went through `encode`."""

    calls = 0

    def __init__(self, spec: EncoderSpec) -> None:
        self.spec = spec
        self._weight = torch.from_numpy(np.random.default_rng(0).normal(size=(192, DIM)).astype(np.float32))

    def read(self, source: Source) -> Tensor:
        if source.text is not None:
            codes = np.frombuffer(source.text.encode().ljust(192, b" ")[:192], np.uint8)
            return torch.from_numpy(codes.copy())
        pixels = np.asarray(Image.fromarray(load_image(source)).resize((8, 8), Image.Resampling.BOX))
        return torch.from_numpy(pixels.reshape(-1).copy())

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(items))

    def encode(self, batch: Tensor) -> Tensor:
        Toy.calls += len(batch)
        # Row by row: the same vector whatever else is in the batch, to the last bit.
        return torch.stack([(row.float() / 255) @ self._weight for row in batch])

    def encode_reference(self, sources: Sequence[Source]) -> Tensor:
        before = Toy.calls
        vectors = torch.cat([self.encode(self.collate([self.read(source)])) for source in sources])
        Toy.calls = before
        return vectors


def image(options: EncoderOptions) -> Toy:
    return Toy(_spec("image", options, version=1))


def image_v2(options: EncoderOptions) -> Toy:
    return Toy(_spec("image", options, version=2))


def text(options: EncoderOptions) -> Toy:
    return Toy(_spec("text", options, version=1))
