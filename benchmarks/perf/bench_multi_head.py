"""90 linear probes on the same rows: the multi_head head, against a loop over modules and against 3 probes.

``python benchmarks/perf/bench_multi_head.py [--rounds N] [--epochs N] [--heads N] [--real STORE] [--json]``

ours
    `heads.estimators.multi_head.MultiHead`: one matrix product per step for all probes.
loop
    A dict of `torch.nn.Linear`, one per probe, a loss each, their sum descended by one
    `torch.optim.AdamW` with a group per probe; rows with a missing target are masked out of that probe's loss.

Both take the same batches and begin with the same weights, so that they end with the same: the largest difference of
a weight is printed. All epochs are run. The clock is the CPU time of one
pinned core. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from _embeddings import Embeddings, add_options, one_thread, real, synthetic, why_not
from _race import Result, race, report, times_faster
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from heads.estimators.multi_head import MultiHead
from heads.training.course import schedule_factor
from heads.training.draws import generator_of

KINDS = ("binary", "multiclass", "regression")
LR, DECAY, BATCH, SEED = 1e-3, 1e-2, 128, 0


class Contest:
    """The contestants on one set of targets of the three kinds in turn."""

    def __init__(self, X: NDArray[np.float32], y: NDArray[np.float64], kinds: list[str], epochs: int) -> None:
        self.X, self.y, self.kinds, self.epochs = X, y, kinds, epochs
        self.names = [f"head.{h}" for h in range(len(kinds))]
        self.head = self.make()
        self.weights: list[tuple[NDArray[Any], NDArray[Any]]] = []

    def make(self) -> MultiHead:
        """Return the unfitted head."""
        settings = {name: {"kind": kind} for name, kind in zip(self.names, self.kinds, strict=True)}
        options: dict[str, Any] = {"lr": LR, "weight_decay": DECAY, "batch_size": BATCH, "random_state": SEED}
        return MultiHead(
            heads=settings, max_epochs=self.epochs, init="xavier", validation_fraction=0.0, huber_delta=1.0, **options
        )

    def ours(self) -> None:
        """Fit all probes at once."""
        self.head = self.make().fit(self.X, self.y)

    def loop(self) -> None:
        """Fit all probes by a loop over their modules."""
        kept = ~np.isnan(self.y).all(axis=1)
        X, y = self.X[kept], self.y[kept]
        mean, scale = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
        scale[scale < 1e-6 * scale.max()] = 1.0  # a feature that never changes
        x = torch.from_numpy(((X - mean) / scale).astype(np.float32))
        targets, known = self._targets(y), torch.from_numpy(~np.isnan(y))
        modules: dict[str, nn.Linear] = {}
        groups: list[dict[str, Any]] = []
        for h, (name, kind) in enumerate(zip(self.names, self.kinds, strict=True)):
            outputs = int(np.nanmax(y[:, h])) + 1 if kind == "multiclass" else 1
            module = nn.Linear(x.shape[1], outputs)
            nn.init.xavier_uniform_(module.weight, generator=generator_of(SEED, 0, f"initial {name}"))
            nn.init.zeros_(module.bias)
            modules[name.replace(".", "_")] = module
            groups.append({"params": [module.weight], "weight_decay": DECAY})
            groups.append({"params": [module.bias], "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=LR)
        steps = -(-len(x) // BATCH)
        for epoch in range(self.epochs):
            order = torch.randperm(len(x), generator=generator_of(SEED, 0, "order", epoch))
            for step, (a, b) in enumerate(pairwise(len(x) * k // steps for k in range(steps + 1))):
                factor = schedule_factor("cosine", epoch * steps + step, steps * self.epochs, 0.1)
                for group in optimizer.param_groups:
                    group["lr"] = LR * factor
                rows = order[a:b]
                batch = x[rows]
                total = batch.new_zeros(())
                for h, module in enumerate(modules.values()):
                    there = known[rows, h]
                    if there.any():
                        total = total + self._loss(h, module(batch[there]), targets[rows[there], h])
                optimizer.zero_grad()
                total.backward()
                optimizer.step()
        self.weights = [(module.weight.detach().numpy(), module.bias.detach().numpy()) for module in modules.values()]

    def gap(self) -> float:
        """Return the largest difference between the weights of the two, over the largest weight."""
        theirs = np.concatenate([weight for weight, _ in self.weights])
        return float(np.abs(self.head.coef_ - theirs).max() / np.abs(theirs).max())

    def _targets(self, y: NDArray[np.float64]) -> torch.Tensor:
        """Return the targets, numbers standardised."""
        numbers = np.array([kind == "regression" for kind in self.kinds])
        center = np.where(numbers, np.nanmean(y, axis=0), 0.0)
        spread = np.where(numbers, np.nanstd(y, axis=0), 1.0)
        return torch.from_numpy(((y - center) / spread).astype(np.float32))

    def _loss(self, head: int, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self.kinds[head] == "multiclass":
            return functional.cross_entropy(logits, targets.long())
        if self.kinds[head] == "binary":
            return functional.binary_cross_entropy_with_logits(logits[:, 0], targets)
        return functional.huber_loss(logits[:, 0], targets)


def mixed_targets(data: Embeddings, heads: int, missing: float) -> tuple[NDArray[np.float64], list[str]]:
    """Return targets of the three kinds in turn, linear in the features but for noise; a share of them missing."""
    rng = np.random.default_rng(1)
    standard = (data.X - data.X.mean(axis=0)) / data.X.std(axis=0)
    columns, kinds = [], []
    for h in range(heads):
        kind = KINDS[h % 3]
        signal = standard @ rng.normal(size=(data.X.shape[1], 4)) / np.sqrt(data.X.shape[1])
        signal += 0.5 * rng.normal(size=signal.shape)
        columns.append(
            {"binary": signal[:, 0] > 0, "multiclass": signal.argmax(axis=1), "regression": signal[:, 0]}[kind]
        )
        kinds.append(kind)
    y = np.column_stack(columns).astype(np.float64)
    y[rng.random(y.shape) < missing] = np.nan
    return y, kinds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--heads", type=int, default=90)
    options = parser.parse_args()
    one_thread()
    results, titles = [], []

    data = synthetic(2_000)
    y, kinds = mixed_targets(data, options.heads, missing=0.2)
    all_heads, few = (Contest(data.X, y[:, :k], kinds[:k], options.epochs) for k in (options.heads, 3))
    laps = race(
        {"ours": all_heads.ours, "3 heads": few.ours, "loop": all_heads.loop, "loop of 3": few.loop}, options.rounds
    )
    titles.append(f"{data.name}, {options.heads} heads of 3 kinds, a fifth of the targets missing")
    results += [
        Result(
            f"{options.heads} heads: ours against a loop",
            times_faster(laps["ours"], laps["loop"], "cpu"),
            "x",
            10,
            True,
        ),
        Result(
            "  of ours, against 3 heads",
            times_faster(laps["3 heads"], laps["ours"], "cpu"),
            "x the time",
            3,
            reason="30 times the weights: their products and AdamW's pass over them are what is left of a step",
        ),
        Result("  of the loop, against 3 heads", times_faster(laps["loop of 3"], laps["loop"], "cpu"), "x the time"),
        Result("  largest difference of a weight", all_heads.gap(), "relative", 1e-3),
    ]
    if options.real and (reason := why_not(options)):
        print(f"real embeddings are left out: {reason}", file=sys.stderr)
    elif options.real:
        data = real("nih_cxr_multilabel", options.real, Path(options.datasets))
        contest = Contest(data.X, data.y.astype(np.float64), ["binary"] * data.y.shape[1], options.epochs)
        laps |= {
            f"{name}, real": turns
            for name, turns in race({"ours": contest.ours, "loop": contest.loop}, options.rounds).items()
        }
        titles.append(f"{data.name}, {data.y.shape[1]} labels")
        results += [
            Result(
                f"{data.y.shape[1]} labels: ours against a loop",
                times_faster(laps["ours, real"], laps["loop, real"], "cpu"),
                "x",
            ),
            Result("  largest difference of a weight", contest.gap(), "relative", 1e-3),
        ]
    return report(
        f"Linear probes, {options.epochs} epochs; " + "; ".join(titles), laps, results, samples=1, as_json=options.json
    )


if __name__ == "__main__":
    sys.exit(main())
