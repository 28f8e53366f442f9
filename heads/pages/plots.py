"""Evaluation plots: each function takes arrays and writes one PNG.

Up to `FEW` curves share one pair of axes; more get a small panel each, at most `MANY`, the classes
with the most positives first to stay; bars are drawn for at most `MOST` classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from heads.evaluation.bootstrap import Estimate, Floats
from heads.evaluation.curves import (
    BAND_GRID,
    Question,
    largest,
    precision_recall_points,
    reliability,
    roc_band,
    roc_points,
)
from heads.pages.canvas import COLORS, FAINT, INK, NEGATIVE, POSITIVE, figure, panels, shorten

FEW, MANY, MOST = 5, 24, 60
Labels = Mapping[str, str]

_SLANTED: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"}
_COUNTS = LinearSegmentedColormap.from_list("counts", ["#ffffff", "#cfe3f1", "#6aaed6", "#0a5a92"])


def roc(path: Path, questions: Sequence[Question], areas: Labels) -> None:
    """Draw ROC curves; a single one with its 95 % band over resampled groups.

    Parameters
    ----------
    path
        The PNG to write.
    questions
        One curve each.
    areas
        Name of a question to its area, as text.
    """
    shown = largest(questions, MANY)
    if len(shown) > FEW:
        with panels(path, len(shown), x="False positive rate", y="True positive rate") as (_, axes):
            for ax, question in zip(axes, shown, strict=True):
                false, true = roc_points(question.truth, question.scores)
                ax.fill_between(false, true, color=COLORS[0], alpha=0.08, linewidth=0)
                ax.plot(false, true, color=COLORS[0], linewidth=1.5)
                _chance(ax)
                _panel_text(ax, question, areas[question.name])
        return
    with figure(path, 4.5, 4.5) as drawn:
        ax = drawn.subplots()
        for color, question in zip(COLORS, shown, strict=False):
            if len(shown) == 1:
                ax.fill_between(BAND_GRID, *roc_band(question), color=color, alpha=0.15, linewidth=0)
            false, true = roc_points(question.truth, question.scores)
            ax.plot(false, true, color=color, label=_legend(question.name, areas[question.name]))
        _chance(ax)
        ax.set(xlabel="False positive rate", ylabel="True positive rate", title="ROC curve")
        ax.legend(loc="lower right", title="Area under the curve", alignment="left")


def precision_recall(path: Path, questions: Sequence[Question], precisions: Labels) -> None:
    """Draw precision-recall curves over the prevalence, which is what guessing reaches.

    Parameters
    ----------
    path
        The PNG to write.
    questions
        One curve each.
    precisions
        Name of a question to its average precision, as text.
    """
    shown = largest(questions, MANY)
    if len(shown) > FEW:
        with panels(path, len(shown), x="Recall", y="Precision") as (_, axes):
            for ax, question in zip(axes, shown, strict=True):
                recall, precision = precision_recall_points(question.truth, question.scores)
                ax.fill_between(recall, precision, step="pre", color=COLORS[0], alpha=0.08, linewidth=0)
                ax.step(recall, precision, where="pre", color=COLORS[0], linewidth=1.5)
                ax.axhline(question.truth.mean(), color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
                _unit_square(ax)
                _panel_text(ax, question, precisions[question.name])
        return
    with figure(path, 4.5, 4.5) as drawn:
        ax = drawn.subplots()
        for color, question in zip(COLORS, shown, strict=False):
            recall, precision = precision_recall_points(question.truth, question.scores)
            ax.step(
                recall, precision, where="pre", color=color, label=_legend(question.name, precisions[question.name])
            )
            ax.axhline(question.truth.mean(), color=color, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.7)
        _unit_square(ax)
        ax.set(xlabel="Recall", ylabel="Precision", title="Precision and recall (dashed: prevalence)")
        ax.legend(loc="lower left", title="Average precision", alignment="left")


def confusion(path: Path, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> None:
    """Draw a confusion matrix: colour and percentage are shares of the true class (the row).

    Parameters
    ----------
    path
        The PNG to write.
    counts
        Rows are the truth, columns the prediction, shape (K, K).
    classes
        Their names, length K.
    """
    table = np.asarray(counts)
    k = len(classes)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    names = [shorten(name, 18) for name in classes]
    side = float(np.clip(1.3 + 0.65 * k, 3.9, 9.0))
    with figure(path, side + 0.6, side) as drawn:
        ax = drawn.subplots()
        image = ax.imshow(share, cmap=_COUNTS, vmin=0, vmax=1)
        ax.grid(visible=False)
        slanted = max(map(len, names)) * k >= 50
        ax.set_xticks(np.arange(k), names, **(_SLANTED if slanted else {}))
        ax.set_yticks(np.arange(k), names)
        ax.set_xticks(np.arange(k + 1) - 0.5, minor=True)
        ax.set_yticks(np.arange(k + 1) - 0.5, minor=True)
        ax.grid(which="minor", color="white", linewidth=1.5)
        ax.tick_params(which="both", length=0)
        ax.spines[:].set_visible(False)
        if k <= 20:
            for (row, column), n in np.ndenumerate(table):
                color = "white" if share[row, column] > 0.6 else INK if n else FAINT
                percent = f"\n{share[row, column]:.0%}" if k <= 12 else ""
                ax.text(
                    column, row, f"{n}{percent}", ha="center", va="center", color=color, fontsize=9 if k <= 8 else 7.5
                )
        ax.set(xlabel="Predicted (share of the true class)", ylabel="True", title="Confusion matrix")
        if k > 12:  # too many for a percentage in each cell
            drawn.colorbar(image, ax=ax, shrink=0.7, aspect=24, ticks=[0, 0.5, 1], format="{x:.0%}")


def calibration(
    path: Path,
    confidence: Floats,
    outcome: NDArray[np.bool_],
    *,
    bins: int,
    claim: str,
    before: tuple[Floats, NDArray[np.bool_]] | None = None,
) -> None:
    """Draw a reliability diagram over the histogram of probabilities.

    Parameters
    ----------
    path
        The PNG to write.
    confidence, outcome
        Probabilities, and whether they came true, shape (n,).
    bins
        Number of equal-width bins.
    claim
        What the probability is of, for the axis.
    before
        Probabilities and outcomes before the scores were calibrated, drawn behind; None if they were not.
    """
    diagram = reliability(confidence, outcome, bins=bins)
    error = np.average(np.abs(diagram.observed - diagram.claimed), weights=diagram.counts)
    with figure(path, 4.5, 4.9) as drawn:
        ax, below = drawn.subplots(2, 1, sharex=True, height_ratios=[4, 1])
        ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        ax.vlines(diagram.claimed, diagram.low, diagram.high, color=COLORS[0], alpha=0.45, linewidth=1.6)
        ax.plot(diagram.claimed, diagram.observed, color=COLORS[0], marker="o", markersize=4, linewidth=1.3)
        if before is not None:
            raw = reliability(*before, bins=bins)
            ax.plot(raw.claimed, raw.observed, color=FAINT, marker="o", markersize=3, linewidth=1, label="before")
            ax.lines[1].set_label("calibrated")
            ax.legend(loc="upper left")
        ax.set(
            xlim=(-0.01, 1.01),
            ylim=(-0.02, 1.02),
            ylabel="Observed frequency",
            title=f"Calibration (expected error {error:.3f})",
        )
        below.hist(confidence, bins=np.linspace(0, 1, bins + 1), color=COLORS[0], alpha=0.55)
        below.set(xlabel=claim, ylabel="Samples")
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))


def per_class(path: Path, estimates: Mapping[str, Mapping[str, Estimate]], support: Mapping[str, int]) -> None:
    """Draw horizontal bars with intervals: one row per class, one panel per metric.

    Parameters
    ----------
    path
        The PNG to write.
    estimates
        Metric to class to its estimate.
    support
        Class to its number of samples.
    """
    classes = sorted(support, key=lambda name: -support[name])[:MOST]
    classes = [name for name in support if name in classes]
    y = np.arange(len(classes))
    with figure(path, 9.2, 1.1 + 0.3 * len(classes)) as drawn:
        axes = drawn.subplots(1, len(estimates), sharey=True, squeeze=False)[0]
        for ax, (metric, of_class) in zip(axes, estimates.items(), strict=True):
            for row, name in enumerate(classes):
                _bar(ax, row, of_class[name])
            ax.set(xlim=(0, 1), title=metric)
            ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
            ax.grid(visible=False, axis="y")
            ax.spines["left"].set_visible(False)
            ax.tick_params(axis="y", length=0)
        axes[0].set_yticks(y, [f"{shorten(name)}  ({support[name]})" for name in classes])
        axes[0].set_ylim(len(classes) - 0.4, -0.6)


def score_histograms(path: Path, questions: Sequence[Question]) -> None:
    """Draw how scores of positives and negatives lie, each as a share of its own class, and the threshold.

    Parameters
    ----------
    path
        The PNG to write.
    questions
        One pair of histograms each.
    """
    shown = largest(questions, MANY)
    if len(shown) == 1:
        with figure(path, 4.5, 3.4) as drawn:
            ax = drawn.subplots()
            _two_histograms(ax, shown[0])
            ax.set(xlabel=f"Score of {shown[0].name}", ylabel="Share of the class", title="Scores by true class")
            ax.legend(loc="best")
        return
    with panels(path, len(shown), x="Score", y="Share of the class") as (drawn, axes):
        for ax, question in zip(axes, shown, strict=True):
            _two_histograms(ax, question)
            ax.set_title(shorten(question.name), fontsize=8.5)
        axes[0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="upper right", ncols=3)


def learning_curves(
    path: Path, history: Mapping[str, Sequence[float | None]], *, steps: Sequence[int] | None = None
) -> None:
    """Draw losses over epochs, and where the watched loss (the last one given) was lowest.

    Parameters
    ----------
    path
        The PNG to write.
    history
        Name of a loss to its value per epoch; None where there is none.
    steps
        After how many steps each value was found, where it was not after every epoch.
    """
    unit = "epoch" if steps is None else "step"
    with figure(path, 4.5, 3.4) as drawn:
        ax = drawn.subplots()
        series = {name: np.array(values, dtype=np.float64) for name, values in history.items()}
        series = {name: values for name, values in series.items() if np.isfinite(values).any()}
        for color, (name, values) in zip(COLORS, series.items(), strict=False):
            places = np.arange(1, len(values) + 1) if steps is None else np.array(steps)
            ax.plot(places, values, color=color, label=name.replace("_", " "), marker="o" if len(values) == 1 else "")
        if series:
            watched = list(series.values())[-1]
            best = int(places[np.nanargmin(watched)])
            ax.axvline(best, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=f"lowest: {unit} {best}")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set(xlabel=unit.capitalize(), ylabel="Loss", title="Learning curves of the final fit")
        ax.legend(loc="best")


def regression(path: Path, y: Floats, predicted: Floats, targets: Sequence[str]) -> None:
    """Draw, per target, predicted over true values and residuals over predicted ones.

    Parameters
    ----------
    path
        The PNG to write.
    y, predicted
        Values, shape (n, T), NaN in `y` where a target is unknown.
    targets
        Their names, length T.
    """
    rows = min(len(targets), 8)
    with figure(path, 9.2, 4.2 * rows) as drawn:
        grid = drawn.subplots(rows, 2, squeeze=False)
        for (left, right), j in zip(grid, range(rows), strict=True):
            known = np.isfinite(y[:, j])
            true, said = y[known, j], predicted[known, j]
            dots: dict[str, Any] = {
                "s": 14,
                "color": COLORS[0],
                "alpha": float(np.clip(200 / max(len(true), 1), 0.12, 0.6)),
                "linewidth": 0,
            }
            ends = [float(min(true.min(), said.min())), float(max(true.max(), said.max()))] if len(true) else [0.0, 1.0]
            left.plot(ends, ends, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
            left.scatter(true, said, **dots)
            left.set(xlabel="True", ylabel="Predicted", title=f"{targets[j]}: predicted over true")
            right.axhline(0, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
            right.scatter(said, said - true, **dots)
            right.set(xlabel="Predicted", ylabel="Predicted - true", title="Residuals")


def _bar(ax: Axes, row: int, estimate: Estimate) -> None:
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    if value is None:
        ax.text(0.02, row, "undefined", va="center", fontsize=7.5, color=FAINT)
        return
    ax.barh(row, value, height=0.62, color=COLORS[0], alpha=0.3)
    ax.plot([value, value], [row - 0.31, row + 0.31], color=COLORS[0], linewidth=2, solid_capstyle="butt")
    if low is not None and high is not None:
        ax.hlines(row, low, high, color=INK, linewidth=1.2)
    ax.text(1.03, row, f"{value:.2f}", va="center", fontsize=7.5, clip_on=False)


def _two_histograms(ax: Axes, question: Question) -> None:
    low, high = min(0.0, question.scores.min()), max(1.0, question.scores.max())
    edges = np.linspace(low, high, 21)
    for name, of_class, color in (("other", ~question.truth, NEGATIVE), ("positive", question.truth, POSITIVE)):
        share = np.full(of_class.sum(), 1 / of_class.sum())
        style: dict[str, Any] = {"bins": edges, "weights": share, "color": color}
        ax.hist(question.scores[of_class], alpha=0.35, label=name, **style)
        ax.hist(question.scores[of_class], histtype="step", linewidth=1.2, **style)
    if question.threshold is not None:
        ax.axvline(question.threshold, color=INK, linewidth=1, linestyle=(0, (4, 3)), label="threshold")
    ax.set_xlim(low, high)
    ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _chance(ax: Axes) -> None:
    ax.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    _unit_square(ax)


def _unit_square(ax: Axes) -> None:
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02), aspect="equal")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])
    ax.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])


def _panel_text(ax: Axes, question: Question, value: str) -> None:
    ax.set_title(shorten(question.name), fontsize=8.5, pad=17)
    below = f"{value}, {int(question.truth.sum())} positives"
    ax.text(0, 1.035, below, transform=ax.transAxes, fontsize=7, color=INK)


def _legend(name: str, value: str) -> str:
    return f"{shorten(name)}  {value}"
