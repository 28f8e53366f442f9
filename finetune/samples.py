"""Samples: the rows of a manifest with targets, texts, splits and groups, audited as `fit-head` audits them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import key_bytes
from data.errors import LeakageError, SampleError, TaskError
from data.filecache import FileCache
from data.manifest import Manifest, Source
from data.progress import Progress
from data.sources import read_manifest
from data.split import holdout
from data.task import Task, encode_targets, read_task
from featurestore.store import FeatureStore
from finetune.config import FinetuneConfig
from finetune.errors import FinetuneError
from heads.inputs import Inputs
from heads.labelled import Labelled, label
from heads.loading import gate
from heads.run import read_trained


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a run.

    Attributes
    ----------
    data
        Targets, splits, groups and the audit. Its features are the samples' own numbers, shape (n, 1): there are none.
    task
        What is predicted; None of pairs without a target.
    texts
        The text of each sample; None where no column of texts was named.
    """

    data: Labelled
    task: Task | None
    texts: tuple[str, ...] | None

    @property
    def sources(self) -> list[Source]:
        """The input of each sample."""
        return [source for source in self.data.manifest.sources if source is not None]

    def without(self, failures: Mapping[int, SampleError]) -> Samples:
        """Return those that can be decoded; the others are listed as dropped, by the kind of their damage."""
        data, ids = self.data, self.data.manifest.ids
        for kind in dict.fromkeys(error.kind for error in failures.values()):
            bad = {ids[i] for i, error in failures.items() if error.kind == kind}
            data = data.take(np.flatnonzero([name not in bad for name in data.manifest.ids]), kind)
        texts = self.texts
        if texts is not None:
            texts = tuple(text for i, text in enumerate(texts) if i not in failures)
        return replace(self, data=data, texts=texts)

    def choosing(self, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows to train on, and those that choose the epoch: val, or groups held out of train.

        Raises
        ------
        SplitError
            If there are too few groups to hold some out.
        """
        train, val = self.data.rows("train"), self.data.rows("val")
        if len(val):
            return train, val
        kind = self.task.kind if self.task is not None else "regression"
        inner = holdout(self.data.y[train], kind, self.data.groups[train], fraction, seed)
        return train[~inner], train[inner]


def seen_by_head(config: FinetuneConfig, samples: Samples, choosing: NDArray[np.int64]) -> list[str]:
    """Refuse a head to begin with that was fitted on rows that judge the run; return what a reader should know of it.

    Raises
    ------
    LeakageError
        If it was fitted on val or test rows.
    """
    if config.warm_start is None:
        return []
    fitted = read_trained(config.warm_start)
    data = samples.data
    seen = np.array([key_bytes(key) in fitted for key in data.instances.keys])
    for split in ("val", "test"):
        if seen[rows := data.rows(split)].any():
            raise LeakageError(
                f"--warm-start {config.warm_start}: the head was fitted on {seen[rows].sum()} of the {len(rows)} "
                f"{split} rows, which would look better than they are; fit it with `fit-head --refit train` on "
                f"the same split"
            )
    if not seen[choosing].any():
        return []
    remark = (
        "the rows that chose the epoch are among those that the head of --warm-start was fitted on, so an early epoch "
        "is favoured; name val rows with --split to avoid that"
    )
    return [remark]


def store_of(config: FinetuneConfig) -> Path:
    """Return the feature store of a run: the one that was named, or the directory ``store`` beside the run."""
    return config.store or config.out.absolute().parent / "store"


def load_samples(
    config: FinetuneConfig,
    store: FeatureStore,
    progress: Progress,
    *,
    task: Task | None = None,
    need_train: bool = True,
) -> tuple[Samples, list[str]]:
    """Read a manifest and audit it.

    Parameters
    ----------
    config
        What to read.
    store
        Keeps content keys and perceptual hashes.
    progress
        Told about reading.
    task
        What is predicted, where that is known already; None reads it from the targets.
    need_train
        Whether a training sample must be left.

    Returns
    -------
    Samples
        Those that have an input, what their objectives need, and a split.
    list of str
        What a reader should know of them.

    Raises
    ------
    FrostlineError
        If the manifest or an option is wrong.
    LeakageError
        If splits share groups or contents and that was not allowed.
    """
    manifest = read_manifest(config.manifest, input=config.input, id=config.id, split=config.split, group=config.group)
    task, y = _targets(config, manifest, task)
    inputs = _inputs(manifest, store, progress)
    inputs = _with_texts(inputs, config.text)
    position = {name: i for i, name in enumerate(manifest.ids)}
    rows = [position[name] for name in inputs.manifest.ids]
    stand_in = Task(kind="regression", targets=(config.text or manifest.input,))
    data = label(manifest, inputs, task or stand_in, y[rows], store, progress, need_train=need_train)
    remarks = [*data.manifest.remarks, *gate(data, allow=config.allow_leakage)]
    texts = None
    if config.text is not None:
        texts = tuple(text or "" for text in data.manifest.column(config.text))
    return Samples(data=data, task=task, texts=texts), remarks


def _targets(config: FinetuneConfig, manifest: Manifest, task: Task | None) -> tuple[Task | None, Any]:
    """Return the task and its targets; of pairs without a target none, and a zero for every sample."""
    if not config.target:
        return None, np.zeros(len(manifest))
    if task is not None:
        return task, encode_targets(task, manifest)
    task, _ = read_task(manifest, config.target, kind=config.kind, delimiter=config.delimiter, positive=config.positive)
    if task.kind == "mixed":
        raise TaskError("--target: targets of several kinds cannot be fine-tuned together; name targets of one kind")
    return task, encode_targets(task, manifest)


def _inputs(manifest: Manifest, store: FeatureStore, progress: Progress) -> Inputs:
    """Return the samples that can be read, with their content keys, and their own numbers in the place of features."""
    progress.stage("reading content keys", len(manifest))
    keys, unreadable = FileCache(store.files_cache).keys(
        manifest.sources, workers=os.cpu_count() or 1, progress=progress.advance
    )
    dropped: dict[str, tuple[str, ...]] = {}
    for i, error in unreadable.items():
        reason = f"no {manifest.modality}" if manifest.sources[i] is None else error.kind
        dropped[reason] = (*dropped.get(reason, ()), manifest.ids[i])
    kept = np.setdiff1d(np.arange(len(manifest)), list(unreadable)).astype(np.int64)
    if not len(kept):
        reasons = "; ".join(f"{reason} ({len(ids)})" for reason, ids in dropped.items())
        raise FinetuneError(f"{manifest.path}: none of {len(manifest)} samples can be read: {reasons}")
    return Inputs(
        manifest=manifest.select(kept.tolist()),
        X=kept[:, None].astype(np.float32),
        keys=keys[kept],
        blocks=(),
        dropped=dropped,
    )


def _with_texts(inputs: Inputs, column: str | None) -> Inputs:
    """Return the samples that have a text."""
    if column is None:
        return inputs
    texts = inputs.manifest.column(column)
    empty = [i for i, text in enumerate(texts) if not (text or "").strip()]
    if not empty:
        return inputs
    kept = np.setdiff1d(np.arange(len(texts)), empty)
    if not len(kept):
        raise FinetuneError(f"{inputs.manifest.path}: column {column!r} is empty in every row")
    return replace(
        inputs,
        manifest=inputs.manifest.select(kept.tolist()),
        X=inputs.X[kept],
        keys=inputs.keys[kept],
        dropped={**inputs.dropped, "no text": tuple(inputs.manifest.ids[i] for i in empty)},
    )
