"""An afternoon's work, end to end: a penalty path of a linear probe, then a search of a perceptron's parameters.

``python benchmarks/perf/bench_composite.py [--rounds N] [--trials N] [--real STORE] [--json]``

ours
    The linear head for 5 folds x 10 penalties in one call of `heads.many.fit_many`, then `heads.tuning.search`:
    48 trials in batches of 16, half of each batch dropped after the first fold and half of the rest after the
    second, the folds of all trials fitted together.
theirs
    `sklearn.linear_model.LogisticRegression` for every fold and penalty, then Optuna's TPE, one trial after the
    other, each of its folds trained by a loop over a `torch.utils.data.DataLoader`: 48 trials, all folds of each.

Both standardise by the training rows, take the same folds, and search the same parameters of the same
perceptron (one hidden layer with layer norm, ReLU and dropout; AdamW, cosine with warm-up) over as many epochs.
Both choose by the mean negative log-likelihood over the inner folds; the best of each is fitted on all training
rows by its own means and judged on test rows, which is not timed. The clock is the CPU time of one pinned core.
Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import optuna
import torch
from _embeddings import Embeddings, add_options, one_thread, real, synthetic, why_not
from _race import Result, race, report, times_faster
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, log_loss
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from data.progress import Silent
from data.split import holdout
from data.task import Task
from heads.catalog import make_head
from heads.context import Context
from heads.evaluation.scoring import class_probabilities, scores_of
from heads.many import Job, fit_many
from heads.search_space import Choice, Range
from heads.training.course import schedule_factor
from heads.tuning.rows import InnerFold, inner_folds
from heads.tuning.search import Plan, best_trial, candidate_of, search, trial_head
from heads.tuning.space import Space

PENALTIES = np.logspace(-5, 1, 10)
PROBE_FOLDS, FOLDS, EPOCHS, BATCH = 5, 3, 27, 128
HIDDEN = (64, 256)
SPACE = {
    "hidden": Choice(tuple((width,) for width in HIDDEN)),
    "dropout": Range(0.0, 0.7),
    "lr": Range(1e-4, 1e-2, log=True),
    "weight_decay": Range(1e-4, 1.0, log=True),
}
FIXED = {"max_epochs": EPOCHS, "patience": EPOCHS, "batch_size": BATCH, "members": 1, "validation_fraction": 0.0}
LARGEST_LOSS = 0.01
"""By which the accuracy of our best probe may be lower, and the negative log-likelihood of our search higher."""
REASONS = {
    "synthetic": "halving leaves 7 of 12 fits, and a batch of trials makes each 2 to 3 times cheaper: 4 to 5 in all",
    "brain_mri": "1,280 columns: the products of the first layer, which both sides need, are most of a step",
}


class Contest:
    """Both ways of doing the same work."""

    def __init__(self, data: Embeddings, trials: int) -> None:
        self.data, self.trials = data, trials
        self.kind = "binary" if data.y.max() == 1 else "multiclass"
        self.classes = int(data.y.max()) + 1
        self.task = Task(kind=self.kind, targets=("y",), classes=tuple(f"c{c}" for c in range(self.classes)))
        self.test = np.flatnonzero(holdout(data.y, self.kind, data.groups, 0.25, seed=0))
        self.training = np.setdiff1d(np.arange(len(data.y)), self.test)
        self.view: Any = SimpleNamespace(
            X=data.X,
            y=data.y,
            groups=data.groups,
            task=self.task,
            context=Context(),
            rows=lambda _split: self.training,
        )
        self.probe_folds = inner_folds(self.view, PROBE_FOLDS, seed=0)
        self.folds = inner_folds(self.view, FOLDS, seed=0)
        self.best: dict[str, Any] = {}
        self.probe: dict[str, float] = {}
        self.inner: dict[str, float] = {}

    # ours

    def ours(self) -> None:
        """Do the work with Frostline."""
        self._our_probe()
        space = Space(
            heads={"mlp": SPACE},
            fixed={"mlp": FIXED},
            narrowed=frozenset({"mlp"}),
            encoders=("e",),
            poolings=(None,),
            normalizations=("none",),
        )
        plan = Plan(
            space=space,
            views=SimpleNamespace(of=lambda _view: self.view),  # type: ignore[arg-type]
            folds=self.folds,
            metric="log_loss",
            trials=self.trials,
            deadline=math.inf,
            batch=16,
            sampler="tpe",
            prune=True,
            seed=0,
            min_positives=1,
        )
        study = optuna.create_study(direction="minimize")
        search(study, plan, Silent())
        best = best_trial(study.get_trials(deepcopy=False), plan.sign)
        self.best["ours"], self.inner["ours"] = candidate_of(best, space), best.value

    def _our_probe(self) -> None:
        jobs = [
            Job(make_head("linear", self.kind, {"C": float(C)}, 0), fold.fit)
            for C in PENALTIES
            for fold in self.probe_folds
        ]
        scores = np.empty((len(PENALTIES), len(self.probe_folds)))
        for place, head in enumerate(fit_many(jobs, self.data.X, self.data.y, groups=self.data.groups)):
            rows = self.probe_folds[place % len(self.probe_folds)].score
            scores.flat[place] = (head.predict(self.data.X[rows]) == self.data.y[rows]).mean()  # type: ignore[union-attr]
        self.probe["ours"] = float(scores.mean(axis=1).max())

    def our_test(self) -> float:
        """Return the test value of our best configuration."""
        job = Job(trial_head(self.best["ours"], self.kind, 0), self.training)
        (head,) = fit_many([job], self.data.X, self.data.y)
        scores = scores_of(head, self.data.X[self.test], self.task)  # type: ignore[arg-type]
        return _nll(self.data.y[self.test], class_probabilities(scores, self.task))

    # theirs

    def theirs(self) -> None:
        """Do the work with loops."""
        scores = np.empty((len(PENALTIES), len(self.probe_folds)))
        for k, fold in enumerate(self.probe_folds):
            scaler = StandardScaler().fit(self.data.X[fold.fit])
            X, held = scaler.transform(self.data.X[fold.fit]), scaler.transform(self.data.X[fold.score])
            for i, C in enumerate(PENALTIES):
                model = LogisticRegression(C=C, max_iter=1000).fit(X, self.data.y[fold.fit])
                scores[i, k] = accuracy_score(self.data.y[fold.score], model.predict(held))
        self.probe["theirs"] = float(scores.mean(axis=1).max())
        study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
        study.optimize(self._objective, n_trials=self.trials)
        self.best["theirs"], self.inner["theirs"] = study.best_params, study.best_value

    def _objective(self, trial: Any) -> float:
        params = {
            "hidden": trial.suggest_categorical("hidden", HIDDEN),
            "dropout": trial.suggest_float("dropout", 0.0, 0.7),
            "lr": trial.suggest_float("lr", 1e-4, 1e-2, log=True),
            "weight_decay": trial.suggest_float("weight_decay", 1e-4, 1.0, log=True),
        }
        return statistics.mean(self._train(params, fold) for fold in self.folds)

    def _train(self, params: dict[str, Any], fold: InnerFold) -> float:
        """Train a perceptron as PyTorch's tutorials do; return its loss on the held-out rows."""
        torch.manual_seed(0)
        scaler = StandardScaler().fit(self.data.X[fold.fit])
        X, y = torch.from_numpy(scaler.transform(self.data.X[fold.fit])), torch.from_numpy(self.data.y[fold.fit])
        loader = DataLoader(TensorDataset(X, y), batch_size=BATCH, shuffle=True)
        hidden = params["hidden"]
        model = nn.Sequential(
            nn.Linear(X.shape[1], hidden),
            nn.LayerNorm(hidden),
            nn.ReLU(),
            nn.Dropout(params["dropout"]),
            nn.Linear(hidden, self.classes),
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=params["lr"], weight_decay=params["weight_decay"])
        steps = EPOCHS * len(loader)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: schedule_factor("cosine", step, steps, 0.1)
        )
        loss_of = nn.CrossEntropyLoss()
        for _ in range(EPOCHS):
            for inputs, labels in loader:
                optimizer.zero_grad()
                loss_of(model(inputs), labels).backward()
                optimizer.step()
                schedule.step()
        model.eval()
        with torch.inference_mode():
            logits = model(torch.from_numpy(scaler.transform(self.data.X[fold.score])))
        return _nll(self.data.y[fold.score], logits.double().softmax(dim=1).numpy())

    def their_test(self) -> float:
        """Return the test value of their best configuration."""
        return self._train(self.best["theirs"], InnerFold(self.training, self.test))


def _nll(y: NDArray[Any], probability: NDArray[Any]) -> float:
    return float(log_loss(y, probability.astype(np.float64), labels=np.arange(probability.shape[1])))


def measure(data: Embeddings, trials: int, rounds: int) -> list[Result]:
    """Run both sides on one data set; return the lines."""
    contest = Contest(data, trials)
    laps = race({"ours": contest.ours, "theirs": contest.theirs}, rounds)
    ours, theirs = contest.our_test(), contest.their_test()
    probe = contest.probe["theirs"] - contest.probe["ours"]
    inner = contest.inner["ours"] - contest.inner["theirs"]
    reason = next(reason for name, reason in REASONS.items() if data.name.startswith(name))
    return [
        Result(
            f"{data.name}: against loops", times_faster(laps["ours"], laps["theirs"], "cpu"), "x", 6.0, True, reason
        ),
        Result("  seconds, ours", statistics.median(each.cpu for each in laps["ours"]), "s"),
        Result("  seconds, theirs", statistics.median(each.cpu for each in laps["theirs"]), "s"),
        Result("  accuracy of the best probe: theirs less ours", probe, "", LARGEST_LOSS),
        Result("  inner nll of the best trial: ours less theirs", inner, "", LARGEST_LOSS),
        Result("  test nll, ours", ours, ""),
        Result("  test nll, theirs", theirs, ""),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=1)
    parser.add_argument("--trials", type=int, default=48)
    options = parser.parse_args()
    one_thread()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", ConvergenceWarning)
    sets = [synthetic(2000, 256, 4)]
    if options.real:
        if reason := why_not(options):
            print(f"real embeddings are left out: {reason}", file=sys.stderr)
        else:
            sets.append(real("brain_mri", options.real, Path(options.datasets)))
    results = [line for data in sets for line in measure(data, options.trials, options.rounds)]
    title = (
        f"{PROBE_FOLDS} folds x {len(PENALTIES)} penalties of a linear probe, and {options.trials} trials x {FOLDS} "
        f"folds x {EPOCHS} epochs of a perceptron; {options.rounds} rounds"
    )
    return report(title, {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
