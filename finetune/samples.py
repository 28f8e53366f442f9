"""Samples: the rows of a manifest, or studies of several, with targets, texts, splits and groups.

They are audited as `fit-head` audits them. In the place of features, which there are none of, stands where each
row is among the decoded items.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.digest import key_bytes
from data.errors import LeakageError, ManifestError, SampleError, TaskError
from data.filecache import FileCache
from data.labels import as_number
from data.manifest import Manifest
from data.progress import Progress
from data.prompts import PromptTexts
from data.sources import read_manifest
from data.split import holdout
from data.task import Task, read_task
from featurestore.catalog import canonical
from featurestore.store import FeatureStore
from finetune.config import FinetuneConfig
from finetune.errors import FinetuneError
from heads.bags import Bags
from heads.fine_tuned import refuse_seen
from heads.inputs import Inputs
from heads.labelled import Labelled, label, with_lost_bags
from heads.loading import gate
from heads.run import read_trained
from heads.samples import agreed, encode_samples, positions

Decode = Callable[[Manifest], Mapping[int, SampleError]]
"""Decodes the inputs of a manifest, and returns what is wrong with those that cannot be, by position."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a run.

    Attributes
    ----------
    data
        Targets, splits, groups and the audit; ``X`` holds positions among the decoded items.
    task
        What is predicted; None of pairs without a target.
    texts
        The text of each sample; None where no column of texts was named.
    prompts
        What stands for the classes of the task where pairs are judged by that; else None.
    taught
        What a teacher says of the training samples, see `finetune.teacher.taught_by`; None without one.
    """

    data: Labelled
    task: Task | None
    texts: tuple[str, ...] | None
    prompts: PromptTexts | None = None
    taught: NDArray[np.float32] | None = None

    @property
    def are_studies(self) -> bool:
        """Whether a sample may have several inputs."""
        return isinstance(self.data.X, Bags)

    def items_of(self, row: int) -> NDArray[np.int64]:
        """Return the positions of a sample's inputs among the decoded items, in the order of the manifest."""
        X = self.data.X
        found = X.values[X.offsets[row] : X.offsets[row + 1], 0] if isinstance(X, Bags) else X[row]
        return found.astype(np.int64)

    def contents(self, rows: NDArray[np.int64]) -> list[tuple[bytes, ...]]:
        """Return what is equal where the inputs of two samples are."""
        instances = self.data.instances
        return [tuple(map(key_bytes, instances.keys[instances.at(np.array([row]))])) for row in rows]

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
    """Refuse a head to begin with, or to learn from, that was fitted on rows that judge the run.

    Returns
    -------
    list of str
        What a reader should know of it.

    Raises
    ------
    LeakageError
        If it was fitted on val or test rows.
    """
    heads = {"--warm-start": config.warm_start, "--teacher": config.teacher}
    return [
        remark
        for option, run in heads.items()
        if run is not None
        for remark in _seen_by(option, run, samples, choosing)
    ]


def _seen_by(option: str, run: Path, samples: Samples, choosing: NDArray[np.int64]) -> list[str]:
    fitted = read_trained(run)
    data = samples.data
    seen = np.array([not fitted.isdisjoint(keys) for keys in samples.contents(np.arange(len(data.y)))])
    for split in ("val", "test"):
        if seen[rows := data.rows(split)].any():
            raise LeakageError(
                f"{option} {run}: the head was fitted on {seen[rows].sum()} of the {len(rows)} "
                f"{split} rows, which would look better than they are; fit it with `fit-head --refit train` on "
                f"the same split"
            )
    if not seen[choosing].any():
        return []
    remark = (
        f"the rows that chose the epoch are among those that the head of {option} was fitted on, so an early epoch "
        f"is favoured; name val rows with --split to avoid that"
    )
    return [remark]


def weights_of(config: FinetuneConfig, samples: Samples) -> NDArray[np.float32] | None:
    """Return how much each sample counts in a loss; None without a column of weights.

    Only the cells of samples that are trained on are read, and divided by their mean. All others count the same, 1:
    neither what judges a run nor what chooses its epoch is weighted.

    Raises
    ------
    ManifestError
        If a cell is empty or no number of 0 or more, rows of a study differ, or all weights are 0.
    """
    column = config.sample_weight
    if column is None:
        return None
    train, _ = samples.choosing(config.validation_fraction, config.seed)
    instances = samples.data.instances.of(train)
    manifest = instances.manifest
    cells = [(cell or "").strip() for cell in manifest.column(column)]
    # An empty cell of a study's row is that of another row.
    numbers = [as_number(cell) if cell or manifest.role("bag") is None else np.nan for cell in cells]
    for i, number in enumerate(numbers):
        if number is None or number < 0:
            raise ManifestError(
                f"{manifest.where(i)}, column {column!r}: expected a weight, a number of 0 or more, found "
                f"{cells[i] or 'nothing'!r}"
            )
    values = np.array(numbers, dtype=np.float64)
    if manifest.role("bag") is not None:
        values = agreed(manifest, column, values, known=~np.isnan(values))
    values = values[instances.first]
    if np.isnan(values).any():
        first = samples.data.manifest.ids[train[np.isnan(values).argmax()]]
        raise ManifestError(f"{manifest.path}: no row of study {first!r} has a weight in column {column!r}")
    if not values.any():
        raise ManifestError(f"{manifest.path}: column {column!r} is 0 in all rows to train on; nothing is learned")
    weights = np.ones(len(samples.data.y), np.float32)
    weights[train] = values / values.mean()
    return weights


def store_of(config: FinetuneConfig) -> Path:
    """Return the feature store of a run: the one that was named, or the directory ``store`` beside the run."""
    return config.store or config.out.absolute().parent / "store"


def read_rows(config: FinetuneConfig) -> Manifest:
    """Return the manifest of a run."""
    return read_manifest(
        config.manifest, input=config.input, id=config.id, split=config.split, group=config.group, bag=config.bag
    )


def load_samples(
    config: FinetuneConfig,
    manifest: Manifest,
    store: FeatureStore,
    decode: Decode,
    progress: Progress,
    *,
    task: Task | None = None,
    need_train: bool = True,
    labelled: bool = True,
) -> tuple[Samples, list[str]]:
    """Decode the rows of a manifest and audit them.

    Parameters
    ----------
    config, manifest
        What to read, and its rows.
    store
        Keeps content keys and perceptual hashes.
    decode
        Called with the rows whose inputs can be read.
    progress
        Told about reading.
    task
        What is predicted, where that is known already; None reads it from the targets.
    need_train
        Whether a training sample must be left.
    labelled
        Whether the samples have targets; else all of them are kept, with targets that mean nothing.

    Returns
    -------
    Samples
        Those that have an input, what their objectives need, and a split; the others are listed as dropped.
    list of str
        What a reader should know of them.

    Raises
    ------
    FrostlineError
        If a target, a text or a split is wrong.
    LeakageError
        If splits share groups or contents and that was not allowed.
    """
    if config.sample_weight is not None:
        manifest.column(config.sample_weight)  # a name that is wrong is told before anything is decoded
    if config.target and task is None and labelled:
        task, _ = read_task(
            manifest, config.target, kind=config.kind, delimiter=config.delimiter, positive=config.positive
        )
    if task is not None and task.kind == "mixed":
        raise TaskError("--target: targets of several kinds cannot be fine-tuned together; name targets of one kind")
    inputs = _with_texts(_readable(manifest, store, progress), config.text)
    inputs = replace(inputs, X=np.arange(len(inputs.manifest), dtype=np.float32)[:, None])
    failures = decode(inputs.manifest)
    inputs = _left_out(inputs, {i: error.kind for i, error in failures.items()})
    if manifest.role("bag") is not None:
        inputs = with_lost_bags(inputs, manifest)
    known = task if labelled else None
    # Of pairs without a target nothing is predicted; their texts or inputs stand where labels would be compared.
    stand_in = Task(kind="regression", targets=(config.text or manifest.input,))
    y = np.zeros(len(inputs.manifest)) if known is None else encode_samples(known, manifest, inputs.manifest)
    data = label(manifest, inputs, known or stand_in, y, store, progress, need_train=need_train)
    if task is not None and not labelled:
        several = task.kind == "multilabel" or len(task.outputs) > 1
        data = replace(data, task=task, y=np.zeros((len(data.y), len(task.outputs)) if several else len(data.y)))
    remarks = [*data.manifest.remarks, *gate(data, allow=config.allow_leakage)]
    if need_train:  # a run that is judged again has the rows that it was trained on itself
        encoders = [canonical(each) for each in (config.encoder, config.text_encoder) if each is not None]
        judged = {split: data.rows(split) for split in ("val", "test")}
        remarks += refuse_seen(data, encoders, judged, allow=config.allow_leakage)
    return Samples(data=data, task=task, texts=_texts(config.text, manifest, data)), remarks


def _readable(manifest: Manifest, store: FeatureStore, progress: Progress) -> Inputs:
    """Return the rows whose inputs can be read, with their content keys."""
    progress.stage("reading content keys", len(manifest))
    keys, unreadable = FileCache(store.files_cache).keys(
        manifest.sources, workers=os.cpu_count() or 1, progress=progress.advance
    )
    whole = Inputs(manifest=manifest, X=np.zeros((len(manifest), 1), np.float32), keys=keys, blocks=(), dropped={})
    reasons = {
        i: f"no {manifest.modality}" if manifest.sources[i] is None else error.kind for i, error in unreadable.items()
    }
    return _left_out(whole, reasons)


def _with_texts(inputs: Inputs, column: str | None) -> Inputs:
    """Return the rows that have a text; those of a study may take that of another row of it."""
    if column is None or inputs.manifest.role("bag") is not None:
        return inputs
    texts = inputs.manifest.column(column)
    return _left_out(inputs, {i: "no text" for i, text in enumerate(texts) if not (text or "").strip()})


def _left_out(inputs: Inputs, reasons: Mapping[int, str]) -> Inputs:
    """Return the inputs without some rows, which are listed by reason.

    Raises
    ------
    FinetuneError
        If none is left.
    """
    if not reasons:
        return inputs
    kept = np.setdiff1d(np.arange(len(inputs.manifest)), list(reasons))
    dropped = dict(inputs.dropped)
    for i, reason in sorted(reasons.items()):
        dropped[reason] = (*dropped.get(reason, ()), inputs.manifest.ids[i])
    if not len(kept):
        why = "; ".join(f"{reason} ({len(ids)})" for reason, ids in dropped.items())
        raise FinetuneError(f"{inputs.manifest.path}: no sample is left that can be used: {why}")
    assert isinstance(inputs.X, np.ndarray)
    manifest = inputs.manifest.select(kept.tolist())
    return replace(inputs, manifest=manifest, X=inputs.X[kept], keys=inputs.keys[kept], dropped=dropped)


def _texts(column: str | None, manifest: Manifest, data: Labelled) -> tuple[str, ...] | None:
    """Return the text of each sample; that of a study is that of all its rows."""
    if column is None:
        return None
    cells = [" ".join((text or "").split()) for text in manifest.column(column)]
    if manifest.role("bag") is None:
        return tuple((text or "").strip() for text in data.manifest.column(column))
    texts = agreed(manifest, column, np.array(cells, dtype=object), known=np.array([bool(text) for text in cells]))
    rows = positions(manifest, data.instances.manifest)[data.instances.first]
    found = tuple(str(texts[row]) for row in rows)
    empty = [name for name, text in zip(data.manifest.ids, found, strict=True) if not text]
    if empty:
        raise FinetuneError(
            f"{manifest.path}: no row of {len(empty)} studies has a text in column {column!r} (first: {empty[0]}); "
            f"leave these out"
        )
    return found
