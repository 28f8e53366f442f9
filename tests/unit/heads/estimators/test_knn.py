"""The knn head against scikit-learn's neighbours, and where it differs: missing labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from heads.estimators import knn
from heads.estimators.knn import KNNClassifier, KNNRegressor

Array = NDArray[Any]
METRICS = pytest.mark.parametrize("metric", ["cosine", "euclidean"])
WEIGHTS = pytest.mark.parametrize("weights", ["uniform", "distance"])


def rows(seed: int = 0) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(1, 2, size=(150, 8)), rng.integers(0, 3, 150), rng.normal(1, 2, size=(70, 8))


@METRICS
@WEIGHTS
def test_classes_equal_scikit_learn(metric: knn.Metric, weights: knn.Weights) -> None:
    X, y, new = rows()
    ours = KNNClassifier(k=7, metric=metric, weights=weights, standardize=False).fit(X, y)
    reference = KNeighborsClassifier(7, metric=metric, weights=weights).fit(X, y)
    if metric == "euclidean" or weights == "uniform":
        assert np.allclose(ours.predict_proba(new), reference.predict_proba(new))
    else:  # ours weighs by the distance of unit vectors, sqrt(2 x cosine distance)
        by_root = KNeighborsClassifier(7, metric="cosine", weights=lambda gaps: 1 / np.sqrt(2 * gaps)).fit(X, y)
        assert np.allclose(ours.predict_proba(new), by_root.predict_proba(new))


@WEIGHTS
def test_regression_equals_scikit_learn(weights: knn.Weights) -> None:
    X, _, new = rows()
    y = X[:, :2] ** 2
    ours = KNNRegressor(k=4, metric="euclidean", weights=weights, standardize=False).fit(X, y)
    assert np.allclose(ours.predict(new), KNeighborsRegressor(4, weights=weights).fit(X, y).predict(new))


@METRICS
@WEIGHTS
def test_missing_labels_are_passed_over(metric: knn.Metric, weights: knn.Weights) -> None:
    X, y, new = rows()
    Y = np.column_stack([y == 0, y == 1]).astype(float)
    Y[np.random.default_rng(1).random(Y.shape) < 0.4] = np.nan
    probability = KNNClassifier(k=5, metric=metric, weights=weights, standardize=False).fit(X, Y).predict_proba(new)
    for label in range(2):
        known = ~np.isnan(Y[:, label])
        alone = KNNClassifier(k=5, metric=metric, weights=weights, standardize=False).fit(X[known], Y[known, label])
        assert np.allclose(probability[:, label], alone.predict_proba(new)[:, 1])


def test_a_row_that_was_seen_decides_alone_by_distance() -> None:
    X, y, _ = rows()
    for dtype in (np.float32, np.float64):
        head = KNNClassifier(metric="euclidean").fit(X.astype(dtype) + 1000, y)
        assert (head.predict_proba(X.astype(dtype) + 1000).max(axis=1) == 1).all()
        assert np.array_equal(head.predict(X.astype(dtype) + 1000), y)


def test_fewer_rows_than_k() -> None:
    head = KNNClassifier(k=50, weights="uniform").fit([[0.0, 1.0], [1.0, 0.0], [1.0, 0.2]], ["a", "b", "b"])
    assert np.allclose(head.predict_proba([[5.0, 5.0]]), [[1 / 3, 2 / 3]])


def test_a_zero_row_has_no_direction_and_does_no_harm() -> None:
    X, y, _ = rows()
    X[0] = 0
    probability = KNNClassifier(standardize=False).fit(X, y).predict_proba(np.zeros((1, 8)))
    assert np.isfinite(probability).all()


def test_sample_weights_weigh_votes() -> None:
    head = KNNClassifier(k=2, weights="uniform", standardize=False, metric="euclidean")
    head.fit([[0.0], [1.0]], ["a", "b"], sample_weight=[3.0, 1.0])
    assert np.allclose(head.predict_proba([[0.5]]), [[0.75, 0.25]])


def test_prediction_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, new = rows()
    head = KNNClassifier().fit(X, y)
    whole = head.predict_proba(new)
    monkeypatch.setattr(knn, "BLOCK", 11)
    assert np.allclose(head.predict_proba(new), whole)


def test_retrieval_of_metadata_by_the_nearest_five() -> None:
    """The mean of numbers and the mode of words over the five nearest by cosine, planted and by brute force."""
    rng = np.random.default_rng(7)
    reports = rng.normal(size=(60, 8)).astype(np.float32)
    age, pressure = rng.uniform(20, 90, size=60), np.where(rng.random(60) < 0.3, np.nan, rng.uniform(80, 180, size=60))
    rhythm = rng.choice(["afib", "paced", "sinus"], size=60)
    queries = (reports[:5] * rng.uniform(0.1, 9, size=(5, 1)) + 0.01 * rng.normal(size=(5, 8))).astype(np.float32)
    how = {"k": 5, "metric": "cosine", "weights": "uniform", "standardize": False}
    numbers = KNNRegressor(**how).fit(reports, np.column_stack([age, pressure])).predict(queries)
    words = KNNClassifier(**how).fit(reports, rhythm)
    for i, query in enumerate(queries):
        cosine = reports @ query / np.linalg.norm(reports, axis=1) / np.linalg.norm(query)
        order = np.argsort(-cosine)
        assert order[0] == i
        assert numbers[i, 0] == pytest.approx(age[order[:5]].mean())
        # A missing value is passed over: the five nearest that have one.
        assert numbers[i, 1] == pytest.approx(pressure[order[~np.isnan(pressure[order])][:5]].mean())
        names, votes = np.unique(rhythm[order[:5]], return_counts=True)
        # Of equally many the first in order is named, and the shares show the tie.
        assert words.predict(queries)[i] == names[votes.argmax()]
        shares = dict(zip(words.classes_, words.predict_proba(queries)[i], strict=True))
        assert all(shares[name] == pytest.approx(count / 5) for name, count in zip(names, votes, strict=True))
