"""Several runs side by side: one table, the best first, with every interval drawn on a common axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from data.task import Task
from heads.evaluation.bootstrap import Estimate
from heads.evaluation.metrics import HEADLINE, LOWER_IS_BETTER, estimates
from heads.pages.page import Content, Html, element, join, table, whisker
from heads.pages.sections import SPLIT_NAMES, cell, metric_name
from heads.record import SPLITS, RunRecord

COLUMNS = 3
"""Metrics shown, the most telling first."""


def comparison(runs: Sequence[tuple[str, str, RunRecord]]) -> Html:
    """Return the table that compares runs, the best first, each linked to its section.

    Parameters
    ----------
    runs
        Name, anchor and record of each.
    """
    kind = Task.from_dict(runs[0][2].task).kind
    common = [split for split in SPLITS if all(split in record.metrics for _, _, record in runs)]
    if not common or any(Task.from_dict(record.task).kind != kind for _, _, record in runs):
        links = [element("li", element("a", name, href=f"#{anchor}")) for name, anchor, _ in runs]
        note = "These runs share no kind of task and split to be compared on; each is described below."
        return join([element("p", note, class_="lead"), element("ul", *links)])
    split, names = common[0], HEADLINE[kind][:COLUMNS]
    found = {anchor: estimates(record.metrics[split]) for _, anchor, record in runs}
    best = {name: _best(name, {anchor: found[anchor].get(name) for anchor in found}) for name in names}
    first = names[0]
    ordered = sorted(runs, key=lambda run: _rank(first, found[run[1]].get(first)))
    axis = _axis([found[anchor].get(first) for anchor in found])
    chosen_by = "cv" in common[1:]  # what the choice among runs should rest on, beside the final word
    rows = [
        [
            element("a", name, href=f"#{anchor}"),
            _whisker(found[anchor].get(first), axis, best=anchor == best[first]),
            *(_emphasised(cell(found[anchor].get(metric)), strong=anchor == best[metric]) for metric in names),
            *([cell(estimates(record.metrics["cv"]).get(first))] if chosen_by else []),
        ]
        for name, anchor, record in ordered
    ]
    where = SPLIT_NAMES[split].lower()
    head = ["Run", "Interval", *map(metric_name, names)]
    head += [f"{metric_name(first)}, CV"] if chosen_by else []
    return join(
        [
            element(
                "p",
                f"Compared on {where}; best {metric_name(first)} first, intervals drawn on a common axis.",
                class_="lead",
            ),
            _comparability([record for _, _, record in runs]),
            table(head, rows, label=f"Runs compared on {where}"),
            element(
                "p",
                "Overlapping intervals do not rank runs. The best of several by a score is flattered by that score: "
                "choose by cross-validation, report the test.",
                class_="note",
            ),
        ]
    )


def _comparability(records: Sequence[RunRecord]) -> Html:
    remarks = []
    if len({record.manifest_digest for record in records}) > 1:
        remarks.append("The runs used different manifests.")
    if len({record.split_digest for record in records}) > 1:
        remarks.append("The runs were judged on different splits or folds.")
    if not remarks:
        return Html("")
    items = element("ul", *(element("li", remark) for remark in remarks))
    return element(
        "section", element("strong", "Not the same samples"), items, class_="warnings", aria_label="Warnings"
    )


def _rank(metric: str, estimate: Estimate | None) -> float:
    if estimate is None or estimate["value"] is None:
        return float("inf")
    return estimate["value"] if metric in LOWER_IS_BETTER else -estimate["value"]


def _best(metric: str, found: Mapping[str, Estimate | None]) -> str:
    return min(found, key=lambda anchor: _rank(metric, found[anchor]))


def _emphasised(cell: Content, *, strong: bool) -> Content:
    return element("span", cell, class_="best") if strong else cell


def _axis(found: Sequence[Estimate | None]) -> tuple[float, float]:
    ends = [end for estimate in found if estimate for end in _ends(estimate)]
    return (min(ends), max(ends)) if ends else (0.0, 1.0)


def _ends(estimate: Estimate) -> list[float]:
    return [end for end in (estimate["low"], estimate["value"], estimate["high"]) if end is not None]


def _whisker(estimate: Estimate | None, axis: tuple[float, float], *, best: bool) -> Content:
    if estimate is None or estimate["value"] is None:
        return "–"
    ends = _ends(estimate)
    return whisker(min(ends), estimate["value"], max(ends), left=axis[0], right=axis[1], best=best)
