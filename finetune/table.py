"""Metrics of fine-tuned runs, which nest those of retrieval and of captions, as flat tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads.evaluation.bootstrap import format_number
from heads.pages.table import metric_table

NESTED = ("retrieval", "captions", "zero_shot")


def split_table(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one row per metric and one column per split, as text; the loss of each where nothing else judges."""
    if not any(map(flat_estimates, metrics.values())):
        return "\n".join(
            f"{split}: loss {format_number(values['losses']['loss'])}" for split, values in metrics.items()
        )
    return metric_table({split: flat_estimates(values) for split, values in metrics.items()})


def flat_estimates(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the estimates of a split by name, nested ones as ``retrieval/input_to_text/recall@5``."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(value, Mapping):
            continue
        if {"value", "low", "high"} <= set(value):
            found[prefix + name] = value
        elif prefix or name in NESTED:
            found |= flat_estimates(value, f"{prefix}{name}/")
    return found
