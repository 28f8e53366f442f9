"""What every head gets from its base: encoding, masks, weights, scaling, parameters, state."""

from __future__ import annotations

import json
import sys
from subprocess import run
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from heads.base import (
    ClassifierHead,
    ClassWeight,
    Count,
    Floats,
    HeadState,
    HeadWarning,
    Positive,
    RegressorHead,
    SearchSpace,
    Training,
)
from heads.catalog import head_class, list_heads, make_head
from heads.errors import HeadError
from heads.estimators.linear import LinearClassifier
from heads.params import parse_params


class Spy(ClassifierHead):
    """A head that keeps what it was given and answers with the class shares."""

    name = "spy"

    def __init__(
        self,
        *,
        C: Positive = 1.0,
        hidden: tuple[Count, ...] = (3,),
        standardize: bool = True,
        class_weight: ClassWeight = None,
    ) -> None:
        self.C = C
        self.hidden = hidden
        self.standardize = standardize
        self.class_weight = class_weight

    @classmethod
    def search_space(cls) -> SearchSpace:
        return {}

    def _fit(self, training: Training) -> None:
        self.training = training
        weight = training.weight
        if training.kind == "multilabel":
            self.share_ = (weight * training.y).sum(axis=0) / weight.sum(axis=0)
        else:
            self.share_ = np.bincount(training.y, weights=weight) / weight.sum()
        self.named_ = {"a": np.arange(3), "b": np.ones((2, 2))}

    def _predict_proba(self, X: Floats) -> Floats:
        return np.tile(self.share_, (len(X), 1))


class SpyRegressor(RegressorHead):
    name = "spy"

    def __init__(self, *, standardize: bool = False) -> None:
        self.standardize = standardize

    @classmethod
    def search_space(cls) -> SearchSpace:
        return {}

    def _fit(self, training: Training) -> None:
        self.training = training
        self.mean_of_ = (training.weight * training.y).sum(axis=0) / training.weight.sum(axis=0)

    def _predict(self, X: Floats) -> Floats:
        return np.tile(self.mean_of_, (len(X), 1))


def rows(n: int = 12, d: int = 3, dtype: Any = np.float32) -> NDArray[Any]:
    return np.random.default_rng(0).normal(5, 2, size=(n, d)).astype(dtype)


@pytest.mark.parametrize("labels", [["b", "a"] * 6, [7, 3] * 6, [True, False] * 6, [2.0, 1.0] * 6, [9, 8, 5] * 4])
def test_labels_become_codes_and_come_back(labels: list[Any]) -> None:
    head = Spy().fit(rows(), labels)
    assert head.classes_.tolist() == sorted(set(labels))
    assert head.classes_[head.training.y].tolist() == labels
    assert head.kind_ == ("binary" if len(set(labels)) == 2 else "multiclass")
    assert set(head.predict(rows()).tolist()) <= set(labels)


def test_missing_labels_weigh_nothing_and_are_nan_again_for_a_splitter() -> None:
    y = np.array([[1, 0], [0, np.nan], [np.nan, 1], [np.nan, np.nan]] * 3)
    head = Spy().fit(rows(), y)
    training = head.training
    assert training.y.shape == (9, 2)  # a row without any label is not there
    assert not np.isnan(training.y).any()
    assert np.array_equal(training.labels, y[~np.isnan(y).all(axis=1)], equal_nan=True)
    assert np.array_equal(training.weight > 0, ~np.isnan(training.labels))


def test_balanced_weights_even_out_each_target_and_keep_the_total() -> None:
    y = np.array([0] * 9 + [1] * 3)
    weight = np.linspace(1, 2, 12)
    single = Spy(class_weight="balanced").fit(rows(), y, sample_weight=weight).training
    assert single.weight[y == 0].sum() == pytest.approx(single.weight[y == 1].sum())
    assert single.weight.sum() == pytest.approx(weight.sum())
    Y = np.column_stack([y, np.where(np.arange(12) < 4, np.nan, y)]).astype(float)
    multi = Spy(class_weight="balanced").fit(rows(), Y, sample_weight=weight).training
    for target in range(2):
        ones = multi.y[:, target] == 1
        known = multi.weight[:, target]
        assert known[ones].sum() == pytest.approx(known[~ones].sum())


def test_scaling_is_fitted_on_the_weighted_training_rows() -> None:
    X = np.column_stack([rows(), np.full(12, 0.1, dtype=np.float32)])
    times = np.array([0, 1, 2, 3] * 3)
    weighted = Spy().fit(X, [0, 1, 1] * 4, sample_weight=times)
    repeated = Spy().fit(np.repeat(X, times, axis=0), np.repeat([0, 1, 1] * 4, times))
    assert np.allclose(weighted.mean_, repeated.mean_)
    assert np.allclose(weighted.scale_, repeated.scale_)
    assert weighted.mean_.dtype == weighted.scale_.dtype == np.float64
    assert weighted.scale_[3] == 1.0  # a constant feature, whatever float32 makes of 0.1
    assert weighted.training.X.dtype == np.float32
    assert np.allclose(repeated.training.X[:, :3].std(axis=0), 1, atol=1e-5)


def test_statistics_are_exact_far_from_the_origin() -> None:
    X = (np.random.default_rng(0).normal(size=(1000, 2)) + 1e4).astype(np.float32)
    head = Spy().fit(X, [0, 1] * 500)
    assert np.allclose(head.scale_, X.astype(np.float64).std(axis=0), rtol=1e-9)


def test_without_standardisation_features_pass_unchanged() -> None:
    head = Spy(standardize=False).fit(rows(dtype=np.float64), [0, 1] * 6)
    assert np.array_equal(head.training.X, rows(dtype=np.float64))
    assert not hasattr(head, "mean_")


def test_groups_follow_the_rows() -> None:
    weight = np.array([0.0, 1.0] * 6)
    head = Spy().fit(rows(), [0, 0, 1, 1] * 3, sample_weight=weight, groups=list("abcdefghijkl"))
    assert head.training.groups is not None
    assert "".join(head.training.groups) == "bdfhjl"
    some = head.training.rows(np.array([0, 2]))
    assert some.groups is not None
    assert (some.X.shape, some.y.shape, some.groups.tolist()) == ((2, 3), (2,), ["b", "f"])


def test_a_constant_target_never_reaches_the_head() -> None:
    y = np.array([[0, 1, np.nan], [1, 1, np.nan]] * 6)
    with pytest.warns(HeadWarning) as caught:
        head = Spy().fit(rows(), y)
    assert head.training.y.shape == (12, 1)
    assert head.notes_ == [
        "target 1: all 12 labels are 1 in the training rows, so its prediction is constant",
        "target 2: no label in the training rows, so its prediction is constant",
    ]
    assert len(caught) == 2
    assert np.allclose(head.predict_proba(rows(1)), [[0.5, 1, 0.5]])


@pytest.mark.parametrize("y", [np.arange(12.0), np.arange(12.0)[:, None], np.arange(24.0).reshape(12, 2)])
def test_predictions_have_the_shape_of_the_targets(y: NDArray[np.float64]) -> None:
    head = SpyRegressor().fit(rows(), y)
    assert head.predict(rows(5)).shape == (5, *y.shape[1:])
    restored = SpyRegressor.from_state(head.get_params(), head.get_state())
    assert np.array_equal(restored.predict(rows(5)), head.predict(rows(5)))


def test_missing_values_of_a_regression_are_left_out() -> None:
    y = np.arange(12.0)
    y[3:] = np.nan
    assert SpyRegressor().fit(rows(), y).predict(rows(1)) == pytest.approx([1.0])


def test_the_state_is_what_was_learned_and_json_ready() -> None:
    head = Spy(hidden=(5, 4)).fit(rows(), ["no", "yes"] * 6)
    state = head.get_state()
    assert set(state.arrays) == {"mean_", "scale_", "share_", "named_/a", "named_/b"}
    assert set(state.meta) == {"n_features_in_", "notes_", "classes_", "kind_"}
    meta = json.loads(json.dumps(state.meta))
    params = json.loads(json.dumps(head.get_params()))
    restored = Spy.from_state(params, HeadState(arrays=state.arrays, meta=meta))
    assert restored.get_params() == head.get_params()
    assert restored.classes_.dtype == head.classes_.dtype
    assert np.array_equal(restored.named_["b"], np.ones((2, 2)))
    assert restored.predict(rows(2)).tolist() == head.predict(rows(2)).tolist()


@pytest.mark.parametrize("name", ["predict", "_fit", "__class__", "training"])
def test_a_state_sets_learned_attributes_only(name: str) -> None:
    with pytest.raises(HeadError, match="no learned attribute"):
        Spy.from_state({}, HeadState(meta={name: 1}))


def test_text_parameters_are_parsed_by_the_type_hints() -> None:
    parsed = parse_params(Spy, {"C": "0.5", "hidden": "512, 256", "standardize": "false", "class_weight": "none"})
    assert parsed == {"C": 0.5, "hidden": (512, 256), "standardize": False, "class_weight": None}
    assert parse_params(LinearClassifier, {"C": "auto"}) == {"C": "auto"}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"c": "1"}, r"spy: no parameter 'c'; did you mean 'C'\? Known: C, class_weight, hidden, standardize\."),
        ({"C": "-1"}, r"spy: C='-1' is wrong; expected a number > 0"),
        ({"C": "nan"}, r"C='nan' is wrong"),
        ({"hidden": "0"}, r"expected a comma-separated list of a whole number >= 1"),
        ({"class_weight": "even"}, r"expected 'balanced' or none"),
        ({"standardize": "perhaps"}, r"expected true or false"),
    ],
)
def test_wrong_parameters_say_what_is_allowed(params: dict[str, str], message: str) -> None:
    with pytest.raises(HeadError, match=message):
        parse_params(Spy, params)


def test_values_set_in_python_are_checked_when_fitted() -> None:
    head = Spy().set_params(C="1.0")  # text is for the command line
    with pytest.raises(HeadError, match=r"C='1\.0' is wrong; expected a number > 0"):
        head.fit(rows(), [0, 1] * 6)
    Spy(C=np.float64(2), hidden=()).fit(rows(), [0, 1] * 6)


def test_a_head_is_made_by_name_kind_and_text() -> None:
    head = make_head("linear", "multiclass", {"C": "0.1"}, 7)
    assert isinstance(head, LinearClassifier)
    assert (head.C, head.random_state) == (0.1, 7)
    assert make_head("linear", "multiclass", {"random_state": "3"}, 7).get_params()["random_state"] == 3
    assert "random_state" not in make_head("knn", "regression", {}, 7).get_params()


def test_unknown_heads_are_refused_with_a_near_match() -> None:
    with pytest.raises(HeadError, match=r"no head 'liner'; did you mean 'linear'\?"):
        head_class("liner", "binary")


def test_listing_heads_imports_none_of_them() -> None:
    code = "import sys, heads.catalog as c; c.list_heads(); print(sorted({m.split('.')[0] for m in sys.modules}))"
    found = run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert {"linear", "knn", "svm"} <= set(list_heads())
    assert not {"sklearn", "torch", "numpy", "pydantic", "lightgbm"} & set(eval(found))
