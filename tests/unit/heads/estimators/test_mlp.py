"""The mlp head: published form, members, inner splits, units of regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heads import base
from heads.base import HeadWarning, Training
from heads.batched import logits_of
from heads.errors import HeadError
from heads.estimators import _network
from heads.estimators.attention_mil import AttentionMILClassifier
from heads.estimators.mlp import MLPHeadClassifier, MLPHeadRegressor
from heads.many import Job, fit_many
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


@pytest.fixture
def jobs() -> list[dict[str, object]]:
    """Parameters that differ in all that may differ, some of them in architecture or regime, one of them wrong."""
    return [
        SMALL,
        {**SMALL, "lr": 3e-3, "dropout": 0.2, "label_smoothing": 0.1},
        {**SMALL, "input_noise": 0.2, "focal_gamma": 1.0, "random_state": 3},
        {**SMALL, "hidden": (8, 4), "norm": "batch"},
        {**SMALL, "lr": -1.0},
        {**SMALL, "sampler": "balanced", "batch_size": 31},
        {**SMALL, "optimizer": "adam", "batch_size": 20, "validation_fraction": 0.2},
        {**SMALL, "input_norm": "layer"},
        {**SMALL, "standardize": False, "class_weight": "balanced", "members": 1},
    ]


def target_of(kind: str, X: np.ndarray, y: np.ndarray) -> np.ndarray:
    if kind == "multilabel":
        labels = (X[:, :3] > 0.5).astype(float)
        labels[np.random.default_rng(0).random(labels.shape) < 0.2] = np.nan
        labels[:50, 2] = 0.0  # constant in one of the folds below
        labels[50:100, 2] = 1.0
        return labels
    return X[:, :2] * 100 if kind == "regression" else (y == 0).astype(int) if kind == "binary" else y


@pytest.mark.filterwarnings("ignore::heads.base.HeadWarning")
@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_fits_together_equal_fits_one_by_one(data, jobs, kind):
    X, y = data
    made = MLPHeadRegressor if kind == "regression" else MLPHeadClassifier
    unfit = {"regression": {"label_smoothing", "focal_gamma", "class_weight", "sampler"}, "multilabel": {"sampler"}}
    params = [{k: v for k, v in each.items() if k not in unfit.get(kind, ())} for each in jobs]
    target, groups = target_of(kind, X, y), np.arange(150) // 2
    folds = [np.arange(100), np.arange(40, 150), np.arange(50)]
    pairs = [(each, rows) for each in params for rows in folds]
    together = list(fit_many([Job(made(**each), rows) for each, rows in pairs], X, target, groups=groups))
    for (each, rows), head in zip(pairs, together, strict=True):
        if each.get("lr") == -1.0:
            assert isinstance(head, HeadError)
            assert "lr=-1.0" in str(head)
            continue
        alone = made(**each).fit(X[rows], target[rows], groups=groups[rows])
        assert alone.notes_ == head.notes_
        assert vars(alone).keys() == vars(head).keys()
        for name, value in vars(alone).items():
            if name == "weights_":
                for part in value:
                    np.testing.assert_array_equal(head.weights_[part], value[part])
            elif name != "notes_":
                np.testing.assert_equal(getattr(head, name), value)


def test_the_training_set_depends_on_the_preparing_parameters_only(data, monkeypatch):
    X, y = data
    others = set(MLPHeadClassifier().get_params()) - MLPHeadClassifier.preparing

    class Watched(MLPHeadClassifier):
        def __getattribute__(self, name):
            assert name not in others, f"{name} is read while the training set is prepared"
            return super().__getattribute__(name)

    monkeypatch.setattr(base, "check_params", lambda head: None)
    for target in (y, target_of("multilabel", X, y)):
        head = Watched()
        assert len(head._prepare(X, target).y) == 150


def test_all_configurations_of_one_architecture_are_one_call(data, monkeypatch):
    X, y = data
    calls = []
    train = _network.train_many
    monkeypatch.setattr(_network, "train_many", lambda *a, **k: calls.append(len(k["recipes"])) or train(*a, **k))
    heads = [MLPHeadClassifier(**SMALL, lr=lr, members=2) for lr in (1e-3, 3e-3, 1e-2)]
    jobs = [Job(head, rows) for head in heads for rows in (np.arange(100), np.arange(50, 150))]
    assert all(isinstance(head, MLPHeadClassifier) for head in fit_many(jobs, X, y))
    assert calls == [3 * 2 * 2]


def test_positive_weights_are_those_of_torch(data):
    X, _ = data
    y = (X[:, :2] > np.quantile(X[:, :2], [0.8, 0.9], axis=0).diagonal()).astype(float)
    y[::7, 0] = np.nan
    known = ~np.isnan(y)
    head = MLPHeadClassifier(pos_weight="balanced")
    weights = head._pos_weight(head._prepare(X, y))
    expected = [(y[known[:, t], t] == 0).sum() / (y[known[:, t], t] == 1).sum() for t in range(2)]
    assert weights == pytest.approx(expected)
    assert head.set_params(pos_weight=3.0)._pos_weight(head._prepare(X, y)) == (3.0, 3.0)
    plain, weighted = (
        MLPHeadClassifier(**SMALL, pos_weight=pos_weight, members=1).fit(X, y).predict_proba(X).mean(axis=0)
        for pos_weight in (None, "balanced")
    )
    assert (weighted > plain + 0.02).all()  # positives are rare


def test_several_corrections_of_imbalance_are_remarked_on(data):
    X, y = data
    with pytest.warns(HeadWarning, match="class_weight=balanced, sampler=weighted, focal_gamma=2 correct imbalance 3"):
        head = MLPHeadClassifier(**SMALL, class_weight="balanced", sampler="weighted", focal_gamma=2.0).fit(X, y)
    assert len(head.notes_) == 1
    assert MLPHeadClassifier(**SMALL, sampler="weighted").fit(X, y).notes_ == []
    with pytest.warns(HeadWarning, match="sampler=balanced, pos_weight=balanced correct imbalance 2 times"):
        MLPHeadClassifier(**SMALL, sampler="balanced", pos_weight="balanced").fit(X, y == 0)


def test_balanced_batches_favour_the_rare_class(data):
    X, y = data
    rare = ((y == 0) & (X[:, 0] > np.quantile(X[:, 0], 0.6))).astype(int)
    plain, balanced = (
        MLPHeadClassifier(**SMALL, members=1, sampler=sampler).fit(X, rare).predict_proba(X)[:, 1].mean()
        for sampler in ("shuffle", "balanced")
    )
    assert balanced > plain + 0.02


def test_balanced_batches_of_a_class_that_is_not_learned_from_are_refused(data):
    X, y = data
    y = np.where(np.arange(150) < 3, 2, y % 2)
    groups = np.where(y == 2, 1000, np.arange(150))  # in one group, which some inner split holds
    head = MLPHeadClassifier(**SMALL, sampler="balanced", validation_fraction=0.5, members=10)
    message = "mlp: sampler=balanced needs rows of every class.*holds all 3 of class 2"
    with pytest.raises(HeadError, match=message):
        head.fit(X, y, groups=groups)
    (result,) = fit_many([Job(head, np.arange(150))], X, y, groups=groups)
    assert isinstance(result, HeadError)
    assert "sampler=balanced" in str(result)


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("multiclass", {"pos_weight": 2.0}, "use class_weight=balanced"),
        ("multilabel", {"sampler": "weighted"}, "use pos_weight=balanced"),
        ("multilabel", {"sampler": "balanced"}, "sampler=balanced needs one label per row.*use pos_weight=balanced"),
    ],
)
def test_corrections_that_a_task_does_not_have_are_refused(data, kind, params, message):
    X, y = data
    with pytest.raises(HeadError, match=message):
        MLPHeadClassifier(**params).fit(X, target_of(kind, X, y)[:, :2] if kind == "multilabel" else y)


def test_adam_with_a_penalty_and_a_positive_weight_are_torchs(data):
    X, y = data
    y = (y == 0).astype(int)
    params = {"members": 1, "validation_fraction": 0.0, "dropout": 0.0, "schedule": "constant", "standardize": False}
    params |= {"hidden": (), "batch_size": 150, "optimizer": "adam", "weight_decay": 0.1}
    params |= {"pos_weight": 3.0}
    start = MLPHeadClassifier(**params, lr=1e-30, max_epochs=1).fit(X, y)
    ours = MLPHeadClassifier(**params, lr=1e-2, max_epochs=30).fit(X, y)
    layer = torch.nn.Linear(8, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(start.weights_["logits.weight"][0].T))
        layer.bias.copy_(torch.from_numpy(start.weights_["logits.bias"][0]))
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(30):
        optimizer.zero_grad()
        logits = layer(torch.from_numpy(X))[:, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        loss(logits, torch.from_numpy(y).float(), pos_weight=torch.tensor(3.0)).backward()
        optimizer.step()
    np.testing.assert_allclose(ours.weights_["logits.weight"][0].T, layer.weight.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(ours.weights_["logits.bias"][0], layer.bias.detach().numpy(), atol=1e-5)


def test_the_published_baseline_is_reached_by_text(data):
    X, _ = data
    text = {"hidden": "512,256,128", "norm": "batch", "order": "linear-activation-norm", "dropout": "0.3"}
    text |= {"logit_shifts": "true", "optimizer": "adam", "lr": "1e-3", "weight_decay": "1e-4", "batch_size": "32"}
    text |= {"max_epochs": "2", "patience": "50", "schedule": "plateau", "members": "1", "standardize": "false"}
    head = MLPHeadClassifier(**parse_params(MLPHeadClassifier, text)).fit(X, (X[:, :3] > 0).astype(float))
    assert head.weights_["1.weight"].shape == (1, 512, 256)
    assert (head.weights_["logits.shifts"] != 0).all()


@pytest.mark.parametrize("made", [MLPHeadClassifier, AttentionMILClassifier])
def test_rates_of_a_fit_follow_the_schedule(data, made):
    X, y = data
    params = {"max_epochs": 35, "validation_fraction": 0.0, "members": 1, "lr": 0.01}
    stepped, restarted = (made(**params, schedule=name).fit(X, y) for name in ("step", "restarts"))
    expected = 0.01 * np.repeat([1.0, 0.3, 0.09], [15, 15, 5])
    assert stepped.history_["lr"] == pytest.approx(expected, rel=1e-6)
    falls = np.diff(restarted.history_["lr"]) < 0
    assert (~falls).nonzero()[0].tolist() == [4, 14]  # cycles of 5, 10 and 20 epochs


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_predicts_nearly_the_same(data, precision):
    X, y = data
    full, half = (
        MLPHeadClassifier(**SMALL, members=1, precision=each).fit(X, y).predict_proba(X) for each in ("fp32", precision)
    )
    assert 0 < np.abs(full - half).max() < 0.05


def test_the_baseline_has_as_many_parameters_as_its_formula():
    d, labels, (a, b, c) = 768, 14, (512, 256, 128)
    linear = (d * a + a) + (a * b + b) + (b * c + c) + (c * labels + labels)
    architecture = Perceptron(
        inputs=d, outputs=labels, **{name: value for name, value in BASELINE.items() if name != "dropout"}
    )
    weights = architecture.initial(torch.Generator().manual_seed(0))
    assert sum(value.numel() for value in weights.values()) == linear + 2 * (a + b + c) + labels == 561_564


@pytest.mark.parametrize(("inputs", "count"), [(512, 132_866), (1024, 264_962)])
def test_published_classifiers_behind_an_input_norm_have_as_many_parameters_as_torchs(inputs, count):
    theirs = torch.nn.Sequential(
        torch.nn.LayerNorm(inputs), torch.nn.Linear(inputs, 256), torch.nn.ReLU(), torch.nn.Linear(256, 2)
    )
    ours = Perceptron(inputs=inputs, outputs=2, hidden=(256,), norm="none", input_norm="layer")
    weights = ours.initial(torch.Generator().manual_seed(0))
    assert sum(value.numel() for value in weights.values()) == sum(p.numel() for p in theirs.parameters()) == count


def test_an_input_norm_is_that_of_torch_and_is_learned(data):
    X, y = data
    head = MLPHeadClassifier(**SMALL, norm="none", input_norm="layer", members=1, standardize=False).fit(X, y)
    weights = {name: torch.from_numpy(value[0]) for name, value in head.weights_.items()}
    network = torch.nn.Sequential(
        torch.nn.LayerNorm(8), torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(16, 3)
    ).eval()
    gain, bias = weights["input.norm.gain"], weights["input.norm.bias"]
    network[0].load_state_dict({"weight": gain, "bias": bias})
    for layer, name in ((1, "0"), (4, "logits")):
        network[layer].load_state_dict({"weight": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]})
    theirs = network(torch.from_numpy(X)).softmax(dim=1).detach().numpy()
    np.testing.assert_allclose(head.predict_proba(X), theirs, atol=1e-6)
    assert (gain != 1).all()
    assert (bias != 0).all()
    rescaled = MLPHeadClassifier(**head.get_params()).fit(3 * X + 1, y).predict_proba(3 * X + 1)
    np.testing.assert_allclose(rescaled, head.predict_proba(X), atol=1e-3)  # what a norm takes away


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
    for name, value in (("hidden", "0"), ("norm", "group"), ("dropout", "1"), ("schedule", "linear"), ("members", 0)):
        with pytest.raises(HeadError, match=f"mlp: {name}="):
            parse_params(MLPHeadClassifier, {name: value})


def test_an_absent_device_is_refused(data):
    X, y = data
    with pytest.raises(HeadError, match="CUDA devices found"):
        MLPHeadClassifier(device="cuda:99").fit(X, y)
