"""RBF support vector machines, 4 C x 4 gamma x 5 folds: shared kernels, against scikit-learn's SVC and GridSearchCV.

``python benchmarks/perf/bench_svm.py [--rounds N] [--folds N] [--case NAME ...] [--real STORE] [--json]``

grid
    `heads.solvers.svm_grid.grid_accuracies`: one product for all kernels, one kernel per fold and gamma, shared
    by the values of C. It is what ``--head svm --set search=grid`` runs.
loop
    `sklearn.svm.SVC` for every cell.
search
    `sklearn.model_selection.GridSearchCV` over the same cells, without its last fit.

The clock is the CPU time of one pinned core. Some cases hold out fewer of the five folds by default, on all sides
alike. Exit code 1 if a target is missed; one is that no accuracy of any cell differs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from _embeddings import Embeddings, add_options, deal, first_folds, grouped_folds, one_thread, real, synthetic, why_not
from _race import Result, race, report, times_faster
from numpy.typing import NDArray
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from heads.solvers.kernels import Kernels
from heads.solvers.svm_grid import grid, grid_accuracies

FOLDS = 5
CS = (0.1, 1.0, 10.0, 100.0)
WIDTHS = (0.1, 0.3, 1.0, 3.0)
"""Values of gamma, over 1 / (d x variance of the features)."""
SOLVER = "what is left is libsvm itself, on kernels that are there"


@dataclass(frozen=True)
class Case:
    """One data set, how often faster than either at least, and what is run of it by default."""

    make: Callable[[], Embeddings]
    target: float | None
    folds: int
    search: bool


def first_rows(name: str, store: Path, datasets: Path, rows: int) -> Embeddings:
    """Return some rows of a public data set, drawn once."""
    data = real(name, store, datasets)
    some = np.sort(np.random.default_rng(0).permutation(len(data.X))[:rows])
    return Embeddings(f"{data.name}, {len(some):,} rows of it", data.X[some], data.y[some], data.groups[some])


CASES = {
    "binary": Case(partial(synthetic, 2_000), 10, 5, search=True),
    "10 classes": Case(partial(synthetic, 2_000, classes=10), 10, 5, search=False),
}
REAL = {"brain_mri": 2, "rt_polarity": 5}
"""Folds of the public data sets."""


class Contest:
    """The contestants on one case."""

    def __init__(self, case: Case, folds: int) -> None:
        self.data, self.run = case.make(), folds
        made = self.data.name.startswith("synthetic")
        fold = deal(len(self.data.X), FOLDS) if made else grouped_folds(self.data, FOLDS)
        self.fold = first_folds(fold, folds)
        scale = 1 / (self.data.X.shape[1] * self.data.X.var(dtype=np.float64))
        self.gammas = [width * scale for width in WIDTHS]
        self.accuracies: dict[str, NDArray[np.float64]] = {}

    def grid(self) -> None:
        """Fit all cells on shared kernels."""
        points = grid(CS, self.gammas, ("rbf",))
        weight = np.ones(len(self.fold))
        self.accuracies["grid"] = grid_accuracies(Kernels(self.data.X), self.data.y, weight, self.fold, points)

    def loop(self) -> None:
        """Fit every cell by itself."""
        self.accuracies["loop"] = np.array(
            [[self._cell(C, gamma, k) for k in range(self.run)] for C in CS for gamma in self.gammas]
        )

    def search(self) -> None:
        """Fit all cells by scikit-learn's own search."""
        splits = [(np.flatnonzero(self.fold != k), np.flatnonzero(self.fold == k)) for k in range(self.run)]
        space = {"C": CS, "gamma": self.gammas}
        found = GridSearchCV(SVC(), space, cv=splits, refit=False).fit(self.data.X, self.data.y).cv_results_
        self.accuracies["search"] = np.stack([found[f"split{k}_test_score"] for k in range(self.run)], axis=1)

    def _cell(self, C: float, gamma: float, k: int) -> float:
        held = self.fold == k
        machine = SVC(C=C, gamma=gamma).fit(self.data.X[~held], self.data.y[~held])
        return float((machine.predict(self.data.X[held]) == self.data.y[held]).mean())


def measure(name: str, case: Case, folds: int | None, rounds: int) -> tuple[str, list[Result]]:
    """Run one case; return what it is and its lines."""
    contest = Contest(case, folds or case.folds)
    contestants = {"grid": contest.grid, "loop": contest.loop} | ({"search": contest.search} if case.search else {})
    laps = race(contestants, rounds)
    ours = contest.accuracies.pop("grid")
    differ = max(int((ours != theirs).sum()) for theirs in contest.accuracies.values())
    faster = times_faster(laps["grid"], laps["loop"], "cpu")
    results = [Result(f"{name}: shared kernels against a loop of SVC", faster, "x", case.target, True, SOLVER)]
    if case.search:
        faster = times_faster(laps["grid"], laps["search"], "cpu")
        results.append(Result("  against GridSearchCV", faster, "x", case.target, True, SOLVER))
    results += [
        Result(f"  cells of {ours.size} whose accuracy differs", differ, "", 0),
        Result("  best mean accuracy", float(ours.mean(axis=1).max()), ""),
        Result("  seconds of the grid", statistics.median(each.cpu for each in laps["grid"]), "s"),
    ]
    return f"{contest.data.name}: {contest.run} of {FOLDS} folds", results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, rounds=1)
    parser.add_argument("--folds", type=int, help="held out of 5, in every case")
    parser.add_argument("--case", nargs="+", choices=[*CASES, *REAL], help="run only these")
    options = parser.parse_args()
    one_thread()
    cases = dict(CASES)
    if options.real:
        if reason := why_not(options):
            print(f"real embeddings are left out: {reason}", file=sys.stderr)
        else:
            for name, folds in REAL.items():
                make = partial(first_rows, name, Path(options.real), Path(options.datasets), 2_000)
                cases[name] = Case(make, 10, folds, search=False)
    titles, results = [], []
    for name, case in cases.items():
        if options.case is None or name in options.case:
            title, lines = measure(name, case, options.folds, options.rounds)
            titles.append(title)
            results += lines
    title = f"RBF support vector machines, {len(CS)} C x {len(WIDTHS)} gamma, {options.rounds} rounds; "
    return report(title + "; ".join(titles), {}, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
