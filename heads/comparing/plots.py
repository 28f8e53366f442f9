"""Plots of a comparison: intervals side by side, and few-shot curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from heads.comparing.few_shot import Point
from heads.evaluation.bootstrap import Estimate, Floats
from heads.pages.canvas import COLORS, FAINT, figure, shorten

LINES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"))
"""Line and marker of each round through the colours."""


def forest(
    path: Path, estimates: Mapping[str, Estimate], metric: str, *, level: set[str], chance: float | None
) -> None:
    """Draw one interval per cell, the first on top.

    Parameters
    ----------
    path
        The PNG to write.
    estimates
        Value and interval by name; undefined ones are left out.
    metric
        What is drawn, as a person writes it.
    level
        Names drawn strong: the best, and those that cannot be told from it.
    chance
        What the prior reaches, drawn as a line.
    """
    shown = {name: estimate for name, estimate in estimates.items() if estimate["value"] is not None}
    with figure(path, 7.4, 0.75 + 0.27 * len(shown)) as drawn:
        ax = drawn.subplots()
        if chance is not None:
            ax.axvline(chance, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        for row, (name, estimate) in enumerate(shown.items()):
            low, value, high = _floats([estimate["low"], estimate["value"], estimate["high"]])
            color = COLORS[0] if name in level else FAINT
            ax.plot([low, high], [row, row], color=color)
            ax.plot(value, row, "o", color=color, markersize=5)
        ax.set_yticks(range(len(shown)), [shorten(name, 60) for name in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.set(xlabel=metric if chance is None else f"{metric} (dashed: the prior)")


def few_shot(path: Path, curves: Mapping[str, Sequence[Point]], metric: str) -> None:
    """Draw one curve per cell over the samples per class, with its interval as a band.

    Parameters
    ----------
    path
        The PNG to write.
    curves
        Points by name; those without a value are left out.
    metric
        What is drawn, as a person writes it.
    """
    sizes = list(dict.fromkeys(point.n for points in curves.values() for point in points))
    place = {size: i for i, size in enumerate(sizes)}
    with figure(path, 7.4, 4.4) as drawn:
        ax = drawn.subplots()
        for i, (name, points) in enumerate(curves.items()):
            color, (line, marker) = COLORS[i % len(COLORS)], LINES[i // len(COLORS) % len(LINES)]
            at = [place[point.n] for point in points]
            value, low, high = (_floats([getattr(point, end) for point in points]) for end in ("value", "low", "high"))
            label = shorten(name, 60)
            ax.plot(at, value, color=color, linestyle=line, marker=marker, markersize=4, label=label)
            if len(curves) <= len(COLORS):
                ax.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0)
        ax.set_xticks(range(len(sizes)), ["all" if size is None else str(size) for size in sizes])
        ax.set(xlabel="Samples per class", ylabel=metric)
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _floats(values: Sequence[float | None]) -> Floats:
    """Return numbers, NaN where there is none, which is not drawn."""
    return np.array(values, dtype=np.float64)
