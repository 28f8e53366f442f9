"""`extract --dry-run`: what would be done and why, how long it would take and how much it would store."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from data.errors import SampleError
from featurestore import levels
from featurestore.columns import Column
from featurestore.cost import growth
from featurestore.describe import differences, size
from featurestore.extract import Job, source_at
from featurestore.pipeline import Pipeline


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What an extraction would do.

    Attributes
    ----------
    encoder, fingerprint
        The encoder's id and the identity of its values.
    samples, cached, missing, failed_before, unreadable, absent, duplicates
        Samples in the manifest, and what would become of them.
    why
        For each reason why samples are missing, one sentence.
    seconds, samples_per_second
        Predicted from a trial of a few batches; None if there is nothing to encode.
    bytes
        What would be added to the store.
    also
        The other feature sets that the same run would fill: encoder, pooling and fingerprint.
    tokens
        Of what is stored token by token, how much that is, one sentence each.
    """

    encoder: str
    fingerprint: str
    samples: int
    cached: int
    missing: int
    failed_before: int
    unreadable: int
    absent: int
    duplicates: int
    why: tuple[str, ...]
    seconds: float | None
    samples_per_second: float | None
    bytes: int
    also: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the forecast as JSON-ready values."""
        return asdict(self)

    def explain(self) -> str:
        """Return the forecast in words."""
        lines = [
            f"{self.encoder}  fingerprint {self.fingerprint[:12]}",
            *self.also,
            f"  samples     {self.samples}",
            f"  cached      {self.cached}",
            f"  missing     {self.missing}",
        ]
        rest = {
            "failed before": self.failed_before,
            "unreadable": self.unreadable,
            "empty cells": self.absent,
            "same content": self.duplicates,
        }
        lines += [f"  {name:<11} {count}" for name, count in rest.items() if count]
        lines += [f"  why: {reason}" for reason in self.why]
        if self.seconds is not None:
            lines.append(f"  predicted   {self.seconds:.0f} s at {self.samples_per_second:.1f} samples/s")
        lines += [f"  {what}" for what in self.tokens]
        lines.append(f"  would store {size(self.bytes)}")
        return "\n".join(lines)


def forecast(job: Job) -> Forecast:
    """Predict a prepared extraction; a few samples are decoded and encoded, nothing is stored."""
    rate = _trial(job) if job.plan.batches else None
    spec, grown = job.encoder.spec, growth(job)
    return Forecast(
        encoder=job.name,
        fingerprint=spec.fingerprint,
        samples=len(job.manifest),
        cached=job.plan.cached,
        missing=job.plan.missing,
        failed_before=job.plan.failed_before,
        unreadable=job.plan.unreadable,
        absent=job.plan.absent,
        duplicates=job.plan.duplicates,
        why=tuple(reason for column in job.columns for reason in _reasons(job, column)),
        seconds=None if rate is None else job.plan.missing / rate,
        samples_per_second=rate,
        bytes=sum(each.bytes for each in grown),
        also=tuple(f"{e.name}  {e.spec.pooling}  fingerprint {e.spec.fingerprint[:12]}" for e in job.columns[1:]),
        tokens=tuple(each.explain() for each in grown if each.column.spec.ragged),
    )


def _trial(job: Job) -> float | None:
    """Return samples per second over a batch per stream, warm; None if no sample of them can be decoded."""
    # From all over the plan, which begins with the longest texts.
    batches = job.plan.batches[:: max(1, len(job.plan.batches) // job.streams)][: job.streams]
    pipeline = Pipeline(job.encoder, job.workers, job.streams)
    try:
        first = job.encoder.read(source_at(job.manifest, batches[0][0]))
        levels.encode(job.encoder, job.encoder.collate([first]))
    except SampleError:
        pass  # the trial itself counts what fails
    started = time.perf_counter()
    encoded = sum(len(batch.positions) for batch in pipeline.run(batches, lambda i: source_at(job.manifest, i)))
    return encoded / (time.perf_counter() - started) if encoded else None


def _reasons(job: Job, column: Column) -> list[str]:
    """Say why samples that this encoder's id has already seen would be encoded again."""
    if not job.plan.missing or job.store is None:
        return []
    spec = column.spec
    relatives = [each for each in job.store.features() if column.name in each.names]
    others = [each for each in relatives if each.fingerprint != spec.fingerprint and len(each)]
    if not others:
        return [] if column.features is not None and len(column.features) else ["nothing is stored of this encoder"]
    wanted: Mapping[str, Any] = spec.to_dict()
    return [
        f"{len(each)} rows are stored under fingerprint {each.fingerprint[:12]}, which differs in "
        f"{'; '.join(differences(each.spec.to_dict(), wanted))}"
        for each in others
    ]
