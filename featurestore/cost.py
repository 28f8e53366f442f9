"""What an extraction will add to the store: known beforehand, since tokens take as much as the samples themselves."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data.digest import KEY_BYTES
from data.errors import SampleError
from data.progress import Progress
from featurestore import levels
from featurestore.describe import size
from featurestore.errors import StoreUnwritable

if TYPE_CHECKING:
    from featurestore.columns import Column
    from featurestore.extract import Job

_TRIED = 4
"""Samples whose tokens are counted; of one encoder all images have as many, and texts are taken from all lengths."""
_OFFSET_BYTES = 8


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What one column will take.

    Attributes
    ----------
    column
        The column.
    missing
        Samples that it lacks.
    rows
        Vectors of a sample, on average.
    """

    column: Column
    missing: int
    rows: float

    @property
    def sample_bytes(self) -> float:
        """Bytes of one sample: its vectors, its key and, where samples differ in length, its place."""
        spec = self.column.spec
        place = _OFFSET_BYTES if spec.ragged else 0
        return self.rows * spec.dim * np.dtype(spec.dtype).itemsize + KEY_BYTES + place

    @property
    def bytes(self) -> int:
        """Bytes of all samples that are missing."""
        return round(self.missing * self.sample_bytes)

    def explain(self) -> str:
        """Return the figures in words."""
        spec = self.column.spec
        return (
            f"{spec.parts} of {self.column.name}: {self.rows:.0f} x {spec.dim} {spec.dtype} a sample, "
            f"{size(self.sample_bytes)}; {size(self.bytes)} for {self.missing:,} samples"
        )


def growth(job: Job) -> tuple[Growth, ...]:
    """Return what each column of a job will take; where tokens are stored, a few samples are encoded to count them."""
    planned = [i for batch in job.plan.batches for i in batch]
    rows = _rows(job, planned) if any(column.spec.ragged for column in job.columns) else [1.0] * len(job.columns)
    return tuple(
        Growth(
            column=column,
            missing=len(planned) if column.features is None else len(column.features.missing(job.keys[planned])),
            rows=each,
        )
        for column, each in zip(job.columns, rows, strict=True)
    )


def announce(job: Job, progress: Progress) -> None:
    """Say what tokens will take on the disk, before any is stored; pooled vectors are too small to speak of.

    Raises
    ------
    StoreUnwritable
        If the store's disk has less space than that.
    """
    if not any(column.spec.ragged for column in job.columns):
        return
    grown, store = growth(job), job.config.store.absolute()
    for each in grown:
        if each.column.spec.ragged and each.missing:
            progress.note(each.explain())
    folder = next(each for each in (store, *store.parents) if each.exists())
    free, needed = shutil.disk_usage(folder).free, sum(each.bytes for each in grown)
    if needed > free:
        raise StoreUnwritable(
            f"{job.config.store}: about {size(needed)} would be stored and the disk has {size(free)} free; "
            f"store fewer samples (--limit), pooled vectors instead of tokens, or choose another --store"
        )


def _rows(job: Job, planned: list[int]) -> list[float]:
    """Return how many vectors a sample has at each level, on average over a few samples from all over the plan."""
    middles = (np.arange(min(_TRIED, len(planned))) + 0.5) / _TRIED * len(planned)
    items = []
    for place in np.unique(middles.astype(np.int64)).tolist():
        source = job.manifest.sources[planned[min(place, len(planned) - 1)]]
        assert source is not None  # a plan holds samples with content only
        try:
            items.append(job.encoder.read(source))
        except SampleError:  # told where it is encoded in earnest
            continue
    if not items:
        return [0.0] * len(job.columns)
    blocks = levels.encode(job.encoder, job.encoder.collate(items))
    return [float(levels.lengths(block).mean()) for block in blocks]
