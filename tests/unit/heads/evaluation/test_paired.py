"""Paired tests against brute force, scipy and published procedures."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, mean_absolute_error, roc_auc_score

from heads.errors import HeadError
from heads.evaluation.paired import delong, difference_of, holm, mcnemar, paired_difference


def scored(seed: int, n: int = 80, ties: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(float)
    shared = rng.normal(size=n)
    a, b = (1 / (1 + np.exp(-(weight * y + shared + rng.normal(size=n)))) for weight in (1.5, 0.7))
    return (y, a.round(1), b.round(1)) if ties else (y, a, b)


def delong_by_pairs(y: np.ndarray, a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The definition of DeLong et al. (1988), every pair by itself: difference and its variance."""
    kernels = []
    for s in (a, b):
        x, z = s[y == 1][:, None], s[y == 0][None, :]
        kernels.append((x > z) + 0.5 * (x == z))
    v10 = np.stack([kernel.mean(axis=1) for kernel in kernels])
    v01 = np.stack([kernel.mean(axis=0) for kernel in kernels])
    covariance = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    contrast = np.array([1.0, -1.0])
    return float(contrast @ v10.mean(axis=1)), float(contrast @ covariance @ contrast)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [True, False])
def test_delong_is_its_definition(seed: int, ties: bool) -> None:
    y, a, b = scored(seed, ties=ties)
    found = delong(y, a, b)
    difference, variance = delong_by_pairs(y, a, b)
    assert found.difference == pytest.approx(difference, abs=1e-12)
    assert found.difference == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b), abs=1e-12)
    z = difference / np.sqrt(variance)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-12)
    assert (found.low + found.high) / 2 == pytest.approx(difference, abs=1e-12)
    assert (found.high - found.low) / 2 == pytest.approx(stats.norm.ppf(0.975) * np.sqrt(variance), abs=1e-12)


def test_delong_is_antisymmetric_and_skips_unknown_rows() -> None:
    y, a, b = scored(3)
    forth, back = delong(y, a, b), delong(y, b, a)
    assert forth.difference == pytest.approx(-back.difference)
    assert forth.p == pytest.approx(back.p)
    with_gaps = np.append(y, np.nan), np.append(a, 0.3), np.append(b, 0.9)
    assert delong(*with_gaps) == forth


def test_delong_of_equal_scores_is_no_difference() -> None:
    y, a, _ = scored(0)
    assert delong(y, a, a) == (0.0, 0.0, 0.0, 1.0)


def test_delong_without_two_of_each_class_is_undefined() -> None:
    assert np.isnan(delong([0, 0, 0, 1], [0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]).p)
    with pytest.raises(HeadError, match="shape"):
        delong([0, 1], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3])


def test_delong_keeps_its_level_on_independent_rows() -> None:
    rng = np.random.default_rng(0)
    p = []
    for _ in range(400):
        y = rng.random(100) < 0.5
        shared = y + rng.normal(size=100)
        p.append(delong(y, shared + rng.normal(size=100), shared + rng.normal(size=100)).p)
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.09


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (3, 9), (12, 12), (59, 16), (400, 300)])
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    right_a = np.repeat([True, False, True], [only_a, only_b, 5])
    right_b = np.repeat([False, True, True], [only_a, only_b, 5])
    exact = mcnemar(right_a, right_b, method="exact")
    assert exact[:2] == (only_a, only_b)
    expected = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert exact.p == pytest.approx(expected, abs=1e-12)
    # Fagerland, Lydersen and Laake (2013): the exact p-value less the probability of what was observed.
    observed = stats.binom.pmf(only_a, only_a + only_b, 0.5)
    midp = 1.0 if only_a == only_b else expected - observed
    assert mcnemar(right_a, right_b).p == pytest.approx(midp, abs=1e-12)


def test_mcnemar_gives_the_published_mid_p() -> None:
    """Fagerland, Lydersen and Laake (2013), table 1: 1 against 7 discordant pairs; exact .070, mid-p .039."""
    right_a = np.repeat([True, False], [1, 7])
    assert mcnemar(right_a, ~right_a, method="exact").p == pytest.approx(0.0703, abs=5e-5)
    assert mcnemar(right_a, ~right_a).p == pytest.approx(0.0391, abs=5e-5)


def test_holm_is_the_step_down_procedure() -> None:
    # Reject p(i) while every smaller one is rejected at alpha / (m - i): the adjusted value is where that flips.
    p = np.array([0.01, 0.04, 0.03, 0.005])
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    rng = np.random.default_rng(1)
    p = rng.random(12) ** 3
    for alpha in np.linspace(0.001, 0.999, 200):
        rejected = np.zeros(12, bool)
        for k, i in enumerate(np.argsort(p)):
            if p[i] > alpha / (12 - k):
                break
            rejected[i] = True
        assert (holm(p) <= alpha).tolist() == rejected.tolist()
    assert all(one <= two for one, two in pairwise(holm(np.sort(p))))


def test_holm_leaves_undefined_tests_out_of_the_family() -> None:
    assert holm([0.02, np.nan, 0.03]) == pytest.approx([0.04, np.nan, 0.04], nan_ok=True)
    assert holm([]).shape == (0,)


def drawn_rows(groups: np.ndarray, n_boot: int, seed: int) -> list[np.ndarray]:
    """Resamples of whole groups, written out row by row."""
    names = list(dict.fromkeys(groups))
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(names), size=(n_boot, len(names)))
    return [np.concatenate([np.flatnonzero(groups == names[k]) for k in draw]) for draw in draws]


@pytest.mark.parametrize("metric", ["roc_auc", "f1"])
def test_clustered_bootstrap_is_brute_force(metric: str) -> None:
    y, a, b = scored(4)
    groups = np.arange(len(y)) // 4

    def value(rows: np.ndarray, s: np.ndarray) -> float:
        return float(roc_auc_score(y[rows], s[rows]) if metric == "roc_auc" else f1_score(y[rows], s[rows] >= 0.5))

    found = paired_difference("binary", y, a, b, metric=metric, groups=groups, n_boot=200, seed=7)
    differences = [value(rows, a) - value(rows, b) for rows in drawn_rows(groups, 200, 7)]
    everything = np.arange(len(y))
    expected = value(everything, a) - value(everything, b)
    assert found.difference == pytest.approx(expected, abs=1e-12)
    assert (found.low, found.high) == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=1e-12)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(expected) / np.std(differences, ddof=1)), abs=1e-12)


def test_clustered_bootstrap_of_a_regression_and_of_thresholds() -> None:
    rng = np.random.default_rng(2)
    y = rng.normal(size=60)
    a, b = y + rng.normal(size=60), y + 2 * rng.normal(size=60)
    found = paired_difference("regression", y, a, b, metric="mae", n_boot=300)
    assert found.difference == pytest.approx(mean_absolute_error(y, a) - mean_absolute_error(y, b))
    assert found.low < found.difference < found.high < 0
    truth, s, _ = scored(0)
    cuts = paired_difference("binary", truth, s, s, metric="f1", thresholds=(0.5, 0.2), n_boot=100)
    assert cuts.difference == pytest.approx(f1_score(truth, s >= 0.5) - f1_score(truth, s >= 0.2))


def test_clusters_widen_what_rows_would_claim() -> None:
    """Copies of a row are no new evidence: the clustered test ignores them, DeLong's does not."""
    y, a, b = scored(5, n=60)
    once = paired_difference("binary", y, a, b, metric="roc_auc", groups=np.arange(60), n_boot=500)
    copied = [np.repeat(values, 5) for values in (y, a, b)]
    five = paired_difference("binary", *copied, metric="roc_auc", groups=np.repeat(np.arange(60), 5), n_boot=500)
    assert five == pytest.approx(once)
    assert delong(*copied).p < delong(y, a, b).p


def test_clustered_bootstrap_keeps_its_level_where_delong_does_not() -> None:
    rng = np.random.default_rng(3)
    clustered, independent = [], []
    for i in range(120):
        y = np.repeat(rng.random(40) < 0.5, 5).astype(float)
        noise = [np.repeat(rng.normal(size=40), 5) + 0.3 * rng.normal(size=200) for _ in "ab"]
        a, b = (1 / (1 + np.exp(-y - part)) for part in noise)
        groups = np.arange(200) // 5
        clustered.append(paired_difference("binary", y, a, b, metric="roc_auc", groups=groups, n_boot=200, seed=i).p)
        independent.append(delong(y, a, b).p)
    assert np.mean(np.array(clustered) < 0.05) < 0.12
    assert np.mean(np.array(independent) < 0.05) > 0.25


def test_what_cannot_be_tested_is_undefined() -> None:
    assert np.isnan(difference_of(np.array([0.5]), np.array([0.4])).p)
    assert np.isnan(difference_of(np.array([0.5, np.nan, np.nan, 0.1]), np.zeros(4)).p)
    assert np.isnan(difference_of(np.full(5, 0.5), np.full(5, 0.4)).p)
    assert difference_of(np.full(5, 0.5), np.full(5, 0.5)) == (0.0, 0.0, 0.0, 1.0)
    y, a, b = scored(0)
    one_group = paired_difference("binary", y, a, b, metric="roc_auc", groups=["p"] * len(y))
    assert np.isfinite(one_group.difference)
    assert np.isnan(one_group[1:]).all()
    with pytest.raises(HeadError, match="roc_auc"):
        paired_difference("binary", [0, 1, 1], [0.1, 0.2, 0.3], [0.3, 0.2, 0.1], metric="auc")
