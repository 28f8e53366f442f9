"""Metrics as plain tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from heads.evaluation.bootstrap import format_estimate
from heads.evaluation.metrics import HEADLINE
from heads.record import RunRecord


def metric_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one row per metric and one column per split: the value and its interval."""
    splits = list(metrics)
    names = list(dict.fromkeys(name for split in splits for name in metrics[split] if _is_metric(metrics[split][name])))
    rows = [["metric", *splits]]
    rows += [[name, *(interval_text(metrics[split].get(name)) for split in splits)] for name in names]
    return aligned(rows)


def comparison_table(records: Mapping[str, RunRecord], split: str) -> str:
    """Return one row per run and one column per headline metric of one split, best first."""
    first = next(iter(records.values()))
    names = HEADLINE[first.task["kind"]][:3]
    ordered = sorted(records, key=lambda run: -(records[run].metrics[split][names[0]]["value"] or 0.0))
    rows = [["head", *(f"{split} {name}" for name in names), "all fits, s"]]
    for run in ordered:
        record = records[run]
        cells = [interval_text(record.metrics[split][name]) for name in names]
        rows.append([run, *cells, f"{record.timings['fit_seconds']:.1f}"])
    return aligned(rows)


def _is_metric(value: Any) -> bool:
    return isinstance(value, Mapping) and {"value", "low", "high"} <= set(value)


def interval_text(metric: Mapping[str, Any] | None) -> str:
    """Return a value and its interval, or why it is undefined; nothing for no metric."""
    if metric is None:
        return ""
    return f"undefined: {metric['reason']}" if metric["value"] is None else format_estimate(metric)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as text, columns aligned, with a line under the first."""
    widths = [max(len(row[j]) for row in rows) for j in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
