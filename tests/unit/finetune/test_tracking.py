"""Curves: lines that go on where a run was stopped, and what the optional trackers are told."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import ConfigError
from finetune.history import History
from finetune.tracking import FILE, check_trackers, open_trackers, read_lines, tell


def test_lines_behind_the_step_that_a_run_goes_on_from_are_forgotten(tmp_path: Path) -> None:
    (lines,) = open_trackers([], tmp_path, {}, until=0)
    for step in (1, 2, 3):
        lines.log(step, {"epoch": 0, "step/loss": 1 / step})
    lines.close()
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "step/lo')  # a crash in the middle of a line
    (again,) = open_trackers([], tmp_path, {}, until=2)
    again.log(3, {"epoch": 0, "step/loss": 9.0})
    again.close()
    assert [(line["step"], line["step/loss"]) for line in read_lines(tmp_path, until=9)] == [
        (1, 1.0),
        (2, 0.5),
        (3, 9.0),
    ]


def test_the_history_has_looks_and_what_was_before(tmp_path: Path) -> None:
    history = History(tmp_path, until=0)
    tell([history], 0, {"before/loss": 3.0})
    tell([history], 1, {"epoch": 0, "step/loss": 2.5})
    tell([history], 2, {"epoch": 0, "train/loss": 2.0, "val/loss": math.nan})
    tell([history], 4, {"epoch": 1, "train/loss": 1.0, "val/loss": 1.5})
    assert history.before == {"loss": 3.0}
    tell([history], 5, {"epoch": 1, "train/loss": 0.5, "val/loss": 1.0})
    assert history.looks == [2, 4, 5]
    assert history.columns == {"train/loss": [2.0, 1.0, 0.5], "val/loss": [None, 1.5, 1.0]}
    assert (history.at(5, "val/loss"), history.at(2, "val/loss"), history.at(None, "val/loss")) == (1.0, None, None)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Stand-ins for mlflow and wandb that write down what they are told."""
    calls: list[tuple[str, Any]] = []

    def note(name: str) -> Any:
        return lambda *given, **named: calls.append((name, given or named))

    names = ("set_tracking_uri", "set_experiment", "start_run", "log_params", "end_run")
    mlflow = SimpleNamespace(**{name: note(name) for name in names})
    mlflow.log_metrics = lambda values, step: calls.append(("log_metrics", (values, step)))
    run = SimpleNamespace(log=lambda values, step: calls.append(("log", (values, step))), finish=note("finish"))
    wandb = SimpleNamespace(init=lambda **named: (calls.append(("init", named)), run)[1])
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return calls


def test_mlflow_and_wandb_are_told_the_same_values(told: list[tuple[str, Any]], tmp_path: Path) -> None:
    trackers = open_trackers(["mlflow", "wandb"], tmp_path, {"lr": 0.1}, until=0)
    tell(trackers, 7, {"step/loss": 0.5, "step/grad_norm": math.inf})
    for tracker in trackers:
        tracker.close()
    calls = dict(told)
    assert calls["log_metrics"] == calls["log"] == ({"step/loss": 0.5}, 7)
    assert calls["set_tracking_uri"][0] == f"sqlite:///{tmp_path.absolute()}/mlflow.db"
    assert calls["log_params"] == ({"lr": "0.1"},)
    assert calls["init"]["config"] == {"lr": 0.1}
    assert {"end_run", "finish"} <= set(calls)


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="pip install mlflow"):
        open_trackers(["mlflow"], tmp_path, {}, until=0)
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        check_trackers(["wandbb"])
