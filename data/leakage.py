"""The leakage audit: what two splits share that they must not, and which samples belong together.

A test score is worth nothing for a sample whose patient, whose very bytes or whose near-copy was trained
on. `audit` says so of given splits; `connected_groups` makes folds in which it cannot happen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys
from data.duplicates import (
    NO_PAIRS,
    NearPairs,
    Pairs,
    dhash,
    near_pairs,
    near_pairs_by_embedding,
    near_pairs_by_text,
    perceptual_hashes,
)

__all__ = [
    "Finding",
    "LeakageReport",
    "NearPairs",
    "audit",
    "connected_groups",
    "dhash",
    "near_pairs",
    "near_pairs_by_embedding",
    "near_pairs_by_text",
    "perceptual_hashes",
]

SPLITS = ("train", "val", "test")
"""In the order in which they are used: a later one must not share anything with an earlier one."""
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """One kind of thing that splits share.

    Attributes
    ----------
    count
        How many things are shared: groups, contents, or looks.
    rows
        How many samples of each split have a counterpart in an earlier one: ``{"val": 0, "test": 133}``.
    examples
        A few of them, in words.
    """

    count: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.count > 0


@dataclass(frozen=True, kw_only=True)
class LeakageReport:
    """What the splits share.

    Attributes
    ----------
    groups
        Groups with samples in several splits.
    identical
        Contents, equal to the byte, in several splits.
    near
        Samples with a near-duplicate (or an equal) in an earlier split.
    conflicting
        Contents that carry different labels, in whatever split: no leak, but a sign of wrong labels.
    """

    groups: Finding = Finding()
    identical: Finding = Finding()
    near: Finding = Finding()
    conflicting: Finding = Finding()

    @property
    def clean(self) -> bool:
        """Whether the splits share nothing."""
        return not (self.groups or self.identical or self.near)

    def message(self) -> str:
        """Return one line: what is shared, examples, and what to do."""
        if self.clean:
            return "the splits share no group, no content and no near-duplicate"
        groups = f"{self.groups.count} groups in several splits ({_affected(self.groups)})"
        identical = f"{self.identical.count} byte-identical contents in several splits ({_affected(self.identical)})"
        near = f"{_affected(self.near)} with a near-duplicate in an earlier split"
        found = [
            f"{what}, e.g. {' or '.join(finding.examples[:2])}"
            for what, finding in ((groups, self.groups), (identical, self.identical), (near, self.near))
            if finding
        ]
        return (
            f"the splits leak: {'; '.join(found)}; scores would be too good: use a split that keeps these together, or "
            "none (folds are made so); --allow-leakage goes on and says so in the report"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        kinds = {
            name: {**value, "rows": dict(value["rows"]), "examples": list(value["examples"])}
            for name, value in asdict(self).items()
        }
        return {"clean": self.clean, **kinds}


def connected_groups(
    n: int,
    groups: Sequence[str | None] | None = None,
    keys: Keys | None = None,
    near: NearPairs | None = None,
) -> NDArray[np.int64]:
    """Return the groups that nothing ties to each other: samples of different ones share no group, content or look.

    Parameters
    ----------
    n
        Number of samples.
    groups
        The group of each sample; None or an empty text for a sample that is a group of its own.
    keys
        Content key of each sample, shape (n, 2); zeros for a sample without one.
    near
        Near-duplicates among the samples.

    Returns
    -------
    ndarray of int64, shape (n,)
        Group of each sample, numbered in the order in which they occur.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    # A graph of samples and of what they have in common: groups, contents and looks are nodes as well.
    edges = [NO_PAIRS]
    nodes = n
    looks = _nothing(n) if near is None else (near.looks, near.pairs)
    for codes, pairs in ((_group_codes(groups, n), NO_PAIRS), (_content_codes(keys, n), NO_PAIRS), looks):
        samples = np.flatnonzero(codes >= 0)
        edges += [np.column_stack([samples, nodes + codes[samples]]), nodes + pairs]
        nodes += int(codes.max(initial=-1)) + 1
    first, second = np.concatenate(edges).T
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(nodes, nodes))
    labels = connected_components(graph, directed=False)[1][:n]
    _, occurs, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(occurs))[inverse].astype(np.int64)


def audit(
    split: NDArray[np.str_],
    groups: Sequence[str | None] | None,
    keys: Keys | None,
    near: NearPairs | None,
    ids: Sequence[str],
    *,
    labels: Sequence[str | None] | None = None,
) -> LeakageReport:
    """Find what the splits share.

    Parameters
    ----------
    split
        ``train``, ``val``, ``test`` or an empty text (not used) for each of n samples.
    groups, keys, near
        As for `connected_groups`.
    ids
        Names of the samples, for the examples.
    labels
        Labels as text, to find contents that carry several.
    """
    n = len(split)
    order = np.select([split == name for name in SPLITS], range(len(SPLITS)), default=-1)
    contents = _content_codes(keys, n)
    by_group = _Straddling(order, _group_codes(groups, n))
    by_content = _Straddling(order, contents)
    by_look = _Straddling(order, *(_nothing(n) if near is None else (near.looks, near.pairs)))
    return LeakageReport(
        groups=by_group.finding(by_group.count, lambda at: f"group {(groups or ())[at]!r}: {by_group.composition(at)}"),
        identical=by_content.finding(by_content.count, lambda at: by_content.couple(at, ids)),
        near=by_look.finding(int(by_look.affected.sum()), lambda at: by_look.couple(at, ids)),
        conflicting=_conflicting(contents, labels, ids),
    )


class _Straddling:
    """Things (groups, contents, looks) with samples on both sides of a split.

    Parameters
    ----------
    order
        Place of each sample's split in `SPLITS`, shape (n,); -1 for a sample that is not used.
    codes
        The thing each sample belongs to, shape (n,); -1 for none.
    pairs
        Things that are near each other, shape (p, 2).
    """

    def __init__(self, order: NDArray[np.int64], codes: NDArray[np.int64], pairs: Pairs = NO_PAIRS) -> None:
        self.order, self.codes, self.pairs = order, codes, pairs
        used = np.flatnonzero((codes >= 0) & (order >= 0))
        holds = np.zeros((int(codes.max(initial=-1)) + 1, len(SPLITS)), dtype=bool)
        holds[codes[used], order[used]] = True
        reaches = holds.copy()
        for one, other in (pairs.T, pairs.T[::-1]):
            np.logical_or.at(reaches, one, holds[other])
        self.count = int((holds.sum(axis=1) > 1).sum())
        self.affected = np.zeros(len(codes), dtype=bool)
        # The first True of a row is the earliest split that the thing reaches.
        self.affected[used] = reaches.argmax(axis=1)[codes[used]] < order[used]

    def finding(self, count: int, describe: Callable[[int], str]) -> Finding:
        """Return the finding, with one example per thing."""
        affected = np.flatnonzero(self.affected)
        _, first = np.unique(self.codes[affected], return_index=True)
        rows = {name: int((self.order[affected] == place).sum()) for place, name in enumerate(SPLITS) if place > 0}
        return Finding(count, rows, tuple(describe(at) for at in affected[np.sort(first)][:MAX_EXAMPLES].tolist()))

    def composition(self, at: int) -> str:
        """Say how many samples of each split the sample's thing has."""
        places = self.order[self.codes == self.codes[at]]
        counts = [(int((places == place).sum()), name) for place, name in enumerate(SPLITS)]
        return ", ".join(f"{count} {name}" for count, name in counts if count)

    def couple(self, at: int, ids: Sequence[str]) -> str:
        """Name the sample and the first of its counterparts in an earlier split."""
        code = self.codes[at]
        near = self.pairs[(self.pairs == code).any(axis=1)]
        earlier = np.isin(self.codes, [code, *near.ravel()]) & (self.order >= 0) & (self.order < self.order[at])
        other = int(earlier.argmax())
        return f"{ids[at]!r} ({SPLITS[self.order[at]]}) and {ids[other]!r} ({SPLITS[self.order[other]]})"


def _conflicting(contents: NDArray[np.int64], labels: Sequence[str | None] | None, ids: Sequence[str]) -> Finding:
    """Find the contents that carry several labels."""
    seen: dict[int, tuple[str, int]] = {}
    examples: dict[int, str] = {}
    for at, (content, label) in enumerate(zip(contents.tolist(), labels or (), strict=False)):
        if content < 0 or label is None:
            continue
        first, where = seen.setdefault(content, (label, at))
        if first != label:
            examples.setdefault(content, f"{ids[where]!r} ({first}) and {ids[at]!r} ({label})")
    return Finding(len(examples), {}, tuple(examples.values())[:MAX_EXAMPLES])


def _nothing(n: int) -> tuple[NDArray[np.int64], Pairs]:
    return np.full(n, -1, dtype=np.int64), NO_PAIRS


def _group_codes(groups: Sequence[str | None] | None, n: int) -> NDArray[np.int64]:
    number: dict[str, int] = {}
    names = groups if groups is not None else [None] * n
    return np.array([number.setdefault(name, len(number)) if name else -1 for name in names], dtype=np.int64)


def _content_codes(keys: Keys | None, n: int) -> NDArray[np.int64]:
    if keys is None:
        return _nothing(n)[0]
    codes = np.unique(keys, axis=0, return_inverse=True)[1].reshape(n)
    return np.where(keys.any(axis=1), codes, -1)


def _affected(finding: Finding) -> str:
    return " and ".join(f"{count} {split} rows" for split, count in finding.rows.items() if count)
