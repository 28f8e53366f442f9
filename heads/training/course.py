"""One model's way through the epochs: learning-rate schedules, early stopping, and the history that plots need."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

Schedule = Literal["constant", "cosine", "plateau", "step", "restarts"]

_PLATEAU_PATIENCE = 5
_COSINE_FLOOR = 0.05
_STEP_FACTOR, _STEP_EPOCHS = 0.3, 15


def schedule_factor(schedule: Schedule, step: int, total: int, warmup: float, epochs: int = 1) -> float:
    """Return what the learning rate is multiplied by at a step; 1 where the schedule does not depend on the step.

    Parameters
    ----------
    schedule
        Its name; `heads.training.plan.Regime` tells what each does.
    step, total
        The step, counted from 0, and how many there are.
    warmup
        Share of all steps that the warm-up of ``cosine`` takes.
    epochs
        How many epochs all steps make.
    """
    if schedule == "step":
        return _STEP_FACTOR ** (step * epochs // total // _STEP_EPOCHS)
    if schedule == "restarts":
        return _restarts(7 * step / total)
    if schedule == "cosine":
        rising = round(warmup * total)
        return (step + 1) / rising if step < rising else _cosine((step - rising) / max(total - rising, 1))
    return 1.0


def _restarts(done: float) -> float:
    """Return the factor after so many sevenths of all steps; the cycles begin after 0, 1 and 3 of them."""
    begin = 0 if done < 1 else 1 if done < 3 else 3
    return _cosine((done - begin) / (begin + 1))


def _cosine(done: float) -> float:
    """Return half a cosine from 1 down to the floor, at a share of its way."""
    return _COSINE_FLOOR + (1 - _COSINE_FLOOR) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(eq=False)
class Course:
    """One model's way through the epochs: its history, when it was best, and whether it goes on."""

    patience: int
    min_delta: float
    schedule: Schedule
    plateau_factor: float = 0.1
    best_loss: float = math.inf
    best_epoch: int | None = None
    factor: float = 1.0
    finished: bool = False
    history: dict[str, list[float | None]] = field(
        default_factory=lambda: {"train_loss": [], "monitor_loss": [], "lr": []}
    )
    _waited: int = 0
    _on_plateau: int = 0

    def observe(self, train_loss: float, monitor_loss: float | None, lr: float) -> bool:
        """Take note of an epoch; return whether its weights are the best so far.

        A loss that is not finite is never the best, and ends the course: its weights do not recover.
        """
        epoch = len(self.history["lr"])
        for name, value in (("train_loss", train_loss), ("monitor_loss", monitor_loss), ("lr", lr)):
            self.history[name].append(value if value is not None and math.isfinite(value) else None)
        watched = train_loss if monitor_loss is None else monitor_loss
        if not (math.isfinite(train_loss) and math.isfinite(watched)):
            self.finished = True
            return False
        better = watched < self.best_loss - self.min_delta
        self._waited = 0 if better else self._waited + 1
        self._on_plateau = 0 if better else self._on_plateau + 1
        if self.schedule == "plateau" and self._on_plateau > _PLATEAU_PATIENCE:
            self.factor, self._on_plateau = self.factor * self.plateau_factor, 0
        self.finished = monitor_loss is not None and self._waited >= self.patience
        if better:
            self.best_loss = watched
        if better or monitor_loss is None:
            self.best_epoch = epoch
        return self.best_epoch == epoch
