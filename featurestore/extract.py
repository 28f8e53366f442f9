"""`extract`: encode what the store does not hold yet.

::

    manifest -> keys -> what is missing -> batches -> read | encode | write -> summary

A stored sample stops at its key: nothing is decoded and nothing is encoded for it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from data.digest import Keys, key_bytes
from data.errors import ConfigError, SampleError
from data.filecache import FileCache
from data.manifest import Manifest, Source
from data.progress import Progress, Silent
from data.sources import read_manifest
from featurestore import catalog, fidelity
from featurestore.bandwidth import file_rates, reach
from featurestore.columns import Column, Filling, InAll, fail_all, looked_up
from featurestore.config import ExtractConfig
from featurestore.cost import announce
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.features import Features
from featurestore.pipeline import Encoded, Pipeline
from featurestore.plan import Plan, Shard, make_plan
from featurestore.spec import Precision
from featurestore.store import FeatureStore
from featurestore.summary import ExtractSummary
from featurestore.together import Together, long_texts
from featurestore.versions import library_versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """An extraction that is ready to start: everything is resolved, nothing is encoded.

    Where several encoders were asked for, `columns` are those of the encoders that have work to do, and `complete`
    those of the others.
    """

    config: ExtractConfig
    manifest: Manifest
    encoder: Encoder
    store: FeatureStore | None
    columns: tuple[Column, ...]
    complete: tuple[Column, ...]
    keys: Keys
    plan: Plan
    unreadable: Mapping[int, SampleError]
    rates: Mapping[int, int]
    batch_size: int
    workers: int
    streams: int
    device: str

    @property
    def name(self) -> str:
        """The id of the encoder."""
        return self.columns[0].name

    @property
    def features(self) -> Features | None:
        """What is stored of the first column."""
        return self.columns[0].features


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
    encoders = _loaded(config, _options(config, manifest, device), progress)
    store = FeatureStore(config.store, create=create) if create or config.store.exists() else None
    progress.stage("reading content keys", len(manifest))
    cache = FileCache(store.files_cache if store else None)
    keys, problems = cache.keys(manifest.sources, workers=workers, progress=progress.advance)
    # An empty cell is a sample without this modality, counted as absent: no failure that a retry could mend.
    unreadable = {i: problem for i, problem in problems.items() if manifest.sources[i] is not None}
    images_per_sample = max(getattr(each, "images_per_sample", 1) for each in encoders.values())
    batch_size = (
        automatic_batch_size(manifest.modality, device, images_per_sample)
        if config.batch_size == "auto"
        else _positive(config.batch_size, "--batch-size")
    )
    everything = {name: looked_up(name, encoder, store, create=create) for name, encoder in encoders.items()}
    wanted = [i for i, source in enumerate(manifest.sources) if source is not None and i not in unreadable]
    lacking = [name for name, its in everything.items() if not InAll(its).contains(keys[wanted]).all()]
    active = {name: encoders[name] for name in lacking or everything}
    columns = tuple(column for name in active for column in everything[name])
    failed = _failed_keys(store, columns)
    plan = make_plan(
        manifest,
        keys,
        unreadable,
        InAll(columns),
        batch_size=batch_size,
        shard=shard,
        failed_before=sum(key_bytes(key) in failed for key in keys) if failed else 0,
    )
    return Job(
        config=config,
        manifest=manifest,
        encoder=next(iter(active.values())) if len(active) == 1 else Together(tuple(active.values())),
        store=store,
        columns=columns,
        complete=tuple(column for name, its in everything.items() if name not in active for column in its),
        keys=keys,
        plan=plan,
        unreadable=unreadable,
        rates=file_rates(manifest, keys, cache, workers=workers),
        batch_size=batch_size,
        workers=workers,
        streams=min(encoding_streams(each, device) for each in active.values()),
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
    fillings, tried, read = [_filling(job, column) for column in job.columns], long_texts(job.encoder), 0
    failures = [fail_all(fillings, i, error) for i, error in sorted(job.unreadable.items())]
    pipeline = Pipeline(job.encoder, job.workers, job.streams)
    interrupted, guarded, started = None, False, time.perf_counter()
    if job.plan.batches:
        announce(job, progress)
        tried = long_texts(job.encoder)  # of the few texts whose tokens were counted
        progress.stage("encoding", job.plan.missing)
        started = time.perf_counter()
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    each.features.writer(flush_seconds=job.config.flush_seconds, written_by=each.written_by)
                )
                for each in fillings
            ]
            for batch in pipeline.run(job.plan.batches, lambda i: source_at(job.manifest, i)):
                failures += [fail_all(fillings, i, error) for i, error in batch.failures]
                if batch.positions:
                    if not guarded:
                        _guard(job, fillings, batch, pipeline)  # while the next batches are being encoded
                        guarded = True
                    storing = time.perf_counter()
                    for filling, writer, block in zip(fillings, writers, batch.blocks, strict=True):
                        failures += filling.store(writer, batch.positions, block)
                    pipeline.timings.writing += time.perf_counter() - storing
                read += len(batch.positions)
                progress.advance(len(batch.positions) + len(batch.failures))
                interrupted = stop()
                if interrupted is not None:
                    break
    seconds = time.perf_counter() - started
    complete = [_filling(job, column) for column in job.complete]
    counted = [*(long_texts(job.encoder) - tried).tolist(), *[(0, 0)] * len(complete)]
    first, *also = [
        replace(
            _summary(job, filling, pipeline, failures),
            read=read,
            truncated=truncated,
            chunked=chunked,
            seconds=seconds,
            interrupted=interrupted,
        )
        for filling, (truncated, chunked) in zip([*fillings, *complete], counted, strict=True)
    ]
    return replace(first, also=tuple(also))


def _summary(job: Job, filling: Filling, pipeline: Pipeline, failures: Sequence[Mapping[str, str]]) -> ExtractSummary:
    """Say what was done in one column; how long it took, and what ended it, is said by the caller."""
    features, spec, times = filling.features.refresh(), filling.column.spec, pipeline.timings
    planned = [i for batch in job.plan.batches for i in batch]
    return ExtractSummary(
        encoder=filling.column.name,
        fingerprint=features.fingerprint,
        group=features.group,
        pooling=spec.pooling,
        samples=len(job.manifest),
        cached=job.plan.cached + int((~filling.lacking[planned]).sum()),
        encoded=filling.encoded,
        duplicates=job.plan.duplicates,
        absent=job.plan.absent,
        failures=tuple(failures),
        read=0,
        truncated=0,
        chunked=0,
        bandwidths=reach(job.rates, spec),
        fallbacks=getattr(job.encoder, "fallbacks", 0),
        splits=pipeline.splits,
        seconds=0.0,
        seconds_by_stage={"waiting": times.waiting, "encoding": times.encoding, "writing": times.writing},
        bottleneck=times.bottleneck if filling.encoded else None,
        batch_size=job.batch_size,
        precision=spec.precision,
        dtype=spec.dtype,
        device=job.device,
        fidelity=filling.fidelity.to_dict() if filling.fidelity and filling.encoded else None,
        stored=len(features),
        bytes=features.nbytes,
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
    first, *also = config.pooling or ("auto",)
    return EncoderOptions(
        modality=manifest.modality,
        pooling=first,
        also=tuple(also),
        precision=precision,
        dtype=dtype,
        ragged_dtype=config.dtype if config.dtype != "auto" else "float16",
        device=device,
        trust_remote_code=config.trust_remote_code,
    )


def _positive(value: int, option: str) -> int:
    if value < 1:
        raise ConfigError(f"{option}: expected auto or a whole number of at least 1, found {value}")
    return value


def _loaded(config: ExtractConfig, options: EncoderOptions, progress: Progress) -> dict[str, Encoder]:
    """Return the encoders that were asked for, by their ids."""
    asked = config.encoder or (catalog.default_encoder(options.modality or "image"),)
    encoders = {}
    for name in dict.fromkeys(map(catalog.canonical, asked)):
        progress.stage(f"loading {name}", 1)
        encoders[name] = catalog.load_encoder(name, options)
        progress.advance()
    return encoders


def _failed_keys(store: FeatureStore | None, columns: Sequence[Column]) -> frozenset[bytes]:
    if store is None:
        return frozenset()
    found = [each.features for each in columns if each.features is not None]
    return frozenset(key for features in found for key in store.ledger(features.group).failed(features))


def source_at(manifest: Manifest, position: int) -> Source:
    """Return the content of a sample that a plan holds."""
    source = manifest.sources[position]
    assert source is not None  # a plan holds samples with content only
    return source


def _filling(job: Job, column: Column) -> Filling:
    """Return a column that is ready to be filled."""
    if job.store is None or column.features is None:
        raise ConfigError(f"{job.config.store}: the store does not exist")
    # What is recorded with the rows without being part of their identity.
    made = {"encoder": column.name, "device": job.device, "batch_size": job.batch_size, "versions": library_versions()}
    return Filling(
        column=column,
        features=column.features,
        ledger=job.store.ledger(column.features.group),
        manifest=job.manifest,
        keys=job.keys,
        unreadable=job.unreadable,
        written_by=made if column.similarity is None else {**made, "similarity": dict(column.similarity)},
    )


def _guard(job: Job, fillings: Sequence[Filling], first: Encoded, pipeline: Pipeline) -> None:
    """Compare the first batch with the library's own output, and the encoder with the one that wrote the stored rows.

    Nothing is stored before. The first writer leaves its canary vectors.
    """
    with pipeline.device:
        canaries = fidelity.canary_vectors(job.encoder)
        sources = [source_at(job.manifest, i) for i in first.positions]
        names = [column.name for column in job.columns]
        measured = fidelity.check_fidelity(job.encoder, sources, first.blocks, names=names)
    for filling, canary, found in zip(fillings, canaries, measured, strict=True):
        filling.measured(found)
        if not filling.features.set_probe(canary):
            fidelity.refuse_drift(filling.features.check_probe(canary), name=filling.column.name)
