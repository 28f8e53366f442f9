"""What a fine-tuned network is worth on some rows: the same numbers in training, at its end and in `evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from data.errors import ConfigError, did_you_mean
from data.progress import Progress
from data.task import Task
from finetune.model import Model
from finetune.objectives.captioning import Captioning
from finetune.objectives.classification import Classification
from finetune.outputs import Outputs
from finetune.pairs import number_texts
from finetune.registry import list_objectives
from finetune.retrieval import evaluate_retrieval
from finetune.runner import Collect, Runner
from finetune.samples import Samples
from finetune.table import flat_estimates
from finetune.texts import text_metrics
from finetune.zero_shot import zero_shot_scores
from heads.evaluation.metrics import HEADLINE, LOWER_IS_BETTER, estimates
from heads.evaluation.per_target import evaluate_task


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Rows that were judged.

    Attributes
    ----------
    losses
        Mean of each objective, and ``loss``, their weighted sum.
    metrics
        What they are worth, with intervals where these were asked for.
    scores
        Of a task, as `heads.evaluation.scoring` defines them.
    arrays
        ``vectors`` and ``texts`` of pairs.
    written
        The captions that a decoder wrote, one per row, where it was asked to.
    """

    losses: Mapping[str, float]
    metrics: dict[str, Any]
    scores: NDArray[np.float64] | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    written: tuple[str, ...] = ()


def measure(
    runner: Runner,
    samples: Samples,
    rows: NDArray[np.int64],
    *,
    thresholds: Sequence[float] | float = 0.5,
    n_boot: int = 0,
    min_positives: int = 1,
    seed: int = 0,
    write: Progress | None = None,
) -> Measured:
    """Judge some rows.

    Parameters
    ----------
    runner
        Computes.
    samples, rows
        What is judged.
    thresholds
        Where scores are cut into answers.
    n_boot
        Resamples of groups behind each interval; 0 for none.
    min_positives, seed
        As of `heads.evaluation.metrics.evaluate`.
    write
        Told how far it is where a decoder writes a caption for each row, which takes a pass per token; None: it does
        not.
    """
    passed = runner.evaluate(rows, collecting(runner, rows, write))
    metrics: dict[str, Any] = {}
    scores = None
    groups = samples.data.groups[rows]
    if samples.task is not None and "scores" in passed.arrays:
        scores = passed.arrays["scores"].astype(np.float64)
        metrics |= evaluate_task(
            samples.task,
            samples.data.y[rows],
            scores,
            groups=groups,
            thresholds=thresholds,
            n_boot=n_boot,
            seed=seed,
            min_positives=min_positives,
        )
    pairs = {name: passed.arrays[name] for name in ("vectors", "texts") if name in passed.arrays}
    if len(pairs) == 2:
        assert samples.texts is not None  # there is a tower that read them
        metrics["retrieval"] = evaluate_retrieval(
            pairs["vectors"],
            pairs["texts"],
            text_ids=number_texts([samples.texts[row] for row in rows]).numpy(),
            input_ids=samples.contents(rows),
            groups=groups,
            n_boot=n_boot,
            seed=seed,
        )
    if len(pairs) == 2 and samples.prompts is not None:
        assert samples.task is not None  # its classes have prompts
        y = samples.data.y[rows]
        said = zero_shot_scores(runner, samples.task, samples.prompts, pairs["vectors"], y)
        metrics["zero_shot"] = estimates(
            evaluate_task(
                samples.task,
                y,
                said,
                groups=groups,
                thresholds=0.5,
                n_boot=n_boot,
                seed=seed,
                min_positives=min_positives,
            )
        )
    written: tuple[str, ...] = ()
    if "written" in passed.arrays:
        written = tuple(passed.arrays["written"])
        metrics["captions"] = text_metrics(written, _references(samples, rows), groups=groups, n_boot=n_boot, seed=seed)
    return Measured(losses=passed.losses, metrics=metrics, scores=scores, arrays=pairs, written=written)


def _references(samples: Samples, rows: NDArray[np.int64]) -> list[list[str]]:
    """Return the captions of each row: its own, and those of other rows with the same input."""
    assert samples.texts is not None  # there is a decoder that learned from them
    keys = samples.contents(rows)
    known: dict[tuple[bytes, ...], list[str]] = {}
    for key, row in zip(keys, rows, strict=True):
        known.setdefault(key, []).append(samples.texts[row])
    return [known[key] for key in keys]


def value_of(measured: Measured, chosen: str) -> float:
    """Return what an epoch is chosen by, the smallest being best: a loss, or a metric with its sign.

    Raises
    ------
    ConfigError
        If there is no such metric, or it is undefined on these rows.
    """
    if chosen in measured.losses:
        return measured.losses[chosen]
    known: dict[str, float | None] = {name: each["value"] for name, each in flat_estimates(measured.metrics).items()}
    if chosen not in known:
        raise ConfigError(f"--choose {chosen}: {did_you_mean(chosen, ['loss', *known])}")
    value = known[chosen]
    if value is None:
        raise ConfigError(
            f"--choose {chosen}: is undefined on the rows that choose the epoch, such as with one class only; use loss"
        )
    return value if is_lower_better(chosen) else -value


def is_lower_better(chosen: str) -> bool:
    """Return whether the smallest value of what `--choose` names is the best."""
    return chosen in ("loss", *list_objectives()) or chosen.split("/")[-1] in LOWER_IS_BETTER | {"median_rank"}


def logged(measured: Measured, chosen: str, task: Task | None) -> dict[str, float]:
    """Return what is logged of an epoch: the losses, and the headline metrics that are defined."""
    flat = {name: each["value"] for name, each in flat_estimates(measured.metrics).items()}
    headline = HEADLINE[task.kind][:3] if task else ()
    nested = [name for name in flat if "/" in name and not name.startswith("zero_shot/")]
    names = [*headline, *nested, *(f"zero_shot/{name}" for name in headline), chosen]
    values = {name: flat.get(name) for name in dict.fromkeys(names)}
    return {**measured.losses, **{name: value for name, value in values.items() if value is not None}}


def collecting(runner: Runner, rows: NDArray[np.int64], write: Progress | None) -> Collect:
    """Return what keeps of each batch what its rows are judged by; see `measure`."""
    if write is None or "captioning" not in runner.model.objectives:
        return partial(collected, write=False)
    progress = write
    progress.stage("writing captions", len(rows))

    def collect(model: Model, outputs: Outputs) -> Mapping[str, Tensor | list[str]]:
        kept = collected(model, outputs, write=True)
        progress.advance(len(kept["written"]) * runner.accelerator.num_processes)
        return kept

    return collect


def collected(model: Model, outputs: Outputs, *, write: bool) -> Mapping[str, Tensor | list[str]]:
    """Return what a batch's rows are judged by."""
    kept: dict[str, Tensor | list[str]] = {}
    if "classification" in model.objectives:
        objective = model.objectives["classification"]
        assert isinstance(objective, Classification)
        assert outputs.vectors is not None
        kept["scores"] = objective.scores(outputs.vectors)
    if outputs.texts is not None and outputs.vectors is not None:
        kept |= {"vectors": outputs.vectors, "texts": outputs.texts}
    if write and "captioning" in model.objectives:
        captioning = model.objectives["captioning"]
        assert isinstance(captioning, Captioning)
        assert outputs.tokens is not None
        kept["written"] = captioning.write(outputs.tokens)
    return kept
