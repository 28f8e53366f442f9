"""`evaluate` of a fine-tuned run: its encoder and objectives, loaded from disk, judged on other rows."""

from __future__ import annotations

import numpy as np

from data.errors import ConfigError, LeakageError, SplitError
from data.progress import Progress, Silent
from featurestore.store import FeatureStore
from finetune.evaluation import measure
from finetune.outcome import UNCHOSEN, opened
from finetune.record import FinetuneRecord
from finetune.restore import config_of, restore
from finetune.samples import Samples, store_of
from heads.config import EvaluateConfig
from heads.evaluate import Evaluation
from heads.run import read_trained


def evaluate(config: EvaluateConfig, *, command: str = "", progress: Progress | None = None) -> Evaluation:
    """Judge a fine-tuned run on the samples of a manifest.

    Parameters
    ----------
    config
        Which run on which samples.
    command
        The command line, for the list of who scored these rows.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If the run, the manifest or the split is wrong.
    LeakageError
        If rows were trained on and that was not allowed.
    """
    progress = progress or Silent()
    if config.view is not None:
        raise ConfigError(f"--view: {config.run} is a fine-tuned run, which knows no views; leave it out")
    record = FinetuneRecord.read(config.run)
    column = (config.split_column or record.config.get("split")) if config.split else None
    if config.split and column is None:
        raise SplitError(
            f"--split {config.split}: {config.run} was trained without a split column; name one with --split-column"
        )
    given = {name: getattr(config, name) for name in ("input", "id", "group", "bag", "store")}
    changes = {name: value for name, value in given.items() if value is not None}
    own = config_of(
        record, {**changes, "manifest": config.manifest, "split": column, "out": config.run}, where=str(config.run)
    )
    store = FeatureStore(store_of(own), create=True)
    restored = restore(record, own, store, progress)
    samples = restored.samples
    rows = samples.data.rows(config.split) if config.split else samples.data.rows("train")
    if not len(rows):
        raise SplitError(f"{config.manifest}: column {own.split!r} has no usable row of split {config.split!r}")
    warnings = [*restored.remarks, *_trained_on(config, samples, rows.tolist())]
    openings = None
    if config.split not in ("train", "val"):
        openings = opened(own, samples, rows, store, record.training["run"], command)
    if openings:
        progress.note(openings.explain())
    chosen_here = config.split == "val" and record.training["chosen_on"] == "val"
    cuts = [] if chosen_here else [each["value"] for each in record.thresholds.values()]
    found = measure(
        restored.runner,
        samples,
        rows,
        thresholds=cuts or UNCHOSEN,
        n_boot=config.bootstrap,
        min_positives=own.min_positives,
        seed=config.seed,
        write=progress,
    )
    return Evaluation(
        run=str(config.run),
        split=config.split or "all",
        metrics={**found.metrics, "losses": dict(found.losses)},
        openings=openings.to_dict() if openings else {},
        warnings=tuple(warnings),
    )


def _trained_on(config: EvaluateConfig, samples: Samples, rows: list[int]) -> list[str]:
    """Refuse rows whose content was trained on, or return the refusal as a warning.

    Raises
    ------
    LeakageError
        If there are such rows and that was not allowed.
    """
    trained = read_trained(config.run)
    contents = samples.contents(np.array(rows))
    shared = [i for i, keys in zip(rows, contents, strict=True) if not trained.isdisjoint(keys)]
    if not shared:
        return []
    examples = ", ".join(samples.data.manifest.ids[i] for i in shared[:3])
    message = (
        f"{len(shared)} of the {len(rows)} rows to evaluate are rows that {config.run} was trained on (e.g. "
        f"{examples}); such scores say nothing about new data: evaluate other rows, or accept that with "
        f"--allow-leakage"
    )
    if not config.allow_leakage:
        raise LeakageError(f"{config.manifest}: {message}")
    return [message]
