"""`zero-shot`: classes told apart by their prompts alone, judged on samples that nothing was learned from."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from data.errors import SplitError
from data.progress import Progress, Silent
from data.sources import read_manifest
from data.task import read_task
from featurestore.catalog import ALIASES, modality_of
from featurestore.errors import UnknownEncoder
from featurestore.store import FeatureStore
from heads.bags import features_for
from heads.catalog import make_head
from heads.config import ZeroShotConfig
from heads.errors import HeadError
from heads.evaluation.decisions import Decisions
from heads.evaluation.scoring import scores_of
from heads.evaluation.thresholds import choose_thresholds
from heads.fine_tuned import refuse_seen
from heads.fit import Fitted, Judged, head_remarks, open_test_rows, write_judged
from heads.inputs import find_features, refuse_views
from heads.labelled import Labelled, join_features, label
from heads.prompts import load_prompts, refuse_unaligned
from heads.record import RunRecord
from heads.run import new_run
from heads.samples import encode_samples

HEAD = "zero_shot"


def zero_shot(config: ZeroShotConfig, *, command: str = "", progress: Progress | None = None) -> RunRecord:
    """Predict classes from their prompts, judge that and write the run directory.

    Without a split column every labelled row is a test row: none was learned from. With one, its test and val
    rows are judged, and train rows are left alone, so that the numbers stand beside those of fitted heads.

    Parameters
    ----------
    config
        What to predict, from what, by which prompts.
    command
        The command line, for the record.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If the manifest, the features, the prompts or the run directory are wrong.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    with new_run(config.out, overwrite=config.overwrite) as folder:
        data = load(config, progress)
        openings = open_test_rows(config, data, command)
        fitted = predict(config, data)
        # 0.5 is where a class and its absence, or its rival, are equally near: nothing is chosen on the judged rows.
        first = fitted.judged[0]
        thresholds = choose_thresholds(data.task, data.y[first.rows], first.scores, rule="0.5")
        return write_judged(
            config,
            data,
            fitted,
            Decisions(thresholds=thresholds),
            folder,
            normalize="none",
            remarks=[*data.manifest.remarks, *fitted.remarks],
            openings=openings,
            command=command,
            started=started,
            progress=progress,
        )


def load(config: ZeroShotConfig, progress: Progress) -> Labelled:
    """Read the manifest, its targets, its stored features and the prompts of its classes."""
    if len(config.encoder) > 1:
        raise HeadError(
            f"--encoder: prompts are compared with features of one encoder, {len(config.encoder)} are named"
        )
    manifest = read_manifest(
        config.manifest, input=config.input, id=config.id, split=config.split, group=config.group, bag=config.bag
    )
    task, _ = read_task(manifest, config.target, kind=config.kind, delimiter=config.delimiter, positive=config.positive)
    make_head(HEAD, task.kind, config.set, config.seed)
    store = FeatureStore(config.store)
    refuse_views(config.encoder)
    own = _own_text_tower(config.encoder[0])
    # An encoder that the store knows nothing of is refused before it would be loaded for the prompts.
    find_features(store, config.encoder, pooling=config.pooling, precision=config.precision, modality=manifest.modality)
    options = config.model_copy(update={"prompt_encoder": config.prompt_encoder or own})
    prompts = load_prompts(options, task, store, progress, seed=config.seed)
    assert prompts is not None  # there is an encoder
    inputs = join_features(
        manifest,
        store,
        config.encoder,
        pooling=config.pooling,
        precision=config.precision,
        normalize="none",
        progress=progress,
    )
    refuse_unaligned(HEAD, inputs.blocks, prompts)
    y = encode_samples(task, manifest, inputs.manifest)
    data = label(manifest, inputs, task, y, store, progress, need_train=False)
    if config.split is None:
        data = replace(data, split=np.full(len(data.y), "test"))
    return data.with_prompts(prompts)


def predict(config: ZeroShotConfig, data: Labelled) -> Fitted:
    """Predict the test and val rows.

    Raises
    ------
    SplitError
        If there are none.
    """
    parts = [(split, data.rows(split)) for split in ("test", "val") if len(data.rows(split))]
    if not parts:
        raise SplitError(
            f"{data.manifest.path}, split column {config.split!r}: no labelled row of test or val to judge; "
            f"leave --split out to judge all rows"
        )
    encoders = [block.encoder for block in data.blocks]
    remarks = refuse_seen(data, encoders, dict(parts), allow=config.allow_leakage)
    head = make_head(HEAD, data.task.kind, config.set, config.seed)
    rows = parts[0][1]
    with head_remarks(remarks, data.task):
        head.fit(features_for(head, data.X[rows]), data.y[rows], context=data.context)
    started = time.perf_counter()
    judged = tuple(Judged(split, rows, scores_of(head, data.X[rows], data.task)) for split, rows in parts)
    seconds = time.perf_counter() - started
    return Fitted(head=head, rows=np.empty(0, np.int64), judged=judged, seconds=seconds, remarks=tuple(remarks))


def _own_text_tower(encoder: str) -> str:
    """Return an encoder as the encoder of its own prompts, refused where it is known to encode images only.

    Raises
    ------
    HeadError
        If it has no text tower.
    """
    try:
        images_only = modality_of(encoder.partition("@")[0]) == "image"
    except UnknownEncoder:
        images_only = False
    if images_only:
        aligned = ", ".join(row.alias for row in ALIASES if row.modality is None)
        raise HeadError(
            f"--encoder {encoder}: encodes images only, and zero-shot compares them with prompts in one space; "
            f"extract with a checkpoint that has a text tower, too: {aligned}, any CLIP or SigLIP"
        )
    return encoder
