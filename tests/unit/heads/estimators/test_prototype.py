"""The prototype head: equal to discriminant analysis with round clouds, wherever the two say the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestCentroid

from heads.estimators.prototype import PrototypeClassifier

RNG = np.random.default_rng(0)
MEANS = RNG.normal(size=(3, 6)) * 2
CODES = RNG.choice(3, p=[0.5, 0.3, 0.2], size=300)
ROWS = MEANS[CODES] + RNG.normal(size=(300, 6))


def plain(**params) -> PrototypeClassifier:
    return PrototypeClassifier(**{"metric": "euclidean", "standardize": False, **params})


def test_the_nearest_mean_wins_where_classes_are_equally_common() -> None:
    head = plain(class_weight="balanced").fit(ROWS, CODES)
    assert (head.predict(ROWS) == NearestCentroid().fit(ROWS, CODES).predict(ROWS)).all()


def test_the_formula_with_a_given_width() -> None:
    head = plain(width=1.5).fit(ROWS, CODES)
    means = np.stack([ROWS[c == CODES].mean(axis=0) for c in range(3)])
    share = np.bincount(CODES) / len(CODES)
    distance = np.square(ROWS[:, None] - means).sum(axis=2)
    assert np.allclose(head.predict_proba(ROWS), softmax(-distance / (2 * 1.5**2) + np.log(share), axis=1))


def test_on_one_feature_it_is_linear_discriminant_analysis() -> None:
    x, y = ROWS[:, :1], (CODES > 0).astype(int)
    # The covariance of LDA's solver "lsqr" is the maximum-likelihood one, as is our width.
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    assert np.allclose(plain().fit(x, y).predict_proba(x), reference.predict_proba(x), atol=1e-6)


def test_cosine_does_not_see_lengths() -> None:
    head = plain(metric="cosine").fit(ROWS, CODES)
    lengths = RNG.uniform(0.1, 9, size=(300, 1))
    assert np.allclose(head.predict_proba(ROWS * lengths), head.predict_proba(ROWS))
    assert np.allclose(np.linalg.norm(head.means_, axis=1), 1)


def test_shrinkage_draws_means_together() -> None:
    whole = ROWS.mean(axis=0)
    means = [plain(shrinkage=s).fit(ROWS, CODES).means_ for s in (0.0, 0.5)]
    assert np.allclose(means[1], whole + 0.5 * (means[0] - whole))


def test_labels_are_as_many_binary_tasks() -> None:
    labels = np.column_stack([CODES == 0, CODES == 1]).astype(float)
    labels[:50, 1] = np.nan
    head = plain().fit(ROWS, labels)
    for t in range(2):
        known = ~np.isnan(labels[:, t])
        alone = plain().fit(ROWS[known], labels[known, t].astype(int))
        assert np.allclose(head.predict_proba(ROWS)[:, t], alone.predict_proba(ROWS)[:, 1])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_means_that_coincide_leave_the_shares(metric: str) -> None:
    X = np.ones((10, 4))
    head = plain(metric=metric).fit(X, np.array([0] * 7 + [1] * 3))
    assert np.allclose(head.predict_proba(X), [[0.7, 0.3]])


def test_few_samples_per_class_do() -> None:
    few = np.concatenate([np.flatnonzero(c == CODES)[:4] for c in range(3)])
    rest = np.setdiff1d(np.arange(300), few)
    probability = plain().fit(ROWS[few], CODES[few]).predict_proba(ROWS[rest])
    assert roc_auc_score(CODES[rest], probability, multi_class="ovr") > 0.9
