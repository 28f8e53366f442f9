"""`predict`: a saved head on new samples.

The features' fingerprints are checked against the bundle's: a head never sees vectors of another
encoder than the one it was fitted on.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import ConfigError
from data.filecache import FileCache
from data.manifest import Manifest
from data.progress import Progress, Silent
from data.sources import read_manifest
from data.tables import READERS
from data.task import Task
from featurestore.config import ExtractConfig
from featurestore.errors import FeaturesMissing, FingerprintMismatch
from featurestore.extract import extract
from featurestore.store import FeatureStore
from heads.artifact import Bundle
from heads.bag_views import view_remark
from heads.config import PredictConfig
from heads.evaluation.decisions import Answering
from heads.evaluation.scoring import Scores, answers, class_probabilities, scores_of
from heads.inputs import Inputs, input_column, keys_of
from heads.neighbours import (
    TrainingSamples,
    check_columns,
    nearest,
    neighbour_columns,
    one_each,
    retrieved_columns,
    training_samples,
)
from heads.record import RunRecord
from heads.run import prediction_columns, raw_columns, region_columns, write_table
from heads.samples import samples_of
from heads.saved import encoder_of, join_inputs, load_head, view_of


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What `predict` wrote.

    Attributes
    ----------
    rows
        Number of predictions.
    out
        The CSV file.
    failures
        Samples without a prediction: id, source, kind, message.
    masked
        Samples predicted without the embedding of some encoders: reason to ids.
    neighbours
        The CSV file of their nearest training samples; None if they were not asked for.
    """

    rows: int
    out: str
    failures: tuple[Mapping[str, str], ...]
    masked: Mapping[str, tuple[str, ...]]
    neighbours: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)


def predict(config: PredictConfig, *, progress: Progress | None = None) -> Predictions:
    """Predict every sample of a manifest, a folder or a file, and write a CSV.

    Parameters
    ----------
    config
        What to predict with what.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If the run, the input or the store are wrong, or the encoder no longer has the run's fingerprint.
    """
    progress = progress or Silent()
    if config.out.exists() and config.out.is_dir():
        raise ConfigError(f"--out {config.out}: expected a file to write, found a directory")
    if config.retrieve and config.neighbours is None:
        raise ConfigError("--retrieve reads columns off the nearest training samples; say how many with --neighbours")
    if config.neighbours is not None and config.store is None:
        raise ConfigError(
            "--neighbours needs the features of the training samples; name the store that they are in with --store"
        )
    bundle = load_head(config.run)
    task = Task.from_dict(bundle.task)
    manifest = read_manifest(config.manifest, input=_input_of(config), id=config.id, bag=_bag_of(config, bundle))
    _refuse_other_modality(config, manifest, bundle)
    view = _view_of(config, bundle, manifest)
    with _store_of(config) as store:
        training = _training(config, bundle, store, progress)
        failures = _encode_missing(config, manifest, bundle, store, progress)
        # Extraction has read every key, and said so.
        inputs = join_inputs(manifest, bundle, store, Silent())
    failures = _unpredicted(inputs, _without_content(inputs, failures) + failures)
    everything = np.arange(len(inputs.manifest))
    kept, instances, samples = samples_of(inputs.manifest, inputs.keys, everything, view=view)
    for remark in view_remark(bundle.head, instances):
        progress.note(remark)
    X = instances.packed(inputs.X[kept])
    columns = {
        "id": list(samples.ids),
        **_answer_columns(task, Answering.of(bundle, task), scores_of(bundle.head, X, task)),
    }
    beside = None
    if training is not None and config.neighbours is not None:
        found = nearest(one_each(X), training.X, config.neighbours, blocks=[block.dim for block in inputs.blocks])
        columns |= retrieved_columns(training, config.retrieve, found)
        beside = config.out.with_name(f"{config.out.stem}.neighbours.csv")
        write_predictions(beside, neighbour_columns(samples.ids, training, found))
    write_predictions(config.out, columns)
    return Predictions(
        rows=len(samples),
        out=str(config.out),
        failures=tuple(failures),
        masked=inputs.masked,
        neighbours=str(beside) if beside else None,
    )


def _answer_columns(task: Task, answering: Answering, raw: Scores) -> dict[str, list[str]]:
    """Return what a head's scores mean: as in the run's own predictions, calibrated, with sets where it makes any."""
    scores = answering.calibrated(raw)
    columns = prediction_columns(task, class_probabilities(scores, task), answers(scores, task, answering.cuts))
    regions = answering.regions(scores)
    if regions is not None:
        columns |= region_columns(task, regions)
    if answering.recalibration is not None:
        columns |= raw_columns(task, class_probabilities(raw, task))
    return columns


def _training(config: PredictConfig, bundle: Bundle, store: FeatureStore, progress: Progress) -> TrainingSamples | None:
    """Return the training samples, if neighbours were asked for; before anything is encoded, as they may be gone."""
    if config.neighbours is None:
        return None
    training = training_samples(config.run, bundle, store, progress)
    check_columns(training, config.retrieve)
    return training


def write_predictions(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Write a table of predictions.

    Raises
    ------
    ConfigError
        If it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, columns)
    except OSError as error:
        raise ConfigError(f"--out {path}: cannot be written: {error.strerror}") from error


def _refuse_other_modality(config: PredictConfig, manifest: Manifest, bundle: Bundle) -> None:
    """Refuse an input of a modality that the head has no features of.

    Raises
    ------
    ConfigError
        If it is one.
    """
    known = {block["modality"]: block["encoder"] for block in bundle.inputs}
    if manifest.modality in known:
        return
    fitted = " and ".join(f"{modality} features ({encoder})" for modality, encoder in known.items())
    said = f"--input {config.input}: " if config.input else ""
    raise ConfigError(
        f"{said}{manifest.path}: column {manifest.input!r} holds {manifest.modality}, but the head of {config.run} was "
        f"fitted on {fitted}; name the {' or '.join(known)} column with --input"
    )


def _encode_missing(
    config: PredictConfig, manifest: Manifest, bundle: Bundle, store: FeatureStore, progress: Progress
) -> list[Mapping[str, str]]:
    """Encode what the store does not hold, with each of the bundle's encoders that has something to do."""
    failures: list[Mapping[str, str]] = []
    for block in bundle.inputs:
        if _is_stored(manifest, block, store, progress):
            continue
        summary = extract(
            ExtractConfig(
                manifest=config.manifest,
                input=input_column(manifest, block["modality"]),
                id=config.id,
                store=store.path,
                encoder=(encoder_of(block),),
                pooling=block["pooling"],
                precision=block["precision"],
                dtype=block["dtype"],
                device=config.device,
                batch_size=config.batch_size,
                workers=config.workers,
                trust_remote_code=config.trust_remote_code,
            ),
            progress=progress,
        )
        if summary.fingerprint != block["fingerprint"]:
            raise FingerprintMismatch(
                f"{config.run}: the head was fitted on features {block['fingerprint'][:12]} of {block['encoder']}, "
                f"but that encoder now gives {summary.fingerprint[:12]}; its weights or settings have changed "
                f"(`frostline store info` explains both), so fit the head again"
            )
        failures += summary.failures
    return failures


def _is_stored(manifest: Manifest, block: Mapping[str, Any], store: FeatureStore, progress: Progress) -> bool:
    """Return whether the store holds the features of every sample that a head was fitted on, known by their content."""
    try:
        features = store.find(f"{encoder_of(block)}@{block['fingerprint']}")
    except FeaturesMissing:
        return False
    if features.keyed_by == "id":
        return False
    keys, problem = keys_of(manifest, features, FileCache(store.files_cache), os.cpu_count() or 1, progress)
    return not problem and bool(features.contains(keys).all())


def _without_content(inputs: Inputs, failures: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the samples that are left out although nothing failed: those with an empty cell."""
    listed = {failure["id"] for failure in failures}
    return [
        {"id": name, "source": "", "kind": "missing", "message": f"{name}: no prediction; {reason}"}
        for reason, names in inputs.dropped.items()
        for name in names
        if name not in listed
    ]


def _unpredicted(inputs: Inputs, failures: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the failures but for those of samples that are predicted from their other embeddings."""
    predicted = {name for ids in inputs.masked.values() for name in ids}
    return [failure for failure in failures if failure["id"] not in predicted]


@contextmanager
def _store_of(config: PredictConfig) -> Iterator[FeatureStore]:
    """Open the store, or one that lasts for this prediction only."""
    if config.store is not None:
        yield FeatureStore(config.store, create=True)
        return
    with tempfile.TemporaryDirectory(prefix="frostline-predict-") as folder:
        yield FeatureStore(Path(folder), create=True)


def _input_of(config: PredictConfig) -> str | None:
    """Return the column to encode: as asked, else the run's own where the input is a table; a folder has but one."""
    if config.input is not None or config.manifest.suffix.lower() not in READERS:
        return config.input
    own: str | None = RunRecord.read(config.run).config.get("input")
    return own


def _bag_of(config: PredictConfig, bundle: Bundle) -> str | None:
    """Return the bag column: as asked, else the run's own; a single file is a bag of one."""
    if config.bag is not None or (config.manifest.is_file() and config.manifest.suffix.lower() not in READERS):
        return config.bag
    own: str | None = bundle.extra.get("bag")
    return own


def _view_of(config: PredictConfig, bundle: Bundle, manifest: Manifest) -> str | None:
    """Return the column of views, which has to be there; a single file, and rows without a bag, are of no known view.

    Raises
    ------
    ManifestError
        If there is no such column.
    """
    view = view_of(config.view, bundle, where=str(config.run))
    if view is None or (config.view is None and manifest.role("bag") is None):
        return None
    manifest.column(view)
    return view
