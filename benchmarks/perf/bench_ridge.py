"""Ridge classification, 5 folds x 20 penalties: one decomposition per fold, against a loop of RidgeClassifier.

``python benchmarks/perf/bench_ridge.py [--rounds N] [--folds N] [--case NAME ...] [--real STORE] [--json]``

path
    `heads.solvers.ridge.fold_ridge`, which chooses the penalty of the linear head of regression: a fold's Gram matrix
    is that of all rows less that of its own, and a penalty is a rescaling.
loop
    `sklearn.linear_model.RidgeClassifier` for every fold and penalty.

Classes are targets of -1 and 1 on both sides, and all held-out rows are predicted. Both get the same float32 matrix,
which is what a user has and what scikit-learn is fastest on; ours computes in double precision. Its predictions must
be, row by row, those of the loop in double precision; in single precision the loop's own are off where scikit-learn
warns of an ill-conditioned matrix. Penalties are 1e-3 ... 1e5. The clock is the CPU time of one pinned core. Exit code
1 if a target is missed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from _embeddings import Embeddings, add_options, deal, first_folds, grouped_folds, one_thread, real, synthetic, why_not
from _race import Result, race, report, times_faster
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifier

from heads.solvers.ridge import fold_ridge

ALPHAS = np.logspace(-3, 5, 20)
FOLDS = 5
TARGET = 10
CASES: dict[str, Callable[[], Embeddings]] = {
    "binary": partial(synthetic, 10_000),
    "10 classes": partial(synthetic, 10_000, classes=10),
}
REAL = ("brain_mri", "rt_polarity")
SQUARE = "hardly more rows than features: a decomposition costs what 20 Cholesky factors do"


class Contest:
    """The contestants on one case."""

    def __init__(self, data: Embeddings, folds: int) -> None:
        self.name = data.name
        self.X, self.y = data.X, data.y
        fold = deal(len(self.X), FOLDS) if data.name.startswith("synthetic") else grouped_folds(data, FOLDS)
        self.fold = first_folds(fold, folds)
        self.folds, self.classes = folds, int(self.y.max()) + 1
        self.predicted: dict[str, NDArray[np.int64]] = {}

    def path(self) -> None:
        """Solve all penalties of a fold at once."""
        columns = [1] if self.classes == 2 else range(self.classes)
        targets = np.stack([np.where(self.y == c, 1.0, -1.0) for c in columns], axis=1)
        predicted = np.full((len(ALPHAS), len(self.y)), -1)
        for held, coef, intercept in fold_ridge(self.X, targets, np.ones(len(self.y)), self.fold, ALPHAS):
            scores = self.X[held] @ coef.reshape(-1, coef.shape[2]).T + intercept.ravel()
            shaped = scores.reshape(-1, *intercept.shape)
            answers = shaped[..., 0] > 0 if self.classes == 2 else shaped.argmax(axis=2)
            predicted[:, held] = answers.T
        self.predicted["path"] = predicted

    def loop(self, name: str = "loop", precision: type[np.floating[Any]] = np.float32) -> None:
        """Solve every penalty of every fold by itself."""
        features = self.X.astype(precision)
        predicted = np.full((len(ALPHAS), len(self.y)), -1)
        for k in range(self.folds):
            held = self.fold == k
            X, y, new = features[~held], self.y[~held], features[held]
            for place, alpha in enumerate(ALPHAS):
                predicted[place, held] = RidgeClassifier(alpha=alpha).fit(X, y).predict(new)
        self.predicted[name] = predicted

    def differences(self, name: str) -> int:
        """Return how many predictions of the path differ from those of a loop."""
        return int((self.predicted["path"] != self.predicted[name]).sum())

    def best_accuracy(self) -> float:
        """Return the held-out accuracy of the best penalty."""
        held = self.fold >= 0
        return float((self.predicted["path"] == self.y)[:, held].mean(axis=1).max())


def measure(name: str, make: Callable[[], Embeddings], folds: int, rounds: int) -> tuple[str, list[Result]]:
    """Run one case; return what it is and its lines."""
    contest = Contest(make(), folds)
    laps = race({"path": contest.path, "loop": contest.loop}, rounds)
    contest.loop("double", np.float64)
    faster = times_faster(laps["path"], laps["loop"], "cpu")
    reason = SQUARE if len(contest.X) < 2 * contest.X.shape[1] else ""
    results = [
        Result(f"{name}: path against a loop of RidgeClassifier", faster, "x", TARGET, True, reason),
        Result(f"  predictions of {contest.predicted['path'].size:,} that differ", contest.differences("loop"), ""),
        Result("  and from the loop in double precision", contest.differences("double"), "", 0),
        Result("  best accuracy", contest.best_accuracy(), ""),
        Result("  seconds of the path", statistics.median(each.cpu for each in laps["path"]), "s"),
    ]
    return f"{contest.name}: {folds} of {FOLDS} folds", results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=1)
    parser.add_argument("--folds", type=int, default=FOLDS, help="held out of 5, in every case")
    parser.add_argument("--case", nargs="+", choices=[*CASES, *REAL], help="run only these")
    options = parser.parse_args()
    one_thread()
    cases = dict(CASES)
    if options.real:
        if reason := why_not(options):
            print(f"real embeddings are left out: {reason}", file=sys.stderr)
        else:
            cases |= {name: partial(real, name, Path(options.real), Path(options.datasets)) for name in REAL}
    titles, results = [], []
    for name, make in cases.items():
        if options.case is None or name in options.case:
            title, lines = measure(name, make, options.folds, options.rounds)
            titles.append(title)
            results += lines
    title = f"Ridge classification, {len(ALPHAS)} penalties, {options.rounds} rounds; " + "; ".join(titles)
    return report(title, {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
