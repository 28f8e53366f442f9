"""Bags: selection, parts, padding, caps and means against plain loops; clear errors where offsets do not fit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads.bags import Bags, features_for
from heads.base import ClassifierHead
from heads.catalog import head_class, list_heads, takes_bags
from heads.errors import HeadError
from heads.evaluation.scoring import scores_of
from heads.many import Job, fit_many

LENGTHS = [3, 1, 0, 7, 5]
INNER = [0, 2, 3, 4, 8, 11, 13, 16]


def make(inner: bool = False, dtype: type = np.float32) -> Bags:
    values = np.random.default_rng(0).normal(size=(sum(LENGTHS), 4)).astype(dtype)
    return Bags(values, np.concatenate([[0], np.cumsum(LENGTHS)]), np.array(INNER) if inner else None)


def each(bags: Bags) -> list[np.ndarray]:
    return [bags.values[a:b] for a, b in zip(bags.offsets, bags.offsets[1:], strict=False)]


def test_a_bag_is_a_row() -> None:
    bags = make()
    assert len(bags) == 5
    assert bags.shape == (5, 4)
    assert bags.lengths.tolist() == LENGTHS
    assert bags.bag_of.tolist() == np.repeat(range(5), LENGTHS).tolist()


@pytest.mark.parametrize("rows", [[4, 0, 3], np.array([False, True, True, False, True]), slice(1, 4), [2], [0, 0]])
def test_selection_is_that_of_a_list(rows) -> None:
    bags = make()
    chosen = [each(bags)[i] for i in np.arange(5)[rows]]
    got = each(bags[rows])
    assert len(got) == len(chosen)
    assert all(np.array_equal(a, b) for a, b in zip(got, chosen, strict=True))


@given(st.data())
def test_selection_and_dropping_keep_the_parts(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.lists(st.integers(1, 3), max_size=3), min_size=1, max_size=5))
    parts = [n for bag in lengths for n in bag]
    m = sum(parts)
    number = np.repeat(np.arange(len(parts)), parts).astype(float)
    bags = Bags(
        np.column_stack([number, np.arange(m)]),
        np.concatenate([[0], np.cumsum([sum(bag) for bag in lengths])]).astype(int),
        np.concatenate([[0], np.cumsum(parts)]).astype(int),
    )
    rows = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=6))
    keep = np.array(data.draw(st.lists(st.booleans(), min_size=m, max_size=m)), dtype=bool)
    for changed in (bags[np.array(rows, int)], bags.instances(keep)):
        assert changed.inner is not None
        for a, b in zip(changed.inner, changed.inner[1:], strict=False):
            assert len(set(changed.values[a:b, 0])) == 1
        # Two neighbouring parts are of different numbers, or of different bags.
        starts = changed.inner[1:-1]
        same = changed.values[starts - 1, 0] == changed.values[starts, 0] if len(starts) else np.array([])
        assert all(start in changed.offsets for start in starts[np.flatnonzero(same)])
    assert np.array_equal(bags.instances(keep).values[:, 1], np.flatnonzero(keep))


@pytest.mark.parametrize("levels", [1, 2])
def test_padding_there_and_back(levels: int) -> None:
    rng = np.random.default_rng(1)
    shape = (4, 6, 3) if levels == 1 else (4, 2, 3, 3)
    values, mask = rng.normal(size=shape), rng.random(shape[:-1]) < 0.6
    mask[2] = False
    bags = Bags.from_padded(values, mask)
    for i, bag in enumerate(each(bags)):
        assert np.array_equal(bag, values[i][mask[i]])
    assert (bags.inner is None) == (levels == 1)
    if bags.inner is not None:
        assert np.diff(bags.inner).tolist() == [n for n in mask.sum(axis=2).ravel() if n]
    padded, there = bags.to_padded()
    again = Bags.from_padded(padded, there)
    assert np.array_equal(again.values, bags.values)
    assert np.array_equal(again.offsets, bags.offsets)


def test_at_most_takes_the_middles_of_equal_stretches() -> None:
    values = np.arange(100.0)[:, None]
    for length in range(1, 30):
        for count in range(1, 12):
            bags = Bags(values[: 2 * length], np.array([0, length, 2 * length])).at_most(count)
            want = np.arange(length) if length <= count else np.floor((np.arange(count) + 0.5) * length / count)
            assert each(bags)[0][:, 0].tolist() == want.tolist()
            assert each(bags)[1][:, 0].tolist() == (length + want).tolist()


def test_means() -> None:
    bags = make()[[0, 1, 3, 4]]
    want = np.stack([bag.mean(axis=0) for bag in each(bags)])
    np.testing.assert_allclose(bags.mean(), want, rtol=1e-6)
    assert bags.mean().dtype == np.float32
    with pytest.raises(HeadError, match="bag 2 is empty"):
        make().mean()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.zeros(16)}, r"values of shape \(m, d\), got \(16,\)"),
        ({"offsets": np.array([0, 3, 4, 4, 11, 15])}, "from 0 to 15; expected 0 to 16, the number of instances"),
        ({"offsets": np.array([0, 5, 4, 4, 11, 16])}, "offsets decrease after bag 1"),
        ({"offsets": np.array([0.0, 16.0])}, "offsets of shape .* whole numbers, got float64"),
        ({"inner": np.array([0, 4, 4, 16])}, "part 1 of inner is empty"),
        ({"inner": np.array([0, 8, 16])}, "instance 3, where bag 1 begins, is inside a part"),
    ],
)
def test_what_does_not_fit_is_refused(change, message: str) -> None:
    bags = make()
    with pytest.raises(HeadError, match=message):
        Bags(**({"values": bags.values, "offsets": bags.offsets} | change))


def test_masks_and_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(HeadError, match=r"a mask without the last axis, got \(2, 3, 4\) and \(2, 4\)"):
        Bags.from_padded(np.zeros((2, 3, 4)), np.ones((2, 4), bool))
    with pytest.raises(HeadError, match="mask of booleans, True where an instance is there, got int64"):
        Bags.from_padded(np.zeros((2, 3, 4)), np.ones((2, 3), int))
    with pytest.raises(HeadError, match="expected positions, a mask or a slice"):
        make()[3]


def test_a_head_without_bags_says_who_takes_them() -> None:
    bags = make()[[0, 1, 3, 4]]
    with pytest.raises(HeadError, match=r"linear does not take bags; .* X.mean\(\), or use one of: attention_mil") as e:
        head_class("linear", "binary")().fit(bags, [0, 1, 0, 1])
    assert "\n" not in str(e.value)
    assert takes_bags("attention_mil")
    assert not takes_bags("linear")
    assert "attention_mil" in list_heads()


def test_a_head_without_bags_is_fitted_on_means_and_judged_by_them() -> None:
    rng = np.random.default_rng(2)
    y = np.arange(40) % 2
    bags = Bags.from_list([rng.normal(label, 1, size=(1 + i % 5, 6)) for i, label in enumerate(y)])
    made = head_class("linear", "binary")
    assert issubclass(made, ClassifierHead)
    (head,) = fit_many([Job(made(C=1.0), np.arange(40))], bags, y)
    assert not isinstance(head, HeadError)
    plain = made(C=1.0).fit(bags.mean(), y)
    np.testing.assert_array_equal(head.predict_proba(bags.mean()), plain.predict_proba(bags.mean()))
    assert features_for(head, bags).shape == (40, 6)
    assert features_for(head_class("attention_mil", "binary"), bags) is bags

    class BinaryTask:
        kind, classes = "binary", ("a", "b")

    np.testing.assert_array_equal(scores_of(head, bags, BinaryTask), plain.predict_proba(bags.mean())[:, 1])
