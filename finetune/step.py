"""The gradients of one step: those of its whole batch, computed in forward passes of parts of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.batches import Rows, seed_of, split
from finetune.errors import FinetuneError
from finetune.gradcache import StandIn, only, stand_ins
from finetune.model import Batch
from finetune.outputs import Objective
from finetune.runner import Runner


class Gradients:
    """Computes the gradients of steps, on every process those of all.

    However many passes a step has, it is the step of one large batch. A loss that is a mean over samples is added up
    pass by pass. One of all pairs, a joint one, is not the sum of those of parts: where a step has several passes,
    the networks run once more before, see `finetune.gradcache`.

    Parameters
    ----------
    runner
        The network, what it is fed, and the processes.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner, self.model, self.accelerator = runner, runner.model, runner.accelerator
        self._wrapped: Any = None

    def wrap(self, *, anew: bool) -> None:
        """Have the gradients of parameters that are trainable now exchanged between processes.

        Parameters
        ----------
        anew
            Whether these are others than when it was wrapped last.
        """
        if self.accelerator.num_processes == 1:
            self._wrapped = self.model
        elif self._wrapped is None or anew:
            self._wrapped = self.accelerator.prepare_model(self.model)

    def add(self, passes: Sequence[Rows], epoch: int, step: int) -> dict[str, float]:
        """Add the gradients of a step's loss to the parameters'.

        Parameters
        ----------
        passes
            Positions of the samples of each forward pass.
        epoch, step
            Of which weights, augmentation and random numbers follow.

        Returns
        -------
        dict
            Mean over the step's samples: of the weighted sum as ``loss``, and of each objective.

        Raises
        ------
        FinetuneError
            If a loss is not finite, or none depends on what is trained.
        """
        parts = split(passes, self.accelerator.num_processes)
        own_rows = [each[self.accelerator.process_index] for each in parts]
        batches: Iterable[Batch] = self.runner.feed.ahead(own_rows, epoch=epoch)
        values: dict[str, Tensor] = {}
        forms: list[dict[str, StandIn]] = [{} for _ in passes]
        if len(passes) > 1 and (joint := self.model.objectives.joint(step)):
            batches = list(batches)
            values, forms = self._stand_ins(batches, joint, epoch, step)
        weights = self.runner.weights_of_passes([np.concatenate(each) for each in parts], step)
        for number, (batch, standing) in enumerate(zip(batches, forms, strict=True)):
            self._seed(step, number)
            with self._together(exchange=number + 1 == len(passes)):
                with self.accelerator.autocast():
                    losses: Mapping[str, Tensor] = self._wrapped(batch, step, standing)
                own = {name: loss * weights[name][number] for name, loss in losses.items() if name not in standing}
                self._require_finite(own, epoch, step)
                loss = self.model.objectives.total({**losses, **own}, step)
                if not loss.requires_grad:
                    raise FinetuneError(
                        f"no loss depends on anything that is trained in epoch {epoch}, step {step}: unfreeze from the "
                        f"first epoch on, give pairs a common space with --dim, or weigh another objective"
                    )
                self.accelerator.backward(loss)
            values |= {name: values.get(name, 0) + loss.detach() for name, loss in own.items()}
        values = {name: values[name] for name in self.model.objectives.weights(step)}
        total = self.model.objectives.total(values, step)
        return {name: float(self.runner.mean(each)) for name, each in {"loss": total, **values}.items()}

    def _stand_ins(
        self, batches: Sequence[Batch], joint: Mapping[str, Objective], epoch: int, step: int
    ) -> tuple[dict[str, Tensor], list[dict[str, StandIn]]]:
        """Return joint losses of all passes together and, for each pass, what has their gradients."""
        made = []
        for number, batch in enumerate(batches):
            self._seed(step, number)
            with torch.no_grad(), self.accelerator.autocast():
                outputs = self.model.outputs(batch)
            made.append(only(outputs))
        values, forms = {}, [dict[str, StandIn]() for _ in batches]
        for name, objective in joint.items():
            with self.accelerator.autocast():
                values[name], found = stand_ins(objective, made)
            for standing, form in zip(forms, found, strict=True):
                standing[name] = form
        self._require_finite(values, epoch, step)
        return values, forms

    def _seed(self, step: int, number: int) -> None:
        """Seed the random numbers of a forward pass, which are the same whenever it is made."""
        torch.manual_seed(seed_of(self.runner.seed, step, number, self.accelerator.process_index))

    def _together(self, *, exchange: bool) -> Any:
        """Exchange gradients between processes in the last forward pass of a step only."""
        return nullcontext() if exchange else self.accelerator.no_sync(self._wrapped)

    def _require_finite(self, losses: Mapping[str, Tensor], epoch: int, step: int) -> None:
        for name, loss in losses.items():
            if not bool(torch.isfinite(self.runner.mean(loss))):
                raise FinetuneError(
                    f"the loss of {name} is {loss.item()} in epoch {epoch}, step {step}: training diverged; lower "
                    f"--lr or --encoder-lr, or lengthen --warmup. The last whole checkpoint is kept"
                )
