"""The loop: epochs of steps, each a function of seed, epoch and step, on any number of processes.

Mixed precision, several processes and clipping are Hugging Face accelerate's. What a step does follows from
its number alone: the order of the samples, dropout and augmentation have seeds of their own, so that a run
that was stopped goes on to the same weights, bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from data.progress import Progress
from finetune.batches import Rows, steps_of
from finetune.checkpoint import Checkpoints, Progressed, changing
from finetune.errors import FinetuneError
from finetune.outputs import Objective
from finetune.runner import Runner
from finetune.schedules import Schedule, lr_factor
from finetune.step import Gradients
from finetune.tracking import Tracker, tell
from finetune.unfreeze import Policy

SAVE_SECONDS = 300.0
"""A checkpoint is written at least this often, and at every look at the rows that choose."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """How training proceeds.

    Attributes
    ----------
    epochs
        Passes over the rows.
    schedule, by, warmup, floor
        See `finetune.schedules.lr_factor`; the rate changes `by` step or epoch, and `warmup` is a share of all of them.
    clip_norm
        Norm that gradients are clipped to.
    judge_every
        Steps between two looks at the rows that choose; None looks at the end of every epoch.
    patience
        Looks without a better one after which training stops; None never does.
    """

    epochs: int
    schedule: Schedule
    by: Literal["step", "epoch"]
    warmup: float
    floor: float
    clip_norm: float
    judge_every: int | None
    patience: int | None


class Loop:
    """Trains a model.

    Parameters
    ----------
    runner
        What is trained, on what, and where.
    policies
        What is trained of each tower, by its name in the model: ``tower``, ``text_tower``.
    groups
        Parameter groups of the optimizer, each with its peak ``lr`` and a ``name``; of all that is ever trained.
    course
        How.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        policies: Mapping[str, Policy],
        groups: Sequence[dict[str, Any]],
        course: Course,
    ) -> None:
        self.runner, self.course = runner, course
        self.model, self.accelerator = runner.model, runner.accelerator
        self._policies = policies
        self._opened = {epoch for policy in policies.values() if (epoch := policy.first_epoch)}
        for group in groups:
            group["peak"] = group["lr"]
        self._trained = [parameter for group in groups for parameter in group["params"]]
        self.optimizer: Any = self.accelerator.prepare(torch.optim.AdamW(list(groups)))
        self._gradients = Gradients(runner)

    @property
    def changing(self) -> list[str]:
        """The names in the model's state that training changes."""
        return changing(self.model, self._trained)

    @property
    def stateful(self) -> dict[str, Any]:
        """What a step depends on beside the network."""
        scaler = self.accelerator.scaler
        return {"optimizer": self.optimizer} | ({} if scaler is None else {"scaler": scaler})

    def run(
        self,
        rows: Rows,
        *,
        state: Progressed,
        checkpoints: Checkpoints,
        judge: Callable[[], tuple[Mapping[str, float], float]],
        trackers: Sequence[Tracker],
        progress: Progress,
    ) -> Progressed:
        """Train until the last epoch, or until nothing gets better.

        Parameters
        ----------
        rows
            Positions of the training samples.
        state
            Where to go on; its checkpoint has been loaded.
        checkpoints
            Where to write.
        judge
            Called at each look on every process: what to log of the rows that choose, and the value to choose by, the
            smallest being best. It may put the network in eval mode.
        trackers
            Told of every step and look; on the first process only.
        progress
            Told of steps and looks.

        Returns
        -------
        Progressed
            The end.

        Raises
        ------
        FinetuneError
            If a training loss is not finite, or what chooses never was.
        """
        main = self.accelerator.is_main_process
        saved = time.monotonic()
        per_epoch = len(self._steps(rows, 0))
        total = per_epoch * self.course.epochs
        every = self.course.judge_every or per_epoch
        progress.stage("training", total - state.step)
        for epoch, passes in self._left(rows, state, per_epoch):
            logged, sums = self._step(passes, epoch, state.step, total=total)
            state = state.after_step(sums, per_epoch)
            if main:
                tell(trackers, state.step, {"epoch": epoch, **logged})
            progress.advance()
            if state.step % every == 0 or state.step == total:
                means = {f"train/{name}": value for name, value in state.means.items()}
                found, value = judge()
                self._set_modes(epoch)
                state = state.after_look(epoch, value, patience=self.course.patience, total=total)
                if main:
                    tell(trackers, state.step, {"epoch": epoch, **means, **{f"val/{k}": v for k, v in found.items()}})
                    checkpoints.save(state, self.model, self.stateful)
                    saved = time.monotonic()
                    when = f"epoch {epoch}" if self.course.judge_every is None else f"step {state.step}"
                    progress.note(_said(when, means["train/loss"], found, is_best=state.is_best))
                if state.stopped:
                    break
            elif main and time.monotonic() - saved > SAVE_SECONDS:
                checkpoints.save(state, self.model, self.stateful)
                saved = time.monotonic()
        self.accelerator.wait_for_everyone()
        if state.best_step is None:
            raise FinetuneError(
                "nothing could be chosen: what chooses was never a finite number; lower --lr or --encoder-lr, or "
                "choose by another --choose"
            )
        return state

    def _left(self, rows: Rows, state: Progressed, per_epoch: int) -> Iterator[tuple[int, list[Rows]]]:
        """Yield epoch and forward passes of each step that is left; the network is made ready for its epoch."""
        for epoch in range(state.epoch, self.course.epochs if not state.stopped else 0):
            self._set_modes(epoch)
            self._gradients.wrap(anew=any(policy.changes_at(epoch) for policy in self._policies.values()))
            for passes in self._steps(rows, epoch)[max(state.step - epoch * per_epoch, 0) :]:
                yield epoch, passes

    def _steps(self, rows: Rows, epoch: int) -> list[list[Rows]]:
        return steps_of(
            rows,
            batch_size=self.runner.batch_size,
            accumulate=self.runner.accumulate,
            processes=self.accelerator.num_processes,
            shuffle=(self.runner.seed, epoch),
        )

    def _set_modes(self, epoch: int) -> None:
        """Let train what an epoch trains; the rest is in eval mode and without gradients."""
        self.model.train()
        for name, policy in self._policies.items():
            policy.apply(getattr(self.model, name).network, epoch)

    def _step(
        self, passes: Sequence[Rows], epoch: int, step: int, *, total: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Make one step of the optimizer; return what to log, and the losses times their samples."""
        course = self.course
        by_step = course.by == "step"
        done, length = (step, total) if by_step else (epoch, course.epochs)
        warmup = round(course.warmup * length)
        # A first epoch at a rate of 0 would be lost.
        factor = lr_factor(course.schedule, done, total=length, warmup=warmup, floor=course.floor, from_zero=by_step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        losses = self._gradients.add(passes, epoch, step)
        if step == 0 or epoch in self._opened:
            self._require_gradients(epoch)
        norm = self.accelerator.clip_grad_norm_(self._trained, course.clip_norm)
        self._require_finite_gradients(norm, epoch, step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        logged = {f"step/{name}": value for name, value in losses.items()}
        logged["step/grad_norm"] = float(norm) if norm is not None else math.nan
        logged |= {f"lr/{group['name']}": group["lr"] for group in self.optimizer.param_groups}
        for name, objective in self.model.objectives.items():
            assert isinstance(objective, Objective)
            logged |= {f"learned/{name}/{key}": value for key, value in objective.measures().items()}
        count = float(sum(map(len, passes)))
        return logged, {"samples": count, **{name: value * count for name, value in losses.items()}}

    def _require_gradients(self, epoch: int) -> None:
        """Refuse a tower of which all that is to be trained stands outside its forward pass, such as a traced copy's.

        Raises
        ------
        FinetuneError
            If there is one.
        """
        self._opened.discard(epoch)
        for name in self._policies:
            tower = getattr(self.model, name)
            wanted = [each for each in tower.network.parameters() if each.requires_grad]
            if wanted and all(each.grad is None for each in wanted):
                raise FinetuneError(
                    f"{tower.name}: no loss depends on what would be trained of it, so nothing would change; use "
                    f"another policy than --unfreeze {self._policies[name]}, or another pooling"
                )

    def _require_finite_gradients(self, norm: Tensor | None, epoch: int, step: int) -> None:
        """Stop where clipping would make zeros of all gradients; fp16 skips such a step by itself."""
        if norm is not None and self.accelerator.scaler is None and not bool(torch.isfinite(norm)):
            raise FinetuneError(
                f"the gradients have the norm {float(norm)} in epoch {epoch}, step {step}: training diverged; lower "
                f"--lr or --encoder-lr, or lengthen --warmup. The last whole checkpoint is kept"
            )


def _said(when: str, loss: float, found: Mapping[str, float], *, is_best: bool) -> str:
    """Return a line about a look: the mean loss since the one before, and the loss of the rows that choose."""
    best = ", the best so far" if is_best else ""
    return f"{when}: loss {loss:.4g}, on the rows that choose {found['loss']:.4g}{best}"
