"""Checkpoints: everything that the next step depends on, in a folder that names the last whole one.

::

    RUN/checkpoints/
      last.json            which files are the last state and the best weights; replaced as a whole
      step-120.safetensors what training changes of the network
      step-120.pt          the optimizer, and the scale of 16-bit gradients
      best-80.safetensors  what training changes of the network, at the best step

Random numbers need no keeping: those of a step follow from seed, epoch, step and process.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.files import whole_text_file
from finetune.errors import FinetuneError

_LAST = "last.json"


@dataclass(frozen=True, kw_only=True)
class Progressed:
    """Where training is.

    Attributes
    ----------
    run
        Identity of the run: its options and its samples.
    epoch, step
        The epoch that is being computed, and how many steps of the optimizer were made in all.
    sums
        Sums since the last look at the rows that choose: of each loss, times its samples, and of the samples.
    best_epoch, best_step, best_value
        The epoch of the best look so far, how many steps had been made, and what it was chosen by; None before the
        first.
    waited
        Looks since the best one.
    stopped
        Whether training is over.
    """

    run: str
    epoch: int = 0
    step: int = 0
    sums: Mapping[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    best_step: int | None = None
    best_value: float | None = None
    waited: int = 0
    stopped: bool = False

    @property
    def is_best(self) -> bool:
        """Whether nothing better was found than now."""
        return self.best_step == self.step

    @property
    def means(self) -> dict[str, float]:
        """The mean of each loss since the last look."""
        return {name: total / self.sums["samples"] for name, total in self.sums.items() if name != "samples"}

    def after_step(self, sums: Mapping[str, float], per_epoch: int) -> Progressed:
        """Return where training is one step later.

        Parameters
        ----------
        sums
            Of the step: each loss times its samples, and ``samples``.
        per_epoch
            Steps of an epoch.
        """
        step = self.step + 1
        added = {name: self.sums.get(name, 0.0) + value for name, value in sums.items()}
        return replace(self, step=step, epoch=step // per_epoch, sums=added)

    def after_look(self, epoch: int, value: float, *, patience: int | None, total: int) -> Progressed:
        """Return where training is after a look at the rows that choose.

        Parameters
        ----------
        epoch
            Of the last step.
        value
            What it is chosen by, the smallest being best.
        patience
            Looks without a better one after which training stops; None never does.
        total
            Steps after which it stops anyway.
        """
        # What is not a number is no smaller than anything, and no beginning either.
        if math.isfinite(value) and (self.best_value is None or value < self.best_value):
            now = replace(self, sums={}, best_epoch=epoch, best_step=self.step, best_value=value, waited=0)
        else:
            now = replace(self, sums={}, waited=self.waited + 1)
        over = patience is not None and now.waited >= patience
        return replace(now, stopped=over or now.step == total)


class Checkpoints:
    """The checkpoints of a run.

    Parameters
    ----------
    folder
        Where they are.
    changing
        The names in the network's state that training changes.
    """

    def __init__(self, folder: Path, changing: Iterable[str]) -> None:
        self._folder = folder
        self._changing = tuple(changing)

    def read(self, run: str) -> Progressed | None:
        """Return where the last whole checkpoint was, None where there is none.

        Raises
        ------
        FinetuneError
            If it is damaged, or of another run.
        """
        path = self._folder / _LAST
        if not path.is_file():
            return None
        try:
            found = Progressed(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise FinetuneError(f"{path}: damaged; begin anew with --overwrite") from error
        if found.run != run:
            raise FinetuneError(
                f"--out {self._folder.parent}: holds a run of other options, samples or weights that was stopped; go "
                f"on with those, choose another directory, or begin anew with --overwrite"
            )
        return found

    def save(self, state: Progressed, model: nn.Module, stateful: Mapping[str, Any]) -> None:
        """Write a checkpoint; the one before it counts until this one is whole.

        Parameters
        ----------
        state, model
            Where training is, and the network.
        stateful
            What else a step depends on, by name: with ``state_dict`` and ``load_state_dict``, as of an optimizer.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        weights = self._weights(model)
        save_file(weights, self._step(state.step, "safetensors"))
        torch.save({name: each.state_dict() for name, each in stateful.items()}, self._step(state.step, "pt"))
        if state.is_best:
            save_file(weights, self._best(state.step))
        with whole_text_file(self._folder / _LAST) as file:
            json.dump(asdict(state), file)
        kept = {self._step(state.step, "safetensors"), self._step(state.step, "pt"), self._folder / _LAST}
        if state.best_step is not None:
            kept.add(self._best(state.best_step))
        for path in set(self._folder.iterdir()) - kept:
            path.unlink()

    def load(self, state: Progressed, model: nn.Module, stateful: Mapping[str, Any]) -> None:
        """Bring a network, and what `save` was given beside it, back to where a checkpoint was."""
        self._assign(model, self._step(state.step, "safetensors"))
        path = self._step(state.step, "pt")
        try:
            with warnings.catch_warnings(action="ignore"):  # torch warns of a foreign pickle that it then refuses
                found = torch.load(path, weights_only=True)
            for name, each in stateful.items():
                each.load_state_dict(found[name])
        except (OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, UnpicklingError) as error:
            raise FinetuneError(f"{path}: damaged or missing; begin anew with --overwrite") from error

    def load_best(self, state: Progressed, model: nn.Module) -> None:
        """Give a network the weights of the best look."""
        assert state.best_step is not None  # training ends with a look
        self._assign(model, self._best(state.best_step))

    def _weights(self, model: nn.Module) -> dict[str, Tensor]:
        state = model.state_dict()
        return {name: state[name].detach().cpu().contiguous().clone() for name in self._changing}

    def _assign(self, model: nn.Module, path: Path) -> None:
        try:
            weights = load_file(path)
        except (OSError, SafetensorError) as error:
            raise FinetuneError(f"{path}: damaged or missing; begin anew with --overwrite") from error
        if set(weights) != set(self._changing):
            raise FinetuneError(f"{path}: holds other weights than are trained; begin anew with --overwrite")
        try:
            model.load_state_dict(weights, strict=False)
        except RuntimeError as error:
            raise FinetuneError(f"{path}: holds weights of other shapes; begin anew with --overwrite") from error

    def _step(self, step: int, suffix: str) -> Path:
        return self._folder / f"step-{step}.{suffix}"

    def _best(self, step: int) -> Path:
        return self._folder / f"best-{step}.safetensors"


def changing(model: nn.Module, trained: Iterable[nn.Parameter]) -> list[str]:
    """Return the names in a network's state that training changes: parameters, and the statistics of its norms."""
    ids = {id(parameter) for parameter in trained}
    state: Mapping[str, Any] = model.state_dict()
    parameters = [name for name, parameter in model.named_parameters() if id(parameter) in ids]
    return [*parameters, *(name for name, _ in model.named_buffers() if name in state)]
