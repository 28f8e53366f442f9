"""A grid of linear probes that differ in the learning rate, against a loop over a ModuleDict of them (H9).

``python benchmarks/perf/bench_lr_grid.py [--rounds N] [--small] [--real STORE] [--json]``

together
    `heads.training.probes.train_probes`: the probes are columns of one matrix, one product per step for all.
loop
    The way of DINOv2's linear evaluation: a `torch.nn.ModuleDict` of `torch.nn.Linear`, the losses summed, one
    `torch.optim.SGD` with a group of parameters per probe.

Both train 13 probes by SGD with a momentum of 0.9 and no decay, from zeros, and take the same batches of 128. The
clock is the CPU time of one pinned core. Parity: the largest difference of a weight, relative to the largest weight of
the probe. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from _embeddings import Embeddings, add_options, one_thread, real, spread, synthetic, why_not
from _race import Result, race, report, times_faster
from torch import nn

from heads.training.draws import generator_of
from heads.training.probes import Plan, Probe, Rows, TrainedProbes, train_probes

RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
BATCH = 128
REASON = (
    "two products, one softmax and one pass over weights and momentum per step, which both sides need, are what is left"
)


class Contest:
    """The contestants on one data set."""

    def __init__(self, data: Embeddings, epochs: int) -> None:
        self.X = ((data.X - data.X.mean(axis=0)) / spread(data.X)).astype(np.float32)
        self.y, self.classes, self.epochs = data.y, int(data.y.max()) + 1, epochs
        self.trained: TrainedProbes
        self.modules = nn.ModuleDict()

    def together(self) -> None:
        """Train the probes as columns of one matrix."""
        n, count = len(self.X), len(RATES)
        rows = Rows(
            X=self.X,
            y=np.repeat(self.y[:, None], count, axis=1).astype(np.float32),
            weight=np.ones((n, count), dtype=np.float32),
            train=np.arange(n),
            monitor=np.arange(0),
        )
        probes = [
            Probe(name=str(rate), loss="cross_entropy", outputs=self.classes, lr=rate, weight_decay=0.0)
            for rate in RATES
        ]
        plan = Plan(batch_size=BATCH, max_epochs=self.epochs, schedule="constant", optimizer="sgd")
        self.trained = train_probes(probes, rows, plan)

    def loop(self) -> None:
        """Train a ModuleDict."""
        X, y = torch.from_numpy(self.X), torch.from_numpy(self.y)
        self.modules = nn.ModuleDict({str(k): nn.Linear(X.shape[1], self.classes) for k in range(len(RATES))})
        for parameter in self.modules.parameters():
            nn.init.zeros_(parameter)
        groups = [{"params": self.modules[str(k)].parameters(), "lr": rate} for k, rate in enumerate(RATES)]
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        n, steps = len(X), -(-len(X) // BATCH)
        for epoch in range(self.epochs):
            order = torch.randperm(n, generator=generator_of(0, 0, "order", epoch))
            for a, b in pairwise(n * k // steps for k in range(steps + 1)):
                batch = order[a:b]
                x, target = X[batch], y[batch]
                outputs = {name: module(x) for name, module in self.modules.items()}
                losses = [nn.functional.cross_entropy(output, target) for output in outputs.values()]
                optimizer.zero_grad()
                torch.stack(losses).sum().backward()
                optimizer.step()

    def largest_difference(self) -> float:
        """Return the largest difference of a weight, relative to the largest one of its probe."""
        worst = 0.0
        for k, ours in enumerate(np.split(self.trained.weight, len(RATES))):
            theirs = self.modules[str(k)].weight.detach().numpy()
            worst = max(worst, float(np.abs(ours - theirs).max() / np.abs(theirs).max()))
        return worst


def measure(data: Embeddings, target: float, epochs: int, rounds: int) -> tuple[str, list[Result]]:
    """Run one data set; return what it is and its lines."""
    contest = Contest(data, epochs)
    contest.together()  # a first pass of each that is not timed
    contest.loop()
    laps = race({"together": contest.together, "loop": contest.loop}, rounds)
    faster = times_faster(laps["together"], laps["loop"], "cpu")
    results = [
        Result(f"{contest.classes} classes: together against a ModuleDict", faster, "x", target, True, REASON),
        Result("  weights, largest difference", contest.largest_difference(), "relative", 1e-5),
    ]
    return f"{data.name}: {epochs} epochs, {rounds} rounds", results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=5)
    parser.add_argument("--small", action="store_true", help="two rounds of one epoch")
    options = parser.parse_args()
    one_thread()
    rounds, epochs = (2, 1) if options.small else (options.rounds, 4)
    makes: list[tuple[Callable[[], Embeddings], float]] = [
        (partial(synthetic, 5_000, classes=10), 4),
        (partial(synthetic, 5_000, classes=100), 1.8),
    ]
    if options.real:
        if reason := why_not(options):
            print(f"real embeddings are left out: {reason}", file=sys.stderr)
        else:
            stored = partial(real, store=options.real, datasets=Path(options.datasets))
            makes += [(partial(stored, name), 4) for name in ("brain_mri", "rt_polarity")]
    titles, results = [], []
    for make, target in makes:
        title, lines = measure(make(), target, epochs, rounds)
        titles.append(title)
        results += lines
    title = f"{len(RATES)} linear probes by SGD, batches of {BATCH}; " + "; ".join(titles)
    return report(title, {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
