"""Balanced subsets: enough of every label, seeded, nested, groups in turn."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import TaskError
from data.subset import balanced_subset


def labels(seed: int, n: int = 200, t: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    y = (rng.random((n, t)) < [0.5, 0.2, 0.05, 0.01]).astype(np.float32)
    y[rng.random((n, t)) < 0.2] = np.nan
    return y


@given(st.integers(1, 80), st.integers(0, 5))
def test_every_label_has_at_least_n_or_all_there_are(n, seed):
    y = labels(seed)
    chosen = y[balanced_subset(y, "multilabel", n, seed)]
    for target in range(y.shape[1]):
        assert (chosen[:, target] == 1).sum() >= min(n, (y[:, target] == 1).sum())
    negatives = (~(y == 1).any(axis=1) & ~np.isnan(y).all(axis=1)).sum()
    assert (~(chosen == 1).any(axis=1)).sum() == min(n, negatives)


def test_classes_are_balanced_exactly_and_unknown_labels_left_out():
    y = np.array([0] * 50 + [1] * 7 + [2] * 20 + [-1] * 9)
    chosen = balanced_subset(y, "multiclass", 10, seed=3)
    assert np.bincount(y[chosen]).tolist() == [10, 7, 10]
    assert (np.diff(chosen) > 0).all()


def test_a_seed_fixes_the_subset_and_smaller_ones_are_part_of_it():
    y = labels(0)
    subsets = [set(balanced_subset(y, "multilabel", n, seed=1)) for n in (1, 2, 4, 8, 16, 200)]
    assert all(small <= large for small, large in itertools.pairwise(subsets))
    assert subsets[2] == set(balanced_subset(y, "multilabel", 4, seed=1))
    assert subsets[2] != set(balanced_subset(y, "multilabel", 4, seed=2))


def test_without_negatives_every_sample_has_a_label():
    y = labels(0)
    assert (y[balanced_subset(y, "multilabel", 5, 0, include_negatives=False)] == 1).any(axis=1).all()


def test_groups_take_turns():
    groups = np.repeat(np.arange(10), [50, *[5] * 9])
    y = np.zeros(len(groups), np.int64)
    assert set(groups[balanced_subset(y, "binary", 10, 0, groups)]) == set(range(10))
    counts = np.bincount(groups[balanced_subset(y, "binary", 25, 0, groups)])
    assert sorted(counts) == [2] * 5 + [3] * 5


@pytest.mark.parametrize(("kind", "n", "message"), [("regression", 1, "no labels"), ("binary", 0, "at least 1")])
def test_what_has_no_labels_is_refused(kind, n, message):
    with pytest.raises(TaskError, match=message):
        balanced_subset(np.array([0, 1]), kind, n, 0)
