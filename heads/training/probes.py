"""Many linear probes on the same rows at once: one matrix product per step for all of them.

::

    weights (outputs of all probes, d) @ X.T (d, b) --cut by probe--> losses (probes,) --sum w_h L_h--> slopes @ X
    AdamW, or another, with each probe's own learning rate and decay; each probe keeps the weights of its own best epoch

Probes share nothing but the rows: the gradient of one probe's loss is zero in the weights of all others.
Those of one loss and width lie side by side and are judged in one go.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.batched import torch_device
from heads.errors import HeadError
from heads.losses import LossName, Setting, entry_slopes
from heads.training.corpus import as_tensor
from heads.training.course import Course, Schedule, schedule_factor
from heads.training.draws import generator_of
from heads.training.optimizer import Optimizer, StackedOptimizer

Device = torch.device
Init = Literal["zeros", "xavier"]
_MIN_DELTA, _WARMUP = 1e-4, 0.1  # as heads.training.plan.Regime has them


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One linear probe.

    Attributes
    ----------
    name
        Its name in the random streams: what its initial weights depend on.
    loss, outputs
        Its loss, and how many logits that takes.
    share
        What its loss is multiplied by in the sum that is descended.
    lr, weight_decay
        Peak learning rate and weight decay; the bias does not decay.
    gamma, delta
        Settings of the loss, see `heads.losses`.
    """

    name: str
    loss: LossName
    outputs: int = 1
    share: float = 1.0
    lr: float = 1e-3
    weight_decay: float = 1e-2
    gamma: float = 0.0
    delta: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """What probes learn from.

    Attributes
    ----------
    X
        Features, shape (n, d), float32.
    y
        Class codes or values of each probe, shape (n, H); whatever stands where one is missing is not read.
    weight
        Weight of each of them, shape (n, H), 0 where missing.
    train
        The rows to learn from, by position.
    monitor
        The rows that decide when a probe stops; without any, each runs all epochs and keeps the last one.
    """

    X: NDArray[np.float32]
    y: NDArray[np.float32]
    weight: NDArray[np.float32]
    train: NDArray[np.int64]
    monitor: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How all probes are trained; see `heads.training.plan.Regime`.

    `init` is what weights begin as: ``zeros``, or ``xavier`` for uniform noise as Glorot and Bengio have it.
    """

    batch_size: int = 128
    max_epochs: int = 60
    patience: int = 8
    schedule: Schedule = "cosine"
    optimizer: Optimizer = "adamw"
    init: Init = "zeros"
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainedProbes:
    """Trained probes.

    Attributes
    ----------
    weight, bias
        One row per output, those of one probe together, in the order of the probes: (O, d) and (O,).
    best_epochs
        The epoch that each probe's weights are from, counted from 0.
    history
        ``train_loss`` and ``monitor_loss``, the sums of all probes' losses times their shares, and ``lr``, the mean
        learning rate, per epoch. A probe that has stopped counts as it was at its best.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    best_epochs: list[int]
    history: dict[str, list[float | None]]


@dataclass(frozen=True, eq=False)
class _Family:
    """Probes of one loss and width, which lie side by side."""

    loss: LossName
    outputs: int
    probes: slice
    outputs_at: slice
    share: Tensor
    gamma: Setting
    delta: Tensor

    def losses(self, logits: Tensor, targets: Tensor, parts: Tensor, slopes: Tensor) -> Tensor:
        """Return each probe's mean loss, shape (g,), and write the slopes of the sum descended.

        Logits and slopes are (O, b), targets (H, b), and parts (H, b) what part of its probe's mean each row is.
        """
        shape = (-1, self.outputs, logits.shape[1])
        entries, of_entries = entry_slopes(
            self.loss,
            logits[self.outputs_at].view(shape).transpose(1, 2),
            targets[self.probes][..., None],
            delta=self.delta,
            gamma=self.gamma,
        )
        parts = parts[self.probes]
        torch.mul(of_entries.transpose(1, 2), (parts * self.share)[:, None], out=slopes[self.outputs_at].view(shape))
        return (entries[..., 0] * parts).sum(dim=1)


class Bank:
    """The weights of many probes, and their losses.

    Parameters
    ----------
    probes
        Those of one loss and width side by side.
    width
        Number of features.
    init, seed
        What the weights begin as, see `Plan`, and the seed of that.
    device
        Where they are.
    optimizer
        See `heads.training.plan.Regime`.
    """

    def __init__(
        self,
        probes: Sequence[Probe],
        width: int,
        init: Init,
        seed: int,
        device: Device,
        optimizer: Optimizer = "adamw",
    ) -> None:
        self.probes = probes
        ends = np.cumsum([0, *(probe.outputs for probe in probes)])
        self.columns = [slice(int(a), int(b)) for a, b in pairwise(ends)]
        self.families = list(_families(probes, self.columns, device))
        self.of = torch.tensor([h for h, probe in enumerate(probes) for _ in range(probe.outputs)], device=device)
        # A row of its own for every output, so that every output has a learning rate and a decay of its own.
        initial = [
            {"weight": row[:, None], "bias": torch.zeros(1)}
            for probe in probes
            for row in _initial(probe, width, init, seed)
        ]
        self.optimizer = StackedOptimizer(initial, device, fused=False, optimizer=optimizer)
        self.gradient = self.optimizer.empty_gradient()

    @property
    def leaves(self) -> tuple[Tensor, Tensor]:
        """Weights (O, d, 1) and biases (O, 1)."""
        return self.optimizer.leaves["weight"], self.optimizer.leaves["bias"]

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits of all probes for rows (b, d), shape (O, b)."""
        weight, bias = self.leaves
        return torch.addmm(bias, weight.squeeze(-1), x.T)

    def losses(self, logits: Tensor, targets: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
        """Return each probe's mean loss over some rows, and the slopes of the sum descended.

        Parameters
        ----------
        logits
            Shape (O, b).
        targets
            Shape (H, b).
        parts
            What part of its probe's mean each row is, shape (H, b), see `parts_of_means`.

        Returns
        -------
        losses
            Shape (H,); 0 where no row has a target.
        slopes
            Of the sum of the losses times their shares, by the logits, shape (O, b).
        """
        slopes = torch.empty_like(logits)
        return torch.cat([family.losses(logits, targets, parts, slopes) for family in self.families]), slopes

    @torch.no_grad()
    def descend(self, x: Tensor, targets: Tensor, parts: Tensor, lr: Tensor, decay: Tensor | None) -> Tensor:
        """Take one step down the sum of the losses times their shares; return the losses, shape (H,).

        Targets and parts are as in `losses`, learning rates and decays of each output, shape (O,).
        """
        losses, slopes = self.losses(self.logits(x), targets, parts)
        torch.mm(slopes, x, out=self.gradient[:, :-1])
        torch.sum(slopes, dim=1, out=self.gradient[:, -1])
        self.optimizer.descend(self.gradient, lr, decay)
        return losses


def parts_of_means(weights: Tensor, sizes: Sequence[int]) -> Tensor:
    """Return what part of the mean over its batch each row is, for weights (n, H) of rows batch after batch."""
    totals = [(batch.sum(dim=0), batch) for batch in torch.split(weights, list(sizes))]
    return torch.cat([batch / total.masked_fill_(total == 0, 1.0) for total, batch in totals])


def train_probes(probes: Sequence[Probe], rows: Rows, plan: Plan) -> TrainedProbes:
    """Train probes on the same rows.

    Parameters
    ----------
    probes
        The probes, one per column of the targets.
    rows, plan
        What they learn from, and how.

    Raises
    ------
    HeadError
        If the loss of a probe was never finite, or the device is not there.
    """
    order = sorted(range(len(probes)), key=lambda h: (probes[h].loss, probes[h].outputs))
    trainer = _Trainer([probes[h] for h in order], order, rows, plan, torch_device(plan.device))
    trainer.run()
    return trainer.result(order)


class _Trainer:
    """Epochs and steps; probes and columns of the targets are in the order of their families."""

    def __init__(self, probes: Sequence[Probe], order: list[int], rows: Rows, plan: Plan, device: Device) -> None:
        self.plan, self.device, self.probes = plan, device, probes
        self.bank = Bank(probes, rows.X.shape[1], plan.init, plan.seed, device, plan.optimizer)
        self.x = as_tensor(rows.X, device)
        self.targets, self.weights = (as_tensor(part[:, order], device).contiguous() for part in (rows.y, rows.weight))
        self.train = torch.from_numpy(rows.train)
        self.batch = self.x.new_empty(min(plan.batch_size, len(rows.train)), self.x.shape[1])
        self.monitor = torch.from_numpy(rows.monitor).to(device)
        # A probe without a target among the monitor rows has nothing to stop by.
        self.watched = (self.weights[self.monitor].sum(dim=0) > 0).tolist()
        self.courses = [Course(plan.patience, _MIN_DELTA, plan.schedule) for _ in probes]
        self.best = [
            tuple(leaf[columns].detach().clone() for leaf in self.bank.leaves) for columns in self.bank.columns
        ]
        self.lr = torch.tensor([probe.lr for probe in probes], device=device)
        decay = [probe.weight_decay for probe in probes]
        self.decay = torch.tensor(decay, device=device)[self.bank.of] if any(decay) else None

    def run(self) -> None:
        """Run the epochs until every probe has stopped."""
        for epoch in range(self.plan.max_epochs):
            losses, rates = self._epoch(epoch)
            with torch.no_grad():
                monitored = self._rows_losses(self.monitor).tolist() if any(self.watched) else []
            self._close(losses.tolist(), monitored, rates.tolist())
            if all(course.finished for course in self.courses):
                break

    def result(self, order: list[int]) -> TrainedProbes:
        """Return the best weights, in the order that the probes were given in."""
        for course, probe in zip(self.courses, self.probes, strict=True):
            if course.best_epoch is None:
                raise HeadError(
                    f"head {probe.name!r}: training diverged, its loss was not finite in the first epoch; lower its lr "
                    f"(now {probe.lr:g}), and let the features be standardized"
                )
        place = np.argsort(order)
        weight, bias = (torch.cat([self.best[h][part] for h in place])[..., 0].cpu().numpy() for part in (0, 1))
        epochs = [self.courses[h].best_epoch for h in place]
        return TrainedProbes(
            weight=weight,
            bias=bias,
            best_epochs=[epoch for epoch in epochs if epoch is not None],
            history=self._history(),
        )

    def _epoch(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Take all steps of an epoch; return the mean loss of each probe and its learning rate at the end."""
        n = len(self.train)
        steps = -(-n // self.plan.batch_size)
        drawn = torch.randperm(n, generator=generator_of(self.plan.seed, 0, "order", epoch))
        rows = self.train[drawn].to(self.device)
        plateau = torch.tensor([course.factor for course in self.courses], device=self.device)
        total, peak = torch.zeros_like(self.lr), self.lr * plateau
        peaks, factor = peak[self.bank.of], 1.0
        # index_select copies rows; the general index looks every number up.
        targets, weights = (part.index_select(0, rows) for part in (self.targets, self.weights))
        bounds = list(pairwise(n * k // steps for k in range(steps + 1)))
        parts = parts_of_means(weights, [b - a for a, b in bounds])
        for step, (a, b) in enumerate(bounds):
            done, of = epoch * steps + step, steps * self.plan.max_epochs
            factor = schedule_factor(self.plan.schedule, done, of, _WARMUP, self.plan.max_epochs)
            x = torch.index_select(self.x, 0, rows[a:b], out=self.batch[: b - a])
            total += self.bank.descend(x, targets[a:b].T, parts[a:b].T, peaks * factor, self.decay)
        return total / steps, peak * factor

    def _rows_losses(self, rows: Tensor) -> Tensor:
        x, targets, weights = (part.index_select(0, rows) for part in (self.x, self.targets, self.weights))
        losses, _ = self.bank.losses(self.bank.logits(x), targets.T, parts_of_means(weights, [len(rows)]).T)
        return losses

    def _close(self, losses: list[float], monitored: list[float], rates: list[float]) -> None:
        """Tell every probe that has not stopped how its epoch went, and keep its weights if they are the best."""
        leaves = [leaf.detach() for leaf in self.bank.leaves]
        for h, course in enumerate(self.courses):
            if not course.finished and course.observe(losses[h], monitored[h] if self.watched[h] else None, rates[h]):
                self.best[h] = tuple(leaf[self.bank.columns[h]].clone() for leaf in leaves)

    def _history(self) -> dict[str, list[float | None]]:
        epochs = range(max(len(course.history["lr"]) for course in self.courses))
        return {
            "train_loss": [self._summed("train_loss", epoch) for epoch in epochs],
            "monitor_loss": [self._summed("monitor_loss", epoch) for epoch in epochs],
            "lr": [self._mean_rate(epoch) for epoch in epochs],
        }

    def _summed(self, name: str, epoch: int) -> float | None:
        """Return the sum of losses times shares at an epoch, or None if no probe has any."""
        values = [
            probe.share * value
            for probe, course in zip(self.probes, self.courses, strict=True)
            if (value := _at(course, name, epoch)) is not None
        ]
        return float(np.sum(values)) if values else None

    def _mean_rate(self, epoch: int) -> float:
        rates = [_at(course, "lr", epoch) for course in self.courses]
        return float(np.mean([rate for rate in rates if rate is not None]))


def _at(course: Course, name: str, epoch: int) -> float | None:
    """Return what a course says of an epoch; past its end, of the epoch that was kept."""
    values = course.history[name]
    return values[epoch if epoch < len(values) else course.best_epoch or 0]


def _families(probes: Sequence[Probe], columns: Sequence[slice], device: Device) -> Iterator[_Family]:
    """Yield the runs of probes of one loss and width."""
    first = 0
    for h in range(1, len(probes) + 1):
        if h == len(probes) or (probes[h].loss, probes[h].outputs) != (probes[first].loss, probes[first].outputs):
            alike = probes[first:h]
            gamma = [probe.gamma for probe in alike]
            yield _Family(
                share=torch.tensor([probe.share for probe in alike], device=device)[:, None],
                loss=alike[0].loss,
                outputs=alike[0].outputs,
                probes=slice(first, h),
                outputs_at=slice(columns[first].start, columns[h - 1].stop),
                gamma=torch.tensor(gamma, device=device) if any(gamma) else 0.0,
                delta=torch.tensor([probe.delta for probe in alike], device=device),
            )
            first = h


def _initial(probe: Probe, width: int, init: Init, seed: int) -> Tensor:
    """Return the initial weights of a probe, one row per output."""
    rows = torch.zeros(probe.outputs, width)
    if init == "zeros":
        return rows
    return torch.nn.init.xavier_uniform_(rows, generator=generator_of(seed, 0, f"initial {probe.name}"))
