"""The fusion heads: published forms, collapsed prompts, missing blocks, similarity to prompts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from torch import Tensor, nn

from heads.artifact import load_bundle, save_bundle
from heads.base import HeadWarning
from heads.context import Context
from heads.errors import HeadError
from heads.estimators import _network
from heads.estimators.concat_fusion import ConcatFusionClassifier, ConcatFusionRegressor
from heads.estimators.prompt_similarity import PromptSimilarityClassifier
from heads.estimators.weighted_sum import WeightedSumClassifier
from heads.many import Job, fit_many
from heads.size import n_parameters
from heads.training import optimizer
from heads.training.fusion import Blocks
from heads.training.layers import Draws, TrainingPass

pytestmark = pytest.mark.filterwarnings("ignore::heads.base.HeadWarning")

PUBLISHED: dict[str, Any] = {
    "norm": "batch",
    "order": "linear-activation-norm",
    "dropout": 0.3,
    "logit_shifts": True,
    "standardize": False,
    "members": 1,
}
PUBLISHED_TRAINING: dict[str, Any] = {
    "prompt_branch": "full",
    "optimizer": "adam",
    "lr": 3e-4,
    "weight_decay": 1e-4,
    "schedule": "plateau",
    "plateau_factor": 0.2,
    "batch_size": 32,
}
PUBLISHED_CONCAT = {**PUBLISHED, "branch_hidden": (256,), "prompt_hidden": (512, 256), "prompt_norm": "batch"}
PUBLISHED_SUM = {**PUBLISHED, "hidden": (512, 256)}
SMALL: dict[str, Any] = {"max_epochs": 6, "members": 2, "batch_size": 32}
SMALL_CONCAT = {**SMALL, "branch_hidden": (8,), "prompt_hidden": (10, 6)}


def unit_rows(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    values = rng.normal(size=(rows, width))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of blocks of 8 and 4, three classes, and a prompt of width 20 for each."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    X = rng.normal(size=(150, 12)) + 2 * rng.normal(size=(3, 12))[y]
    return X.astype(np.float32), y, unit_rows(rng, 3, 20)


@pytest.fixture
def torn(data) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same data; a third of the rows lacks the first block, another the second."""
    X, y, prompts = data
    X = X.copy()
    X[::3, :8], X[1::3, 8:] = np.nan, np.nan
    return X, y, prompts


def one_step(rows: int) -> TrainingPass:
    """Return a training step without dropout."""
    return TrainingPass(row_share=torch.full((1, 1, rows), 1 / rows), rates=None, draws=Draws([]), stream=slice(None))


def state_of(head: Any, member: int = 0) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value[member : member + 1].copy()) for name, value in head.weights_.items()}


# The published forms


@pytest.mark.parametrize(
    ("made", "params", "parameters"),
    [(ConcatFusionClassifier, PUBLISHED_CONCAT, 5_842_972), (WeightedSumClassifier, PUBLISHED_SUM, 8_790_044)],
)
def test_the_published_forms_have_the_published_number_of_parameters(made, params, parameters):
    rng = np.random.default_rng(0)
    X, y = unit_rows(rng, 20, 768), (np.arange(20)[:, None] % np.arange(2, 16) == 0).astype(float)
    context = Context(blocks=(768,), prompts=unit_rows(rng, 14, 768))
    full = made(**params, **PUBLISHED_TRAINING, max_epochs=1, validation_fraction=0.0).fit(X, y, context=context)
    assert n_parameters(full) == parameters
    collapsed = made(**params, max_epochs=1, validation_fraction=0.0).fit(X, y, context=context)
    width = full.weights_["prompt.0.weight"].shape[-1]
    assert n_parameters(collapsed) == parameters - (14 * 768 - 1) * width


def normalized(state: dict[str, Tensor], name: str) -> nn.BatchNorm1d:
    norm = nn.BatchNorm1d(state[f"{name}.gain"].shape[-1])
    norm.weight.data, norm.bias.data = state[f"{name}.gain"][0].clone(), state[f"{name}.bias"][0].clone()
    norm.running_mean, norm.running_var = state[f"{name}.mean"][0].clone(), state[f"{name}.variance"][0].clone()
    return norm


def published_layer(state: dict[str, Tensor], name: str, x: Tensor, training: bool) -> Tensor:
    """Return linear, ReLU and batch norm as torch computes them."""
    x = nn.functional.linear(x, state[f"{name}.weight"][0].T, state[f"{name}.bias"][0]).relu()
    return normalized(state, f"{name}.norm").train(training)(x)


def published_logits(state: dict[str, Tensor], x: Tensor) -> Tensor:
    logits = nn.functional.linear(x, state["logits.weight"][0].T, state["logits.bias"][0])
    return logits - state["logits.shifts"][0]


@pytest.mark.parametrize("training", [True, False])
def test_the_published_concatenation_is_the_network_that_torch_builds(data, training):
    X, y, prompts = data
    head = ConcatFusionClassifier(**{**PUBLISHED_CONCAT, **SMALL_CONCAT}, prompt_branch="full")
    head.fit(X, y, context=Context(prompts=prompts))
    state, x = state_of(head), torch.from_numpy(X)
    repeated = torch.from_numpy(prompts.reshape(1, -1)).expand(len(X), -1)
    image = published_layer(state, "block0.0", x, training)
    prompt = published_layer(state, "prompt.1", published_layer(state, "prompt.0", repeated, training), training)
    theirs = published_logits(state, torch.cat([image, prompt], dim=1))
    ours = head._architecture(3).forward(state, x[None], one_step(len(X)) if training else None)[0]
    # In training the norm of a constant divides the rounding of its mean by the square root of 1e-5, twice.
    torch.testing.assert_close(ours, theirs, atol=1e-3 if training else 2e-5, rtol=1e-5)


def test_the_published_sum_is_the_network_that_torch_builds(data):
    X, y, prompts = data
    head = WeightedSumClassifier(**{**PUBLISHED_SUM, **SMALL, "hidden": (9, 7)}, prompt_branch="full")
    head.fit(X, y, context=Context(prompts=prompts))
    state, x = state_of(head), torch.from_numpy(X)
    repeated = torch.from_numpy(prompts.reshape(1, -1)).expand(len(X), -1)
    prompt = nn.functional.linear(repeated, state["prompt.0.weight"][0].T, state["prompt.0.bias"][0]).relu()
    total = state["block0.scale"][0] * x + state["prompt.scale"][0] * prompt
    hidden = published_layer(state, "1", published_layer(state, "0", total, False), False)
    ours = head._architecture(3).forward(state, x[None], None)[0]
    torch.testing.assert_close(ours, published_logits(state, hidden), atol=1e-5, rtol=1e-5)
    assert not np.allclose(head.weights_["block0.scale"], 1)  # the scales are learned
    assert not np.allclose(head.weights_["prompt.scale"], 1)


# Prompts that are the same for every row


@pytest.mark.parametrize(
    ("made", "params"),
    [
        (ConcatFusionClassifier, SMALL_CONCAT),
        (WeightedSumClassifier, {**SMALL, "hidden": (8,)}),
        (WeightedSumClassifier, {**PUBLISHED_SUM, **SMALL, "hidden": (8,)}),
    ],
)
def test_collapsed_prompts_are_trained_like_the_full_layer(data, monkeypatch, made, params):
    """Adam moves all entries of a row of W alike but for the sign, as far as its eps is small beside the gradients.

    It is not tested behind the batch norm that leaves no gradient: Adam scales what rounding leaves up to full steps.
    """
    monkeypatch.setattr(optimizer, "_EPS", 1e-12)
    X, y, prompts = data
    context = Context(blocks=(8, 4), prompts=prompts)
    full, collapsed = (
        made(**params, prompt_branch=branch, weight_decay=0.3, lr=1e-2).fit(X, y, context=context)
        for branch in ("full", "collapsed")
    )
    for name in ("train_loss", "monitor_loss"):
        np.testing.assert_allclose(full.history_[name], collapsed.history_[name], atol=1e-5)
    np.testing.assert_allclose(full._logits(X), collapsed._logits(X), atol=1e-5, rtol=1e-5)
    product = full.prompts_.reshape(1, -1) @ full.weights_["prompt.0.weight"]
    np.testing.assert_allclose(product, collapsed.weights_["prompt.0.product"], atol=1e-5)


def gradients_of(head: Any, X: np.ndarray, y: np.ndarray) -> dict[str, Tensor]:
    """Return the gradient of the cross-entropy over all rows, in training, at the start."""
    architecture = head._architecture(3)
    started = architecture.initial(torch.Generator().manual_seed(0))
    state = {name: value[None].clone().requires_grad_() for name, value in started.items()}
    running = {name: value[None].clone() for name, value in architecture.running().items()}
    logits = architecture.forward(state | running, torch.from_numpy(X)[None], one_step(len(X)))[0]
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(y))
    return dict(zip(state, torch.autograd.grad(loss, list(state.values())), strict=True))


@pytest.mark.parametrize("branch", ["full", "collapsed"])
def test_batch_norm_kills_the_prompt_branch_and_the_default_does_not(data, branch):
    X, y, prompts = data
    context, name = Context(prompts=prompts), "prompt.0.weight" if branch == "full" else "prompt.0.product"
    published = ConcatFusionClassifier(**{**PUBLISHED_CONCAT, **SMALL_CONCAT}, prompt_branch=branch)
    sound = ConcatFusionClassifier(**SMALL_CONCAT, prompt_branch=branch)
    summed = WeightedSumClassifier(**SMALL, hidden=(8,), prompt_branch=branch)
    with pytest.warns(HeadWarning, match="prompt_norm=batch takes the prompts away"):
        published.fit(X, y, context=context)
    with pytest.warns(HeadWarning, match="the prompts are the same for every sample"):
        sound.fit(X, y, context=context)
    summed.fit(X, y, context=context)
    dead, alive, added = (gradients_of(head, X, y)[name].abs().max() for head in (published, sound, summed))
    assert dead < 1e-4  # what rounding leaves, divided by the square root of the norm's eps, twice
    assert alive > 100 * dead
    assert added > 100 * dead


def test_prompts_of_zeros_stay_a_control(data):
    X, y, _ = data
    zeros = Context(prompts=np.zeros((3, 20), dtype=np.float32))
    for made, params in ((ConcatFusionClassifier, SMALL_CONCAT), (WeightedSumClassifier, SMALL)):
        full, collapsed = (
            made(**params, prompt_branch=branch).fit(X, y, context=zeros) for branch in ("full", "collapsed")
        )
        assert np.abs(collapsed.weights_["prompt.0.product"]).max() < 1e-6
        np.testing.assert_allclose(full.predict_proba(X), collapsed.predict_proba(X), atol=1e-5)


def test_prompts_of_learned_targets_are_kept_and_saved(data, tmp_path):
    X, y, prompts = data
    labels = np.column_stack([y == 0, np.ones(150), y == 2]).astype(float)
    context = Context(blocks=(8, 4), prompts=prompts)
    for made, params in ((ConcatFusionClassifier, SMALL_CONCAT), (PromptSimilarityClassifier, SMALL)):
        head = made(**params).fit(X, labels, context=context)
        np.testing.assert_array_equal(head.prompts_, prompts[[0, 2]])
        folder = tmp_path / head.name
        save_bundle(folder, head, task={"kind": "multilabel"}, inputs=[{"encoder": "e", "fingerprint": "f"}])
        np.testing.assert_array_equal(load_bundle(folder).head.predict_proba(X), head.predict_proba(X))


def test_a_factor_of_the_learning_rate_is_torchs_own_learning_rate():
    generator = torch.Generator().manual_seed(0)
    start = {"a": torch.randn(3, 2, generator=generator), "b": torch.randn(3, generator=generator)}
    start["c"] = torch.randn(1, 4, generator=generator)
    ours = {
        fused: optimizer.StackedOptimizer([start], torch.device("cpu"), {"c": 50.0}, fused=fused)
        for fused in (True, False)
    }
    theirs = {name: value.clone().requires_grad_() for name, value in start.items()}
    adam = torch.optim.AdamW(
        [
            {"params": [theirs["a"]], "weight_decay": 0.1},
            {"params": [theirs["b"]], "weight_decay": 0.0},
            {"params": [theirs["c"]], "lr": 0.5, "weight_decay": 0.1 / 50},
        ],
        lr=0.01,
    )
    for _ in range(5):
        gradients = {name: torch.randn(value.shape, generator=generator) for name, value in theirs.items()}
        for name, value in theirs.items():
            value.grad = gradients[name]
        adam.step()
        for stacked in ours.values():
            (block,) = stacked.blocks
            stacked.step(
                block, [gradients[name][None] for name in block.leaves], torch.tensor([0.01]), torch.tensor([0.1])
            )
    for stacked in ours.values():
        for name, value in theirs.items():
            torch.testing.assert_close(stacked.weights[name][0], value.detach(), atol=1e-6, rtol=1e-5)


# Missing blocks


def test_a_missing_block_contributes_nothing_and_the_others_more(torn):
    X, y, _ = torn
    context = Context(blocks=(8, 4))
    head = ConcatFusionClassifier(**SMALL, branch_hidden=(), standardize=False, norm="none").fit(X, y, context=context)
    share = 2 / np.column_stack([~np.isnan(X[:, 0]), ~np.isnan(X[:, 8])]).sum(axis=1, keepdims=True)
    theirs = share * np.nan_to_num(X) @ head.weights_["logits.weight"] + head.weights_["logits.bias"][:, None]
    np.testing.assert_allclose(head._logits(X), theirs, atol=1e-5)

    head = WeightedSumClassifier(**SMALL, hidden=(), standardize=False).fit(X, y, context=context)
    lacking = np.isnan(X[:, 0])
    w = head.weights_
    second = np.maximum(np.nan_to_num(X[:, 8:]) @ w["block1.weight"] + w["block1.bias"][:, None], 0)
    only_second = 2 * w["block1.scale"][:, None] * second @ w["logits.weight"] + w["logits.bias"][:, None]
    np.testing.assert_allclose(head._logits(X[lacking]), only_second[:, lacking], atol=1e-5)


@pytest.mark.parametrize("made", [ConcatFusionClassifier, WeightedSumClassifier, PromptSimilarityClassifier])
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_rows_that_lack_blocks_are_learned_from(torn, made, norm):
    X, y, prompts = torn
    context = Context(blocks=(8, 4), prompts=prompts)
    params = {**SMALL, "norm": norm, "max_epochs": 30, "lr": 1e-2, "input_noise": 0.1}
    head = made(**params, modality_dropout=0.2).fit(X[:100], y[:100], context=context)
    np.testing.assert_allclose(head.mean_, np.nanmean(X[:100].astype(float), axis=0), atol=1e-6)
    np.testing.assert_allclose(head.scale_, np.nanstd(X[:100].astype(float), axis=0), atol=1e-6)
    probability = head.predict_proba(X[100:])
    assert np.isfinite(probability).all()
    assert (probability.argmax(axis=1) == y[100:]).mean() > 0.8
    lone = np.flatnonzero(np.isnan(X[100:, 0]))[0]
    np.testing.assert_allclose(head.predict_proba(X[100 + lone][None])[0], probability[lone], atol=1e-5)


def test_a_regressor_learns_from_rows_that_lack_blocks(torn):
    X, y, _ = torn
    head = ConcatFusionRegressor(**{**SMALL_CONCAT, "max_epochs": 40}, lr=1e-2)
    head.fit(X, 100.0 * y, context=Context(blocks=(8, 4)))
    assert np.square(head.predict(X) - 100.0 * y).mean() < 0.5 * np.var(100.0 * y)


def test_the_statistics_of_batch_norm_are_those_of_the_rows_that_have_the_block(torn):
    X, y, _ = torn
    head = ConcatFusionClassifier(**SMALL, branch_hidden=(5,), norm="batch", standardize=False)
    head.fit(X, y, context=Context(blocks=(8, 4)))
    state, there = state_of(head), ~np.isnan(X[:, 0])
    before = {name: value.clone() for name, value in state.items()}
    linear = X[there, :8] @ before["block0.0.weight"][0].numpy() + before["block0.0.bias"][0].numpy()
    head._architecture(3).forward(state, torch.from_numpy(X)[None], one_step(len(X)))
    expected = 0.9 * before["block0.0.norm.mean"][0].numpy() + 0.1 * linear.mean(axis=0)
    np.testing.assert_allclose(state["block0.0.norm.mean"][0], expected, atol=1e-5)
    expected = 0.9 * before["block0.0.norm.variance"][0].numpy() + 0.1 * linear.var(axis=0, ddof=1)
    np.testing.assert_allclose(state["block0.0.norm.variance"][0], expected, rtol=1e-4)


def test_modality_dropout_leaves_every_row_a_block():
    x = torch.ones(2, 4000, 6)
    x[:, :1000, :2] = torch.nan
    draws = Draws([torch.Generator().manual_seed(0)])
    training = replace(one_step(4000), draws=draws)
    blocks = Blocks(widths=(2, 1, 3), masked=True, dropout=0.4)
    parts, share = blocks.split(x, training)
    assert share is not None
    left = share[0] > 0
    assert not any(bool(part.isnan().any()) for part in parts)
    assert bool(left.any(dim=1).all())
    assert not bool(left[:1000, 0].any())
    np.testing.assert_allclose(share.sum(dim=-1), 3, rtol=1e-6)
    # A block goes with 0.4, unless all three would go: 0.4 - 0.4^3.
    np.testing.assert_allclose(1 - left[1000:].float().mean(dim=0), 0.4 - 0.4**3, atol=0.03)
    assert torch.equal(share[0], share[1])  # one stream
    assert blocks.split(x[:, 1000:], None)[1] is None  # none in use


@pytest.mark.parametrize(
    ("torn_at", "message"),
    [
        ((3, slice(0, 4)), "NaN in a part of block 0 of row 3"),
        ((5, slice(None)), "nothing but NaN in row 5"),
        ((slice(None), slice(8, 12)), "block 1 is missing from all training rows"),
    ],
)
def test_what_may_not_be_missing(data, torn_at, message):
    X, y, _ = data
    X = X.copy()
    X[torn_at] = np.nan
    with pytest.raises(HeadError, match=f"concat_fusion: .*{message}"):
        ConcatFusionClassifier(**SMALL).fit(X, y, context=Context(blocks=(8, 4)))
    if "training rows" not in message:
        head = ConcatFusionClassifier(**SMALL).fit(data[0], y, context=Context(blocks=(8, 4)))
        with pytest.raises(HeadError, match=message):
            head.predict(X)


def test_there_must_be_something_to_fuse(data):
    X, y, prompts = data
    with pytest.raises(HeadError, match=r"weighted_sum fuses two or more sets of features.*several --encoder"):
        WeightedSumClassifier(**SMALL).fit(X, y)
    with pytest.raises(HeadError, match="prompt_similarity needs the prompts"):
        PromptSimilarityClassifier(**SMALL).fit(X, y, context=Context(blocks=(8, 4)))
    with pytest.raises(HeadError, match=r"prompt_hidden=.*one layer or more"):
        ConcatFusionClassifier(**{**SMALL_CONCAT, "prompt_hidden": ()}).fit(X, y, context=Context(prompts=prompts))


# Similarity


def cosines(head: Any, X: np.ndarray) -> np.ndarray:
    """Return scaled cosines of rows and prompts, shape (members, n, C), without hidden layers."""
    rows = (X - head.mean_) / head.scale_ @ head.weights_["row.weight"] + head.weights_["row.bias"][:, None]
    prompts = head.prompts_ @ head.weights_["prompt.weight"] + head.weights_["prompt.bias"][:, None]
    products = np.einsum("gnd,gcd->gnc", rows, prompts)
    lengths = np.linalg.norm(rows, axis=2)[:, :, None] * np.linalg.norm(prompts, axis=2)[:, None]
    return np.exp(head.weights_["logits.log_scale"])[:, :, None] * products / lengths


def test_similarity_is_the_scaled_cosine_to_each_prompt(data):
    X, y, prompts = data
    params = {**SMALL, "branch_hidden": (), "width": 6}
    head = PromptSimilarityClassifier(**params).fit(X, y, context=Context(prompts=prompts))
    logits = cosines(head, X) + head.weights_["logits.bias"][:, None]
    np.testing.assert_allclose(head.predict_proba(X), softmax(logits, axis=2).mean(axis=0), atol=1e-5)

    head = PromptSimilarityClassifier(**params).fit(X, y == 1, context=Context(prompts=prompts[:2]))
    scaled = cosines(head, X)
    logits = scaled[:, :, 1] - scaled[:, :, 0] + head.weights_["logits.bias"]
    np.testing.assert_allclose(head.predict_proba(X)[:, 1], expit(logits).mean(axis=0), atol=1e-5)

    labels = (y[:, None] == np.arange(3)).astype(float)
    head = PromptSimilarityClassifier(**params).fit(X, labels, context=Context(prompts=prompts))
    logits = cosines(head, X) + head.weights_["logits.bias"][:, None]
    np.testing.assert_allclose(head.predict_proba(X), expit(logits).mean(axis=0), atol=1e-5)


def test_similarity_to_prompts_that_say_nothing_tells_nothing_apart(data):
    X, y, prompts = data
    params = {**SMALL, "max_epochs": 30, "lr": 1e-2}
    told = PromptSimilarityClassifier(**params).fit(X, y, context=Context(prompts=prompts))
    untold = PromptSimilarityClassifier(**params).fit(X, y, context=Context(prompts=np.zeros_like(prompts)))
    assert (told.predict(X) == y).mean() > 0.9
    assert np.ptp(untold.predict_proba(X), axis=0).max() < 1e-5


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (ConcatFusionClassifier, {"branch_hidden": (8,), "prompt_hidden": (10, 6)}),
        (ConcatFusionClassifier, {"branch_hidden": (8,), "prompt_hidden": (6,), "prompt_norm": "batch"}),
        (WeightedSumClassifier, {"hidden": (8,), "modality_dropout": 0.3}),
        (PromptSimilarityClassifier, {"branch_hidden": (8,), "width": 6}),
    ],
)
def test_fusions_are_trained_together_as_alone(torn, monkeypatch, made, shape):
    X, y, prompts = torn
    context, rows = Context(blocks=(8, 4), prompts=prompts), np.arange(20, 150)
    settings = [
        {},
        {"lr": 1e-2, "clip_norm": 0.5},
        {"weight_decay": 0.1, "sampler": "weighted"},
        {"standardize": False},
    ]
    calls = []
    train = _network.train_many
    monkeypatch.setattr(_network, "train_many", lambda *a, **k: calls.append(len(k["recipes"])) or train(*a, **k))
    heads = [made(**SMALL, **shape, **each) for each in settings]
    together = list(fit_many([Job(head, rows) for head in heads], X, y, context=context))
    assert calls == [len(settings) * SMALL["members"]]
    for each, head in zip(settings, together, strict=True):
        alone = made(**SMALL, **shape, **each).fit(X[rows], y[rows], context=context)
        assert alone.notes_ == head.notes_
        for name, value in alone.weights_.items():
            np.testing.assert_array_equal(head.weights_[name], value)


def test_collapsed_prompts_are_refused_where_they_would_not_be_exact(data):
    X, y, prompts = data
    context, params = Context(prompts=prompts), {**SMALL_CONCAT, "optimizer": "adam"}
    with pytest.raises(HeadError, match=r"not exact with optimizer=adam and weight_decay=0.01; use prompt_br"):
        ConcatFusionClassifier(**params).fit(X, y, context=context)
    with pytest.raises(HeadError, match="not exact with optimizer=sgd"):
        WeightedSumClassifier(**SMALL, optimizer="sgd").fit(X, y, context=context)
    for allowed in ({"weight_decay": 0.0}, {"prompt_branch": "full"}):
        assert ConcatFusionClassifier(**params, **allowed).fit(X, y, context=context).prompts_.shape == (3, 20)


def test_a_fusion_is_trained_the_same_alone_and_with_other_members(torn):
    X, y, prompts = torn
    context = Context(blocks=(8, 4), prompts=prompts)
    few, many = (
        ConcatFusionClassifier(**{**SMALL_CONCAT, "members": members}, modality_dropout=0.3).fit(X, y, context=context)
        for members in (1, 3)
    )
    np.testing.assert_array_equal(few._logits(X)[0], many._logits(X)[0])
