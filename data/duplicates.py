"""Find samples that are nearly the same: by perceptual hash, by text, by embedding; recordings: `data.sound_hash`.

Each finder returns `NearPairs`: samples that look exactly alike share one *look*, and pairs join different
looks. Ten thousand copies of one picture are one look, not fifty million pairs, so memory stays bounded.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.digest import Keys, key_bytes
from data.errors import LeakageError, SampleError
from data.filecache import Advance, FileCache, chunks
from data.manifest import Source

HASH_METHOD = "dhash-16x16/1"
"""Name and version of `dhash`; remembered hashes of another one are not used."""
HASH_BYTES = 32
FLAT_STD = 2.0
"""Grey levels: a picture that varies less has no gradients to compare, only noise."""
MAX_DISTANCE = 8
"""Bits of 256 in which near-duplicates may differ."""
MIN_COSINE = 0.9999
MAX_PAIRS = 20_000_000
"""More pairs than this say that the measure cannot tell these samples apart."""
_HASHES_AT_ONCE = 256
_ROWS_AT_ONCE = 1024

Pairs = NDArray[np.int64]
NO_PAIRS: Pairs = np.zeros((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class NearPairs:
    """Which of n samples are nearly the same.

    Attributes
    ----------
    looks
        The look of each sample, shape (n,), int64; samples of one look cannot be told apart; -1 if it has none.
    pairs
        Pairs of different looks that are near each other, shape (p, 2), int64, the smaller one first.
    """

    looks: NDArray[np.int64]
    pairs: Pairs


def dhash(rgb: NDArray[np.uint8]) -> bytes | None:
    """Return the 256-bit difference hash of a picture, or None if it is nearly flat.

    Each bit says whether one of 16 x 16 places is darker than its right neighbour, on the grey picture averaged
    down to 17 x 16 points [1]_: light, contrast, size and compression hardly matter.

    Parameters
    ----------
    rgb
        Picture of shape (height, width, 3), uint8.

    Returns
    -------
    bytes or None
        32 bytes.

    References
    ----------
    .. [1] N. Krawetz, "Kind of Like That", The Hacker Factor Blog, 2013.
    """
    grid = np.asarray(Image.fromarray(rgb).convert("L").resize((17, 16), Image.Resampling.BOX))
    if grid.std() < FLAT_STD:
        return None
    return np.packbits(grid[:, 1:] > grid[:, :-1]).tobytes()


def perceptual_hashes(
    sources: Sequence[Source | None],
    keys: Keys,
    cache: FileCache,
    load: Callable[[Source], NDArray[np.uint8]],
    *,
    workers: int = 8,
    progress: Advance | None = None,
) -> list[bytes | None]:
    """Return the `dhash` of every sample, remembered or computed.

    Parameters
    ----------
    sources
        The n samples; one that is None has no hash.
    keys
        Their content keys, shape (n, 2); a content that occurs twice is decoded once.
    cache
        Remembers the hashes by content key.
    load
        Decodes a sample to (height, width, 3) uint8; called from several threads. A sample it refuses with a
        `SampleError` has no hash, and is not remembered.
    workers
        Number of threads.
    progress
        Called with the number of samples finished since the last call.

    Returns
    -------
    list of bytes or None
        32 bytes per sample, None where there is nothing to compare.
    """

    def compute(source: Source) -> bytes | None:
        return dhash(load(source))

    return remembered(HASH_METHOD, compute, sources, keys, cache, workers=workers, progress=progress)


def remembered(
    method: str,
    compute: Callable[[Source], bytes | None],
    sources: Sequence[Source | None],
    keys: Keys,
    cache: FileCache,
    *,
    workers: int = 8,
    progress: Advance | None = None,
) -> list[bytes | None]:
    """Return something small about the content of every sample, remembered or computed.

    Parameters
    ----------
    method
        The name and version of what is computed.
    compute
        Computes it; called from several threads. What it refuses with a `SampleError` is None, and not remembered.
    sources, keys, cache, workers, progress
        As of `perceptual_hashes`.
    """

    def attempt(source: Source | None) -> bytes | SampleError | None:
        try:
            return None if source is None else compute(source)
        except SampleError as error:
            return error

    names = [key_bytes(row) for row in keys]
    known = cache.hashes(method, set(names))
    source_of = {name: source for name, source in zip(names, sources, strict=True) if name not in known}
    tell = progress or (lambda _: None)
    samples = Counter(names)
    tell(sum(samples[name] for name in known))
    with ThreadPoolExecutor(workers, thread_name_prefix="hash") as pool:
        for some in chunks(list(source_of), _HASHES_AT_ONCE):
            results = zip(some, pool.map(attempt, [source_of[name] for name in some]), strict=True)
            new = {name: value for name, value in results if not isinstance(value, SampleError)}
            cache.add_hashes(method, new)
            known.update(new)
            tell(sum(samples[name] for name in some))
    return [known.get(name) for name in names]


def near_pairs(hashes: Sequence[bytes | None], max_distance: int = MAX_DISTANCE) -> NearPairs:
    """Find all samples whose hashes differ in at most `max_distance` bits.

    Exact: the bits are cut into more bands than may differ, so that two near hashes are equal in one band at
    least; only those are compared. The bits that vary most are dealt to the bands in turn, because a band of
    nothing but background would hold every sample.

    Parameters
    ----------
    hashes
        n hashes of equal length; None for a sample without one.
    max_distance
        Greatest Hamming distance of a pair.

    Raises
    ------
    LeakageError
        If more than `MAX_PAIRS` pairs are near.
    """
    looks, distinct = _looks(hashes)
    if len(distinct) < 2 or max_distance < 1:
        return NearPairs(looks, NO_PAIRS)
    bits = np.unpackbits(np.frombuffer(b"".join(distinct), dtype=np.uint8).reshape(len(distinct), -1), axis=1)
    shares = bits.mean(axis=0)
    bits = bits[:, np.argsort(-shares * (1 - shares), kind="stable")]
    n_words = -(-bits.shape[1] // 64)
    n_bands = max(max_distance + 1, n_words)
    words = [_as_word(bits[:, word::n_words]) for word in range(n_words)]
    found = _PairSet(len(distinct))
    for band in range(n_bands):
        _join_equal(_as_word(bits[:, band::n_bands]), words, max_distance, found)
    return NearPairs(looks, found.pairs())


def near_pairs_by_text(texts: Sequence[str | None]) -> NearPairs:
    """Find texts that are equal but for letter case, punctuation and blanks."""
    looks, _ = _looks([_plain(text).encode() or None if text is not None else None for text in texts])
    return NearPairs(looks, NO_PAIRS)


def near_pairs_by_embedding(X: NDArray[np.floating], min_cosine: float = MIN_COSINE) -> NearPairs:
    """Find all samples whose embeddings have at least this cosine: for content that has no pixels.

    Parameters
    ----------
    X
        Embeddings, shape (n, d); a row of zeros, or one that is not finite, is near nothing.
    min_cosine
        Least cosine of a pair.

    Raises
    ------
    LeakageError
        If more than `MAX_PAIRS` pairs are near.
    """
    values = np.asarray(X, dtype=np.float32)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    usable = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    unit = np.divide(values, norms, out=np.zeros_like(values), where=usable[:, None])
    looks, distinct = _looks([row.tobytes() if ok else None for row, ok in zip(unit, usable, strict=True)])
    rows = np.frombuffer(b"".join(distinct), dtype=np.float32).reshape(len(distinct), values.shape[1])
    found = _PairSet(len(distinct))
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        # Only the pairs above the diagonal: the products of a block with the rows from its own first one on.
        near = rows[start : start + _ROWS_AT_ONCE] @ rows[start:].T >= min_cosine
        first, second = np.nonzero(np.triu(near, k=1))
        found.add(first + start, second + start)
    return NearPairs(looks, found.pairs())


def _looks(contents: Sequence[bytes | None]) -> tuple[NDArray[np.int64], list[bytes]]:
    """Return the number of each content, in the order in which they occur (None is -1), and the different ones."""
    number: dict[bytes, int] = {}
    looks = [-1 if content is None else number.setdefault(content, len(number)) for content in contents]
    return np.array(looks, dtype=np.int64), list(number)


def _plain(text: str) -> str:
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _as_word(bits: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Pack at most 64 bits per row, shape (m, b), into one word each."""
    packed = np.zeros((len(bits), 8), dtype=np.uint8)
    packed[:, : -(-bits.shape[1] // 8)] = np.packbits(bits, axis=1)
    return packed.view(np.uint64)[:, 0]


def _join_equal(
    band: NDArray[np.uint64], words: Sequence[NDArray[np.uint64]], max_distance: int, found: _PairSet
) -> None:
    """Add the near ones among all pairs that are equal in one band.

    Sorted by the band, equal ones are neighbours: compare each with its next, then with its second next, and so
    on, until none has such a neighbour left. Memory is linear in the number of hashes, whatever the buckets.
    """
    order = np.argsort(band, kind="stable")
    band, words = band[order], [word[order] for word in words]
    equal = np.arange(len(band))
    step = 1
    while True:
        equal = equal[equal + step < len(band)]
        equal = equal[band[equal] == band[equal + step]]
        if not equal.size:
            return
        near, distance = equal, np.zeros(len(equal), dtype=np.int64)
        for word in words:
            # Most pairs are too far apart by their first word already.
            distance = distance + np.bitwise_count(word[near] ^ word[near + step])
            close = distance <= max_distance
            near, distance = near[close], distance[close]
        found.add(order[near], order[near + step])
        step += 1


class _PairSet:
    """A growing set of pairs of m things, each pair kept once."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._codes = np.zeros(0, dtype=np.int64)
        self._fresh: list[NDArray[np.int64]] = []
        self._n_fresh = 0

    def add(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> None:
        if not first.size:
            return
        self._fresh.append(np.minimum(first, second) * self._count + np.maximum(first, second))
        self._n_fresh += first.size
        if self._n_fresh > max(MAX_PAIRS // 10, len(self._codes)):
            self._merge()

    def _merge(self) -> None:
        self._codes = np.unique(np.concatenate([self._codes, *self._fresh]))
        self._fresh, self._n_fresh = [], 0
        if len(self._codes) > MAX_PAIRS:
            raise LeakageError(
                f"more than {MAX_PAIRS:,} near-duplicate pairs among {self._count:,} different samples; expected few: "
                "this measure cannot tell the samples apart, so neither which of them belong together"
            )

    def pairs(self) -> Pairs:
        self._merge()
        return np.column_stack(np.divmod(self._codes, max(self._count, 1)))
