"""Metrics as plain tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heads.bootstrap import format_estimate
from heads.metrics import HEADLINE
from heads.record import RunRecord
from heads.standings import Standing


def metric_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one row per metric and one column per split: the value and its interval."""
    splits = list(metrics)
    names = list(dict.fromkeys(name for split in splits for name in metrics[split] if _is_metric(metrics[split][name])))
    rows = [["metric", *splits]]
    rows += [[name, *(_interval(metrics[split].get(name)) for split in splits)] for name in names]
    return _aligned(rows)


def comparison_table(records: Mapping[str, RunRecord], split: str) -> str:
    """Return one row per run and one column per headline metric of one split, best first."""
    first = next(iter(records.values()))
    names = HEADLINE[first.task["kind"]][:3]
    ordered = sorted(records, key=lambda run: -(records[run].metrics[split][names[0]]["value"] or 0.0))
    rows = [["head", *(f"{split} {name}" for name in names), "all fits, s"]]
    for run in ordered:
        record = records[run]
        cells = [_interval(record.metrics[split][name]) for name in names]
        rows.append([run, *cells, f"{record.timings['fit_seconds']:.1f}"])
    return _aligned(rows)


def cells_table(standing: Standing) -> str:
    """Return one row per cell of a comparison and one column per tested metric, best first; = marks the best's equals.

    Equal is what the paired bootstrap cannot tell from the best.
    """
    first = standing.names[0]
    best, level = standing.best(first), standing.level(first)
    rows = [["", "head", "encoder", *standing.names, "parameters", "all fits, s"]]
    for entry in standing.ordered():
        mark = "*" if entry is best else "=" if entry in level else ""
        numbers = [_interval(entry.metrics[name]) for name in standing.names]
        size = [f"{entry.n_parameters:,}", f"{entry.fit_seconds:.1f}"]
        rows.append([mark, entry.cell.head, entry.cell.encoder or "-", *numbers, *size])
    return _aligned(rows)


def _is_metric(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= set(value)


def _interval(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    return f"undefined: {metric['reason']}" if metric["value"] is None else format_estimate(metric)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
