"""Inputs of a head: stored embeddings joined to a manifest by content, never by position."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys, as_keys, id_key, key_bytes
from data.errors import ConfigError
from data.filecache import FileCache
from data.manifest import Manifest, Modality, Source
from data.progress import Progress, Silent
from data.sources import read_manifest
from featurestore.catalog import HANDED_BACK, canonical
from featurestore.describe import size
from featurestore.encoder_ids import without_views
from featurestore.errors import FeaturesMissing
from featurestore.features import Features
from featurestore.ledger import Failure
from featurestore.store import FeatureStore
from heads.bags import Bags, Offsets
from heads.errors import HeadError

Normalize = Literal["none", "l2"]
Missing = Literal["drop", "mask"]


@dataclass(frozen=True, kw_only=True)
class Block:
    """The embeddings of one encoder, as a column of blocks in X.

    Attributes
    ----------
    encoder, fingerprint, snapshot
        Who made them, the identity of their values, and the state of the store they were read in.
    dim
        Their length.
    modality, pooling, precision, dtype
        How they were made; with `encoder` enough to make them again.
    """

    encoder: str
    fingerprint: str
    snapshot: str
    dim: int
    modality: str
    pooling: str
    precision: str
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """A feature matrix and where its rows came from.

    Attributes
    ----------
    manifest
        The samples that every encoder has an embedding of, or any where masked, in manifest order.
    X
        Their embeddings side by side, float32, shape (n, d), NaN where masked; bags of them where features are ragged.
    keys
        The content keys of the first encoder's inputs, or of the first that a sample has, shape (n, 2).
    blocks
        One entry per encoder.
    dropped
        Samples left out: reason to ids.
    masked
        Samples kept without the embedding of some encoders: reason to ids.
    """

    manifest: Manifest
    X: NDArray[np.float32] | Bags
    keys: Keys
    blocks: tuple[Block, ...]
    dropped: Mapping[str, tuple[str, ...]]
    masked: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def find_features(
    store: FeatureStore,
    encoders: Sequence[str],
    *,
    pooling: str | None = None,
    precision: str | None = None,
    modality: Modality | None = None,
) -> list[Features]:
    """Return the stored features of each encoder id; no encoder is loaded.

    Raises
    ------
    FeaturesMissing
        If the store has none, or several that the options do not tell apart.
    HeadError
        If an encoder is named twice, or gives augmented views.
    """
    refuse_views(encoders)
    found = [_find(store, stored_id(name), pooling, precision, modality) for name in encoders]
    prints = [features.fingerprint for features in found]
    for name, fingerprint in zip(encoders, prints, strict=True):
        if prints.count(fingerprint) > 1:
            raise HeadError(f"--encoder {name}: the same features are named twice; name each encoder once")
    return found


def stored_id(name: str) -> str:
    """Return the id that the features of an encoder are stored under; of the folder of a fine-tuned one its full id."""
    return canonical(name) if (Path(name) / HANDED_BACK).is_file() else name


def refuse_views(encoders: Sequence[str]) -> None:
    """Refuse augmented views where features are judged or compared.

    Raises
    ------
    HeadError
        If an encoder gives some.
    """
    for name in encoders:
        plain = without_views(name)
        if plain != name:
            raise HeadError(
                f"--encoder {name}: augmented views are for training heads only (fit-head, compare, tune), and nothing "
                f"is judged by them; name the encoder of the images themselves, {plain}"
            )


def _find(
    store: FeatureStore, name: str, pooling: str | None, precision: str | None, modality: Modality | None
) -> Features:
    """Return the features of one id; where it names two towers, those of a modality."""
    try:
        return store.find(name, pooling=pooling, precision=precision)
    except ConfigError as several:
        if modality is None:
            raise
        try:
            return store.find(name, pooling=pooling, precision=precision, modality=modality)
        except FeaturesMissing:  # none is of this modality, so that they differ in something else
            raise several from None


def load_inputs(
    manifest: Manifest,
    features: Sequence[Features],
    encoders: Sequence[str],
    cache: FileCache,
    *,
    failed: Sequence[Mapping[bytes, Failure]],
    normalize: Normalize = "none",
    missing: Missing = "drop",
    workers: int = 4,
    progress: Progress | None = None,
) -> Inputs:
    """Join stored embeddings to a manifest.

    Parameters
    ----------
    manifest
        The samples.
    features, encoders
        What to join, and the ids it was asked for by.
    cache
        Knows the files' content keys.
    failed
        For each of `features`, the ledger's entries by key: samples that could not be encoded.
    normalize
        ``l2`` scales every embedding of every encoder to unit length.
    missing
        ``drop`` leaves out samples that lack the embedding of any encoder, ``mask`` those that lack all of them.
    workers
        Threads that read files whose key is not known.
    progress
        Told about reading files.

    Raises
    ------
    FeaturesMissing
        If samples were never encoded; those that failed to encode are dropped or masked, and listed, instead.
    HeadError
        If a sample is masked that has several embeddings by another encoder.
    """
    keys = [keys_of(manifest, each, cache, workers, progress or Silent()) for each in features]
    lacking: dict[str, list[int]] = {}
    there = np.ones((len(features), len(manifest)), bool)
    for number, (each, name, (columns, problem), ledger) in enumerate(
        zip(features, encoders, keys, failed, strict=True)
    ):
        stored = each.contains(columns)
        for i in np.flatnonzero(~stored):
            failure = ledger.get(key_bytes(columns[i]))
            if i not in problem and failure is not None:
                problem[int(i)] = failure.kind
        never = [i for i in np.flatnonzero(~stored) if i not in problem]
        if never:
            shown = ", ".join(manifest.ids[i] for i in never[:3])
            raise FeaturesMissing(
                f"{manifest.path}: {len(never)} of {len(manifest)} samples have no {name} features in the store "
                f"(first: {shown}); run: frostline extract {manifest.path} --encoder {name} --store <DIR>"
            )
        for reason in sorted(set(problem.values())):
            lacking[f"{name}: {reason}"] = [i for i in sorted(problem) if problem[i] == reason]
        there[number, list(problem)] = False
    keep = (np.logical_or if missing == "mask" else np.logical_and).reduce(there)
    kept = np.flatnonzero(keep)
    dropped, masked = (_listed(manifest, lacking, where) for where in (~keep, keep))
    if not len(kept):
        why = "; ".join(f"{reason} ({len(ids)})" for reason, ids in dropped.items())
        raise FeaturesMissing(f"{manifest.path}: none of {len(manifest)} samples has features of every encoder: {why}")
    taken = [
        _values(each, columns[kept], present[kept])
        for each, (columns, _), present in zip(features, keys, there, strict=True)
    ]
    blocks = [values for values, _ in taken]
    if normalize == "l2":
        blocks = list(map(unit_length, blocks))
    ragged = [(name, offsets) for name, (_, offsets) in zip(encoders, taken, strict=True)]
    offsets = _common_offsets(manifest.select(kept.tolist()), ragged)
    # Tokens of one encoder may be most of the memory: they are not copied.
    X = np.ascontiguousarray(blocks[0] if len(blocks) == 1 else np.concatenate(blocks, axis=1))
    return Inputs(
        manifest=manifest.select([int(i) for i in kept]),
        X=X if offsets is None else Bags(X, offsets),
        keys=_first_keys([columns[kept] for columns, _ in keys]),
        blocks=tuple(block_of(each, name) for each, name in zip(features, encoders, strict=True)),
        dropped=dropped,
        masked=masked,
    )


def _listed(
    manifest: Manifest, lacking: Mapping[str, Sequence[int]], where: NDArray[np.bool_]
) -> dict[str, tuple[str, ...]]:
    """Return the ids of samples by reason, of some samples only."""
    found = {reason: tuple(manifest.ids[i] for i in at if where[i]) for reason, at in lacking.items()}
    return {reason: ids for reason, ids in found.items() if ids}


def _first_keys(keys: Sequence[Keys]) -> Keys:
    """Return, for each sample, the first of its content keys that is not zero."""
    first = keys[0].copy()
    for other in keys[1:]:
        none = ~first.any(axis=1)
        first[none] = other[none]
    return first


def _values(features: Features, keys: Keys, there: NDArray[np.bool_]) -> tuple[NDArray[np.float32], Offsets | None]:
    """Return the embeddings of some samples, NaN where not there, and where each sample's begin if it has several."""
    if not features.info.ragged:
        values = np.full((len(keys), features.dim), np.nan, np.float32)
        values[there] = features.take(keys[there], checked=True)
        return values, None
    if not there.all():
        raise HeadError(
            f"--missing mask: {features.spec.modality} features come in several per sample, of which none can be "
            f"masked; use --missing drop"
        )
    _require_memory(features, keys)
    ragged = features.take_bags(keys, checked=True)
    return ragged.values.astype(np.float32), ragged.offsets


def _require_memory(features: Features, keys: Keys) -> None:
    """Refuse to read what cannot be held: a file of tokens may be larger than the machine's memory."""
    needed = int(features.bag_lengths(keys).sum()) * features.dim * np.dtype(np.float32).itemsize
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise HeadError(
            f"{features.names[0]}: the {features.spec.pooling} of {len(keys):,} samples take {size(needed)} in memory, "
            f"and this machine has {size(there)}; use fewer samples, or a pooling of one vector per sample"
        )


def _common_offsets(manifest: Manifest, found: Sequence[tuple[str, Offsets | None]]) -> Offsets | None:
    """Return the offsets that all encoders have in common.

    Raises
    ------
    HeadError
        If they have different numbers of embeddings of a sample.
    """
    lengths = [np.ones(len(manifest), np.int64) if offsets is None else np.diff(offsets) for _, offsets in found]
    for (name, _), other in zip(found, lengths, strict=True):
        differs = np.flatnonzero(other != lengths[0])
        if len(differs):
            i = int(differs[0])
            raise HeadError(
                f"{manifest.where(i)}: {lengths[0][i]} embeddings by {found[0][0]}, but {other[i]} by {name}; "
                f"encoders are joined embedding by embedding, so use one of them, or one vector per sample of each"
            )
    return found[0][1]


def input_column(manifest: Manifest, modality: str) -> str:
    """Return the column that holds one modality: the manifest's own input, else the column of that name or ``path``."""
    if manifest.modality == modality:
        return manifest.input
    return modality if modality in manifest.columns else "path"


def sources_for(manifest: Manifest, modality: str) -> tuple[Source | None, ...]:
    """Return the contents of one modality, in manifest order.

    Raises
    ------
    ManifestError
        If the manifest has no column of that modality.
    """
    if manifest.modality == modality:
        return manifest.sources
    other = read_manifest(manifest.path, input=input_column(manifest, modality), **manifest.roles)
    at = {name: i for i, name in enumerate(other.ids)}
    return tuple(other.sources[at[name]] for name in manifest.ids)


def unit_length(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return vectors scaled to unit length, shape (n, d); a zero vector stays one."""
    scaled: NDArray[np.float32] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return scaled


def keys_of(
    manifest: Manifest, features: Features, cache: FileCache, workers: int, progress: Progress
) -> tuple[Keys, dict[int, str]]:
    """Return the keys of a manifest's samples and, by position, why a sample has none."""
    if features.keyed_by == "id":
        return as_keys(map(id_key, manifest.ids)), {}
    sources = sources_for(manifest, features.spec.modality)
    progress.stage("reading content keys", len(sources))
    keys, unreadable = cache.keys(sources, workers=workers, progress=progress.advance)
    problem: dict[int, str] = {i: error.kind for i, error in unreadable.items()}
    problem |= {i: f"no {features.spec.modality}" for i, source in enumerate(sources) if source is None}
    return keys, problem


def block_of(features: Features, name: str) -> Block:
    """Return what a record says of an encoder's features, by the id they were asked for."""
    spec = features.spec
    return Block(
        encoder=name,
        fingerprint=features.fingerprint,
        snapshot=features.snapshot,
        dim=features.dim,
        modality=spec.modality,
        pooling=spec.pooling,
        precision=spec.precision,
        dtype=spec.dtype,
    )
