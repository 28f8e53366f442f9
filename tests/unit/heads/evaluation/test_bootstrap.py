"""Draws, clusters and coverage of the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest

from heads.errors import HeadError
from heads.evaluation.bootstrap import Bootstrap
from heads.evaluation.weighted import totals


def plan(n, groups=None, **settings):
    return Bootstrap.of(n, groups, **({"n_boot": 200, "seed": 0, "level": 0.95} | settings))


def test_first_row_is_the_data_and_every_resample_draws_as_many_rows():
    weights = np.concatenate(list(plan(17).weights()))
    assert weights.shape == (201, 17)
    assert (weights[0] == 1).all()
    assert (weights.sum(axis=1) == 17).all()


def test_rows_of_a_group_are_drawn_together():
    groups = ["p1", "p2", "p1", None, "p3", None]
    bootstrap = plan(6, groups)
    weights = np.concatenate(list(bootstrap.weights()))
    assert bootstrap.n_clusters == 5
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 3] != weights[:, 5]).any()


def test_a_group_named_like_a_row_number_is_not_that_row():
    assert plan(3, ["1", None, "1"]).n_clusters == 2


def test_interval_covers_the_truth_about_as_often_as_it_says():
    """The mean of 40 normal values: percentile intervals cover a little below 95 %."""
    rng, covered = np.random.default_rng(1), 0
    for repeat in range(400):
        x = rng.normal(size=40)
        bootstrap = plan(40, seed=repeat, n_boot=300)
        series = bootstrap.replicate({"sum": totals(np.stack([x, np.ones(40)], 1))})["sum"]
        estimate = bootstrap.estimate(series[:, 0] / series[:, 1], "")
        covered += estimate["low"] <= 0 <= estimate["high"]
    assert 0.91 <= covered / 400 <= 0.97


def test_only_clustered_intervals_cover_when_rows_of_a_group_agree():
    """30 groups of 8 rows that share their group's effect: drawing rows one by one is far too sure."""
    rng, covered = np.random.default_rng(2), {"rows": 0, "groups": 0}
    groups = np.repeat(np.arange(30), 8)
    for repeat in range(150):
        x = np.repeat(rng.normal(size=30), 8) + 0.1 * rng.normal(size=240)
        for unit in covered:
            bootstrap = plan(240, groups if unit == "groups" else None, seed=repeat)
            series = bootstrap.replicate({"sum": totals(np.stack([x, np.ones(240)], 1))})["sum"]
            estimate = bootstrap.estimate(series[:, 0] / series[:, 1], "")
            covered[unit] += estimate["low"] <= 0 <= estimate["high"]
    assert covered["groups"] / 150 >= 0.88
    assert covered["rows"] / 150 <= 0.75


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least one sample"),
        ({"n": 3, "groups": ["a"]}, "one per sample"),
        ({"n": 3, "n_boot": -1}, "n_boot"),
        ({"n": 3, "level": 1.0}, "level"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(HeadError, match=message):
        plan(**arguments)
