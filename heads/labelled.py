"""Labelled data: embeddings, targets, splits and groups of one manifest, and the audit of their leakage.

Groups here are *effective* groups: samples are kept together if they share the group column, their
very content, or near-identical content. What is dealt to folds and resampled for intervals is always
an effective group, so that no duplicate can sit on both sides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys
from data.duplicates import NO_PAIRS
from data.errors import SampleError, SplitError
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
from data.manifest import Manifest, Source
from data.progress import Progress
from data.split import parse_split
from data.task import Targets, Task, labelled
from data.text import load_text
from featurestore.store import FeatureStore
from heads.augmented import Views
from heads.bags import Bags
from heads.context import Context
from heads.inputs import Block, Inputs, Missing, Normalize, find_features, load_inputs, stored_id
from heads.prompts import PromptSet
from heads.samples import Instances, agreed, bags_of, positions, samples_of


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Samples that have embeddings, a label and, if splits are given, a split.

    Attributes
    ----------
    manifest
        The samples: rows, or bags of them.
    instances
        The rows that the samples are made of.
    X, y
        Embeddings, float32, shape (n, d), or bags of them; and targets as `data.task` encodes them.
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
    masked
        Samples whose embeddings by some encoder are missing: reason to ids, which may name dropped ones as well.
    views
        Augmented views that join the samples heads are fitted on (`heads.augmented.fit_on`); None without.
    """

    manifest: Manifest
    instances: Instances
    X: NDArray[np.float32] | Bags
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
    masked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    views: Views | None = None

    @property
    def fingerprints(self) -> list[str]:
        """The identities of all features that heads learn from: those of X, then those of views."""
        return [*(block.fingerprint for block in self.blocks), *(self.views.fingerprints if self.views else ())]

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
            instances=self.instances.of(rows),
            X=self.X[rows],
            y=self.y[rows],
            split=self.split[rows],
            groups=self.groups[rows],
            group_names=tuple(self.group_names[i] for i in rows),
            dropped={**self.dropped, **gone},
            views=None if self.views is None else self.views.take(rows),
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
    missing: Missing = "drop",
    progress: Progress,
) -> Inputs:
    """Join the stored features of some encoders to a manifest; see `load_inputs`.

    A bag goes on with the rows that have features; one without any is dropped and listed.
    """
    encoders = tuple(map(stored_id, encoders))
    features = find_features(store, encoders, pooling=pooling, precision=precision, modality=manifest.modality)
    inputs = load_inputs(
        manifest,
        features,
        encoders,
        FileCache(store.files_cache),
        failed=[store.ledger(each.group).failures() for each in features],
        normalize=normalize,
        missing=missing,
        workers=os.cpu_count() or 1,
        progress=progress,
    )
    return inputs if manifest.role("bag") is None else with_lost_bags(inputs, manifest)


def with_lost_bags(inputs: Inputs, manifest: Manifest) -> Inputs:
    """Return the inputs with what was dropped told apart: rows of bags that go on, and bags without any row left."""
    left = set(inputs.manifest.role("bag") or ())
    lost = tuple(name for name in bags_of(manifest)[1] if name not in left)
    dropped = {f"rows of bags, {reason}": ids for reason, ids in inputs.dropped.items()}
    return replace(inputs, dropped={**dropped, "bags without a row": lost} if lost else dropped)


def label(
    manifest: Manifest,
    inputs: Inputs,
    task: Task,
    y: Targets,
    store: FeatureStore,
    progress: Progress,
    *,
    view: str | None = None,
    need_train: bool = True,
) -> Labelled:
    """Bring embeddings, targets, splits and groups together and audit them.

    Parameters
    ----------
    manifest
        All rows: a bag is split and grouped by those without embeddings as well.
    inputs
        Embeddings of those that have them.
    task, y
        The task, and the targets of `inputs.manifest`'s samples.
    store
        Keeps the perceptual hashes of images.
    progress
        Told about hashing images.
    view
        The column of the rows' views.
    need_train
        Whether a training sample must be left.

    Raises
    ------
    SplitError
        If a split's name is not understood, or no training sample is left.
    """
    at = positions(manifest, inputs.manifest)
    split, groups = _splits(manifest)[at], _group_names(manifest)[at]
    manifest = inputs.manifest
    unlabelled = ~labelled(y)
    unassigned = (split == "") & ~unlabelled
    dropped = dict(inputs.dropped)
    for reason, mask in (("no label", unlabelled), ("no split", unassigned)):
        if mask.any():
            names = manifest.role("bag") or manifest.ids
            dropped[reason] = tuple(dict.fromkeys(str(names[i]) for i in np.flatnonzero(mask)))
    kept = np.flatnonzero(~unlabelled & ~unassigned)
    if need_train and not (split[kept] == "train").any():
        why = "".join(f"; {reason}: {len(names):,}" for reason, names in dropped.items())
        raise SplitError(
            f"{manifest.path}: no labelled training sample is left of {len(manifest)} rows; "
            f"check the target and the split column{why}"
        )
    kept, instances, samples = samples_of(manifest, inputs.keys, kept, view=view)
    # What follows is about instances: two bags that share one are kept together like two equal samples.
    rows, X, first = instances.manifest, inputs.X[kept], instances.first
    split, groups = split[kept], groups[kept]
    near = _near_duplicates(rows, instances.keys, X, store, progress)
    connected = connected_groups(len(kept), groups.tolist(), instances.keys, near)
    return Labelled(
        manifest=samples,
        instances=instances,
        X=instances.packed(X),
        y=y[kept][first],
        task=task,
        split=split[first],
        groups=_joined(connected, rows)[first],
        group_names=tuple(groups[first].tolist()),
        blocks=inputs.blocks,
        context=Context(blocks=tuple(block.dim for block in inputs.blocks), targets=task.parts),
        leakage=audit(split, groups.tolist(), instances.keys, near, rows.ids, labels=_label_texts(rows, task)),
        dropped=dropped,
        masked=inputs.masked,
    )


def _joined(connected: NDArray[np.int64], rows: Manifest) -> NDArray[np.int64]:
    """Return connected groups of rows, those that have a bag in common made one."""
    if rows.role("bag") is None:
        return connected
    bags = [str(name) for name in bags_of(rows)[0]]
    return connected_groups(len(rows), bags, near=NearPairs(connected, NO_PAIRS))


def _splits(manifest: Manifest) -> NDArray[np.str_]:
    """Return the split of each row, all ``train`` without a split column; that of a bag is that of all its rows."""
    column = manifest.role("split")
    if column is None:
        return np.full(len(manifest), "train")
    name = manifest.roles["split"]
    split = parse_split(column, rows=manifest.rows, where=f"{manifest.path}, split column {name!r}")
    return split if manifest.role("bag") is None else agreed(manifest, name, split, known=split != "")


def _group_names(manifest: Manifest) -> NDArray[np.object_]:
    """Return what must not straddle splits: the group column, else the bag column, else nothing."""
    role = "group" if manifest.role("group") is not None else "bag"
    names = np.array([name or "" for name in manifest.role(role) or [""] * len(manifest)], dtype=object)
    if manifest.role("bag") is None:
        return names
    return agreed(manifest, manifest.roles[role], names, known=names != "")


def _label_texts(manifest: Manifest, task: Task) -> list[str]:
    """Return each row's targets as one text, to tell contents with conflicting labels."""
    columns = [_of_bag(manifest, manifest.column(name)) for name in task.targets]
    return [" ".join(cell or "" for cell in cells) for cells in zip(*columns, strict=True)]


def _of_bag(manifest: Manifest, cells: Sequence[str | None]) -> Sequence[str | None]:
    """Return cells, those of a bag all as in its first row that has one."""
    bags = manifest.role("bag")
    if bags is None:
        return cells
    said = {bag: cell for bag, cell in zip(reversed(bags), reversed(cells), strict=True) if cell}
    return [said.get(bag) for bag in bags]


def _near_duplicates(
    manifest: Manifest, keys: Keys, X: NDArray[np.float32] | Bags, store: FeatureStore, progress: Progress
) -> NearPairs:
    """Return which samples have nearly the same content.

    Images are compared by perceptual hash, videos by that of their middle frame, recordings by that of their
    spectrogram, texts by their normalised words; where none can be read (imported features), embeddings that point
    in the same direction are taken as the same. A sample that is kept without such content is near to none.
    """
    sources = [source for source in manifest.sources if source is not None]
    if sources and all(source.modality == "text" and _exists(source) for source in sources):
        return near_pairs_by_text([None if source is None else _text(source) for source in manifest.sources])
    if sources and all(source.modality != "text" and _exists(source) for source in sources):
        progress.stage("perceptual hashes", len(manifest))
        cache, workers = FileCache(store.files_cache), os.cpu_count() or 1
        if manifest.modality == "audio":
            from data.sound_hash import near_recordings

            return near_recordings(manifest.sources, keys, cache, workers=workers, progress=progress.advance)
        hashes = perceptual_hashes(manifest.sources, keys, cache, _picture, workers=workers, progress=progress.advance)
        return near_pairs(hashes)
    return near_pairs_by_embedding(X.mean() if isinstance(X, Bags) else np.nan_to_num(X))


def _picture(source: Source) -> NDArray[np.uint8]:
    """Return the picture that stands for a sample: an image, or the middle frame of a video."""
    if source.modality == "image":
        return load_image(source)
    from data.video import read_frames

    middle: NDArray[np.uint8] = read_frames(source, 1)[0]
    return middle


def _text(source: Source) -> str | None:
    try:
        return load_text(source)
    except SampleError:  # in the ledger since its extraction
        return None


def _exists(source: Source) -> bool:
    return source.path is None or all(path.exists() for path in (source.path, *source.rest))
