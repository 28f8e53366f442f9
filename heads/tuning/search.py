"""The search: trials in batches, fitted together on inner folds, the worse half of each batch dropped on the way.

::

    ask B trials -> fold 0 of all -> drop half -> fold 1 of the others -> drop half -> the other folds -> tell

The value of a trial is the mean of its metric over the folds. A trial that was dropped keeps the mean
it had, which the sampler learns from as well.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.trial import TrialState

from data.progress import Progress
from data.task import Kind
from heads.augmented import fit_on
from heads.base import Head, HeadWarning
from heads.catalog import head_class, make_head
from heads.errors import HeadError
from heads.evaluation.metrics import LOWER_IS_BETTER, estimates, evaluate
from heads.evaluation.scoring import scores_of
from heads.labelled import Labelled
from heads.many import Job
from heads.tuning.rows import InnerFold
from heads.tuning.sampler import NumberedSampler
from heads.tuning.space import DEFAULT, Candidate, Space, View
from heads.tuning.views import Views

MEMBERS = 1
"""Members of a head that averages several, while it is searched: they cost as much as trials, and tell less."""
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a study is run.

    Attributes
    ----------
    space, views, folds
        What is searched, and the rows it is searched on.
    metric
        What is maximised, or minimised if lower is better.
    trials
        Trials in total.
    deadline
        When to stop, on `time.monotonic`'s clock.
    batch
        Trials asked for at once.
    sampler
        ``tpe``, ``random`` or ``grid``.
    prune
        Whether the worse half of a batch is dropped after the first fold, and again after the second.
    seed
        Seed of the heads and of the sampling.
    min_positives
        See `heads.evaluation.metrics.evaluate`.
    """

    space: Space
    views: Views
    folds: Sequence[InnerFold]
    metric: str
    trials: int
    deadline: float
    batch: int
    sampler: str
    prune: bool
    seed: int
    min_positives: int

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return -1 if self.metric in LOWER_IS_BETTER else 1

    def rungs(self) -> list[Sequence[int]]:
        """Return which folds are scored before the batch is thinned out, each time."""
        every = range(len(self.folds))
        parts = [every[:1], every[1:2], every[2:]] if self.prune else [every]
        return [part for part in parts if len(part)]


@dataclass
class _Attempt:
    """A trial under way."""

    trial: Any
    candidate: Candidate
    scores: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reason: str = ""

    @property
    def value(self) -> float:
        return _mean(self.scores)


class OutOfTimeError(Exception):
    """The deadline came while a batch was under way."""


def search(study: Any, plan: Plan, progress: Progress) -> None:
    """Run trials until there are as many as planned, or the deadline comes.

    Raises
    ------
    HeadError
        If every trial failed.
    """
    study.sampler = NumberedSampler(plan.sampler, plan.seed)
    done = _finished(study)
    progress.stage("trials", plan.trials)
    progress.advance(min(done, plan.trials))
    while done < plan.trials and time.monotonic() < plan.deadline:
        attempts = _ask(study, plan, min(plan.batch, plan.trials - done))
        if not attempts:
            break
        try:
            _run(attempts, plan, study)
        except OutOfTimeError:
            for attempt in attempts:
                study.tell(attempt.trial, state=TrialState.FAIL)
            break
        for attempt in attempts:
            _tell(study, attempt, plan)
        now = _finished(study)
        progress.advance(now - done)
        done = now
    _refuse_failure(study)


def best_trial(trials: Sequence[Any], sign: int) -> Any:
    """Return the trial with the best mean over all folds, the first of equals.

    Parameters
    ----------
    trials
        Finished trials.
    sign
        1 if more is better, else -1.

    Raises
    ------
    HeadError
        If none was scored on all folds.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise HeadError("no trial was finished before the time was over; raise --timeout")
    return max(complete, key=lambda trial: (sign * trial.value, -trial.number))


def candidate_of(trial: Any, space: Space) -> Candidate:
    """Return what a finished trial chose."""
    return space.suggest(_Replay(trial))


class _Replay:
    """A finished trial that answers as it did."""

    def __init__(self, trial: Any) -> None:
        self.user_attrs: dict[str, Any] = trial.user_attrs
        self._params = trial.params

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:  # noqa: ARG002
        return self._params[name]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:  # noqa: ARG002
        return int(self._params[name])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:  # noqa: ARG002
        return float(self._params[name])


def _finished(study: Any) -> int:
    return len(study.get_trials(deepcopy=False, states=FINISHED))


def _ask(study: Any, plan: Plan, count: int) -> list[_Attempt]:
    """Return new trials; none if a grid has no points left."""
    attempts = []
    for _ in range(count):
        waiting = study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if plan.sampler == "grid" and not waiting:
            break
        trial = study.ask()
        attempts.append(_Attempt(trial, plan.space.suggest(trial)))
    return attempts


def _run(attempts: Sequence[_Attempt], plan: Plan, study: Any) -> None:
    """Score a batch on the inner folds."""
    known = {
        candidate_of(trial, plan.space).key: trial.user_attrs["scores"]
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    }
    running = [attempt for attempt in attempts if attempt.candidate.key not in known]
    for attempt in attempts:
        attempt.scores.extend(known.get(attempt.candidate.key, []))
    for rung in plan.rungs():
        if rung[0]:
            running = _better_half(running, plan.sign)
        _score(running, rung, plan)
        running = [attempt for attempt in running if not attempt.reason]


def _better_half(attempts: list[_Attempt], sign: int) -> list[_Attempt]:
    """Return the attempts that go on: the better half, and the defaults, which the best is compared with."""
    ranked = sorted(attempts, key=lambda attempt: -sign * attempt.value)
    half = ranked[: -(-len(ranked) // 2)]
    return [attempt for attempt in attempts if attempt in half or attempt.trial.user_attrs.get(DEFAULT)]


def _score(attempts: Sequence[_Attempt], folds: Sequence[int], plan: Plan) -> None:
    """Fit the heads of some trials on some folds, and add their scores to the trials."""
    views: dict[View, list[_Attempt]] = {}
    for attempt in attempts:
        views.setdefault(attempt.candidate.view, []).append(attempt)
    for view, members in views.items():
        data = plan.views.of(view)
        where = [(attempt, plan.folds[k]) for attempt in members for k in folds]
        made: list[Job] = []
        kept: list[tuple[_Attempt, InnerFold]] = []
        for attempt, fold in where:
            try:
                made.append(Job(trial_head(attempt.candidate, data.task.kind, plan.seed), fold.fit))
                kept.append((attempt, fold))
            except HeadError as error:
                attempt.reason = str(error)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HeadWarning)  # kept as notes of the trial
            fitted = fit_on(data, made)
            for (attempt, fold), head in zip(kept, fitted, strict=True):
                if isinstance(head, HeadError):
                    attempt.reason = attempt.reason or str(head)
                else:
                    attempt.notes.extend(note for note in head.notes_ if note not in attempt.notes)
                    attempt.scores.append(_metric(head, data, fold, plan))
                if time.monotonic() > plan.deadline:
                    raise OutOfTimeError


def trial_head(candidate: Candidate, kind: Kind, seed: int) -> Head:
    """Return the unfitted head of a trial; one that averages members has `MEMBERS`, unless told how many."""
    params = dict(candidate.params)
    if "members" in head_class(candidate.head, kind)._get_param_names():
        params.setdefault("members", MEMBERS)
    return make_head(candidate.head, kind, params, seed)


def _metric(head: Head, data: Labelled, fold: InnerFold, plan: Plan) -> float:
    """Return the metric of a fitted head on the held-out rows of a fold; NaN where it is not defined."""
    found = evaluate(
        data.task.kind,
        data.y[fold.score],
        scores_of(head, data.X[fold.score], data.task),
        classes=data.task.classes or data.task.targets,
        n_boot=0,
        min_positives=plan.min_positives,
    )
    value = estimates(found)[plan.metric]["value"]
    return float("nan") if value is None else value


def _tell(study: Any, attempt: _Attempt, plan: Plan) -> None:
    """Hand a trial's scores to the study."""
    if not attempt.reason and np.isnan(attempt.value):
        attempt.reason = f"{plan.metric} is not defined on any inner fold that was scored"
    trial = attempt.trial
    if attempt.notes:
        trial.set_user_attr("notes", attempt.notes)
    if attempt.reason:
        trial.set_user_attr("reason", attempt.reason)
        study.tell(trial, state=TrialState.PRUNED)
        return
    trial.set_user_attr("scores", attempt.scores)
    for fold in range(len(attempt.scores)):
        mean = _mean(attempt.scores[: fold + 1])
        if not np.isnan(mean):
            trial.report(mean, step=fold + 1)
    if len(attempt.scores) == len(plan.folds):
        study.tell(trial, attempt.value)
    else:
        study.tell(trial, state=TrialState.PRUNED)


def _mean(scores: Sequence[float]) -> float:
    """Return the mean over the folds where the metric is defined."""
    known = [score for score in scores if not np.isnan(score)]
    return float(np.mean(known)) if known else float("nan")


def _refuse_failure(study: Any) -> None:
    """Refuse a study in which no head could be fitted at all."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    reasons = [trial.user_attrs.get("reason") for trial in trials]
    if trials and all(reasons):
        raise HeadError(f"all {len(trials)} trials failed; the first: {reasons[0]}")
