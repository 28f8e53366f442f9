"""`predict` and `evaluate`: a saved head on new samples.

Both check the features' fingerprints against the bundle's: a head never sees vectors of another
encoder than the one it was fitted on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import key_bytes
from data.errors import ConfigError, LeakageError, SplitError
from data.manifest import Manifest
from data.progress import Progress, Silent
from data.sources import read_manifest
from data.tables import READERS
from data.task import Task
from featurestore.config import ExtractConfig
from featurestore.errors import FingerprintMismatch
from featurestore.extract import extract
from featurestore.store import FeatureStore
from heads.artifact import Bundle, load_bundle
from heads.config import EvaluateConfig, PredictConfig
from heads.inputs import Inputs, input_column
from heads.labelled import Labelled, join_features, label
from heads.metrics import evaluate as evaluate_metrics
from heads.prompts import refuse_other_classes
from heads.record import RunRecord
from heads.run import prediction_columns, read_trained, write_table
from heads.samples import encode_samples, samples_of
from heads.scoring import answers, class_probabilities, scores_of


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
    """

    rows: int
    out: str
    failures: tuple[Mapping[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found.

    Attributes
    ----------
    run
        The run directory.
    split
        The split that was evaluated; ``all`` if the whole manifest was.
    metrics
        As in a record: metric to value and interval.
    warnings
        What the reader must know, such as samples shared with the training rows.
    """

    run: str
    split: str
    metrics: Mapping[str, Any]
    warnings: tuple[str, ...]

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
    bundle = _bundle(config.run)
    task = Task.from_dict(bundle.task)
    manifest = read_manifest(config.manifest, input=_input_of(config), id=config.id, bag=_bag_of(config, bundle))
    with _store_of(config) as store:
        failures = _encode_missing(config, manifest, bundle, store, progress)
        inputs = _inputs(manifest, bundle, store, progress)
    failures += _without_content(inputs, failures)
    kept, instances, samples = samples_of(inputs.manifest, inputs.keys, np.arange(len(inputs.manifest)))
    scores = scores_of(bundle.head, instances.packed(inputs.X[kept]), task)
    predicted = answers(scores, task, _thresholds(bundle))
    columns = {"id": list(samples.ids)}
    columns |= prediction_columns(task, class_probabilities(scores, task), predicted)
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        write_table(config.out, columns)
    except OSError as error:
        raise ConfigError(f"--out {config.out}: cannot be written: {error.strerror}") from error
    return Predictions(rows=len(samples), out=str(config.out), failures=tuple(failures))


def evaluate(config: EvaluateConfig, *, progress: Progress | None = None) -> Evaluation:
    """Judge a fitted head on the labelled samples of a manifest.

    Parameters
    ----------
    config
        Which run on which samples.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If the run, the manifest, the split or the features are wrong.
    """
    progress = progress or Silent()
    bundle, record = _bundle(config.run), RunRecord.read(config.run)
    task = Task.from_dict(bundle.task)
    own = record.config
    column = (config.split_column or own.get("split")) if config.split else None
    if config.split and column is None:
        raise SplitError(
            f"--split {config.split}: {config.run} was fitted without a split column; name one with --split-column"
        )
    manifest = read_manifest(
        config.manifest,
        input=config.input or own.get("input"),
        id=config.id or own.get("id"),
        split=column,
        group=config.group or own.get("group"),
        bag=config.bag or own.get("bag"),
    )
    store = FeatureStore(config.store)
    inputs = _inputs(manifest, bundle, store, progress)
    data = label(inputs, task, encode_samples(task, manifest, inputs.manifest), store, progress, need_train=False)
    rows = data.rows(config.split) if config.split else data.rows("train")
    if not len(rows):
        raise SplitError(f"{config.manifest}: column {column!r} has no labelled row of split {config.split!r}")
    warnings = _trained_on(config, data, rows) if bundle.head.learns_from_rows else []
    metrics = evaluate_metrics(
        task.kind,
        data.y[rows],
        scores_of(bundle.head, data.X[rows], task),
        classes=task.classes or task.targets,
        groups=data.groups[rows],
        thresholds=_thresholds(bundle),
        n_boot=config.bootstrap,
        seed=config.seed,
        min_positives=int(own.get("min_positives", 1)),
    )
    return Evaluation(run=str(config.run), split=config.split or "all", metrics=metrics, warnings=tuple(warnings))


def _bundle(run: Path) -> Bundle:
    """Return the head of a run, refused if its prompts are of other classes than it answers with."""
    bundle = load_bundle(run / "head")
    refuse_other_classes(bundle.extra.get("prompts", {}), bundle.task["classes"], where=str(run / "head"))
    return bundle


def _trained_on(config: EvaluateConfig, data: Labelled, rows: NDArray[np.int64]) -> list[str]:
    """Refuse rows whose content the head was fitted on, or return the refusal as a warning.

    Raises
    ------
    LeakageError
        If there are such rows and that was not allowed.
    """
    trained = read_trained(config.run)
    known = np.array([key_bytes(key) in trained for key in data.instances.keys], dtype=bool)
    shared = [int(i) for i in rows if known[data.instances.at(np.array([i]))].any()]
    if not shared:
        return []
    examples = ", ".join(data.manifest.ids[i] for i in shared[:3])
    message = (
        f"{len(shared)} of the {len(rows)} rows to evaluate are rows that the head of {config.run} was fitted on "
        f"(e.g. {examples}); such scores say nothing about new data: evaluate other rows, or accept that with "
        f"--allow-leakage"
    )
    if not config.allow_leakage:
        raise LeakageError(f"{config.manifest}: {message}")
    return [message]


def _inputs(manifest: Manifest, bundle: Bundle, store: FeatureStore, progress: Progress) -> Inputs:
    """Join the very features that a bundle was fitted on, known by their fingerprints."""
    names = tuple(f"{block['encoder']}@{block['fingerprint'][:16]}" for block in bundle.inputs)
    inputs = join_features(
        manifest,
        store,
        names,
        pooling=None,
        precision=None,
        normalize=bundle.extra.get("normalize", "none"),
        progress=progress,
    )
    bundle.check_inputs([block.fingerprint for block in inputs.blocks])
    return inputs


def _encode_missing(
    config: PredictConfig, manifest: Manifest, bundle: Bundle, store: FeatureStore, progress: Progress
) -> list[Mapping[str, str]]:
    """Encode what the store does not hold, with each of the bundle's encoders."""
    failures: list[Mapping[str, str]] = []
    for block in bundle.inputs:
        summary = extract(
            ExtractConfig(
                manifest=config.manifest,
                input=input_column(manifest, block["modality"]),
                id=config.id,
                store=store.path,
                encoder=block["encoder"],
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


def _without_content(inputs: Inputs, failures: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the samples that are left out although nothing failed: those with an empty cell."""
    listed = {failure["id"] for failure in failures}
    return [
        {"id": name, "source": "", "kind": "missing", "message": f"{name}: no prediction; {reason}"}
        for reason, names in inputs.dropped.items()
        for name in names
        if name not in listed
    ]


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


def _thresholds(bundle: Bundle) -> Sequence[float] | float:
    """Return a bundle's thresholds, one per label; a task without labels has none, and needs none."""
    values: Sequence[float] = bundle.extra["thresholds"]
    return values or 0.5
