"""Curves: lines that go on where a run was stopped, and what the optional trackers' own readers find."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

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


def test_a_run_that_goes_on_from_its_beginning_has_no_lines(tmp_path: Path) -> None:
    (lines,) = open_trackers([], tmp_path, {}, until=0)
    lines.log(0, {"before/loss": 3.0})
    lines.close()
    (again,) = open_trackers([], tmp_path, {}, until=0)
    again.log(0, {"before/loss": 3.0})
    again.close()
    assert len(read_lines(tmp_path, until=1)) == 1


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


Curves = dict[str, list[tuple[int, float]]]


def read_tensorboard(run: Path) -> Curves:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (file,) = (run / "tensorboard").iterdir()
    found = EventAccumulator(str(file)).Reload()
    return {name: [(each.step, each.value) for each in found.Scalars(name)] for name in found.Tags()["scalars"]}


def read_mlflow(run: Path) -> Curves:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("frostline")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params == {"lr": "0.1", "out": "run"}
    return {
        name: [(each.step, each.value) for each in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }


def read_wandb(run: Path) -> Curves:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    curves: Curves = {}
    for data in log_records(file.read_bytes()):
        record = Record.FromString(data)
        values = {(*item.nested_key, item.key)[0]: json.loads(item.value_json) for item in record.history.item}
        for name in values.keys() - {"_step", "_runtime", "_timestamp"}:
            curves.setdefault(name, []).append((values["_step"], values[name]))
    return curves


def log_records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a log in LevelDB's format: 7 bytes, then blocks of parts (crc, length, kind, content)."""
    at, record = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's end has no room for a part
            at += 32768 - at % 32768
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


READERS: dict[str, Callable[[Path], Curves]] = {
    "tensorboard": read_tensorboard,
    "mlflow": read_mlflow,
    "wandb": read_wandb,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore:::mlflow", "ignore:::sqlalchemy", "ignore:::wandb", "ignore:::pydantic")
def test_a_tracker_has_each_step_once_where_a_run_went_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own reader finds what it was told, and nothing of steps that were made again; all of it is in the run."""
    pytest.importorskip(name)
    home, run, here = tmp_path / "home", tmp_path / "run", tmp_path / "here"
    for folder in (home, run, here):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(here)
    config = {"lr": 0.1, "out": "run"}
    trackers = open_trackers([name], run, config, until=0)
    tell(trackers, 0, {"before/loss": 3.0})
    for step in (1, 2, 3):
        tell(trackers, step, {"epoch": 0, "step/loss": 1 / step, "step/grad_norm": math.inf})
    for each in trackers:  # as after an interrupt; the third step was made behind the last checkpoint
        each.close()
    trackers = open_trackers([name], run, config, until=2)
    tell(trackers, 3, {"epoch": 0, "step/loss": 9.0})
    tell(trackers, 3, {"epoch": 0, "val/input_to_text/recall@5": 0.25})
    for each in trackers:
        each.close()
    found = READERS[name](run)
    recall = "val/input_to_text/recall_5" if name == "mlflow" else "val/input_to_text/recall@5"
    assert found.keys() == {"before/loss", "epoch", "step/loss", recall}
    assert found["before/loss"] == [(0, 3.0)]
    assert found["step/loss"] == [(1, 1.0), (2, 0.5), (3, 9.0)]
    assert found[recall] == [(3, 0.25)]
    assert [file for folder in (home, here) for file in folder.rglob("*") if file.is_file()] == []


def test_wandb_says_in_one_line_that_it_may_not_go_online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"--track wandb: .*wandb login"):
        open_trackers(["wandb"], tmp_path, {}, until=0)


def test_what_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match="pip install mlflow"):
        check_trackers(["mlflow"])
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        check_trackers(["wandbb"])
