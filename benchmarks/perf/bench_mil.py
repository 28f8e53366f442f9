"""One training step of gated attention over 32 ragged bags: packed, against a loop over bags and against padding.

``python benchmarks/perf/bench_mil.py [--rounds N] [--steps N] [--real STORE] [--json]``

packed
    What ``--head attention_mil`` does: `heads.training.pooling.BagNetwork` on the instances of all bags in one
    matrix, softmax and sums within segments.
loop
    One bag after the other in plain torch, gradients summed: the step of most code for slides, with the same
    number of bags per step.
padded
    All bags at the length of the longest, a mask in the softmax.

A step is gathering the bags from the matrix they are kept in, the loss, and the gradient of every weight.
Lengths are log-normal, so that the longest of 32 bags is about three times the mean. The clock is the CPU time
of one pinned core. Exit code 1 if a target is missed; gradients must agree to 1e-6 in double precision.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from _embeddings import Embeddings, add_options, one_thread, real, synthetic, why_not
from _race import Result, race, report, times_faster
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear
from torch.nn.utils.rnn import pad_sequence

from heads.bags import Bags, offsets_of
from heads.training.pooling import BagNetwork
from heads.training.segments import packed

BAGS = 32
"""Bags per step."""
HIDDEN = 128
SPREAD = 0.65
"""Standard deviation of the logarithm of a bag's length."""
SAME = 1e-6
"""How far gradients may be apart, relative to the largest entry of each."""
Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Bags to step over, and how often faster the packed step is to be: than the loop, and than padding."""

    name: str
    make: Callable[[], Bags]
    loop: float | None
    padded: float | None


def drawn(embeddings: Embeddings, mean: int, steps: int) -> Bags:
    """Return bags of log-normal lengths, filled with rows drawn from some embeddings."""
    rng = np.random.default_rng(mean)
    lengths = np.exp(rng.normal(np.log(mean) - SPREAD**2 / 2, SPREAD, BAGS * steps)).round().astype(int).clip(1)
    return Bags(embeddings.X[rng.integers(0, len(embeddings.X), lengths.sum())], offsets_of(lengths))


def by_group(embeddings: Embeddings, steps: int) -> Bags:
    """Return the groups of some embeddings as bags, such as all images of a patient; the first few steps of them."""
    order = np.argsort(embeddings.groups, kind="stable")
    lengths = np.unique(embeddings.groups, return_counts=True)[1]
    return Bags(embeddings.X[order], offsets_of(lengths))[: BAGS * steps]


class Contest:
    """The contestants on one case."""

    def __init__(self, bags: Bags, dtype: torch.dtype = torch.float32) -> None:
        self.bags, self.x = bags, torch.from_numpy(bags.values).to(dtype)
        self.rows = bags.with_values(np.arange(len(bags.values))[:, None])
        rng = np.random.default_rng(1)
        # Bags come in random order, as in an epoch.
        order = rng.permutation(len(bags))
        self.steps = [order[at : at + BAGS] for at in range(0, len(order) - BAGS + 1, BAGS)]
        self.y = torch.from_numpy(rng.integers(0, 2, len(bags))).to(dtype)
        self.network = BagNetwork(inputs=bags.shape[1], outputs=1, pooling="attention", hidden=HIDDEN)
        initial = self.network.initial(torch.Generator().manual_seed(0))
        self.weights = {name: weight.to(dtype)[None].requires_grad_() for name, weight in initial.items()}

    @property
    def waste(self) -> float:
        """How many rows padding makes of one instance."""
        lengths = [self.bags.lengths[chosen] for chosen in self.steps]
        return float(sum(BAGS * each.max() for each in lengths) / sum(each.sum() for each in lengths))

    def packed(self) -> Gradients:
        """Take all steps on packed bags; return the gradients of the last."""
        for chosen in self.steps:
            index = self.rows[chosen]
            bags = packed(self.x[torch.from_numpy(index.values[:, 0])], index)
            logits = self.network.forward(self.weights, bags)[0, :, 0]
            found = self._gradients(self._loss(logits, self.y[torch.from_numpy(chosen)]))
        return found

    def loop(self) -> Gradients:
        """Take all steps bag by bag; return the gradients of the last."""
        offsets = self.bags.offsets.tolist()
        for chosen in self.steps:
            found = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
            for i in chosen.tolist():
                x = self.x[offsets[i] : offsets[i + 1]]
                pooled = torch.softmax(self._scores(x), dim=0) @ x
                for name, more in self._gradients(self._loss(self._logits(pooled), self.y[i])).items():
                    found[name] += more
        return found

    def padded(self) -> Gradients:
        """Take all steps on padded bags; return the gradients of the last."""
        offsets = self.bags.offsets.tolist()
        for chosen in self.steps:
            x = pad_sequence([self.x[offsets[i] : offsets[i + 1]] for i in chosen.tolist()], batch_first=True)
            mask = torch.arange(x.shape[1]) < torch.from_numpy(self.bags.lengths[chosen])[:, None]
            share = torch.softmax(self._scores(x).masked_fill(~mask, -torch.inf), dim=1)
            logits = self._logits((share[:, None] @ x)[:, 0])
            found = self._gradients(self._loss(logits, self.y[torch.from_numpy(chosen)]))
        return found

    def _scores(self, x: Tensor) -> Tensor:
        """Return the scores of instances, as Ilse's own code has it: two layers, tanh times sigmoid, one more."""
        gate, bias = self.weights["attention.0.gate.weight"][0].T, self.weights["attention.0.gate.bias"].flatten()
        value = torch.tanh(linear(x, gate[:HIDDEN], bias[:HIDDEN]))
        return (value * torch.sigmoid(linear(x, gate[HIDDEN:], bias[HIDDEN:]))) @ self._column(
            "attention.0.score.weight"
        )

    def _logits(self, pooled: Tensor) -> Tensor:
        return pooled @ self._column("logits.weight") + self.weights["logits.bias"].flatten()[0]

    def _column(self, name: str) -> Tensor:
        return self.weights[name].flatten()

    @staticmethod
    def _loss(logits: Tensor, y: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, y, reduction="sum") / BAGS

    def _gradients(self, loss: Tensor) -> Gradients:
        return dict(zip(self.weights, torch.autograd.grad(loss, list(self.weights.values())), strict=True))


def apart(ours: Gradients, theirs: Gradients) -> float:
    """Return the largest difference of any weight's gradient, relative to the largest entry of that gradient."""
    return max(float((ours[name] - theirs[name]).abs().max() / theirs[name].abs().max()) for name in ours)


def measure(case: Case, rounds: int) -> list[Result]:
    """Run one case; return its lines."""
    bags = case.make()
    exact = Contest(bags, torch.float64)
    ours = exact.packed()
    differ = max(apart(ours, exact.loop()), apart(ours, exact.padded()))
    contest = Contest(bags)
    laps = race({"packed": contest.packed, "loop": contest.loop, "padded": contest.padded}, rounds)
    loop, padded = (times_faster(laps["packed"], laps[name], "cpu") for name in ("loop", "padded"))
    lengths: NDArray[np.int64] = bags.lengths
    what = f"{case.name}: D={bags.shape[1]}, {lengths.mean():.1f} instances, {lengths.max()} at most"
    return [
        Result(f"{what}: against a loop over bags", loop, "x", case.loop, True),
        Result("  against padding", padded, "x", case.padded, True),
        Result("  rows when padded, over instances", contest.waste, "x"),
        Result("  gradients apart, double precision", differ, "", SAME),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=7)
    parser.add_argument("--steps", type=int, default=8, help="steps per turn")
    options = parser.parse_args()
    one_thread()
    rows = synthetic(20_000)
    cases = [
        Case("synthetic", lambda: drawn(rows, 45, options.steps), 2.5, 2.5),
        Case("synthetic", lambda: drawn(rows, 279, options.steps), 1.1, 2.5),
    ]
    missing = why_not(options)
    if options.real and not missing:
        store, datasets = Path(options.real), Path(options.datasets)
        brain, chest = (real(name, store, datasets) for name in ("brain_mri", "nih_cxr_multilabel"))
        cases += [
            Case("brain_mri, rows in drawn bags", lambda: drawn(brain, 45, options.steps), 2.5, 2.5),
            Case("brain_mri, rows in drawn bags", lambda: drawn(brain, 279, options.steps), 1.1, 2.5),
            # One or two images each: padding wastes little.
            Case("nih_cxr_multilabel, patients", lambda: by_group(chest, options.steps), 2.5, None),
        ]
    results = [result for case in cases for result in measure(case, options.rounds)]
    title = f"Gated attention over {BAGS} ragged bags, one step"
    if not options.real or missing:
        title += f"; real embeddings were not measured: {missing or 'give --real'}"
    return report(title, {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
