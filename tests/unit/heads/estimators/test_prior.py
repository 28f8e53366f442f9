"""The prior: scikit-learn's dummy estimators, and what these do not know: weights of classes, missing labels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor

from heads.estimators.prior import PriorClassifier, PriorRegressor

RNG = np.random.default_rng(0)
X, NEW = RNG.normal(size=(60, 3)), RNG.normal(size=(5, 3))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_shares_equal_scikit_learn(classes: int, weighted: bool) -> None:
    y = np.arange(60) ** 2 % 7 % classes
    weight = RNG.uniform(0.1, 3, size=60) if weighted else None
    ours, theirs = (
        PriorClassifier().fit(X, y, sample_weight=weight),
        DummyClassifier(strategy="prior").fit(X, y, sample_weight=weight),
    )
    np.testing.assert_allclose(ours.predict_proba(NEW), theirs.predict_proba(NEW), rtol=1e-6)
    assert (ours.predict(NEW) == theirs.predict(NEW)).all()


def test_balanced_classes_are_equally_likely() -> None:
    y = np.repeat([0, 1, 2], [40, 15, 5])
    np.testing.assert_allclose(PriorClassifier(class_weight="balanced").fit(X, y).predict_proba(NEW), 1 / 3, rtol=1e-6)


def test_missing_labels_do_not_count() -> None:
    y = (RNG.random((60, 3)) < [0.5, 0.2, 0.8]).astype(float)
    y[RNG.random((60, 3)) < 0.3] = np.nan
    found = PriorClassifier().fit(X, y).predict_proba(NEW)
    np.testing.assert_allclose(found, np.tile(np.nanmean(y, axis=0), (5, 1)), rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_means_equal_scikit_learn(weighted: bool) -> None:
    y = RNG.normal(50, 10, size=(60, 2))
    weight = RNG.uniform(0.1, 3, size=60) if weighted else None
    ours, theirs = PriorRegressor().fit(X, y, sample_weight=weight), DummyRegressor().fit(X, y, sample_weight=weight)
    np.testing.assert_allclose(ours.predict(NEW), theirs.predict(NEW), rtol=1e-6)
    y[::3, 1] = np.nan
    np.testing.assert_allclose(PriorRegressor().fit(X, y).predict(NEW)[0], np.nanmean(y, axis=0), rtol=1e-6)
