"""Runner: a network, the samples it is fed and the processes that share them; passes that only look."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object
from numpy.typing import NDArray
from torch import Tensor

from finetune.batches import Rows, seed_of, split, steps_of
from finetune.feed import Feed
from finetune.gradcache import joined, only
from finetune.model import Model
from finetune.outputs import Objective, Outputs


@dataclass(frozen=True, kw_only=True)
class Passed:
    """What an evaluation pass over some rows gave, the same on every process.

    Attributes
    ----------
    losses
        Mean loss of each objective, and of their weighted sum as ``loss``.
    arrays
        What was asked for, by name, rows in the order they were given in.
    """

    losses: Mapping[str, float]
    arrays: Mapping[str, NDArray[Any]]


Collect = Callable[[Model, Outputs], Mapping[str, Tensor | list[str]]]
"""What an evaluation pass keeps of a batch: tensors whose first axis is its rows, or a text for each."""


@dataclass(frozen=True, kw_only=True)
class Runner:
    """A network on some processes.

    Attributes
    ----------
    model, feed
        What computes, and on what.
    accelerator
        Knows the processes and the arithmetic.
    batch_size, accumulate
        Rows of a forward pass, over all processes, and forward passes of a step: those whose rows a loss of pairs
        compares with each other.
    last_step
        The step whose weights of objectives judge, so that epochs are chosen by one sum.
    seed
        Seed of everything random.
    """

    model: Model
    feed: Feed
    accelerator: Accelerator
    batch_size: int
    accumulate: int
    last_step: int
    seed: int

    def evaluate(self, rows: Rows, collect: Collect | None = None, *, losses: bool = True) -> Passed:
        """Return losses and arrays of some rows; every process gets all of them, each row once.

        Parameters
        ----------
        rows
            Positions.
        collect
            What to keep.
        losses
            Whether to compute losses, which need what is known of the rows.
        """
        self.model.eval()
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        steps = steps_of(rows, batch_size=self.batch_size, accumulate=self.accumulate, processes=processes)
        shared = [split(passes, processes) for passes in steps]
        batches = self.feed.ahead((each[process] for passes in shared for each in passes), epoch=None)
        joint = self.model.objectives.joint(self.last_step) if losses and self.accumulate > 1 else {}
        sums: dict[str, float] = {}
        parts: list[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]] = []

        def add(found: Mapping[str, Tensor], count: int) -> None:
            for name, loss in found.items():
                sums[name] = sums.get(name, 0.0) + float(self.mean(loss)) * count

        with torch.inference_mode():
            for passes in shared:
                made, wholes = [], [np.concatenate(each) for each in passes]
                count = sum(map(len, wholes))
                weights = self.weights_of_passes(wholes, self.last_step) if losses else {}
                for number, whole in enumerate(wholes):
                    batch = next(batches)
                    torch.manual_seed(seed_of(self.seed, len(whole), int(whole[0])))  # of masks, the same each time
                    with self.accelerator.autocast():
                        outputs = self.model.outputs(batch)
                        found = self.model.objectives(outputs, self.last_step, without=joint) if losses else {}
                    add({name: loss * weights[name][number] for name, loss in found.items()}, count)
                    made.append(only(outputs))
                    if collect is not None:
                        kept = {name: _array(each) for name, each in collect(self.model, outputs).items()}
                        parts.append((batch.rows, kept))
                with self.accelerator.autocast():
                    found = {name: objective(joined(made)) for name, objective in joint.items()}
                add(found, count)
        means = {name: total / len(rows) for name, total in sums.items()}
        if losses:
            of_objectives = self.model.objectives.weights(self.last_step)
            means["loss"] = sum(of_objectives[name] * value for name, value in means.items())
        return Passed(losses=means, arrays=self._ordered(parts, rows))

    def weights_of_passes(self, passes: Sequence[Rows], step: int) -> dict[str, list[float]]:
        """Return how much each forward pass of a step weighs in the means over all of it, by objective, summing to 1.

        Parameters
        ----------
        passes
            The rows of each pass, over all processes.
        step
            Of the optimizer.
        """
        objectives = {name: self.model.objectives[name] for name in self.model.objectives.weights(step)}
        if len(passes) == 1:
            return {name: [1.0] for name in objectives}
        known = [self.feed.known.of(rows) for rows in passes]
        found = {}
        for name, objective in objectives.items():
            assert isinstance(objective, Objective)
            counts = [objective.count(each, len(rows)) for each, rows in zip(known, passes, strict=True)]
            found[name] = [count / (sum(counts) or 1) for count in counts]
        return found

    def _ordered(
        self, parts: list[tuple[NDArray[np.int64], dict[str, NDArray[Any]]]], rows: Rows
    ) -> dict[str, NDArray[Any]]:
        """Return the arrays of all processes, joined in the order of the rows."""
        gathered = gather_object(parts) if self.accelerator.num_processes > 1 else parts
        if not gathered:
            return {}
        at = np.concatenate([each for each, _ in gathered])
        order = np.argsort(at)[np.argsort(np.argsort(rows))]
        return {name: np.concatenate([kept[name] for _, kept in gathered])[order] for name in gathered[0][1]}

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a scalar over the processes."""
        mean: Tensor = self.accelerator.reduce(value.detach().clone(), reduction="mean")
        return mean


def _array(values: Tensor | list[str]) -> NDArray[Any]:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.array(values, dtype=object)


def make_accelerator(device: torch.device, amp: str) -> Accelerator:
    """Return what knows the processes of a run and its arithmetic.

    Parameters
    ----------
    device
        Where to compute.
    amp
        ``no``, ``fp16`` or ``bf16``.
    """
    # Its state outlives a run, and would hold the next one of this process to the same arithmetic.
    AcceleratorState._reset_state(reset_partial_state=False)
    return Accelerator(
        mixed_precision=amp,
        cpu=device.type == "cpu",
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # The others wait while the first one fills the store; torchrun ends them if it dies.
            InitProcessGroupKwargs(timeout=timedelta(days=7)),
        ],
    )
