"""`predict` of a fine-tuned run: classes, numbers or captions of new samples, without any label."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from data.errors import ConfigError
from data.progress import Progress, Silent
from featurestore.store import FeatureStore
from finetune.evaluation import collecting
from finetune.record import FinetuneRecord
from finetune.restore import config_of, restore
from heads.config import PredictConfig
from heads.evaluation.scoring import answers, class_probabilities
from heads.predict import Predictions, write_predictions
from heads.run import prediction_columns

PREDICTS = ("classification", "captioning")
"""Objectives that say something of a single sample."""


def predict(config: PredictConfig, *, progress: Progress | None = None) -> Predictions:
    """Predict every sample of a manifest, a folder or a file with a fine-tuned run, and write a CSV.

    Parameters
    ----------
    config
        What to predict with what.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If the run or the samples are wrong, or the run predicts nothing of a single sample.
    """
    progress = progress or Silent()
    if config.neighbours is not None or config.retrieve:
        raise ConfigError(
            f"--neighbours and --retrieve read stored features, and {config.run} is a fine-tuned run: extract with "
            f"--encoder {config.run}/encoder and fit a head"
        )
    if config.view is not None:
        raise ConfigError(f"--view: {config.run} is a fine-tuned run, which knows no views; leave it out")
    record = FinetuneRecord.read(config.run)
    objectives = [name for name in record.config["objective"] if name in PREDICTS]
    if not objectives:
        raise ConfigError(
            f"{config.run}: {', '.join(record.config['objective'])} predicts nothing of a single sample; extract with "
            f"--encoder {config.run}/encoder, and use zero-shot or a head"
        )
    own = config_of(record, _changes(config, record, objectives), where=str(config.run))
    with tempfile.TemporaryDirectory(prefix="frostline-predict-") as folder:
        store = FeatureStore(config.store or Path(folder), create=True)
        restored = restore(record, own, store, progress, labelled=False)
    samples, task = restored.samples, restored.task
    rows = np.arange(len(samples.data.y))
    arrays = restored.runner.evaluate(rows, collecting(restored.runner, rows, progress), losses=False).arrays
    columns = {"id": list(samples.data.manifest.ids)}
    if task is not None and "scores" in arrays:
        scores = arrays["scores"].astype(np.float64)
        cuts = [each["value"] for each in record.thresholds.values()]
        columns |= prediction_columns(task, class_probabilities(scores, task), answers(scores, task, cuts or 0.5))
    if "written" in arrays:
        columns["written"] = list(arrays["written"])
    write_predictions(config.out, columns)
    said = restored.failed
    failures = [
        {"id": name, "source": "", "kind": reason, "message": f"{name}: no prediction; {said.get(name, reason)}"}
        for reason, names in samples.data.dropped.items()
        for name in names
    ]
    return Predictions(rows=len(rows), out=str(config.out), failures=tuple(failures), masked={})


def _changes(config: PredictConfig, record: FinetuneRecord, objectives: list[str]) -> dict[str, object]:
    """Return the options of a run that a prediction replaces."""
    own = record.config
    return {
        "manifest": config.manifest,
        "input": config.input or (own.get("input") if config.manifest.is_file() else None),
        "id": config.id,
        "bag": config.bag or own.get("bag"),
        "split": None,
        "group": None,
        "text": None,
        "objective": objectives,
        "weight": {name: value for name, value in own["weight"].items() if name in objectives},
        "set": {name: value for name, value in own["set"].items() if name.partition(".")[0] in objectives},
        "device": config.device,
        "workers": config.workers,
        "batch_size": own["batch_size"] if config.batch_size == "auto" else config.batch_size,
        "out": config.run,
    }
