"""The zero_shot head: planted directions are told apart without a sample, by the formulas it states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, softmax

from heads.artifact import load_bundle, save_bundle
from heads.base import HeadWarning
from heads.context import Context
from heads.errors import HeadError
from heads.estimators.zero_shot import ZeroShotClassifier

C, D = 4, 12
RNG = np.random.default_rng(0)
PROMPTS = RNG.normal(size=(C, D)).astype(np.float32)
ABSENT = RNG.normal(size=(C, D)).astype(np.float32)
CONTEXT = Context(prompts=PROMPTS, negative_prompts=ABSENT, logit_scale=20.0, logit_bias=-3.0)


def planted(n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of any length that point where their class's prompt points."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, C, size=n)
    lengths = rng.uniform(0.1, 50, size=(n, 1))
    return (lengths * (PROMPTS[y] + 0.1 * rng.normal(size=(n, D)))).astype(np.float32), y


def cosines(X: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    return np.array([[x @ p / np.linalg.norm(x) / np.linalg.norm(p) for p in prompts] for x in X.astype(np.float64)])


def test_planted_directions_are_all_told_apart() -> None:
    X, y = planted()
    head = ZeroShotClassifier().fit(X[:2], y[:2], context=CONTEXT)
    assert (head.predict(X) == y).all()
    assert np.allclose(head.predict_proba(X), softmax(20 * cosines(X, PROMPTS), axis=1), atol=1e-6)


def test_classes_that_no_row_shows_are_there() -> None:
    X, y = planted()
    head = ZeroShotClassifier().fit(X[y == 2], y[y == 2], context=CONTEXT)
    assert head.classes_.tolist() == [0, 1, 2, 3]
    assert (head.predict(X) == y).all()


def test_nothing_is_learned_from_rows() -> None:
    X, y = planted()
    wrong = ZeroShotClassifier().fit(X, (y + 1) % C, context=CONTEXT)
    assert np.array_equal(wrong.predict_proba(X), ZeroShotClassifier().fit(X, y, context=CONTEXT).predict_proba(X))


def test_a_binary_task_is_a_pair() -> None:
    X, _ = planted()
    pair = replace(CONTEXT, prompts=PROMPTS[:2], negative_prompts=None)
    head = ZeroShotClassifier().fit(X[:4], np.array([0, 1, 0, 1]), context=pair)
    assert np.allclose(head.predict_proba(X), softmax(20 * cosines(X, PROMPTS[:2]), axis=1), atol=1e-6)


def test_labels_are_told_by_their_own_pairs() -> None:
    X, _ = planted()
    y = np.zeros((len(X), C))
    y[:, 1], y[:, 2] = np.nan, 1  # labels without a value, or with one class, are predicted all the same
    head = ZeroShotClassifier().fit(X, y, context=CONTEXT)
    both = np.stack([cosines(X, ABSENT), cosines(X, PROMPTS)], axis=2)
    assert np.allclose(head.predict_proba(X), softmax(20 * both, axis=2)[:, :, 1], atol=1e-6)


def test_sigmoid_takes_scale_and_bias() -> None:
    X, _ = planted()
    labels = np.zeros((len(X), C))
    head = ZeroShotClassifier(scoring="sigmoid").fit(X, labels, context=replace(CONTEXT, negative_prompts=None))
    expected = expit(20 * cosines(X, PROMPTS) - 3)
    assert np.allclose(head.predict_proba(X), expected, atol=1e-6)
    pair = replace(CONTEXT, prompts=PROMPTS[:2])
    binary = ZeroShotClassifier(scoring="sigmoid").fit(X[:4], np.array([0, 1, 0, 1]), context=pair)
    assert np.allclose(binary.predict_proba(X), np.column_stack([1 - expected[:, 1], expected[:, 1]]), atol=1e-6)


def test_parameters_win_over_the_checkpoint() -> None:
    X, _ = planted()
    head = ZeroShotClassifier(scoring="sigmoid", logit_scale=5.0, logit_bias=1.0)
    head.fit(X, np.zeros((len(X), C)), context=CONTEXT)
    assert np.allclose(head.predict_proba(X), expit(5 * cosines(X, PROMPTS) + 1), atol=1e-6)


def test_what_the_checkpoint_does_not_state_is_remarked_on() -> None:
    X, y = planted()
    with pytest.warns(HeadWarning, match="states no scale of logits, so 100 is taken"):
        head = ZeroShotClassifier().fit(X, y, context=Context(prompts=PROMPTS))
    assert head.scale_of_logits_ == 100
    silent = replace(CONTEXT, logit_bias=None)
    with pytest.warns(HeadWarning, match="states no bias of logits, so 0 is taken"):
        ZeroShotClassifier(scoring="sigmoid").fit(X, np.zeros((len(X), C)), context=silent)


def test_zero_prompts_know_nothing() -> None:
    X, y = planted()
    head = ZeroShotClassifier().fit(X, y, context=replace(CONTEXT, prompts=np.zeros_like(PROMPTS)))
    assert np.allclose(head.predict_proba(X), 1 / C)


def test_a_bundle_carries_the_prompts(tmp_path) -> None:
    X, y = planted()
    head = ZeroShotClassifier().fit(X, y, context=CONTEXT)
    save_bundle(tmp_path / "head", head, task={"kind": "multiclass"}, inputs=[{"encoder": "e", "fingerprint": "f"}])
    assert np.array_equal(load_bundle(tmp_path / "head").head.predict_proba(X), head.predict_proba(X))


@pytest.mark.parametrize(
    ("context", "y", "params", "message"),
    [
        (None, [0, 1, 2, 3], {}, "needs the prompts of the classes, and there are none"),
        (replace(CONTEXT, prompts=PROMPTS[:, :5]), [0, 1, 2, 3], {}, "features have 12 dimensions and prompts 5"),
        (replace(CONTEXT, negative_prompts=None), np.zeros((4, C)), {}, "there are no negative prompts"),
        (CONTEXT, [0, 1, 2, 3], {"scoring": "sigmoid"}, "exactly one of several classes is true"),
        (CONTEXT, np.zeros((4, 2)), {}, "4 prompts for 2 targets"),
        (CONTEXT, [0.0, np.nan, 1.0, 2.0], {}, "1 of 4 labels are NaN"),
        (CONTEXT, [0, 1, 2, 3], {"logit_scale": -1.0}, "logit_scale=-1.0 is wrong; expected a number > 0"),
    ],
)
def test_refusals(context: Context | None, y: Any, params: dict[str, Any], message: str) -> None:
    X, _ = planted(4)
    with pytest.raises(HeadError, match=message):
        ZeroShotClassifier(**params).fit(X, np.asarray(y), context=context)
