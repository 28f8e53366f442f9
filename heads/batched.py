"""The one torch training loop: many models of one architecture at once, on features that stay in memory.

::

    folds x configurations = recipes --same number of steps and slots--> cohorts --a chunk at a time-->
    gather a batch per fold -> forward of G stacked models -> one backward -> AdamW on flat rows
    -> per epoch: monitor loss, best weights, plateau, early stopping; who has stopped leaves

Everything random is drawn per (seed, fold, epoch, step): configurations of one fold see the same
batches, noise and dropout masks, and a model's result does not depend on who trains beside it. On a
CPU the weights are bit-identical however the recipes are grouped; across devices they agree in law.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.errors import HeadError
from heads.losses import entry_losses, weighted_mean, weighted_sum
from heads.training.corpus import Corpus, Stream, as_tensor
from heads.training.course import Course, schedule_factor
from heads.training.layers import TrainingPass
from heads.training.optimizer import StackedAdamW
from heads.training.plan import Fold, Recipe, Regime, TrainedModel

Floats = NDArray[np.floating[Any]]

_CPU_AT_ONCE = 16  # measured: more models than this fall out of the cache
_MONITOR_CHUNK = 512
_SCORE_CHUNK = 4096


class Architecture(Protocol):
    """A family of models of one shape.

    Weights are named tensors; matrices decay, vectors (biases, gains, shifts) do not.
    """

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the initial weights of one model, on the CPU."""
        ...

    def running(self) -> dict[str, Tensor]:
        """Return the initial running statistics of one model: state that no gradient reaches."""
        ...

    def forward(self, state: Mapping[str, Tensor], x: Tensor, training: TrainingPass | None) -> Tensor:
        """Return logits (G, b, k) of features (G, b, d), from weights and statistics stacked over models."""
        ...


@runtime_checkable
class ScaledArchitecture(Architecture, Protocol):
    """An architecture some of whose weights learn faster or slower than the rest."""

    def lr_factors(self) -> Mapping[str, float]:
        """Return what the learning rate of these weights is multiplied by, by name."""
        ...


def train_many(
    architecture: Architecture,
    X: Floats,
    y: NDArray[Any],
    *,
    folds: Sequence[Fold],
    recipes: Sequence[Recipe],
    regime: Regime,
    device: str = "cpu",
    at_once: int | None = None,
) -> list[TrainedModel | HeadError]:
    """Train one model per recipe.

    Parameters
    ----------
    architecture
        The models' shape.
    X
        Features, shape (n, d); float16 is read as such and computed in float32.
    y
        Targets, see `Regime.loss`.
    folds, recipes, regime
        What each model is trained on, and how.
    device
        ``cpu``, ``cuda`` or ``cuda:i``.
    at_once
        Models trained at once; by default 16 on a CPU, all of them on a GPU. Results do not depend on it.

    Returns
    -------
    models
        In the order of `recipes`; a HeadError stands where a model's loss was never finite.

    Raises
    ------
    HeadError
        If the device is not there or a fold has no training rows.
    """
    place = torch_device(device)
    features, targets = as_tensor(X, place), as_tensor(y, place).float().reshape(len(y), -1)
    corpora = [Corpus(fold, features, targets, regime.batch_size) for fold in folds]
    cohorts: dict[tuple[int, int, int], list[int]] = {}
    for position, recipe in enumerate(recipes):
        cohorts.setdefault(corpora[recipe.fold].layout, []).append(position)
    trained: dict[int, TrainedModel | HeadError] = {}
    for positions in cohorts.values():
        size = at_once or (_CPU_AT_ONCE if place.type == "cpu" else len(positions))
        for start in range(0, len(positions), size):
            chunk = positions[start : start + size]
            cohort = _Cohort(architecture, corpora, [recipes[i] for i in chunk], regime)
            trained.update(zip(chunk, cohort.train(), strict=True))
    return [trained[position] for position in range(len(recipes))]


def train_one(
    architecture: Architecture,
    X: Floats,
    y: NDArray[Any],
    *,
    fold: Fold,
    recipe: Recipe,
    regime: Regime,
    device: str = "cpu",
) -> TrainedModel:
    """Train one model; see `train_many`.

    Raises
    ------
    HeadError
        If its loss was never finite, the device is not there or the fold has no training rows.
    """
    (model,) = train_many(architecture, X, y, folds=[fold], recipes=[recipe], regime=regime, device=device)
    if isinstance(model, HeadError):
        raise model
    return model


def logits_of(
    architecture: Architecture, state: Mapping[str, NDArray[Any]], X: Floats, *, device: str = "cpu"
) -> NDArray[np.float32]:
    """Return the logits of trained models whose states are stacked along a first axis, shape (G, n, k)."""
    place = torch_device(device)
    stacked = {name: as_tensor(value, place) for name, value in state.items()}
    models = len(next(iter(stacked.values())))
    with torch.inference_mode():
        chunks = [
            architecture.forward(stacked, rows.expand(models, *rows.shape), None).cpu()
            for rows in (as_tensor(part, place).float() for part in _chunks(X))
        ]
    logits: NDArray[np.float32] = torch.cat(chunks, dim=1).numpy()
    return logits


def torch_device(name: str) -> torch.device:
    """Return a device by name.

    Raises
    ------
    HeadError
        If there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HeadError(f"device={name!r} is wrong; expected 'cpu', 'cuda' or 'cuda:i'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HeadError(
            f"device={name!r}: {torch.cuda.device_count()} CUDA devices found; use device=cpu or a machine that has one"
        )
    return device


class _Cohort:
    """Models trained in lock-step: equally many steps per epoch, equally many slots per batch."""

    def __init__(
        self, architecture: Architecture, corpora: Sequence[Corpus], recipes: Sequence[Recipe], regime: Regime
    ) -> None:
        self._architecture, self._regime, self._recipes = architecture, regime, list(recipes)
        self._device = corpora[0].features.device
        self._courses = [Course(regime.patience, regime.min_delta, regime.schedule) for _ in recipes]
        self._best: list[dict[str, Tensor]] = [{} for _ in recipes]
        self._steps, _, self._monitor_slots = corpora[recipes[0].fold].layout
        keys = list(dict.fromkeys((recipe.seed, recipe.fold) for recipe in recipes))
        self._all_streams = [Stream(seed, corpora[fold]) for seed, fold in keys]
        self._stream_of = [keys.index((recipe.seed, recipe.fold)) for recipe in recipes]
        started = [architecture.initial(self._all_streams[i].generator("initial")) for i in self._stream_of]
        factors = architecture.lr_factors() if isinstance(architecture, ScaledArchitecture) else None
        self._weights = StackedAdamW(started, self._device, factors)
        self._running = {
            name: value.to(self._device).repeat(len(recipes), *[1] * value.ndim)
            for name, value in architecture.running().items()
        }
        self._noisy = any(recipe.input_noise for recipe in recipes)
        self._enlist(list(range(len(recipes))))

    def train(self) -> list[TrainedModel | HeadError]:
        """Run the epochs; return the models in the order of the recipes."""
        for epoch in range(self._regime.max_epochs):
            losses = self._run_epoch(epoch).tolist()
            monitored = self._monitor()
            rates = self._lr(epoch, self._steps - 1)[:, 0].tolist()
            self._close_epoch(losses, [None] * len(losses) if monitored is None else monitored.tolist(), rates)
            if not self._alive:
                break
        return [self._result(position) for position in range(len(self._recipes))]

    def _enlist(self, alive: list[int]) -> None:
        """Make the per-model tensors of the models that go on."""
        self._alive = alive
        recipes = [self._recipes[i] for i in alive]
        used = sorted({self._stream_of[i] for i in alive})
        self._streams = [self._all_streams[i] for i in used]
        self._stream = torch.tensor([used.index(self._stream_of[i]) for i in alive], device=self._device)
        self._base_lr = self._column([recipe.lr for recipe in recipes])[:, None]
        self._decay = self._column([recipe.weight_decay for recipe in recipes])[:, None]
        self._noise = self._column([recipe.input_noise for recipe in recipes])[:, None, None]
        dropout = [recipe.dropout for recipe in recipes]
        self._dropout = self._column(dropout) if any(dropout) else None
        self._settings = {
            name: self._column([getattr(recipe, name) for recipe in recipes])
            for name in ("smoothing", "gamma", "delta")
        }
        self._state = self._weights.leaves | self._running

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def _run_epoch(self, epoch: int) -> Tensor:
        """Take all steps of an epoch; return each model's mean loss, shape (G,)."""
        for stream in self._streams:
            stream.order = stream.corpus.order(stream.generator("order", epoch))
        total = torch.zeros(len(self._alive), device=self._device)
        for step in range(self._steps):
            total += self._step(epoch, step)
        return total / self._steps

    def _step(self, epoch: int, step: int) -> Tensor:
        x, targets, weights = self._gather([stream.order[step] for stream in self._streams])
        real = torch.stack([stream.corpus.real[step] for stream in self._streams])
        x = self._with_noise(x, epoch, step)
        training = TrainingPass(
            row_share=(real / real.sum(dim=1, keepdim=True))[self._stream][:, None],
            rates=self._dropout,
            generators=[s.generator("dropout", epoch, step, device=self._device) for s in self._streams],
            stream=self._stream,
        )
        logits = self._architecture.forward(self._state, x, training)
        loss = weighted_mean(self._entries(logits, targets), weights * real[self._stream][..., None])
        self._weights.step(loss.sum(), self._lr(epoch, step), self._decay)
        return loss.detach()

    def _gather(self, rows: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return each model's features (G, b, d), targets and weights (G, b, T); rows are gathered once per stream."""
        parts = [stream.corpus.take(index) for stream, index in zip(self._streams, rows, strict=True)]
        if len(parts) == 1:
            x, targets, weights = (part.expand(len(self._alive), *part.shape) for part in parts[0])
        else:
            x, targets, weights = (torch.stack(column)[self._stream] for column in zip(*parts, strict=True))
        return x, targets, weights

    def _with_noise(self, x: Tensor, epoch: int, step: int) -> Tensor:
        if not self._noisy:
            return x
        draws = []
        for stream in self._streams:
            generator = stream.generator("noise", epoch, step, device=self._device)
            draws.append(torch.randn(x.shape[1:], generator=generator, device=self._device) * stream.corpus.spread)
        return torch.addcmul(x, torch.stack(draws)[self._stream] if len(draws) > 1 else draws[0], self._noise)

    def _entries(self, logits: Tensor, targets: Tensor) -> Tensor:
        return entry_losses(self._regime.loss, logits, targets, **self._settings)

    def _lr(self, epoch: int, step: int) -> Tensor:
        """Return the learning rate of each model at a step, shape (G, 1)."""
        done, total = epoch * self._steps + step, self._steps * self._regime.max_epochs
        plateau = self._column([self._courses[i].factor for i in self._alive])[:, None]
        return self._base_lr * plateau * schedule_factor(self._regime.schedule, done, total, self._regime.warmup)

    @torch.no_grad()
    def _monitor(self) -> Tensor | None:
        """Return each model's mean loss over its monitor rows, shape (G,), or None if there are none."""
        if not self._monitor_slots:
            return None
        total = weight = torch.zeros(len(self._alive), device=self._device)
        for start in range(0, self._monitor_slots, _MONITOR_CHUNK):
            part = slice(start, start + _MONITOR_CHUNK)
            x, targets, weights = self._gather([stream.corpus.monitor[part] for stream in self._streams])
            real = torch.stack([stream.corpus.monitor_real[part] for stream in self._streams])[self._stream]
            logits = self._architecture.forward(self._state, x, None)
            sums = weighted_sum(self._entries(logits, targets), weights * real[..., None])
            total, weight = total + sums[0], weight + sums[1]
        return total / torch.where(weight > 0, weight, 1.0)

    def _close_epoch(self, losses: list[float], monitored: list[float | None], rates: list[float]) -> None:
        """Tell every course how its epoch went, keep the best weights, and let the finished ones go."""
        for g, position in enumerate(self._alive):
            if self._courses[position].observe(losses[g], monitored[g], rates[g]):
                self._best[position] = {name: value[g].detach().clone() for name, value in self._state.items()}
        staying = [g for g, position in enumerate(self._alive) if not self._courses[position].finished]
        if len(staying) < len(self._alive):
            chosen = torch.tensor(staying, dtype=torch.int64, device=self._device)
            self._weights.select(chosen)
            self._running = {name: value[chosen] for name, value in self._running.items()}
            self._enlist([self._alive[g] for g in staying])

    def _result(self, position: int) -> TrainedModel | HeadError:
        course, recipe = self._courses[position], self._recipes[position]
        if course.best_epoch is None:
            return HeadError(
                f"training diverged: the loss was not finite in the first epoch; lower lr (now {recipe.lr:g}), "
                "and let the head standardize its features"
            )
        state = {name: value.cpu().numpy() for name, value in self._best[position].items()}
        return TrainedModel(state=state, best_epoch=course.best_epoch, history=course.history)


def _chunks(X: Floats) -> Iterator[Floats]:
    """Yield the rows in chunks, at least one."""
    return (X[start : start + _SCORE_CHUNK] for start in range(0, max(len(X), 1), _SCORE_CHUNK))
