"""The way of rows to the trainer: shuffled batches of stored embeddings, and nothing else of the training.

``python benchmarks/perf/bench_data.py [--rounds N] [--real STORE] [--json]``

corpus
    `heads.training.corpus`: the batches that the networks of `mlp` and the fusions are trained on, with targets
    and weights, from one matrix in memory.
loader
    `torch.utils.data.DataLoader` without workers over a `TensorDataset` of the same matrix.
files
    The same loader over one ``.pt`` file per sample that `torch.load` reads, as kaiko-eva keeps embeddings. The
    files are in the page cache: the disk is not measured.

Batches are of 256 rows, and standardised one by one with the mean and deviation of a fold. An epoch of each side is
checked: every row came once, with its own target and exactly its own features. The clock is the CPU time of one
pinned core. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from _embeddings import ENCODERS, Embeddings, add_options, one_thread, real, synthetic, why_not
from _race import Lap, Result, race, report
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from heads.training.corpus import Corpus, Stream, Targets
from heads.training.plan import Fold

BATCH = 256
FILES = 500
EPOCHS = {"corpus": 20, "corpus of half precision": 20, "loader": 3, "files": 1}
"""Epochs per turn: as many as take long enough to be timed."""

Batches = Iterable[tuple[Tensor, ...]]
"""Features, targets and, from the corpus, weights, which are 0 for rows that fill a batch up."""


class PerFile(Dataset[tuple[Tensor, ...]]):
    """Embeddings of one file each."""

    def __init__(self, X: Tensor, folder: Path) -> None:
        self._paths = [folder / f"{i}.pt" for i in range(len(X))]
        for path, row in zip(self._paths, X, strict=True):
            torch.save(row.clone(), path)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return torch.load(self._paths[index], map_location="cpu"), torch.tensor(float(index))


class Contest:
    """The contestants on one data set; the target of a row is its number, which tells where its features belong."""

    def __init__(self, data: Embeddings, folder: Path) -> None:
        self.X, self.name = data.X, data.name
        rows, mean, deviation = np.arange(len(data.X)), data.X.mean(axis=0), data.X.std(axis=0) + 1e-6
        self.standardised = torch.from_numpy((data.X - mean) / deviation)
        scaling = torch.from_numpy(mean), torch.from_numpy(deviation)
        features = torch.from_numpy(data.X)
        fold = Fold(train=rows, shift=mean, scale=deviation)
        self.sides: dict[str, Iterator[Batches]] = {
            "corpus": self._corpus(fold, features),
            "corpus of half precision": self._corpus(fold, features.half()),
            "loader": _loader(TensorDataset(features, torch.arange(len(rows)).float()), *scaling),
            "files": _loader(PerFile(features[:FILES], folder), *scaling),
        }

    @staticmethod
    def _corpus(fold: Fold, features: Tensor) -> Iterator[Batches]:
        """Yield epochs after epochs, as `heads.training.cohort` draws them."""
        targets = Targets(fold.train.astype(np.float32), torch.device("cpu"))
        corpus = Corpus(fold, features, targets, BATCH)
        steps, slots, _ = corpus.layout
        stream, x = Stream(0, corpus), torch.empty(slots, features.shape[1])

        def batches(epoch: int) -> Batches:
            stream.begin(epoch)
            for step in range(steps):
                rows = stream.order[step]
                corpus.features_of(rows, x)
                yield x, corpus.targets[rows], corpus.weights[rows] * corpus.real[step][:, None]

        epoch = 0
        while True:
            yield batches(epoch)
            epoch += 1

    def run(self, name: str) -> None:
        """Go through the epochs of one turn."""
        for _ in range(EPOCHS[name]):
            for _batch in next(self.sides[name]):
                pass

    def error(self, name: str) -> float:
        """Return the largest error of a feature over one more epoch; infinite if a row is missing or comes twice."""
        seen, largest = [], 0.0
        for x, numbers, *weights in next(self.sides[name]):
            counted = weights[0][:, 0] > 0 if weights else torch.ones(len(x), dtype=torch.bool)
            rows = numbers.reshape(-1)[counted].long()
            seen.append(rows)
            largest = max(largest, float((x[counted] - self.standardised[rows]).abs().max()))
        expected = torch.arange(FILES if name == "files" else len(self.X))[: len(self.X)]
        return largest if torch.equal(torch.cat(seen).sort().values, expected) else float("inf")

    def microseconds(self, name: str, laps: list[Lap]) -> float:
        """Return the CPU time per row, the median over rounds."""
        rows = (min(FILES, len(self.X)) if name == "files" else len(self.X)) * EPOCHS[name]
        return statistics.median(each.cpu for each in laps) / rows * 1e6


def _loader(dataset: Dataset[tuple[Tensor, ...]], mean: Tensor, deviation: Tensor) -> Iterator[Batches]:
    """Yield epochs after epochs of a loader."""
    loader = DataLoader(dataset, batch_size=BATCH, shuffle=True)
    while True:
        yield ((x.sub_(mean).div_(deviation), numbers) for x, numbers in loader)


def measure(data: Embeddings, rounds: int) -> list[Result]:
    """Race on one data set; return the lines."""
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(data, Path(folder))
        laps = race({name: partial(contest.run, name) for name in EPOCHS}, rounds)
        cost = {name: contest.microseconds(name, each) for name, each in laps.items()}
        errors = {name: contest.error(name) for name in EPOCHS}
    # The targets are stated for rows of 512.
    width = data.X.shape[1]
    why = (
        f"rows of {width}: copying them takes longer on every side, and what is saved per row does not"
        if width > 512
        else "most of ours is copying and scaling a row, which every side does"
    )
    lines = [
        Result(f"{data.name}: against the loader", cost["loader"] / cost["corpus"], "x", 8, True, why),
        Result("  against one file per sample", cost["files"] / cost["corpus"], "x", 500, True, why),
        *(Result(f"  {name}", value, "us per row") for name, value in cost.items()),
    ]
    half = errors.pop("corpus of half precision")
    return [
        *lines,
        Result("  largest error of a feature, any side", max(errors.values()), "deviations", 0.0),
        Result("  and of half precision", half, "deviations"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=5)
    options = parser.parse_args()
    one_thread()
    sets = [synthetic(10_000)]
    if options.real:
        if reason := why_not(options):
            print(f"real embeddings are left out: {reason}", file=sys.stderr)
        else:
            sets += [real(name, options.real, Path(options.datasets)) for name in ENCODERS]
    results = [line for data in sets for line in measure(data, options.rounds)]
    title = f"Shuffled batches of {BATCH} rows, the data path alone; {options.rounds} rounds"
    return report(title, {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
