"""Thresholds against a search over every possible cut."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data.task import Task
from heads.errors import HeadError
from heads.evaluation.thresholds import choose_threshold, choose_thresholds, parse_rule


def rates(y, scores, threshold):
    said = scores >= threshold
    return said[y == 1].mean(), 1 - said[y == 0].mean()


def data(seed, n=60, decimals=1):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    return y, np.round(np.clip(0.3 * y + 0.7 * rng.random(n), 0, 1), decimals)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("rule", "worth"),
    [("youden", lambda sensitivity, specificity: sensitivity + specificity), ("gmean", lambda a, b: np.sqrt(a * b))],
)
def test_best_cut_is_as_good_as_any(seed, rule, worth):
    y, scores = data(seed)
    best = max(worth(*rates(y, scores, cut)) for cut in np.append(np.unique(scores), 2.0))
    found = choose_threshold(y, scores, rule=rule)
    assert worth(*rates(y, scores, found.value)) == pytest.approx(best)
    assert (found.sensitivity, found.specificity) == pytest.approx(rates(y, scores, found.value))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("at", [0.5, 0.9, 1.0])
def test_fixed_rates_are_reached_and_cost_no_more_than_they_must(seed, at):
    y, scores = data(seed)
    every = [rates(y, scores, cut) for cut in np.append(np.unique(scores), 2.0)]
    sensitive = choose_threshold(y, scores, rule="sensitivity", at=at)
    assert sensitive.sensitivity >= at - 1e-12
    assert sensitive.specificity == pytest.approx(max(b for a, b in every if a >= at - 1e-12))
    specific = choose_threshold(y, scores, rule="specificity", at=at)
    assert specific.specificity >= at - 1e-12
    assert specific.sensitivity == pytest.approx(max(a for a, b in every if b >= at - 1e-12))


def test_threshold_lies_midway_between_scores():
    assert choose_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]).value == pytest.approx(0.4)


def test_neighbouring_floats_are_still_told_apart():
    upper = np.nextafter(0.5, 1)
    found = choose_threshold([0, 1], [0.5, upper])
    assert (found.value, found.sensitivity, found.specificity) == (upper, 1.0, 1.0)


def test_ties_go_to_the_higher_sensitivity_and_constant_scores_are_finite():
    assert choose_threshold([0, 1, 0, 1], [0.1, 0.3, 0.6, 0.8]).sensitivity == 1.0
    constant = choose_threshold([0, 1], [0.7, 0.7])
    assert (constant.value, constant.sensitivity) == (0.7, 1.0)
    assert np.isfinite(choose_threshold([1, 0], [0.1, 0.9], rule="specificity", at=1.0).value)


def test_one_class_falls_back_to_half_and_says_why():
    found = choose_threshold([0, 0, np.nan], [0.2, 0.9, 0.4])
    assert (found.value, found.rule) == (0.5, "half")
    assert "one class" in found.reason


def test_each_label_has_its_own_and_unknown_labels_do_not_count():
    task = Task(kind="multilabel", targets=("findings",), classes=("a", "b"))
    y = np.array([[0, 0], [0, np.nan], [1, 1], [1, np.nan]])
    scores = np.array([[0.1, 0.4], [0.2, 0.9], [0.6, 0.8], [0.9, 0.1]])
    found = choose_thresholds(task, y, scores)
    assert {label: threshold.value for label, threshold in found.items()} == pytest.approx({"a": 0.4, "b": 0.6})
    assert json.loads(json.dumps(found["a"].to_dict()))["rule"] == "youden"
    with pytest.raises(HeadError, match="shape"):
        choose_thresholds(task, y[:, 0], scores[:, 0])


def test_a_binary_task_has_one_for_its_positive_class_and_others_have_none():
    task = Task(kind="binary", targets=("label",), classes=("benign", "malignant"))
    found = choose_thresholds(task, [0, 0, 1], [0.1, 0.3, 0.5], rule="specificity=1")
    assert {label: threshold.value for label, threshold in found.items()} == pytest.approx({"malignant": 0.4})
    several = Task(kind="multiclass", targets=("label",), classes=("a", "b", "c"))
    assert choose_thresholds(several, [0, 1, 2], np.eye(3)) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [("youden", ("youden", None)), ("0.5", ("half", None)), ("sensitivity=0.9", ("sensitivity", 0.9))],
)
def test_rules_are_read_from_words(text, expected):
    assert parse_rule(text) == expected


@pytest.mark.parametrize("text", ["yoden", "sensitivity", "sensitivity=high", "specificity=1.5", "gmean=0.3"])
def test_words_that_are_no_rule_are_refused(text):
    with pytest.raises(HeadError, match="threshold"):
        parse_rule(text)


@pytest.mark.parametrize(
    ("y", "scores"), [([0, 1], [0.1]), ([0, 2], [0.1, 0.2]), ([0, 1], [0.1, np.nan]), ([[0, 1]], [[0.1, 0.2]])]
)
def test_data_that_does_not_fit_is_refused(y, scores):
    with pytest.raises(HeadError, match="threshold"):
        choose_threshold(y, scores)
