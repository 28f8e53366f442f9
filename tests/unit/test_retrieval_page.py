"""The benchmark of retrieval: planted maps are found, controls are at chance, chance is what simulation says."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def retrieval() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return import_module("retrieval")


@pytest.fixture
def planted(retrieval):
    """300 images whose three captions are a linear map of them, but for noise; and their split."""
    rng = np.random.default_rng(0)
    images = retrieval.unit(rng.normal(size=(300, 20)))
    captions = (images @ rng.normal(size=(20, 12)) + 0.3)[:, None] + 0.1 * rng.normal(size=(300, 3, 12))
    split = np.array(["train"] * 200 + ["val"] * 40 + ["test"] * 60)
    return retrieval.Pairs(images=images, captions=retrieval.unit(captions), groups=np.arange(300)), split


def test_a_planted_map_is_found_and_the_control_is_at_chance(retrieval, planted):
    found, penalty = retrieval.results(*planted)
    assert set(found) == {"ridge map", "random map (control)", "chance"}  # 20 columns are not 12
    assert penalty in retrieval.PENALTIES
    for direction in ("image to text", "text to image"):
        assert found["ridge map"][direction]["recall@1"]["value"] > 0.9
        control, expected = found["random map (control)"][direction]["mrr"], found["chance"][direction]["mrr"]
        assert control["low"] - 0.03 < expected < control["high"] + 0.03
    assert found["ridge map"]["image to text"]["queries"] == 60
    assert found["ridge map"]["text to image"]["queries"] == 180
    page = "\n".join(retrieval.table(found))
    assert page.count("| ridge map |") == page.count("| chance |") == 2


def test_encoders_of_one_space_are_compared_as_they_are(retrieval, planted):
    pairs, split = planted
    same = retrieval.Pairs(images=pairs.captions.mean(axis=1), captions=pairs.captions, groups=pairs.groups)
    found, _ = retrieval.results(same, split)
    assert found["the encoders as they are"]["text to image"]["recall@1"]["value"] > 0.9


def test_the_map_is_learned_without_the_test_rows(retrieval, planted):
    pairs, split = planted
    found, penalty = retrieval.results(pairs, split)
    rng = np.random.default_rng(1)
    captions = np.where((split == "test")[:, None, None], rng.normal(size=pairs.captions.shape), pairs.captions)
    other, same = retrieval.results(retrieval.Pairs(images=pairs.images, captions=captions, groups=pairs.groups), split)
    assert same == penalty
    assert (
        other["ridge map"]["text to image"]["mrr"]["value"] < 0.3 < found["ridge map"]["text to image"]["mrr"]["value"]
    )


@pytest.mark.parametrize(("candidates", "right"), [(100, 1), (500, 5), (7, 3)])
def test_chance_is_what_random_orders_give(retrieval, candidates, right):
    first = 1 + np.random.default_rng(0).random((20_000, candidates)).argpartition(right)[:, :right].min(axis=1)
    expected = retrieval.chance(candidates, right)
    for k in retrieval.KS:
        assert expected[f"recall@{k}"] == pytest.approx((first <= k).mean(), abs=0.012)
    assert expected["mrr"] == pytest.approx((1 / first).mean(), abs=0.012)
    assert expected["median_rank"] == pytest.approx(np.median(first), abs=max(1, 0.03 * candidates / right))


def test_a_constant_score_is_at_the_bottom(retrieval):
    found = retrieval.judged(np.zeros((20, 40)), np.arange(20), n_boot=10)
    assert found["image to text"]["median_rank"]["value"] == 39
    assert found["text to image"]["median_rank"]["value"] == 20
