"""The mlp head: published form, members, inner splits, units of regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heads.base import HeadWarning, Training
from heads.batched import logits_of
from heads.errors import HeadError
from heads.estimators.mlp import MLPHeadClassifier, MLPHeadRegressor
from heads.params import parse_params
from heads.training.members import Course, inner_splits, mean_history
from heads.training.perceptron import Perceptron

BASELINE = {
    "hidden": (512, 256, 128),
    "norm": "batch",
    "order": "linear-activation-norm",
    "dropout": 0.3,
    "logit_shifts": True,
}
"""The published multilabel baseline: linear, ReLU, batch norm, dropout; logits minus learned shifts."""

SMALL = {"hidden": (16,), "max_epochs": 12, "batch_size": 32}


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    X = rng.normal(size=(150, 8)) + 2 * rng.normal(size=(3, 8))[y]
    return X.astype(np.float32), y


def test_the_baseline_has_as_many_parameters_as_its_formula():
    d, labels, (a, b, c) = 768, 14, (512, 256, 128)
    linear = (d * a + a) + (a * b + b) + (b * c + c) + (c * labels + labels)
    architecture = Perceptron(
        inputs=d, outputs=labels, **{name: value for name, value in BASELINE.items() if name != "dropout"}
    )
    weights = architecture.initial(torch.Generator().manual_seed(0))
    assert sum(value.numel() for value in weights.values()) == linear + 2 * (a + b + c) + labels == 561_564


@pytest.mark.parametrize("order", ["linear-activation-norm", "linear-norm-activation"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_the_network_is_the_one_torch_builds(data, norm, order):
    X, _ = data
    y = (X[:, :4] > 0).astype(float)
    head = MLPHeadClassifier(
        hidden=(12, 6), norm=norm, order=order, logit_shifts=True, members=1, max_epochs=3, dropout=0.2
    ).fit(X, y)
    weights = {name: torch.from_numpy(value[0]) for name, value in head.weights_.items()}
    layers: list[torch.nn.Module] = []
    for layer, width in enumerate((12, 6)):
        linear = torch.nn.Linear(weights[f"{layer}.weight"].shape[0], width)
        linear.load_state_dict({"weight": weights[f"{layer}.weight"].T, "bias": weights[f"{layer}.bias"]})
        norms: list[torch.nn.Module] = []
        if norm != "none":
            normal = torch.nn.BatchNorm1d(width) if norm == "batch" else torch.nn.LayerNorm(width)
            learned = {"weight": weights[f"{layer}.norm.gain"], "bias": weights[f"{layer}.norm.bias"]}
            if norm == "batch":
                learned |= {
                    "running_mean": weights[f"{layer}.norm.mean"],
                    "running_var": weights[f"{layer}.norm.variance"],
                }
            normal.load_state_dict(learned, strict=norm == "layer")
            norms = [normal]
        relu: list[torch.nn.Module] = [torch.nn.ReLU()]
        layers += [linear, *(relu + norms if order == "linear-activation-norm" else norms + relu), torch.nn.Dropout()]
    last = torch.nn.Linear(6, 4)
    last.load_state_dict({"weight": weights["logits.weight"].T, "bias": weights["logits.bias"]})
    network = torch.nn.Sequential(*layers, last).eval()
    standardised = torch.from_numpy((X - head.mean_) / head.scale_).float()
    theirs = (network(standardised) - weights["logits.shifts"]).sigmoid().detach().numpy()
    np.testing.assert_allclose(head.predict_proba(X), theirs, atol=1e-6)
    assert np.abs(head.weights_["logits.shifts"]).min() > 0  # they are learned


def test_probabilities_are_the_mean_over_members(data):
    X, y = data
    head = MLPHeadClassifier(**SMALL, members=3).fit(X, y)
    standardised = ((X - head.mean_) / head.scale_).astype(np.float32)
    architecture = Perceptron(inputs=8, outputs=3, hidden=(16,))
    logits = logits_of(architecture, head.weights_, standardised)
    assert logits.shape == (3, 150, 3)
    mean = torch.from_numpy(logits).double().softmax(dim=-1).mean(dim=0).numpy()
    np.testing.assert_allclose(head.predict_proba(X), mean, atol=1e-12)
    assert len(head.best_epochs_) == 3
    assert not np.allclose(logits[0], logits[1], atol=0.01)


def test_members_do_not_depend_on_how_many_there_are(data):
    X, y = data
    few, many = (MLPHeadClassifier(**SMALL, members=members).fit(X, y) for members in (1, 4))
    np.testing.assert_array_equal(few.weights_["0.weight"][0], many.weights_["0.weight"][0])


def test_inner_splits_leave_groups_whole_and_differ():
    groups = np.repeat(np.arange(20), 5)
    y = np.arange(100) % 2
    training = Training(X=np.zeros((100, 2)), y=y, weight=np.ones(100), groups=groups, kind="binary", classes=2)
    masks = inner_splits(MLPHeadClassifier(), training, fraction=0.2, members=4, seed=0)
    for mask in masks:
        assert 0.1 <= mask.mean() <= 0.3
        assert not set(groups[mask]) & set(groups[~mask])
        assert len(set(y[mask])) == 2
    assert len({mask.tobytes() for mask in masks}) > 1


def test_without_an_inner_split_all_epochs_are_run(data):
    X, y = data
    head = MLPHeadClassifier(**SMALL, validation_fraction=0.0).fit(X, y)
    assert head.best_epochs_ == [11] * 5
    assert head.history_["monitor_loss"] == [None] * 12
    assert not head.notes_
    with pytest.warns(HeadWarning, match="mlp: no early stopping: .*only 1 groups"):
        head = MLPHeadClassifier(**SMALL).fit(X, y, groups=np.zeros(150))
    assert head.best_epochs_ == [11] * 5


def test_history_is_the_mean_and_a_stopped_member_counts_as_it_is_kept():
    short = Course({"monitor_loss": [4.0, 2.0, 3.0]}, best=1)
    long = Course({"monitor_loss": [8.0, 6.0, 5.0, 4.0, None]}, best=3)
    assert mean_history([short, long]) == {"monitor_loss": [6.0, 4.0, 4.0, 3.0, 2.0]}


def test_regression_does_not_depend_on_the_unit(data):
    X, _ = data
    y = X @ np.arange(8.0)
    one = MLPHeadRegressor(**SMALL, loss="huber", huber_delta=0.1).fit(X, y)
    other = MLPHeadRegressor(**SMALL, loss="huber", huber_delta=0.1).fit(X, 1000 * y - 5e4)
    np.testing.assert_allclose(other.predict(X), 1000 * one.predict(X) - 5e4, rtol=1e-3, atol=1)
    assert one.predict(X).shape == (150,)


def test_a_constant_regression_target_is_predicted(data):
    X, _ = data
    head = MLPHeadRegressor(**SMALL).fit(X, np.full(150, 7.0))
    np.testing.assert_allclose(head.predict(X), 7.0, atol=0.5)


@pytest.mark.parametrize("settings", [{"focal_gamma": 2.0}, {"label_smoothing": 0.2}, {"input_noise": 0.5}])
def test_settings_reach_the_training(data, settings):
    X, y = data
    plain = MLPHeadClassifier(**SMALL, members=1).fit(X, y).weights_
    changed = MLPHeadClassifier(**SMALL, members=1, **settings).fit(X, y).weights_
    assert not np.allclose(plain["0.weight"], changed["0.weight"])


def test_smoothing_keeps_probabilities_from_the_ends(data):
    X, y = data
    sharp, smooth = (
        MLPHeadClassifier(hidden=(16,), label_smoothing=e, lr=1e-2).fit(X, y).predict_proba(X).max(axis=1).mean()
        for e in (0.0, 0.3)
    )
    assert smooth < 0.9 < sharp


def test_an_empty_hidden_is_a_linear_model(data):
    X, y = data
    head = MLPHeadClassifier(hidden=(), lr=1e-2).fit(X, y)
    assert set(head.weights_) == {"logits.weight", "logits.bias"}
    assert (head.predict(X) == y).mean() > 0.9


def test_divergence_gives_advice(data):
    X, _ = data
    with pytest.raises(HeadError, match=r"mlp: training diverged.*lower lr \(now 1e\+30\)"):
        MLPHeadRegressor(loss="mse", lr=1e30, norm="none", schedule="constant").fit(X, X[:, 0])


def test_parameters_from_text():
    parsed = parse_params(MLPHeadClassifier, {"hidden": "512,256", "norm": "batch", "lr": "3e-4"})
    assert parsed == {"hidden": (512, 256), "norm": "batch", "lr": 3e-4}
    for name, value in (("hidden", "0"), ("norm", "group"), ("dropout", "1"), ("schedule", "step"), ("members", 0)):
        with pytest.raises(HeadError, match=f"mlp: {name}="):
            parse_params(MLPHeadClassifier, {name: value})


def test_an_absent_device_is_refused(data):
    X, y = data
    with pytest.raises(HeadError, match="CUDA devices found"):
        MLPHeadClassifier(device="cuda:99").fit(X, y)
