"""What the heads share that are networks: all fits of one architecture go through one call of the training loop.

::

    jobs --same rows, same form--> training sets --inner splits--> plans --same architecture, same regime-->
    train_many over the shared X, each fold with its own targets and scaling --> members of each head
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from heads.bags import Bags
from heads.base import Context, Floats, Head, Training
from heads.batched import Architecture, logits_of, train_many
from heads.errors import HeadError
from heads.losses import LossName
from heads.many import Job
from heads.together import checked, prepared, sharing
from heads.training.course import Schedule
from heads.training.members import Course, inner_splits, mean_history
from heads.training.optimizer import Optimizer
from heads.training.plan import Fold, Recipe, Regime, Rows, TrainedModel
from heads.training.precision import Precision

Sampler = Literal["shuffle", "weighted", "balanced"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Goal:
    """What a network is trained for.

    Attributes
    ----------
    y
        Targets of the training rows, as the loss takes them.
    outputs
        Number of logits.
    loss
        The loss.
    recipe
        The loss's settings.
    """

    y: NDArray[Any]
    outputs: int
    loss: LossName
    recipe: Recipe


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """One head's part of a batch of trainings: one fold per member."""

    architecture: Architecture
    regime: Regime
    device: str
    folds: Sequence[Fold]
    recipe: Recipe


class NetworkHead(Head):
    """Base of heads that are networks: several members, each stopped on an inner split, trained by `heads.batched`.

    Attributes
    ----------
    preparing
        Parameters that decide what the training set looks like; heads that agree in these share one.
    """

    dropout: float
    input_noise: float
    lr: float
    weight_decay: float
    optimizer: Optimizer
    clip_norm: float | None
    batch_size: int
    max_epochs: int
    patience: int
    schedule: Schedule
    plateau_factor: float
    validation_fraction: float
    members: int
    precision: Precision
    random_state: int
    device: str

    uses_torch = True
    sampler: Sampler = "shuffle"
    preparing: ClassVar[frozenset[str]] = frozenset({"standardize", "class_weight"})

    @abstractmethod
    def _architecture(self, outputs: int) -> Architecture:
        """Return the network."""

    @abstractmethod
    def _goal(self, training: Training) -> Goal:
        """Return what the network is trained for; set what follows from the targets."""

    @classmethod
    def fit_together(
        cls,
        jobs: Sequence[Job],
        X: Any,
        y: NDArray[Any],
        *,
        groups: NDArray[Any] | None = None,
        context: Context | None = None,
    ) -> Iterator[Head | HeadError]:
        """Yield the head of each job; all networks of one architecture and regime are trained in one go."""
        if isinstance(X, Bags):
            yield from super().fit_together(jobs, X, y, groups=groups, context=context)
            return
        results: list[Head | HeadError] = [checked(job.head) for job in jobs]
        plans: dict[int, _Plan] = {}
        for positions in sharing(jobs, frozenset(cls._get_param_names()) - cls.preparing):
            heads = {i: head for i in positions if isinstance(head := results[i], cls)}
            if not heads:
                continue
            job = jobs[positions[0]]
            try:
                training = prepared(list(heads.values()), job, X, y, groups=groups, context=context)
            except HeadError as error:
                results = [error if i in heads else result for i, result in enumerate(results)]
                continue
            planner = _Planner(training, job.rows[training.kept], len(X))
            for i, head in heads.items():
                try:
                    if training.y.size:
                        plans[i] = planner.plan(head)
                except HeadError as error:
                    results[i] = error
        trained = _train(list(plans.values()), _numbers(X))
        for i, models in zip(plans, trained, strict=True):
            results[i] = _kept(results[i], models)
        yield from results

    def _fit(self, training: Training) -> None:
        plan = _Planner(training, np.arange(len(training.X)), len(training.X)).plan(self)
        (models,) = _train([plan], training.X)
        self._keep(models)

    def _fit_scaling(self, X: Floats, weight: NDArray[np.float64]) -> Floats:
        """Learn the scaling and return X as it is: the training loop scales batch by batch."""
        super()._fit_scaling(X, weight)
        return X

    def _scaling(self) -> tuple[Floats | None, Floats | None]:
        return (self.mean_, self.scale_) if self.standardize else (None, None)

    def _recipe(self, recipe: Recipe) -> Recipe:
        return replace(
            recipe,
            seed=self.random_state,
            lr=self.lr,
            weight_decay=self.weight_decay,
            dropout=self.dropout,
            input_noise=self.input_noise,
            clip_norm=self.clip_norm,
        )

    def _regime(self, loss: LossName) -> Regime:
        return Regime(
            loss=loss,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            patience=self.patience,
            schedule=self.schedule,
            plateau_factor=self.plateau_factor,
            optimizer=self.optimizer,
            precision=self.precision,
        )

    def _keep(self, models: Sequence[TrainedModel | HeadError]) -> None:
        """Keep the members' weights and their history.

        Raises
        ------
        HeadError
            If a member could not be trained.
        """
        trained = [model for model in models if isinstance(model, TrainedModel)]
        problems = [str(model) for model in models if isinstance(model, HeadError)]
        if problems:
            raise HeadError(f"{self.name}: {problems[0]}")
        self.weights_ = {name: np.stack([model.state[name] for model in trained]) for name in trained[0].state}
        self.best_epochs_ = [model.best_epoch for model in trained]
        self.history_ = mean_history([Course(model.history, model.best_epoch) for model in trained])

    def _logits(self, X: Floats) -> NDArray[np.float64]:
        """Return the logits of every member, shape (members, n, outputs)."""
        outputs = self.weights_["logits.bias"].shape[1]
        return logits_of(self._architecture(outputs), self.weights_, X, device=self.device).astype(np.float64)


class _Planner:
    """Plans of heads that share a training set; they share its inner splits and folds as well.

    Parameters
    ----------
    training
        The training set.
    rows
        The rows of X that it is made of.
    n
        Number of rows of X.
    """

    def __init__(self, training: Training, rows: Rows, n: int) -> None:
        self._training, self._rows, self._n = training, rows, n
        self._weight = self._spread_out(training.weight)
        self._folds: dict[Any, tuple[list[Fold], list[str]]] = {}

    def plan(self, head: NetworkHead) -> _Plan:
        """Return a head's plan, and add to its notes what there is to say about its inner splits."""
        goal = head._goal(self._training)
        key = head.validation_fraction, head.members, head.random_state, head.sampler
        if key in self._folds:
            for note in self._folds[key][1]:
                head._note(note)
        else:
            before = len(head.notes_)
            self._folds[key] = self._members(head, goal), head.notes_[before:]
        return _Plan(
            architecture=head._architecture(goal.outputs),
            regime=head._regime(goal.loss),
            device=head.device,
            folds=self._folds[key][0],
            recipe=head._recipe(goal.recipe),
        )

    def _members(self, head: NetworkHead, goal: Goal) -> list[Fold]:
        monitors = inner_splits(
            head, self._training, fraction=head.validation_fraction, members=head.members, seed=head.random_state
        )
        shift, scale = head._scaling()
        y = self._spread_out(goal.y)
        if head.sampler == "balanced":
            _refuse_missing_class(head, self._training, monitors)
        return [
            Fold(
                train=self._rows[~monitor],
                monitor=self._rows[monitor],
                weight=self._weight,
                shift=shift,
                scale=scale,
                y=y,
                chance=_chance(self._training.y[~monitor]) if head.sampler == "weighted" else None,
                stratum=self._training.y[~monitor] if head.sampler == "balanced" else None,
                number=member,
            )
            for member, monitor in enumerate(monitors)
        ]

    def _spread_out(self, values: NDArray[Any]) -> Floats:
        """Return values of the training rows at the places of these rows in X; they are read nowhere else."""
        out = np.zeros((self._n, *values.shape[1:]), np.float32)
        out[self._rows] = values
        return out


def _chance(codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return 1 / size of its class for each row."""
    chance: NDArray[np.float64] = 1 / np.bincount(codes)[codes]
    return chance


def _refuse_missing_class(head: NetworkHead, training: Training, monitors: Sequence[NDArray[np.bool_]]) -> None:
    """Refuse members that have a class in their inner split only, which no batch could hold a share of.

    Raises
    ------
    HeadError
        If there is one.
    """
    for member, monitor in enumerate(monitors):
        counts = np.bincount(training.y[~monitor], minlength=training.classes)
        if not counts.all():
            missing = int(counts.argmin())
            raise HeadError(
                f"{head.name}: sampler=balanced needs rows of every class to learn from, and the inner split of member "
                f"{member} holds all {(training.y == missing).sum()} of class {missing}, counted from 0; use "
                f"sampler=shuffle, validation_fraction=0, or more groups of that class"
            )


def _train(plans: Sequence[_Plan], X: Floats) -> list[list[TrainedModel | HeadError]]:
    """Return the members of each plan; plans of one architecture, regime and device are trained in one go."""
    buckets: dict[Any, list[int]] = {}
    for position, plan in enumerate(plans):
        buckets.setdefault((_identity(plan.architecture), plan.regime, plan.device), []).append(position)
    trained: dict[int, list[TrainedModel | HeadError]] = {}
    for positions in buckets.values():
        first = plans[positions[0]]
        folds = list({id(fold): fold for position in positions for fold in plans[position].folds}.values())
        place = {id(fold): k for k, fold in enumerate(folds)}
        recipes = [replace(plans[i].recipe, fold=place[id(fold)]) for i in positions for fold in plans[i].folds]
        models = iter(
            train_many(
                first.architecture, X, None, folds=folds, recipes=recipes, regime=first.regime, device=first.device
            )
        )
        for position in positions:
            trained[position] = [next(models) for _ in plans[position].folds]
    return [trained[position] for position in range(len(plans))]


def _identity(part: Any) -> Any:
    """Return what two architectures have in common if they are the same, arrays included."""
    if is_dataclass(part):
        return type(part), tuple(_identity(getattr(part, field.name)) for field in fields(part))
    if isinstance(part, np.ndarray):
        return part.shape, part.tobytes()
    return tuple(map(_identity, part)) if isinstance(part, tuple) else part


def _kept(head: Head | HeadError, models: Sequence[TrainedModel | HeadError]) -> Head | HeadError:
    assert isinstance(head, NetworkHead)  # only heads without an error are trained
    try:
        head._keep(models)
    except HeadError as error:
        return error
    return head


def _numbers(X: Any) -> Floats:
    """Return features as float32 or float64."""
    array = np.asarray(X)
    return array if array.dtype in (np.float32, np.float64) else array.astype(np.float64)
