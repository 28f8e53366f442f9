"""A fine-tuned run put together again from its directory, on other samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from data.errors import ManifestError, SampleError
from data.manifest import Manifest
from data.progress import Progress
from data.prompts import PromptTexts
from data.task import Task
from featurestore.extract import resolve_device
from featurestore.store import FeatureStore
from finetune.build import Built, build
from finetune.captions import CaptionTokenizer
from finetune.config import FinetuneConfig
from finetune.errors import FinetuneError
from finetune.feed import Feed
from finetune.hand import CAPTIONS, ENCODER, load_objectives
from finetune.items import Decoder, text_items
from finetune.loading import Towers
from finetune.options import needed_by
from finetune.record import FinetuneRecord
from finetune.runner import Runner, make_accelerator
from finetune.samples import Samples, load_samples, read_rows
from finetune.towers import load_tower
from finetune.views import ViewChoice

_AS_HANDED_BACK = {
    "unfreeze": "none",
    "text_unfreeze": None,
    "dim": None,
    "pooling": "auto",
    "text_pooling": "auto",
    "consistency": 0.0,
    "warm_start": None,
    "template": (),
    "prompts": None,
    "sample_weight": None,
    "teacher": None,
    "augment": (),
    "cache_depth": False,
    "allow_leakage": True,
}
"""Options of training; the encoders as they were handed back have what came of them."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """A trained network and samples for it.

    Attributes
    ----------
    config, task
        The configuration of the run on these samples, and what it predicts.
    samples, runner
        The samples, and what computes them.
    remarks
        What a reader should know of the samples.
    failed
        What is wrong with inputs that could not be read, by id.
    """

    config: FinetuneConfig
    task: Task | None
    samples: Samples
    runner: Runner
    remarks: list[str]
    failed: Mapping[str, SampleError]


def config_of(record: FinetuneRecord, changes: Mapping[str, Any], *, where: str) -> FinetuneConfig:
    """Return the configuration of a run with other samples and options."""
    return FinetuneConfig.build({**record.config, **_AS_HANDED_BACK, **changes}, where=where)


def restore(
    record: FinetuneRecord,
    config: FinetuneConfig,
    store: FeatureStore,
    progress: Progress,
    *,
    labelled: bool = True,
) -> Restored:
    """Return a run's network with its samples decoded.

    Parameters
    ----------
    record
        Of the run.
    config
        Its configuration with other samples; ``out`` is where the run is.
    store
        Keeps content keys and hashes.
    progress
        Told how far the work is.
    labelled
        Whether the samples have targets and texts; else they are only predicted.

    Raises
    ------
    FrostlineError
        If the run is damaged, or the samples do not fit it.
    """
    run, manifest = config.out, read_rows(config)
    if labelled:
        _require_truth(config, manifest)
    device = resolve_device(config.device)
    first, *others = record.inputs
    options: Any = {"device": device, "trust_remote_code": config.trust_remote_code}
    tower = load_tower(str(run / ENCODER), modality=first["modality"], tokens="tokens" in needed_by(config), **options)
    needs_texts = bool(others) and "texts" in needed_by(config)
    text_tower = load_tower(str(run / ENCODER), modality="text", **options) if needs_texts else None
    towers = Towers(tower=tower, text_tower=text_tower)
    task = Task.from_dict(record.task) if record.task else None
    decoder = Decoder(tower, config.workers, progress, tells=labelled)
    samples, remarks = load_samples(
        config, manifest, store, decoder, progress, task=task, need_train=False, labelled=labelled
    )
    if not len(samples.data.y):
        dropped = "; ".join(f"{reason}: {len(ids):,}" for reason, ids in samples.data.dropped.items())
        raise FinetuneError(f"{config.manifest}: no sample is left that can be judged or predicted ({dropped})")
    if record.prompts and labelled:
        samples = replace(
            samples, prompts=PromptTexts(**{name: _tuples(each) for name, each in record.prompts.items()})
        )
    captions = CaptionTokenizer.load(run / CAPTIONS) if "captions" in needed_by(config) else None
    built: Built = build(config, samples, towers, device=device, captions=captions)
    load_objectives(run, built)
    feed = Feed(
        tower=tower,
        items=decoder.items,
        items_of=samples.items_of,
        views=ViewChoice(limit=config.max_views),
        text_tower=text_tower,
        texts=text_items(text_tower, samples, config.workers, progress),
        known=built.known,
    )
    runner = Runner(
        model=built.model,
        feed=feed,
        accelerator=make_accelerator(built.model.device, config.amp),
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        last_step=record.training["last_step"],
        seed=config.seed,
    )
    return Restored(
        config=config,
        task=task,
        samples=samples,
        runner=runner,
        remarks=[*remarks, *built.remarks],
        failed=decoder.failed,
    )


def _require_truth(config: FinetuneConfig, manifest: Manifest) -> None:
    """Refuse samples without the columns of what the run learned.

    Raises
    ------
    ManifestError
        If there is no such column.
    """
    for column in (*config.target, *filter(None, [config.text])):
        try:
            manifest.column(column)
        except ManifestError as error:
            raise ManifestError(f"{error} Samples without {column!r} can be predicted: frostline predict") from error


def _tuples(value: Any) -> Any:
    """Return lists of JSON as tuples, at any depth."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
