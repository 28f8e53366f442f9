"""A fold's rows as padded batches of features that stay in memory, and the random streams that order them."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.errors import HeadError
from heads.training.draws import generator_of
from heads.training.plan import Fold, Rows

_SLOTS = 32  # batches are padded to a multiple of this: torch rounds exp otherwise in what is left of two registers


class Corpus:
    """One fold's rows, as padded batches of the shared features.

    `layout` is (steps, slots, monitor slots): what two folds must have in common to be trained in lock-step.
    """

    def __init__(self, fold: Fold, features: Tensor, targets: Targets, batch_size: int) -> None:
        device, rows = features.device, len(fold.train)
        if not rows:
            raise HeadError(f"fold {fold.number} has no training rows")
        self.features, self.number = features, fold.number
        self.train = torch.from_numpy(fold.train.astype(np.int64))
        self.targets, self.weights = targets.of(fold)
        # In the precision of the features, or a spread that is small beside the mean would be lost.
        exact = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.shift = None if fold.shift is None else as_tensor(fold.shift, device).to(exact)
        self.scale = None if fold.scale is None else as_tensor(fold.scale, device).to(exact)
        # Rows are drawn by weight or class by class, or all are taken in a random order.
        self.chance = None if fold.chance is None else torch.from_numpy(np.cumsum(fold.chance / fold.chance.sum()))
        self.classes = None if fold.stratum is None else _Classes(fold.stratum)

        steps = -(-rows // batch_size)
        slots = _round_up(-(-rows // steps), _SLOTS)
        self.monitor, self.monitor_real = _padded(fold.monitor, _round_up(len(fold.monitor), _SLOTS), device)
        self.layout = (steps, slots, len(self.monitor))
        ends = np.arange(1, steps + 1) * rows // steps
        batches = [_padded(np.arange(a, b), slots, torch.device("cpu")) for a, b in zip([0, *ends], ends, strict=False)]
        self._slots = torch.stack([positions for positions, _ in batches])
        self.real = torch.stack([real for _, real in batches]).to(device)
        self.share = (self.real / self.real.sum(dim=1, keepdim=True))[:, None]

    def order(self, generator: torch.Generator) -> Tensor:
        """Return the rows of every batch of an epoch, shape (steps, slots)."""
        return self.train[self._drawn(generator)][self._slots].to(self.features.device)

    def _drawn(self, generator: torch.Generator) -> Tensor:
        """Return the places in the fold of an epoch's rows, batch after batch."""
        rows = len(self.train)
        if self.chance is None and self.classes is None:
            return torch.randperm(rows, generator=generator)
        uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
        if self.classes is not None:
            return self.classes.places(uniform)
        assert self.chance is not None  # rows are drawn by weight
        return torch.searchsorted(self.chance, uniform, right=True).clamp(max=rows - 1)

    def features_of(self, rows: Tensor, out: Tensor) -> None:
        """Write the features of some rows to a tensor (b, d)."""
        if self.features.dtype == torch.float64:
            x = self.features[rows] if self.shift is None else self.features[rows] - self.shift
            out.copy_(x if self.scale is None else x / self.scale)
            return
        if self.features.dtype == out.dtype:
            torch.index_select(self.features, 0, rows, out=out)
        else:
            out.copy_(self.features[rows])
        if self.shift is not None:
            out.sub_(self.shift)
        if self.scale is not None:
            out.div_(self.scale)

    @cached_property
    def spread(self) -> Tensor:
        """Return the standard deviation of each feature over the training rows where it is not missing, shape (d,)."""
        x = self.features.new_empty((len(self.train), self.features.shape[1]), dtype=torch.float32)
        self.features_of(self.train.to(self.features.device), x)
        absent = x.isnan()
        if not absent.any():
            return x.std(dim=0, correction=0)
        known = (~absent).sum(dim=0).clamp(min=1)
        centred = torch.where(absent, 0.0, x - x.nansum(dim=0) / known)
        return torch.sqrt(centred.square().sum(dim=0) / known)


class _Classes:
    """The rows of each class, drawn class by class in turn.

    Any stretch of what is drawn holds the classes in equal shares, up to one row each.

    Parameters
    ----------
    stratum
        The class of each row; each class has one row or more.
    """

    def __init__(self, stratum: Rows) -> None:
        self._rows = torch.from_numpy(np.argsort(stratum, kind="stable"))
        self._sizes = torch.from_numpy(np.bincount(stratum))
        self._starts = self._sizes.cumsum(0) - self._sizes

    def places(self, uniform: Tensor) -> Tensor:
        """Return as many rows as there are numbers in [0, 1)."""
        code = torch.arange(len(uniform)) % len(self._sizes)
        return self._rows[self._starts[code] + (uniform * self._sizes[code]).long()]


class Targets:
    """The targets and weights of folds; folds that name the same arrays share the tensors.

    Parameters
    ----------
    y
        The targets of folds that have none of their own.
    device
        Where to keep them.
    """

    def __init__(self, y: NDArray[Any] | None, device: torch.device) -> None:
        self._y, self._device = y, device
        self._known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def of(self, fold: Fold) -> tuple[Tensor, Tensor]:
        """Return targets, 0 where missing, and weights, each of shape (n, T)."""
        y = self._y if fold.y is None else fold.y
        assert y is not None  # a fold has targets of its own or shares them
        key = id(y), id(fold.weight)
        if key not in self._known:
            targets = as_tensor(y, self._device).float().reshape(len(y), -1)
            observed = ~torch.isnan(targets)
            weights = observed.float()
            if fold.weight is not None:
                weights *= as_tensor(fold.weight, self._device).float().reshape(len(targets), -1)
            self._known[key] = torch.where(observed, targets, 0.0), weights
        return self._known[key]


class Stream:
    """The randomness of one (seed, fold), which all its configurations share."""

    def __init__(self, seed: int, corpus: Corpus) -> None:
        self.seed, self.corpus = seed, corpus

    def begin(self, epoch: int) -> None:
        """Order the rows of an epoch, and begin its noise and dropout."""
        device = self.corpus.features.device
        self.order = self.corpus.order(self.generator("order", epoch))
        self.noise = self.generator("noise", epoch, device=device)
        self.dropout = self.generator("dropout", epoch, device=device)

    def generator(self, purpose: str, *place: int, device: torch.device | None = None) -> torch.Generator:
        """Return a generator that depends on the stream, the purpose and the place only."""
        return generator_of(self.seed, self.corpus.number, purpose, *place, device=device)


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
