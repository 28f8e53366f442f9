from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, label_ranking_average_precision_score, ndcg_score

from heads.errors import HeadError
from heads.evaluation.ranking import pair_metrics, retrieval_metrics, weighted_median


def planted(queries: int = 40, candidates: int = 30, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    relevant = rng.random((queries, candidates)) < 0.1
    relevant[np.arange(queries), rng.integers(0, candidates, queries)] = True
    return rng.normal(size=(queries, candidates)) + 1.5 * relevant, relevant


def brute_force(scores: np.ndarray, relevant: np.ndarray, k: int) -> dict[str, float]:
    recall, ndcg, mrr, mean_precision, first = [], [], [], [], []
    for score, right in zip(scores, relevant, strict=True):
        order = sorted(range(len(score)), key=lambda i: (-score[i], right[i]))
        hits = [bool(right[i]) for i in order]
        rank = hits.index(True) + 1
        recall.append(any(hits[:k]))
        ideal = sum(1 / np.log2(i + 2) for i in range(min(k, sum(hits))))
        ndcg.append(sum(hit / np.log2(i + 2) for i, hit in enumerate(hits[:k])) / ideal)
        mrr.append(1 / rank)
        mean_precision.append(np.mean([sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit]))
        first.append(rank)
    return {
        f"recall@{k}": np.mean(recall),
        f"ndcg@{k}": np.mean(ndcg),
        "mrr": np.mean(mrr),
        "map": np.mean(mean_precision),
        "median_rank": np.median(first),
    }


@pytest.mark.parametrize("k", [1, 5, 10])
@pytest.mark.parametrize("rounding", [None, 0], ids=["no ties", "ties"])
def test_every_metric_equals_a_brute_force_ranking(k: int, rounding: int | None) -> None:
    scores, relevant = planted()
    scores = scores if rounding is None else scores.round(rounding)
    metrics = retrieval_metrics(scores, relevant, ks=(k,), n_boot=0)
    for name, expected in brute_force(scores, relevant, k).items():
        assert metrics[name]["value"] == pytest.approx(expected, abs=1e-12), name


def test_map_and_ndcg_equal_scikit_learn_without_ties() -> None:
    scores, relevant = planted(seed=1)
    metrics = retrieval_metrics(scores, relevant, ks=(5,), n_boot=0)
    assert metrics["map"]["value"] == pytest.approx(label_ranking_average_precision_score(relevant, scores))
    each = [average_precision_score(right, score) for right, score in zip(relevant, scores, strict=True)]
    assert metrics["map"]["value"] == pytest.approx(np.mean(each))
    assert metrics["ndcg@5"]["value"] == pytest.approx(ndcg_score(relevant, scores, k=5))


def test_perfect_scores_are_one_and_constant_scores_are_last() -> None:
    relevant = np.eye(12, dtype=bool)
    perfect = retrieval_metrics(relevant.astype(float), relevant, ks=(1, 5), n_boot=50)
    assert {name: perfect[name]["value"] for name in ("recall@1", "ndcg@5", "mrr", "map", "median_rank")} == {
        "recall@1": 1, "ndcg@5": 1, "mrr": 1, "map": 1, "median_rank": 1,
    }  # fmt: skip
    tied = retrieval_metrics(np.zeros((12, 12)), relevant, ks=(1, 5), n_boot=0)
    assert tied["recall@5"]["value"] == 0
    assert tied["mrr"]["value"] == pytest.approx(1 / 12)
    assert tied["median_rank"]["value"] == 12


def test_fewer_candidates_than_k_is_undefined_with_a_reason() -> None:
    relevant = np.eye(4, dtype=bool)
    metrics = retrieval_metrics(relevant.astype(float), relevant, ks=(1, 10), n_boot=10)
    assert metrics["recall@10"]["value"] is None
    assert metrics["recall@10"]["reason"] == "there are 4 candidates only"
    assert metrics["recall@1"]["value"] == 1


def test_a_query_without_a_right_candidate_is_counted_and_left_out() -> None:
    relevant = np.eye(6, dtype=bool)
    relevant[2] = False
    metrics = retrieval_metrics(np.eye(6), relevant, ks=(1,), groups=list("aabbcc"), n_boot=20)
    assert (metrics["queries"], metrics["left_out"]) == (5, 1)
    assert metrics["recall@1"]["value"] == 1


def test_intervals_resample_groups_and_cover_the_value() -> None:
    scores, relevant = planted(120, 40, seed=3)
    rows = retrieval_metrics(scores, relevant, ks=(5,))["recall@5"]
    assert rows["low"] < rows["value"] < rows["high"]
    repeated = retrieval_metrics(
        scores.repeat(4, axis=0), relevant.repeat(4, axis=0), ks=(5,), groups=np.arange(120).repeat(4)
    )["recall@5"]
    # Copies of a query in its group add no information.
    assert repeated == pytest.approx(rows)


def test_weighted_median_equals_numpy_on_the_sample_written_out() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.integers(1, 20, 15).astype(float), rng.integers(0, 4, (30, 15)).astype(float)
    expected = [np.median(np.repeat(values, weight.astype(int))) for weight in weights]
    assert np.array_equal(weighted_median(values, weights), expected)


def test_wrong_shapes_and_numbers_are_refused() -> None:
    with pytest.raises(HeadError, match="expected two"):
        retrieval_metrics(np.zeros((3, 4)), np.zeros((4, 3)))
    with pytest.raises(HeadError, match="not finite"):
        retrieval_metrics(np.full((2, 2), np.nan), np.eye(2))
    with pytest.raises(HeadError, match="no query"):
        retrieval_metrics(np.zeros((2, 2)), np.zeros((2, 2)))


def test_alignment_and_norms_are_those_of_torch_and_numpy() -> None:
    rng = np.random.default_rng(3)
    images, texts = 2 * rng.normal(size=(50, 8)), rng.normal(size=(50, 8))
    metrics = pair_metrics(images, texts, n_boot=200)
    cosine = torch.nn.functional.cosine_similarity(torch.from_numpy(images), torch.from_numpy(texts))
    assert metrics["alignment"]["value"] == pytest.approx(float(cosine.mean()))
    assert metrics["query_norm"]["value"] == pytest.approx(np.sqrt((images**2).sum(axis=1)).mean())
    assert metrics["candidate_norm"]["value"] == pytest.approx(np.sqrt((texts**2).sum(axis=1)).mean())
    for estimate in metrics.values():
        assert estimate["low"] < estimate["value"] < estimate["high"]


def test_alignment_is_one_for_the_same_direction_and_minus_one_for_the_opposite() -> None:
    x = np.random.default_rng(0).normal(size=(5, 3))
    assert pair_metrics(x, 7 * x, n_boot=0)["alignment"]["value"] == pytest.approx(1)
    assert pair_metrics(x, -x, n_boot=0)["alignment"]["value"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("queries", "candidates", "said"),
    [
        (np.ones((3, 2)), np.ones((2, 2)), r"got \(3, 2\), \(2, 2\)"),
        (
            np.ones((3, 2)),
            np.array([[1, 0], [0, 0], [np.nan, 1]]),
            "2 of 3 candidate embeddings are zero or not finite",
        ),
        (np.ones((0, 2)), np.ones((0, 2)), r"got \(0, 2\)"),
    ],
)
def test_pairs_that_have_no_angle_are_refused(queries: np.ndarray, candidates: np.ndarray, said: str) -> None:
    with pytest.raises(HeadError, match=said):
        pair_metrics(queries, candidates)
