"""`evaluate`: a saved head, judged on labelled samples that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import key_bytes
from data.errors import ConfigError, LeakageError, SplitError
from data.progress import Progress, Silent
from data.sources import read_manifest
from data.task import Task
from featurestore.store import FeatureStore
from heads.bag_views import view_remark
from heads.config import EvaluateConfig
from heads.evaluation.bootstrap import Estimate
from heads.evaluation.conformal import judge_regions
from heads.evaluation.decisions import Answering
from heads.evaluation.per_target import evaluate_task
from heads.evaluation.scoring import scores_of
from heads.evaluation.seal import Openings, open_test, run_digest
from heads.fine_tuned import refuse_seen
from heads.labelled import Labelled, label
from heads.loading import masked_remark
from heads.record import RunRecord
from heads.run import read_trained
from heads.samples import encode_samples
from heads.saved import join_inputs, load_head, view_of


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    run
        The run directory.
    split
        The split that was evaluated; ``all`` if the whole manifest was.
    metrics
        As in a record: metric to value and interval.
    sets
        How often the prediction sets hold the truth, and how large they are; empty for a head without any.
    openings
        How often these rows have been scored (`heads.evaluation.seal.Openings`); empty for rows of train or val.
    warnings
        What the reader must know, such as samples shared with the training rows.
    """

    run: str
    split: str
    metrics: Mapping[str, Any]
    sets: Mapping[str, Estimate] = field(default_factory=dict)
    openings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)


def evaluate(config: EvaluateConfig, *, command: str = "", progress: Progress | None = None) -> Evaluation:
    """Judge a fitted head on the labelled samples of a manifest.

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
        If the run, the manifest, the split or the features are wrong.
    """
    progress = progress or Silent()
    bundle, record = load_head(config.run), RunRecord.read(config.run)
    task = Task.from_dict(bundle.task)
    own = record.config
    column = (config.split_column or own.get("split")) if config.split else None
    if config.split and column is None:
        raise SplitError(
            f"--split {config.split}: {config.run} was fitted without a split column; name one with --split-column"
        )
    manifest = read_manifest(
        config.manifest,
        input=config.input or own.get("input"),
        id=config.id or own.get("id"),
        split=column,
        group=config.group or own.get("group"),
        bag=config.bag or own.get("bag"),
    )
    if config.store is None:
        raise ConfigError("--store is required: a head is judged on stored embeddings; name the feature store")
    store = FeatureStore(config.store)
    inputs = join_inputs(manifest, bundle, store, progress)
    y = encode_samples(task, manifest, inputs.manifest)
    view = view_of(config.view, bundle, where=str(config.run))
    data = label(manifest, inputs, task, y, store, progress, view=view, need_train=False)
    rows = data.rows(config.split) if config.split else data.rows("train")
    if not len(rows):
        raise SplitError(f"{config.manifest}: column {column!r} has no labelled row of split {config.split!r}")
    warnings = _trained_on(config, data, rows) if bundle.head.learns_from_rows else []
    encoders = [block.encoder for block in data.blocks]
    warnings += refuse_seen(data, encoders, {config.split or "all": rows}, allow=config.allow_leakage)
    judged = data.take(rows, "not evaluated")
    warnings += [*masked_remark(judged), *view_remark(bundle.head, judged.instances)]
    openings = None if config.split in ("train", "val") else _opened(store, data, rows, record, command)
    if openings:
        progress.note(openings.explain())
    answering = Answering.of(bundle, task)
    scores = answering.calibrated(scores_of(bundle.head, data.X[rows], task))
    regions = answering.regions(scores)
    y, groups = data.y[rows], data.groups[rows]
    return Evaluation(
        run=str(config.run),
        split=config.split or "all",
        metrics=evaluate_task(
            task,
            y,
            scores,
            groups=groups,
            thresholds=answering.cuts,
            n_boot=config.bootstrap,
            seed=config.seed,
            min_positives=int(own.get("min_positives", 1)),
        ),
        sets={}
        if regions is None
        else judge_regions(task.kind, y, regions, groups, n_boot=config.bootstrap, seed=config.seed),
        openings=openings.to_dict() if openings else {},
        warnings=tuple(warnings),
    )


def _opened(store: FeatureStore, data: Labelled, rows: NDArray[np.int64], record: RunRecord, command: str) -> Openings:
    """Note that the run is about to score these rows; it counts once, whenever it scores them."""
    run = run_digest(record.config, record.manifest_digest, record.inputs)
    keys = data.instances.keys[data.instances.at(rows)]
    return open_test(store, keys, record.config["target"], run, command=command)


def _trained_on(config: EvaluateConfig, data: Labelled, rows: NDArray[np.int64]) -> list[str]:
    """Refuse rows whose content the head was fitted on, or return the refusal as a warning.

    Raises
    ------
    LeakageError
        If there are such rows and that was not allowed.
    """
    trained = read_trained(config.run)
    known = np.array([key_bytes(key) in trained for key in data.instances.keys], dtype=bool)
    shared = [int(i) for i in rows if known[data.instances.at(np.array([i]))].any()]
    if not shared:
        return []
    examples = ", ".join(data.manifest.ids[i] for i in shared[:3])
    message = (
        f"{len(shared)} of the {len(rows)} rows to evaluate are rows that the head of {config.run} was fitted on "
        f"(e.g. {examples}); such scores say nothing about new data: evaluate other rows, or accept that with "
        f"--allow-leakage"
    )
    if not config.allow_leakage:
        raise LeakageError(f"{config.manifest}: {message}")
    return [message]
