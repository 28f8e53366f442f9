"""A real network, small and seeded, slowed down: `py:benchmarks/crash/slow_encoder.py:load`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.images import load_image
from data.manifest import Source
from featurestore.encoder import EncoderOptions
from featurestore.spec import EncoderSpec

DIM = 32
SECONDS_PER_BATCH = 0.02


class SlowEncoder:
    """A seeded two-layer network over 24 x 24 pixels; its batches go through one matrix product."""

    def __init__(self, options: EncoderOptions) -> None:
        self.spec = EncoderSpec(
            family="python",
            modality="image",
            architecture={"class": "SlowEncoder"},
            weights="1" * 64,
            preprocess={"side": 24},
            layer="output",
            pooling="native",
            precision=options.precision,
            dtype="float32",
            dim=DIM,
        )
        generator = torch.Generator().manual_seed(0)
        self._first = torch.randn(24 * 24 * 3, 256, generator=generator) / 40
        self._second = torch.randn(256, DIM, generator=generator) / 16

    def read(self, source: Source) -> Tensor:
        """Return the pixels of one picture."""
        small = Image.fromarray(load_image(source)).resize((24, 24), Image.Resampling.BOX)
        return torch.from_numpy(np.array(small).reshape(-1))

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        """Stack pictures."""
        return torch.stack(list(items))

    def encode(self, batch: Tensor) -> Tensor:
        """Return the network's output."""
        time.sleep(SECONDS_PER_BATCH)
        return torch.tanh((batch.float() / 255) @ self._first) @ self._second

    def encode_reference(self, sources: Sequence[Source]) -> Tensor:
        """Return the network's output, one picture at a time."""
        return torch.cat([self.encode(self.collate([self.read(source)])) for source in sources])


def load(options: EncoderOptions) -> SlowEncoder:
    """Return the encoder."""
    return SlowEncoder(options)
