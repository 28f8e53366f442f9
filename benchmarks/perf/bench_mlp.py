"""Many small networks at once against loops that train one after another (H8, H8b, H8c).

``python benchmarks/perf/bench_mlp.py [--rounds N] [--case NAME ...] [--small] [--real STORE] [--json]``

batched
    `heads.batched.train_many`: all folds and configurations in one call, on one core.
tensor loop
    A `torch.nn.Sequential` and `torch.optim.AdamW` per model, one after another; batches are indexed from tensors.
DataLoader loop
    The same, with batches from a `torch.utils.data.DataLoader`.

Every network is linear, batch norm, ReLU, dropout, linear; its features get Gaussian noise in training. 5 folds x
16 configurations (learning rate x dropout x weight decay) are trained. A loop's time is that of so many models, so it
trains only some, dealt over folds and configurations, and its time is multiplied by all / some; the lines say how
many. The clock is the CPU time of one pinned core. A Lightning loop is not run: the package is no dependency of this
one, and a plain re-implementation of its trainer would prove nothing about it.

Parity: models are bit-identical however they are grouped, and their held-out accuracy differs from that of the tensor
loops, each of a seed of its own, by no more than two standard errors. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from _embeddings import Embeddings, add_options, deal, grouped_folds, one_thread, real, spread, synthetic, why_not
from _race import Result, race, report, times_faster
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from heads.batched import logits_of, train_many
from heads.training.perceptron import Perceptron
from heads.training.plan import Fold, Recipe, Regime, TrainedModel

FOLDS = 5
NOISE = 0.1
CONFIGURATIONS = list(itertools.product((3e-4, 1e-3, 3e-3, 1e-2), (0.2, 0.5), (1e-4, 1e-2)))
"""Learning rate, dropout, weight decay."""

Loop = Callable[[int, int, int], nn.Module]
"""Trains one model, of a fold, a configuration and a seed."""


@dataclass(frozen=True)
class Case:
    """One data set and size of network.

    Attributes
    ----------
    make
        Returns the data.
    hidden, batch_size, epochs
        The network and its training.
    alone
        How many of the 80 models the loops train.
    tensors, loader
        How many times faster than each loop at least; None for no target.
    folds
        How many of the folds are trained.
    rounds
        By default.
    reason
        Why a target may be missed.
    """

    make: Callable[[], Embeddings]
    hidden: int
    batch_size: int
    epochs: int
    alone: int = 8
    tensors: float | None = None
    loader: float | None = None
    folds: int = FOLDS
    rounds: int = 3
    reason: str = ""


WIDE = "1,280 columns: the products of the first layer, which both sides need, are most of a step"
PRODUCTS = "most of a step is products that both sides need, and less of it what a loop adds"
CASES = {
    "N=10k": Case(partial(synthetic, 10_000, classes=10), 256, 256, 2, tensors=2, loader=2.8, reason=PRODUCTS),
    "small heads": Case(
        partial(synthetic, 2_000, classes=10), 64, 32, 4, alone=16, tensors=5, loader=7, reason=PRODUCTS
    ),
    "N=100k": Case(partial(synthetic, 100_000, classes=10), 256, 256, 1, alone=2, folds=1, rounds=1),
}
REAL = {
    "brain_mri": Case(partial(real, "brain_mri"), 256, 256, 4, tensors=2, loader=2.8, rounds=1, reason=WIDE),
    "rt_polarity": Case(partial(real, "rt_polarity"), 256, 256, 2, tensors=2, loader=2.8, rounds=1, reason=PRODUCTS),
    "nih_cxr_multilabel": Case(
        partial(real, "nih_cxr_multilabel"), 256, 256, 4, tensors=2, loader=2.8, rounds=1, reason=WIDE
    ),
}


class Contest:
    """The contestants on one case."""

    def __init__(self, case: Case, data: Embeddings) -> None:
        self.case, self.data = case, data
        synthetic_rows = data.name.startswith("synthetic")
        self.fold = deal(len(data.X), FOLDS) if synthetic_rows else grouped_folds(data, FOLDS)
        self.classes = data.y.shape[1] if data.y.ndim == 2 else int(data.y.max()) + 1
        self.models = [(k, c) for k in range(case.folds) for c in range(len(CONFIGURATIONS))]
        # One in so many, so that all folds and configurations have their turn.
        self.chosen = self.models[:: len(self.models) // case.alone][: case.alone]
        self.X = torch.from_numpy(data.X)
        self.y = torch.from_numpy(data.y)
        self.loss = nn.functional.cross_entropy if data.y.ndim == 1 else _masked_loss
        self.trained: list[TrainedModel] = []
        self.scores: list[float] = []

    def batched(self) -> None:
        """Train all models."""
        self.trained = self.train(self.models)

    def train(self, models: list[tuple[int, int]]) -> list[TrainedModel]:
        """Train some models by the batched loop."""
        folds = [
            Fold(
                train=np.flatnonzero(self.fold != k),
                shift=self._of_training(k).mean(axis=0),
                scale=spread(self._of_training(k)),
                number=k,
            )
            for k in range(self.case.folds)
        ]
        recipes = []
        for k, c in models:
            lr, dropout, decay = CONFIGURATIONS[c]
            recipes.append(Recipe(fold=k, lr=lr, dropout=dropout, weight_decay=decay, input_noise=NOISE))
        regime = Regime(
            loss="cross_entropy" if self.data.y.ndim == 1 else "binary_cross_entropy",
            batch_size=self.case.batch_size,
            max_epochs=self.case.epochs,
            schedule="constant",
        )
        trained = train_many(
            self._architecture(), self.data.X, self.data.y, folds=folds, recipes=recipes, regime=regime, workers=1
        )
        return [model for model in trained if isinstance(model, TrainedModel)]

    def loop(self, batches: Callable[[Tensor, Tensor, int], Iterator[tuple[Tensor, ...]]]) -> None:
        """Train the chosen models one after another, each with a seed of its own."""
        self.scores = []
        for seed, (k, c) in enumerate(self.chosen):
            torch.manual_seed(seed)
            lr, dropout, decay = CONFIGURATIONS[c]
            rows = torch.from_numpy(np.flatnonzero(self.fold != k))
            shift, scale = self.X[rows].mean(dim=0), torch.from_numpy(spread(self._of_training(k)))
            X, y = (self.X[rows] - shift) / scale, self.y[rows]
            network = nn.Sequential(
                nn.Linear(X.shape[1], self.case.hidden),
                nn.BatchNorm1d(self.case.hidden),
                nn.ReLU(),
                nn.Dropout(dropout),
                nn.Linear(self.case.hidden, self.classes),
            )
            optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=decay)
            for _ in range(self.case.epochs):
                for x, target in batches(X, y, self.case.batch_size):
                    if len(x) == 1:
                        continue  # torch's batch norm refuses a batch of one
                    optimizer.zero_grad()
                    self.loss(network(x + NOISE * torch.randn_like(x)), target).backward()
                    optimizer.step()
            network.eval()
            with torch.no_grad():
                held = torch.from_numpy(np.flatnonzero(self.fold == k))
                self.scores.append(self._score(network((self.X[held] - shift) / scale).numpy(), k))

    def accuracies(self) -> tuple[list[float], list[float]]:
        """Return the held-out accuracy of the chosen models: the batched ones', and those of the last loop."""
        ours = []
        for k, c in self.chosen:
            state = self.trained[self.models.index((k, c))].state
            train = self._of_training(k)
            held = (self.data.X[self.fold == k] - train.mean(axis=0)) / spread(train)
            ours.append(
                self._score(logits_of(self._architecture(), {n: v[None] for n, v in state.items()}, held)[0], k)
            )
        return ours, self.scores

    def largest_difference(self) -> float:
        """Return the largest difference between weights of two chosen models trained together and each alone."""
        worst = 0.0
        for place in self.chosen[:2]:
            (alone,) = self.train([place])
            together = self.trained[self.models.index(place)].state
            worst = max(worst, *(float(np.abs(alone.state[name] - value).max()) for name, value in together.items()))
        return worst

    def _architecture(self) -> Perceptron:
        return Perceptron(inputs=self.data.X.shape[1], outputs=self.classes, hidden=(self.case.hidden,), norm="batch")

    def _of_training(self, k: int) -> NDArray[np.float32]:
        return self.data.X[self.fold != k]

    def _score(self, logits: NDArray[Any], k: int) -> float:
        y = self.data.y[self.fold == k]
        if y.ndim == 1:
            return float((logits.argmax(axis=1) == y).mean())
        known = ~np.isnan(y)
        return float(((logits > 0) == y)[known].mean())


def _masked_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean binary cross-entropy over the labels that are there."""
    known = ~target.isnan()
    return nn.functional.binary_cross_entropy_with_logits(logits[known], target[known].float())


def from_tensors(X: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches in a random order, indexed from tensors."""
    for rows in torch.randperm(len(X)).split(size):
        yield X[rows], y[rows]


def from_loader(X: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield batches in a random order from a DataLoader."""
    yield from DataLoader(TensorDataset(X, y), batch_size=size, shuffle=True)


def measure(name: str, case: Case, data: Embeddings, rounds: int | None) -> tuple[str, list[Result]]:
    """Run one case; return what it is and its lines."""
    contest, rounds = Contest(case, data), rounds or case.rounds
    contest.train(contest.models[:1])  # a first pass that is not timed
    contestants = {
        "batched": contest.batched,
        "loader": partial(contest.loop, from_loader),
        "tensors": partial(contest.loop, from_tensors),
    }
    laps = race(contestants, rounds)
    share = len(contest.models) / len(contest.chosen)
    ours, theirs = contest.accuracies()
    results = [
        Result(
            f"{name}: batched against a {what} loop",
            share * times_faster(laps["batched"], laps[key], "cpu"),
            "x",
            target,
            True,
            case.reason,
        )
        for key, what, target in (("tensors", "tensor", case.tensors), ("loader", "DataLoader", case.loader))
    ]
    difference = np.array(ours) - theirs
    results.append(Result("  together and alone, weights", contest.largest_difference(), "", 0.0))
    if len(difference) > 2:
        error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
        results.append(Result("  accuracy, loop's less ours", -float(difference.mean()), "", 2 * error))
    steps = case.epochs * -(-int((contest.fold != 0).sum()) // case.batch_size) * len(contest.models)
    seconds = statistics.median(each.cpu for each in laps["batched"])
    results.append(Result("  ms per model and step", seconds / steps * 1e3, "ms"))
    what = f"{len(contest.models)} models of {data.X.shape[1]}-{case.hidden}-{contest.classes}, {case.epochs} epochs"
    return f"{data.name}: {what}, loops {len(contest.chosen)} of them, {rounds} rounds", results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--case", nargs="+", choices=[*CASES, *REAL], help="run only these")
    parser.add_argument("--small", action="store_true", help="one round, and N=100k left out")
    options = parser.parse_args()
    one_thread()
    cases = {name: (case, case.make) for name, case in CASES.items() if not (options.small and name == "N=100k")}
    if options.real:
        if reason := why_not(options):
            print(f"real embeddings are left out: {reason}", file=sys.stderr)
        else:
            cases |= {name: (case, partial(case.make, options.real, options.datasets)) for name, case in REAL.items()}
    titles, results = [], []
    for name, (case, make) in cases.items():
        if options.case is None or name in options.case:
            title, lines = measure(name, case, make(), options.rounds or (1 if options.small else None))
            titles.append(title)
            results += lines
    return report("Perceptrons; " + "; ".join(titles), {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
