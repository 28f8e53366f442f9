"""Every head that the folder lists keeps the contract: scikit-learn's checks, and our own for each kind of task."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks

from data.task import Kind
from heads.artifact import load_bundle, save_bundle
from heads.bags import Bags
from heads.base import Choice, Head, HeadWarning, Range
from heads.catalog import head_class, head_classes, list_heads
from heads.context import Context
from heads.errors import HeadError
from heads.params import parse_params

# Small data make some heads leave out an inner split; they say so by HeadWarning.
quiet = pytest.mark.filterwarnings("ignore::heads.base.HeadWarning")

KINDS: tuple[Kind, ...] = ("binary", "multiclass", "multilabel", "regression")
# What learns from no row cannot be asked to learn; zero_shot is tested in tests/unit/heads/test_zero_shot.py.
CLASSES = [made for name in list_heads() for made in head_classes(name) if made.learns_from_rows]
CASES = [(made, kind) for made in CLASSES for kind in KINDS if kind in made.kinds]
case = pytest.mark.parametrize(("made", "kind"), CASES, ids=[f"{made.__name__}-{kind}" for made, kind in CASES])
classifier = pytest.mark.parametrize(
    "made", [made for made in CLASSES if "binary" in made.kinds], ids=lambda m: m.__name__
)
every = pytest.mark.parametrize("made", CLASSES, ids=lambda m: m.__name__)

SMALL_NETWORK: dict[str, Any] = {"dropout": 0.0, "lr": 1e-2, "batch_size": 32, "max_epochs": 30, "members": 2}
# Cheap constructor arguments, by class; a head that is not named is tried with its defaults.
CHEAP: dict[str, dict[str, Any]] = {
    "LinearClassifier": {"C": 1.0},
    "LinearRegressor": {"alpha": 1.0},
    "KNNClassifier": {"weights": "uniform"},
    "KNNRegressor": {"weights": "uniform"},
    "MLPHeadClassifier": {"hidden": (16,), **SMALL_NETWORK},
    "MLPHeadRegressor": {"hidden": (16,), **SMALL_NETWORK},
    "AttentionMILClassifier": {
        "hidden": 16,
        "dropout": 0.0,
        "lr": 1e-2,
        "bags_per_step": 32,
        "max_epochs": 30,
        "members": 2,
    },
    "AttentionMILRegressor": {
        "hidden": 16,
        "dropout": 0.0,
        "lr": 1e-2,
        "bags_per_step": 32,
        "max_epochs": 30,
        "members": 2,
    },
    "ConcatFusionClassifier": {"branch_hidden": (16,), "prompt_hidden": (16,), **SMALL_NETWORK},
    "ConcatFusionRegressor": {"branch_hidden": (16,), "prompt_hidden": (16,), **SMALL_NETWORK},
    "WeightedSumClassifier": {"hidden": (16,), **SMALL_NETWORK},
    "WeightedSumRegressor": {"hidden": (16,), **SMALL_NETWORK},
    "PromptSimilarityClassifier": {"branch_hidden": (16,), "width": 8, **SMALL_NETWORK},
    "MultiHead": {"lr": 1e-2, "batch_size": 32, "max_epochs": 30},
    "GBMClassifier": {"max_rounds": 100, "members": 2},
    "GBMRegressor": {"max_rounds": 100, "members": 2},
}

# Heads that learn from several blocks of features: the columns are dealt to two of them.
SEVERAL_BLOCKS: frozenset[str] = frozenset(
    {"ConcatFusionClassifier", "ConcatFusionRegressor", "WeightedSumClassifier", "WeightedSumRegressor"}
)

# Checks of scikit-learn that do not apply, with the reason.
NOT_ALL: dict[str, str] = {
    "check_class_weight_classifiers": "class_weight is None or 'balanced'; weights by class go into sample_weight",
    "check_supervised_y_2d": "a column of y is a multilabel task with one label",
}
NOT_FOR_NETWORKS: dict[str, str] = {
    "check_sample_weight_equivalence_on_dense_data": "batches and dropout are drawn by row",
    "check_methods_subset_invariance": "float32 products depend on the number of rows in the last digit",
}
NOT_BY_CLASS: dict[str, dict[str, str]] = {
    "MLPHeadClassifier": NOT_FOR_NETWORKS,
    "MLPHeadRegressor": NOT_FOR_NETWORKS,
    "AttentionMILClassifier": {
        "check_sample_weight_equivalence_on_dense_data": "the inner split, steps and instances are drawn by bag",
    },
    "AttentionMILRegressor": {
        "check_sample_weight_equivalence_on_dense_data": "the inner split, steps and instances are drawn by bag",
    },
    "ConcatFusionClassifier": NOT_FOR_NETWORKS,
    "ConcatFusionRegressor": NOT_FOR_NETWORKS,
    "WeightedSumClassifier": NOT_FOR_NETWORKS,
    "WeightedSumRegressor": NOT_FOR_NETWORKS,
    "PromptSimilarityClassifier": NOT_FOR_NETWORKS,
    "MultiHead": {"check_sample_weight_equivalence_on_dense_data": "batches are drawn by row"},
    "LinearClassifier": {
        "check_sample_weight_equivalence_on_dense_data": "the optimum is reached to 1e-10 of the objective, "
        "which is not 1e-7 of a probability; equivalence is tested in tests/unit/heads/test_linear.py",
    },
    "KNNClassifier": {
        "check_sample_weight_equivalence_on_dense_data": "a repeated row takes several of the k places",
    },
    "GBMClassifier": {
        "check_sample_weight_equivalence_on_dense_data": "bins, leaves and the inner split count rows",
    },
    "GBMRegressor": {
        "check_sample_weight_equivalence_on_dense_data": "bins, leaves and the inner split count rows",
    },
    "KNNRegressor": {
        "check_sample_weight_equivalence_on_dense_data": "a repeated row takes several of the k places",
    },
    "SVMClassifier": {
        "check_sample_weight_equivalence_on_dense_data": "inner folds and the variance behind gamma count rows",
    },
    "SVMRegressor": {
        "check_sample_weight_equivalence_on_dense_data": "the variance behind gamma counts rows",
    },
}


def cheap(made: type[Head], **params: Any) -> Head:
    return made(**{**CHEAP.get(made.__name__, {}), **params})


def expected_failed(head: Head) -> dict[str, str]:
    return (NOT_ALL if "binary" in head.kinds else {}) | NOT_BY_CLASS.get(type(head).__name__, {})


def make_data(kind: Kind, n: int = 120, d: int = 6, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Return learnable data of a kind; labels are text, labels of multilabel are missing by a fifth."""
    rng = np.random.default_rng(seed)
    X = rng.normal(2.0, 3.0, size=(n, d)).astype(np.float32)
    signal = (X - 2) @ rng.normal(size=(d, 3)) / 3 + rng.normal(scale=0.3, size=(n, 3))
    if kind == "binary":
        return X, np.array(["benign", "malignant"])[(signal[:, 0] > 0).astype(int)]
    if kind == "multiclass":
        return X, np.array(["glioma", "meningioma", "none"])[signal.argmax(axis=1)]
    values = (signal > 0).astype(float) if kind == "multilabel" else 10 + 5 * signal
    return X, np.where(rng.random(values.shape) < 0.2, np.nan, values)


def scores(head: Head, X: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(head.predict(X) if head.kind_ == "regression" else head.predict_proba(X))


def context_for(head: Head, X: Any, y: Any, sample_weight: Any = None) -> Context:
    """Return what a head needs beyond its rows: blocks, prompts or nothing; wrong data are for the head to refuse."""
    shape = np.asarray(X).shape
    width = shape[1] if len(shape) == 2 else 0
    fuses = type(head).__name__ in SEVERAL_BLOCKS
    blocks = (width - width // 2, width // 2) if fuses and width > 2 else ()
    # Too few columns to be dealt out are fused with prompts.
    asked = head.needs_prompts or (fuses and not blocks)
    return Context(blocks=blocks, prompts=prompts_for(X, y, sample_weight) if asked else None)


def prompts_for(X: Any, y: Any, sample_weight: Any = None) -> NDArray[np.float32]:
    """Return prompts that tell something: the class means, or the means of the rows of each label, as directions.

    Rows and labels that no head could be fitted on get prompts of ones.
    """
    rows, labels = np.asarray(X), np.asarray(y)
    weight = np.ones(len(labels) if labels.ndim else 0) if sample_weight is None else np.asarray(sample_weight, float)
    if rows.dtype == object and labels.ndim == 1:
        return np.ones((len(np.unique(labels)), 1), dtype=np.float32)
    if rows.dtype.kind not in "biuf" or not rows.size or rows.ndim != 2 or not np.isfinite(rows).all():
        return np.ones((2, 1), dtype=np.float32)
    if not labels.ndim or not len(labels) == len(rows) == weight.size or weight.sum() <= 0 or weight.min() < 0:
        return np.ones((2, 1), dtype=np.float32)
    if labels.ndim == 1:
        members = labels[:, None] == np.unique(labels[weight > 0])
    else:
        weight = weight * ~np.isnan(labels).all(axis=1)
        members = labels == 1
    share = members * weight[:, None]
    means = (share / np.maximum(share.sum(axis=0), 1e-9)).T @ rows
    return np.asarray(means - weight @ rows / weight.sum(), dtype=np.float32)


@pytest.fixture(autouse=True)
def _fit_in_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every fit know what its head needs; neither scikit-learn's checks nor ours say so."""
    plain = Head.fit

    def fit(self: Head, X: Any, y: Any, *, sample_weight: Any = None, groups: Any = None, context: Any = None) -> Head:
        if context is None and not isinstance(X, Bags):
            context = context_for(self, X, y, sample_weight)
        return plain(self, X, y, sample_weight=sample_weight, groups=groups, context=context)

    monkeypatch.setattr(Head, "fit", fit)


@quiet
@parametrize_with_checks([cheap(made) for made in CLASSES], expected_failed_checks=expected_failed)
def test_scikit_learn(estimator: Head, check: Any) -> None:
    check(estimator)


@every
def test_names_and_search_space(made: type[Head]) -> None:
    assert made in head_classes(made.name)
    assert made.version >= 1
    assert made.kinds <= {*KINDS, "mixed"}
    for name, values in made.search_space().items():
        tried = values.options if isinstance(values, Choice) else (values.low, values.high)
        assert all(name in parse_params(made, {name: value}) for value in tried)
        assert not isinstance(values, Range) or values.low < values.high


@pytest.mark.parametrize("name", list_heads())
def test_every_head_has_a_first_line_and_learns_every_kind_once(name: str) -> None:
    assert list_heads()[name].endswith(".")
    for kind in KINDS:
        assert [kind in made.kinds for made in head_classes(name)].count(True) <= 1
    kind: Kind = "mixed" if all("mixed" in made.kinds for made in head_classes(name)) else "binary"
    assert head_class(name, kind).name == name


def ignores_features(made: type[Head]) -> bool:
    """Whether a head is a baseline that answers the same whatever the features."""
    tags = made().__sklearn_tags__()
    return (tags.classifier_tags or tags.regressor_tags).poor_score


@quiet
@case
def test_learns(made: type[Head], kind: Kind) -> None:
    X, y = make_data(kind, n=300)
    head = cheap(made).fit(X[:200], y[:200])
    test, truth = X[200:], y[200:]
    assert head.kind_ == kind
    if ignores_features(made):
        assert len(np.unique(head.predict(test), axis=0)) == 1
    elif kind == "regression":
        known = ~np.isnan(truth)
        error = np.square(head.predict(test) - truth)[known].mean()
        assert error < 0.5 * np.square(truth - np.nanmean(truth, axis=0))[known].mean()
    elif kind == "multilabel":
        probability = head.predict_proba(test)
        assert probability.shape == truth.shape
        for target in range(truth.shape[1]):
            known = ~np.isnan(truth[:, target])
            assert roc_auc_score(truth[known, target], probability[known, target]) > 0.8
    else:
        assert head.predict_proba(test).shape == (100, len(np.unique(y)))
        assert np.allclose(head.predict_proba(test).sum(axis=1), 1)
        assert (head.predict(test) == truth).mean() > 0.7


@quiet
@case
def test_a_seed_gives_the_same_fit(made: type[Head], kind: Kind) -> None:
    X, y = make_data(kind)
    groups = np.arange(len(X)) // 3
    first, second = (cheap(made).fit(X, y, groups=groups) for _ in range(2))
    assert np.array_equal(scores(first, X), scores(second, X))


@quiet
@case
def test_a_bundle_predicts_the_same(made: type[Head], kind: Kind, tmp_path: Any) -> None:
    X, y = make_data(kind)
    head = cheap(made).fit(X, y)
    save_bundle(tmp_path / "head", head, task={"kind": kind}, inputs=[{"encoder": "e", "fingerprint": "f"}])
    loaded = load_bundle(tmp_path / "head").head
    assert type(loaded) is made
    assert loaded.get_params() == head.get_params()
    assert np.array_equal(scores(loaded, X), scores(head, X))
    assert np.array_equal(loaded.predict(X), head.predict(X))


@quiet
@case
def test_rows_without_weight_or_labels_do_not_count(made: type[Head], kind: Kind) -> None:
    X, y = make_data(kind)
    wild = np.random.default_rng(1).normal(50, 9, size=(10, X.shape[1])).astype(np.float32)
    weight = np.concatenate([np.ones(len(X)), np.zeros(10)])
    plain = cheap(made).fit(X, y, sample_weight=np.ones(len(X)))
    weighted = cheap(made).fit(np.vstack([X, wild]), np.concatenate([y, y[:10]]), sample_weight=weight)
    assert np.allclose(scores(plain, X), scores(weighted, X), rtol=0, atol=1e-6)
    if y.ndim == 2:
        masked = cheap(made).fit(np.vstack([X, wild]), np.vstack([y, np.full((10, y.shape[1]), np.nan)]))
        assert np.allclose(scores(cheap(made).fit(X, y), X), scores(masked, X), rtol=0, atol=1e-6)


@quiet
@case
def test_weights_move_the_fit(made: type[Head], kind: Kind) -> None:
    X, y = make_data(kind)
    weight = np.random.default_rng(2).uniform(0.1, 10, size=len(X))
    assert not np.allclose(scores(cheap(made).fit(X, y, sample_weight=weight), X), scores(cheap(made).fit(X, y), X))


@quiet
@classifier
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_balanced_classes_raise_the_rare_one(made: type[Head], kind: Kind) -> None:
    rng = np.random.default_rng(3)
    rare = rng.random(400) < 0.15
    X = (rng.normal(size=(400, 4)) + rare[:, None]).astype(np.float32)
    y = rare.astype(int) if kind == "binary" else np.column_stack([rare, ~rare]).astype(float)
    column = 1 if kind == "binary" else 0
    plain = cheap(made).fit(X, y).predict_proba(X)[:, column]
    balanced = cheap(made, class_weight="balanced").fit(X, y).predict_proba(X)[:, column]
    assert balanced.mean() > plain.mean() + 0.03


@quiet
@classifier
def test_a_target_with_one_class_is_constant(made: type[Head]) -> None:
    X, y = make_data("multilabel")
    y[:, 1] = np.where(np.isnan(y[:, 1]), np.nan, 1.0)
    y = np.column_stack([y, np.full(len(y), np.nan)])
    with pytest.warns(HeadWarning, match="target 1: all [0-9]+ labels are 1"):
        head = cheap(made).fit(X, y)
    probability = head.predict_proba(X)
    assert (probability[:, 1] == 1).all()
    assert (probability[:, 3] == 0.5).all()
    assert (head.predict(X)[:, 1] == 1).all()
    assert (len(set(probability[:, 0])) > 1) != ignores_features(made)
    assert any("target 3: no label" in note for note in head.notes_)


@quiet
@classifier
def test_targets_that_are_all_constant(made: type[Head]) -> None:
    X, _ = make_data("multilabel")
    head = cheap(made).fit(X, np.column_stack([np.zeros(len(X)), np.ones(len(X))]))
    assert np.array_equal(head.predict(X), np.tile([0, 1], (len(X), 1)))


@quiet
@case
def test_one_feature_and_few_rows(made: type[Head], kind: Kind) -> None:
    X, y = make_data(kind, n=14, d=1, seed=5)
    head = cheap(made).fit(X, y)
    assert np.isfinite(scores(head, X)).all()


@quiet
@case
def test_a_constant_feature_and_a_far_origin_do_no_harm(made: type[Head], kind: Kind) -> None:
    X, y = make_data(kind)
    far = np.column_stack([X + np.float32(1000), np.full(len(X), np.float32(0.1))])
    assert np.isfinite(scores(cheap(made).fit(far, y), far)).all()


@quiet
@case
def test_bags_are_learned_from_or_refused(made: type[Head], kind: Kind) -> None:
    X, y = make_data(kind)
    bags = Bags(np.repeat(X, 2, axis=0), np.arange(0, 241, 2))
    if not made.accepts_bags:
        with pytest.raises(HeadError, match=f"{made.name} does not take bags; .* use one of: attention_mil") as refused:
            cheap(made).fit(bags, y)
        assert "\n" not in str(refused.value)
        return
    bags = bags.instances(bags.bag_of % 10 != 3)
    assert (bags.lengths == 0).sum() == 12
    head = cheap(made).fit(bags, y)
    assert np.isfinite(scores(head, bags)).all()
    assert np.isfinite(scores(head, bags[bags.lengths == 0])).all()
    some = np.array([7, 3, 11])
    assert np.allclose(scores(head, bags[some]), scores(head, bags)[some], rtol=0, atol=1e-6)


@every
def test_refusals(made: type[Head]) -> None:
    X, y = make_data("binary" if "binary" in made.kinds else "regression")
    with pytest.raises(HeadError, match="NaN"):
        cheap(made).fit(np.where(X > 4, np.nan, X), y)
    with pytest.raises(HeadError, match="inconsistent numbers of samples"):
        cheap(made).fit(X, y[:-1])
    with pytest.raises(HeadError, match="expected true or false"):
        cheap(made, standardize="maybe").fit(X, y)
    if "binary" in made.kinds:
        with pytest.raises(HeadError, match="one class: 'a'"):
            cheap(made).fit(X, ["a"] * len(X))
        with pytest.raises(HeadError, match="row 3, target 1 is 2"):
            cheap(made).fit(X, np.where(np.arange(len(X))[:, None] == 3, [0, 2], [1, 0]))
        with pytest.raises(HeadError, match="1 of 120 labels are NaN"):
            cheap(made).fit(X, np.append(np.arange(119.0) % 2, np.nan))
    else:
        with pytest.raises(HeadError, match="no value of target 1"):
            cheap(made).fit(X, np.column_stack([y[:, 0], np.full(len(X), np.nan)]))


def test_the_head_of_the_documentation_keeps_the_contract() -> None:
    page = Path(__file__).parents[2] / "docs" / "adding-a-head.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    module = ModuleType("prototype")
    sys.modules["prototype"] = module  # where the type hints of the constructor are looked up
    try:
        exec(compile(code, str(page), "exec"), module.__dict__)
        (made,) = module.HEADS
        X, y = make_data("multiclass", n=300)
        head = made(**parse_params(made, {"temperature": "2"})).fit(X[:200], y[:200])
        assert (head.predict(X[200:]) == y[200:]).mean() > 0.7
        restored = made.from_state(head.get_params(), head.get_state())
        assert np.array_equal(restored.predict_proba(X), head.predict_proba(X))
        with pytest.raises(HeadError, match="prototype: temperature='-1' is wrong; expected a number > 0"):
            parse_params(made, {"temperature": "-1"})
        failed = {
            result["check_name"]
            for result in check_estimator(made(), on_fail=None, on_skip=None)
            if result["status"] == "failed"
        }
        assert failed <= set(NOT_ALL) | {"check_sample_weight_equivalence_on_dense_data"}
    finally:
        del sys.modules["prototype"]
