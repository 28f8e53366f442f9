"""The gbm head: the same trees as LightGBM itself, silence, texts, importances."""

from __future__ import annotations

import json

import lightgbm as lgb
import numpy as np
import pytest

from data.split import holdout
from heads.base import HeadWarning
from heads.errors import HeadError
from heads.estimators import _gbm
from heads.estimators.gbm import GBMClassifier, GBMRegressor
from heads.many import Job, fit_many

FEW = {"max_rounds": 40, "members": 2}


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 30)).astype(np.float32)
    return X, (X[:, 3] + 0.5 * X[:, 7] + 0.5 * rng.normal(size=300) > 0).astype(int)


def test_the_trees_are_those_of_lightgbm(data):
    X, y = data
    head = GBMClassifier(members=1, max_rounds=200, patience=10, feature_fraction=1.0, l2=1.0, min_leaf=5).fit(X, y)
    held = holdout(y, "binary", None, 0.2, int(np.random.SeedSequence(0).generate_state(1)[0]))
    params = {
        "objective": "binary",
        "learning_rate": 0.1,
        "num_leaves": 7,
        "min_data_in_leaf": 5,
        "lambda_l2": 1.0,
        "verbosity": -1,
        # The bins of the head are those of all rows, here too by way of `reference`.
        "max_bin": 63,
    }
    bins = lgb.Dataset(X, y, params=params)
    theirs = lgb.train(
        params,
        lgb.Dataset(X[~held], y[~held], reference=bins),
        num_boost_round=200,
        valid_sets=[lgb.Dataset(X[held], y[held], reference=bins)],
        callbacks=[lgb.early_stopping(10, verbose=False)],
    )
    assert head.best_rounds_ == [theirs.best_iteration]
    np.testing.assert_allclose(head.predict_proba(X)[:, 1], theirs.predict(X), atol=1e-12)


@pytest.mark.parametrize("made", [GBMClassifier, GBMRegressor])
def test_nothing_is_printed(data, made, capfd):
    X, y = data
    target = np.where(np.arange(600).reshape(300, 2) % 7, np.column_stack([y, 1 - y]), np.nan)
    head = made(**FEW).fit(X, target)
    made.from_state(head.get_params(), head.get_state()).predict(X)
    made(max_rounds=3, min_leaf=500).fit(X, y).predict(X)  # no split is possible
    assert capfd.readouterr() == ("", "")


def test_state_is_texts_and_json(data):
    X, y = data
    head = GBMClassifier(**FEW).fit(X, np.column_stack([y, 1 - y]).astype(float))
    state = head.get_state()
    assert sorted(state.texts) == ["model-0000.txt", "model-0001.txt", "model-0002.txt", "model-0003.txt"]
    assert all(text.startswith("tree\n") for text in state.texts.values())
    json.dumps(state.meta, allow_nan=False)
    assert "models_" not in state.meta
    loaded = GBMClassifier.from_state(head.get_params(), state)
    np.testing.assert_array_equal(loaded.predict_proba(X), head.predict_proba(X))
    assert loaded.get_state().texts == state.texts


def test_models_are_cut_at_their_best_round(data):
    X, y = data
    head = GBMClassifier(members=3, patience=5, max_rounds=300).fit(X, y)
    for text, rounds in zip(head.models_, head.best_rounds_, strict=True):
        assert lgb.Booster(model_str=text).num_trees() == rounds
    assert max(head.best_rounds_) + 5 == len(head.history_["monitor_loss"]) < 300
    assert head.history_["train_loss"][0] > head.history_["train_loss"][-1]


def test_a_missing_label_is_a_row_that_is_not_there_for_its_target(data):
    X, y = data
    known = np.random.default_rng(1).random(300) < 0.7
    target = np.column_stack([np.where(known, y, np.nan), 1.0 - y])
    wild = np.column_stack([np.where(known, y, 1 - y), 1.0 - y])
    settings = {"members": 1, "max_rounds": 30, "validation_fraction": 0.0}
    masked = GBMClassifier(**settings).fit(X, target)
    alone = GBMClassifier(**settings).fit(X, wild)
    assert masked.models_[1] == alone.models_[1]
    assert masked.models_[0] != alone.models_[0]
    trees = masked._boosters[0].dump_model()["tree_info"]
    assert trees[0]["tree_structure"]["internal_count"] == known.sum()


def test_importances_find_the_features_that_matter(data):
    X, y = data
    importances = GBMClassifier(**FEW).fit(X, y).feature_importances_
    assert importances.shape == (30,)
    assert importances.sum() == pytest.approx(1)
    assert importances.argsort()[-2:].tolist() == [7, 3]
    assert GBMClassifier(max_rounds=3, min_leaf=500).fit(X, y).feature_importances_.sum() == 0


@pytest.mark.parametrize(("features", "fraction"), [(6, 1.0), (100, 0.2), (1280, 0.05)])
def test_the_share_of_features_follows_their_number(features, fraction):
    assert GBMClassifier()._parameters(features)["feature_fraction"] == pytest.approx(fraction)


def test_seeds_matter_and_repeat(data):
    X, y = data
    first, again, other = (GBMClassifier(**FEW, random_state=seed).fit(X, y).predict_proba(X) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_regression_does_not_depend_on_the_unit(data):
    X, _ = data
    y = X[:, 3] + 0.1 * X[:, 5]
    for loss in ("mse", "mae", "huber"):
        one = GBMRegressor(**FEW, loss=loss).fit(X, y)
        other = GBMRegressor(**FEW, loss=loss).fit(X, 1024 * y - 4096)
        np.testing.assert_allclose(other.predict(X), 1024 * one.predict(X) - 4096, rtol=0.02, atol=20)


def test_a_class_that_the_learning_rows_lack_does_no_harm(data):
    X, y = data
    labels = np.where(np.arange(300) < 2, "rare", np.where(y, "b", "a"))
    probability = GBMClassifier(**FEW).fit(X, labels, groups=np.maximum(np.arange(300), 1)).predict_proba(X)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert probability[2:, 2].max() < 0.5


def test_without_groups_to_split_all_rounds_are_run(data):
    X, y = data
    with pytest.warns(HeadWarning, match="gbm: no early stopping"):
        head = GBMClassifier(**FEW).fit(X, y, groups=np.zeros(300))
    assert head.best_rounds_ == [40, 40]
    assert head.history_["monitor_loss"] == [None] * 40


def test_parameters_are_checked(data):
    for settings in ({"num_leaves": 1}, {"feature_fraction": 0.0}, {"feature_fraction": "all"}, {"loss": "rmse"}):
        with pytest.raises(HeadError, match=r"gbm: .* is wrong; expected"):
            GBMRegressor(**settings).fit(*data)


TRIALS = (
    {},
    {"learning_rate": 0.3, "num_leaves": 4, "min_leaf": 40, "l2": 0.1},
    {"feature_fraction": 0.5, "members": 3, "validation_fraction": 0.0, "max_rounds": 10},
    {"max_bin": 15},
    {"random_state": 1, "patience": 2},
)


@pytest.mark.parametrize("target", ["classes", "labels", "values"])
def test_heads_fitted_in_one_go_equal_those_fitted_alone(data, target):
    X, y = data
    labels = np.where(np.arange(600).reshape(300, 2) % 7, np.column_stack([y, 1 - y]), np.nan)
    values = {"classes": y + (X[:, 0] > 1), "labels": labels, "values": X[:, :2] ** 2}[target]
    made = GBMRegressor if target == "values" else GBMClassifier
    groups = np.arange(300) // 2
    jobs = [Job(made(**FEW | trial), rows) for trial in TRIALS for rows in (np.arange(200), np.arange(100, 300))]
    for job, head in zip(jobs, fit_many(jobs, X, values, groups=groups), strict=True):
        alone = made(**job.head.get_params()).fit(X[job.rows], values[job.rows], groups=groups[job.rows])
        assert head.models_ == alone.models_
        assert head.best_rounds_ == alone.best_rounds_
        assert head.history_ == alone.history_
        np.testing.assert_array_equal(head.predict(X), alone.predict(X))


def test_trials_on_the_same_rows_are_binned_once(data, monkeypatch):
    X, y = data
    binned = []
    made = lgb.Dataset
    monkeypatch.setattr(_gbm.lgb, "Dataset", lambda *a, **k: binned.append(a[0].shape) or made(*a, **k))
    folds = [np.arange(200), np.arange(50, 300)]
    jobs = [Job(GBMClassifier(**FEW, learning_rate=rate), rows) for rate in (0.05, 0.1, 0.2) for rows in folds]
    assert all(isinstance(head, GBMClassifier) for head in fit_many(jobs, X, y))
    assert sorted(binned) == [(200, 30), (250, 30)]


def test_held_out_rows_have_no_say_in_the_bins(data):
    X, y = data
    rows = [np.arange(200), np.arange(100, 300)]
    wild = X.copy()
    wild[200:] = 1e6 * X[200:] ** 3
    one, other = (list(fit_many([Job(GBMClassifier(**FEW), own) for own in rows], each, y)) for each in (X, wild))
    assert one[0].models_ == other[0].models_
    assert one[1].models_ != other[1].models_


def test_a_head_that_cannot_be_fitted_leaves_the_others_alone(data):
    X, y = data
    rows = np.arange(200)
    jobs = [Job(GBMClassifier(**FEW, **each), rows) for each in ({}, {"num_leaves": 1}, {"l2": 1.0})]
    jobs.append(Job(GBMClassifier(**FEW), np.flatnonzero(y)))
    first, wrong, third, alike = fit_many(jobs, X, y)
    assert isinstance(wrong, HeadError)
    assert "num_leaves" in str(wrong)
    assert isinstance(alike, HeadError)
    assert first.models_ == GBMClassifier(**FEW).fit(X[rows], y[rows]).models_
    assert third.models_ == GBMClassifier(**FEW, l2=1.0).fit(X[rows], y[rows]).models_
