"""`concat_fusion` with layers, norms, dropout and scaling of its own for each set of features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heads.artifact import load_bundle, save_bundle
from heads.context import Context
from heads.errors import HeadError
from heads.estimators.concat_fusion import ConcatFusionClassifier, ConcatFusionRegressor
from heads.many import Job, fit_many
from heads.params import parse_params
from heads.size import n_parameters
from heads.training.layers import Draws, TrainingPass

pytestmark = pytest.mark.filterwarnings("ignore::heads.base.HeadWarning")

PUBLISHED: dict[str, Any] = {
    "branch_hidden": ((64,), (), ()),
    "branch_norm": "layer",
    "order": "linear-activation-norm",
    "joined_norm": "layer",
    "hidden": (512, 128),
    "norm": "none",
    "dropout": (0.35, 0.25),
    "standardize": (True, False, False),
    "members": 1,
}
"""Six clinical numbers through a layer of 64, an image's and a text's embedding as they are."""
BLOCKS = (6, 5, 4)
SMALL = {**PUBLISHED, "branch_hidden": ((3,), (), ()), "hidden": (8, 7), "max_epochs": 4, "batch_size": 32}


class ThreeInputs(nn.Module):
    """The published network, written with torch's own layers."""

    def __init__(self, blocks: tuple[int, ...], branch: int, hidden: tuple[int, int], outputs: int) -> None:
        super().__init__()
        self.blocks = list(blocks)
        joined = branch + sum(blocks[1:])
        self.clinical = nn.Sequential(nn.Linear(blocks[0], branch), nn.ReLU(), nn.LayerNorm(branch))
        self.classifier = nn.Sequential(
            nn.LayerNorm(joined),
            nn.Linear(joined, hidden[0]), nn.ReLU(), nn.Dropout(0.35),
            nn.Linear(hidden[0], hidden[1]), nn.ReLU(), nn.Dropout(0.25),
            nn.Linear(hidden[1], outputs),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        clinical, *embeddings = x.split(self.blocks, dim=1)
        return self.classifier(torch.cat([self.clinical(clinical), *embeddings], dim=1))


NAMES = {
    "block0.0.weight": "clinical.0.weight", "block0.0.bias": "clinical.0.bias",
    "block0.0.norm.gain": "clinical.2.weight", "block0.0.norm.bias": "clinical.2.bias",
    "input.norm.gain": "classifier.0.weight", "input.norm.bias": "classifier.0.bias",
    "0.weight": "classifier.1.weight", "0.bias": "classifier.1.bias",
    "1.weight": "classifier.4.weight", "1.bias": "classifier.4.bias",
    "logits.weight": "classifier.7.weight", "logits.bias": "classifier.7.bias",
}  # fmt: skip


def given(network: ThreeInputs, weights: dict[str, Tensor]) -> ThreeInputs:
    """Return the network with our weights, all of them and nothing else."""
    theirs = {NAMES[name]: value.T if name.endswith("weight") else value for name, value in weights.items()}
    network.load_state_dict(theirs)
    return network


@pytest.fixture
def data() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    X = 5 + rng.normal(size=(150, 15)) * rng.uniform(0.5, 4, 15) + 2 * rng.normal(size=(3, 15))[y]
    return X.astype(np.float32), y


def published(blocks: tuple[int, ...], rows: int = 20) -> ConcatFusionClassifier:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(rows, sum(blocks))).astype(np.float32), np.arange(rows) % 2
    head = ConcatFusionClassifier(**PUBLISHED, max_epochs=1, validation_fraction=0.0)
    return head.fit(X, y, context=Context(blocks=blocks))


def test_the_published_form_has_the_published_number_of_parameters():
    head = published((6, 512, 512))
    weights = head._architecture(2).initial(torch.Generator().manual_seed(0))
    theirs = ThreeInputs((6, 512, 512), 64, (512, 128), 2)
    assert sum(value.numel() for value in weights.values()) == 626_242
    assert sum(value.numel() for value in theirs.parameters()) == 626_242
    # Of two classes one logit is learned, which is the difference of the published two.
    assert n_parameters(head) == 626_242 - 129


def test_its_logits_and_gradients_are_those_of_the_network_that_torch_builds():
    architecture = published((6, 512, 512))._architecture(2)
    weights = architecture.initial(torch.Generator().manual_seed(0))
    theirs = given(ThreeInputs((6, 512, 512), 64, (512, 128), 2), weights).eval()
    x, y = torch.randn(40, 1030, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 2
    state = {name: value[None].clone().requires_grad_() for name, value in weights.items()}
    ours = architecture.forward(state, x[None], None)[0]
    torch.testing.assert_close(ours, theirs(x), atol=1e-5, rtol=1e-5)
    nn.functional.cross_entropy(ours, y).backward()
    nn.functional.cross_entropy(theirs(x), y).backward()
    of_theirs = dict(theirs.named_parameters())
    for name, value in state.items():
        gradient = of_theirs[NAMES[name]].grad
        torch.testing.assert_close(
            value.grad[0], gradient.T if name.endswith("weight") else gradient, atol=1e-6, rtol=1e-4
        )


def test_a_fitted_head_is_that_network_on_scaled_numbers_and_embeddings_as_they_are(data, tmp_path):
    X, y = data
    head = ConcatFusionClassifier(**SMALL).fit(X, y, context=Context(blocks=BLOCKS))
    np.testing.assert_allclose(head.mean_[:6], X[:, :6].mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(head.scale_[:6], X[:, :6].std(axis=0), rtol=1e-5)
    assert (head.mean_[6:] == 0).all()
    assert (head.scale_[6:] == 1).all()
    weights = {name: torch.from_numpy(value[0]) for name, value in head.weights_.items()}
    theirs = given(ThreeInputs(BLOCKS, 3, (8, 7), 3), weights).eval()
    scaled = X.copy()
    scaled[:, :6] = (X[:, :6] - X[:, :6].mean(axis=0)) / X[:, :6].std(axis=0)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(scaled)).softmax(dim=1).numpy()
    np.testing.assert_allclose(head.predict_proba(X), expected, atol=1e-5)
    save_bundle(tmp_path / "head", head, task={"kind": "multiclass"}, inputs=[{"encoder": "e", "fingerprint": "f"}])
    loaded = load_bundle(tmp_path / "head").head
    assert loaded.get_params() == head.get_params()
    np.testing.assert_array_equal(loaded.predict_proba(X), head.predict_proba(X))


def test_parameters_from_text_are_those_of_python():
    text = {
        "branch_hidden": "[[64],[],[]]", "branch_norm": "layer", "joined_norm": "layer", "hidden": "512,128",
        "norm": "none", "dropout": "0.35,0.25", "standardize": "true,false,false",
    }  # fmt: skip
    assert parse_params(ConcatFusionClassifier, text) == {name: PUBLISHED[name] for name in text}
    plain = parse_params(ConcatFusionClassifier, {"branch_hidden": "64", "dropout": "0.35", "standardize": "false"})
    assert plain == {"branch_hidden": (64,), "dropout": 0.35, "standardize": False}
    with pytest.raises(HeadError, match=r"branch_hidden='\[\[64\],' is wrong; expected .* as \[\[64\],\[\]\]"):
        parse_params(ConcatFusionClassifier, {"branch_hidden": "[[64],"})


# Dropout


@pytest.mark.parametrize("made", [ConcatFusionClassifier, ConcatFusionRegressor])
def test_a_list_of_one_rate_trains_as_that_rate_does(data, made):
    X, y = data
    shape = {"branch_hidden": (), "hidden": (8,), "members": 2, "max_epochs": 4, "batch_size": 32}
    one, listed = (made(**shape, dropout=rate).fit(X, y, context=Context(blocks=BLOCKS)) for rate in (0.4, (0.4,)))
    for name, value in one.weights_.items():
        np.testing.assert_array_equal(value, listed.weights_[name])


def test_each_layer_drops_its_own_share_and_branches_none(data):
    X, y = data
    rates = (0.35, 0.8)
    head = ConcatFusionClassifier(**{**SMALL, "dropout": rates, "hidden": (400, 300), "norm": "layer"})
    architecture = head.fit(X, y, context=Context(blocks=BLOCKS))._architecture(3)
    training = TrainingPass(
        row_share=torch.full((1, 1, 1), 1.0), rates=None, stream=slice(None),
        draws=Draws([torch.Generator().manual_seed(0)]),
    )  # fmt: skip
    ones = torch.ones(2, 500, 400)
    for layer, rate in enumerate(rates):
        dropped = training.drop(ones, rate)
        torch.testing.assert_close(dropped.unique(), torch.tensor([0, 1 / (1 - rate)]), atol=1e-4, rtol=1e-4)
        assert float((dropped == 0).float().mean()) == pytest.approx(rate, abs=0.005)
        assert architecture.trunk.layers.dropout[layer] == rate
    assert [layers.dropout for layers in architecture.branches.layers] == [(0.0,), (), ()]
    assert training.drop(ones, 0.0) is ones


@pytest.mark.parametrize("torn", [False, True])
def test_they_are_trained_together_as_alone(data, torn):
    X, y = data
    X = X.copy()
    if torn:
        X[::3, :6], X[1::3, 11:] = np.nan, np.nan
    rows, context = np.arange(20, 150), Context(blocks=BLOCKS)
    settings = [{}, {"lr": 1e-2, "clip_norm": 0.5}, {"weight_decay": 0.1}, {"standardize": True}, {"dropout": 0.3}]
    heads = [ConcatFusionClassifier(**{**SMALL, "members": 2, **each}) for each in settings]
    together = list(fit_many([Job(head, rows) for head in heads], X, y, context=context))
    for each, head in zip(settings, together, strict=True):
        alone = ConcatFusionClassifier(**{**SMALL, "members": 2, **each}).fit(X[rows], y[rows], context=context)
        for name, value in alone.weights_.items():
            np.testing.assert_array_equal(head.weights_[name], value)
        assert np.isfinite(head.predict_proba(X)).all()


def test_it_learns(data):
    X, y = data
    head = ConcatFusionClassifier(**{**SMALL, "max_epochs": 60}, lr=1e-2)
    head.fit(X[:100], y[:100], context=Context(blocks=BLOCKS))
    assert (head.predict(X[100:]) == y[100:]).mean() > 0.7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"branch_hidden": ((3,), ())}, r"branch_hidden=\(\(3,\), \(\)\) is for 2 sets of features, and there are 3"),
        ({"standardize": (True,)}, r"standardize=\(True,\) is for 1 sets of features, and there are 3"),
        ({"dropout": (0.1,)}, r"dropout=\(0.1,\) is for 1 hidden layers after the join, and there are 2"),
    ],
)
def test_lists_must_have_one_entry_for_each(data, wrong, message):
    X, y = data
    with pytest.raises(HeadError, match=f"concat_fusion: {message}"):
        ConcatFusionClassifier(**{**SMALL, **wrong}).fit(X, y, context=Context(blocks=BLOCKS))
