"""Models trained in lock-step: the epochs and steps of the training loop `heads.batched`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from heads.errors import HeadError
from heads.losses import entry_losses, weighted_mean, weighted_sum
from heads.training.corpus import Corpus, Stream
from heads.training.course import Course, schedule_factor
from heads.training.layers import Draws, TrainingPass
from heads.training.optimizer import Block, StackedOptimizer, clipped
from heads.training.plan import Recipe, Regime, TrainedModel
from heads.training.precision import LossScale, autocast

_MONITOR_CHUNK = 512
_CACHED = 2**19  # measured: features of a block's batches beyond 2 MiB fall out of the cache


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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Batch:
    """The rows of one step, once per stream: features (S, b, d), targets and weights (S, b, T)."""

    x: Tensor
    targets: Tensor
    weights: Tensor
    share: Tensor
    noise: Tensor | None = None
    draws: Draws | None = None


class Cohort:
    """Models with equally many steps per epoch and equally many slots per batch.

    A step draws and gathers once per stream, then goes through the models block by block, so that
    what one block computes stays in the cache.
    """

    def __init__(
        self, architecture: Architecture, corpora: Sequence[Corpus], recipes: Sequence[Recipe], regime: Regime
    ) -> None:
        self._architecture, self._regime, self._recipes = architecture, regime, list(recipes)
        features = corpora[0].features
        self._device, self._width = features.device, features.shape[1]
        self._courses = [
            Course(regime.patience, regime.min_delta, regime.schedule, regime.plateau_factor) for _ in recipes
        ]
        self._best: list[dict[str, Tensor]] = [{} for _ in recipes]
        self._steps, self._slots, self._monitor_slots = corpora[recipes[0].fold].layout
        keys = list(dict.fromkeys((recipe.seed, recipe.fold) for recipe in recipes))
        self._all_streams = [Stream(seed, corpora[fold]) for seed, fold in keys]
        self._stream_of = [keys.index((recipe.seed, recipe.fold)) for recipe in recipes]
        self._weights = StackedOptimizer(
            [architecture.initial(self._all_streams[i].generator("initial")) for i in self._stream_of],
            self._device,
            architecture.lr_factors() if isinstance(architecture, ScaledArchitecture) else None,
            block=max(1, _CACHED // (self._slots * self._width)) if self._device.type == "cpu" else None,
            optimizer=regime.optimizer,
        )
        self._running = {
            name: value.to(self._device).repeat(len(recipes), *[1] * value.ndim)
            for name, value in architecture.running().items()
        }
        self._noisy = any(recipe.input_noise for recipe in recipes)
        self._scale = LossScale(len(recipes), self._device) if regime.precision == "fp16" else None
        self._buffers: dict[tuple[str, int], Tensor] = {}
        self._enlist(list(range(len(recipes))))

    def train(self) -> list[TrainedModel | HeadError]:
        """Run the epochs; return the models in the order of the recipes."""
        for epoch in range(self._regime.max_epochs):
            losses = self._run_epoch(epoch).tolist()
            monitored = self._monitor()
            rates = self._lr(epoch, self._steps - 1).tolist()
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
        stream = [used.index(self._stream_of[i]) for i in alive]
        self._picks = [_pick(stream[block.models], self._device) for block in self._weights.blocks]
        self._base_lr = self._column([recipe.lr for recipe in recipes])
        self._decay = self._column([recipe.weight_decay for recipe in recipes])
        self._noise = self._column([recipe.input_noise for recipe in recipes])
        longest = [math.inf if recipe.clip_norm is None else recipe.clip_norm for recipe in recipes]
        self._longest = self._column(longest) if any(length < math.inf for length in longest) else None
        dropout = [recipe.dropout for recipe in recipes]
        self._dropout = self._column(dropout) if any(dropout) else None
        columns = {name: [getattr(recipe, name) for recipe in recipes] for name in ("smoothing", "gamma", "delta")}
        # A setting that is off for all models costs nothing.
        self._settings = {name: self._column(values) for name, values in columns.items() if any(values)}
        weighted = next((recipe.pos_weight for recipe in recipes if recipe.pos_weight), ())
        if weighted:
            table = [recipe.pos_weight or (1.0,) * len(weighted) for recipe in recipes]
            self._settings["pos_weight"] = torch.tensor(table, device=self._device)[:, None]
        self._state = self._weights.weights | self._running
        self._states = [
            block.leaves | {name: value[block.models] for name, value in self._running.items()}
            for block in self._weights.blocks
        ]

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)

    def _run_epoch(self, epoch: int) -> Tensor:
        """Take all steps of an epoch; return each model's mean loss, shape (G,)."""
        for stream in self._streams:
            stream.begin(epoch)
        self._plateau = self._column([self._courses[i].factor for i in self._alive])
        total = torch.zeros(len(self._alive), device=self._device)
        for step in range(self._steps):
            batch, lr = self._batch(step), self._lr(epoch, step)
            for number, block in enumerate(self._weights.blocks):
                total[block.models] += self._step(number, block, batch, lr[block.models])
        return total / self._steps

    def _step(self, number: int, block: Block, batch: _Batch, lr: Tensor) -> Tensor:
        """Take one step with the models of a block; return their losses, shape (g,)."""
        assert batch.draws is not None  # a training batch
        pick, models = self._picks[number], block.models
        training = TrainingPass(
            row_share=batch.share[pick],
            rates=None if self._dropout is None else self._dropout[models],
            draws=batch.draws.rewind(),
            stream=pick,
        )
        x = batch.x[pick]
        if batch.noise is not None:
            noisy = self._buffer("noisy", self._slots, lr.numel())  # fresh memory would cost more than the sum
            x = torch.addcmul(x, batch.noise[pick], self._noise[models][:, None, None], out=noisy)
        with self._autocast():
            logits = self._architecture.forward(self._states[number], x.expand(lr.numel(), -1, -1), training).float()
        loss = weighted_mean(self._entries(logits, batch.targets[pick], models), batch.weights[pick])
        total = loss.sum() if self._scale is None else self._scale.scaled(loss, models)
        gradients, finite = torch.autograd.grad(total, list(block.leaves.values())), None
        if self._scale is not None:
            gradients, finite = self._scale.unscaled(gradients, models)
        if self._longest is not None:
            gradients = clipped(gradients, self._longest[models])
        self._weights.step(block, gradients, lr, self._decay[models], finite)
        return loss.detach()

    def _batch(self, step: int) -> _Batch:
        """Return the rows of a training step."""
        batch = self._gather([stream.order[step] for stream in self._streams], "train")
        real = torch.stack([stream.corpus.real[step] for stream in self._streams])
        noise = self._draw_noise() if self._noisy else None
        return _Batch(
            x=batch.x,
            targets=batch.targets,
            weights=batch.weights * real[..., None],
            share=torch.stack([stream.corpus.share[step] for stream in self._streams]),
            noise=noise,
            draws=Draws([stream.dropout for stream in self._streams]),
        )

    def _gather(self, rows: Sequence[Tensor], purpose: str) -> _Batch:
        """Return some rows of each stream."""
        x = self._buffer(purpose, len(rows[0]))
        for s, (stream, index) in enumerate(zip(self._streams, rows, strict=True)):
            stream.corpus.features_of(index, x[s])
        targets, weights = (
            torch.stack([source[index] for source, index in zip(sources, rows, strict=True)])
            for sources in zip(
                *((stream.corpus.targets, stream.corpus.weights) for stream in self._streams), strict=True
            )
        )
        return _Batch(x=x, targets=targets, weights=weights, share=weights)

    def _draw_noise(self) -> Tensor:
        noise = self._buffer("noise", self._slots)
        for s, stream in enumerate(self._streams):
            torch.randn(noise[s].shape, generator=stream.noise, out=noise[s]).mul_(stream.corpus.spread)
        return noise

    def _buffer(self, purpose: str, rows: int, count: int | None = None) -> Tensor:
        """Return memory for `rows` rows of each stream, or of `count` models, the same at every step."""
        key, size = (purpose, rows), count or len(self._streams)
        if key not in self._buffers or len(self._buffers[key]) < size:
            self._buffers[key] = torch.empty(size, rows, self._width, device=self._device)
        return self._buffers[key][:size]

    def _entries(self, logits: Tensor, targets: Tensor, models: slice) -> Tensor:
        settings = {name: values[models] for name, values in self._settings.items()}
        return entry_losses(self._regime.loss, logits, targets, **settings)

    def _autocast(self) -> AbstractContextManager[None]:
        return autocast(self._regime.precision, self._device)

    def _lr(self, epoch: int, step: int) -> Tensor:
        """Return the learning rate of each model at a step, shape (G,)."""
        regime, epochs = self._regime, self._regime.max_epochs
        done, total = epoch * self._steps + step, self._steps * epochs
        return self._base_lr * self._plateau * schedule_factor(regime.schedule, done, total, regime.warmup, epochs)

    @torch.no_grad()
    def _monitor(self) -> Tensor | None:
        """Return each model's mean loss over its monitor rows, shape (G,), or None if there are none."""
        if not self._monitor_slots:
            return None
        total, weight = torch.zeros(2, len(self._alive), device=self._device)
        for start in range(0, self._monitor_slots, _MONITOR_CHUNK):
            part = slice(start, start + _MONITOR_CHUNK)
            batch = self._gather([stream.corpus.monitor[part] for stream in self._streams], "monitor")
            real = torch.stack([stream.corpus.monitor_real[part] for stream in self._streams])
            weights = batch.weights * real[..., None]
            for number, block in enumerate(self._weights.blocks):
                pick, models = self._picks[number], block.models
                x = batch.x[pick].expand(models.stop - models.start, -1, -1)
                with self._autocast():
                    logits = self._architecture.forward(self._states[number], x, None).float()
                sums = weighted_sum(self._entries(logits, batch.targets[pick], models), weights[pick])
                total[models] += sums[0]
                weight[models] += sums[1]
        mean: Tensor = total / torch.where(weight > 0, weight, 1.0)
        return mean

    def _close_epoch(self, losses: list[float], monitored: list[float | None], rates: list[float]) -> None:
        """Tell every course how its epoch went, keep the best weights, and let the finished ones go."""
        for g, position in enumerate(self._alive):
            if self._courses[position].observe(losses[g], monitored[g], rates[g]):
                self._best[position] = {name: value[g].clone() for name, value in self._state.items()}
        staying = [g for g, position in enumerate(self._alive) if not self._courses[position].finished]
        if len(staying) < len(self._alive):
            chosen = torch.tensor(staying, dtype=torch.int64, device=self._device)
            self._weights.select(chosen)
            self._running = {name: value[chosen] for name, value in self._running.items()}
            if self._scale is not None:
                self._scale.select(chosen)
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


def _pick(streams: list[int], device: torch.device) -> Tensor | slice:
    """Return what picks each model's stream: a slice, which copies nothing, where all share one or are in a row."""
    if len(set(streams)) == 1:
        return slice(streams[0], streams[0] + 1)
    if streams == list(range(streams[0], streams[0] + len(streams))):
        return slice(streams[0], streams[-1] + 1)
    return torch.tensor(streams, device=device)
