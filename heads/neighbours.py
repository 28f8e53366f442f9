"""The training samples nearest to new ones: evidence to look at beside a prediction, and metadata to read off them.

Nearness is the cosine similarity of the features that the head was given, bag by bag the mean of their
instances; of several encoders the mean of their cosines, so that none counts more for being longer. It
says what the encoder finds alike, whatever the head made of it.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config import read_yaml
from data.digest import key_hex
from data.errors import ConfigError, did_you_mean
from data.manifest import Manifest
from data.progress import Progress
from data.sources import read_manifest
from featurestore.store import FeatureStore
from heads.artifact import Bundle
from heads.bags import Bags
from heads.errors import RunError
from heads.run import TRAINED
from heads.samples import samples_of
from heads.saved import join_inputs

BLOCK = 256
"""Samples compared with all training samples at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingSamples:
    """What a head was fitted on.

    Attributes
    ----------
    samples
        The samples, n of them.
    X
        Their features, shape (n, d).
    truths
        Their labels, by the names of the columns of ``trained.csv``.
    """

    samples: Manifest
    X: NDArray[np.float32]
    truths: dict[str, list[str]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """The nearest training samples of some samples, the nearest first.

    Attributes
    ----------
    at, similarity
        Their positions, and cosines between -1 and 1, shape (q, k).
    """

    at: NDArray[np.int64]
    similarity: NDArray[np.float64]


def training_samples(run: Path, bundle: Bundle, store: FeatureStore, progress: Progress) -> TrainingSamples:
    """Return the samples that a run's head was fitted on, from its manifest and their stored features.

    Raises
    ------
    FrostlineError
        If the manifest or the features are no longer there, or are not those of the run.
    """
    trained = _read_trained(run)
    config = read_yaml(run / "config.yaml")
    roles = {role: config.get(role) for role in ("input", "id", "group")}
    manifest = read_manifest(Path(config["manifest"]), **roles, bag=bundle.extra.get("bag"))
    at = {name: i for i, name in enumerate(manifest.ids)}
    gone = [name for name in trained if name not in at]
    if gone:
        raise RunError(f"{manifest.path}: has no row {gone[0]!r}, which the head of {run} was fitted on{_CHANGED}")
    inputs = join_inputs(manifest.select([at[name] for name in trained]), bundle, store, progress)
    keys = [key_hex(key) for key in inputs.keys]
    names = inputs.manifest.ids
    changed = next((n for n, key in zip(names, keys, strict=True) if trained[n]["key"] != key), None)
    if changed is not None:
        raise RunError(f"{manifest.path}: the content of {changed!r} is not what {run} was fitted on{_CHANGED}")
    kept, instances, samples = samples_of(inputs.manifest, inputs.keys, np.arange(len(inputs.manifest)))
    first = [trained[instances.manifest.ids[i]] for i in instances.first]
    columns = [name for name in next(iter(trained.values())) if name not in ("id", "key")]
    return TrainingSamples(
        samples=samples,
        X=one_each(instances.packed(inputs.X[kept])),
        truths={name: [row[name] for row in first] for name in columns},
    )


def one_each(X: NDArray[np.float32] | Bags) -> NDArray[np.float32]:
    """Return one vector per sample: the mean of a bag."""
    return np.asarray(X.mean()) if isinstance(X, Bags) else X


def nearest(X: NDArray[np.float32], training: NDArray[np.float32], k: int, *, blocks: Sequence[int] = ()) -> Nearest:
    """Return the nearest training samples of each sample by cosine; the earlier one first where two are equal.

    Parameters
    ----------
    X, training
        Features, shapes (q, d) and (n, d). A zero vector, or a missing block, is alike to nothing: its cosines are 0.
    k
        How many; all of them if there are fewer.
    blocks
        Widths of the feature sets that stand side by side; empty for one.
    """
    k = min(k, len(training))
    rows = _unit(training, blocks)
    at, similarity = np.empty((len(X), k), np.int64), np.empty((len(X), k))
    for start in range(0, len(X), BLOCK):
        part = slice(start, start + BLOCK)
        cosine = _unit(X[part], blocks) @ rows.T
        chosen = np.sort(np.argpartition(-cosine, k - 1, axis=1)[:, :k], axis=1)
        found = np.take_along_axis(cosine, chosen, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")
        at[part] = np.take_along_axis(chosen, order, axis=1)
        similarity[part] = np.take_along_axis(found, order, axis=1)
    return Nearest(at=at, similarity=np.clip(similarity, -1, 1))


def neighbour_columns(ids: Sequence[str], training: TrainingSamples, found: Nearest) -> dict[str, list[str]]:
    """Return one row per sample and neighbour: who is near, how near, and with which labels."""
    q, k = found.at.shape
    flat = found.at.ravel().tolist()
    return {
        "id": [name for name in ids for _ in range(k)],
        "rank": [str(rank) for _ in range(q) for rank in range(1, k + 1)],
        "neighbour": [training.samples.ids[i] for i in flat],
        "similarity": [f"{value:.6f}" for value in found.similarity.ravel()],
        **{name: [cells[i] for i in flat] for name, cells in training.truths.items()},
    }


def retrieved_columns(training: TrainingSamples, names: Sequence[str], found: Nearest) -> dict[str, list[str]]:
    """Return metadata of the neighbours as ``near[<column>]``: the mean of numbers, the commonest of words.

    Parameters
    ----------
    training, found
        The training samples, and which are near.
    names
        Columns of their manifest. One is numeric if every cell that is not empty is a finite number.

    Notes
    -----
    Empty cells are passed over; where all neighbours' are empty, so is the result. Of words that are equally
    common the one of the nearest neighbour is taken.
    """
    return {f"near[{name}]": _retrieved(training.samples.columns[name], found.at) for name in names}


def check_columns(training: TrainingSamples, names: Sequence[str]) -> None:
    """Refuse columns that the training manifest does not have.

    Raises
    ------
    ConfigError
        If there is one.
    """
    known = training.samples.columns
    for name in names:
        if name not in known:
            raise ConfigError(
                f"--retrieve {name}: no such column in {training.samples.path}; {did_you_mean(name, known)}"
            )


_CHANGED = "; it has changed since, so give the manifest as it was, or fit the head again"


def _retrieved(column: Sequence[str | None], at: NDArray[np.int64]) -> list[str]:
    cells = [cell for cell in column if cell is not None]
    if cells and all(map(_is_number, cells)):
        values = np.array([math.nan if cell is None else float(cell) for cell in column])[at]
        known = np.isfinite(values)
        means = np.where(known, values, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        return [
            repr(float(mean)) if any_known else "" for mean, any_known in zip(means, known.any(axis=1), strict=True)
        ]
    # A counter keeps the order of first occurrence among equals.
    words = (Counter(cell for i in row if (cell := column[i]) is not None) for row in at)
    return [str(count.most_common(1)[0][0]) if count else "" for count in words]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _unit(X: NDArray[np.float32], blocks: Sequence[int]) -> NDArray[np.float32]:
    """Return rows whose products are the mean of the blocks' cosines."""
    X = np.nan_to_num(X)  # missing blocks
    parts = np.split(X, np.cumsum(blocks)[:-1], axis=1) if len(blocks) > 1 else [X]
    lengths = [np.linalg.norm(part, axis=1, keepdims=True) for part in parts]
    units = [part / np.where(length > 0, length, 1) for part, length in zip(parts, lengths, strict=True)]
    return np.asarray(np.hstack(units) / np.sqrt(np.float32(len(units))), dtype=np.float32)


def _read_trained(run: Path) -> dict[str, dict[str, str]]:
    """Return the rows of ``trained.csv`` by id.

    Raises
    ------
    RunError
        If the list is missing, empty or damaged.
    """
    path = run / TRAINED
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = {row["id"]: row for row in csv.DictReader(file) if row["key"]}
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}; fit the head again") from error
    except (KeyError, UnicodeDecodeError, csv.Error) as error:
        raise RunError(f"{path}: damaged, not a list of trained rows; fit the head again") from error
    if not rows:
        raise RunError(f"{path}: lists no row; a head that learned from none has no neighbours to show")
    return rows
