"""Boosted trees, trials x folds: bins shared by the trials, against scikit-learn's loop over LGBMClassifier.

``python benchmarks/perf/bench_gbm.py [--rounds N] [--folds N] [--trials N] [--trees N] [--case NAME ...] [--real STORE]
[--json]``

together
    `heads.many.fit_many` on `GBMClassifier`, as ``tune --head gbm`` fits trials: the rows of a fold are binned once,
    in 63 bins per feature, for all trials.
loop
    `lightgbm.LGBMClassifier` for every trial and fold, which bins anew, in its 255 bins.

Trials are drawn from the head's own search space. Both sides of a trial have the same rate, leaves, penalty, share of
features and number of trees, learn from all rows of the fold and do not stop early, so that the work is the same;
with more trees bins matter less. The clock is the CPU time of one pinned core. Some cases hold out fewer of the five
folds by default, on both sides alike. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from _embeddings import Embeddings, add_options, deal, first_folds, grouped_folds, one_thread, real, synthetic, why_not
from _race import Result, race, report, times_faster
from lightgbm import LGBMClassifier
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from heads.errors import HeadError
from heads.estimators.gbm import GBMClassifier
from heads.many import Job, fit_many
from heads.search_space import Range

FOLDS = 5
TREES = 40
NAMES = {
    "learning_rate": "learning_rate",
    "num_leaves": "num_leaves",
    "min_leaf": "min_child_samples",
    "l2": "reg_lambda",
    "feature_fraction": "colsample_bytree",
}
"""Parameters of the head, and what LightGBM's estimator calls them."""


@dataclass(frozen=True)
class Case:
    """One data set, how often faster at least, what is run of it by default, and why the target may be missed."""

    make: Callable[[], Embeddings]
    target: float
    folds: int
    trials: int
    reason: str = ""


CASES = {"binary": Case(partial(synthetic, 5_000), 3, 5, 20)}
REAL = {"rt_polarity": (1, 20), "brain_mri": (1, 5)}
"""Folds and trials of the public data sets."""
COARSE = "63 bins per feature for 255: other trees, and the best of a few trials on one fold of 360 rows"
REASONS = {"brain_mri": "four classes: four trees to grow per round, for the same bins to save"}


def draw(trials: int) -> list[dict[str, Any]]:
    """Return points of the head's search space, always the same ones."""
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(trials):
        point: dict[str, Any] = {}
        for name, bounds in GBMClassifier.search_space().items():
            assert isinstance(bounds, Range)
            value = float(np.exp(rng.uniform(np.log(bounds.low), np.log(bounds.high))))
            point[name] = round(value) if isinstance(bounds.low, int) else value
        drawn.append(point)
    return drawn


class Contest:
    """The contestants on one case."""

    def __init__(self, case: Case, folds: int, trials: int, trees: int) -> None:
        self.data, self.run, self.trials, self.trees = case.make(), folds, draw(trials), trees
        made = self.data.name.startswith("synthetic")
        fold = deal(len(self.data.X), FOLDS) if made else grouped_folds(self.data, FOLDS)
        self.fold = first_folds(fold, folds)
        self.scores: dict[str, NDArray[np.float64]] = {}

    def together(self) -> None:
        """Fit all trials and folds in one go."""
        fixed: dict[str, Any] = {"max_rounds": self.trees, "members": 1, "validation_fraction": 0.0}
        jobs = [
            Job(GBMClassifier(**trial, **fixed), np.flatnonzero(self.fold != k))
            for trial in self.trials
            for k in range(self.run)
        ]
        heads = fit_many(jobs, self.data.X, self.data.y, groups=self.data.groups)
        scores = []
        for place, head in enumerate(heads):
            if isinstance(head, HeadError):
                raise head
            scores.append(self._score(head, place % self.run))
        self.scores["together"] = np.reshape(scores, (len(self.trials), self.run))

    def loop(self) -> None:
        """Fit every trial on every fold by itself."""
        scores = []
        for trial in self.trials:
            params = {NAMES[name]: value for name, value in trial.items()}
            for k in range(self.run):
                model = LGBMClassifier(n_estimators=self.trees, n_jobs=1, verbosity=-1, random_state=0, **params)
                learned = self.fold != k
                scores.append(self._score(model.fit(self.data.X[learned], self.data.y[learned]), k))
        self.scores["loop"] = np.reshape(scores, (len(self.trials), self.run))

    def _score(self, model: Any, k: int) -> float:
        held = self.fold == k
        probability = np.asarray(model.predict_proba(self.data.X[held]))
        binary = probability.shape[1] == 2
        return float(roc_auc_score(self.data.y[held], probability[:, 1] if binary else probability, multi_class="ovr"))


def measure(name: str, case: Case, options: argparse.Namespace) -> tuple[str, list[Result]]:
    """Run one case; return what it is and its lines."""
    contest = Contest(case, options.folds or case.folds, options.trials or case.trials, options.trees)
    laps = race({"together": contest.together, "loop": contest.loop}, options.rounds)
    best = {side: float(scores.mean(axis=1).max()) for side, scores in contest.scores.items()}
    results = [
        Result(
            f"{name}: shared bins against a loop of LGBMClassifier",
            times_faster(laps["together"], laps["loop"], "cpu"),
            "x",
            case.target,
            True,
            case.reason,
        ),
        Result("  the loop's best ROC-AUC less ours", best["loop"] - best["together"], "", 0.003, reason=COARSE),
        Result("  our best ROC-AUC", best["together"], ""),
        Result("  seconds of all trials together", statistics.median(each.cpu for each in laps["together"]), "s"),
    ]
    return f"{contest.data.name}: {len(contest.trials)} trials, {contest.run} of {FOLDS} folds", results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=1)
    parser.add_argument("--folds", type=int, help="held out of 5, in every case")
    parser.add_argument("--trials", type=int, help="in every case")
    parser.add_argument("--trees", type=int, default=TREES, help="of every fit; default: %(default)s")
    parser.add_argument("--case", nargs="+", choices=[*CASES, *REAL], help="run only these")
    options = parser.parse_args()
    one_thread()
    cases = dict(CASES)
    if options.real:
        if reason := why_not(options):
            print(f"real embeddings are left out: {reason}", file=sys.stderr)
        else:
            for name, (folds, trials) in REAL.items():
                stored = partial(real, name, Path(options.real), Path(options.datasets))
                cases[name] = Case(stored, 3, folds, trials, REASONS.get(name, ""))
    titles, results = [], []
    for name, case in cases.items():
        if options.case is None or name in options.case:
            title, lines = measure(name, case, options)
            titles.append(title)
            results += lines
    title = f"Boosted trees, {options.trees} each, {options.rounds} rounds; " + "; ".join(titles)
    return report(title, {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
