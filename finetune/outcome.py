"""The end of a run: its best step judged, its encoder handed back, its record written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import nn

from data.digest import digest_json, key_hex
from data.progress import Progress
from featurestore.store import FeatureStore
from finetune.build import Built
from finetune.checkpoint import Progressed
from finetune.config import FinetuneConfig
from finetune.evaluation import Measured, is_lower_better, measure
from finetune.hand import hand_back, towers_of
from finetune.history import History
from finetune.outputs import Objective
from finetune.page import write_page
from finetune.record import FinetuneRecord
from finetune.runner import Runner
from finetune.samples import Samples
from heads.evaluation.bootstrap import format_number
from heads.evaluation.judging import Judged, predictions
from heads.evaluation.seal import Openings, open_test
from heads.evaluation.thresholds import Threshold, choose_thresholds
from heads.loading import counts
from heads.run import TRAINED, truth_columns, write_history, write_table

UNCHOSEN = 0.5
"""Where scores of val rows are cut, in metrics and predictions: thresholds are chosen on them, and would flatter."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A network at its best step, and how it got there.

    Attributes
    ----------
    samples, built, groups, runner
        What it was trained on, what it is, what was trained of it, and what computes it.
    state
        The end of training.
    train, choosing
        The rows that trained, and those that chose the step.
    history
        The values of each look.
    """

    samples: Samples
    built: Built
    groups: Sequence[Mapping[str, Any]]
    runner: Runner
    state: Progressed
    train: NDArray[np.int64]
    choosing: NDArray[np.int64]
    history: History


def finish(
    config: FinetuneConfig,
    trained: Trained,
    store: FeatureStore,
    *,
    remarks: Sequence[str],
    command: str,
    started: float,
    progress: Progress,
) -> FinetuneRecord:
    """Judge a trained network and write its run directory.

    Parameters
    ----------
    config, trained
        What was asked for, and what came of it.
    store
        Counts the openings of the test rows.
    remarks, command, progress
        Of the run.
    started
        When it began, by `time.perf_counter`.
    """
    samples, runner, state = trained.samples, trained.runner, trained.state
    data, out = samples.data, config.out
    judged = _judge(config, trained, "val", UNCHOSEN, progress)
    thresholds = _thresholds(config, trained, judged.get("val"))
    cuts = [each.value for each in thresholds.values()]
    openings = opened(config, samples, data.rows("test"), store, state.run, command)
    if openings:
        progress.note(openings.explain())
    judged |= _judge(config, trained, "test", cuts or UNCHOSEN, progress)
    metrics = {split: {**found.metrics, "losses": dict(found.losses)} for split, found in judged.items()}
    towers: list[Any] = []
    if runner.accelerator.is_main_process:
        progress.stage("handing the encoder back", 1)
        hand_back(out, trained.built)
        towers = list(towers_of(out, trained.built, trust_remote_code=config.trust_remote_code))
        progress.advance()
    record = FinetuneRecord(
        command=command,
        config=config.to_dict(),
        manifest_digest=data.manifest.digest,
        split_digest=digest_json([trained.train.tolist(), trained.choosing.tolist(), data.rows("test").tolist()]),
        inputs=tuple(broadcast_object_list([towers])[0]),
        task=samples.task.to_dict() if samples.task else None,
        counts={**_counts(samples), "trained": len(trained.train), "choosing": len(trained.choosing)},
        parameters=_parameters(trained),
        training={
            "run": state.run,
            "epochs": state.epoch,
            "steps": state.step,
            "last_step": trained.runner.last_step,
            "best_epoch": state.best_epoch,
            "best_step": state.best_step,
            "best_value": state.best_value,
            "looks": trained.history.looks,
            "before": trained.history.before,
            "chosen_by": config.choose,
            "chosen_on": "val" if len(data.rows("val")) else "groups held out of train",
            "processes": runner.accelerator.num_processes,
            "measures": _measures(trained.built),
        },
        history=trained.history.columns,
        metrics=metrics,
        thresholds={name: each.to_dict() for name, each in thresholds.items()},
        prompts=asdict(samples.prompts) if samples.prompts else {},
        leakage=data.leakage.to_dict(),
        warnings=tuple(
            dict.fromkeys([*remarks, *_left_out(data.dropped), *_remarks(metrics), *_of_training(config, trained)])
        ),
        seed=config.seed,
        openings=openings.to_dict() if openings else {},
        timings={"total_seconds": time.perf_counter() - started},
    )
    if runner.accelerator.is_main_process:
        _write_tables(config, trained, judged, cuts)
        write_history(out, record.history)
        write_page(out, record)
        record.write(out)
    return record


def _write_tables(
    config: FinetuneConfig, trained: Trained, judged: Mapping[str, Measured], cuts: Sequence[float]
) -> None:
    samples, data = trained.samples, trained.samples.data
    rows = data.instances.of(trained.train)
    y = np.repeat(data.y[trained.train], rows.lengths, axis=0)
    truth = truth_columns(samples.task, y) if samples.task else {}
    keys = [key_hex(key) for key in rows.keys]
    write_table(config.out / TRAINED, {"id": list(rows.manifest.ids), "key": keys, **truth})
    table: dict[str, list[str]] = {}
    for split, each in judged.items():
        if each.scores is not None:
            at = UNCHOSEN if split == "val" else cuts or UNCHOSEN
            for name, values in predictions(data, [Judged(split, data.rows(split), each.scores)], at).items():
                table.setdefault(name, []).extend(values)
    if table:
        write_table(config.out / "predictions.csv", table)
    if samples.texts is not None and judged:
        write_table(config.out / "texts.csv", texts_table(samples, judged))


def _thresholds(config: FinetuneConfig, trained: Trained, val: Measured | None) -> dict[str, Threshold]:
    """Return the thresholds of a task, chosen on the rows that chose the epoch: val rows, where there are any."""
    task = trained.samples.task
    if task is None:
        return {}
    found = val or measure(trained.runner, trained.samples, trained.choosing)
    if found.scores is None:
        return {}
    return choose_thresholds(task, trained.samples.data.y[trained.choosing], found.scores, rule=config.threshold)


def texts_table(samples: Samples, judged: Mapping[str, Measured]) -> dict[str, list[str]]:
    """Return a row per judged pair: its text, the nearest text of the split, and what a decoder wrote."""
    table: dict[str, list[str]] = {}
    assert samples.texts is not None  # asked of samples with texts
    for split, found in judged.items():
        rows = samples.data.rows(split)
        own = [samples.texts[row] for row in rows]
        columns = {"id": [samples.data.manifest.ids[row] for row in rows], "split": [split] * len(rows), "text": own}
        if found.arrays:
            cosine = _unit(found.arrays["vectors"]) @ _unit(found.arrays["texts"]).T
            columns["nearest"] = [own[i] for i in cosine.argmax(axis=1)]
            columns["cosine"] = [f"{value:.4f}" for value in cosine.diagonal()]
        if found.written:
            columns["written"] = list(found.written)
        for name, values in columns.items():
            table.setdefault(name, []).extend(values)
    return table


def _unit(rows: NDArray[Any]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return unit


def _judge(
    config: FinetuneConfig, trained: Trained, split: str, thresholds: Sequence[float] | float, progress: Progress
) -> dict[str, Measured]:
    """Judge the rows of a split, under its name; nothing where it has none."""
    rows = trained.samples.data.rows(split)
    if not len(rows):
        return {}
    found = measure(
        trained.runner,
        trained.samples,
        rows,
        thresholds=thresholds,
        n_boot=config.bootstrap,
        min_positives=config.min_positives,
        seed=config.seed,
        write=progress,
    )
    return {split: found}


def opened(
    config: FinetuneConfig, samples: Samples, rows: NDArray[np.int64], store: FeatureStore, run: str, command: str
) -> Openings | None:
    """Note that a run is about to score test rows; None where there are none."""
    if not len(rows):
        return None
    instances = samples.data.instances
    keys = instances.keys[instances.at(rows)]
    return open_test(store, keys, config.target or (config.text or "",), run, command=command)


def _counts(samples: Samples) -> dict[str, Any]:
    if samples.task is not None:
        return counts(samples.data)
    data = samples.data
    splits = {
        name: {"samples": len(rows), "groups": len(np.unique(data.groups[rows]))}
        for name in ("train", "val", "test")
        if len(rows := data.rows(name))
    }
    dropped = {reason: {"count": len(ids), "ids": list(ids)} for reason, ids in data.dropped.items()}
    return {"samples": len(data.y), "groups": len(np.unique(data.groups)), "splits": splits, "dropped": dropped}


def _parameters(trained: Trained) -> dict[str, dict[str, int]]:
    """Return how many parameters each part has, and how many of them were ever trained."""
    moved = {id(parameter) for group in trained.groups for parameter in group["params"]}
    model = trained.built.model
    parts: dict[str, nn.Module | None] = {
        "encoder": model.tower.network,
        "pooling": model.tower.pooling,
        "projection": model.tower.projection,
        "text encoder": model.text_tower.network if model.text_tower else None,
        "text pooling": model.text_tower.pooling if model.text_tower else None,
        "text projection": model.text_tower.projection if model.text_tower else None,
        "aggregator": model.aggregator,
        **dict(model.objectives.items()),
    }
    found = {}
    for name, part in parts.items():
        if part is not None and (parameters := list(part.parameters())):
            found[name] = {
                "all": sum(each.numel() for each in parameters),
                "trained": sum(each.numel() for each in parameters if id(each) in moved),
            }
    return found


def _measures(built: Built) -> dict[str, float]:
    """Return what objectives have learned that can be told in a number, such as a temperature."""
    found: dict[str, float] = {}
    for name, objective in built.model.objectives.items():
        assert isinstance(objective, Objective)
        found |= {f"{name}/{key}": value for key, value in objective.measures().items()}
    return found


def _left_out(dropped: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a warning that counts what was left out by reason, where anything was."""
    reasons = "; ".join(f"{reason}: {len(ids):,}" for reason, ids in dropped.items())
    return [f"{sum(map(len, dropped.values())):,} samples were left out ({reasons})"] if reasons else []


def _remarks(metrics: dict[str, dict[str, Any]]) -> list[str]:
    remarks = []
    if "val" in metrics:
        remarks.append("val rows chose the epoch, so their numbers flatter; test rows took no part in the choice")
    if not metrics:
        remarks.append("there are no val or test rows, so nothing was judged; name the split with --split")
    return remarks


def _of_training(config: FinetuneConfig, trained: Trained) -> list[str]:
    """Return warnings of a best epoch that came before an encoder was unfrozen, or that is worse than none."""
    best = trained.state.best_epoch or 0
    frozen = [f"{each.option} {each}" for each in trained.built.policies.values() if (each.first_epoch or 0) > best]
    remarks = [
        f"the best epoch, {best + 1}, came before {policy} unfroze anything, so that encoder is its base; "
        f"raise --patience if training stopped there, or lower the rates"
        for policy in dict.fromkeys(frozen)
    ]
    return [*remarks, *_worse(config.choose, trained)]


def _worse(chosen: str, trained: Trained) -> list[str]:
    """Return a warning where the network was better before any training than it was at best after."""
    before = trained.history.before.get(chosen)
    # Of several processes only the first is told of looks, and writes.
    best = trained.history.at(trained.state.best_step, f"val/{chosen}")
    if before is None or best is None or (best <= before if is_lower_better(chosen) else best >= before):
        return []
    remark = (
        f"by {chosen} training made it worse: on the rows that choose it was {format_number(before)} before any "
        f"training and is {format_number(best)} at best; lower --lr or --encoder-lr, or unfreeze less"
    )
    return [remark]
