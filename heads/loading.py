"""From a configuration to labelled data that may be fitted on: read, joined, audited and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from data.errors import LeakageError, SplitError, TaskError
from data.manifest import Manifest
from data.mixed import read_mixed
from data.progress import Progress
from data.sources import read_manifest
from data.subset import balanced_subset
from data.task import Task, count_classes, read_task
from featurestore.store import FeatureStore
from heads.augmented import find_views, plain_encoders, read_views
from heads.bag_views import refuse_bag_views
from heads.bags import Bags
from heads.base import Head
from heads.catalog import head_classes, make_head
from heads.config import FitConfig, FittingConfig
from heads.errors import HeadError
from heads.evaluation.thresholds import parse_rule
from heads.fine_tuned import audit
from heads.inputs import find_features
from heads.labelled import Labelled, join_features, label
from heads.mixed import MixedHead
from heads.prompts import load_prompts, refuse_unaligned
from heads.samples import encode_samples

_UNCORRECTED = {"class_weight": None, "pos_weight": None, "sampler": "shuffle"}
"""Parameters of heads against imbalance, and the values that do nothing."""


def load(config: FitConfig, progress: Progress) -> Labelled:
    """Read the manifest, its targets and its stored features, and audit them."""
    manifest = read_manifest(
        config.manifest, input=config.input, id=config.id, split=config.split, group=config.group, bag=config.bag
    )
    task = _task_of(config, manifest)
    # A wrong parameter is found before any file is read.
    parse_rule(config.threshold)
    head = make_head(config.head, task.kind, config.set, config.seed)
    refuse_masked(config, head)
    refuse_bag_views(config, head.name)
    if config.view is not None:
        manifest.column(config.view)
    if head.needs_prompts and config.prompt_encoder is None:
        raise HeadError(f"--head {head.name} needs the prompts of the classes; add --prompt-encoder")
    if config.prompt_encoder is not None and not (head.needs_prompts or head.uses_prompts):
        raise HeadError(f"--prompt-encoder: head {head.name} learns nothing from prompts; leave it out")
    store = FeatureStore(config.store)
    # An encoder that the store knows nothing of is refused before that of the prompts is loaded.
    find_views(store, config.encoder, pooling=config.pooling, precision=config.precision, bag=config.bag)
    plain = plain_encoders(config.encoder)
    find_features(store, plain, pooling=config.pooling, precision=config.precision, modality=manifest.modality)
    # Before the features are found: where the prompts join them in the store, a second run finds the same snapshot.
    prompts = load_prompts(config, task, store, progress, seed=config.seed)
    inputs = join_features(
        manifest,
        store,
        plain,
        pooling=config.pooling,
        precision=config.precision,
        normalize=config.normalize,
        missing=config.missing,
        progress=progress,
    )
    if prompts is not None and head.compares_prompts:
        refuse_unaligned(head.name, inputs.blocks, prompts)
    y = encode_samples(task, manifest, inputs.manifest)
    data = label(manifest, inputs, task, y, store, progress, view=config.view).with_prompts(prompts)
    views = read_views(
        data,
        store,
        config.encoder,
        pooling=config.pooling,
        precision=config.precision,
        normalize=config.normalize,
        progress=progress,
    )
    data = replace(data, views=views)
    if config.sealed and not len(data.rows("test")):
        raise SplitError(f"--sealed: {config.manifest} has no test rows to leave sealed; name the split with --split")
    return data


def refuse_masked(config: FitConfig, head: Head) -> None:
    """Raise HeadError where samples would be masked that a head cannot do with, or nothing could be masked."""
    if config.missing == "drop":
        return
    if not head.accepts_missing:
        raise HeadError(
            f"--missing mask: head {head.name} needs every embedding of a sample; "
            f"use concat_fusion or weighted_sum, or --missing drop"
        )
    if len(config.encoder) < 2 or config.bag is not None:
        why = "there is one --encoder" if config.bag is None else "a bag is the mean of the rows that it has"
        raise HeadError(f"--missing mask: {why}, so there is nothing to mask; use --missing drop")


def masked_remark(data: Labelled) -> list[str]:
    """Remark on samples that are kept without some of their embeddings."""
    found = masked_samples(data)
    if not found:
        return []
    reasons = "; ".join(f"{reason}: {len(ids):,}" for reason, ids in found.items())
    total = len({name for ids in found.values() for name in ids})
    return [f"{total:,} of {len(data.y):,} samples lack a part of their embeddings, which is masked ({reasons})"]


def masked_samples(data: Labelled) -> dict[str, list[str]]:
    """Return the samples among the data that lack some of their embeddings: reason to ids."""
    there = set(data.manifest.ids)
    found = {reason: [name for name in ids if name in there] for reason, ids in data.masked.items()}
    return {reason: ids for reason, ids in found.items() if ids}


def _task_of(config: FitConfig, manifest: Manifest) -> Task:
    """Return what is to be predicted: one task, or for a head of mixed tasks one per target."""
    if all("mixed" not in made.kinds for made in head_classes(config.head)):
        task, _ = read_task(
            manifest, config.target, kind=config.kind, delimiter=config.delimiter, positive=config.positive
        )
        return task
    head = make_head(config.head, "mixed", config.set, config.seed)
    assert isinstance(head, MixedHead)  # it learns mixed tasks
    head.check_names(config.target)
    unfit = {
        "--positive": config.positive is not None,
        "--calibration": config.calibration != "none",
        "--coverage": config.coverage is not None,
    }
    for option, given in unfit.items():
        if given:
            raise HeadError(f"{option}: is for a task of one kind, and {config.head} learns several; leave it out")
    kinds = {name: settings.kind for name, settings in head.settings().items() if settings.kind != "auto"}
    task, _ = read_mixed(manifest, config.target, kind=config.kind, kinds=kinds)
    return task


def refuse_mixed(command: str, task: Task) -> None:
    """Raise HeadError for a mixed task, which has no one metric to rank heads by."""
    if task.kind == "mixed":
        raise HeadError(
            f"{command} ranks heads by one metric, and a head of several targets has one for each; use fit-head"
        )


def gate(data: Labelled, *, allow: bool) -> list[str]:
    """Refuse data whose splits share samples or groups, or an encoder has seen; or return the refusal as a warning.

    Raises
    ------
    LeakageError
        If the splits leak, or an encoder was fine-tuned on rows that judge, and that was not allowed.
    """
    seen = audit(data, [block.encoder for block in data.blocks], allow=allow)
    if data.leakage.clean:
        return seen
    if not allow:
        raise LeakageError(f"{data.manifest.path}: {data.leakage.message()}")
    return [f"leakage allowed: {data.leakage.message()}", *seen]


def few_per_label(config: FittingConfig, data: Labelled) -> Labelled:
    """Leave out the training samples that `--per-label` does not take; those of val and test all stay.

    Raises
    ------
    TaskError
        If the task has no labels.
    SplitError
        If all val rows would join the few in the final fit.
    """
    if config.per_label is None:
        return data
    if data.task.kind not in ("binary", "multiclass", "multilabel"):
        what = "a regression has no" if data.task.kind == "regression" else "targets of several kinds have no common"
        raise TaskError(f"--per-label {config.per_label}: {what} labels to take samples of; leave it out")
    train, val = data.rows("train"), data.rows("val")
    if len(val) and config.refit == "train+val":
        raise SplitError(
            f"--per-label {config.per_label}: all {len(val)} val rows would join the few in the final fit; "
            f"add --refit train"
        )
    taken = balanced_subset(data.y[train], data.task.kind, config.per_label, config.seed, groups=data.groups[train])
    kept = np.sort(np.concatenate([train[taken], val, data.rows("test")]))
    return data.take(kept, _beyond(config))


def few_remarks(config: FitConfig, data: Labelled) -> list[str]:
    """Remark on what `few_per_label` left out, and on what the head does about rare classes besides."""
    left = len(data.dropped.get(_beyond(config), ()))
    if config.per_label is None or not left:
        return []
    used = len(data.rows("train"))
    remark = (
        f"fitted on {used:,} of {used + left:,} training samples (--per-label {config.per_label}): labels are more "
        f"even among them than they were, so out-of-fold numbers, probabilities and thresholds are not those of all"
    )
    remarks = [remark]
    params = make_head(config.head, data.task.kind, config.set, config.seed).get_params()
    corrections = [f"{name}={params[name]}" for name, off in _UNCORRECTED.items() if params.get(name, off) != off]
    if corrections:
        remarks.append(
            f"--per-label {config.per_label} and {', '.join(corrections)} correct imbalance {1 + len(corrections)} "
            f"times over, and favour rare classes too much together"
        )
    return remarks


def _beyond(config: FittingConfig) -> str:
    return f"training samples beyond {config.per_label} per label"


def unused_split(config: FitConfig, data: Labelled) -> list[str]:
    """Remark on a split column that nobody asked for."""
    if config.split is not None or "split" not in data.manifest.columns:
        return []
    return [
        "the column 'split' is not used and all rows are cross-validated; to judge its test rows, add --split split"
    ]


def counts(data: Labelled) -> dict[str, Any]:
    """Return how many samples, groups and labels there are, per split, and what was dropped and why."""
    splits = {}
    for name in ("train", "val", "test"):
        rows = data.rows(name)
        if len(rows):
            splits[name] = {
                "samples": len(rows),
                "groups": len(np.unique(data.groups[rows])),
                "classes": count_classes(data.task, data.y[rows]),
            }
    dropped = {reason: {"count": len(ids), "ids": list(ids)} for reason, ids in data.dropped.items()}
    found = {
        "samples": len(data.y),
        "groups": len(np.unique(data.groups)),
        "splits": splits,
        "dropped": dropped,
    }
    masked = masked_samples(data)
    if masked:
        found["masked"] = {reason: {"count": len(ids), "ids": ids} for reason, ids in masked.items()}
    if data.views is not None:
        found["views"] = data.views.to_dict()
    if isinstance(data.X, Bags):
        lengths = data.X.lengths
        found["instances"] = {"total": int(lengths.sum()), "fewest": int(lengths.min()), "most": int(lengths.max())}
    of = data.instances
    if of.offsets is not None:
        bags: dict[str, Any] = {
            "column": data.manifest.roles["bag"],
            "rows": len(of.manifest),
            "fewest": int(of.lengths.min()),
            "most": int(of.lengths.max()),
        }
        if of.views is not None:
            names = Counter(name or "none" for name in of.views.tolist())
            bags["views"] = {"column": of.view, "rows": dict(names.most_common())}
        found["bags"] = bags
    return found


def pooling_remark(data: Labelled, head: Head) -> list[str]:
    """Remark on bags that a head could not take as they are, or takes a part of."""
    if not isinstance(data.X, Bags):
        return []
    if head.accepts_bags:
        return cut_remarks(data, head.get_params())
    what, fewest, most = data.manifest.roles.get("bag", "sample"), data.X.lengths.min(), data.X.lengths.max()
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return [f"each {what} is the mean of its {number} embeddings, which the {head.name} head sees in place of them"]


def cut_remarks(data: Labelled, params: Mapping[str, Any]) -> list[str]:
    """Say how many bags have more instances or parts than a head of these parameters looks at."""
    assert isinstance(data.X, Bags)  # asked of bags only
    remarks = []
    for name, what, offsets in (
        ("max_parts", "parts", data.X.part_offsets),
        ("max_instances", "instances", data.X.offsets),
    ):
        cap = params.get(name)
        cut = 0 if cap is None else int((np.diff(offsets) > cap).sum())
        if cut:
            remarks.append(
                f"{name}={cap}: {cut:,} of {len(data.y):,} bags have more {what} and are cut, in training to others "
                f"in each epoch, else to {what} evenly spaced over the bag"
            )
    return remarks
