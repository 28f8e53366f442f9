"""`fit-head`: one head on stored embeddings, judged on data it has not seen.

::

    labelled data -> leakage gate -> folds -> out-of-fold scores -> calibration, thresholds, prediction sets
                  -> refit on all training rows -> val, test -> run directory

Everything that is chosen (thresholds, stopping epochs, penalties) is chosen on training rows; the
reported rows are only ever predicted.
"""

from __future__ import annotations

import re
import time
import warnings as python_warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import digest_json, key_hex
from data.errors import SplitError
from data.mixed import stratum_names
from data.progress import Progress, Silent
from data.split import make_folds
from data.task import Task
from featurestore.store import FeatureStore
from heads.artifact import save_bundle
from heads.augmented import fit_on, views_remark
from heads.base import Head, HeadWarning
from heads.catalog import make_head, with_contents
from heads.config import FitConfig, TaskConfig
from heads.errors import HeadError
from heads.evaluation.conformal import Conformal
from heads.evaluation.decisions import Decisions, decide
from heads.evaluation.judging import Judged, judge, judge_calibration, judge_sets, predictions
from heads.evaluation.recalibration import Recalibration
from heads.evaluation.scoring import Scores, scores_of
from heads.evaluation.seal import Openings, open_test, run_digest
from heads.inputs import Missing, Normalize
from heads.labelled import Labelled
from heads.loading import counts, few_per_label, few_remarks, gate, load, masked_remark, pooling_remark, unused_split
from heads.many import Job
from heads.pages.report import write_plots, write_report
from heads.record import RunRecord
from heads.run import TRAINED, new_run, truth_columns, write_config, write_history, write_table
from heads.size import n_parameters

__all__ = [
    "Fitted",
    "Judged",
    "counts",
    "fit",
    "fit_and_predict",
    "fit_labelled",
    "gate",
    "head_remarks",
    "judge",
    "load",
    "open_test_rows",
    "out_of_fold",
    "predictions",
    "write_judged",
    "write_run",
]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A final head, and what was predicted on the way to it.

    Attributes
    ----------
    head
        The head that is kept; test rows are judged by it.
    rows
        The rows it was fitted on.
    judged
        Out-of-fold, val and test predictions.
    seconds
        Wall time of all fits: folds and final.
    remarks
        What folds and heads had to say.
    """

    head: Head
    rows: NDArray[np.int64]
    judged: tuple[Judged, ...]
    seconds: float
    remarks: tuple[str, ...]


def fit(config: FitConfig, *, command: str = "", progress: Progress | None = None) -> RunRecord:
    """Fit a head and write its run directory.

    Parameters
    ----------
    config
        What to fit.
    command
        The command line, for the record.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If the manifest, the features, the splits, the head or the run directory are wrong.
    """
    progress = progress or Silent()
    config = config.model_copy(update={"set": with_contents(config.head, config.set)})
    with new_run(config.out, overwrite=config.overwrite) as folder:
        data = load(config, progress)
        remarks = [*data.manifest.remarks, *unused_split(config, data), *gate(data, allow=config.allow_leakage)]
        data = few_per_label(config, data)
        record, _ = fit_labelled(config, data, folder, remarks=remarks, command=command, progress=progress)
    return record


def fit_labelled(
    config: FitConfig, data: Labelled, folder: Path, *, remarks: Sequence[str], command: str, progress: Progress
) -> tuple[RunRecord, Fitted]:
    """Fit a head on data that is loaded and audited, and write its run into a folder.

    Parameters
    ----------
    config, data
        What to fit, and what on.
    folder
        Where to write.
    remarks
        What is known of the data already; it goes into the record.
    command, progress
        See `fit`.
    """
    started = time.perf_counter()
    openings = None if config.sealed else open_test_rows(config, data, command)
    if openings:
        progress.note(openings.explain())
    fitted = fit_and_predict(config, data, progress)
    decisions, judged = decide(config, data, fitted.judged)
    fitted = replace(fitted, judged=tuple(judged))
    record = write_judged(
        config,
        data,
        fitted,
        decisions,
        folder,
        normalize=config.normalize,
        missing=config.missing,
        remarks=[
            *remarks,
            *views_remark(data),
            *masked_remark(data),
            *few_remarks(config, data),
            *_sealed(config, data),
        ],
        openings=openings,
        command=command,
        started=started,
        progress=progress,
    )
    return record, fitted


def write_judged(
    config: TaskConfig,
    data: Labelled,
    fitted: Fitted,
    decisions: Decisions,
    folder: Path,
    *,
    normalize: Normalize,
    missing: Missing = "drop",
    remarks: Sequence[str],
    openings: Openings | None,
    command: str,
    started: float,
    progress: Progress,
) -> RunRecord:
    """Judge what a head predicted, and write its run into a folder.

    Parameters
    ----------
    config, data, fitted
        What was asked for, on what, and what came of it.
    decisions
        What turned its scores into answers.
    folder
        Where to write.
    normalize
        How the features were scaled.
    missing
        What became of samples that lack some of their embeddings.
    openings
        How often the test rows have been opened; None if they were not.
    remarks, command, progress
        See `fit_labelled`.
    started
        When the work began, by `time.perf_counter`.
    """
    record = RunRecord(
        command=command,
        config=config.to_dict(),
        manifest_digest=data.manifest.digest,
        split_digest=digest_json([part.rows.tolist() for part in fitted.judged] + [_folds(fitted)]),
        inputs=tuple(asdict(block) for block in data.blocks),
        head={
            "name": fitted.head.name,
            "version": fitted.head.version,
            "params": fitted.head.get_params(),
            "chosen": getattr(fitted.head, "best_params_", {}),
            "n_parameters": n_parameters(fitted.head),
        },
        task=data.task.to_dict(),
        counts=counts(data),
        metrics=judge(config, data, fitted.judged, decisions.cuts, progress),
        thresholds={name: threshold.to_dict() for name, threshold in decisions.thresholds.items()},
        calibration=_described(decisions.recalibration, judge_calibration, config, data, fitted),
        conformal=_described(decisions.conformal, judge_sets, config, data, fitted),
        leakage=data.leakage.to_dict(),
        prompts=data.prompts.to_dict() if data.prompts else {},
        warnings=tuple(
            dict.fromkeys([*remarks, *pooling_remark(data, fitted.head), *fitted.remarks, *decisions.remarks])
        ),
        seed=config.seed,
        openings=openings.to_dict() if openings else {},
        timings={"total_seconds": time.perf_counter() - started, "fit_seconds": fitted.seconds},
    )
    write_run(folder, config, data, fitted, decisions, record, progress, normalize=normalize, missing=missing)
    return record


def fit_and_predict(config: FitConfig, data: Labelled, progress: Progress) -> Fitted:
    """Cross-validate on the training rows, judge val rows by a head of these, and test rows by the final head."""
    train, val, test = data.rows("train"), data.rows("val"), data.rows("test")
    folds = make_folds(
        data.y[train], data.task.kind, data.groups[train], config.folds, config.seed, classes=stratum_names(data.task)
    )
    _refuse_one_class(data, train, folds.assignment)
    final = np.sort(np.concatenate([train, val])) if config.refit == "train+val" else train
    # What each head is fitted on; with val rows in the final fit, one more head judges these.
    fitted_on = [train[folds.assignment != k] for k in range(config.folds)] + [train] * (len(final) > len(train))
    progress.stage(f"fitting {config.head}", len(fitted_on) + 1)
    heads: list[Head] = []
    remarks = list(folds.warnings)
    with head_remarks(remarks, data.task):
        jobs = [
            Job(make_head(config.head, data.task.kind, config.set, config.seed), rows) for rows in [*fitted_on, final]
        ]
        started = time.perf_counter()
        for head in fit_on(data, jobs):
            if isinstance(head, HeadError):
                raise head
            heads.append(head)
            progress.advance()
        seconds = time.perf_counter() - started
    judged = [Judged("cv", train, out_of_fold(heads[: config.folds], data, train, folds.assignment), folds.assignment)]
    if len(val):
        judged.append(Judged("val", val, scores_of(heads[config.folds], data.X[val], data.task)))
    if len(test) and not config.sealed:
        judged.append(Judged("test", test, scores_of(heads[-1], data.X[test], data.task)))
    return Fitted(head=heads[-1], rows=final, judged=tuple(judged), seconds=seconds, remarks=tuple(remarks))


def out_of_fold(heads: Sequence[Head], data: Labelled, train: NDArray[np.int64], folds: NDArray[np.int64]) -> Scores:
    """Return scores of the training rows: each is predicted by the head that saw neither it nor its group."""
    parts = [scores_of(head, data.X[train[folds == k]], data.task) for k, head in enumerate(heads)]
    oof = np.full((len(train), *parts[0].shape[1:]), np.nan)
    for k, part in enumerate(parts):
        oof[folds == k] = part
    return oof


def write_run(
    folder: Path,
    config: TaskConfig,
    data: Labelled,
    fitted: Fitted,
    decisions: Decisions,
    record: RunRecord,
    progress: Progress,
    *,
    normalize: Normalize,
    missing: Missing = "drop",
) -> None:
    """Write everything that a run directory holds."""
    progress.stage("plots and report", 2)
    write_config(folder, config)
    write_table(folder / "predictions.csv", predictions(data, fitted.judged, decisions.cuts))
    trained = data.instances.of(fitted.rows)
    write_table(
        folder / TRAINED,
        {
            "id": list(trained.manifest.ids),
            "key": [key_hex(key) for key in trained.keys],
            **truth_columns(data.task, np.repeat(data.y[fitted.rows], trained.lengths, axis=0)),
        },
    )
    if hasattr(fitted.head, "history_"):
        write_history(folder, fitted.head.history_)
    save_bundle(
        folder / "head",
        fitted.head,
        task=data.task.to_dict(),
        inputs=[asdict(block) for block in data.blocks],
        extra={
            **decisions.to_extra(),
            "normalize": normalize,
            "missing": missing,
            "prompts": record.prompts,
            "bag": data.manifest.roles.get("bag"),
            "view": data.instances.view,
        },
    )
    record.write(folder)
    write_plots(folder)
    progress.advance()
    write_report([folder], folder / "report.html")
    progress.advance()


def _refuse_one_class(data: Labelled, train: NDArray[np.int64], folds: NDArray[np.int64]) -> None:
    """Refuse folds that leave a head one class to learn from, before any head is fitted.

    Raises
    ------
    SplitError
        If all rows outside a fold are of one class.
    """
    if data.task.kind not in ("binary", "multiclass"):
        return
    codes = data.y[train]
    for fold in np.unique(folds):
        outside = np.unique(codes[folds != fold])
        if len(outside) == 1:
            raise SplitError(
                f"{data.manifest.path}: all training rows outside fold {fold} are {data.task.classes[outside[0]]!r}: "
                f"those of every other class are in one group; cross-validation needs each class in at least 2 groups, "
                f"so check the group column, or collect more"
            )


def open_test_rows(config: TaskConfig, data: Labelled, command: str) -> Openings | None:
    """Note that the test rows are about to be scored, and count who did; None where there are none."""
    test = data.rows("test")
    if not len(test):
        return None
    run = run_digest(config.to_dict(), data.manifest.digest, [asdict(block) for block in data.blocks])
    return open_test(
        FeatureStore(config.store), data.instances.keys[data.instances.at(test)], config.target, run, command=command
    )


def _sealed(config: FitConfig, data: Labelled) -> list[str]:
    if not config.sealed:
        return []
    advice = "to judge them once all is decided: frostline evaluate RUN MANIFEST --store DIR --split test"
    return [f"the {len(data.rows('test'))} test rows are sealed: none was scored; {advice}"]


def _described(
    learned: Recalibration | Conformal | None,
    judge_splits: Callable[[TaskConfig, Labelled, Sequence[Judged]], Mapping[str, Any]],
    config: TaskConfig,
    data: Labelled,
    fitted: Fitted,
) -> dict[str, Any]:
    """Return what was learned and how it did on each split; empty if it was not asked for."""
    return {} if learned is None else {**learned.to_dict(), "splits": judge_splits(config, data, fitted.judged)}


def _folds(fitted: Fitted) -> list[int]:
    """Return the folds of the cross-validation, which is the first judged part if there is one."""
    fold = fitted.judged[0].fold
    return [] if fold is None else [int(k) for k in fold]


@contextmanager
def head_remarks(remarks: list[str], task: Task) -> Iterator[None]:
    """Collect what heads warn about, each remark once and with the target's name, instead of printing it."""
    with python_warnings.catch_warnings(record=True) as caught:
        python_warnings.simplefilter("always", HeadWarning)
        yield
    for warning in caught:
        if not issubclass(warning.category, HeadWarning):
            python_warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
            continue
        # A head knows its targets by number only.
        remark = re.sub(
            r"\btarget (\d+)\b", lambda found: f"target {task.outputs[int(found[1])]}", str(warning.message)
        )
        if remark not in remarks:
            remarks.append(remark)
