"""From a configuration to labelled data that may be fitted on: read, joined, audited and counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.errors import LeakageError, SplitError
from data.progress import Progress
from data.sources import read_manifest
from data.task import count_classes, read_task
from featurestore.store import FeatureStore
from heads.bags import Bags
from heads.base import Head
from heads.catalog import make_head
from heads.config import FitConfig
from heads.errors import HeadError
from heads.labelled import Labelled, join_features, label
from heads.prompts import load_prompts, refuse_unaligned
from heads.samples import encode_samples
from heads.thresholds import parse_rule


def load(config: FitConfig, progress: Progress) -> Labelled:
    """Read the manifest, its targets and its stored features, and audit them."""
    manifest = read_manifest(
        config.manifest, input=config.input, id=config.id, split=config.split, group=config.group, bag=config.bag
    )
    task, _ = read_task(manifest, config.target, kind=config.kind, delimiter=config.delimiter, positive=config.positive)
    # A wrong parameter is found before any file is read.
    parse_rule(config.threshold)
    head = make_head(config.head, task.kind, config.set, config.seed)
    if head.needs_prompts and config.prompt_encoder is None:
        raise HeadError(f"--head {head.name} needs the prompts of the classes; add --prompt-encoder")
    if config.prompt_encoder is not None and not (head.needs_prompts or head.uses_prompts):
        raise HeadError(f"--prompt-encoder: head {head.name} learns nothing from prompts; leave it out")
    store = FeatureStore(config.store)
    # Before the features are found: where the prompts join them in the store, a second run finds the same snapshot.
    prompts = load_prompts(config, task, store, progress, seed=config.seed)
    inputs = join_features(
        manifest,
        store,
        config.encoder,
        pooling=config.pooling,
        precision=config.precision,
        normalize=config.normalize,
        progress=progress,
    )
    if prompts is not None and head.compares_prompts:
        refuse_unaligned(head.name, inputs.blocks, prompts)
    data = label(inputs, task, encode_samples(task, manifest, inputs.manifest), store, progress).with_prompts(prompts)
    if config.sealed and not len(data.rows("test")):
        raise SplitError(f"--sealed: {config.manifest} has no test rows to leave sealed; name the split with --split")
    return data


def gate(data: Labelled, *, allow: bool) -> list[str]:
    """Refuse data whose splits share samples or groups, or return the refusal as a warning.

    Raises
    ------
    LeakageError
        If the splits leak and that was not allowed.
    """
    if data.leakage.clean:
        return []
    if not allow:
        raise LeakageError(f"{data.manifest.path}: {data.leakage.message()}")
    return [f"leakage allowed: {data.leakage.message()}"]


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
    if isinstance(data.X, Bags):
        lengths = data.X.lengths
        found["instances"] = {"total": int(lengths.sum()), "fewest": int(lengths.min()), "most": int(lengths.max())}
    return found


def pooling_remark(data: Labelled, head: Head) -> list[str]:
    """Remark on bags that a head could not take as they are."""
    if not isinstance(data.X, Bags) or head.accepts_bags:
        return []
    what, fewest, most = data.manifest.roles.get("bag", "sample"), data.X.lengths.min(), data.X.lengths.max()
    number = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return [f"each {what} is the mean of its {number} embeddings, which the {head.name} head sees in place of them"]
