"""Prompts that are the same for every row, through ``relu(W p)``: collapsed, against loops that compute it (H11).

``python benchmarks/perf/bench_fusion.py [--rounds N] [--small] [--real STORE] [--json]``

collapsed
    `heads.batched.train_many` with `heads.training.fusion.WeightedSum`: W p is one vector, see that module.
repeat
    torch modules and `torch.optim.AdamW`; the prompts go through the linear layer once per row, as published.
once per step
    The same; they go through it once per batch.

The network is ``scale x + scale_p relu(W p)``, a hidden layer and the logits. All start from the same weights and
take the same batches, with Adam's eps at 1e-12: the collapsed form is exact as far as eps is small beside the
gradients. Parity is the largest difference of the mean loss of an epoch. The clock is the CPU time of one pinned
core. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from _embeddings import Embeddings, add_options, one_thread, real, spread, synthetic, why_not
from _race import Result, race, report, times_faster
from torch import Tensor, nn

from heads.batched import train_many
from heads.training import optimizer as training_optimizer
from heads.training.corpus import Corpus, Stream, Targets
from heads.training.fusion import Blocks, PromptBranch, WeightedSum
from heads.training.perceptron import HiddenLayers, Perceptron
from heads.training.plan import Fold, Recipe, Regime, TrainedModel

CLASSES, PROMPT_WIDTH, HIDDEN, BATCH = 20, 512, 256, 256
EPS = 1e-12
RECIPE = Recipe(lr=1e-3, weight_decay=1e-2)


class Reference(nn.Module):
    """The network as torch has it."""

    def __init__(self, start: dict[str, Tensor], prompts: Tensor, *, repeat: bool) -> None:
        super().__init__()
        self.prompts, self.repeat = prompts, repeat
        self.prompt, self.hidden, self.last = (_linear(start, name) for name in ("prompt.0", "0", "logits"))
        self.scale, self.prompt_scale = (nn.Parameter(start[name].clone()) for name in ("block0.scale", "prompt.scale"))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch."""
        rows = len(x) if self.repeat else 1
        prompt = self.prompt(self.prompts.expand(rows, -1).contiguous()).relu()
        return self.last(self.hidden(self.scale * x + self.prompt_scale * prompt).relu())


def _linear(start: dict[str, Tensor], name: str) -> nn.Linear:
    inputs, outputs = start[f"{name}.weight"].shape
    layer = nn.Linear(inputs, outputs)
    layer.weight.data, layer.bias.data = start[f"{name}.weight"].T.contiguous(), start[f"{name}.bias"].clone()
    return layer


ROUNDING = "the two loops, the same in exact numbers, are as far from each other; see the next line"


class Contest:
    """The contestants on one data set."""

    def __init__(self, data: Embeddings, rows: int, epochs: int) -> None:
        rng = np.random.default_rng(0)
        chosen = rng.permutation(len(data.X))[:rows]
        X = data.X[chosen]
        self.X = ((X - X.mean(axis=0)) / spread(X)).astype(np.float32)
        self.y = data.y[chosen]
        self.outputs = self.y.shape[1] if self.y.ndim == 2 else int(data.y.max()) + 1
        prompts = rng.normal(size=(CLASSES, PROMPT_WIDTH))
        prompts /= np.linalg.norm(prompts, axis=1, keepdims=True)
        self.prompts = prompts.astype(np.float32).ravel()
        # Any rows may be the fold; the loops take the batches of its stream.
        self.fold = Fold(train=np.arange(len(self.X)))
        self.regime = Regime(
            loss="binary_cross_entropy" if self.y.ndim == 2 else "cross_entropy",
            batch_size=BATCH,
            max_epochs=epochs,
            schedule="constant",
        )
        self.losses: dict[str, list[float]] = {}

    def collapsed(self) -> None:
        """Train the product of the prompts and their weights."""
        (model,) = train_many(
            self._architecture(collapsed=True),
            self.X,
            self.y,
            folds=[self.fold],
            recipes=[RECIPE],
            regime=self.regime,
            workers=1,
        )
        assert isinstance(model, TrainedModel)
        self.losses["collapsed"] = [loss for loss in model.history["train_loss"] if loss is not None]

    def loop(self, name: str, *, repeat: bool) -> None:
        """Train all weights, with torch."""
        device = torch.device("cpu")
        features = torch.from_numpy(self.X)
        stream = Stream(RECIPE.seed, Corpus(self.fold, features, Targets(self.y, device), BATCH))
        start = self._architecture(collapsed=False).initial(stream.generator("initial"))
        network = Reference(start, torch.from_numpy(self.prompts)[None], repeat=repeat)
        matrices = [p for p in network.parameters() if p.ndim >= 2]
        vectors = [p for p in network.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": RECIPE.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=RECIPE.lr,
            eps=EPS,
        )
        targets, losses = torch.from_numpy(self.y), []
        for epoch in range(self.regime.max_epochs):
            stream.begin(epoch)
            epoch_losses = []
            for rows, there in zip(stream.order, stream.corpus.real, strict=True):
                batch = rows[there > 0]
                loss = self._loss(network(features[batch]), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                epoch_losses.append(loss.item())
            losses.append(float(np.mean(epoch_losses)))
        self.losses[name] = losses

    def difference(self, name: str) -> float:
        """Return the largest difference between a loop's losses and those of the collapsed form."""
        return float(np.abs(np.subtract(self.losses["collapsed"], self.losses[name])).max())

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        if y.ndim == 1:
            return nn.functional.cross_entropy(logits, y)
        known = ~y.isnan()
        return nn.functional.binary_cross_entropy_with_logits(logits[known], y[known].float())

    def _architecture(self, *, collapsed: bool) -> WeightedSum:
        width = self.X.shape[1]
        layers = HiddenLayers(inputs=self.prompts.size, widths=(width,), norm="none", prefix="prompt.")
        return WeightedSum(
            blocks=Blocks(widths=(width,)),
            prompts=PromptBranch(prompts=self.prompts, layers=layers, collapsed=collapsed),
            trunk=Perceptron(inputs=width, outputs=self.outputs, hidden=(HIDDEN,), norm="none"),
        )


def measure(data: Embeddings, rows: int, epochs: int, rounds: int) -> tuple[str, list[Result]]:
    """Run one data set; return what it is and its lines."""
    contest = Contest(data, rows, epochs)
    with patch.object(training_optimizer, "_EPS", EPS):
        contest.collapsed()  # a first pass that is not timed
        laps = race(
            {
                "collapsed": contest.collapsed,
                "once": partial(contest.loop, "once", repeat=False),
                "repeat": partial(contest.loop, "repeat", repeat=True),
            },
            rounds,
        )
    name = data.name.split()[0].rstrip(",")
    results = [
        Result(
            f"{name}: collapsed against repeat", times_faster(laps["collapsed"], laps["repeat"], "cpu"), "x", 20, True
        ),
        Result("  against once per step", times_faster(laps["collapsed"], laps["once"], "cpu"), "x"),
        Result("  losses, difference from repeat", contest.difference("repeat"), "", 1e-5, reason=ROUNDING),
        Result("  losses, difference from once per step", contest.difference("once"), ""),
    ]
    return f"{data.name}: {len(contest.X)} rows, {epochs} epochs, {rounds} rounds", results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=3)
    parser.add_argument("--small", action="store_true", help="one round of two epochs")
    options = parser.parse_args()
    one_thread()
    epochs = 2 if options.small else 6
    makes: list[Callable[[], Embeddings]] = [partial(synthetic, 10_000, classes=CLASSES)]
    if options.real:
        if reason := why_not(options):
            print(f"real embeddings are left out: {reason}", file=sys.stderr)
        else:
            makes += [
                partial(real, name, options.real, Path(options.datasets))
                for name in ("brain_mri", "nih_cxr_multilabel")
            ]
    titles, results = [], []
    for number, make in enumerate(makes):
        title, lines = measure(make(), 2_560, epochs, 1 if options.small or number else options.rounds)
        titles.append(title)
        results += lines
    title = f"Prompts of {CLASSES} x {PROMPT_WIDTH}, batches of {BATCH}; " + "; ".join(titles)
    return report(title, {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
