"""Retrieval both ways against rankings written out, with shared texts and inputs."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.retrieval import evaluate_retrieval
from heads.errors import HeadError

TEXTS = [0, 1, 2, 1, 3, 4, 0, 5, 6, 6, 7, 8]
INPUTS = [0, 1, 2, 3, 4, 4, 5, 6, 7, 8, 9, 10]
GROUPS = ["a", "a", "b", "c", "d", "d", "a", "e", "f", "f", "g", "h"]


def pairs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings of both sides of the pairs; equal texts and inputs have equal ones."""
    rng = np.random.default_rng(seed)
    texts, noise = rng.normal(size=(9, 6)), rng.normal(size=(11, 6))
    inputs = np.stack([texts[TEXTS[INPUTS.index(i)]] + 0.9 * noise[i] for i in range(11)])
    return inputs[INPUTS] * 3, texts[TEXTS]


def ranks_written_out(queries: np.ndarray, candidates: np.ndarray, right: list[set[int]]) -> list[list[int]]:
    """Return the ranks, from 1, of the right candidates of each query; the worst of tied ones."""
    found = []
    for query, hits in zip(queries, right, strict=True):
        cosine = [float(query @ each / np.linalg.norm(query) / np.linalg.norm(each)) for each in candidates]
        order = sorted(range(len(candidates)), key=lambda c: (-cosine[c], c in hits))
        found.append([place + 1 for place, c in enumerate(order) if c in hits])
    return found


@pytest.mark.parametrize("direction", ["input_to_text", "text_to_input"])
def test_every_metric_equals_rankings_of_distinct_texts_and_inputs(direction: str) -> None:
    vectors, texts = pairs()
    sides = {
        "input": np.stack([vectors[INPUTS.index(i)] for i in range(11)]),
        "text": np.stack([texts[TEXTS.index(t)] for t in range(9)]),
    }
    links = {
        "input": [{t for i, t in zip(INPUTS, TEXTS, strict=True) if i == u} for u in range(11)],
        "text": [{i for i, t in zip(INPUTS, TEXTS, strict=True) if t == u} for u in range(9)],
    }
    query, _, candidate = direction.partition("_to_")
    ranks = ranks_written_out(sides[query], sides[candidate], links[query])
    found = evaluate_retrieval(vectors, texts, text_ids=TEXTS, input_ids=INPUTS, n_boot=0)[direction]
    assert (found["queries"], found["candidates"]) == (len(sides[query]), len(sides[candidate]))
    expected = {
        "mrr": np.mean([1 / each[0] for each in ranks]),
        "map": np.mean([np.mean([(n + 1) / rank for n, rank in enumerate(each)]) for each in ranks]),
        "median_rank": np.median([each[0] for each in ranks]),
    }
    for k in (1, 5):
        expected[f"recall@{k}"] = np.mean([each[0] <= k for each in ranks])
        gain = [sum(1 / np.log2(rank + 1) for rank in each if rank <= k) for each in ranks]
        ideal = [sum(1 / np.log2(n + 2) for n in range(min(k, len(each)))) for each in ranks]
        expected[f"ndcg@{k}"] = np.mean(np.array(gain) / ideal)
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12), name
    assert 0 < found["recall@1"]["value"] < 1


def test_more_than_there_are_is_undefined_with_the_reason() -> None:
    vectors, texts = pairs()
    found = evaluate_retrieval(vectors, texts, text_ids=TEXTS, input_ids=INPUTS, n_boot=0)
    assert found["input_to_text"]["recall@10"] == {
        "value": None, "low": None, "high": None, "reason": "there are 9 candidates only",
    }  # fmt: skip
    assert found["text_to_input"]["recall@10"]["value"] is not None


def test_a_constant_similarity_is_last_and_not_at_chance() -> None:
    found = evaluate_retrieval(np.ones((12, 3)), np.ones((12, 3)), text_ids=range(12), n_boot=0)
    for direction in ("input_to_text", "text_to_input"):
        assert found[direction]["recall@10"]["value"] == 0
        assert found[direction]["median_rank"]["value"] == 12
    assert found["pairs"]["alignment"]["value"] == pytest.approx(1)


def test_equal_texts_are_one_candidate_so_that_finding_any_of_them_is_right() -> None:
    corners = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    captions = ["a", "b", "c", "d"] * 2
    found = evaluate_retrieval(corners, corners, text_ids=captions, ks=(1,), n_boot=50)
    assert found["input_to_text"]["candidates"] == 4
    for direction in ("input_to_text", "text_to_input"):
        assert [found[direction][name]["value"] for name in ("recall@1", "mrr", "map", "median_rank")] == [1, 1, 1, 1]
    # As if all captions differed, each would tie with its copy.
    naive = evaluate_retrieval(corners, corners, text_ids=range(8), ks=(1,), n_boot=0)
    assert naive["input_to_text"]["recall@1"]["value"] == 0


def test_pairs_of_one_group_are_resampled_together_and_shared_texts_alone() -> None:
    vectors, texts = pairs()
    settings = {"text_ids": TEXTS, "input_ids": INPUTS, "ks": (1,), "n_boot": 500}
    alone = evaluate_retrieval(vectors, texts, **settings)
    one = evaluate_retrieval(vectors, texts, groups=["all"] * 12, **settings)
    assert alone["input_to_text"]["mrr"]["low"] < alone["input_to_text"]["mrr"]["high"]
    assert one["input_to_text"]["mrr"]["reason"] == "no interval: there is only one group to resample"
    # Texts 0 and 1 are of group a, but 1 of group c as well; with the two inputs of d, 9 texts are 8 units.
    from finetune.retrieval import _groups, _numbers

    by_text = _groups(GROUPS, _numbers(TEXTS, 12, "text_ids"))
    assert by_text == ["a", None, "b", "d", "d", "e", "f", "g", "h"]
    grouped = evaluate_retrieval(vectors, texts, groups=GROUPS, **settings)
    assert grouped["text_to_input"]["mrr"]["value"] == alone["text_to_input"]["mrr"]["value"]
    assert grouped == evaluate_retrieval(vectors, texts, groups=GROUPS, **settings)


def test_what_does_not_fit_is_refused() -> None:
    vectors, texts = pairs()
    with pytest.raises(HeadError, match="expected text_ids of 12 pairs, got 3"):
        evaluate_retrieval(vectors, texts, text_ids=[1, 2, 3])
    with pytest.raises(HeadError, match="1 of 12 query embeddings are zero or not finite"):
        evaluate_retrieval(vectors * (np.arange(12) > 0)[:, None], texts, text_ids=TEXTS)
