"""A search of a perceptron's parameters: batches of trials with halving, against TPE one trial after the other.

``python benchmarks/perf/bench_hpo.py [--seeds N] [--trials N] [--epochs N] [--real STORE] [--json]``

batched
    `heads.tuning.search`: 48 trials, 16 asked at once and fitted together, half of them dropped after the first
    fold and half of the rest after the second, which leaves 7 of 12 fits.
sequential
    The same search, one trial asked at a time and nothing dropped: 48 trials. The folds of a trial are fitted
    together, as on the other side.

Both choose by the mean negative log-likelihood over 3 inner folds; the best configuration is fitted once more
on all training rows and judged on test rows, which is not timed. The clock is the CPU time of one pinned core.
The target for quality is stated on the mean over seeds, in standard deviations of the sequential side; it needs
several seeds to mean anything, and the full statement is ``--seeds 10 --real STORE``. Exit code 1 if a target is
missed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import optuna
from _embeddings import Embeddings, add_options, one_thread, real, synthetic, why_not
from _race import Lap, Result, lap, report, times_faster

from data.progress import Silent
from data.split import holdout
from data.task import Task
from heads.catalog import head_class
from heads.context import Context
from heads.evaluation.metrics import evaluate
from heads.evaluation.scoring import scores_of
from heads.many import Job, fit_many
from heads.search_space import Choice
from heads.tuning.rows import inner_folds
from heads.tuning.search import Plan, best_trial, candidate_of, search, trial_head
from heads.tuning.space import Space

TRIALS, FOLDS, EPOCHS = 48, 3, 27
BATCH = 16
REASON = "halving leaves 7 of 12 fits, and the folds of a trial are trained together on both sides"
REAL = ("brain_mri", "rt_polarity")
ROWS = 2000
"""Of a real data set at most."""


@dataclass(frozen=True)
class Outcome:
    """What a search found: mean inner and test negative log-likelihood of its best configuration."""

    inner: float
    test: float


class Contest:
    """The two searches on one data set."""

    def __init__(self, data: Embeddings, trials: int, epochs: int) -> None:
        self.name, self.trials = data.name, trials
        kind = "binary" if data.y.max() == 1 else "multiclass"
        self.task = Task(kind=kind, targets=("y",), classes=tuple(f"c{c}" for c in range(int(data.y.max()) + 1)))
        self.data = data
        self.test = holdout(data.y, kind, data.groups, 0.25, seed=0)
        self.training = np.flatnonzero(~self.test)
        self.space = Space(
            heads={"mlp": {**head_class("mlp", kind).search_space(), "hidden": Choice(((64,), (256,)))}},
            fixed={"mlp": {"max_epochs": epochs, "patience": epochs, "members": 1}},
            narrowed=frozenset(),
            encoders=("e",),
            poolings=(None,),
            normalizations=("none",),
        )

    def batched(self, seed: int) -> Outcome:
        """Search in batches, with halving."""
        return self._search(seed, trials=self.trials, batch=BATCH, prune=True)

    def sequential(self, seed: int) -> Outcome:
        """Search one trial after the other."""
        return self._search(seed, trials=TRIALS, batch=1, prune=False)

    def _search(self, seed: int, **settings: Any) -> Outcome:
        view = SimpleNamespace(
            X=self.data.X,
            y=self.data.y,
            groups=self.data.groups,
            task=self.task,
            context=Context(),
            rows=lambda _split: self.training,
        )
        plan = Plan(
            space=self.space,
            views=SimpleNamespace(of=lambda _view: view),  # type: ignore[arg-type]
            folds=inner_folds(view, FOLDS, seed),  # type: ignore[arg-type]
            metric="log_loss",
            deadline=math.inf,
            sampler="tpe",
            seed=seed,
            min_positives=1,
            **settings,
        )
        study = optuna.create_study(direction="minimize")
        search(study, plan, Silent())
        best = best_trial(study.get_trials(deepcopy=False), plan.sign)
        self.candidate, self.seed = candidate_of(best, self.space), seed
        return Outcome(best.value, math.nan)

    def judged(self, outcome: Outcome) -> Outcome:
        """Return the outcome of the last search with its test value."""
        job = Job(trial_head(self.candidate, self.task.kind, self.seed), self.training)
        (head,) = fit_many([job], self.data.X, self.data.y, groups=self.data.groups)
        scores = scores_of(head, self.data.X[self.test], self.task)  # type: ignore[arg-type]
        found = evaluate(self.task.kind, self.data.y[self.test], scores, classes=self.task.classes, n_boot=0)
        return Outcome(outcome.inner, found["log_loss"]["value"])


def measure(contest: Contest, seeds: int) -> list[Result]:
    """Run both searches for some seeds in turn; return the lines."""
    sides: dict[str, Callable[[int], Outcome]] = {"batched": contest.batched, "sequential": contest.sequential}
    laps: dict[str, list[Lap]] = {name: [] for name in sides}
    found: dict[str, list[Outcome]] = {name: [] for name in sides}
    for seed in range(seeds):
        for name, side in sides.items():
            outcomes: list[Outcome] = []
            laps[name].append(lap(lambda side=side, seed=seed, outcomes=outcomes: outcomes.append(side(seed))))
            found[name].append(contest.judged(outcomes[0]))
    share = 1 / times_faster(laps["batched"], laps["sequential"], "cpu")
    inner = {name: [outcome.inner for outcome in each] for name, each in found.items()}
    test = {name: statistics.mean(outcome.test for outcome in each) for name, each in found.items()}
    spread = statistics.stdev(inner["sequential"]) if seeds > 1 else math.nan
    worse = statistics.mean(inner["batched"]) - statistics.mean(inner["sequential"])
    lines = [
        Result(f"{contest.name}: CPU of sequential TPE", share, "share", 0.5, reason=REASON),
        Result("  its seconds", statistics.median(each.cpu for each in laps["sequential"]), "s"),
        Result("  inner nll, batched", statistics.mean(inner["batched"]), ""),
        Result("  inner nll, sequential", statistics.mean(inner["sequential"]), ""),
    ]
    if seeds > 1:
        lines.append(Result("  batched worse by", worse / spread, "sd", 0.5))
    return [*lines, *(Result(f"  test nll, {name}", value, "") for name, value in test.items())]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--trials", type=int, default=TRIALS, help="of the batched side")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    options = parser.parse_args()
    one_thread()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sets = [synthetic(1500, 256, 4)]
    if options.real:
        if reason := why_not(options):
            print(f"real embeddings are left out: {reason}", file=sys.stderr)
        else:
            sets += [_some(real(name, options.real, Path(options.datasets))) for name in REAL]
    results = [line for data in sets for line in measure(Contest(data, options.trials, options.epochs), options.seeds)]
    title = (
        f"Search of a perceptron, {options.epochs} epochs x {FOLDS} folds: {options.trials} trials in batches of "
        f"{BATCH} with halving, against {TRIALS} in sequence; {options.seeds} seeds"
    )
    return report(title, {}, results, samples=1, as_json=options.json)


def _some(data: Embeddings) -> Embeddings:
    """Return at most `ROWS` rows, chosen at random."""
    if len(data.X) <= ROWS:
        return data
    rows = np.sort(np.random.default_rng(0).permutation(len(data.X))[:ROWS])
    return Embeddings(f"{data.name}, {ROWS:,} of them", data.X[rows], data.y[rows], data.groups[rows])


if __name__ == "__main__":
    sys.exit(main())
