"""`tune`: search heads, their parameters and their features, and judge what was found on rows the search never saw.

::

    rows set aside | training rows -> inner folds -> study -> best configuration
                   |               -> refit on all training rows, beside the defaults -> judged once

The study lives in a journal (or database) from its first trial on: a killed command goes on where it
was, and several processes may share the work. Everything else in RUN is written at the end::

    RUN/
      tune.yaml        the options; marks the directory as that of a study
      study.journal    the study, unless --storage keeps it elsewhere
      best.yaml        the best configuration; `fit-head --config` takes it
      best/            its run directory, judged on the rows that were set aside
      trials.csv       one row per trial
      plots/           optimisation history, importance of parameters
      report.html
      record.json      written last
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.digest import digest_json
from data.errors import ConfigError, did_you_mean
from data.progress import Progress, Silent
from featurestore.store import FeatureStore
from heads.augmented import plain_encoders
from heads.bag_views import refuse_bag_views
from heads.catalog import head_class
from heads.config import FitConfig, PromptOptions, TuneConfig
from heads.errors import HeadError, RunError
from heads.evaluation.metrics import HEADLINE, estimates, evaluate
from heads.fit import fit_labelled
from heads.labelled import Labelled
from heads.loading import few_per_label, gate, load, refuse_mixed
from heads.record import FILE
from heads.run import resolved_yaml, write_table
from heads.tuning.page import page
from heads.tuning.record import TuneRecord
from heads.tuning.rows import inner_folds, set_aside
from heads.tuning.search import FINISHED, MEMBERS, Plan, best_trial, candidate_of, search
from heads.tuning.space import DEFAULT, GRID, Candidate, Space, View, read_space
from heads.tuning.storage import open_study
from heads.tuning.trials import draw_history, draw_importances, importances, state_of, table_of
from heads.tuning.verdict import estimate_of, judge_defaults
from heads.tuning.views import Views, stored_poolings

MARK, JOURNAL = "tune.yaml", "study.journal"


@dataclass(frozen=True, kw_only=True, eq=False)
class Question:
    """What is searched, on which rows, and how.

    Attributes
    ----------
    data
        The samples, with the features of the defaults; their split says what is set aside.
    judged
        The split of the final judgement.
    plan
        The search.
    grid
        Every point, where all are tried.
    remarks
        What is known of the data already.
    """

    data: Labelled
    judged: str
    plan: Plan
    grid: list[dict[str, Any]] | None
    remarks: tuple[str, ...]


def tune(config: TuneConfig, *, command: str = "", progress: Progress | None = None) -> TuneRecord:
    """Run a study, or go on with one, and write its directory.

    Parameters
    ----------
    config
        What to search.
    command
        The command line, for the record.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If an option, the manifest, the features, the study or the run directory are wrong, or no trial succeeds.
    """
    progress = progress or Silent()
    started = time.perf_counter()
    _refuse_foreign(config)
    question = ask(config, progress)
    _begin(config)
    with open_study(
        config.storage or str(config.out / JOURNAL),
        config.study,
        direction="maximize" if question.plan.sign > 0 else "minimize",
        identity=_identity(config, question),
        planned=list(question.plan.space.defaults()) if question.grid is None else question.grid,
        mark=DEFAULT if question.grid is None else GRID,
    ) as study:
        search(study, question.plan, progress)
        searched = time.perf_counter() - started
        trials = study.get_trials(deepcopy=False)
    aside = config.out / f".results-{os.getpid()}"
    try:
        aside.mkdir()
        record = _conclude(config, question, trials, aside, command=command, progress=progress)
        timings = {"total_seconds": time.perf_counter() - started, "search_seconds": searched}
        record = record.model_copy(update={"timings": timings})
        record.write(aside)
        _publish(aside, config.out)
    except OSError as error:
        raise RunError(f"--out {config.out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return record


def ask(config: TuneConfig, progress: Progress) -> Question:
    """Read and check everything that a study needs; no encoder of features is loaded."""
    store = FeatureStore(config.store)
    given = config.pooling is not None
    poolings = (
        (config.pooling,)
        if given
        else stored_poolings(store, (*config.encoder, *plain_encoders(config.encoder)), config.precision)
    )
    normalizations = ("none", "l2") if config.normalize == "search" else (config.normalize,)
    everything = View(config.encoder, poolings[0], normalizations[0])
    data = load(fit_config(config, Candidate(config.head[0], {}, everything)), progress)
    refuse_mixed("tune", data.task)
    space = read_space(
        config.head,
        data.task.kind,
        encoders=config.encoder,
        poolings=poolings,
        normalizations=normalizations,
        settings=config.set,
        file=config.space,
    )
    for head in config.head:
        refuse_bag_views(config, head)
        if head_class(head, data.task.kind).needs_prompts and config.prompt_encoder is None:
            raise HeadError(f"--head {head} needs the prompts of the classes; add --prompt-encoder")
    remarks = [*data.manifest.remarks, *gate(data, allow=config.allow_leakage)]
    if config.split is None and "split" in data.manifest.columns:
        remarks.append("the column 'split' is not used; to be judged by its test rows, add --split split")
    data, judged, set_apart = set_aside(data, config.holdout, config.seed)
    data = few_per_label(config, data)
    grid = _grid(config, space)
    plan = Plan(
        space=space,
        views=Views(data, store, config.precision),
        folds=inner_folds(data, config.folds, config.seed),
        metric=_metric(config, data),
        trials=config.trials,
        deadline=math.inf if config.timeout is None else time.monotonic() + config.timeout,
        batch=config.batch,
        sampler="grid" if grid is not None else "random" if config.sampler == "random" else "tpe",
        prune=config.pruner == "halving" and grid is None,
        seed=config.seed,
        min_positives=config.min_positives,
    )
    return Question(data=data, judged=judged, plan=plan, grid=grid, remarks=(*remarks, *set_apart))


def fit_config(config: TuneConfig, candidate: Candidate) -> FitConfig:
    """Return the options of `fit-head` for one configuration of a study."""
    own = {"head", "set", "normalize", "encoder", "pooling", "out"}
    shared = {
        name: getattr(config, name) for name in FitConfig.model_fields if name in TuneConfig.model_fields.keys() - own
    }
    values = {
        **shared,
        "head": candidate.head,
        "set": dict(candidate.params),
        "encoder": candidate.view.encoders,
        "pooling": candidate.view.pooling,
        "normalize": candidate.view.normalize,
        "out": config.out / "best",
    }
    return FitConfig.build(values, where="the best configuration")


def _grid(config: TuneConfig, space: Space) -> list[dict[str, Any]] | None:
    """Return the points of an exhaustive search; None if trials are sampled."""
    if config.sampler not in ("auto", "grid"):
        return None
    points = space.grid()
    if points is not None and len(points) <= config.trials:
        return points
    if config.sampler == "grid":
        if points is None:
            raise ConfigError(
                "--sampler grid: some parameters have ranges, or there are too many points; list values in --space"
            )
        raise ConfigError(f"--sampler grid: the space has {len(points)} points; raise --trials, now {config.trials}")
    return None


def _metric(config: TuneConfig, data: Labelled) -> str:
    """Return what to choose by: what the user named, if the task has it, else the task's first metric.

    Raises
    ------
    ConfigError
        If the task has no such metric.
    """
    kind = data.task.kind
    if config.metric is None:
        return HEADLINE[kind][0]
    classes = data.task.classes or data.task.targets
    truth = data.y[data.rows("train")]
    flat = np.full((len(truth), len(classes)), 1 / len(classes)) if kind == "multiclass" else np.zeros(truth.shape)
    known = estimates(evaluate(kind, truth, flat, classes=classes, n_boot=0))
    if config.metric not in known:
        raise ConfigError(
            f"--metric {config.metric}: a {kind} task has no such metric; {did_you_mean(config.metric, known)}"
        )
    return config.metric


def _identity(config: TuneConfig, question: Question) -> dict[str, str]:
    """Return what a study is about: values found under one identity may stand beside each other."""
    data, plan = question.data, question.plan
    about: Mapping[str, Any] = {
        "samples": [data.manifest.digest, data.task.to_dict()],
        "features": data.fingerprints,
        "prompts": {name: str(getattr(config, name)) for name in PromptOptions.model_fields},
        "folds": [fold.score.tolist() for fold in plan.folds],
        "space": plan.space.to_dict(),
        "metric": plan.metric,
        "seed": plan.seed,
        "sampler": "grid" if question.grid is not None else "sampled",
    }
    return {name: digest_json(value) for name, value in about.items()}


def _conclude(
    config: TuneConfig, question: Question, trials: Sequence[Any], folder: Path, *, command: str, progress: Progress
) -> TuneRecord:
    """Refit the best configuration, judge it beside the defaults, and write all about it."""
    plan, space, data = question.plan, question.plan.space, question.data
    running = sum(not trial.state.is_finished() for trial in trials)
    finished = [trial for trial in trials if trial.state in FINISHED]
    chosen = best_trial(finished, plan.sign)
    best = candidate_of(chosen, space)
    best_config, best_data = fit_config(config, best), plan.views.of(best.view)
    (folder / "best").mkdir()
    run, fitted = fit_labelled(
        best_config, best_data, folder / "best", remarks=question.remarks, command=command, progress=progress
    )
    judged = next(part for part in fitted.judged if part.split == question.judged)
    progress.stage("judging the defaults", 1)
    defaults = [space.default(head) for head in space.heads]
    compared = judge_defaults(
        config,
        defaults,
        plan.views.of(defaults[0].view),
        best=best,
        judged=judged,
        rows=fitted.rows if question.judged == "test" else data.rows("train"),
        metric=plan.metric,
        sign=plan.sign,
    )
    inner = {candidate_of(trial, space).key: trial.value for trial in finished if state_of(trial) == "complete"}
    for default in defaults:
        compared[default.head]["value"] = inner.get(default.key)
    remarks = [*run.warnings]
    if question.grid is None and running:
        remarks.append(f"{running} trials of other processes were not finished and are not counted; run again for all")
    found = importances(finished, config.seed)
    states = [state_of(trial) for trial in finished]
    failed = [trial for trial in finished if state_of(trial) == "failed"]
    record = TuneRecord(
        command=command,
        config=config.to_dict(),
        manifest_digest=data.manifest.digest,
        split_digest=digest_json([[fold.score.tolist() for fold in plan.folds], judged.rows.tolist()]),
        inputs=run.inputs,
        task=data.task.to_dict(),
        counts=run.counts,
        study={
            "name": config.study,
            "metric": plan.metric,
            "direction": "maximize" if plan.sign > 0 else "minimize",
            "sampler": plan.sampler,
            "pruner": "halving" if plan.prune else "none",
            "folds": len(plan.folds),
            "averaging": [each.head for each in defaults if _averages(each, data)],
            "members": MEMBERS,
            "trials": len(finished),
            **{state: states.count(state) for state in ("complete", "pruned", "failed")},
            "failures": [
                {"trial": trial.number, "head": trial.params["head"], "reason": trial.user_attrs["reason"]}
                for trial in failed
            ],
            "importance": found,
        },
        space=space.to_dict(),
        best={
            "trial": chosen.number,
            "head": best.head,
            "params": best_config.to_dict()["set"],
            "encoders": list(best.view.encoders),
            "pooling": best.view.pooling,
            "normalize": best.view.normalize,
            "value": chosen.value,
            "scores": chosen.user_attrs["scores"],
            "default": any(default.key == best.key for default in defaults),
            "estimate": estimate_of(config, best_data, judged.rows, judged.scores, plan.metric),
        },
        judged=question.judged,
        metrics=run.metrics,
        defaults=compared,
        warnings=tuple(remarks),
        seed=config.seed,
    )
    table = table_of(finished)
    write_table(folder / "trials.csv", table)
    (folder / "best.yaml").write_text(resolved_yaml(best_config, without=("out", "overwrite")), encoding="utf-8")
    (folder / "plots").mkdir()
    draw_history(folder / "plots" / "history.png", finished, metric=plan.metric, sign=plan.sign)
    if found:
        draw_importances(folder / "plots" / "importance.png", found)
    (folder / "report.html").write_text(page(record, table, folder / "plots"), encoding="utf-8")
    progress.advance()
    return record


def _averages(candidate: Candidate, data: Labelled) -> bool:
    """Return whether a head averages several members, but not in its trials."""
    made = head_class(candidate.head, data.task.kind)
    return "members" in made._get_param_names() and "members" not in candidate.params


def _refuse_foreign(config: TuneConfig) -> None:
    """Refuse a directory that is not that of a study, unless it is a run that may be replaced."""
    out = config.out
    if not out.exists() or (out / MARK).is_file():
        return
    if not config.overwrite:
        raise RunError(f"--out {out}: exists already and is no study; choose another directory, or add --overwrite")
    if not (out / FILE).is_file():
        raise RunError(f"--out {out}: is not a run directory (no {FILE}), so it is not replaced")


def _begin(config: TuneConfig) -> None:
    """Make the study's directory, or go on with it; with --overwrite begin anew."""
    try:
        if config.overwrite and config.out.exists():
            shutil.rmtree(config.out)
        config.out.mkdir(parents=True, exist_ok=True)
        (config.out / MARK).write_text(resolved_yaml(config), encoding="utf-8")
    except OSError as error:
        raise RunError(f"--out {config.out}: cannot be written: {error.strerror}") from error


def _publish(source: Path, out: Path) -> None:
    """Move results into the study's directory, in place of earlier ones; the record goes first and comes last."""
    (out / FILE).unlink(missing_ok=True)
    for path in sorted(source.iterdir(), key=lambda path: path.name == FILE):
        target = out / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
