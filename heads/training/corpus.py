"""A fold's rows as padded batches of features that stay in memory, and the random streams that order them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.errors import HeadError
from heads.training.plan import Fold, Rows

_SLOTS = 16  # batches are padded to a multiple of this


class Corpus:
    """One fold's rows, as padded batches of the shared features.

    `layout` is (steps, slots, monitor slots): what two folds must have in common to be trained in lock-step.
    """

    def __init__(self, fold: Fold, features: Tensor, targets: Tensor, batch_size: int) -> None:
        device, rows = features.device, len(fold.train)
        if not rows:
            raise HeadError(f"fold {fold.number} has no training rows")
        self.features, self.targets, self.number = features, targets, fold.number
        self.train = torch.from_numpy(fold.train.astype(np.int64))
        observed = ~torch.isnan(targets)
        self.weights = observed.float()
        if fold.weight is not None:
            self.weights *= as_tensor(fold.weight, device).float().reshape(len(targets), -1)
        self.targets = torch.where(observed, targets, 0.0)
        self.shift = None if fold.shift is None else as_tensor(fold.shift, device).float()
        self.scale = None if fold.scale is None else as_tensor(fold.scale, device).float()

        steps = -(-rows // batch_size)
        slots = _round_up(-(-rows // steps), _SLOTS)
        self.monitor, self.monitor_real = _padded(fold.monitor, _round_up(len(fold.monitor), 2 * _SLOTS), device)
        self.layout = (steps, slots, len(self.monitor))
        ends = np.arange(1, steps + 1) * rows // steps
        batches = [_padded(np.arange(a, b), slots, torch.device("cpu")) for a, b in zip([0, *ends], ends, strict=False)]
        self._slots = torch.stack([positions for positions, _ in batches])
        self.real = torch.stack([real for _, real in batches]).to(device)

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the rows of every batch of an epoch, shape (steps, slots)."""
        return self.train[torch.randperm(len(self.train), generator=generator)][self._slots].to(self.features.device)

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (b, d), targets (b, T) and weights (b, T) of some rows."""
        x = self.features[rows].float()
        if self.shift is not None:
            x = x - self.shift
        if self.scale is not None:
            x = x / self.scale
        return x, self.targets[rows], self.weights[rows]

    @cached_property
    def spread(self) -> Tensor:
        """Return the standard deviation of each feature over the training rows where it is not missing, shape (d,)."""
        x = self.take(self.train.to(self.features.device))[0]
        absent = x.isnan()
        if not absent.any():
            return x.std(dim=0, correction=0)
        known = (~absent).sum(dim=0).clamp(min=1)
        centred = torch.where(absent, 0.0, x - x.nansum(dim=0) / known)
        return torch.sqrt(centred.square().sum(dim=0) / known)


@dataclass(eq=False)
class Stream:
    """The randomness of one (seed, fold), which all its configurations share."""

    seed: int
    corpus: Corpus
    order: Tensor = field(default_factory=lambda: torch.empty(0))

    def generator(self, purpose: str, *place: int, device: torch.device | None = None) -> torch.Generator:
        """Return a generator that depends on the stream, the purpose and the epoch and step only."""
        key = repr((self.seed, self.corpus.number, purpose, *place)).encode()
        seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1
        return torch.Generator(device or "cpu").manual_seed(seed)


def as_tensor(array: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array on a device; a read-only one is copied, for torch cannot promise not to write."""
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)


def _padded(rows: Rows, slots: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return rows filled up with their first one, and 1.0 for the real and 0.0 for the filled ones."""
    padded, real = np.full(slots, rows[0] if len(rows) else 0), np.zeros(slots, np.float32)
    padded[: len(rows)], real[: len(rows)] = rows, 1.0
    return torch.from_numpy(padded).to(device), torch.from_numpy(real).to(device)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
