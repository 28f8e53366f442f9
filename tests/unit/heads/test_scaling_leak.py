"""Features of very different units are standardised by the training rows of each fold, and by nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from heads.base import Head
from heads.catalog import head_class
from heads.many import Job, fit_many

N, FOLDS = 60, 3
FOLD = np.arange(N) % FOLDS
HEADS: dict[str, dict[str, Any]] = {
    "linear": {"class_weight": None},
    "svm": {"class_weight": None},
    "mlp": {"class_weight": None, "hidden": (4,), "max_epochs": 2, "members": 1},
}


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    """Features as those of speech: seconds, ratios, counts, and one that hardly varies."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, N)
    columns = [rng.gamma(2, 20, N) + 10 * y, rng.random(N), rng.integers(20, 400, N) - 60.0 * y, (rng.random(N) < 0.1)]
    return np.column_stack(columns).astype(np.float32), y


def fitted(name: str, X: np.ndarray, y: np.ndarray) -> list[Head]:
    """The head of each fold, by the way that cross-validation fits them."""
    known = head_class(name, "binary")().get_params()
    params = {key: value for key, value in HEADS[name].items() if key in known}
    jobs = [Job(head_class(name, "binary")(**params), np.flatnonzero(k != FOLD)) for k in range(FOLDS)]
    heads = list(fit_many(jobs, X, y))
    assert all(isinstance(head, Head) for head in heads)
    return heads  # type: ignore[return-value]


@pytest.mark.parametrize("name", HEADS)
def test_statistics_are_those_of_the_training_rows(name: str, data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data
    for k, head in enumerate(fitted(name, X, y)):
        rows = X[k != FOLD].astype(np.float64)
        np.testing.assert_allclose(head.mean_, rows.mean(axis=0), rtol=1e-9)
        np.testing.assert_allclose(head.scale_, rows.std(axis=0), rtol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_a_held_out_row_does_not_move_them(name: str, data: tuple[np.ndarray, np.ndarray]) -> None:
    X, y = data
    before = fitted(name, X, y)
    changed = X.copy()
    row = 7  # held out in fold 1, and trained on in the others
    changed[row] *= 1000
    after = fitted(name, changed, y)
    for k in range(FOLDS):
        same = np.array_equal(before[k].mean_, after[k].mean_) and np.array_equal(before[k].scale_, after[k].scale_)
        assert same == (FOLD[row] == k)
    others = (FOLD == 1) & (np.arange(N) != row)
    np.testing.assert_array_equal(before[1].predict_proba(X[others]), after[1].predict_proba(X[others]))
