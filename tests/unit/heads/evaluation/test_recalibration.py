"""Calibration after the fit, against scikit-learn, scipy and brute force."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score

from data.errors import ConfigError
from data.task import Task
from heads.errors import BundleError
from heads.evaluation.recalibration import (
    HOTTEST,
    Recalibration,
    cross_recalibrated,
    read_recalibration,
    recalibrate,
)
from heads.evaluation.reliability import judge_reliability

BINARY = Task(kind="binary", targets=("y",), classes=("no", "yes"))
MULTI = Task(kind="multiclass", targets=("y",), classes=("a", "b", "c"))
LABELS = Task(kind="multilabel", targets=("a", "b", "c"), classes=("a", "b", "c"))
REGRESSION = Task(kind="regression", targets=("y",))


def binary(n: int = 400, heat: float = 3.0, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return outcomes and overconfident scores: logits `heat` times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=n) * 1.5
    return (rng.random(n) < expit(logits)).astype(np.int64), expit(heat * logits)


def multiclass(n: int = 500, heat: float = 2.5, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 3)) * 1.5
    y = np.array([rng.choice(3, p=p) for p in softmax(logits, axis=1)])
    return y, softmax(heat * logits, axis=1)


def test_the_temperature_of_a_binary_task_is_the_best_one_and_finds_the_heat() -> None:
    y, scores = binary(4000)
    found = recalibrate("temperature", BINARY, y, scores)
    reference = minimize(lambda t: log_loss(y, expit(logit(scores) / t[0])), [1.0], bounds=[(0.1, 10)]).x[0]
    assert found.temperatures[0] == pytest.approx(reference, abs=1e-3)
    assert found.temperatures[0] == pytest.approx(3.0, abs=0.3)
    np.testing.assert_allclose(found.apply(scores), expit(logit(scores) / found.temperatures[0]))
    assert roc_auc_score(y, found.apply(scores)) == roc_auc_score(y, scores)


def test_the_temperature_of_classes_is_the_best_one_and_keeps_the_winner() -> None:
    y, scores = multiclass()
    found = recalibrate("temperature", MULTI, y, scores)

    def loss(t: NDArray[Any]) -> float:
        return -log_softmax(np.log(scores) / t[0], axis=1)[np.arange(len(y)), y].mean()

    assert found.temperatures[0] == pytest.approx(minimize(loss, [1.0], bounds=[(0.1, 10)]).x[0], abs=1e-3)
    calibrated = found.apply(scores)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1)
    np.testing.assert_array_equal(calibrated.argmax(axis=1), scores.argmax(axis=1))


def test_isotonic_is_scikit_learns() -> None:
    y, scores = binary()
    found = recalibrate("isotonic", BINARY, y, scores)
    new = np.linspace(-0.1, 1.1, 57)
    reference = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores, y)
    np.testing.assert_allclose(found.apply(new), reference.predict(new), atol=1e-12)


def test_isotonic_of_classes_is_one_against_the_rest_scaled_to_one() -> None:
    y, scores = multiclass()
    found = recalibrate("isotonic", MULTI, y, scores)
    each = [
        IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(scores[:, j], y == j).predict(scores[:, j])
        for j in range(3)
    ]
    expected = np.stack(each, axis=1)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.apply(scores), expected)
    nothing = Recalibration(method="isotonic", kind="multiclass", curves=(((0.0, 1.0), (0.0, 0.0)),) * 3)
    np.testing.assert_allclose(nothing.apply(scores[:2]), 1 / 3)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_labels_are_calibrated_one_by_one_and_unknown_ones_do_not_count(method: Any) -> None:
    columns = [binary(seed=j) for j in range(2)]
    y = np.stack([columns[0][0], columns[1][0], np.ones(400)], axis=1).astype(np.float32)
    scores = np.stack([columns[0][1], columns[1][1], np.full(400, 0.7)], axis=1)
    y[::3, 0] = np.nan
    found = recalibrate(method, LABELS, y, scores)
    known = np.isfinite(y[:, 0])
    alone = recalibrate(method, BINARY, y[known, 0].astype(np.int64), scores[known, 0])
    np.testing.assert_allclose(found.apply(scores)[:, 0], alone.apply(scores[:, 0]))
    assert found.unchanged == (2,)
    np.testing.assert_allclose(found.apply(scores)[:, 2], 0.7, rtol=1e-12)


def test_scores_that_separate_perfectly_stop_at_the_bound() -> None:
    y = np.repeat([0, 1], 20)
    found = recalibrate("temperature", BINARY, y, np.where(y == 1, 0.7, 0.3))
    assert found.temperatures[0] == pytest.approx(1 / HOTTEST, rel=1e-3)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_a_fold_is_calibrated_by_the_others_alone(method: Any) -> None:
    y, scores = binary()
    folds = np.arange(len(y)) % 4
    calibrated = cross_recalibrated(method, BINARY, y, scores, folds)
    for fold in range(4):
        inside = folds == fold
        by_hand = recalibrate(method, BINARY, y[~inside], scores[~inside]).apply(scores[inside])
        np.testing.assert_array_equal(calibrated[inside], by_hand)
    flipped = np.where(folds == 2, 1 - y, y)
    changed = cross_recalibrated(method, BINARY, flipped, scores, folds)
    np.testing.assert_array_equal(changed[folds == 2], calibrated[folds == 2])
    assert (changed[folds == 1] != calibrated[folds == 1]).any()


def test_isotonic_on_noise_looks_no_better_than_chance_when_cross_fitted() -> None:
    rng = np.random.default_rng(0)
    y, scores, folds = rng.integers(0, 2, 200), rng.random(200), np.arange(200) % 5
    optimistic = recalibrate("isotonic", BINARY, y, scores).apply(scores)
    honest = cross_recalibrated("isotonic", BINARY, y, scores, folds)
    assert brier_score_loss(y, optimistic) < 0.25 < brier_score_loss(y, honest)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_a_map_survives_json(method: Any) -> None:
    y, scores = multiclass()
    found = recalibrate(method, MULTI, y, scores)
    again = read_recalibration(json.loads(json.dumps(found.to_dict())), "multiclass")
    assert again == found
    assert read_recalibration(None, "binary") is None


@pytest.mark.parametrize("values", [{}, {"method": "magic"}, {"method": "isotonic", "unchanged": [], "curves": [3]}])
def test_a_damaged_map_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="calibrat"):
        read_recalibration(values, "binary")


def test_a_regression_is_refused() -> None:
    with pytest.raises(ConfigError, match="--calibration temperature: a regression has no probabilities"):
        recalibrate("temperature", REGRESSION, np.zeros(3), np.zeros(3))


def test_reliability_of_a_binary_task_is_scikit_learns() -> None:
    y, scores = binary()
    found = judge_reliability(BINARY, y, scores, np.arange(len(y)), n_boot=50, seed=0)
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(y, scores))
    assert found["log_loss"]["value"] == pytest.approx(log_loss(y, scores))
    assert found["ece"]["value"] == pytest.approx(calibration_error(scores, y))
    assert found["brier"]["low"] < found["brier"]["value"] < found["brier"]["high"]


def test_reliability_of_classes_and_of_labels_is_scikit_learns() -> None:
    y, scores = multiclass()
    found = judge_reliability(MULTI, y, scores, np.arange(len(y)), n_boot=0, seed=0)
    assert found["brier"]["value"] == pytest.approx(brier_score_loss(y, scores, scale_by_half=False))
    assert found["log_loss"]["value"] == pytest.approx(log_loss(y, scores))
    assert found["ece"]["value"] == pytest.approx(calibration_error(scores.max(axis=1), scores.argmax(axis=1) == y))
    labels = np.eye(3)[y]
    labels[::7, 1] = np.nan
    known = np.isfinite(labels)
    pooled = judge_reliability(LABELS, labels, scores, np.arange(len(y)), n_boot=0, seed=0)
    assert pooled["brier"]["value"] == pytest.approx(brier_score_loss(labels[known], scores[known]))
    assert pooled["log_loss"]["value"] == pytest.approx(log_loss(labels[known], scores[known]))
    assert pooled["ece"]["value"] == pytest.approx(calibration_error(scores[known], labels[known]))


def calibration_error(confidence: NDArray[Any], outcome: NDArray[Any]) -> float:
    """Return the expected calibration error in 15 bins, bin by bin."""
    total = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            total += inside.mean() * abs(outcome[inside].mean() - confidence[inside].mean())
    return total
