from __future__ import annotations

import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from data.errors import SplitError
from data.split import holdout, make_folds, parse_split


def imbalance(counts: NDArray[np.float64]) -> float:
    """Mean deviation of each fold's share of each class from an equal share; counts of shape (folds, classes)."""
    return float(np.abs(counts / counts.sum(axis=0) - 1 / len(counts)).mean())


def counts_of(folds: NDArray[np.intp], y: NDArray[np.int64], n_folds: int) -> NDArray[np.float64]:
    return np.array([np.bincount(y[folds == fold], minlength=y.max() + 1) for fold in range(n_folds)], dtype=float)


class TestGivenSplit:
    def test_synonyms_in_any_case(self) -> None:
        column = ("Training", "TRAIN", "dev", "Valid", "validation", " test ", "Testing", None)
        assert parse_split(column).tolist() == ["train", "train", "val", "val", "val", "test", "test", ""]

    def test_unknown_name_has_its_row(self) -> None:
        with pytest.raises(SplitError, match=r"row 5: 'tset' is no split \(1 such rows\)"):
            parse_split(("train", "tset"), rows=(2, 5))
        with pytest.raises(SplitError, match="row 2: '0'"):
            parse_split(("train", "0"))

    def test_all_empty(self) -> None:
        with pytest.raises(SplitError, match="all 2 cells are empty"):
            parse_split((None, None))


class TestFolds:
    def test_single_rows_are_stratified_to_the_row(self) -> None:
        y = np.repeat([0, 1, 2], [103, 51, 7])
        folds = make_folds(y, "multiclass", None, 5, 0)
        counts = counts_of(folds.assignment, y, 5)
        assert (np.ptp(counts, axis=0) <= 1).all()
        assert np.ptp(counts.sum(axis=1)) <= 1
        assert folds.warnings == ()

    def test_seed_decides(self) -> None:
        y = np.arange(100) % 2
        first, again, other = (make_folds(y, "binary", None, 5, seed).assignment for seed in (1, 1, 2))
        assert (first == again).all()
        assert (first != other).any()

    @pytest.mark.parametrize("correlated", [False, True])
    @pytest.mark.parametrize(("n", "n_groups", "shares"), [(600, 150, (0.9, 0.1)), (900, 250, (0.5, 0.3, 0.15, 0.05))])
    def test_at_least_as_even_as_scikit_learn(
        self, n: int, n_groups: int, shares: tuple[float, ...], correlated: bool
    ) -> None:
        rng = np.random.default_rng(0)
        ours, theirs = [], []
        for seed in range(8):
            groups = rng.integers(0, n_groups, n)
            y = rng.choice(len(shares), p=shares, size=n)
            if correlated:
                y = y[groups]
            ours.append(imbalance(counts_of(make_folds(y, "multiclass", groups, 5, seed).assignment, y, 5)))
            reference = np.zeros(n, dtype=np.intp)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(y, y, groups)
                for fold, (_, test) in enumerate(splitter):
                    reference[test] = fold
            theirs.append(imbalance(counts_of(reference, y, 5)))
        assert np.mean(ours) <= np.mean(theirs) * 1.02

    def test_multilabel_is_far_more_even_than_chance(self) -> None:
        rng = np.random.default_rng(0)
        y = (rng.random((800, 12)) < np.geomspace(0.3, 0.02, 12)).astype(np.float32)
        y[rng.random(y.shape) < 0.05] = np.nan
        groups = rng.integers(0, 300, 800)
        ours = make_folds(y, "multilabel", groups, 5, 0).assignment
        chance = np.zeros(800, dtype=np.intp)
        for fold, (_, test) in enumerate(GroupKFold(5, shuffle=True, random_state=0).split(y, groups=groups)):
            chance[test] = fold
        positives = [np.array([np.nansum(y[folds == k], axis=0) for k in range(5)]) for folds in (ours, chance)]
        assert imbalance(positives[0]) < 0.25 * imbalance(positives[1])
        assert np.ptp(np.bincount(ours)) <= 8

    def test_regression_spreads_the_quantiles(self) -> None:
        y = np.random.default_rng(0).lognormal(size=500)
        folds = make_folds(y, "regression", None, 5, 0).assignment
        upper = np.array([(y[folds == fold] > np.quantile(y, 0.9)).sum() for fold in range(5)])
        assert upper.tolist() == [10] * 5

    def test_several_regression_targets(self) -> None:
        y = np.random.default_rng(0).normal(size=(300, 2))
        y[:30, 0] = np.nan
        folds = make_folds(y, "regression", None, 3, 0).assignment
        means = np.array([np.nanmean(y[folds == fold], axis=0) for fold in range(3)])
        assert np.ptp(means, axis=0).max() < 0.15
        assert np.ptp(np.bincount(folds)) <= 3

    def test_missing_labels_are_spread_too(self) -> None:
        y = np.repeat([0, 1, -1], [40, 20, 40])
        folds = make_folds(y, "binary", None, 4, 0).assignment
        assert np.bincount(folds[y < 0]).tolist() == [10] * 4
        assert np.bincount(folds[y == 1]).tolist() == [5] * 4

    def test_rare_class_gives_a_warning(self) -> None:
        y = np.array([0] * 40 + [1] * 40 + [2, 2, 2])
        groups = np.concatenate([np.arange(80), [80, 80, 81]])
        (warning,) = make_folds(y, "multiclass", groups, 5, 0, classes=("a", "b", "hernia")).warnings
        assert warning.endswith("some folds have none of them: hernia (2)")

    def test_too_few_groups(self) -> None:
        y, groups = np.array([0, 1, 0, 1, -1]), np.array(["p", "p", "q", "q", "r"])
        with pytest.raises(
            SplitError, match=r"5 folds asked for, but there are only 2 groups with a label .*--folds 2"
        ):
            make_folds(y, "binary", groups, 5, 0)
        with pytest.raises(SplitError, match="at least 2"):
            make_folds(y, "binary", groups, 1, 0)

    def test_as_many_groups_as_folds_fills_every_fold(self) -> None:
        y = np.array([0, 0, 0, 1, 1, -1, -1])
        folds = make_folds(y, "binary", np.array([0, 0, 1, 2, 3, 4, 5]), 4, 0).assignment
        assert set(folds[y >= 0]) == {0, 1, 2, 3}

    def test_hundred_thousand_groups(self) -> None:
        y = np.random.default_rng(0).integers(0, 5, 100_000)
        folds = make_folds(y, "multiclass", None, 5, 0).assignment
        assert (np.ptp(counts_of(folds, y, 5), axis=0) <= 1).all()


class TestHoldout:
    def test_stratified_share(self) -> None:
        y = np.repeat([0, 1], [180, 20])
        mask = holdout(y, "binary", None, 0.15, 0)
        assert np.bincount(y[mask]).tolist() == [27, 3]

    def test_large_groups_are_held_out_in_proportion(self) -> None:
        rng = np.random.default_rng(0)
        sizes = np.minimum(rng.zipf(1.7, size=400), 40)
        groups = np.repeat(np.arange(400), sizes)
        mask = holdout(rng.integers(0, 3, len(groups)), "multiclass", groups, 0.2, 0)
        assert mask.mean() == pytest.approx(0.2, abs=0.01)
        held = np.unique(groups[mask])
        assert 0.5 < sizes[held].mean() / sizes.mean() < 2

    def test_few_groups_still_hold_one_out(self) -> None:
        y = np.array([0, 1, 0, 1, 0, 1, -1])
        mask = holdout(y, "binary", np.array([0, 0, 0, 1, 1, 2, 3]), 0.05, 0)
        assert (y[mask] >= 0).any()
        assert (y[~mask] >= 0).any()

    @pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
    def test_fraction_out_of_range(self, fraction: float) -> None:
        with pytest.raises(SplitError, match="between 0 and 1"):
            holdout(np.array([0, 1]), "binary", None, fraction, 0)

    def test_one_group(self) -> None:
        with pytest.raises(SplitError, match="only 1 groups with a label"):
            holdout(np.array([0, 1]), "binary", np.array(["p", "p"]), 0.2, 0)
