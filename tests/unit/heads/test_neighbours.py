"""Nearest training samples: planted ones are found, exactly, and their metadata is averaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

from data.errors import ConfigError
from data.manifest import Manifest
from heads import neighbours
from heads.bags import Bags
from heads.neighbours import (
    Nearest,
    TrainingSamples,
    check_columns,
    nearest,
    neighbour_columns,
    one_each,
    retrieved_columns,
)


def training(**columns: list[str | None]) -> TrainingSamples:
    ids = tuple(f"t{i}" for i in range(len(next(iter(columns.values())))))
    manifest = Manifest(
        path=Path("m.csv"),
        columns={name: tuple(cells) for name, cells in columns.items()},
        ids=ids,
        sources=(None,) * len(ids),
        input="path",
        modality="image",
    )
    return TrainingSamples(samples=manifest, X=np.eye(len(ids), dtype=np.float32), truths={"true": list(ids)})


def test_they_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows, new = (rng.normal(1, 2, size=(n, 12)).astype(np.float32) for n in (70, 23))
    distance, at = NearestNeighbors(n_neighbors=7, metric="cosine").fit(rows).kneighbors(new)
    found = nearest(new, rows, 7)
    assert np.array_equal(found.at, at)
    assert np.allclose(found.similarity, 1 - distance, atol=1e-6)
    monkeypatch.setattr(neighbours, "BLOCK", 5)
    assert np.array_equal(nearest(new, rows, 7).at, at)


def test_encoders_count_alike_whatever_their_length() -> None:
    rng = np.random.default_rng(1)
    rows, new = (rng.normal(size=(n, 9)).astype(np.float32) * ([100] * 6 + [1] * 3) for n in (40, 8))
    mean = (cosine_similarity(new[:, :6], rows[:, :6]) + cosine_similarity(new[:, 6:], rows[:, 6:])) / 2
    found = nearest(new.astype(np.float32), rows.astype(np.float32), 4, blocks=(6, 3))
    assert np.array_equal(found.at, np.argsort(-mean, axis=1)[:, :4])
    assert np.allclose(found.similarity, -np.sort(-mean, axis=1)[:, :4], atol=1e-6)


def test_equal_ones_come_in_the_order_of_the_manifest_and_zero_is_alike_to_nothing() -> None:
    rows = np.array([[1, 0], [2, 0], [0, 0], [3, 0]], dtype=np.float32)
    found = nearest(np.array([[5, 0], [0, 0]], dtype=np.float32), rows, 9)
    assert found.at[0].tolist() == [0, 1, 3, 2]
    assert found.similarity[0].tolist() == [1, 1, 1, 0]
    assert found.similarity[1].tolist() == [0, 0, 0, 0]


def test_bags_are_near_by_the_mean_of_their_instances() -> None:
    bags = Bags(np.array([[1, 0], [0, 1], [4, 4]], dtype=np.float32), np.array([0, 2, 3]))
    assert np.array_equal(one_each(bags), [[0.5, 0.5], [4, 4]])
    assert one_each(bags.values) is bags.values


def test_the_table_names_each_neighbour_once_per_sample() -> None:
    found = Nearest(at=np.array([[2, 0], [1, 2]]), similarity=np.array([[1.0, 0.5], [0.25, -0.125]]))
    table = neighbour_columns(["a", "b"], training(label=["x", "y", "z"]), found)
    assert list(zip(*table.values(), strict=True)) == [
        ("a", "1", "t2", "1.000000", "t2"),
        ("a", "2", "t0", "0.500000", "t0"),
        ("b", "1", "t1", "0.250000", "t1"),
        ("b", "2", "t2", "-0.125000", "t2"),
    ]


def test_metadata_is_the_mean_of_numbers_and_the_commonest_word() -> None:
    samples = training(
        age=["40", "50", None, "63.5", None],
        rhythm=["sinus", "afib", "afib", None, None],
        code=["1", "2", "x", "4", "5"],
    )
    found = Nearest(at=np.array([[0, 1, 3], [1, 2, 0], [2, 4, 4], [4, 0, 1]]), similarity=np.zeros((4, 3)))
    columns = retrieved_columns(samples, ["age", "rhythm", "code"], found)
    assert columns["near[age]"] == [repr(153.5 / 3), "45.0", "", "45.0"]
    # Of words that are equally common, that of the nearest.
    assert columns["near[rhythm]"] == ["sinus", "afib", "afib", "sinus"]
    # A column with one word is one of words.
    assert columns["near[code]"] == ["1", "2", "5", "5"]


def test_an_unknown_column_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--retrieve agee: no such column in m\.csv; did you mean 'age'"):
        check_columns(training(age=["1"]), ["agee"])
