"""Views of bags: what is added is what was learned, unknown views are one, and caps look at whole parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from heads.artifact import load_bundle, save_bundle
from heads.bag_views import MAX_VIEWS
from heads.bags import Bags, offsets_of
from heads.errors import HeadError
from heads.estimators.attention_mil import AttentionMILClassifier, AttentionMILRegressor
from heads.size import n_parameters
from heads.training.packed import Sampling
from heads.training.pooling import BagNetwork, Pooling
from heads.training.segments import packed

POOLINGS = get_args(Pooling)
D = 12
QUICK = {"lr": 3e-2, "max_epochs": 15, "members": 1, "hidden": 8, "validation_fraction": 0.0, "dropout": 0.0}

pooling_ = pytest.mark.parametrize("pooling", POOLINGS)
levels_ = pytest.mark.parametrize("levels", [1, 2])
quiet = pytest.mark.filterwarnings("ignore::heads.base.HeadWarning")


def make_bags(levels: int = 1) -> Bags:
    """Bags of 3, 1, 0 and 4 parts of views 0 to 2; with two levels a part has one to three instances."""
    rng = np.random.default_rng(levels)
    parts, views = offsets_of([3, 1, 0, 4]), np.array([0, 1, 2, 2, 1, 1, 0, 2])
    inner = offsets_of([2, 1, 3, 1, 1, 2, 3, 1])
    if levels == 1:
        return Bags(rng.normal(size=(8, D)), parts, views=views)
    return Bags(rng.normal(size=(14, D)), inner[parts], inner, np.repeat(views, np.diff(inner)))


def make_network(pooling: str, levels: int, views: int) -> tuple[BagNetwork, dict[str, torch.Tensor]]:
    network = BagNetwork(inputs=D, outputs=3, pooling=pooling, hidden=8, heads=4, levels=levels, views=views)
    state = network.initial(torch.Generator().manual_seed(0))
    return network, {name: weight[None].double() for name, weight in state.items()}


# What bags carry ------------------------------------------------------------------------------------------------------


@levels_
def test_views_stay_with_their_instances(levels: int) -> None:
    bags = make_bags(levels)
    assert bags.views is not None
    marked = bags.with_values(np.column_stack([bags.views, bags.values[:, 1:]]))
    rng = np.random.default_rng(0)
    for some in (
        marked[[3, 0, 0]],
        marked[np.array([True, False, True, False])],
        marked.at_most(2),
        marked.parts_at_most(2),
        marked.instances(rng.random(len(bags.values)) < 0.5),
        Sampling(at_most=3, dropout=0.3, parts=2).draw(marked, torch.Generator().manual_seed(0)),
    ):
        assert len(some.values)
        np.testing.assert_array_equal(some.views, some.values[:, 0])


def test_views_that_do_not_fit_are_refused() -> None:
    bags = make_bags(2)
    with pytest.raises(HeadError, match=r"views of shape \(14,\), got \(3,\)"):
        replace(bags, views=np.zeros(3, int))
    views = np.array(["a", "a", "b", "c", "c", "d", *"eeeeeeee"], dtype=object)
    with pytest.raises(HeadError, match="instances of part 2 are of several views"):
        replace(bags, views=views)


# The network ----------------------------------------------------------------------------------------------------------


@pooling_
@levels_
def test_views_have_no_effect_at_the_start(pooling: str, levels: int) -> None:
    bags = make_bags(levels)
    network, state = make_network(pooling, levels, views=3)
    plain, without = make_network(pooling, levels, views=0)
    assert state.keys() - without.keys() == {"view.weight"}
    assert all(torch.equal(state[name], without[name]) for name in without)
    assert sum(weight.numel() for weight in state.values()) - sum(weight.numel() for weight in without.values()) == 36
    x = torch.from_numpy(bags.values)
    with_views = network.forward(state, packed(x, bags))
    assert torch.equal(with_views, plain.forward(without, packed(x, bags.with_views(None))))


@pooling_
def test_what_is_added_is_the_vector_of_the_view(pooling: str) -> None:
    bags = make_bags()
    network, state = make_network(pooling, 1, views=3)
    weight = torch.randn(1, 3, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    plain, _ = make_network(pooling, 1, views=0)
    x = torch.from_numpy(bags.values)
    ours = network.forward({**state, "view.weight": weight}, packed(x, bags))
    theirs = plain.forward(state, packed(x + weight[0][bags.views], bags.with_views(None)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    target = torch.randn(ours.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    mine, other = (torch.autograd.grad((out - target).square().sum(), weight)[0] for out in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("pooling", ["mean", "max", "mean+cls_token"])
def test_of_two_levels_it_is_added_to_the_parts(pooling: str) -> None:
    """Pooling within a part comes first: then parts and their views are bags of one level."""
    bags = make_bags(2)
    assert bags.inner is not None
    assert bags.views is not None
    network, state = make_network(pooling, 2, views=3)
    state["view.weight"] = torch.randn(1, 3, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shares = network.shares(state, packed(torch.from_numpy(bags.values), bags))[0]
    np.testing.assert_allclose(np.bincount(bags.bag_of, weights=shares, minlength=4), [1, 1, 0, 1])
    if "cls_token" in pooling:
        return
    x = torch.from_numpy(bags.values) + state["view.weight"][0][bags.views]
    torch.testing.assert_close(
        network.pool(state, packed(torch.from_numpy(bags.values), bags)),
        network.pool(state, packed(x, bags.with_views(None))),
    )


# The head -------------------------------------------------------------------------------------------------------------


def make_data(n: int = 60, levels: int = 1, seed: int = 0) -> tuple[Bags, np.ndarray]:
    """Return bags whose label is the sign of the first feature in view A, which view B has the other way round."""
    rng = np.random.default_rng(seed)
    y, bags, views = np.arange(n) % 2, [], []
    for label in y:
        shown = rng.permutation(["A", "B", "A", "B"][: rng.integers(1, 5)])
        sign = np.where(shown == "A", 1, -1) * (2 * label - 1)
        bags.append(np.column_stack([2 * sign + rng.normal(size=len(shown)), rng.normal(size=(len(shown), 3))]))
        views.append(shown)
    made = Bags(np.concatenate(bags), offsets_of(list(map(len, bags))), views=np.concatenate(views).astype(object))
    if levels == 2:
        twice = np.repeat(np.arange(len(made.values)), 2)
        made = Bags(made.values[twice], 2 * made.offsets, np.arange(0, 2 * len(made.values) + 1, 2), made.views[twice])
    return made, y


@quiet
@levels_
def test_a_head_learns_its_views_and_takes_all_others_as_one(levels: int) -> None:
    bags, y = make_data(levels=levels)
    assert bags.views is not None
    head = AttentionMILClassifier(**QUICK).fit(bags, y)
    assert head.views_ == ["A", "B"]
    assert head.weights_["view.weight"].shape == (1, 3, 4)
    plain = AttentionMILClassifier(**QUICK).fit(bags.with_views(None), y)
    assert plain.views_ is None
    assert n_parameters(head) - n_parameters(plain) == 3 * 4
    numbered = {"A": 1, "B": 0}
    other = bags.with_views(np.array([numbered[name] for name in bags.views]))
    again = AttentionMILClassifier(**QUICK).fit(other, y).weights_["view.weight"]
    np.testing.assert_allclose(again, head.weights_["view.weight"][:, [0, 2, 1]], atol=1e-5)
    # Every training row has a known view, so nothing was learned of unknown ones: they add nothing.
    np.testing.assert_array_equal(head.weights_["view.weight"][0, 0], 0)
    assert (head.weights_["view.weight"][0, 1:] != 0).all()
    scores = head.predict_proba(bags)
    assert np.abs(scores - head.predict_proba(bags.with_views(None))).max() > 1e-3
    n = len(bags.values)
    unknown = [bags.with_views(np.full(n, name, object)) for name in ("", "C", None)] + [bags.with_views(None)]
    assert len({head.predict_proba(each).tobytes() for each in unknown}) == 1


@quiet
def test_rows_without_a_view_teach_the_unknown_one() -> None:
    bags, y = make_data()
    assert bags.views is not None
    views = np.where(np.random.default_rng(1).random(len(bags.values)) < 0.3, "", bags.views).astype(object)
    head = AttentionMILClassifier(**QUICK).fit(bags.with_views(views), y)
    assert head.views_ == ["A", "B"]
    assert (head.weights_["view.weight"][0, 0] != 0).any()
    unseen = head.predict_proba(bags.with_views(np.where(views == "", "new", views)))
    np.testing.assert_array_equal(unseen, head.predict_proba(bags.with_views(views)))


@quiet
@pooling_
@levels_
def test_order_does_not_matter_where_views_move_along(pooling: str, levels: int) -> None:
    bags, y = make_data(30, levels)
    assert bags.views is not None
    head = AttentionMILClassifier(pooling=pooling, **{**QUICK, "max_epochs": 3}).fit(bags, y)
    turned = np.concatenate([np.arange(b - 1, a - 1, -1) for a, b in zip(bags.offsets, bags.offsets[1:], strict=False)])
    other = replace(bags, values=bags.values[turned], views=bags.views[turned])
    np.testing.assert_allclose(head.predict_proba(other), head.predict_proba(bags), atol=1e-6)
    # What is in one bag, and of which view, moves no other bag.
    first = bags.bag_of == 0
    changed = replace(
        bags,
        values=np.where(first[:, None], 1e3, bags.values),
        views=np.where(first, "B", bags.views).astype(object),
    )
    np.testing.assert_allclose(head.predict_proba(changed)[1:], head.predict_proba(bags)[1:], atol=1e-6)


@quiet
def test_a_bundle_keeps_views_and_older_ones_have_none(tmp_path: Path) -> None:
    bags, y = make_data(30)
    for number, X in enumerate((bags, bags.with_views(None))):
        head = AttentionMILClassifier(**{**QUICK, "max_epochs": 2}).fit(X, y)
        save_bundle(tmp_path / str(number), head, task={}, inputs=[])
        again = load_bundle(tmp_path / str(number)).head
        np.testing.assert_array_equal(again.predict_proba(X), head.predict_proba(X))  # type: ignore[attr-defined]
    state = head.get_state()
    del state.meta["views_"]
    older = AttentionMILClassifier.from_state(
        {name: value for name, value in head.get_params().items() if name != "max_parts"}, state
    )
    np.testing.assert_array_equal(older.predict_proba(X), head.predict_proba(X))


@quiet
def test_refusals_of_views() -> None:
    bags, y = make_data(30)
    head = AttentionMILClassifier(**{**QUICK, "max_epochs": 1}).fit(bags.with_views(None), y)
    with pytest.raises(HeadError, match="fitted on bags without views, got bags with them"):
        head.predict(bags)
    wide = Bags(np.zeros((MAX_VIEWS + 1, 2)), np.arange(MAX_VIEWS + 2), views=np.arange(1, MAX_VIEWS + 2).astype(str))
    with pytest.raises(HeadError, match=r"257 views, such as '1'; expected at most 256"):
        head.fit(wide, np.arange(MAX_VIEWS + 1) % 2)
    with pytest.raises(HeadError, match="max_parts=2: these bags have no parts; use max_instances"):
        AttentionMILClassifier(max_parts=2, **QUICK).fit(bags, y)


# Caps -----------------------------------------------------------------------------------------------------------------


@quiet
def test_a_cap_on_parts_takes_whole_parts_evenly_spaced() -> None:
    lengths = np.random.default_rng(0).integers(1, 4, 40)
    inner = offsets_of(lengths)
    bags = Bags(np.arange(inner[-1], dtype=float)[:, None], inner[[0, 1, 7, 7, 40]], inner)
    part = bags.part_of
    capped = bags.parts_at_most(3)
    # As the cap on instances takes the instances of bags of as many as they have parts.
    rows = Bags(np.arange(40)[:, None], np.array([0, 1, 7, 7, 40])).at_most(3).values[:, 0]
    assert capped.values[:, 0].tolist() == np.flatnonzero(np.isin(part, rows)).tolist()
    assert np.diff(capped.part_offsets).tolist() == [1, 3, 0, 3]
    assert bags.parts_at_most(33) is bags

    drawn = [Sampling(parts=3).draw(bags, torch.Generator().manual_seed(seed)) for seed in range(300)]
    for each in drawn:
        assert np.diff(each.part_offsets).tolist() == [1, 3, 0, 3]
        taken = np.unique(part[each.values[:, 0].astype(int)])
        assert each.values[:, 0].tolist() == np.flatnonzero(np.isin(part, taken)).tolist(), "whole parts, in order"
    assert len({each.values.tobytes() for each in drawn}) > 250
    assert set(np.concatenate([part[each.values[:, 0].astype(int)] for each in drawn])) == set(range(40))


@quiet
def test_a_head_with_a_cap_on_parts_judges_by_these() -> None:
    bags, y = make_data(40, levels=2)
    values = y + 0.1 * np.arange(40)
    head = AttentionMILRegressor(max_parts=2, **{**QUICK, "max_epochs": 3}).fit(bags, values)
    free = AttentionMILRegressor(**{**QUICK, "max_epochs": 3})
    free.__dict__.update({name: value for name, value in vars(head).items() if name.endswith("_")})
    np.testing.assert_array_equal(head.predict(bags), free.predict(bags.parts_at_most(2)))
    used = head.attention(bags) > 0
    assert (np.bincount(bags.bag_of, weights=used) == 2 * np.minimum(np.diff(bags.part_offsets), 2)).all()
    again = AttentionMILRegressor(max_parts=2, **{**QUICK, "max_epochs": 3}).fit(bags, values)
    np.testing.assert_array_equal(again.predict(bags), head.predict(bags))


# The three shapes of a study ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("videos", [1, 3])
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_a_study_of_one_video_keeps_its_axes(videos: int, pooling: str) -> None:
    """(B, D), (B, N, D) and (B, N L, D): one is the pooling of the next, for one video as for three."""
    studies, tokens = 2, 5
    values = np.random.default_rng(0).normal(size=(studies, videos, tokens, D))
    inner = offsets_of([tokens] * studies * videos)
    of_tokens = Bags(values.reshape(-1, D), inner[::videos], inner)
    network, state = make_network(pooling, 2, views=0)
    level = network.branches[0][0]
    packed_tokens = packed(torch.from_numpy(of_tokens.values), of_tokens)
    vectors = level.pool(state, packed_tokens.x[None], packed_tokens.levels[0])[0]
    of_videos = Bags(vectors.numpy(), np.arange(0, studies * videos + 1, videos))
    assert of_tokens.to_padded()[0].shape == (studies, videos * tokens, D)
    assert of_videos.to_padded()[0].shape == (studies, videos, D)
    study = network.pool(state, packed_tokens)
    assert study.shape == (1, studies, D)
    last = network.branches[0][1]
    across = packed(vectors, of_videos)
    torch.testing.assert_close(last.pool(state, across.x[None], across.levels[0]), study)
    if videos == 1:  # a bag of one is its instance
        torch.testing.assert_close(study[0], vectors)
    if pooling == "mean":
        np.testing.assert_allclose(vectors, values.mean(axis=2).reshape(-1, D))
        np.testing.assert_allclose(of_videos.mean(), values.mean(axis=(1, 2)))
