"""Metrics against scikit-learn and scipy, on the data and on resamples (rows repeated as often as drawn)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from heads.errors import HeadError
from heads.evaluation.bootstrap import Bootstrap
from heads.evaluation.metrics import HEADLINE, evaluate, replicates
from heads.evaluation.sums import ECE_BINS

GOLDEN = [[99, 96, 0, 105], [9, 171, 52, 74], [2, 50, 313, 40], [3, 12, 5, 280]]
"""A published four-class confusion matrix: 1,311 brain MRI slices."""


def values(metrics, names=None):
    return {name: metrics[name]["value"] for name in (names or metrics) if isinstance(metrics.get(name), dict)}


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def binary_data(rng, n=200, decimals=1):
    """Scores with many ties."""
    y = (rng.random(n) < 0.3).astype(int)
    return y, np.round(np.clip(0.25 * y + 0.75 * rng.random(n), 0, 1), decimals)


@pytest.mark.parametrize("decimals", [1, 6], ids=["ties", "distinct"])
def test_binary_equals_scikit_learn(rng, decimals):
    y, p = binary_data(rng, decimals=decimals)
    predicted = p >= 0.4
    expected = {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": sk.balanced_accuracy_score(y, predicted),
        "roc_auc": sk.roc_auc_score(y, p),
        "average_precision": sk.average_precision_score(y, p),
        "f1": sk.f1_score(y, predicted),
        "sensitivity": sk.recall_score(y, predicted),
        "specificity": sk.recall_score(y, predicted, pos_label=0),
        "ppv": sk.precision_score(y, predicted),
        "npv": sk.precision_score(y, predicted, pos_label=0),
        "mcc": sk.matthews_corrcoef(y, predicted),
        "brier": sk.brier_score_loss(y, p),
        "log_loss": sk.log_loss(y, p),
        "weighted_precision": sk.precision_score(y, predicted, average="weighted"),
        "weighted_recall": sk.recall_score(y, predicted, average="weighted"),
        "weighted_f1": sk.f1_score(y, predicted, average="weighted"),
    }
    metrics = evaluate("binary", y, p, classes=["no", "yes"], thresholds=0.4, n_boot=10)
    assert values(metrics, expected) == pytest.approx(expected, abs=1e-12)
    assert metrics["confusion"]["counts"] == sk.confusion_matrix(y, predicted).tolist()
    assert metrics["prevalence"] == y.mean()


def test_binary_calibration_error_by_its_definition(rng):
    y, p = binary_data(rng, decimals=6)
    bins = np.minimum((p * ECE_BINS).astype(int), ECE_BINS - 1)
    expected = sum(
        (bins == b).mean() * abs(y[bins == b].mean() - p[bins == b].mean())
        for b in range(ECE_BINS)
        if (bins == b).any()
    )
    assert evaluate("binary", y, p, classes=["a", "b"], n_boot=1)["ece"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_the_interval_of_the_calibration_error_holds_its_value(rng, kind):
    """Scores are as right as they say: resamples are above the value, which plain percentiles leave out."""
    p = np.sort(rng.random(400))
    y = np.diff(np.floor(np.cumsum(p)), prepend=0)
    scores = {"binary": p, "multiclass": np.column_stack([1 - p, p]), "multilabel": p[:, None]}[kind]
    truth, names = (y[:, None] if kind == "multilabel" else y), ["b"] if kind == "multilabel" else ["a", "b"]
    found = evaluate(kind, truth, scores, classes=names, n_boot=200)
    ece = found["per_label"]["b"]["ece"] if kind == "multilabel" else found["ece"]
    assert 0 <= ece["low"] < ece["value"] < ece["high"]
    if kind == "binary":
        plan = Bootstrap.of(400, None, n_boot=200, seed=0, level=0.95)
        drawn = replicates(kind, truth, scores, plan, classes=names)["ece"].values[1:]
        plain = np.percentile(drawn, [2.5, 50, 97.5])
        assert plain[0] > ece["value"]
        expected = np.maximum(plain[[0, 2]] - plain[1] + ece["value"], 0)
        assert (ece["low"], ece["high"]) == pytest.approx(tuple(expected), abs=1e-12)


def test_the_interval_of_a_small_calibration_error_ends_at_0(rng):
    y = np.repeat([0.0, 1.0, 1.0], 40)
    ece = evaluate("binary", y, np.full(120, 2 / 3), classes=["a", "b"], n_boot=200)["ece"]
    assert ece["value"] == pytest.approx(0, abs=1e-12)
    assert 0 == ece["low"] <= ece["value"] < ece["high"]


@pytest.mark.parametrize("grouped", [False, True])
def test_every_resample_of_a_binary_task_equals_scikit_learn_on_repeated_rows(rng, grouped):
    y, p = binary_data(rng, n=60)
    groups = rng.integers(0, 20, 60) if grouped else np.arange(60)
    names, cluster = np.unique(groups, return_inverse=True)
    first_seen = np.argsort(np.unique(cluster, return_index=True)[1])  # groups are numbered as they appear
    draws = np.random.default_rng(3).integers(0, len(names), (200, len(names)))
    auc, ap, f1, weighted = [], [], [], []
    for draw in draws:
        rows = np.concatenate([np.flatnonzero(cluster == first_seen[c]) for c in draw])
        if len(set(y[rows])) == 2:
            auc.append(sk.roc_auc_score(y[rows], p[rows]))
            ap.append(sk.average_precision_score(y[rows], p[rows]))
            f1.append(sk.f1_score(y[rows], p[rows] >= 0.5))
        weighted.append(sk.precision_score(y[rows], p[rows] >= 0.5, average="weighted", zero_division=0))
    metrics = evaluate(
        "binary", y, p, classes=["a", "b"], groups=groups if grouped else None, n_boot=200, seed=3, level=0.9
    )
    by_name = {"roc_auc": auc, "average_precision": ap, "f1": f1, "weighted_precision": weighted}
    for name, series in by_name.items():
        interval = (metrics[name]["low"], metrics[name]["high"])
        assert interval == pytest.approx(np.percentile(series, [5, 95]), abs=1e-12), name


def test_interval_equals_scipy_bootstrap_with_the_same_seed(rng):
    y, p = binary_data(rng, n=80)
    expected = scipy.stats.bootstrap(
        (y, p),
        lambda y, p: sk.roc_auc_score(y, p),
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=300,
        rng=np.random.default_rng(11),
    ).confidence_interval
    found = evaluate("binary", y, p, classes=["a", "b"], n_boot=300, seed=11)["roc_auc"]
    assert (found["low"], found["high"]) == pytest.approx(tuple(expected), abs=1e-12)


def test_threshold_is_inclusive():
    metrics = evaluate("binary", [0, 1], [0.2, 0.5], classes=["a", "b"], thresholds=0.5, n_boot=5)
    assert metrics["sensitivity"]["value"] == 1.0


def test_one_class_only_is_undefined_with_a_reason():
    metrics = evaluate("binary", [0, 0, 0], [0.1, 0.2, 0.3], classes=["a", "b"], n_boot=20)
    assert metrics["roc_auc"] == {"value": None, "low": None, "high": None, "reason": "needs positives and negatives"}
    assert metrics["specificity"]["value"] == 1.0
    for name in ("sensitivity", "average_precision", "balanced_accuracy", "mcc", "f1", "ppv"):
        assert metrics[name]["value"] is None, name
        assert metrics[name]["reason"], name


@pytest.mark.parametrize("cut", [0.0, 2.0])
def test_a_class_that_is_never_predicted_has_precision_0_in_the_averages_of_both(rng, cut):
    y, p = binary_data(rng)
    found = evaluate("binary", y, p, classes=["a", "b"], thresholds=cut, n_boot=5)
    for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
        expected = score(y, p >= cut, average="weighted", zero_division=0)
        assert found[f"weighted_{name}"]["value"] == pytest.approx(expected, abs=1e-12)
        assert found[f"weighted_{name}"]["low"] <= expected <= found[f"weighted_{name}"]["high"]


def test_single_row_has_a_value_but_no_interval():
    accuracy = evaluate("binary", [1], [0.9], classes=["a", "b"], n_boot=20)["accuracy"]
    assert (accuracy["value"], accuracy["low"]) == (1.0, None)
    assert "one group" in accuracy["reason"]


def test_undefined_resamples_are_counted_and_too_many_leave_no_interval(rng):
    y = np.array([1] + [0] * 30)
    auc = evaluate("binary", y, rng.random(31), classes=["a", "b"], n_boot=400)["roc_auc"]
    assert auc["undefined_resamples"] == pytest.approx(400 * np.exp(-1), rel=0.2)
    assert auc["low"] is not None
    rare = evaluate("binary", y, rng.random(31), classes=["a", "b"], groups=["x"] + ["y"] * 30, n_boot=400)["roc_auc"]
    assert rare["low"] is None
    assert "undefined in" in rare["reason"]


def test_scores_that_are_no_probabilities_have_no_calibration(rng):
    y, p = binary_data(rng)
    metrics = evaluate("binary", y, 6 * p - 3, classes=["a", "b"], thresholds=0.0, n_boot=5)
    assert metrics["roc_auc"]["value"] == pytest.approx(sk.roc_auc_score(y, p))
    for name in ("brier", "log_loss", "ece"):
        assert metrics[name]["reason"] == "the scores are not probabilities"


def test_no_resamples_give_values_without_intervals(rng):
    y, p = binary_data(rng)
    accuracy = evaluate("binary", y, p, classes=["a", "b"], n_boot=0)["accuracy"]
    assert accuracy["value"] == pytest.approx(((p >= 0.5) == y).mean())
    assert accuracy["low"] is None


def multiclass_data(rng, n=150, k=4):
    y = rng.choice(k, n, p=[0.5, 0.3, 0.15, 0.05])
    proba = np.round(rng.dirichlet(np.ones(k), n), 1) + 0.1 + 0.3 * np.eye(k)[y]
    return y, proba / proba.sum(1, keepdims=True)


def sklearn_multiclass(y, proba):
    predicted = proba.argmax(1)
    one_hot = np.eye(proba.shape[1])[y]
    present = np.flatnonzero((one_hot.sum(0) > 0) & (one_hot.sum(0) < len(y)))
    expected = {
        "accuracy": sk.accuracy_score(y, predicted),
        "balanced_accuracy": np.mean([(predicted[y == c] == c).mean() for c in np.unique(y)]),
        "mcc": sk.matthews_corrcoef(y, predicted),
        "cohen_kappa": sk.cohen_kappa_score(y, predicted),
        "log_loss": -np.log(proba[np.arange(len(y)), y]).mean(),
        "macro_roc_auc": np.mean([sk.roc_auc_score(one_hot[:, c], proba[:, c]) for c in present]),
        "macro_average_precision": np.mean([sk.average_precision_score(one_hot[:, c], proba[:, c]) for c in present]),
        "micro_roc_auc": sk.roc_auc_score(one_hot, proba, average="micro"),
        "micro_average_precision": sk.average_precision_score(one_hot, proba, average="micro"),
    }
    for average in ("macro", "micro", "weighted"):
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            expected[f"{average}_{name}"] = score(y, predicted, average=average, zero_division=0)
    return expected


def test_multiclass_equals_scikit_learn(rng):
    y, proba = multiclass_data(rng)
    metrics = evaluate("multiclass", y, proba, classes=list("abcd"), n_boot=10)
    expected = sklearn_multiclass(y, proba)
    assert values(metrics, expected) == pytest.approx(expected, abs=1e-9)
    assert metrics["log_loss"]["value"] == pytest.approx(sk.log_loss(y, proba), abs=1e-6)
    assert metrics["confusion"]["counts"] == sk.confusion_matrix(y, proba.argmax(1)).tolist()
    precision, recall, f1, support = sk.precision_recall_fscore_support(y, proba.argmax(1))
    for c, name in enumerate("abcd"):
        found = metrics["per_class"][name]
        assert found["support"] == support[c]
        assert values(found, ["precision", "recall", "f1"]) == pytest.approx(
            {"precision": precision[c], "recall": recall[c], "f1": f1[c]}
        )


def test_multiclass_resamples_equal_scikit_learn_even_without_some_class(rng):
    y, proba = multiclass_data(rng, n=40)
    draws = np.random.default_rng(0).integers(0, 40, (150, 40))
    by_resample = [sklearn_multiclass(y[rows], proba[rows]) for rows in draws]
    metrics = evaluate("multiclass", y, proba, classes=list("abcd"), n_boot=150)
    for name in by_resample[0]:
        low, high = np.percentile([resample[name] for resample in by_resample], [2.5, 97.5])
        assert (metrics[name]["low"], metrics[name]["high"]) == pytest.approx((low, high), abs=1e-9), name
    missing = sum(len(set(y[rows])) < 4 for rows in draws)
    assert missing
    assert metrics["macro_roc_auc"]["partial_resamples"] == missing


def test_top_label_calibration_by_its_definition(rng):
    y, proba = multiclass_data(rng)
    confidence, correct = proba.max(1), proba.argmax(1) == y
    bins = np.minimum((confidence * ECE_BINS).astype(int), ECE_BINS - 1)
    expected = sum(abs((correct - confidence)[bins == b].sum()) for b in range(ECE_BINS)) / len(y)
    found = evaluate("multiclass", y, proba, classes=list("abcd"), n_boot=1)["ece"]["value"]
    assert found == pytest.approx(expected)


def test_published_confusion_matrix():
    counts = np.array(GOLDEN)
    truth, predicted = np.repeat(np.indices((4, 4)).reshape(2, -1), counts.ravel(), axis=1)
    metrics = evaluate("multiclass", truth, np.eye(4)[predicted], classes=["g", "m", "n", "p"], n_boot=50)
    assert metrics["accuracy"]["value"] == pytest.approx(0.658276, abs=5e-7)
    recalls = [metrics["per_class"][name]["recall"]["value"] for name in "gmnp"]
    assert recalls == pytest.approx([0.33, 0.5588, 0.7728, 0.9333], abs=5e-5)
    precisions = [metrics["per_class"][name]["precision"]["value"] for name in "gmnp"]
    assert precisions == pytest.approx([0.8761, 0.5198, 0.8459, 0.5611], abs=5e-5)
    f1 = [metrics["per_class"][name]["f1"]["value"] for name in "gmnp"]
    assert f1 == pytest.approx([0.4794, 0.5386, 0.8077, 0.7009], abs=5e-5)
    assert metrics["confusion"]["counts"] == GOLDEN


def multilabel_data(rng, n=120, labels=5, missing=0.15):
    y = (rng.random((n, labels)) < np.linspace(0.1, 0.5, labels)).astype(float)
    scores = np.round(np.clip(0.3 * y + 0.7 * rng.random((n, labels)), 0, 1), 2)
    y[rng.random((n, labels)) < missing] = np.nan
    return y, scores


def test_multilabel_without_missing_labels_equals_scikit_learn(rng):
    y, scores = multilabel_data(rng, missing=0.0)
    predicted = scores >= 0.5
    expected = {
        "exact_match": sk.accuracy_score(y, predicted),
        "hamming_loss": sk.hamming_loss(y, predicted),
        "macro_roc_auc": sk.roc_auc_score(y, scores, average="macro"),
        "macro_average_precision": sk.average_precision_score(y, scores, average="macro"),
        "micro_roc_auc": sk.roc_auc_score(y, scores, average="micro"),
        "micro_average_precision": sk.average_precision_score(y, scores, average="micro"),
    }
    for average in ("macro", "micro", "weighted"):
        for name, score in (("precision", sk.precision_score), ("recall", sk.recall_score), ("f1", sk.f1_score)):
            expected[f"{average}_{name}"] = score(y, predicted, average=average, zero_division=0)
    metrics = evaluate("multilabel", y, scores, classes=list("abcde"), n_boot=5)
    assert values(metrics, expected) == pytest.approx(expected, abs=1e-12)
    assert metrics["left_out"] == {}


def test_multilabel_masks_unknown_labels_per_label(rng):
    y, scores = multilabel_data(rng)
    metrics = evaluate("multilabel", y, scores, classes=list("abcde"), thresholds=[0.3, 0.4, 0.5, 0.6, 0.7], n_boot=5)
    known = np.isfinite(y)
    predicted = scores >= [0.3, 0.4, 0.5, 0.6, 0.7]
    for j, label in enumerate("abcde"):
        truth, score, said = y[known[:, j], j], scores[known[:, j], j], predicted[known[:, j], j]
        found = metrics["per_label"][label]
        assert (found["support"], found["n_observed"]) == (truth.sum(), known[:, j].sum())
        assert found["roc_auc"]["value"] == pytest.approx(sk.roc_auc_score(truth, score))
        assert found["average_precision"]["value"] == pytest.approx(sk.average_precision_score(truth, score))
        assert found["brier"]["value"] == pytest.approx(sk.brier_score_loss(truth, score))
        assert found["f1"]["value"] == pytest.approx(sk.f1_score(truth, said))
        assert found["npv"]["value"] == pytest.approx(sk.precision_score(truth, said, pos_label=0))
        assert found["recall"] == found["sensitivity"]
    complete = known.all(1)
    assert metrics["exact_match"]["value"] == pytest.approx((predicted == y)[complete].all(1).mean())
    assert metrics["hamming_loss"]["value"] == pytest.approx((predicted != y)[known].mean())
    assert metrics["micro_roc_auc"]["value"] == pytest.approx(sk.roc_auc_score(y[known], scores[known]))
    assert metrics["micro_average_precision"]["value"] == pytest.approx(
        sk.average_precision_score(y[known], scores[known])
    )


def test_multilabel_resamples_equal_scikit_learn_on_repeated_rows(rng):
    y, scores = multilabel_data(rng, n=40, labels=3)
    groups = np.arange(40) // 2
    draws = np.random.default_rng(0).integers(0, 20, (60, 20))

    def expected(rows):
        truth, score = y[rows], scores[rows]
        known, said = np.isfinite(truth), score >= 0.5
        complete = known.all(1)
        areas = [
            sk.roc_auc_score(truth[known[:, j], j], score[known[:, j], j])
            for j in range(3)
            if len(set(truth[known[:, j], j])) == 2
        ]
        return {
            "macro_roc_auc": np.mean(areas),
            "micro_roc_auc": sk.roc_auc_score(truth[known], score[known]),
            "micro_f1": sk.f1_score(truth[known], said[known]),
            "hamming_loss": (truth != said)[known].mean(),
            "exact_match": (truth == said)[complete].all(1).mean(),
        }

    by_resample = [expected(np.concatenate([np.flatnonzero(groups == g) for g in draw])) for draw in draws]
    metrics = evaluate("multilabel", y, scores, classes=list("abc"), groups=groups, n_boot=60)
    for name in by_resample[0]:
        low, high = np.percentile([resample[name] for resample in by_resample], [2.5, 97.5])
        assert (metrics[name]["low"], metrics[name]["high"]) == pytest.approx((low, high), abs=1e-9), name


def test_multilabel_macro_leaves_out_rare_labels_and_says_so(rng):
    y, scores = multilabel_data(rng)
    y[:, 0] = np.where(np.isnan(y[:, 0]), np.nan, 0.0)
    y[:3, 0] = 1.0
    y[:, 1] = np.nan
    metrics = evaluate("multilabel", y, scores, classes=list("abcde"), n_boot=30, min_positives=4)
    assert metrics["left_out"] == {"a": "3 positives, fewer than 4", "b": "0 positives, fewer than 4"}
    aucs = [metrics["per_label"][label]["roc_auc"]["value"] for label in "cde"]
    assert metrics["macro_roc_auc"]["value"] == pytest.approx(np.mean(aucs))
    assert metrics["per_label"]["a"]["roc_auc"]["value"] is not None
    assert metrics["per_label"]["b"]["brier"]["reason"] == "no sample has this label"
    none_left = evaluate("multilabel", y, scores, classes=list("abcde"), n_boot=3, min_positives=1000)
    assert none_left["macro_roc_auc"]["value"] is None
    assert len(none_left["left_out"]) == 5


def regression_data(rng, n=90):
    y = np.round(rng.normal(50, 10, n), 0)
    return y, np.round(0.7 * y + rng.normal(15, 6, n), 0)


def sklearn_regression(y, p):
    return {
        "mae": sk.mean_absolute_error(y, p),
        "mse": sk.mean_squared_error(y, p),
        "rmse": sk.root_mean_squared_error(y, p),
        "r2": sk.r2_score(y, p),
        "pearson_r": scipy.stats.pearsonr(y, p).statistic,
        "spearman_r": scipy.stats.spearmanr(y, p).statistic,
    }


def test_regression_and_its_resamples_equal_scikit_learn_and_scipy(rng):
    y, p = regression_data(rng)
    metrics = evaluate("regression", y, p, classes=["age"], n_boot=100)
    assert values(metrics, HEADLINE["regression"]) == pytest.approx(
        {name: sklearn_regression(y, p)[name] for name in HEADLINE["regression"]}, abs=1e-9
    )
    resamples = [sklearn_regression(y[rows], p[rows]) for rows in np.random.default_rng(0).integers(0, 90, (100, 90))]
    for name in resamples[0]:
        low, high = np.percentile([resample[name] for resample in resamples], [2.5, 97.5])
        assert (metrics[name]["low"], metrics[name]["high"]) == pytest.approx((low, high), abs=1e-9), name


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6 / 3])
def test_constant_prediction_has_no_correlation(rng, constant):
    y, _ = regression_data(rng)
    metrics = evaluate("regression", y, np.full(len(y), constant), classes=["age"], n_boot=20)
    assert metrics["pearson_r"]["value"] is None
    assert metrics["spearman_r"]["value"] is None
    assert metrics["r2"]["value"] == pytest.approx(sk.r2_score(y, np.full(len(y), constant)))


def test_regression_on_one_row_is_an_error_without_correlation():
    metrics = evaluate("regression", [1.0], [3.0], classes=["t"], n_boot=5)
    assert metrics["mae"]["value"] == 2.0
    assert metrics["r2"]["reason"] == "the truth is constant"


def test_several_targets_are_averaged_and_masked(rng):
    (y1, p1), (y2, p2) = regression_data(rng), regression_data(rng)
    y2[:20] = np.nan
    metrics = evaluate("regression", np.stack([y1, y2], 1), np.stack([p1, p2], 1), classes=["a", "b"], n_boot=20)
    one, two = sklearn_regression(y1, p1), sklearn_regression(y2[20:], p2[20:])
    for name in one:
        assert metrics[name]["value"] == pytest.approx((one[name] + two[name]) / 2), name
        assert metrics["per_target"]["b"][name]["value"] == pytest.approx(two[name]), name
    assert metrics["per_target"]["b"]["n_observed"] == 70


def test_result_is_json_and_repeats_with_the_seed(rng):
    y, scores = multilabel_data(rng)
    one, two = (evaluate("multilabel", y, scores, classes=list("abcde"), n_boot=20, seed=5) for _ in range(2))
    assert json.dumps(one, allow_nan=False) == json.dumps(two)
    other = evaluate("multilabel", y, scores, classes=list("abcde"), n_boot=20, seed=6)
    assert other["macro_roc_auc"]["low"] != one["macro_roc_auc"]["low"]


def test_chunks_do_not_change_the_result(rng, monkeypatch):
    y, p = binary_data(rng)
    whole = evaluate("binary", y, p, classes=["a", "b"], n_boot=50)
    monkeypatch.setattr("heads.evaluation.bootstrap.CHUNK", 7 * len(y))
    assert evaluate("binary", y, p, classes=["a", "b"], n_boot=50) == whole


@pytest.mark.parametrize(
    ("kind", "y", "scores", "message"),
    [
        ("binary", [0, 1, 2], [0.1, 0.2, 0.3], "0, 1 or"),
        ("binary", [0, np.nan], [0.1, 0.2], "every label"),
        ("binary", [0, 1], [0.1, np.nan], "finite"),
        ("binary", [], [], "at least one sample"),
        ("binary", [0, 1], [[0.1, 0.9], [0.2, 0.8]], "shape"),
        ("multiclass", [0, 3], [[0.5, 0.5], [0.5, 0.5]], "class numbers 0 to 1"),
        ("multilabel", [[0, 1]], [[0.5]], "shape"),
        ("regression", [np.nan], [0.5], "every target is missing"),
        ("regression", [np.inf], [0.5], "infinities"),
        ("ordinal", [0, 1], [0.1, 0.2], "expected one of"),
    ],
)
def test_what_does_not_fit_is_refused(kind, y, scores, message):
    names = ["t"] if kind == "regression" else ["a", "b"]
    with pytest.raises(HeadError, match=message):
        evaluate(kind, y, scores, classes=names)
