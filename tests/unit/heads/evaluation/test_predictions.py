"""Reading predictions.csv: what comes back, and what is refused with its row."""

from __future__ import annotations

import numpy as np
import pytest

from data.task import Task
from heads.errors import RunError
from heads.evaluation.metrics import evaluate
from heads.evaluation.predictions import read_predictions
from heads.record import RunRecord


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_predictions_give_the_recorded_metrics_again(make_run, kind):
    run = make_run(kind, splits=(("cv", 90), ("test", 70)), n_boot=20)
    record = RunRecord.read(run)
    task = Task.from_dict(record.task)
    for split, rows in read_predictions(run, task).items():
        metrics = evaluate(
            task.kind,
            rows.y,
            rows.scores,
            classes=task.classes or task.targets,
            groups=rows.groups,
            thresholds=[threshold["value"] for threshold in record.thresholds.values()],
            n_boot=20,
            min_positives=5,
        )
        assert metrics == record.metrics[split]


def test_questions_are_one_per_class_over_known_answers(make_run):
    run = make_run("multilabel", splits=(("cv", 90),), n_boot=3)
    record = RunRecord.read(run)
    rows = read_predictions(run, Task.from_dict(record.task))["cv"]
    questions = rows.questions({"Edema": 0.25})
    assert [question.name for question in questions] == record.task["classes"]
    assert sum(len(question.truth) for question in questions) == np.isfinite(rows.y).sum()
    assert {question.threshold for question in questions} == {None, 0.25}


def test_rows_without_a_group_have_none(make_run):
    run = make_run("binary", splits=(("cv", 60),), n_boot=3)
    text = (run / "predictions.csv").read_text().splitlines()
    first = text[1].split(",")
    first[3] = ""
    (run / "predictions.csv").write_text("\n".join([text[0], ",".join(first), *text[2:]]))
    rows = read_predictions(run, Task.from_dict(RunRecord.read(run).task))["cv"]
    assert rows.groups[0] is None
    assert rows.groups[1].startswith("patient")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("prob[malignant]", "probability"), "needs the columns"),
        (lambda text: text.replace(",benign,", ",begnin,", 1), "row .*column 'true'.*begnin"),
        (lambda text: text.rsplit(",", 1)[0] + ",high", "expected a number, found 'high'"),
    ],
)
def test_damage_is_located(make_run, change, message):
    run = make_run("binary", splits=(("cv", 60),), n_boot=3)
    (run / "predictions.csv").write_text(change((run / "predictions.csv").read_text()))
    with pytest.raises(RunError, match=message):
        read_predictions(run, Task.from_dict(RunRecord.read(run).task))


def test_a_missing_file_is_one_clear_line(make_run):
    run = make_run("binary", splits=(("cv", 60),), n_boot=3)
    (run / "predictions.csv").unlink()
    with pytest.raises(RunError, match=r"predictions\.csv: cannot be read"):
        read_predictions(run, Task.from_dict(RunRecord.read(run).task))
