"""Retrieval of texts by inputs and of inputs by texts: metrics with intervals, on pairs that may share either side."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heads.errors import HeadError
from heads.evaluation.ranking import pair_metrics, retrieval_metrics

KS = (1, 5, 10)


def evaluate_retrieval(
    vectors: ArrayLike,
    texts: ArrayLike,
    *,
    text_ids: Sequence[Hashable] | NDArray[Any],
    input_ids: Sequence[Hashable] | NDArray[Any] | None = None,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    ks: Sequence[int] = KS,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, dict[str, Any]]:
    """Return how well the cosine finds the texts of an input, and the inputs of a text.

    A text that several pairs share is one candidate and one query, whose right answers are all their inputs; an
    input that several pairs share likewise. The conventions of `heads.evaluation.ranking` hold: a tie counts as
    lost (the rank is the worst of the tied ones, so a constant similarity is last and never at chance), and with
    fewer than K candidates ``recall@K`` is undefined, with the reason, not 1.

    Parameters
    ----------
    vectors, texts
        Embeddings of the two sides of each pair, shape (n, d), finite and not zero; of any length.
    text_ids
        What is equal where the texts of two pairs are, shape (n,).
    input_ids
        What is equal where the inputs of two pairs are, shape (n,), such as the path of a picture with five
        captions; None where all inputs differ.
    groups
        What is resampled together, such as the patient of each pair, shape (n,); None where pairs are independent.
        A query of pairs from several groups, such as a caption that patients share, is resampled by itself.
    ks
        The cut-offs K.
    n_boot, seed, level
        Resamples, their seed, and the coverage of the intervals.

    Returns
    -------
    dict
        ``input_to_text`` and ``text_to_input``, each with ``candidates`` (their number) and the numbers and
        estimates of `heads.evaluation.ranking.retrieval_metrics`, and ``pairs``, with those of `pair_metrics`.

    Raises
    ------
    HeadError
        If the shapes do not fit, or an embedding is zero or not finite.
    """
    sides = np.asarray(vectors, dtype=np.float64), np.asarray(texts, dtype=np.float64)
    chances: dict[str, Any] = {"n_boot": n_boot, "seed": seed, "level": level}
    pairs = pair_metrics(*sides, groups=groups, **chances)
    n = len(sides[0])
    input_number, text_number = _numbers(input_ids, n, "input_ids"), _numbers(text_ids, n, "text_ids")
    first_input, first_text = _first(input_number), _first(text_number)
    # Equal inputs have one embedding, that of their first pair.
    units = _unit(sides[0][first_input]), _unit(sides[1][first_text])
    scores = units[0] @ units[1].T
    relevant = np.zeros(scores.shape, dtype=bool)
    relevant[input_number, text_number] = True
    by_input = retrieval_metrics(scores, relevant, groups=_groups(groups, input_number), ks=ks, **chances)
    by_text = retrieval_metrics(scores.T, relevant.T, groups=_groups(groups, text_number), ks=ks, **chances)
    return {
        "input_to_text": {"candidates": len(first_text), **by_input},
        "text_to_input": {"candidates": len(first_input), **by_text},
        "pairs": dict(pairs),
    }


def _numbers(ids: Sequence[Hashable] | NDArray[Any] | None, n: int, what: str) -> NDArray[np.int64]:
    """Return a number per distinct id, from 0 in the order of their first pairs, shape (n,)."""
    if ids is None:
        return np.arange(n)
    if len(ids) != n:
        raise HeadError(f"retrieval: expected {what} of {n} pairs, got {len(ids)}")
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(each, len(number)) for each in ids], dtype=np.int64)


def _first(number: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first pair of each number."""
    _, first = np.unique(number, return_index=True)
    return first


def _groups(groups: Sequence[Any] | NDArray[Any] | None, number: NDArray[np.int64]) -> list[Any] | None:
    """Return the group of each query; None, which stands for its own, where its pairs are of several groups."""
    if groups is None:
        return None
    of_query: dict[int, set[Any]] = {}
    for query, group in zip(number.tolist(), groups, strict=True):
        of_query.setdefault(query, set()).add(group)
    return [next(iter(found)) if len(found) == 1 else None for _, found in sorted(of_query.items())]


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
