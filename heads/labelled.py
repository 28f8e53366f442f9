"""Labelled data: embeddings, targets, splits and groups of one manifest, and the audit of their leakage.

Groups here are *effective* groups: samples are kept together if they share the group column, their
very content, or near-identical content. What is dealt to folds and resampled for intervals is always
an effective group, so that no duplicate can sit on both sides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys
from data.errors import SplitError
from data.filecache import FileCache
from data.images import load_image
from data.leakage import (
    LeakageReport,
    NearPairs,
    audit,
    connected_groups,
    near_pairs,
    near_pairs_by_embedding,
    near_pairs_by_text,
    perceptual_hashes,
)
from data.manifest import Manifest
from data.progress import Progress
from data.split import parse_split
from data.task import Targets, Task, labelled
from featurestore.store import FeatureStore
from heads.context import Context
from heads.inputs import Block, Inputs, Normalize, find_features, load_inputs
from heads.prompts import PromptSet


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Samples that have embeddings, a label and, if splits are given, a split.

    Attributes
    ----------
    manifest
        The samples.
    keys
        Content keys of the first encoder's inputs, shape (n, 2).
    X, y
        Embeddings, float32, shape (n, d), and targets as `data.task` encodes them.
    task
        What `y` means.
    split
        ``train``, ``val`` or ``test`` per sample; all ``train`` where no split is given.
    groups
        Effective groups, shape (n,), whole numbers.
    group_names
        The group column as text; empty where there is none.
    blocks
        The encoders behind X.
    context
        What heads are told of X and the classes beside the rows.
    leakage
        What the given splits share.
    dropped
        Samples left out: reason to ids.
    prompts
        The prompts of the classes, if there are any.
    """

    manifest: Manifest
    keys: Keys
    X: NDArray[np.float32]
    y: NDArray[Any]
    task: Task
    split: NDArray[np.str_]
    groups: NDArray[np.int64]
    group_names: tuple[str, ...]
    blocks: tuple[Block, ...]
    context: Context
    leakage: LeakageReport
    dropped: Mapping[str, tuple[str, ...]]
    prompts: PromptSet | None = None

    def with_prompts(self, prompts: PromptSet | None) -> Labelled:
        """Return the same data with the prompts of the classes, which heads are told of."""
        return self if prompts is None else replace(self, prompts=prompts, context=prompts.added_to(self.context))

    def take(self, rows: NDArray[np.int64], reason: str) -> Labelled:
        """Return the same data of some of the samples, by position; the others are dropped for a reason."""
        left = np.setdiff1d(np.arange(len(self.y)), rows)
        gone = {reason: tuple(self.manifest.ids[i] for i in left)} if len(left) else {}
        return replace(
            self,
            manifest=self.manifest.select([int(i) for i in rows]),
            keys=self.keys[rows],
            X=self.X[rows],
            y=self.y[rows],
            split=self.split[rows],
            groups=self.groups[rows],
            group_names=tuple(self.group_names[i] for i in rows),
            dropped={**self.dropped, **gone},
        )

    def take(self, rows: NDArray[np.int64], reason: str) -> Labelled:
        """Return the same data of some of the samples, by position; the others are dropped for a reason."""
        left = np.setdiff1d(np.arange(len(self.y)), rows)
        gone = {reason: tuple(self.manifest.ids[i] for i in left)} if len(left) else {}
        return replace(
            self,
            manifest=self.manifest.select([int(i) for i in rows]),
            keys=self.keys[rows],
            X=self.X[rows],
            y=self.y[rows],
            split=self.split[rows],
            groups=self.groups[rows],
            group_names=tuple(self.group_names[i] for i in rows),
            dropped={**self.dropped, **gone},
        )

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the positions of one split's samples."""
        return np.flatnonzero(self.split == split)


def join_features(
    manifest: Manifest,
    store: FeatureStore,
    encoders: tuple[str, ...],
    *,
    pooling: str | None,
    precision: str | None,
    normalize: Normalize,
    progress: Progress,
) -> Inputs:
    """Join the stored features of some encoders to a manifest; see `load_inputs`."""
    features = find_features(store, encoders, pooling=pooling, precision=precision, modality=manifest.modality)
    return load_inputs(
        manifest,
        features,
        encoders,
        FileCache(store.files_cache),
        failed=[store.ledger(each.group).failures() for each in features],
        normalize=normalize,
        workers=os.cpu_count() or 1,
        progress=progress,
    )


def label(
    inputs: Inputs, task: Task, y: Targets, store: FeatureStore, progress: Progress, *, need_train: bool = True
) -> Labelled:
    """Bring embeddings, targets, splits and groups together and audit them.

    Parameters
    ----------
    inputs
        Embeddings of the manifest's samples.
    task, y
        The task, and the targets of `inputs.manifest`'s samples.
    store
        Keeps the perceptual hashes of images.
    progress
        Told about hashing images.
    need_train
        Whether a training sample must be left.

    Raises
    ------
    SplitError
        If a split's name is not understood, or no training sample is left.
    """
    manifest = inputs.manifest
    column = manifest.role("split")
    where = f"{manifest.path}, split column {manifest.roles.get('split')!r}"
    split = (
        parse_split(column, rows=manifest.rows, where=where) if column is not None else np.full(len(manifest), "train")
    )
    unlabelled = ~labelled(y)
    unassigned = (split == "") & ~unlabelled
    dropped = dict(inputs.dropped)
    for reason, mask in (("no label", unlabelled), ("no split", unassigned)):
        if mask.any():
            dropped[reason] = tuple(manifest.ids[i] for i in np.flatnonzero(mask))
    kept = np.flatnonzero(~unlabelled & ~unassigned)
    if need_train and not (split[kept] == "train").any():
        raise SplitError(
            f"{manifest.path}: no labelled training sample is left of {len(manifest)} rows; "
            f"check the target and the split column"
        )
    manifest, keys, X, split = manifest.select([int(i) for i in kept]), inputs.keys[kept], inputs.X[kept], split[kept]
    near = _near_duplicates(manifest, keys, X, store, progress)
    groups = _group_names(manifest)
    return Labelled(
        manifest=manifest,
        keys=keys,
        X=X,
        y=y[kept],
        task=task,
        split=split,
        groups=connected_groups(len(kept), groups, keys, near),
        group_names=tuple(groups),
        blocks=inputs.blocks,
        context=Context(blocks=tuple(block.dim for block in inputs.blocks)),
        leakage=audit(split, groups, keys, near, manifest.ids, labels=_label_texts(manifest, task)),
        dropped=dropped,
    )


def _group_names(manifest: Manifest) -> list[str]:
    """Return what must not straddle splits: the group column, else the bag column, else nothing."""
    column = manifest.role("group") or manifest.role("bag")
    return [""] * len(manifest) if column is None else [name or "" for name in column]


def _label_texts(manifest: Manifest, task: Task) -> list[str]:
    """Return each sample's targets as one text, to tell contents with conflicting labels."""
    return [" ".join(cell or "" for cell in cells) for cells in zip(*map(manifest.column, task.targets), strict=True)]


def _near_duplicates(
    manifest: Manifest, keys: Keys, X: NDArray[np.float32], store: FeatureStore, progress: Progress
) -> NearPairs:
    """Return which samples have nearly the same content.

    Images are compared by perceptual hash and texts by their normalised words; where neither can be
    read (imported features), embeddings that point in the same direction are taken as the same.
    """
    texts = [source.text for source in manifest.sources if source is not None and source.text is not None]
    if len(texts) == len(manifest):
        return near_pairs_by_text(texts)
    if all(source is not None and source.modality == "image" and _exists(source.path) for source in manifest.sources):
        progress.stage("perceptual hashes", len(manifest))
        hashes = perceptual_hashes(
            manifest.sources,
            keys,
            FileCache(store.files_cache),
            load_image,
            workers=os.cpu_count() or 1,
            progress=progress.advance,
        )
        return near_pairs(hashes)
    return near_pairs_by_embedding(X)


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()
