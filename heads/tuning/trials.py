"""The trials of a study as a table, as plots and as importances; a dropped trial counts with the mean it had."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.ticker import MaxNLocator
from optuna.trial import FrozenTrial, TrialState

from heads.pages.canvas import COLORS, FAINT, INK, figure, shorten
from heads.pages.sections import metric_name
from heads.tuning.space import DEFAULT

FEWEST = 8
"""Trials of a head that its parameters' importances are estimated from, at least."""
_TREES = 64


def state_of(trial: Any) -> str:
    """Return how a trial ended: ``complete``, ``pruned`` or ``failed``."""
    if trial.user_attrs.get("reason"):
        return "failed"
    return "complete" if trial.state == TrialState.COMPLETE else "pruned"


def table_of(trials: Sequence[Any]) -> dict[str, list[str]]:
    """Return one row per trial as text columns; parameters that a trial does not have are empty."""
    names = sorted({name for trial in trials for name in trial.params})
    columns: dict[str, list[str]] = {
        "trial": [str(trial.number) for trial in trials],
        "state": [state_of(trial) for trial in trials],
        "value": ["" if trial.value is None else repr(trial.value) for trial in trials],
        "folds": [str(len(trial.user_attrs.get("scores", ()))) for trial in trials],
        "default": [str(bool(trial.user_attrs.get(DEFAULT))).lower() for trial in trials],
    }
    for name in names:
        columns[name] = ["" if trial.params.get(name) is None else str(trial.params[name]) for trial in trials]
    columns["reason"] = [trial.user_attrs.get("reason", "") for trial in trials]
    columns["notes"] = ["; ".join(trial.user_attrs.get("notes", ())) for trial in trials]
    return columns


def importances(trials: Sequence[Any], seed: int) -> dict[str, dict[str, float]]:
    """Return how much of the variance of the trials' values each parameter explains (functional ANOVA).

    Parameters
    ----------
    trials
        Finished trials.
    seed
        Seed of the random forest behind the estimate.

    Returns
    -------
    dict
        ``all heads`` (what every trial chooses: head and features) and one entry per head with enough trials:
        importance by parameter, the largest first.
    """
    scored = [trial for trial in trials if trial.value is not None]
    by_head: dict[str, list[Any]] = {}
    for trial in scored:
        by_head.setdefault(trial.params["head"], []).append(trial)
    shared = {"head", "encoders", "pooling", "normalize"}
    found = {"all heads": _importances(scored, shared, seed)}
    for head, members in by_head.items():
        own = [trial for trial in members if not trial.user_attrs.get(DEFAULT)]
        names = {name for trial in own for name in trial.params} - {"head"}
        found[head] = _importances(own, names, seed)
    return {name: values for name, values in found.items() if values}


def _importances(trials: Sequence[Any], names: set[str], seed: int) -> dict[str, float]:
    """Return the importances of some parameters that all these trials have; none where there is too little to tell."""
    varied = sorted(
        name
        for name in names
        if all(name in trial.params for trial in trials) and len({repr(trial.params[name]) for trial in trials}) > 1
    )
    if len(trials) < FEWEST or not varied or len({trial.value for trial in trials}) < 2:
        return {}
    study = optuna.create_study()
    study.add_trials([_completed(trial, varied) for trial in trials])
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=seed)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=varied)
    return {name: float(value) for name, value in found.items()}


def _completed(trial: Any, names: Sequence[str]) -> FrozenTrial:
    return optuna.trial.create_trial(
        value=trial.value,
        params={name: trial.params[name] for name in names},
        distributions={name: trial.distributions[name] for name in names},
    )


def draw_history(path: Path, trials: Sequence[Any], *, metric: str, sign: int) -> None:
    """Draw the value of every trial, and the best so far among those that were scored on all folds."""
    with figure(path, 9.2, 3.6) as drawn:
        ax = drawn.subplots()
        heads = list(dict.fromkeys(trial.params["head"] for trial in trials))
        for place, head in enumerate(heads):
            color = COLORS[place % len(COLORS)]
            shown = [trial for trial in trials if trial.params["head"] == head and trial.value is not None]
            whole = [trial for trial in shown if state_of(trial) == "complete"]
            part = [trial for trial in shown if state_of(trial) == "pruned"]
            ax.scatter([t.number for t in whole], [t.value for t in whole], s=22, color=color, label=head)
            ax.scatter([t.number for t in part], [t.value for t in part], s=22, facecolors="none", edgecolors=color)
        complete = [trial for trial in trials if state_of(trial) == "complete"]
        best = sign * np.maximum.accumulate([sign * trial.value for trial in complete])
        ax.step([trial.number for trial in complete], best, where="post", color=INK, linewidth=1.2, label="best so far")
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.set(
            xlabel="Trial (hollow: dropped before the last fold)",
            ylabel=f"{metric_name(metric)}, mean over inner folds",
            title="Optimisation history",
        )
        # Values far below the rest would flatten what matters.
        values = sign * np.array([trial.value for trial in trials if trial.value is not None])
        if len(values) > FEWEST:
            low, high = np.quantile(values, 0.1), values.max()
            margin = 0.08 * max(high - low, 1e-6)
            limits = sorted([sign * (low - margin), sign * (high + margin)])
            ax.set_ylim(*limits)
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def draw_importances(path: Path, found: dict[str, dict[str, float]]) -> None:
    """Draw the share of the variance that each parameter explains, one panel per head."""
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    bars = max(len(values) for values in found.values())
    with figure(path, 9.2, rows * (1.0 + 0.3 * bars)) as drawn:
        grid = drawn.subplots(rows, columns, squeeze=False).ravel()
        for ax in grid[len(found) :]:
            ax.set_visible(False)
        for ax, (name, values) in zip(grid, found.items(), strict=False):
            labels = [shorten(parameter.removeprefix(f"{name}."), 20) for parameter in values]
            places = np.arange(len(values))
            ax.barh(places, list(values.values()), height=0.62, color=COLORS[0], alpha=0.55)
            for place, value in zip(places, values.values(), strict=True):
                ax.text(value + 0.02, place, f"{value:.2f}", va="center", fontsize=7.5, color=INK)
            ax.set_yticks(places, labels)
            ax.set(xlim=(0, 1.15), ylim=(bars - 0.4, -0.6), title=name)
            ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            ax.grid(visible=False, axis="y")
            ax.spines["left"].set_color(FAINT)
            ax.tick_params(axis="y", length=0)
