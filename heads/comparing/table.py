"""The table of a comparison for the terminal."""

from __future__ import annotations

from heads.comparing.standings import Standing
from heads.pages.table import aligned, interval_text


def cells_table(standing: Standing) -> str:
    """Return one row per cell of a comparison and one column per tested metric, best first; = marks the best's equals.

    Equal is what the paired bootstrap cannot tell from the best.
    """
    first = standing.names[0]
    best, level = standing.best(first), standing.level(first)
    rows = [["", "head", "encoder", *standing.names, "parameters", "all fits, s"]]
    for entry in standing.ordered():
        mark = "*" if entry is best else "=" if entry in level else ""
        numbers = [interval_text(entry.metrics[name]) for name in standing.names]
        size = [f"{entry.n_parameters:,}", f"{entry.fit_seconds:.1f}"]
        rows.append([mark, entry.cell.head, entry.cell.encoder or "-", *numbers, *size])
    return aligned(rows)
