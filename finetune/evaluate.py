"""`evaluate` of a fine-tuned run: its encoder and objectives, loaded from disk, judged on other rows."""

from __future__ import annotations

import numpy as np

from data.errors import LeakageError, SplitError
from data.progress import Progress, Silent
from data.task import Task
from featurestore.extract import resolve_device
from featurestore.store import FeatureStore
from finetune.build import Towers, build, needed_by, text_sources
from finetune.config import FinetuneConfig
from finetune.evaluation import measure
from finetune.feed import Feed
from finetune.hand import ENCODER, load_objectives
from finetune.items import Decoder
from finetune.outcome import opened
from finetune.record import FinetuneRecord
from finetune.runner import Runner, make_accelerator
from finetune.samples import Samples, load_samples, read_rows, store_of
from finetune.towers import load_tower
from heads.config import EvaluateConfig
from heads.evaluate import Evaluation
from heads.run import read_trained


def evaluate(config: EvaluateConfig, *, command: str = "", progress: Progress | None = None) -> Evaluation:
    """Judge a fine-tuned run on the samples of a manifest.

    Parameters
    ----------
    config
        Which run on which samples.
    command
        The command line, for the list of who scored these rows.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If the run, the manifest or the split is wrong.
    LeakageError
        If rows were trained on and that was not allowed.
    """
    progress = progress or Silent()
    record = FinetuneRecord.read(config.run)
    own = _own(config, record)
    if config.split and own.split is None:
        raise SplitError(
            f"--split {config.split}: {config.run} was trained without a split column; name one with --split-column"
        )
    store = FeatureStore(store_of(own), create=True)
    task = Task.from_dict(record.task) if record.task else None
    device = resolve_device(own.device)
    towers = _towers(config, own, record, device)
    manifest, decoder = read_rows(own), Decoder(towers.tower, own.workers, progress)
    samples, remarks = load_samples(own, manifest, store, decoder, progress, task=task, need_train=False)
    rows = samples.data.rows(config.split) if config.split else samples.data.rows("train")
    if not len(rows):
        raise SplitError(f"{config.manifest}: column {own.split!r} has no usable row of split {config.split!r}")
    warnings = [*remarks, *_trained_on(config, samples, rows.tolist())]
    built = build(own, samples, towers, device=device)
    load_objectives(config.run, built)
    runner = Runner(
        model=built.model,
        feed=Feed(
            tower=towers.tower,
            items=decoder.items,
            items_of=samples.items_of,
            max_views=own.max_views,
            text_tower=towers.text_tower,
            texts=None if samples.texts is None else text_sources(samples.texts),
            known=built.known,
        ),
        accelerator=make_accelerator(built.model.device, own.amp),
        batch_size=own.batch_size,
        last_step=record.training["last_step"],
        seed=own.seed,
    )
    openings = None if config.split in ("train", "val") else opened(own, samples, rows, store, command)
    if openings:
        progress.note(openings.explain())
    cuts = [each["value"] for each in record.thresholds.values()]
    found = measure(
        runner,
        samples,
        rows,
        thresholds=cuts or 0.5,
        n_boot=config.bootstrap,
        min_positives=own.min_positives,
        seed=config.seed,
        write=True,
    )
    return Evaluation(
        run=str(config.run),
        split=config.split or "all",
        metrics={**found.metrics, "losses": dict(found.losses)},
        openings=openings.to_dict() if openings else {},
        warnings=tuple(warnings),
    )


def _own(config: EvaluateConfig, record: FinetuneRecord) -> FinetuneConfig:
    """Return the configuration of the run, on other samples."""
    values = dict(record.config)
    given = {"input": config.input, "id": config.id, "group": config.group, "bag": config.bag, "store": config.store}
    values |= {name: value for name, value in given.items() if value is not None}
    column = (config.split_column or values.get("split")) if config.split else None
    kept = {"manifest": config.manifest, "split": column, "unfreeze": "none", "text_unfreeze": None, "dim": None}
    values |= {**kept, "warm_start": None, "augment": (), "allow_leakage": True, "cache_depth": False}
    return FinetuneConfig.build(values, where=str(config.run))


def _towers(config: EvaluateConfig, own: FinetuneConfig, record: FinetuneRecord, device: str) -> Towers:
    """Return the towers that the run has handed back, projections included."""
    folder = str(config.run / ENCODER)
    first, *others = record.inputs
    tower = load_tower(folder, modality=first["modality"], device=device, tokens="tokens" in needed_by(own))
    text_tower = load_tower(folder, modality="text", device=device) if others else None
    return Towers(tower=tower, text_tower=text_tower)


def _trained_on(config: EvaluateConfig, samples: Samples, rows: list[int]) -> list[str]:
    """Refuse rows whose content was trained on, or return the refusal as a warning.

    Raises
    ------
    LeakageError
        If there are such rows and that was not allowed.
    """
    trained = read_trained(config.run)
    contents = samples.contents(np.array(rows))
    shared = [i for i, keys in zip(rows, contents, strict=True) if not trained.isdisjoint(keys)]
    if not shared:
        return []
    examples = ", ".join(samples.data.manifest.ids[i] for i in shared[:3])
    message = (
        f"{len(shared)} of the {len(rows)} rows to evaluate are rows that {config.run} was trained on (e.g. "
        f"{examples}); such scores say nothing about new data: evaluate other rows, or accept that with --allow-leakage"
    )
    if not config.allow_leakage:
        raise LeakageError(f"{config.manifest}: {message}")
    return [message]
