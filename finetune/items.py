"""Items: samples as a tower reads them, decoded once and kept in memory while they fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from torch import Tensor

from data.errors import SampleError
from data.manifest import Manifest, Source
from data.progress import Progress
from featurestore.augmentation import Augmentation
from featurestore.encoder_ids import WrappedId
from featurestore.errors import UnknownEncoder
from finetune.batches import seed_of
from finetune.errors import FinetuneError
from finetune.samples import Samples
from finetune.stored import StoredTower
from finetune.towers import Tower

SHARE_OF_MEMORY = 0.25
"""The share of the machine's memory that the decoded samples of a tower may fill."""

NOTED = 10
"""Samples that cannot be read are told one by one up to this many."""


class Items:
    """The samples of a manifest as a tower reads them.

    Parameters
    ----------
    tower
        Reads them.
    sources
        The samples, by position.
    workers
        Threads that decode.
    limit
        Bytes that are kept at most; what does not fit is decoded whenever it is asked for.
    """

    def __init__(self, tower: Tower, sources: Sequence[Source], *, workers: int, limit: float | None = None) -> None:
        self._tower, self._sources = tower, sources
        self._limit = _memory() * SHARE_OF_MEMORY if limit is None else limit
        self._kept: dict[int, Any] = {}
        self._bytes = 0
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="read")

    def decode_all(self, progress: Progress) -> dict[int, SampleError]:
        """Decode every sample once, keep what fits, and return what is wrong with the others, by position."""
        progress.stage("decoding", len(self._sources))
        failures = {}
        for position, read in enumerate(self._pool.map(self._try, range(len(self._sources)))):
            if isinstance(read, SampleError):
                failures[position] = read
            else:
                self._keep(position, read)
            progress.advance()
        return failures

    def __getitem__(self, rows: Iterable[int]) -> list[Any]:
        """Return some samples, in the order given."""
        return list(self._pool.map(self._one, map(int, rows)))

    def _one(self, position: int) -> Any:
        return self._kept[position] if position in self._kept else self._tower.read(self._sources[position])

    def _try(self, position: int) -> Any:
        try:
            return self._tower.read(self._sources[position])
        except SampleError as error:
            return error

    def _keep(self, position: int, item: Any) -> None:
        taken = _size(item)
        if self._bytes + taken <= self._limit:
            self._kept[position] = item
            self._bytes += taken


class Decoder:
    """Decodes the rows of a manifest once, and holds what became of them; what a tower keeps is filled before.

    Parameters
    ----------
    tower
        Reads them.
    workers
        Threads that decode; ``auto`` is one per core.
    progress
        Told how far it is, and what is wrong.
    fills
        Whether this process computes what the tower's store lacks; of several, one does, before the others.
    tells
        Whether what is wrong is told on the way; else `failed` alone has it.

    Attributes
    ----------
    failed
        What is wrong with rows that could not be read, by id.
    """

    def __init__(
        self,
        tower: Tower,
        workers: int | Literal["auto"],
        progress: Progress,
        *,
        fills: bool = True,
        tells: bool = True,
    ) -> None:
        self._tower, self._fills, self._tells = tower, fills, tells
        self.failed: dict[str, SampleError] = {}
        self._workers = (os.cpu_count() or 1) if workers == "auto" else workers
        self._progress = progress
        self.items: Items

    def __call__(self, manifest: Manifest) -> dict[int, SampleError]:
        """Decode every row, and return what is wrong with those that cannot be, by position."""
        sources = [source for source in manifest.sources if source is not None]
        assert len(sources) == len(manifest), "rows without an input were left out"
        if isinstance(self._tower, StoredTower):
            if self._fills:
                self._tower.fill(manifest, workers=self._workers, progress=self._progress)
            self._tower.look_up(manifest, workers=self._workers)
        self.items = Items(self._tower, sources, workers=self._workers)
        failures = self.items.decode_all(self._progress)
        self.failed = {manifest.ids[position]: error for position, error in failures.items()}
        if not self._tells:
            return failures
        for position, error in list(failures.items())[:NOTED]:
            self._progress.note(f"{manifest.ids[position]}: {error}")
        if len(failures) > NOTED:
            self._progress.note(f"... and {len(failures) - NOTED} more; the record lists all that was left out")
        return failures


def text_items(
    tower: Tower | None,
    samples: Samples,
    workers: int | Literal["auto"],
    progress: Progress,
    *,
    fills: bool = True,
) -> Items | None:
    """Return the text of each sample as a tower reads it, then the prompts; None where there is no tower or no text.

    Parameters
    ----------
    tower, workers, progress, fills
        As of `Decoder`.
    samples
        The samples.

    Raises
    ------
    FinetuneError
        If one cannot be encoded: a sample without its text is no pair.
    """
    if tower is None or samples.texts is None:
        return None
    rows = samples.data.manifest
    prompts = samples.prompts.texts if samples.prompts is not None else ()
    sources = tuple(Source(modality="text", text=text) for text in (*samples.texts, *prompts))
    ids = (*rows.ids, *prompts)
    texts = Manifest(path=rows.path, columns={}, ids=ids, sources=sources, input="text", modality="text")
    decoder = Decoder(tower, workers, progress, fills=fills)
    for position, error in decoder(texts).items():
        raise FinetuneError(f"{rows.path}: the text of {ids[position]!r} cannot be encoded, {error}; leave it out")
    return decoder.items


def make_augment(names: Sequence[str], seed: int) -> Callable[[Tensor, int], Tensor] | None:
    """Return what `--augment` names, as a function of an image, uint8 (3, h, w), and a number; None for nothing.

    Raises
    ------
    FinetuneError
        If a name is unknown or a number out of its range.
    """
    if not names:
        return None
    try:
        wrapped = WrappedId.parse(f"augmented:{','.join(names)}+ID")
        assert wrapped is not None  # it begins with a wrapper
        augmentation = Augmentation.of(wrapped.options)
    except (UnknownEncoder, ValueError) as error:
        text = str(error).partition("augmented has ")[2] or str(error)
        raise FinetuneError(f"--augment {','.join(names)}: {text}") from error
    return lambda image, number: augmentation.view(image, seed_of(seed, number))


def _size(item: Any) -> int:
    """Return how many bytes a sample takes: pixels, features, activations with their text, or a text."""
    if isinstance(item, tuple):
        return sum(map(_size, item))
    return item.numel() * item.element_size() if isinstance(item, Tensor) else len(str(item))


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
