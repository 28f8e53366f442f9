"""What the benchmarks of heads are measured on: synthetic embeddings with a stated law, and real ones from a store."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MODES = 2
"""Clusters per class."""
LABEL_NOISE = 0.05
DECAY = 0.35
"""The standard deviation of axis j is j^-DECAY, j = 1, 2, ...: the spectrum of variances falls as a power law."""
CONE = 1.0
"""Length of the common mean over the root mean square length of what is around it."""
SPREAD = 0.15
"""Root mean square distance of the clusters' centres from the mean, over that of a row from its centre."""

ENCODERS = {
    "brain_mri": ("offline:efficientnet-lite0", "label"),
    "rt_polarity": ("offline:minilm", "label"),
    "nih_cxr_multilabel": ("offline:efficientnet-lite0", "labels"),
}
"""The public data sets that benchmarks know: encoder and target column."""


@dataclass(frozen=True)
class Embeddings:
    """Labelled embeddings.

    Attributes
    ----------
    name
        Where they come from.
    X
        Shape (n, d), float32.
    y
        Class codes (n,), or 0, 1 and NaN of shape (n, T).
    groups
        What must not straddle folds, shape (n,).
    """

    name: str
    X: NDArray[np.float32]
    y: NDArray[Any]
    groups: NDArray[np.int64]


def synthetic(
    n: int, d: int = 512, classes: int = 2, *, labels: int = 0, missing: float = 0.3, unit: bool = False, seed: int = 0
) -> Embeddings:
    """Return rows round `MODES` centres per class, in a cone round a common mean, with a power-law spectrum.

    Parameters
    ----------
    n, d, classes
        Rows, columns and classes.
    labels
        If positive, y has so many columns of 0 and 1: whether a row is beyond the median along a
        direction of its own, with NaN for a share of `missing`.
    unit
        Whether rows are scaled to unit length.
    seed
        Seed of everything.
    """
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, d + 1) ** -DECAY
    spectrum /= np.linalg.norm(spectrum)
    code = rng.integers(0, classes, n)
    centres = SPREAD * rng.normal(size=(classes, MODES, d)) * spectrum
    X = centres[code, rng.integers(0, MODES, n)] + rng.normal(size=(n, d)) * spectrum
    y: NDArray[Any] = np.where(rng.random(n) < LABEL_NOISE, rng.integers(0, classes, n), code)
    if labels:
        score = X @ (rng.normal(size=(d, labels)) / spectrum[:, None] ** 0.5)
        score += 0.5 * score.std(axis=0) * rng.normal(size=score.shape)
        y = (score > np.quantile(score, rng.uniform(0.5, 0.95, labels), axis=0).diagonal()).astype(float)
        y = np.where(rng.random(y.shape) < LABEL_NOISE, 1 - y, y)
        y[rng.random(y.shape) < missing] = np.nan
    mean = rng.normal(size=d)
    X += CONE * np.sqrt(np.square(X).sum(axis=1).mean()) * mean / np.linalg.norm(mean)
    X = X / np.linalg.norm(X, axis=1, keepdims=True) if unit else X * np.sqrt(d)
    name = f"synthetic N={n:,} D={d}" + (f", {labels} labels" if labels else f", {classes} classes")
    return Embeddings(name + (", unit rows" if unit else ""), X.astype(np.float32), y, np.arange(n))


def real(dataset: str, store: Path, datasets: Path) -> Embeddings:
    """Return the stored embeddings of a public data set, extracted on the first call.

    Parameters
    ----------
    dataset
        A name of `ENCODERS`.
    store
        The feature store to read from, and to extract into.
    datasets
        The folder of the public data sets.
    """
    from data.progress import Silent
    from data.sources import read_manifest
    from data.task import encode_targets, read_task
    from featurestore.config import ExtractConfig
    from featurestore.errors import FeaturesMissing
    from featurestore.extract import extract
    from featurestore.store import FeatureStore
    from heads.labelled import join_features, label

    encoder, target = ENCODERS[dataset]
    path = datasets / dataset / "manifest.csv"
    manifest = read_manifest(path, group="group_id")
    task, _ = read_task(manifest, (target,))
    options: dict[str, Any] = {"pooling": None, "precision": None, "normalize": "none", "progress": Silent()}
    try:
        inputs = join_features(manifest, FeatureStore(store, create=True), (encoder,), **options)
    except FeaturesMissing:
        extract(ExtractConfig(manifest=path, store=store, encoder=encoder))
        inputs = join_features(manifest, FeatureStore(store), (encoder,), **options)
    data = label(inputs, task, encode_targets(task, inputs.manifest), FeatureStore(store), Silent())
    return Embeddings(f"{dataset}, {encoder}, N={len(data.X):,} D={data.X.shape[1]}", data.X, data.y, data.groups)


def add_options(parser: argparse.ArgumentParser, *, rounds: int | None = None) -> None:
    """Add the options that all benchmarks of heads have."""
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--real",
        type=Path,
        metavar="STORE",
        default=os.environ.get("FROSTLINE_BENCH_STORE"),
        help="measure on real embeddings too, which this feature store has or is given; "
        "default: the environment variable FROSTLINE_BENCH_STORE",
    )
    parser.add_argument(
        "--datasets",
        type=Path,
        default=os.environ.get("FROSTLINE_DATASETS"),
        help="the folder of the public data sets; default: the environment variable FROSTLINE_DATASETS",
    )


def why_not(options: argparse.Namespace) -> str:
    """Return why real embeddings cannot be measured, or nothing."""
    if options.datasets is None:
        return "the public data sets are not there: give --datasets, or set FROSTLINE_DATASETS"
    missing = [name for name in ENCODERS if not (Path(options.datasets) / name / "manifest.csv").is_file()]
    return f"no {', '.join(missing)} in {options.datasets}" if missing else ""


def deal(n: int, folds: int) -> NDArray[np.int64]:
    """Return the fold of each row: blocks of the same size."""
    return np.arange(n) * folds // n


def spread(X: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the standard deviation of each column, 1 for one that does not vary."""
    deviation = X.std(axis=0)
    return np.where(deviation > 0, deviation, np.float32(1))


def one_thread() -> None:
    """Pin the process to one core and its libraries to one thread."""
    import torch
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def grouped_folds(data: Embeddings, folds: int) -> NDArray[np.int64]:
    """Return the fold of each row: stratified, whole groups."""
    from data.split import make_folds

    kind = "multilabel" if data.y.ndim == 2 else "binary" if data.y.max() == 1 else "multiclass"
    return make_folds(data.y, kind, data.groups, folds, seed=0).assignment.astype(np.int64)


def first_folds(fold: NDArray[np.int64], run: int) -> NDArray[np.int64]:
    """Return folds of which only the first few are held out; the rows of the others are in every fit."""
    return np.where(fold < run, fold, -1)
