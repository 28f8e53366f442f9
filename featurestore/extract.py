"""`extract`: encode what the store does not hold yet.

::

    manifest -> keys -> what is missing -> batches -> read | encode | write -> summary

A stored sample stops at its key: nothing is decoded and nothing is encoded for it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.digest import Keys, id_key, key_bytes
from data.errors import ConfigError, SampleError
from data.filecache import FileCache
from data.manifest import Manifest, Source
from data.progress import Progress, Silent
from data.sources import read_manifest
from featurestore import catalog, fidelity
from featurestore.config import ExtractConfig
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.errors import FeaturesMissing
from featurestore.features import Features
from featurestore.ledger import Ledger
from featurestore.pipeline import Encoded, Pipeline
from featurestore.plan import Plan, Shard, make_plan
from featurestore.spec import Precision
from featurestore.store import FeatureStore
from featurestore.summary import ExtractSummary
from featurestore.writer import Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """An extraction that is ready to start: everything is resolved, nothing is encoded."""

    config: ExtractConfig
    manifest: Manifest
    name: str
    encoder: Encoder
    store: FeatureStore | None
    features: Features | None
    keys: Keys
    plan: Plan
    unreadable: Mapping[int, SampleError]
    batch_size: int
    workers: int
    streams: int
    device: str


def prepare(config: ExtractConfig, *, create: bool, progress: Progress | None = None) -> Job:
    """Resolve a configuration: read the manifest, load the encoder, find what is missing.

    Parameters
    ----------
    config
        What to extract.
    create
        Whether the store and the encoder's group may be made if they do not exist.
    progress
        Told about reading the files.

    Raises
    ------
    FrostlineError
        If the manifest, the encoder, the store or an option is wrong.
    """
    progress = progress or Silent()
    shard = Shard.parse(config.shard)
    device = resolve_device(config.device)
    workers = (os.cpu_count() or 1) if config.workers == "auto" else _positive(config.workers, "--workers")
    manifest = _manifest(config)
    for remark in manifest.remarks:
        progress.note(remark)
    name = catalog.canonical(config.encoder or catalog.default_encoder(manifest.modality))
    progress.stage(f"loading {name}", 1)
    encoder = catalog.load_encoder(name, _options(config, manifest, device))
    progress.advance()
    store = FeatureStore(config.store, create=create) if create or config.store.exists() else None
    features = None
    with suppress(FeaturesMissing):  # a dry run makes no group
        features = store.open(encoder.spec, name=name, create=create) if store is not None else None
    progress.stage("reading content keys", len(manifest))
    cache = FileCache(store.files_cache if store else None)
    keys, problems = cache.keys(manifest.sources, workers=workers, progress=progress.advance)
    # An empty cell is a sample without this modality, counted as absent: no failure that a retry could mend.
    unreadable = {i: problem for i, problem in problems.items() if manifest.sources[i] is not None}
    batch_size = (
        automatic_batch_size(manifest.modality, device, getattr(encoder, "images_per_sample", 1))
        if config.batch_size == "auto"
        else _positive(config.batch_size, "--batch-size")
    )
    failed = _failed_keys(store, features)
    plan = make_plan(
        manifest,
        keys,
        unreadable,
        features,
        batch_size=batch_size,
        shard=shard,
        failed_before=sum(key_bytes(key) in failed for key in keys) if failed else 0,
    )
    return Job(
        config=config,
        manifest=manifest,
        name=name,
        encoder=encoder,
        store=store,
        features=features,
        keys=keys,
        plan=plan,
        unreadable=unreadable,
        batch_size=batch_size,
        workers=workers,
        streams=encoding_streams(encoder, device),
        device=device,
    )


def extract(
    config: ExtractConfig,
    *,
    progress: Progress | None = None,
    stop: Callable[[], int | None] = lambda: None,
) -> ExtractSummary:
    """Encode what the store does not hold yet.

    Parameters
    ----------
    config
        What to extract.
    progress
        Told how far the work is.
    stop
        Asked after each batch; a signal number ends the run after the rows so far are committed.

    Returns
    -------
    ExtractSummary
        What was done; samples that cannot be decoded are listed, never stored.

    Raises
    ------
    FrostlineError
        If the manifest, the encoder, the store or an option is wrong.
    """
    progress = progress or Silent()
    return run(prepare(config, create=True, progress=progress), progress=progress, stop=stop)


def run(job: Job, *, progress: Progress, stop: Callable[[], int | None] = lambda: None) -> ExtractSummary:
    """Do the work of a prepared job."""
    if job.store is None or job.features is None:
        raise ConfigError(f"{job.config.store}: the store does not exist")
    ledger = job.store.ledger(job.features.group)
    failures = [_record(job, ledger, i, error) for i, error in sorted(job.unreadable.items())]
    pipeline = Pipeline(job.encoder, job.workers, job.streams)
    encoded, interrupted, measured, started = 0, None, None, time.perf_counter()
    if job.plan.batches:
        progress.stage("encoding", job.plan.missing)
        written_by = _written_by(job)
        with job.features.writer(flush_seconds=job.config.flush_seconds, written_by=written_by) as writer:
            for batch in pipeline.run(job.plan.batches, lambda i: source_at(job.manifest, i)):
                failures += [_record(job, ledger, i, error) for i, error in batch.failures]
                if measured is None and batch.positions:
                    measured = _guard(job, batch, pipeline)  # while the next batches are being encoded
                    written_by["fidelity"] = measured.to_dict()  # read when the part is committed
                refused = _store_batch(job, writer, ledger, batch, pipeline)
                failures += refused
                encoded += len(batch.positions) - len(refused)
                progress.advance(len(batch.positions) + len(batch.failures))
                interrupted = stop()
                if interrupted is not None:
                    break
    seconds = time.perf_counter() - started
    features = job.features.refresh()
    times = pipeline.timings
    return ExtractSummary(
        encoder=job.name,
        fingerprint=features.fingerprint,
        group=features.group,
        samples=len(job.manifest),
        cached=job.plan.cached,
        encoded=encoded,
        duplicates=job.plan.duplicates,
        absent=job.plan.absent,
        failures=tuple(failures),
        truncated=getattr(job.encoder, "truncated", 0),
        chunked=getattr(job.encoder, "chunked", 0),
        fallbacks=getattr(job.encoder, "fallbacks", 0),
        splits=pipeline.splits,
        seconds=seconds,
        seconds_by_stage={"waiting": times.waiting, "encoding": times.encoding, "writing": times.writing},
        bottleneck=times.bottleneck if encoded else None,
        batch_size=job.batch_size,
        precision=job.encoder.spec.precision,
        dtype=job.encoder.spec.dtype,
        device=job.device,
        fidelity=measured.to_dict() if measured else None,
        stored=len(features),
        bytes=features.nbytes,
        interrupted=interrupted,
    )


def resolve_device(name: str) -> str:
    """Return the torch device that a name stands for.

    Raises
    ------
    ConfigError
        If it names a device that this machine does not have.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ConfigError(f"--device: expected auto, cpu, cuda or cuda:<i>, found {name!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA device"
        raise ConfigError(f"--device {name}: this machine has {found}; use --device cpu or --device auto")
    return name


def resolve_precision(precision: str, device: str) -> Precision:
    """Return what ``auto`` means: fp16 on a GPU, where it is eight times closer than bf16 and as fast; else fp32."""
    if precision == "auto":
        return "fp16" if device.startswith("cuda") else "fp32"
    return precision  # type: ignore[return-value]


def encoding_streams(encoder: Encoder, device: str) -> int:
    """Return how many batches are encoded at once: on a CPU one per thread that torch would use, else one."""
    import torch

    concurrent = not device.startswith("cuda") and getattr(encoder, "thread_safe", False)
    return torch.get_num_threads() if concurrent else 1


def automatic_batch_size(modality: str, device: str, images_per_sample: int = 1) -> int:
    """Return the batch size that ``auto`` stands for.

    On a CPU small batches keep activations in cache; a GPU takes the largest power of two that a
    tenth of its memory holds at a generous 40 MB per sample, and batches that do not fit are split.
    Where a sample is as much work as several images, there are as many times fewer samples in a batch.
    """
    if not device.startswith("cuda"):
        return max(1, (8 if modality == "image" else 16) // images_per_sample)
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(2 ** np.clip(np.floor(np.log2(free / 10 / 40e6)), 3, 9)) // images_per_sample)


def _manifest(config: ExtractConfig) -> Manifest:
    manifest = read_manifest(
        config.manifest, input=config.input, id=config.id, split=config.split, group=config.group, bag=config.bag
    )
    return manifest if config.limit is None else manifest.select(range(min(config.limit, len(manifest))))


def _options(config: ExtractConfig, manifest: Manifest, device: str) -> EncoderOptions:
    precision = resolve_precision(config.precision, device)
    dtype = config.dtype if config.dtype != "auto" else ("float32" if precision == "fp32" else "float16")
    return EncoderOptions(
        modality=manifest.modality,
        pooling=config.pooling,
        precision=precision,
        dtype=dtype,
        device=device,
        trust_remote_code=config.trust_remote_code,
    )


def _positive(value: int, option: str) -> int:
    if value < 1:
        raise ConfigError(f"{option}: expected auto or a whole number of at least 1, found {value}")
    return value


def _failed_keys(store: FeatureStore | None, features: Features | None) -> frozenset[bytes]:
    if store is None or features is None:
        return frozenset()
    return frozenset(store.ledger(features.group).failed(features))


def source_at(manifest: Manifest, position: int) -> Source:
    """Return the content of a sample that a plan holds."""
    source = manifest.sources[position]
    assert source is not None  # a plan holds samples with content only
    return source


def _written_by(job: Job) -> dict[str, Any]:
    """Return what is recorded with the rows without being part of their identity."""
    made = {"encoder": job.name, "device": job.device, "batch_size": job.batch_size, "versions": library_versions()}
    similarity = getattr(job.encoder, "similarity", None)
    return made if similarity is None else {**made, "similarity": dict(similarity)}


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries that take part in the values."""
    from importlib import metadata

    names = (
        *("torch", "torchvision", "transformers", "open_clip_torch", "timm", "numpy", "scipy"),
        *("pillow", "simplejpeg", "av", "soundfile", "soxr"),
    )
    return {name: metadata.version(name) for name in names}


def _guard(job: Job, first: Encoded, pipeline: Pipeline) -> fidelity.Fidelity:
    """Compare the first batch with the library's own output, and the encoder with the one that wrote the stored rows.

    Nothing is stored before. The first writer leaves its canary vectors.
    """
    assert job.features is not None
    with pipeline.device:
        canary = fidelity.canary_vectors(job.encoder)
        sources = [source_at(job.manifest, i) for i in first.positions]
        measured = fidelity.check_fidelity(job.encoder, sources, first.vectors, name=job.name)
    if not job.features.set_probe(canary):
        fidelity.refuse_drift(job.features.check_probe(canary), name=job.name)
    return measured


def _store_batch(
    job: Job, writer: Writer, ledger: Ledger, batch: Encoded, pipeline: Pipeline
) -> list[Mapping[str, str]]:
    """Store the finite vectors of a batch; return the failures of the others."""
    started = time.perf_counter()
    limit = np.finfo(job.encoder.spec.dtype).max
    finite = np.all(np.abs(batch.vectors) <= limit, axis=1)
    failures = []
    for position in np.asarray(batch.positions, np.int64)[~finite]:
        message = f"{job.manifest.sources[position]}: the embedding is not finite in {job.encoder.spec.dtype}"
        failures.append(_record(job, ledger, int(position), SampleError("not_finite", message)))
    kept = [position for position, ok in zip(batch.positions, finite, strict=True) if ok]
    if kept:
        writer.add(job.keys[kept], batch.vectors[finite], [job.manifest.ids[i] for i in kept])
    pipeline.timings.writing += time.perf_counter() - started
    return failures


def _record(job: Job, ledger: Ledger, position: int, error: SampleError) -> Mapping[str, str]:
    """Write one failure to the ledger and return it."""
    source = job.manifest.sources[position]
    entry = {"id": job.manifest.ids[position], "source": str(source), "kind": error.kind, "message": str(error)}
    # What cannot be read has no content key; its place stands for it.
    key = id_key(str(source)) if position in job.unreadable else key_bytes(job.keys[position])
    ledger.add(key, id=entry["id"], source=entry["source"], kind=error.kind, message=entry["message"])
    return entry
