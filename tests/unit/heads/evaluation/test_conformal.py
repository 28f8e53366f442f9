"""Prediction sets: the quantile by brute force, coverage by simulation."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from data.task import Task
from heads.errors import BundleError
from heads.evaluation.conformal import (
    Conformal,
    conformal,
    group_quantile,
    groups_needed,
    judge_regions,
    nonconformity,
    read_conformal,
)

BINARY = Task(kind="binary", targets=("y",), classes=("no", "yes"))
MULTI = Task(kind="multiclass", targets=("y",), classes=("a", "b", "c", "d"))
LABELS = Task(kind="multilabel", targets=("a", "b"), classes=("a", "b"))
REGRESSION = Task(kind="regression", targets=("y",))


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("n", [1, 4, 9, 10, 19, 20, 57, 99])
def test_without_groups_the_quantile_is_the_one_of_finite_samples(n: int, coverage: float) -> None:
    values = np.random.default_rng(n).normal(size=n)
    rank = math.ceil((n + 1) * Fraction(str(coverage)))
    expected = np.sort(values)[rank - 1] if rank <= n else math.inf
    assert group_quantile(values, np.arange(n), coverage) == expected
    assert math.isfinite(expected) == (n >= groups_needed(coverage))


@pytest.mark.parametrize("seed", range(20))
def test_with_groups_each_group_weighs_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 12, 60)
    values = rng.integers(0, 15, 60).astype(float)  # with ties
    number = len(np.unique(groups))
    expected = math.inf
    for candidate in sorted(set(values)):
        weight = sum(
            Fraction(1, int((groups == group).sum()))
            for value, group in zip(values, groups, strict=True)
            if value <= candidate
        )
        if weight >= (number + 1) * Fraction(8, 10):
            expected = candidate
            break
    assert group_quantile(values, groups, 0.8) == expected


def draw(rng: np.random.Generator, n: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return labels and scores that know something of them, but are not calibrated."""
    logits = rng.normal(size=(n, 4)) * 1.5
    y = np.array([rng.choice(4, p=p) for p in softmax(logits, axis=1)])
    return y, softmax(2.5 * logits, axis=1)


def test_sets_cover_as_promised_on_exchangeable_rows() -> None:
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        y, scores = draw(rng, 350)
        found = conformal(MULTI, y[:100], scores[:100], np.arange(100), coverage=0.9)
        regions = found.regions(scores[100:])
        covered.append(regions[np.arange(250), y[100:]].mean())
    # The mean of 60 coverages, each of standard deviation about 0.035.
    assert 0.885 <= np.mean(covered) <= 0.925


def test_sets_cover_rows_of_new_groups_where_one_group_has_half_of_the_rows() -> None:
    covered, naive = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        sizes = np.array([120, *[3] * 39])
        groups = np.repeat(np.arange(40), sizes)
        errors = np.abs(rng.normal(size=40)[groups] + 0.3 * rng.normal(size=len(groups)))
        fresh = np.abs(rng.normal(size=400) + 0.3 * rng.normal(size=400))  # one row of each of many new groups
        covered.append((fresh <= group_quantile(errors, groups, 0.9)).mean())
        naive.append((fresh <= group_quantile(errors, np.arange(len(groups)), 0.9)).mean())
    assert np.mean(covered) >= 0.89
    assert np.mean(naive) < 0.87, "rows counted one by one promise too much"


def test_intervals_cover_as_promised() -> None:
    covered = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        truth = rng.normal(size=400)
        predicted = truth + rng.standard_t(3, size=400)
        found = conformal(REGRESSION, truth[:100], predicted[:100], np.arange(100), coverage=0.8)
        regions = found.regions(predicted[100:])
        covered.append(((regions[:, 0, 0] <= truth[100:]) & (truth[100:] <= regions[:, 0, 1])).mean())
    assert 0.785 <= np.mean(covered) <= 0.83


def test_sets_of_a_binary_task_by_hand() -> None:
    found = Conformal(kind="binary", coverage=0.9, quantiles=(0.6,), groups=(20,))
    regions = found.regions(np.array([0.1, 0.39, 0.5, 0.61]))
    assert regions.tolist() == [[True, False], [True, False], [True, True], [False, True]]
    narrow = Conformal(kind="binary", coverage=0.5, quantiles=(0.1,), groups=(20,))
    assert narrow.regions(np.array([0.3, 0.95])).tolist() == [[True, False], [False, True]], "never empty"


def test_labels_have_a_quantile_each_and_unknown_ones_do_not_count() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (80, 2)).astype(np.float32)
    scores = np.clip(0.5 + (y - 0.5) * [0.9, 0.2] + rng.normal(size=(80, 2)) * 0.2, 0, 1)
    y[::4, 1] = np.nan
    found = conformal(LABELS, y, scores, np.arange(80), coverage=0.9)
    assert found.groups == (80, 60)
    known = np.isfinite(y[:, 1])
    alone = conformal(BINARY, y[known, 1].astype(np.int64), scores[known, 1], np.arange(60), coverage=0.9)
    assert found.quantiles[1] == alone.quantiles[0]
    np.testing.assert_array_equal(found.regions(scores)[:, 1], alone.regions(scores[:, 1]))
    assert np.isnan(nonconformity("multilabel", y, scores)[~known, 1]).all()


def test_too_few_groups_give_everything() -> None:
    y, scores = draw(np.random.default_rng(0), 8)
    found = conformal(MULTI, y, scores, np.arange(8), coverage=0.9)
    assert found.quantiles == (math.inf,)
    assert found.regions(scores).all()
    assert groups_needed(0.9) == 9
    wide = conformal(REGRESSION, np.zeros(3), np.ones(3), np.arange(3), coverage=0.9)
    assert wide.regions(np.ones(2)).tolist() == [[[-math.inf, math.inf]], [[-math.inf, math.inf]]]
    judged = judge_regions("regression", np.zeros(2), wide.regions(np.ones(2)), np.arange(2), n_boot=10, seed=0)
    assert judged["coverage"]["value"] == 1
    assert judged["width"]["value"] is None
    assert "infinite" in judged["width"]["reason"]


def test_coverage_and_size_are_means_over_groups() -> None:
    y, scores = draw(np.random.default_rng(1), 60)
    groups = np.repeat(np.arange(20), 3)
    groups[:10] = 0
    regions = conformal(MULTI, y, scores, groups, coverage=0.8).regions(scores)
    judged = judge_regions("multiclass", y, regions, groups, n_boot=200, seed=0)
    inside = regions[np.arange(60), y]
    each = [(inside[groups == g].mean(), regions[groups == g].sum(axis=1).mean()) for g in np.unique(groups)]
    coverage, size = np.mean(each, axis=0)
    assert judged["coverage"]["value"] == pytest.approx(coverage)
    assert judged["set_size"]["value"] == pytest.approx(size)
    assert judged["coverage"]["low"] <= coverage <= judged["coverage"]["high"]


def test_coverage_of_labels_pools_the_known_ones() -> None:
    y = np.array([[1, 0], [0, np.nan], [1, 1]], dtype=np.float32)
    regions = np.array([[[0, 1], [0, 1]], [[1, 1], [1, 1]], [[1, 0], [0, 1]]], dtype=bool)
    judged = judge_regions("multilabel", y, regions, np.arange(3), n_boot=0, seed=0)
    assert judged["coverage"]["value"] == pytest.approx(3 / 5)
    assert judged["set_size"]["value"] == pytest.approx(6 / 5)


def test_what_a_bundle_keeps_survives_json() -> None:
    found = Conformal(kind="multilabel", coverage=0.9, quantiles=(0.25, math.inf), groups=(30, 4))
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert read_conformal(json.loads(text), "multilabel") == found
    assert read_conformal(None, "binary") is None
    with pytest.raises(BundleError, match="prediction sets are damaged"):
        read_conformal({"coverage": 0.9}, "binary")
