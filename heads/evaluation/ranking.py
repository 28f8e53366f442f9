"""Retrieval metrics: how high the right candidates stand in each query's ranking, and how close pairs lie.

Conventions, stated because published numbers differ in them:

* a tie is not won: among candidates of one score the wrong ones stand first, so that a constant score is
  at the bottom and not at chance;
* ``recall@K`` is the share of queries with at least one right candidate among the first K (the hit rate
  of CLIP-style retrieval), a fraction;
* with fewer than K candidates, ``recall@K`` and ``ndcg@K`` are undefined, not 1;
* a query without a right candidate is left out and counted, never a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heads.errors import HeadError
from heads.evaluation.bootstrap import Bootstrap, Estimate, Floats

KS = (1, 5, 10, 50)


def retrieval_metrics(
    scores: ArrayLike,
    relevant: ArrayLike,
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    ks: Sequence[int] = KS,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Return the retrieval metrics of some queries.

    Parameters
    ----------
    scores
        Similarity of every query with every candidate, shape (q, c), finite; higher is better. For the
        other direction pass the transpose of both.
    relevant
        Which candidates are right, one or several per query, shape (q, c), bool.
    groups
        What is resampled together, one per query, shape (q,); None makes each query its own.
    ks
        The cut-offs K.
    n_boot, seed, level
        Resamples, their seed, and the coverage of the intervals.

    Returns
    -------
    dict
        ``queries`` (counted ones), ``left_out`` (those without a right candidate), and estimates of
        ``recall@K``, ``ndcg@K`` (binary gains, ideal of ``min(K, right ones)``), ``mrr``, ``map``
        (both of the whole ranking) and ``median_rank`` (of the first right candidate, from 1).

    Raises
    ------
    HeadError
        If the shapes do not fit, a score is not finite, or no query has a right candidate.
    """
    similarity, right = np.asarray(scores, dtype=np.float64), np.asarray(relevant, dtype=bool)
    if similarity.ndim != 2 or similarity.shape != right.shape:
        raise HeadError(f"retrieval: expected two (queries, candidates) arrays, got {similarity.shape}, {right.shape}")
    if not np.isfinite(similarity).all():
        raise HeadError(f"retrieval: {np.count_nonzero(~np.isfinite(similarity))} scores are not finite")
    kept = np.asarray(right.any(axis=1))
    if not kept.any():
        raise HeadError("retrieval: no query has a right candidate")
    hits = ranked(similarity[kept], right[kept])
    own = None if groups is None else [group for group, keep in zip(groups, kept, strict=True) if keep]
    plan = Bootstrap.of(len(hits), own, n_boot=n_boot, seed=seed, level=level)
    values = _per_query(hits, ks)
    names = list(values)
    columns = np.stack([values[name] for name in names], axis=1)
    replicates = plan.replicate(
        {
            "means": lambda weight: weight @ columns / weight.sum(axis=1, keepdims=True),
            "median_rank": lambda weight: weighted_median(_first_rank(hits), weight),
        }
    )
    few = f"there are {hits.shape[1]} candidates only"
    metrics: dict[str, Any] = {"queries": len(hits), "left_out": int(np.count_nonzero(~kept))}
    estimates: dict[str, Estimate] = {
        name: plan.estimate(replicates["means"][:, column], few) for column, name in enumerate(names)
    }
    return {**metrics, **estimates, "median_rank": plan.estimate(replicates["median_rank"], few)}


def pair_metrics(
    queries: ArrayLike,
    candidates: ArrayLike,
    *,
    groups: Sequence[Any] | NDArray[Any] | None = None,
    n_boot: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Return how close the two sides of pairs lie, and how long their embeddings are.

    Parameters
    ----------
    queries, candidates
        Embeddings of the two sides of each pair, shape (n, d), finite.
    groups
        What is resampled together, one per pair, shape (n,); None makes each pair its own.
    n_boot, seed, level
        Resamples, their seed, and the coverage of the intervals.

    Returns
    -------
    dict
        Estimates of ``alignment``, the mean cosine similarity of the pairs, from -1 to 1, and of
        ``query_norm`` and ``candidate_norm``, the mean Euclidean lengths.

    Raises
    ------
    HeadError
        If the shapes do not fit, there is no pair, or an embedding is not finite or is zero.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (queries, candidates)]
    if sides[0].ndim != 2 or sides[0].shape != sides[1].shape or not sides[0].size:
        raise HeadError(f"pairs: expected two (pairs, columns) arrays, got {sides[0].shape}, {sides[1].shape}")
    norms = [np.linalg.norm(side, axis=1) for side in sides]
    for name, norm in zip(("query", "candidate"), norms, strict=True):
        if wrong := np.count_nonzero(~(np.isfinite(norm) & (norm > 0))):
            raise HeadError(f"pairs: {wrong} of {len(norm)} {name} embeddings are zero or not finite")
    cosine = (sides[0] * sides[1]).sum(axis=1) / (norms[0] * norms[1])
    columns = np.stack([cosine, *norms], axis=1)
    plan = Bootstrap.of(len(cosine), groups, n_boot=n_boot, seed=seed, level=level)
    means = plan.replicate({"means": lambda weight: weight @ columns / weight.sum(axis=1, keepdims=True)})["means"]
    names = ("alignment", "query_norm", "candidate_norm")
    return {name: plan.estimate(means[:, column], "there are no pairs") for column, name in enumerate(names)}


def ranked(scores: Floats, relevant: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return which places of each query's ranking hold a right candidate, shape (q, c); ties are lost."""
    order = np.lexsort((relevant, -scores), axis=-1)
    hits: NDArray[np.bool_] = np.take_along_axis(relevant, order, axis=1)
    return hits


def weighted_median(values: Floats, weights: Floats) -> Floats:
    """Return the median of values (n,) under each row of whole weights (b, n): the mean of the middle two if even."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[:, order], axis=1)
    total = reached[:, -1:]
    # The values at positions floor((total - 1) / 2) and floor(total / 2) of the sample written out.
    low, high = ((reached <= position).sum(axis=1) for position in (np.floor((total - 1) / 2), np.floor(total / 2)))
    middle: Floats = (values[order][low] + values[order][high]) / 2
    return middle


def _first_rank(hits: NDArray[np.bool_]) -> Floats:
    return np.asarray(hits.argmax(axis=1) + 1, dtype=np.float64)


def _per_query(hits: NDArray[np.bool_], ks: Sequence[int]) -> dict[str, Floats]:
    """Return what is averaged over queries, shape (q,) each; NaN where there are fewer candidates than K."""
    queries, candidates = hits.shape
    place = np.arange(1, candidates + 1)
    gain = hits / np.log2(place + 1)
    ideal = np.cumsum(1 / np.log2(place + 1))
    right = hits.sum(axis=1)
    values: dict[str, Floats] = {}
    for k in ks:
        if k > candidates:
            values[f"recall@{k}"] = values[f"ndcg@{k}"] = np.full(queries, np.nan)
            continue
        values[f"recall@{k}"] = np.asarray(hits[:, :k].any(axis=1), dtype=np.float64)
        values[f"ndcg@{k}"] = np.asarray(gain[:, :k].sum(axis=1) / ideal[np.minimum(right, k) - 1])
    values["mrr"] = 1 / _first_rank(hits)
    values["map"] = np.asarray((hits * np.cumsum(hits, axis=1) / place).sum(axis=1) / right)
    return values
