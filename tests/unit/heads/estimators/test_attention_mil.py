"""Pooling of bags against plain torch, bag by bag; masks, permutations and empty bags; training and evidence."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from heads.bags import Bags
from heads.errors import HeadError
from heads.estimators.attention_mil import AttentionMILClassifier, AttentionMILRegressor
from heads.training.packed import BUDGET, Sampling, by_budget, train_on_bags
from heads.training.plan import Fold, Recipe, Regime
from heads.training.pooling import BagNetwork, Pooling
from heads.training.segments import packed

POOLINGS = get_args(Pooling)
LENGTHS = [3, 1, 0, 7, 5]
INNER = np.array([0, 2, 3, 4, 8, 11, 13, 16])
D, HEADS = 12, 4

pooling_ = pytest.mark.parametrize("pooling", POOLINGS)
levels_ = pytest.mark.parametrize("levels", [1, 2])
quiet = pytest.mark.filterwarnings("ignore::heads.base.HeadWarning")


# The networks ---------------------------------------------------------------------------------------------------------


def make_bags(levels: int = 1, seed: int = 0) -> Bags:
    values = np.random.default_rng(seed).normal(size=(sum(LENGTHS), D))
    return Bags(values, np.concatenate([[0], np.cumsum(LENGTHS)]), INNER if levels == 2 else None)


def make_network(pooling: str, levels: int = 1) -> tuple[BagNetwork, dict[str, Tensor]]:
    """Return a network, and the weights of two models in float64."""
    network = BagNetwork(inputs=D, outputs=3, pooling=pooling, hidden=8, heads=HEADS, levels=levels)
    models = [network.initial(torch.Generator().manual_seed(seed)) for seed in range(2)]
    state = {name: torch.stack([model[name].double() for model in models]) for name in models[0]}
    for weight in state.values():
        weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return network, {name: weight.requires_grad_() for name, weight in state.items()}


def reference_pool(kind: str, weights: dict[str, Tensor], rows: Tensor) -> Tensor:
    """Pool rows (n, d) of one segment in the plain way; `weights` are those of one model and level."""
    if kind == "mean":
        return rows.mean(dim=0) if len(rows) else torch.zeros(D, dtype=rows.dtype)
    if kind == "max":
        return rows.max(dim=0).values if len(rows) else torch.zeros(D, dtype=rows.dtype)
    if kind == "attention":
        if not len(rows):
            return torch.zeros(D, dtype=rows.dtype)
        value, gate = (rows @ weights["gate.weight"] + weights["gate.bias"]).chunk(2, dim=1)
        scores = (torch.tanh(value) * torch.sigmoid(gate)) @ weights["score.weight"]
        return torch.softmax(scores[:, 0], dim=0) @ rows
    attention = nn.MultiheadAttention(D, HEADS, batch_first=True, dtype=torch.float64)
    projections = torch.cat([weights[f"{part}.weight"].T for part in ("query", "key", "value")])
    biases = torch.cat([weights["query.bias"], torch.full((D,), 0.7), weights["value.bias"]])
    parameters = {
        "in_proj_weight": projections,
        "in_proj_bias": biases,
        "out_proj.weight": weights["out.weight"].T,
        "out_proj.bias": weights["out.bias"],
    }
    sequence = torch.cat([weights["token"][None], rows])[None]
    attended, _ = torch.func.functional_call(attention, parameters, (sequence[:, :1], sequence, sequence))
    return nn.functional.layer_norm(weights["token"] + attended[0, 0], (D,), weights["norm.gain"], weights["norm.bias"])


def reference(pooling: str, state: dict[str, Tensor], bags: Bags, levels: int) -> Tensor:
    """Return logits (models, bags, outputs), one bag of one model at a time."""

    def weights_of(kind: str, level: int, model: int) -> dict[str, Tensor]:
        prefix = f"{kind}.{level}."
        return {name.removeprefix(prefix): w[model] for name, w in state.items() if name.startswith(prefix)}

    x, logits = torch.from_numpy(bags.values), []
    for model in range(2):
        for a, b in zip(bags.offsets, bags.offsets[1:], strict=False):
            pooled = []
            for kind in pooling.split("+"):
                rows = x[a:b]
                if levels == 2:
                    assert bags.inner is not None
                    bounds = bags.inner[(bags.inner >= a) & (bags.inner <= b)]
                    parts = [
                        reference_pool(kind, weights_of(kind, 0, model), x[start:end])
                        for start, end in pairwise(bounds)
                    ]
                    rows = torch.stack(parts) if parts else x[:0]
                pooled.append(reference_pool(kind, weights_of(kind, levels - 1, model), rows))
            logits.append(torch.cat(pooled) @ state["logits.weight"][model] + state["logits.bias"][model])
    return torch.stack(logits).view(2, len(bags), 3)


@pooling_
@levels_
def test_forward_and_gradients_are_those_of_plain_torch(pooling: str, levels: int) -> None:
    network, state = make_network(pooling, levels)
    bags = make_bags(levels)
    ours = network.forward(state, packed(torch.from_numpy(bags.values), bags))
    theirs = reference(pooling, state, bags, levels)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    target = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [
        torch.autograd.grad((logits - target).square().sum(), list(state.values()), materialize_grads=True)
        for logits in (ours, theirs)
    ]
    for name, mine, other in zip(state, *gradients, strict=True):
        assert torch.isfinite(mine).all(), name
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize(("pooling", "width"), [("attention", D), ("mean+cls_token", 2 * D)])
def test_hybrids_are_twice_as_wide(pooling: str, width: int) -> None:
    network, state = make_network(pooling)
    bags = make_bags()
    assert network.width == width
    assert network.pool(state, packed(torch.from_numpy(bags.values), bags)).shape == (2, 5, width)


@pooling_
def test_all_bags_empty_gives_finite_outputs_and_gradients(pooling: str) -> None:
    network, state = make_network(pooling)
    bags = Bags(np.zeros((0, D)), np.zeros(4, int))
    logits = network.forward(state, packed(torch.from_numpy(bags.values), bags))
    assert logits.shape == (2, 3, 3)
    assert torch.isfinite(logits).all()
    for gradient in torch.autograd.grad(logits.square().sum(), list(state.values()), materialize_grads=True):
        assert torch.isfinite(gradient).all()


@pooling_
@levels_
def test_shares_sum_to_one_and_explain_the_pooled_vector(pooling: str, levels: int) -> None:
    network, state = make_network(pooling, levels)
    bags = make_bags(levels)
    with torch.no_grad():
        some = packed(torch.from_numpy(bags.values), bags)
        shares, pooled = network.shares(state, some), network.pool(state, some)
    sums = np.stack([np.bincount(bags.bag_of, weights=row, minlength=5) for row in shares.numpy()])
    np.testing.assert_allclose(sums, np.tile([1, 1, 0, 1, 1], (2, 1)), atol=1e-12)
    if pooling in ("mean", "attention"):
        for model in range(2):
            weighted = shares[model].numpy()[:, None] * bags.values
            want = np.stack([weighted[bags.bag_of == i].sum(axis=0) for i in range(5)])
            np.testing.assert_allclose(pooled[model], want, atol=1e-10)


# The head -------------------------------------------------------------------------------------------------------------


def make_data(n: int = 60, d: int = 6, seed: int = 0) -> tuple[Bags, np.ndarray]:
    """Return bags of noise, of which the positive ones hold one or two telling instances among many."""
    rng = np.random.default_rng(seed)
    y, bags = np.arange(n) % 2, []
    for label in y:
        bag = rng.normal(size=(rng.integers(3, 15), d))
        if label:
            bag[: rng.integers(1, 3), 0] += 5
        bags.append(rng.permutation(bag).astype(np.float32))
    return Bags.from_list(bags), y


QUICK = {"lr": 1e-2, "max_epochs": 25, "members": 2, "hidden": 16}


@quiet
@pooling_
def test_learns_from_bags_whose_label_is_in_few_instances(pooling: str) -> None:
    bags, y = make_data(120)
    head = AttentionMILClassifier(pooling=pooling, **QUICK).fit(bags[:80], y[:80])
    assert roc_auc_score(y[80:], head.predict_proba(bags[80:])[:, 1]) > (0.65 if pooling == "mean" else 0.85)


@quiet
def test_attention_finds_the_telling_instances() -> None:
    bags, y = make_data(120)
    head = AttentionMILClassifier(**QUICK).fit(bags[:80], y[:80])
    test = bags[np.flatnonzero(y == 1)[40:]]
    weights = head.attention(test)
    np.testing.assert_allclose(np.bincount(test.bag_of, weights=weights), 1, atol=1e-5)
    telling = test.values[:, 0] > 3.5
    assert weights[telling].mean() > 3 * weights[~telling].mean()


@quiet
@pooling_
@levels_
def test_order_inside_a_bag_does_not_matter_and_masked_values_do_not_either(pooling: str, levels: int) -> None:
    rng = np.random.default_rng(3)
    shape = (30, 8, 6) if levels == 1 else (30, 3, 4, 6)
    values, mask = rng.normal(size=shape), rng.random(shape[:-1]) < 0.7
    mask[4] = False
    y = np.arange(30) % 2
    head = AttentionMILClassifier(pooling=pooling, **{**QUICK, "max_epochs": 4}).fit(Bags.from_padded(values, mask), y)
    scores = head.predict_proba(Bags.from_padded(values, mask))
    assert np.isfinite(scores).all()
    changed = np.where(mask[..., None], values, 1e6)
    np.testing.assert_array_equal(head.predict_proba(Bags.from_padded(changed, mask)), scores)
    order = rng.permutation(shape[-2])
    shuffled = head.predict_proba(Bags.from_padded(values[..., order, :], mask[..., order]))
    np.testing.assert_allclose(shuffled, scores, atol=1e-6)
    if levels == 2:
        order = rng.permutation(3)
        shuffled = head.predict_proba(Bags.from_padded(values[:, order], mask[:, order]))
        np.testing.assert_allclose(shuffled, scores, atol=1e-6)


@quiet
@pooling_
def test_bags_of_one_are_rows(pooling: str) -> None:
    rng = np.random.default_rng(4)
    X, y = rng.normal(size=(40, 6)), np.arange(40) % 2
    params = {**QUICK, "max_epochs": 3}
    matrix = AttentionMILClassifier(pooling=pooling, **params).fit(X, y)
    bags = AttentionMILClassifier(pooling=pooling, **params).fit(Bags.of_rows(X), y)
    np.testing.assert_array_equal(matrix.predict_proba(X), bags.predict_proba(Bags.of_rows(X)))
    np.testing.assert_array_equal(matrix.attention(X), 1)
    # One of several bags being larger takes the other way through the network, to the same numbers.
    both = Bags(np.concatenate([X, X[:1]]), np.append(np.arange(40), 41))
    np.testing.assert_allclose(bags.predict_proba(both)[:39], matrix.predict_proba(X)[:39], atol=1e-6)


@quiet
def test_regression_with_missing_values_and_empty_bags() -> None:
    bags, _ = make_data(80)
    value = np.array([bags[[i]].values[:, 1].max() for i in range(80)])
    y = np.column_stack([10 + value, -value])
    y[::7, 0] = np.nan
    bags = bags.instances(bags.bag_of != 5)
    head = AttentionMILRegressor(pooling="max", dropout=0.0, **{**QUICK, "max_epochs": 60}).fit(bags, y)
    predicted = head.predict(bags)
    assert np.isfinite(predicted).all()
    known = ~np.isnan(y[:, 0]) & (bags.lengths > 0)
    assert np.corrcoef(predicted[known, 0], y[known, 0])[0, 1] > 0.7
    assert np.corrcoef(predicted[known, 1], y[known, 1])[0, 1] > 0.7


@quiet
def test_multilabel_with_a_missing_label() -> None:
    bags, y = make_data(80)
    labels = np.column_stack([y, 1 - y]).astype(float)
    labels[::9, 1] = np.nan
    head = AttentionMILClassifier(**QUICK).fit(bags, labels)
    probability = head.predict_proba(bags)
    assert probability.shape == (80, 2)
    assert roc_auc_score(y, probability[:, 0]) > 0.9


@quiet
def test_the_scaling_weighs_bags_alike() -> None:
    values = np.concatenate([np.zeros((1, 2)), np.full((9, 2), 4.0)])
    bags = Bags(values, np.array([0, 1, 10]))
    head = AttentionMILClassifier(**{**QUICK, "max_epochs": 1}).fit(bags, [0, 1])
    np.testing.assert_allclose(head.mean_, 2)
    np.testing.assert_allclose(head.scale_, 2)


@quiet
def test_a_cap_uses_evenly_spaced_instances_to_judge() -> None:
    bags, y = make_data(40)
    head = AttentionMILClassifier(max_instances=3, **{**QUICK, "max_epochs": 3}).fit(bags, y)
    free = AttentionMILClassifier(**{**QUICK, "max_epochs": 3})
    free.__dict__.update({name: value for name, value in vars(head).items() if name.endswith("_")})
    np.testing.assert_array_equal(head.predict_proba(bags), free.predict_proba(bags.at_most(3)))
    assert (np.bincount(bags.bag_of, weights=head.attention(bags) > 0) == 3).all()


@quiet
def test_refusals() -> None:
    bags, y = make_data(20)
    head = AttentionMILClassifier(**{**QUICK, "max_epochs": 1}).fit(bags, y)
    with pytest.raises(HeadError, match="fitted on bags of 1 levels, got bags of 2"):
        head.predict(Bags(bags.values, bags.offsets, bags.offsets))
    with pytest.raises(HeadError, match="no bags; expected at least one"):
        head.predict(bags[:0])
    with pytest.raises(HeadError, match="all 20 bags to learn from are empty"):
        head.fit(bags.instances(np.zeros(len(bags.values), bool)), y)
    with pytest.raises(HeadError, match="5 features, but AttentionMILClassifier is expecting 6"):
        head.predict(bags.with_values(bags.values[:, :5]))
    with pytest.raises(HeadError, match="NaN"):
        head.fit(bags.with_values(np.where(bags.values > 4, np.nan, bags.values)), y)
    with pytest.raises(HeadError, match="device='cuda:7'"):
        AttentionMILClassifier(device="cuda:7", **QUICK).fit(bags, y)


# The training loop ----------------------------------------------------------------------------------------------------


def train(budget: int = BUDGET, lr: float = 1e-2, **recipe: float):
    bags, y = make_data(30, d=D)
    return train_on_bags(
        BagNetwork(inputs=D, outputs=1, pooling="attention+cls_token", heads=4, hidden=8),
        bags,
        y.astype(float),
        fold=Fold(train=np.arange(24), monitor=np.arange(24, 30), weight=np.linspace(0.5, 2, 30)),
        recipe=Recipe(lr=lr, **recipe),
        regime=Regime(loss="binary_cross_entropy", batch_size=7, max_epochs=4),
        sampling=Sampling(at_most=9, dropout=0.2),
        budget=budget,
    )


def test_a_budget_of_instances_changes_nothing_but_memory() -> None:
    whole, cut = train(dropout=0.3), train(budget=12, dropout=0.3)
    for name, weight in whole.state.items():
        np.testing.assert_allclose(weight, cut.state[name], atol=2e-5)
    np.testing.assert_allclose(whole.history["monitor_loss"], cut.history["monitor_loss"], rtol=1e-4)


def test_a_seed_decides_everything() -> None:
    first, second, other = train(), train(), train(seed=1)
    assert all(np.array_equal(first.state[name], second.state[name]) for name in first.state)
    assert not np.allclose(first.state["logits.weight"], other.state["logits.weight"])


def test_the_first_step_is_that_of_torch() -> None:
    """One epoch of one step from the same weights: AdamW on the gradient of the plain network."""
    bags, y = make_data(10, d=D)
    network = BagNetwork(inputs=D, outputs=1, pooling="attention", hidden=8)
    model = train_on_bags(
        network,
        bags,
        y.astype(float),
        fold=Fold(train=np.arange(10)),
        recipe=Recipe(lr=1e-2, weight_decay=0.1),
        regime=Regime(loss="binary_cross_entropy", batch_size=10, max_epochs=1, schedule="constant"),
    )
    from heads.training.draws import generator_of

    state = {
        name: weight[None].requires_grad_() for name, weight in network.initial(generator_of(0, 0, "initial")).items()
    }
    groups = [
        {"params": [w for w in state.values() if w.ndim > 2], "weight_decay": 0.1},
        {"params": [w for w in state.values() if w.ndim <= 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    logits = network.forward(state, packed(torch.from_numpy(bags.values), bags))[0, :, 0]
    nn.functional.binary_cross_entropy_with_logits(logits, torch.from_numpy(y).float()).backward()
    optimizer.step()
    for name, weight in state.items():
        np.testing.assert_allclose(model.state[name], weight[0].detach(), atol=1e-6)


def test_sampling_keeps_one_of_each_bag_and_the_cap() -> None:
    bags = Bags(np.arange(400.0)[:, None], np.array([0, 1, 1, 40, 400]))
    drawn = [Sampling(at_most=30, dropout=0.95).draw(bags, torch.Generator().manual_seed(s)) for s in range(20)]
    assert all((each.lengths[[0, 2, 3]] >= 1).all() and each.lengths[1] == 0 for each in drawn)
    assert max(each.lengths.max() for each in drawn) <= 30
    assert len({each.values.tobytes() for each in drawn}) == 20
    full = Sampling(at_most=30).draw(bags, torch.Generator().manual_seed(0))
    assert full.lengths.tolist() == [1, 0, 30, 30]
    half = Sampling(dropout=0.5).draw(bags, torch.Generator().manual_seed(0))
    assert 130 < half.lengths[3] < 230
    assert Sampling().draw(bags, torch.Generator()) is bags


def test_bags_are_cut_by_a_budget() -> None:
    lengths = np.array([3, 9, 2, 2, 0, 50, 1])
    parts = [part.tolist() for part in by_budget(lengths, 10)]
    assert parts == [[0], [1], [2, 3, 4], [5], [6]]
    assert [part.tolist() for part in by_budget(np.array([], int), 10)] == [[]]
