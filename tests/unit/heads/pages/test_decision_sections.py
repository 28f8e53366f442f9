"""What the page says of operating points, calibration, prediction sets and the seal."""

from __future__ import annotations

import csv
import re
from typing import Any

import numpy as np
import pytest

from data.task import Task
from heads.evaluation.bootstrap import format_estimate
from heads.evaluation.predictions import read_predictions
from heads.evaluation.seal import Openings
from heads.pages.report import write_plots, write_report
from heads.record import RunRecord

ESTIMATE = {"value": 0.25, "low": 0.2, "high": 0.3}
OPENINGS: dict[str, Any] = {"test": "ab" * 32, "run": "cd" * 32, "number": 1, "count": 1}


def text_of(run) -> str:
    page: str = write_report([run], run / "report.html").read_text(encoding="utf-8")
    body = page.split("</style>")[1]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def row_of(text: str, first: str, after: str) -> str:
    """Return what stands behind a row's first cell, in the table behind a heading."""
    return text.split(after, 1)[1].split(f" {first} ", 1)[1]


def test_operating_points_have_the_rates_of_the_judged_split(make_run) -> None:
    run = make_run("binary", splits=(("cv", 90), ("test", 70)), n_boot=20)
    record = RunRecord.read(run)
    shown = row_of(text_of(run), "malignant", "Thresholds")
    threshold = record.thresholds["malignant"]
    assert shown.startswith(f"{threshold['value']:.3f} Youden&#x27;s J")
    assert f"{threshold['sensitivity']:.3f} / {threshold['specificity']:.3f}" in shown
    for rate in ("sensitivity", "specificity", "ppv", "npv"):
        found = record.metrics["test"][rate]
        assert f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" in shown


def test_operating_points_of_labels_are_their_own(make_run) -> None:
    run = make_run("multilabel", splits=(("cv", 90), ("test", 70)), n_boot=20)
    record = RunRecord.read(run)
    text = text_of(run)
    for label in record.task["classes"]:
        shown = row_of(text, label, "Thresholds")
        for rate in ("sensitivity", "specificity", "precision", "npv"):
            found = record.metrics["test"]["per_label"][label][rate]
            assert format_estimate(found) in shown or found["value"] is None, (label, rate)


def test_rates_by_a_threshold_of_the_same_scores_are_marked(make_run) -> None:
    assert "a little too good" in text_of(make_run("binary", splits=(("cv", 90),), n_boot=5))
    other = make_run("binary", "other", splits=(("cv", 90), ("test", 60)), n_boot=5)
    assert "a little too good" not in text_of(other)


def test_calibration_shows_before_and_after(make_run) -> None:
    metrics = dict.fromkeys(("brier", "log_loss", "ece"), ESTIMATE)
    better = {name: {"value": 0.125, "low": 0.1, "high": 0.15} for name in metrics}
    calibration = {
        "method": "temperature",
        "temperatures": [1.5],
        "splits": {"cv": {"before": metrics, "after": better}},
    }
    text = text_of(make_run("binary", splits=(("cv", 90),), n_boot=5, calibration=calibration))
    assert "Calibrated by temperature (1.500), learned on out-of-fold scores" in text
    assert "Cross-validation, before" + " 0.250 [0.200, 0.300]" * 3 in text
    assert "Cross-validation, after" + " 0.125 [0.100, 0.150]" * 3 in text


@pytest.mark.parametrize(
    ("kind", "size", "heading"), [("binary", "set_size", "Mean size"), ("regression", "width", "Mean width")]
)
def test_sets_show_coverage_and_size(make_run, kind: str, size: str, heading: str) -> None:
    coverage = {"value": 0.875, "low": 0.8, "high": 0.95}
    conformal = {"method": "LAC", "coverage": 0.9, "splits": {"cv": {"coverage": coverage, size: ESTIMATE}}}
    text = text_of(make_run(kind, splits=(("cv", 90),), n_boot=5, conformal=conformal))
    assert "Asked for: 90% of rows" in text
    assert heading in text
    assert "0.875 [0.800, 0.950] 0.250 [0.200, 0.300]" in text


def test_a_run_without_decisions_says_nothing_of_them(make_run) -> None:
    text = text_of(make_run("regression", splits=(("cv", 90),), n_boot=5))
    for words in ("Thresholds", "Calibrated by", "Prediction sets", "opened"):
        assert words not in text


def test_openings_of_the_test_split_are_counted(make_run) -> None:
    once = make_run("binary", "once", splits=(("cv", 60), ("test", 60)), n_boot=5, openings=OPENINGS)
    assert "opened once, by this run." in text_of(once)
    assert "no longer judged" not in text_of(once)
    again = {**OPENINGS, "number": 3, "count": 3, "recorded": False}
    text = text_of(make_run("binary", "again", splits=(("cv", 60), ("test", 60)), n_boot=5, openings=again))
    assert Openings(**again).explain() in text
    assert "What is chosen after looking at it is no longer judged by it." in text


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_scores_before_calibration_are_read_and_drawn(make_run, kind: str) -> None:
    run = make_run(kind, splits=(("cv", 90),), n_boot=5)
    task = Task.from_dict(RunRecord.read(run).task)
    (before,) = read_predictions(run, task).values()
    plain = write_plots(run)
    sizes = {path.name: path.read_bytes() for path in plain}
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row |= {f"raw[{name}]": str(float(row[f"prob[{name}]"]) ** 2) for name in task.classes}
    with (run / "predictions.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    (after,) = read_predictions(run, task).values()
    assert before.raw is None
    assert after.raw is not None
    assert np.array_equal(after.raw, after.scores**2)
    drawn = {path.name: path.read_bytes() for path in write_plots(run)}
    # Only the reliability diagram shows them.
    assert [name for name in sizes if sizes[name] != drawn[name]] == [name for name in sizes if "calibration" in name]


def test_names_in_tables_are_escaped(make_run) -> None:
    task = Task(kind="binary", targets=("label",), classes=("no", "<b>yes</b>"))
    run = make_run("binary", task=task, splits=(("cv", 60),), n_boot=5)
    page = write_report([run], run / "report.html").read_text(encoding="utf-8")
    assert "<b>yes" not in page
