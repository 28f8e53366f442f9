"""`finetune`: train through an encoder, judge it on rows it has not seen, and hand the encoder back.

::

    RUN/
      config.yaml             resolved; `finetune --config` takes it back
      metrics.jsonl           losses, learning rates and gradient norms, step by step
      history.json            means of each epoch, or of the steps between two looks
      checkpoints/            the last state and the best weights
      encoder/                what `extract --encoder RUN/encoder` takes
      objectives.safetensors  the classifier, temperature or decoder of the best step
      captions/               the tokenizer of a decoder
      predictions.csv         one row per judged sample of a task
      texts.csv               one row per judged sample with a text: the nearest text, what a decoder wrote
      trained.csv             ids and content keys of the rows it was trained on
      record.json             what was done, on what, with which result; written last: without it, a run goes on
      report.html
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace

import torch

from data.digest import digest_json
from data.manifest import Manifest
from data.progress import Progress, Silent
from featurestore.extract import resolve_device
from featurestore.store import FeatureStore
from finetune.batches import steps_of
from finetune.build import build, groups_of
from finetune.checkpoint import Checkpoints, Progressed
from finetune.config import FinetuneConfig
from finetune.evaluation import logged, measure, value_of
from finetune.feed import Feed
from finetune.history import History
from finetune.items import Decoder, make_augment, text_items
from finetune.loading import Towers, load_towers, with_cached_depth
from finetune.loop import Course, Loop
from finetune.options import check_options
from finetune.outcome import Trained, finish
from finetune.processes import first_before_others
from finetune.record import FinetuneRecord
from finetune.runner import Runner, make_accelerator
from finetune.samples import load_samples, read_rows, seen_by_head, store_of
from finetune.teacher import head_digest, taught_by
from finetune.tracking import Tracker, check_trackers, open_trackers, tell
from finetune.views import ViewChoice
from finetune.zero_shot import prompts_of
from heads.errors import RunError
from heads.evaluation.thresholds import parse_rule
from heads.record import FILE
from heads.run import write_config


def finetune(config: FinetuneConfig, *, command: str = "", progress: Progress | None = None) -> FinetuneRecord:
    """Fine-tune an encoder and write its run directory; a run that was stopped goes on.

    Parameters
    ----------
    config
        What to train, on what and how.
    command
        The command line, for the record.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If an option, the manifest, an encoder or the run directory is wrong, or training diverges.
    """
    progress, started = progress or Silent(), time.perf_counter()
    device = resolve_device(config.device)
    accelerator = make_accelerator(torch.device(device), config.amp)
    if device == "cuda":  # of several processes, each has a GPU of its own
        device = str(accelerator.device)
    with first_before_others(accelerator):
        check_options(config)
        check_trackers(config.track)
        parse_rule(config.threshold)
        augment = make_augment(config.augment, config.seed)
        if accelerator.is_main_process:
            _refuse_taken(config)
        manifest = read_rows(config)
        towers = load_towers(config, manifest.modality, device=device)
        run = _identity(config, manifest, towers)
        store = FeatureStore(store_of(config), create=True)
        if config.cache_depth:
            towers = with_cached_depth(config, towers, store, progress)
        fills = accelerator.is_main_process
        decoder = Decoder(towers.tower, config.workers, progress, fills=fills)
        samples, remarks = load_samples(config, manifest, store, decoder, progress)
        samples = replace(samples, prompts=prompts_of(config, samples.task))
        texts = text_items(towers.text_tower, samples, config.workers, progress, fills=fills)
        if config.teacher is not None:
            samples = replace(samples, taught=taught_by(config.teacher, samples, store, progress))
        built = build(config, samples, towers, device=device)
        remarks += built.remarks
        groups = groups_of(config, built)
        train, choosing = samples.choosing(config.validation_fraction, config.seed)
        remarks += seen_by_head(config, samples, choosing)
    sizes = {"batch_size": config.batch_size, "accumulate": config.accumulate, "processes": accelerator.num_processes}
    last_step = config.epochs * len(steps_of(train, **sizes))
    runner = Runner(
        model=built.model,
        feed=Feed(
            tower=towers.tower,
            items=decoder.items,
            items_of=samples.items_of,
            text_tower=towers.text_tower,
            texts=texts,
            known=built.known,
            augment=augment,
            views=ViewChoice(
                limit=config.max_views,
                single=config.single_view,
                dropout=config.view_dropout,
                alone=config.consistency > 0,
                seed=config.seed,
            ),
        ),
        accelerator=accelerator,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        last_step=last_step,
        seed=config.seed,
    )
    loop = Loop(runner, policies=built.policies, groups=groups, course=_course(config))
    checkpoints = Checkpoints(config.out / "checkpoints", loop.changing)
    with first_before_others(accelerator):
        state = (None if config.overwrite else checkpoints.read(run)) or Progressed(run=run)
        if state.step:
            checkpoints.load(state, loop.model, loop.stateful)
    if state.step:
        progress.note(f"going on after step {state.step}, in epoch {state.epoch}")

    def judge() -> tuple[Mapping[str, float], float]:
        found = measure(runner, samples, choosing, min_positives=config.min_positives)
        return logged(found, config.choose, samples.task), value_of(found, config.choose)

    # Nothing can be chosen by what is not there: that is found out before any training.
    before = judge()[0] if not state.step else {}
    with first_before_others(accelerator):
        if accelerator.is_main_process:
            _claim(config)
    history = History(config.out, until=state.step)
    if len(history.columns.get("train/loss", ())) < state.epoch:
        raise RunError(f"{config.out / 'metrics.jsonl'}: damaged or missing; begin anew with --overwrite")
    with ExitStack() as closing:
        trackers: list[Tracker] = [history]
        if accelerator.is_main_process:
            trackers += open_trackers(config.track, config.out, config.to_dict(), until=state.step)
        for tracker in trackers:
            closing.callback(tracker.close)
        if before:
            tell(trackers, 0, {f"before/{name}": value for name, value in before.items()})
        state = loop.run(train, state=state, checkpoints=checkpoints, judge=judge, trackers=trackers, progress=progress)
    checkpoints.load_best(state, loop.model)
    trained = Trained(
        samples=samples,
        built=built,
        groups=groups,
        runner=runner,
        state=state,
        train=train,
        choosing=choosing,
        history=history,
    )
    return finish(config, trained, store, remarks=remarks, command=command, started=started, progress=progress)


def _course(config: FinetuneConfig) -> Course:
    return Course(
        epochs=config.epochs,
        schedule=config.schedule,
        by=config.schedule_by,
        warmup=config.warmup,
        floor=config.lr_floor,
        clip_norm=config.clip_norm,
        judge_every=config.judge_every,
        patience=config.patience,
    )


def _refuse_taken(config: FinetuneConfig) -> None:
    """Refuse a run directory that holds a finished run, or something else.

    Raises
    ------
    RunError
        If it does.
    """
    out = config.out
    finished, begun = (out / FILE).is_file(), (out / "config.yaml").is_file()
    foreign = out.exists() and not finished and not begun and (not out.is_dir() or any(out.iterdir()))
    if foreign:
        raise RunError(f"--out {out}: is not a run directory, so nothing is written there; choose another")
    if finished and not config.overwrite:
        raise RunError(f"--out {out}: exists already; choose another directory, or replace it with --overwrite")


def _claim(config: FinetuneConfig) -> None:
    """Make the run directory, or go on in one that was not finished; nothing is written before all options fit.

    Raises
    ------
    RunError
        If it cannot be written.
    """
    out = config.out
    try:
        if out.exists() and config.overwrite:
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)
        write_config(out, config)
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written: {error.strerror}") from error


def _identity(config: FinetuneConfig, manifest: Manifest, towers: Towers) -> str:
    """Return what decides the weights that a run ends with: a stopped one goes on, and opens test rows, as the same."""
    options = {name: value for name, value in config.to_dict().items() if name not in FinetuneRecord.places}
    prints = [tower.encoder.spec.fingerprint for tower in towers.by_name.values()]
    heads = [head_digest(run) for run in (config.warm_start, config.teacher) if run is not None]
    return digest_json([options, manifest.digest, prints, heads])
