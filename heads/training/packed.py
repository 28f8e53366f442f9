"""The training loop of networks over bags: packed instances, no padding, one optimiser step per group of bags.

::

    per epoch: some instances of each bag -> bags in a new order, cut into equal steps
    per step:  bags by a budget of instances -> gradients, summed -> AdamW
    per epoch: monitor loss, best weights, plateau, early stopping (`heads.training.course`)

Everything random is drawn per (seed, fold, epoch, step). The budget bounds memory and nothing else: the
gradient of a step is the same however its bags are cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.bags import Bags, Offsets
from heads.batched import torch_device
from heads.errors import HeadError
from heads.losses import entry_losses, weighted_sum
from heads.training.corpus import as_tensor
from heads.training.course import Course, schedule_factor
from heads.training.draws import generator_of
from heads.training.optimizer import StackedOptimizer
from heads.training.plan import Fold, Recipe, Regime, Rows, TrainedModel
from heads.training.pooling import BagNetwork
from heads.training.segments import Packed, packed

BUDGET = 16_384
"""Instances in memory at once, on top of the features themselves; a larger bag goes alone."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which instances of a bag are used.

    Attributes
    ----------
    at_most
        Instances per bag: drawn anew each epoch in training, evenly spaced otherwise; None for all.
    dropout
        Share of the instances left out each epoch in training. One of each bag always stays, and the
        weights of those that stay sum to one: they are left out before the softmax, not after it.
    parts
        Parts per bag of two levels, drawn or chosen like instances, and before these; None for all.
    """

    at_most: int | None = None
    dropout: float = 0.0
    parts: int | None = None

    def draw(self, bags: Bags, generator: torch.Generator) -> Bags:
        """Return the bags with the instances of one epoch."""
        offsets = bags.part_offsets
        if self.parts is not None and np.diff(offsets).max(initial=0) > self.parts:
            order = torch.rand(int(offsets[-1]), generator=generator, dtype=torch.float64).numpy()
            bags = bags.parts(_places(order, offsets) < self.parts)
        if not self.dropout and (self.at_most is None or bags.lengths.max(initial=0) <= self.at_most):
            return bags
        order, kept = torch.rand(2, len(bags.values), generator=generator, dtype=torch.float64).numpy()
        place = _places(order, bags.offsets)
        stays = (kept >= self.dropout) | (place == 0)
        return bags.instances(stays if self.at_most is None else stays & (place < self.at_most))

    def fixed(self, bags: Bags) -> Bags:
        """Return the bags with the instances that they are judged by."""
        bags = bags if self.parts is None else bags.parts_at_most(self.parts)
        return bags if self.at_most is None else bags.at_most(self.at_most)


def _places(order: NDArray[np.float64], offsets: Offsets) -> NDArray[np.int64]:
    """Return the place of each member of a stretch, counted from 0, once each stretch is sorted by `order`."""
    stretch = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    place = np.empty(len(order), np.int64)
    place[np.lexsort((order, stretch))] = np.arange(len(order)) - offsets[:-1][stretch]
    return place


def train_on_bags(
    network: BagNetwork,
    bags: Bags,
    y: NDArray[Any],
    *,
    fold: Fold,
    recipe: Recipe,
    regime: Regime,
    sampling: Sampling | None = None,
    device: str = "cpu",
    budget: int = BUDGET,
) -> TrainedModel:
    """Train one network.

    Parameters
    ----------
    network
        The network's shape.
    bags
        The samples, of as many levels as the network.
    y, fold, recipe, regime
        As for `heads.batched.train_many`, a row being a bag: `Regime.batch_size` is the number of bags per
        step at most, and `Recipe.dropout` the share of pooled features dropped.
    sampling
        Which instances are used; all by default.
    device
        ``cpu``, ``cuda`` or ``cuda:i``.
    budget
        Instances of a forward and backward pass; results do not depend on it beyond rounding.

    Raises
    ------
    HeadError
        If the loss was never finite, the device is not there or the fold has no training rows.
    """
    if not len(fold.train):
        raise HeadError(f"fold {fold.number} has no training rows")
    place = torch_device(device)
    return _Trainer(network, _Data(bags, y, fold, place), fold, recipe, regime, sampling or Sampling(), budget).train()


def pass_through(
    network: BagNetwork,
    state: Mapping[str, NDArray[Any]],
    bags: Bags,
    what: str,
    *,
    device: str = "cpu",
    budget: int = BUDGET,
) -> NDArray[np.float32]:
    """Return ``forward`` (G, n, outputs) or ``shares`` (G, m) of trained networks, their states stacked along G."""
    place = torch_device(device)
    stacked = {name: as_tensor(value, place) for name, value in state.items()}
    parts = []
    with torch.inference_mode():
        for rows in by_budget(bags.lengths, budget):
            part = bags[rows]
            parts.append(getattr(network, what)(stacked, packed(_floats(part.values, place), part)).cpu())
    result: NDArray[np.float32] = torch.cat(parts, dim=1).numpy()
    return result


def by_budget(lengths: NDArray[np.int64], budget: int) -> Iterator[Rows]:
    """Yield the positions of bags in turn, as many at once as hold at most `budget` instances; at least one bag."""
    start, held = 0, 0
    for i, length in enumerate(lengths.tolist()):
        if i > start and held + length > budget:
            yield np.arange(start, i)
            start, held = i, 0
        held += length
    yield np.arange(start, len(lengths))


class _Data:
    """The features on their device, and the bags as stretches of row numbers."""

    def __init__(self, bags: Bags, y: NDArray[Any], fold: Fold, device: torch.device) -> None:
        self.features = _floats(bags.values, device)
        self.index = bags.with_values(np.arange(len(bags.values))[:, None])
        targets = as_tensor(y, device).float().reshape(len(y), -1)
        observed = ~torch.isnan(targets)
        self.targets, self.weights = torch.where(observed, targets, 0.0), observed.float()
        if fold.weight is not None:
            self.weights *= as_tensor(fold.weight, device).float().reshape(len(y), -1)

    def packed(self, index: Bags) -> Packed:
        """Return bags of row numbers as bags of features."""
        return packed(self.features[torch.from_numpy(index.values[:, 0]).to(self.features.device)], index)


class _Trainer:
    """One network on its way through the epochs."""

    def __init__(
        self,
        network: BagNetwork,
        data: _Data,
        fold: Fold,
        recipe: Recipe,
        regime: Regime,
        sampling: Sampling,
        budget: int,
    ) -> None:
        self._network, self._data, self._fold, self._recipe = network, data, fold, recipe
        self._regime, self._sampling, self._budget = regime, sampling, budget
        self._device = data.features.device
        self._steps = -(-len(fold.train) // regime.batch_size)
        self._optimizer = StackedOptimizer([network.initial(self._generator("initial"))], self._device)
        (self._block,) = self._optimizer.blocks
        self._monitored = sampling.fixed(data.index[fold.monitor])
        self._settings: dict[str, float] = {name: getattr(recipe, name) for name in ("smoothing", "gamma", "delta")}

    def train(self) -> TrainedModel:
        """Run the epochs; return the network of the best one."""
        course = Course(self._regime.patience, self._regime.min_delta, self._regime.schedule)
        best: dict[str, Tensor] = {}
        for epoch in range(self._regime.max_epochs):
            loss = self._run_epoch(epoch, course.factor)
            if course.observe(loss, self._monitor(), self._lr(epoch, self._steps - 1, course.factor)):
                best = {name: leaf[0].detach().clone() for name, leaf in self._block.leaves.items()}
            if course.finished:
                break
        if course.best_epoch is None:
            raise HeadError(
                f"training diverged: the loss was not finite in the first epoch; lower lr (now {self._recipe.lr:g}), "
                "and let the head standardize its features"
            )
        state = {name: leaf.cpu().numpy() for name, leaf in best.items()}
        return TrainedModel(state=state, best_epoch=course.best_epoch, history=course.history)

    def _run_epoch(self, epoch: int, factor: float) -> float:
        """Take all steps of an epoch; return their mean loss."""
        index = self._sampling.draw(self._data.index[self._fold.train], self._generator("instances", epoch))
        order = torch.randperm(len(index), generator=self._generator("order", epoch)).numpy()
        losses = [
            self._step(epoch, step, order[rows], index, factor)
            for step, rows in enumerate(np.array_split(np.arange(len(order)), self._steps))
        ]
        return float(np.mean(losses))

    def _step(self, epoch: int, step: int, rows: Rows, index: Bags, factor: float) -> float:
        """Take one step on some of the training bags, by their place in the fold; return its loss."""
        scale = self._dropout(len(rows), epoch, step)
        total = self._data.weights[self._fold.train[rows]].sum()
        leaves = self._block.leaves
        loss, gradients = 0.0, [torch.zeros_like(leaf) for leaf in leaves.values()]
        for part in by_budget(index.lengths[rows], self._budget):
            some = rows[part]
            logits = self._network.forward(
                leaves, self._data.packed(index[some]), None if scale is None else scale[part]
            )
            above, _ = self._sums(logits, self._fold.train[some])
            share = above.sum() / torch.where(total > 0, total, 1.0)
            # The weights of an attention are not used where every bag holds one instance.
            found = torch.autograd.grad(share, list(leaves.values()), materialize_grads=True)
            for gradient, more in zip(gradients, found, strict=True):
                gradient += more
            loss += float(share.detach())
        lr = torch.tensor([self._lr(epoch, step, factor)], device=self._device)
        self._optimizer.step(self._block, gradients, lr, torch.full_like(lr, self._recipe.weight_decay))
        return loss

    @torch.no_grad()
    def _monitor(self) -> float | None:
        """Return the mean loss over the monitor bags, or None if there are none."""
        if not len(self._fold.monitor):
            return None
        sums = torch.zeros(2, device=self._device)
        for part in by_budget(self._monitored.lengths, self._budget):
            logits = self._network.forward(self._block.leaves, self._data.packed(self._monitored[part]))
            sums += torch.cat(self._sums(logits, self._fold.monitor[part]))
        return float(sums[0] / torch.where(sums[1] > 0, sums[1], 1.0))

    def _sums(self, logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the losses of some bags, and the sum of the weights, each of shape (1,)."""
        at = torch.from_numpy(rows).to(self._device)
        losses = entry_losses(self._regime.loss, logits, self._data.targets[at][None], **self._settings)
        return weighted_sum(losses, self._data.weights[at][None])

    def _dropout(self, bags: int, epoch: int, step: int) -> Tensor | None:
        """Return what the pooled vectors of a step are multiplied by, (bags, width), or None without dropout."""
        rate = self._recipe.dropout
        if not rate:
            return None
        kept = torch.empty(bags, self._network.width, device=self._device)
        generator = self._generator("dropout", epoch, step, device=self._device)
        return kept.bernoulli_(1 - rate, generator=generator).div_(1 - rate)

    def _lr(self, epoch: int, step: int, factor: float) -> float:
        regime, epochs = self._regime, self._regime.max_epochs
        done, total = epoch * self._steps + step, self._steps * epochs
        return self._recipe.lr * factor * schedule_factor(regime.schedule, done, total, regime.warmup, epochs)

    def _generator(self, purpose: str, *place: int, device: torch.device | None = None) -> torch.Generator:
        return generator_of(self._recipe.seed, self._fold.number, purpose, *place, device=device)


def _floats(values: NDArray[Any], device: torch.device) -> Tensor:
    return as_tensor(values, device).float()
