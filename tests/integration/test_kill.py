"""Extractions that are killed or interrupted, in processes of their own: nothing is lost, nothing changes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import cli
from heads.run import new_run

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "crash" / "kill_and_resume.py"


@pytest.fixture
def harness(monkeypatch) -> ModuleType:
    """The script that kills and resumes, as a module."""
    spec = importlib.util.spec_from_file_location("kill_and_resume", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds the project's root
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_three_kills_leave_the_values_of_an_uninterrupted_run(harness) -> None:
    result = harness.run(kills=3, count=150, seed=0)
    assert result["kills"] == 3
    assert result["kills_after_progress"] > 0
    assert result["stored"] == result["samples"] == 150
    assert result["stores_that_lost_rows"] == 0
    assert result["equal_bytes"] is True


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_fit_without_leftovers(tmp_path, monkeypatch, capsys, number: int, code: int) -> None:
    out = tmp_path / "run"

    def fit(*_: object, **__: object) -> None:
        with new_run(out, overwrite=False):
            os.kill(os.getpid(), number)

    options = {"--store": "s", "--encoder": "e", "--target": "y", "--out": str(out)}
    monkeypatch.setattr("heads.fit.fit", fit)
    monkeypatch.setattr(
        "sys.argv", ["frostline", "fit-head", "m.csv", *(text for pair in options.items() for text in pair)]
    )
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert stopped.value.code == code
    assert capsys.readouterr().err.splitlines()[-1] == "frostline: interrupted"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_run_in_good_order(frostline, harness, tmp_path, number: int, code: int) -> None:
    count = 2500
    manifest, store = harness.write_pictures(tmp_path / "data", count), tmp_path / "store"
    process = harness.start(manifest, store)
    harness.first_commit(process, store, 0)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err.decode()
    assert "The same command goes on from here." in err.decode()
    assert "Traceback" not in err.decode()
    summary = json.loads(out)
    assert summary["interrupted"] == number
    assert 0 < summary["encoded"] == summary["stored"] < count

    assert frostline("store", "verify", store).code == 0
    arguments = ("--encoder", harness.ENCODER, "--batch-size", 7, "--json")
    resumed = frostline("extract", manifest, "--store", store, *arguments)
    assert resumed.code == 0, resumed.err
    assert resumed.json["cached"] == summary["stored"]
    assert resumed.json["encoded"] == count - summary["stored"]
    assert frostline("store", "verify", store).code == 0
    keys, x = harness.values(store)
    assert len(np.unique(keys, axis=0)) == len(x) == count
