"""A saved head, ready for new samples: loaded from its run, and given the very features that it was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.manifest import Manifest
from data.progress import Progress
from featurestore.store import FeatureStore
from heads.artifact import Bundle, load_bundle
from heads.errors import RunError
from heads.inputs import Inputs
from heads.labelled import join_features
from heads.prompts import refuse_other_classes


def load_head(run: Path) -> Bundle:
    """Return the head of a run.

    Raises
    ------
    FrostlineError
        If there is no run, its head is damaged, or its prompts are of other classes than it answers with.
    """
    if not run.is_dir():
        what = "is a file" if run.exists() else "does not exist"
        raise RunError(f"{run}: {what}; expected a run directory, as `frostline fit-head ... --out RUN` writes it")
    bundle = load_bundle(run / "head")
    refuse_other_classes(bundle.extra.get("prompts", {}), bundle.task["classes"], where=str(run / "head"))
    return bundle


def encoder_of(block: Mapping[str, Any]) -> str:
    """Return the id of the encoder of an input, also where that was asked for as ``id@FINGERPRINT``."""
    encoder: str = block["encoder"]
    base, _, prefix = encoder.rpartition("@")
    return base if base and prefix and block["fingerprint"].startswith(prefix) else encoder


def view_of(asked: str | None, bundle: Bundle, *, where: str) -> str | None:
    """Return the column of views: as asked, else the one that the head was fitted with.

    Raises
    ------
    RunError
        If one is asked for, and the head knows no views.
    """
    own: str | None = bundle.extra.get("view")
    if asked is not None and own is None:
        raise RunError(f"--view {asked}: the head of {where} was fitted without views; leave it out")
    return asked or own


def join_inputs(manifest: Manifest, bundle: Bundle, store: FeatureStore, progress: Progress) -> Inputs:
    """Join the very features that a bundle was fitted on, known by their fingerprints."""
    names = tuple(f"{encoder_of(block)}@{block['fingerprint'][:16]}" for block in bundle.inputs)
    inputs = join_features(
        manifest,
        store,
        names,
        pooling=None,
        precision=None,
        normalize=bundle.extra.get("normalize", "none"),
        missing=bundle.extra.get("missing", "drop"),
        progress=progress,
    )
    bundle.check_inputs([block.fingerprint for block in inputs.blocks])
    return inputs
