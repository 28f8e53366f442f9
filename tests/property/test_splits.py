"""Whatever the labels and groups are, folds never split a group, and near-duplicates are all found."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.duplicates import NearPairs, near_pairs
from data.errors import SplitError
from data.leakage import audit, connected_groups
from data.split import holdout, make_folds
from data.task import Kind, Targets

few = settings(max_examples=40, deadline=None)


@st.composite
def labelled_groups(draw: st.DrawFn) -> tuple[Kind, Targets, NDArray[np.int64]]:
    n = draw(st.integers(2, 60))
    kind: Kind = draw(st.sampled_from(["binary", "multiclass", "multilabel", "regression"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    groups = rng.integers(0, draw(st.integers(1, n)), n)
    missing = rng.random(n) < draw(st.sampled_from([0.0, 0.3]))
    y: Targets
    if kind == "regression":
        y = np.where(missing, np.nan, np.round(rng.normal(size=n), draw(st.integers(0, 3))))
    elif kind == "multilabel":
        y = np.where(missing[:, None], np.nan, rng.random((n, 4)) < 0.3).astype(np.float32)
    else:
        y = np.where(missing, -1, rng.integers(0, 2 if kind == "binary" else 5, n))
    return kind, y, groups


def is_one_side(side: NDArray[np.generic], groups: NDArray[np.int64]) -> bool:
    return all(len(np.unique(side[groups == group])) == 1 for group in np.unique(groups))


@few
@given(data=labelled_groups(), n_folds=st.integers(2, 6), seed=st.integers(0, 1000))
def test_folds_cover_everything_and_never_split_a_group(
    data: tuple[Kind, Targets, NDArray[np.int64]], n_folds: int, seed: int
) -> None:
    kind, y, groups = data
    known = ~np.isnan(y.reshape(len(y), -1)).all(axis=1) if y.dtype.kind == "f" else y >= 0
    if len(np.unique(groups[known])) < n_folds:
        try:
            make_folds(y, kind, groups, n_folds, seed)
        except SplitError:
            return
        raise AssertionError("fewer labelled groups than folds must be refused")
    folds = make_folds(y, kind, groups, n_folds, seed).assignment
    assert folds.shape == (len(y),)
    assert set(folds[known]) == set(range(n_folds))
    assert is_one_side(folds, groups)


@few
@given(data=labelled_groups(), fraction=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_holdout_never_splits_a_group(
    data: tuple[Kind, Targets, NDArray[np.int64]], fraction: float, seed: int
) -> None:
    kind, y, groups = data
    try:
        mask = holdout(y, kind, groups, fraction, seed)
    except SplitError:
        return
    assert 0 < mask.sum() < len(mask)
    assert is_one_side(mask, groups)


@st.composite
def similar_hashes(draw: st.DrawFn) -> list[bytes | None]:
    """Hashes in clusters round a few centres, some equal, some missing."""
    size = draw(st.sampled_from([1, 4, 32]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    centres = rng.integers(0, 2, (3, size * 8), dtype=np.uint8)
    hashes: list[bytes | None] = []
    for _ in range(draw(st.integers(0, 40))):
        bits = centres[rng.integers(3)].copy()
        bits[rng.integers(0, len(bits), rng.integers(0, 12))] ^= 1
        hashes.append(None if rng.random() < 0.1 else np.packbits(bits).tobytes())
    return hashes


def spread(near: NearPairs) -> set[tuple[int, int]]:
    """All pairs of samples that share a look or have near ones."""
    looks = {tuple(pair) for pair in near.pairs.tolist()}
    return {
        (i, j)
        for i, j in combinations(range(len(near.looks)), 2)
        for a, b in [sorted((near.looks[i], near.looks[j]))]
        if a >= 0 and (a == b or (a, b) in looks)
    }


def distance(a: bytes, b: bytes) -> int:
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


@few
@given(hashes=similar_hashes(), max_distance=st.integers(0, 12))
def test_near_pairs_equal_brute_force(hashes: list[bytes | None], max_distance: int) -> None:
    expected = {
        (i, j)
        for (i, a), (j, b) in combinations(enumerate(hashes), 2)
        if a is not None and b is not None and distance(a, b) <= max_distance
    }
    assert spread(near_pairs(hashes, max_distance)) == expected


@few
@given(hashes=similar_hashes(), seed=st.integers(0, 1000))
def test_folds_of_connected_groups_pass_the_audit(hashes: list[bytes | None], seed: int) -> None:
    n = len(hashes)
    rng = np.random.default_rng(seed)
    names = [None if number == 0 else f"p{number}" for number in rng.integers(0, n // 2 + 1, n)]
    near = near_pairs(hashes)
    groups = connected_groups(n, names, None, near)
    for i, j in spread(near):
        assert groups[i] == groups[j]
    if len(np.unique(groups)) < 3:
        return
    folds = make_folds(rng.integers(0, 2, n), "binary", groups, 3, seed).assignment
    split = np.array(["train", "val", "test"])[folds]
    assert audit(split, names, None, near, [str(i) for i in range(n)]).clean
