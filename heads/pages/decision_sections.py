"""The sections of a run's page about what follows the fit: operating points, calibration, prediction sets, the seal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from heads.evaluation.bootstrap import format_number
from heads.evaluation.seal import Openings
from heads.pages.page import Content, Html, element, join, table
from heads.pages.sections import SPLIT_NAMES, cell, metric_name
from heads.record import SPLITS, RunRecord

_RULES = {
    "youden": "Youden's J",
    "gmean": "geometric mean",
    "sensitivity": "sensitivity ≥ {at:g}",
    "specificity": "specificity ≥ {at:g}",
    "half": "fixed at 0.5",
}
_RATES = ("sensitivity", "specificity", "ppv", "npv")
_RELIABILITY = ("brier", "log_loss", "ece")


def seal_note(record: RunRecord) -> Html:
    """Return how often the test split has been opened; nothing where it was not, or there is none."""
    if not record.openings:
        return Html("")
    openings = Openings(**record.openings)
    warning = " What is chosen after looking at it is no longer judged by it." if openings.count > 1 else ""
    return element("p", openings.explain() + warning, class_="note")


def operating_points_section(record: RunRecord) -> Html:
    """Return the thresholds and what they give on the headline split; nothing for tasks without any."""
    if not record.thresholds:
        return Html("")
    split = record.headline_split
    metrics = record.metrics[split]
    rows: list[list[Content]] = []
    for name, threshold in record.thresholds.items():
        reached: Mapping[str, Any] = metrics["per_label"][name] if "per_label" in metrics else metrics
        # The precision of a label is its positive predictive value.
        found = [reached.get(rate) or reached.get({"ppv": "precision"}.get(rate, "")) for rate in _RATES]
        rule = _RULES.get(threshold["rule"], threshold["rule"]).format(at=threshold.get("at") or 0)
        chosen = join([rule, element("span", _out_of_fold(threshold), class_="ci")])
        rows.append([name, format_number(threshold["value"]), chosen, *map(cell, found)])
    fixed = {threshold["rule"] for threshold in record.thresholds.values()} == {"half"}
    how = (
        "Fixed beforehand."
        if fixed
        else "Chosen on out-of-fold scores of the training samples; in grey, sensitivity / specificity there."
    )
    own = split == "cv" and not fixed
    caption = (
        f"{how} A score at the threshold is positive. Rates with intervals: {SPLIT_NAMES.get(split, split).lower()}"
        f"{', on the very scores that the threshold was chosen by, so a little too good' if own else ''}."
    )
    head = ["", "Threshold", "Chosen for", *map(metric_name, _RATES)]
    return join([element("h3", "Thresholds"), table(head, rows, label="Operating points", caption=caption)])


def calibration_section(record: RunRecord) -> Html:
    """Return how far probabilities were off before and after the calibration; nothing without one."""
    if not record.calibration:
        return Html("")
    found = record.calibration["splits"]
    rows: list[list[Content]] = [
        [f"{SPLIT_NAMES[split]}, {when}", *(cell(found[split][when][metric]) for metric in _RELIABILITY)]
        for split in SPLITS
        if split in found
        for when in ("before", "after")
    ]
    head = ["", *map(metric_name, _RELIABILITY)]
    learned = _temperatures(record.calibration)
    caption = (
        f"Calibrated by {record.calibration['method']}{learned}, learned on out-of-fold scores of the training "
        f"samples; each fold of the cross-validation by what the others taught. Lower is better."
    )
    return join([element("h3", "Calibration"), table(head, rows, label="Calibration", caption=caption)])


def sets_section(record: RunRecord) -> Html:
    """Return how often prediction sets hold the truth, and how large they are; nothing without any."""
    if not record.conformal:
        return Html("")
    splits = {split: record.conformal["splits"][split] for split in SPLITS if split in record.conformal["splits"]}
    size = "width" if "width" in next(iter(splits.values())) else "set_size"
    rows: list[list[Content]] = [
        [SPLIT_NAMES[split], cell(found["coverage"]), cell(found[size])] for split, found in splits.items()
    ]
    caption = (
        f"Asked for: {record.conformal['coverage']:.0%} of rows. By {record.conformal['method']} with out-of-fold "
        f"scores; every group counts once, and the promise is for rows of a new group like these, on average over "
        f"rows, not for each class."
    )
    head = ["", "Truth inside", "Mean width" if size == "width" else "Mean size"]
    return join([element("h3", "Prediction sets"), table(head, rows, label="Prediction sets", caption=caption)])


def _out_of_fold(threshold: Mapping[str, Any]) -> str:
    """Return sensitivity and specificity on the scores that a threshold was chosen by; nothing where it was not."""
    rates = [threshold[rate] for rate in ("sensitivity", "specificity") if threshold.get(rate) is not None]
    return f" {' / '.join(map(format_number, rates))}" if len(rates) == 2 else ""


def _temperatures(calibration: Mapping[str, Any]) -> str:
    found = calibration.get("temperatures", ())
    return f" ({', '.join(map(format_number, found))})" if 0 < len(found) <= 3 else ""
