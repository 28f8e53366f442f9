"""What an extraction has to do: which samples are stored, which are missing, and in which batches.

The batches are cut from the *whole* manifest, in an order that depends on nothing but the manifest,
and a batch is committed whole. A run that was killed therefore resumes with the very batches it had
left, and its values equal those of an uninterrupted run to the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys
from data.errors import ConfigError, SampleError
from data.manifest import Manifest, Source


class Stored(Protocol):
    """What is stored already."""

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which samples are stored, shape (n,)."""
        ...


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several processes that fill a store together: part `index` of `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``i/n`` with 0 <= i < n.

        Raises
        ------
        ConfigError
            If the text is no such fraction.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdigit() and count.isdigit()) or not int(index) < int(count):
            raise ConfigError(f"--shard: expected i/n with 0 <= i < n, such as 0/4, found {text!r}")
        return cls(int(index), int(count))


@dataclass(frozen=True)
class Plan:
    """The work of one extraction.

    Attributes
    ----------
    batches
        Positions in the manifest, batch by batch; only samples that are not stored.
    cached, missing, failed_before, unreadable, absent, duplicates
        How many samples are stored, to be encoded now, retried after an earlier failure,
        impossible to read, without content (empty cell), and repetitions of another sample's content.
    """

    batches: tuple[tuple[int, ...], ...]
    cached: int
    missing: int
    failed_before: int
    unreadable: int
    absent: int
    duplicates: int


def make_plan(
    manifest: Manifest,
    keys: Keys,
    unreadable: Mapping[int, SampleError],
    features: Stored | None,
    *,
    batch_size: int,
    shard: Shard,
    failed_before: int = 0,
) -> Plan:
    """Cut the samples that are not stored into batches.

    Parameters
    ----------
    manifest
        All samples.
    keys
        Their content keys, shape (n, 2); rows of absent or unreadable samples are not looked at.
    unreadable
        Samples whose content cannot be read, by position.
    features
        What is stored; None if nothing is.
    batch_size
        Samples per batch.
    shard
        Which part of the batches to keep.
    failed_before
        How many of the missing samples failed in an earlier run.
    """
    readable = np.array(
        [i for i, source in enumerate(manifest.sources) if source is not None and i not in unreadable], dtype=np.int64
    )
    unique = readable[_first_of_each(keys[readable])]
    ordered = unique[np.argsort(_costs([manifest.sources[i] for i in unique]), kind="stable")]
    stored = np.zeros(len(ordered), bool) if features is None else features.contains(keys[ordered])
    starts = range(shard.index * batch_size, len(ordered), shard.count * batch_size)
    left = (ordered[s : s + batch_size][~stored[s : s + batch_size]] for s in starts)
    mine = tuple(tuple(batch.tolist()) for batch in left if len(batch))
    return Plan(
        batches=mine,
        cached=int(stored.sum()),
        missing=sum(map(len, mine)),
        failed_before=failed_before,
        unreadable=len(unreadable),
        absent=sum(source is None for source in manifest.sources),
        duplicates=len(readable) - len(unique),
    )


def _first_of_each(keys: Keys) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return the positions of the first occurrence of each key, in order."""
    if not len(keys):
        return np.empty(0, np.int64)
    _, first = np.unique(keys, axis=0, return_index=True)
    return np.sort(first)


def _costs(sources: Sequence[Source | None]) -> list[int]:
    """Order texts by falling length: a batch holds texts of one length, and memory peaks in the first.

    Other content keeps its order.
    """
    return [-len(source.text) if source is not None and source.text is not None else 0 for source in sources]
