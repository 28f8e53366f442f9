"""The multi_head head: against a loop over torch modules, against heads fitted alone, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from data.task import Kind, Task
from heads.artifact import load_bundle, save_bundle
from heads.base import HeadWarning
from heads.context import Context
from heads.errors import HeadError
from heads.estimators.multi_head import MultiHead
from heads.params import describe_params, parse_params
from heads.training.course import schedule_factor
from heads.training.draws import generator_of
from heads.training.probes import Bank, Plan, Probe, Rows, parts_of_means, train_probes

HEADS: dict[str, dict[str, Any]] = {
    "lesion": {"kind": "binary", "weight": 2.0},
    "grade": {"kind": "multiclass", "lr": 2e-2, "weight_decay": 0.5},
    "volume": {"kind": "regression", "loss": "mse"},
    "stage": {"kind": "multiclass", "loss": "focal", "weight": 0.5},
    "age": {"kind": "regression", "lr": 5e-3},
}


def make_data(n: int = 300, d: int = 8, missing: float = 0.0, seed: int = 0) -> tuple[NDArray[np.float32], Any]:
    """Return learnable targets of each kind in the order of `HEADS`: text, codes and numbers."""
    rng = np.random.default_rng(seed)
    X = rng.normal(1.0, 2.0, size=(n, d)).astype(np.float32)
    signal = (X - 1) @ rng.normal(size=(d, 9)) / 4 + rng.normal(scale=0.2, size=(n, 9))
    y = np.empty((n, 5), dtype=object)
    y[:, 0] = np.where(signal[:, 0] > 0, "yes", "no")
    y[:, 1] = signal[:, 1:4].argmax(axis=1)
    y[:, 2] = 1000 + 300 * signal[:, 4]
    y[:, 3] = np.array(["I", "II", "III"])[signal[:, 5:8].argmax(axis=1)]
    y[:, 4] = 60 + 10 * signal[:, 8]
    y[rng.random(y.shape) < missing] = None
    return X, y


def make_probes() -> list[Probe]:
    """Return probes of every loss, in an order in which families do not lie side by side."""
    return [
        Probe(name="a.b", loss="binary_cross_entropy", share=2.0),
        Probe(name="c", loss="cross_entropy", outputs=3, lr=1e-2, weight_decay=0.3),
        Probe(name="d", loss="huber", lr=3e-3, delta=0.5),
        Probe(name="e", loss="binary_cross_entropy", weight_decay=0.0, gamma=2.0),
        Probe(name="f", loss="cross_entropy", outputs=4, share=0.25),
        Probe(name="g", loss="squared_error", lr=2e-2),
        Probe(name="h", loss="cross_entropy", outputs=3),
        Probe(name="i", loss="absolute_error"),
    ]


def make_rows(probes: list[Probe], n: int = 90, d: int = 6, missing: float = 0.3, seed: int = 1) -> Rows:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)).astype(np.float32)
    columns = [
        rng.integers(0, max(2, probe.outputs), n) if "entropy" in probe.loss else rng.normal(size=n) for probe in probes
    ]
    weight = rng.uniform(0.5, 2.0, size=(n, len(probes))) * (rng.random((n, len(probes))) >= missing)
    return Rows(
        X=X,
        y=np.column_stack(columns).astype(np.float32),
        weight=weight.astype(np.float32),
        train=np.arange(n - 15),
        monitor=np.arange(n - 15, n),
    )


def reference_loss(probe: Probe, logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return each row's loss by torch's own functions."""
    functional = nn.functional
    if probe.loss == "cross_entropy":
        return functional.cross_entropy(logits, y.long(), reduction="none")
    said = logits[:, 0]
    if probe.loss == "binary_cross_entropy":
        loss = functional.binary_cross_entropy_with_logits(said, y, reduction="none")
        return loss * (1 - torch.exp(-loss)) ** probe.gamma
    if probe.loss == "huber":
        return functional.huber_loss(said, y, reduction="none", delta=probe.delta)
    return (said - y).square() if probe.loss == "squared_error" else (said - y).abs()


def reference(probes: list[Probe], rows: Rows, plan: Plan) -> tuple[list[NDArray[Any]], list[int]]:
    """Return weights and bias of each probe's best epoch: a loop over modules and torch's AdamW."""
    X, y, weight = (torch.from_numpy(values) for values in (rows.X, rows.y, rows.weight))
    modules = [nn.Linear(X.shape[1], probe.outputs) for probe in probes]
    groups: list[dict[str, Any]] = []
    for h, probe in enumerate(probes):
        module = modules[h]
        if plan.init == "xavier":
            nn.init.xavier_uniform_(module.weight, generator=generator_of(plan.seed, 0, f"initial {probe.name}"))
        else:
            nn.init.zeros_(module.weight)
        nn.init.zeros_(module.bias)
        groups.append({"params": [module.weight], "lr": probe.lr, "weight_decay": probe.weight_decay})
        groups.append({"params": [module.bias], "lr": probe.lr, "weight_decay": 0.0})
    peak = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups)

    def mean_loss(h: int, at: torch.Tensor) -> torch.Tensor:
        losses = reference_loss(probes[h], modules[h](X[at]), y[at, h])
        return (weight[at, h] * losses).sum() / weight[at, h].sum()

    train, steps = torch.from_numpy(rows.train), -(-len(rows.train) // plan.batch_size)
    best: dict[int, tuple[float, int, NDArray[Any]]] = {}
    for epoch in range(plan.max_epochs):
        order = train[torch.randperm(len(train), generator=generator_of(plan.seed, 0, "order", epoch))]
        for step in range(steps):
            batch = order[len(train) * step // steps : len(train) * (step + 1) // steps]
            factor = schedule_factor(plan.schedule, epoch * steps + step, steps * plan.max_epochs, 0.1, plan.max_epochs)
            for group, lr in zip(optimizer.param_groups, peak, strict=True):
                group["lr"] = lr * factor
            optimizer.zero_grad()
            sum(probe.share * mean_loss(h, batch) for h, probe in enumerate(probes)).backward()  # type: ignore[union-attr]
            optimizer.step()
        for h in range(len(probes)):
            module = modules[h]
            with torch.no_grad():
                watched = float(mean_loss(h, torch.from_numpy(rows.monitor))) if len(rows.monitor) else -float(epoch)
            if h not in best or watched < best[h][0] - 1e-4:
                values = torch.cat([module.weight, module.bias[:, None]], dim=1).detach().numpy().copy()
                best[h] = watched, epoch, values
    return [best[h][2] for h in range(len(probes))], [best[h][1] for h in range(len(probes))]


@pytest.mark.parametrize(
    ("schedule", "monitored", "init"),
    [("cosine", True, "xavier"), ("constant", False, "xavier"), ("cosine", True, "zeros"), ("step", False, "zeros")],
)
def test_equals_a_loop_over_torch_modules(schedule: Any, monitored: bool, init: Any) -> None:
    probes = make_probes()
    rows = make_rows(probes)
    if not monitored:
        rows = Rows(X=rows.X, y=rows.y, weight=rows.weight, train=rows.train, monitor=rows.monitor[:0])
    plan = Plan(batch_size=20, max_epochs=25, patience=25, schedule=schedule, init=init, seed=3)
    expected, best_epochs = reference(probes, rows, plan)
    trained = train_probes(probes, rows, plan)
    found = np.split(
        np.column_stack([trained.weight, trained.bias]), np.cumsum([probe.outputs for probe in probes])[:-1]
    )
    assert trained.best_epochs == best_epochs
    for own, theirs in zip(found, expected, strict=True):
        assert np.allclose(own, theirs, rtol=0, atol=2e-5)
    assert np.linalg.norm(found[1]) > 0.01
    if monitored:
        assert len(set(best_epochs)) > 1


def test_the_total_is_the_sum_of_shares_times_losses_and_gradients_stay_at_home() -> None:
    probes = sorted(make_probes(), key=lambda probe: (probe.loss, probe.outputs))
    rows = make_rows(probes)
    bank = Bank(probes, rows.X.shape[1], "xavier", 0, torch.device("cpu"))
    batch = [torch.from_numpy(values) for values in (rows.X, rows.y, rows.weight)]
    with torch.no_grad():
        losses, slopes = bank.losses(bank.logits(batch[0]), batch[1].T, parts_of_means(batch[2], [len(batch[0])]).T)
    by_slope = (slopes @ batch[0], slopes.sum(dim=1))
    weight, bias = bank.leaves
    for h, probe in enumerate(probes):
        own = bank.columns[h]
        logits = batch[0] @ weight[own, :, 0].T + bias[own, 0]
        of_row = reference_loss(probe, logits, batch[1][:, h])
        mean = (batch[2][:, h] * of_row).sum() / batch[2][:, h].sum()
        assert torch.allclose(losses[h], mean, rtol=1e-5)
        for found, leaf in zip(by_slope, torch.autograd.grad(probe.share * mean, bank.leaves), strict=True):
            assert torch.allclose(found[own], leaf[own].reshape(found[own].shape), rtol=1e-4, atol=1e-6)
            elsewhere = torch.ones(len(leaf), dtype=torch.bool)
            elsewhere[own] = False
            assert leaf[own].abs().max() > 0
            assert (leaf[elsewhere] == 0).all()
    rows_one = Rows(X=rows.X, y=rows.y, weight=rows.weight, train=rows.train, monitor=rows.monitor)
    history = train_probes(probes, rows_one, Plan(batch_size=1000, max_epochs=1, init="xavier")).history
    x, targets, weights = (part[torch.from_numpy(rows.train)] for part in batch)
    with torch.no_grad():
        on_train, _ = bank.losses(bank.logits(x), targets.T, parts_of_means(weights, [len(x)]).T)
    shares = torch.tensor([probe.share for probe in probes])
    assert history["train_loss"][0] == pytest.approx(float((shares * on_train).sum()), rel=1e-5)


def test_weights_begin_as_xavier_has_it_and_biases_at_zero() -> None:
    probes = [Probe(name=f"head {h}", loss="cross_entropy", outputs=5) for h in range(40)]
    weight, bias = Bank(probes, 59, "xavier", 0, torch.device("cpu")).leaves
    limit = np.sqrt(6 / (59 + 5))
    assert (bias == 0).all()
    assert weight.abs().max() <= limit
    assert float(weight.detach().std()) == pytest.approx(limit / np.sqrt(3), rel=0.02)


def test_a_head_is_what_it_would_be_alone() -> None:
    X, y = make_data()
    params: dict[str, Any] = {
        "max_epochs": 20,
        "batch_size": 50,
        "validation_fraction": 0.0,
        "class_weight": "balanced",
    }
    together = MultiHead(heads=HEADS, **params).fit(X, y).predict_scores(X)
    for h, (name, settings) in enumerate(HEADS.items()):
        alone = MultiHead(heads={name: settings}, **params).fit(X, y[:, h]).predict_scores(X)
        spread = together[name].std()
        assert np.abs(together[name] - alone[name]).max() < 1e-4 * spread


def test_other_targets_change_nothing() -> None:
    X, y = make_data(missing=0.2)
    params: dict[str, Any] = {"heads": HEADS, "max_epochs": 10, "validation_fraction": 0.0}
    other = y.copy()
    other[:, 1:] = np.random.default_rng(5).permutation(other[:, 1:])
    rows = [
        i for i in range(len(y)) if any(v is not None for v in y[i, 1:]) and any(v is not None for v in other[i, 1:])
    ]
    first = MultiHead(**params).fit(X[rows], y[rows]).predict_scores(X)
    second = MultiHead(**params).fit(X[rows], other[rows]).predict_scores(X)
    assert np.array_equal(first["lesion"], second["lesion"])
    assert not np.allclose(first["age"], second["age"])


def test_learns_every_kind_from_what_is_there() -> None:
    X, y = make_data(n=700, missing=0.3)
    head = MultiHead(heads=HEADS, lr=1e-2, batch_size=32).fit(X[:500], y[:500], groups=np.arange(500) // 2)
    said, truth = head.predict(X[500:]), y[500:]
    assert said.shape == truth.shape
    for h, kind in enumerate(head.kinds_):
        known = np.array([value is not None for value in truth[:, h]])
        own, right = said[known, h], truth[known, h]
        if kind == "regression":
            assert np.corrcoef(own.astype(float), right.astype(float))[0, 1] > 0.9
        else:
            assert (own == right).mean() > 0.8
    scores = head.predict_scores(X)
    assert {name: values.shape[1:] for name, values in scores.items()} == {
        "lesion": (2,), "grade": (3,), "volume": (), "stage": (3,), "age": ()
    }  # fmt: skip
    assert head.labels_ == [["no", "yes"], [0, 1, 2], [], ["I", "II", "III"], []]
    assert all(np.allclose(values.sum(axis=1), 1) for values in scores.values() if values.ndim == 2)


def test_numbers_learn_alike_whatever_their_unit() -> None:
    X, y = make_data(missing=0.2)
    settings = {"volume": {"loss": "huber"}}
    grams = MultiHead(heads=settings, max_epochs=10).fit(X, y[:, 2])
    scaled = np.array([None if value is None else value / 1000 - 7 for value in y[:, 2]], dtype=object)
    tonnes = MultiHead(heads=settings, max_epochs=10).fit(X, scaled)
    assert np.allclose(grams.predict(X) / 1000 - 7, tonnes.predict(X), rtol=0, atol=1e-5)
    known = y[:, 2] != None  # noqa: E711 - elementwise
    assert grams.center_[0] == pytest.approx(np.mean(y[known, 2].astype(float)))
    assert grams.spread_[0] == pytest.approx(np.std(y[known, 2].astype(float)))


def test_kinds_are_found_or_told() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = np.column_stack([np.arange(60) % 2, np.arange(60) % 5, rng.normal(size=60), np.arange(60)])
    head = MultiHead(max_epochs=1).fit(X, y)
    assert head.kinds_ == ["binary", "multiclass", "regression", "regression"]
    assert head.names_ == ["target 0", "target 1", "target 2", "target 3"]
    assert head.predict(X).dtype == np.float64
    kinds: list[Kind] = ["regression", "regression", "regression", "multiclass"]
    told = Context(targets=tuple(Task(kind=kind, targets=(name,)) for name, kind in zip("abcd", kinds, strict=True)))
    assert MultiHead(max_epochs=1).fit(X, y, context=told).kinds_ == kinds


def test_a_bundle_predicts_the_same(tmp_path: Path) -> None:
    X, y = make_data(missing=0.2)
    head = MultiHead(heads=HEADS, max_epochs=5).fit(X, y)
    save_bundle(tmp_path / "head", head, task={"kind": "mixed"}, inputs=[{"encoder": "e", "fingerprint": "f"}])
    loaded = load_bundle(tmp_path / "head").head
    assert isinstance(loaded, MultiHead)
    assert loaded.get_params() == head.get_params()
    assert np.array_equal(loaded.predict(X), head.predict(X))
    again = MultiHead(heads=HEADS, max_epochs=5).fit(X, y)
    assert np.array_equal(again.coef_, head.coef_)


def test_heads_stop_by_themselves_and_groups_stay_whole() -> None:
    X, y = make_data(n=400)
    y[:, 1] = np.random.default_rng(7).integers(0, 3, len(y))  # nothing to learn here
    head = MultiHead(heads=HEADS, lr=2e-2, patience=3, schedule="constant").fit(X, y)
    assert head.best_epochs_[1] < min(head.best_epochs_[0], head.best_epochs_[2])
    assert len(head.history_["monitor_loss"]) > head.best_epochs_[1] + 4


def test_one_class_is_constant_and_classes_that_are_rare_count_more() -> None:
    X, y = make_data()
    y[:, 3] = "II"
    with pytest.warns(HeadWarning, match="head 'stage': all 300 values are 'II'"):
        head = MultiHead(heads=HEADS, max_epochs=2).fit(X, y)
    assert (head.predict_scores(X)["stage"] == 1).all()
    assert set(head.predict(X)[:, 3]) == {"II"}
    rare = np.where(X[:, 0] + np.random.default_rng(2).normal(size=300) > 4, 1.0, 0.0)
    plain = MultiHead(lr=1e-1, batch_size=32).fit(X, rare).predict_scores(X)["target 0"]
    balanced = MultiHead(lr=1e-1, batch_size=32, class_weight="balanced").fit(X, rare).predict_scores(X)["target 0"]
    assert balanced[:, 1].mean() > plain[:, 1].mean() + 0.1


def test_refusals() -> None:
    X, y = make_data(n=60)

    def refused(match: str, heads: dict[str, dict[str, Any]] | None, targets: Any = y, **params: Any) -> None:
        with pytest.raises(HeadError, match=match) as error:
            MultiHead(heads=heads, max_epochs=1, **params).fit(X, targets)
        assert "\n" not in str(error.value)

    refused("y has 5 columns, but 1 heads are named: a", {"a": {}})
    refused("head 'lesion': unknown key 'los'; did you mean 'loss'", HEADS | {"lesion": {"los": 1}})
    refused("head 'lesion': lr: expected .*greater than 0", HEADS | {"lesion": {"lr": -1}})
    refused("head 'age': loss 'focal' is none of a regression target; expected huber or mse or mae",
            HEADS | {"age": {"kind": "regression", "loss": "focal"}})  # fmt: skip
    refused("head 'grade': a binary target has 2 classes, found 3", HEADS | {"grade": {"kind": "binary"}})
    refused("head 'lesion': its values are not numbers", HEADS | {"lesion": {"kind": "regression"}})
    nothing = y.copy()
    nothing[:, 4] = np.nan
    refused("no value of age in the training rows", HEADS, nothing)
    refused("training diverged", HEADS, y, lr=1e30, validation_fraction=0.0, schedule="constant", batch_size=5)
    with pytest.raises(HeadError, match="heads names 'ages', which is no target; did you mean 'age'"):
        MultiHead(heads={"ages": {}}).fit(
            X, y[:, 4], context=Context(targets=(Task(kind="regression", targets=("age",)),))
        )


def test_settings_come_as_a_file_or_on_one_line(tmp_path: Path) -> None:
    file = tmp_path / "heads.yaml"
    file.write_text("age: {kind: regression, lr: 0.01}\n", encoding="utf-8")
    expected = {"heads": {"age": {"kind": "regression", "lr": 0.01}}}
    assert parse_params(MultiHead, {"heads": str(file)}) == expected
    assert parse_params(MultiHead, {"heads": "{age: {kind: regression, lr: 0.01}}"}) == expected
    assert parse_params(MultiHead, {"heads": "none"}) == {"heads": None}
    assert describe_params(MultiHead)["heads"].startswith("a YAML file, or {name: {key: value}}")
    with pytest.raises(HeadError, match=r"multi_head: heads=\{'age': 3\} is wrong; expected a YAML file"):
        parse_params(MultiHead, {"heads": "{age: 3}"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_cuda_device_learns_the_same() -> None:
    X, y = make_data(missing=0.2)
    on_cpu, on_cuda = (MultiHead(heads=HEADS, device=device).fit(X, y).predict_scores(X) for device in ("cpu", "cuda"))
    assert all(np.abs(on_cpu[name] - on_cuda[name]).max() < 0.02 * on_cpu[name].std() for name in on_cpu)
