"""What came of a comparison, and its tables as text columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heads.comparing.few_shot import Point
from heads.comparing.ranks import MeanRank, mean_ranks
from heads.comparing.standings import Entry, Standing
from heads.comparing.suite import Omission, Suite
from heads.evaluation.metrics import LOWER_IS_BETTER


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """What came of a comparison.

    Attributes
    ----------
    suite
        What was asked for.
    standings
        One per data set.
    curves
        Few-shot curves by entry.
    courses
        Where the curves of a data set were judged, or why there are none, in words.
    out
        The directory.
    """

    suite: Suite
    standings: tuple[Standing, ...]
    curves: Mapping[Entry, Sequence[Point]]
    courses: Mapping[str, str]
    out: Path

    @property
    def failed(self) -> list[Omission]:
        """The cells that could not be fitted."""
        return [failure for standing in self.standings for failure in standing.failed]

    @property
    def ranks(self) -> dict[str, list[MeanRank]]:
        """Mean ranks of heads and of encoders; a block is a data set and an encoder, or a data set and a head."""
        found: dict[str, list[MeanRank]] = {}
        if len({standing.task.kind for standing in self.standings}) > 1:
            return found
        lower = self.standings[0].names[0] in LOWER_IS_BETTER
        for who, other in (("head", "encoder"), ("encoder", "head")):
            blocks: dict[Any, dict[str, float]] = {}
            for standing in self.standings:
                for entry in standing.entries:
                    if entry.contends:
                        value = entry.metrics[standing.names[0]]["value"]
                        block = (standing.name, getattr(entry.cell, other))
                        blocks.setdefault(block, {})[getattr(entry.cell, who)] = np.nan if value is None else value
            found[who] = mean_ranks(blocks, lower_is_better=lower)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the table, the tests and what failed as JSON-ready values."""
        return {
            "table": _as_rows(table_of(self.standings, self.out)),
            "tests": _as_rows(tests_of(self.standings)),
            "failed": [vars(failure) for failure in self.failed],
            "out": str(self.out),
        }


def table_of(standings: Sequence[Standing], out: Path) -> dict[str, list[str]]:
    """Return one row per cell and metric as text columns; with several data sets, the first column names them."""
    columns = ("encoder", "head", "metric", "value", "low", "high", "fit_seconds", "parameters", "run")
    table = _empty(standings, columns)
    for standing in standings:
        for entry in standing.entries:
            for metric, estimate in entry.metrics.items():
                values = (_text(estimate[end]) for end in ("value", "low", "high"))
                _add(
                    table,
                    standing.name,
                    entry.cell.encoder,
                    entry.cell.head,
                    metric,
                    *values,
                    f"{entry.fit_seconds:.3f}",
                    str(entry.n_parameters),
                    entry.runs[0].relative_to(out).as_posix(),
                )
    return table


def tests_of(standings: Sequence[Standing]) -> dict[str, list[str]]:
    """Return one row per test as text columns."""
    columns = (
        "test", "metric", "encoder_a", "head_a", "encoder_b", "head_b", "difference", "low", "high", "p", "p_holm",
    )  # fmt: skip
    table = _empty(standings, columns)
    for standing in standings:
        for test in standing.tests:
            named = (test.a.cell.encoder, test.a.cell.head, test.b.cell.encoder, test.b.cell.head)
            numbers = (test.difference, test.low, test.high, test.p, test.p_holm)
            _add(table, standing.name, test.test, test.metric, *named, *map(_text, numbers))
    return table


def few_shot_of(result: Comparison) -> dict[str, list[str]]:
    """Return one row per point of the few-shot curves as text columns."""
    table = _empty(
        result.standings, ("encoder", "head", "metric", "n", "rows", "value", "low", "high", "draws", "reason")
    )
    for standing in result.standings:
        for entry in standing.entries:
            for point in result.curves.get(entry, ()):
                _add(
                    table,
                    standing.name,
                    entry.cell.encoder,
                    entry.cell.head,
                    point.metric,
                    "all" if point.n is None else str(point.n),
                    _text(point.rows),
                    *(_text(value) for value in (point.value, point.low, point.high)),
                    str(result.suite.config.few_shot),
                    point.reason,
                )
    return table


def left_out_of(result: Comparison) -> dict[str, list[str]]:
    """Return one row per cell that is not in the table, with the reason."""
    table: dict[str, list[str]] = {name: [] for name in ("dataset", "encoder", "head", "what", "reason")}
    for standing in result.standings:
        for what, omissions in (("failed", standing.failed), ("baseline", standing.omitted)):
            for each in omissions:
                cells = (each.data, each.encoder, each.head, what, each.reason)
                for column, value in zip(table.values(), cells, strict=True):
                    column.append(value)
    return table


def ranks_of(ranks: Mapping[str, Sequence[MeanRank]]) -> dict[str, list[str]]:
    """Return one row per head and per encoder as text columns."""
    rows = [(who, each.name, _text(each.mean), str(len(each.ranks))) for who, found in ranks.items() for each in found]
    return {name: [row[j] for row in rows] for j, name in enumerate(("of", "name", "mean_rank", "blocks"))}


def _empty(standings: Sequence[Standing], columns: Sequence[str]) -> dict[str, list[str]]:
    return {name: [] for name in (*(["dataset"] if len(standings) > 1 else []), *columns)}


def _add(table: Mapping[str, list[str]], dataset: str, *cells: str) -> None:
    row = (dataset, *cells) if "dataset" in table else cells
    for column, value in zip(table.values(), row, strict=True):
        column.append(value)


def _as_rows(table: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def _text(value: float | None) -> str:
    """Write a number so that it reads back exactly; an undefined one as nothing."""
    return "" if value is None or np.isnan(value) else repr(float(value))
