from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.task import Task
from featurestore.spec import EncoderSpec
from finetune.warm_start import classifier_from_run
from heads.artifact import save_bundle
from heads.catalog import make_head
from heads.errors import BundleError, RunError

DIM, N = 12, 60
SPEC = EncoderSpec(
    family="toy", modality="image", architecture={}, weights="0" * 64, preprocess={}, layer="last", pooling="native",
    precision="fp32", dtype="float16", dim=DIM,
)  # fmt: skip
BLOCK = {
    "encoder": "toy", "fingerprint": replace(SPEC, dtype="float32").fingerprint, "pooling": "native",
    "precision": "fp32", "dtype": "float32", "dim": DIM, "modality": "image", "snapshot": "s",
}  # fmt: skip
TASKS = {
    "binary": Task(kind="binary", targets=("sex",), classes=("female", "male")),
    "multiclass": Task(kind="multiclass", targets=("dx",), classes=("a", "b", "c")),
    "multilabel": Task(kind="multilabel", targets=("findings",), classes=("x", "y", "z")),
    "regression": Task(kind="regression", targets=("age", "height")),
}
Fit = Callable[..., Any]


def features() -> np.ndarray:
    """Features of very different means and spreads."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(N, DIM)) * rng.uniform(0.1, 3, DIM) + rng.normal(size=DIM) * 2).astype(np.float32)


def targets(task: Task, x: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(1)
    noisy = x[:, :3] + rng.normal(size=(N, 3))
    if task.kind == "regression":
        return noisy[:, :2] * 7 + 170
    if task.kind == "multilabel":
        return (noisy > noisy.mean(0)).astype(float)
    return noisy.argmax(1) if task.kind == "multiclass" else (noisy[:, 0] > noisy[:, 0].mean()).astype(int)


@pytest.fixture
def fit(tmp_path: Path) -> Fit:
    """Fit a head and write it as a run."""

    def write(
        kind: str, *, normalize: str = "none", name: str = "linear", y: Any = None, scaled: Any = 1, **options: Any
    ) -> Any:
        task, x = TASKS[kind], features() * scaled
        head = make_head(name, task.kind, {}, 0).set_params(**options)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True) if normalize == "l2" else x
        head.fit(unit, targets(task, x) if y is None else y)
        save_bundle(
            tmp_path / "run" / "head", head, task=task.to_dict(), inputs=[BLOCK], extra={"normalize": normalize}
        )
        return head, unit

    return write


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("normalize", ["none", "l2"])
@pytest.mark.parametrize("kind", TASKS)
def test_logits_are_those_of_the_head(kind: str, normalize: str, standardize: bool, fit: Fit, tmp_path: Path) -> None:
    head, unit = fit(kind, normalize=normalize, standardize=standardize)
    classifier = classifier_from_run(tmp_path / "run", SPEC, TASKS[kind])
    made = classifier(torch.from_numpy(features())).detach().numpy()
    expected = head.predict(unit) if kind == "regression" else head.decision_function(unit)
    expected = expected.reshape(N, -1)
    scale = np.abs(expected).max()  # a regression's values are hundreds
    np.testing.assert_allclose(made, expected, atol=1e-5 * max(1.0, scale), rtol=0)
    assert made.dtype == np.float32
    *_, last = classifier.modules()
    assert isinstance(last, torch.nn.Linear)
    assert all(parameter.requires_grad for parameter in classifier.parameters())


def test_dead_units_have_no_weight_and_the_logits_are_nearly_those_of_the_head(fit: Fit, tmp_path: Path) -> None:
    dead = np.r_[np.ones(DIM - 2), 1e-9, 1e-32].astype(np.float32)
    head, x = fit("binary", scaled=dead)
    assert head.scale_[-2:].max() < 1e-8  # it did learn of them
    classifier = classifier_from_run(tmp_path / "run", SPEC, TASKS["binary"])
    weight, _ = classifier.parameters()
    assert torch.equal(weight[0, -2:], torch.zeros(2))
    assert weight.abs().max() < 100
    z = (x - head.mean_) / head.scale_
    expected = (z * (dead == 1)) @ head.coef_.reshape(-1) + head.intercept_
    made = classifier(torch.from_numpy(x))[:, 0].detach().numpy()
    np.testing.assert_allclose(made, expected, atol=1e-4)


def test_binary_logits_are_of_the_positive_class(fit: Fit, tmp_path: Path) -> None:
    head, unit = fit("binary")
    classifier = classifier_from_run(tmp_path / "run", SPEC, TASKS["binary"])
    probability = classifier(torch.from_numpy(features())).sigmoid()[:, 0].detach().numpy()
    np.testing.assert_allclose(probability, head.predict_proba(unit)[:, 1], atol=1e-5)


def refusal(run: Path, spec: EncoderSpec, task: Task) -> str:
    with pytest.raises(BundleError) as raised:
        classifier_from_run(run, spec, task)
    assert str(raised.value).startswith(str(run))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_head_of_other_features_is_refused(fit: Fit, tmp_path: Path) -> None:
    fit("binary")
    message = refusal(tmp_path / "run", replace(SPEC, weights="1" * 64), TASKS["binary"])
    assert f"was fitted on features {BLOCK['fingerprint'][:12]} of toy (native), the encoder to be trained" in message
    assert "(cls)" in refusal(tmp_path / "run", replace(SPEC, pooling="cls"), TASKS["binary"])


def test_a_head_of_another_task_is_refused(fit: Fit, tmp_path: Path) -> None:
    fit("binary")
    message = refusal(tmp_path / "run", SPEC, TASKS["multiclass"])
    assert "learned binary of sex (female, male), and to be learned is multiclass of dx (a, b, c)" in message
    turned = replace(TASKS["binary"], classes=("male", "female"))
    assert "to be learned is binary of sex (male, female)" in refusal(tmp_path / "run", SPEC, turned)


def test_another_head_is_refused(fit: Fit, tmp_path: Path) -> None:
    fit("multiclass", name="prototype")
    message = refusal(tmp_path / "run", SPEC, TASKS["multiclass"])
    assert "has a head prototype; a warm start needs `fit-head --head linear`" in message


def test_a_class_or_label_without_weights_is_refused(fit: Fit, tmp_path: Path) -> None:
    fit("multiclass", y=np.arange(N) % 2 * 2)
    assert "saw no two sides of b in" in refusal(tmp_path / "run", SPEC, TASKS["multiclass"])


def test_a_label_that_was_constant_is_refused(fit: Fit, tmp_path: Path) -> None:
    y = targets(TASKS["multilabel"], features())
    y[:, 1] = 0
    with pytest.warns(UserWarning, match="its prediction is constant"):
        fit("multilabel", y=y)
    assert "saw no two sides of y in" in refusal(tmp_path / "run", SPEC, TASKS["multilabel"])


def test_features_of_several_encoders_are_refused(tmp_path: Path) -> None:
    x = features()
    head = make_head("linear", "binary", {}, 0).fit(x, targets(TASKS["binary"], x))
    save_bundle(tmp_path / "run" / "head", head, task=TASKS["binary"].to_dict(), inputs=[BLOCK, BLOCK])
    assert "fitted on features of toy + toy; a warm start needs those of one encoder" in refusal(
        tmp_path / "run", SPEC, TASKS["binary"]
    )


def test_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="does not exist; expected a run directory"):
        classifier_from_run(tmp_path / "none", SPEC, TASKS["binary"])
