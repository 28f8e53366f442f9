"""Steps of several passes, looks at the rows that choose, and runs that were stopped and go on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from finetuned_runs import assert_same_weights, best_weights, record_of, stopped_after
from safetensors.torch import load_file


@pytest.mark.parametrize(
    ("policy", "steps"), [("gradual:1:1", 2), ("gradual:1:1", 3), ("gradual:1:1", 5), ("frozen:0.5:step:1", 4)]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tuned, monkeypatch, policy: str, steps: int) -> None:
    """Stopped within an epoch, at its end, and within the second."""
    options = ["--unfreeze", policy, "--lr", "0.01"]
    _, whole = tuned(*options, out="whole")
    run = stopped_after(steps, monkeypatch, lambda: tuned(*options, out="stopped"))
    assert not (run / "record.json").exists()
    resumed, run = tuned(*options, out="stopped")
    assert resumed.code == 0, resumed.err
    assert f"going on after step {steps}" in resumed.err
    assert_same_weights(whole, run)
    ours, theirs = record_of(run), record_of(whole)
    assert ours["history"] == theirs["history"]
    assert ours["metrics"] == theirs["metrics"]


LOOKS = ["--judge-every", 2, "--unfreeze", "gradual:1:1", "--lr", "0.01"]
"""24 rows in steps of 8: an epoch has three steps, so that a look falls into the middle of each."""


def last_weights(run: Path) -> dict[str, torch.Tensor]:
    (path,) = (run / "checkpoints").glob("step-*.safetensors")
    return load_file(path)


def test_looks_every_few_steps_change_nothing_of_the_training(tuned) -> None:
    _, epochs = tuned(*LOOKS[2:], out="epochs", epochs=3)
    result, looks = tuned(*LOOKS, out="looks", epochs=3)
    assert result.code == 0, result.err
    ours, theirs = last_weights(looks), last_weights(epochs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    training, history = record_of(looks)["training"], record_of(looks)["history"]
    assert training["looks"] == [2, 4, 6, 8, 9]
    best = int(np.argmin(history["val/loss"]))
    assert training["best_step"] == training["looks"][best]
    assert training["best_epoch"] == (training["best_step"] - 1) // 3
    lines = [json.loads(line) for line in (looks / "metrics.jsonl").read_text().splitlines()]
    losses = [line["step/loss"] for line in lines if "step/loss" in line]
    means = [np.mean(losses[max(end - 2, 0) : end]) for end in (2, 4, 6, 8)]
    assert history["train/loss"] == pytest.approx([*means, losses[-1]])
    assert (
        f"Step {training['best_step']}, in epoch {training['best_epoch'] + 1}, was the best by loss on 8 samples (val, "
        "judged every 2 steps)" in (looks / "report.html").read_text()
    )
    assert "step 2: loss" in result.err


def test_patience_counts_looks_and_the_best_one_is_handed_back(tuned, monkeypatch) -> None:
    given = iter([9.0, 3.0, 2.0, math.nan, 2.5])  # the first is asked for before any training
    monkeypatch.setattr("finetune.fit.value_of", lambda *_: next(given))
    result, run = tuned(*LOOKS, "--patience", 2, out="patience", epochs=4)
    assert result.code == 0, result.err
    training = record_of(run)["training"]
    assert (training["looks"], training["best_step"], training["best_epoch"]) == ([2, 4, 6, 8], 4, 1)
    assert training["steps"] == 8  # of 12
    assert [path.name for path in (run / "checkpoints").glob("best*")] == ["best-4.safetensors"]
    head = load_file(run / "objectives.safetensors")
    assert all(
        torch.equal(value, next(each for key, each in best_weights(run).items() if key.endswith(name)))
        for name, value in head.items()
    )


@pytest.mark.parametrize(("steps", "objective"), [(3, "classification"), (5, "contrastive,triplet")])
def test_a_run_that_was_stopped_between_two_looks_goes_on_to_the_same_weights(
    tuned, clip: str, monkeypatch, steps: int, objective: str
) -> None:
    """Also where pairs of several passes are compared with each other, and negatives are drawn."""
    options = [*LOOKS]
    if objective != "classification":
        options += ["--text", "caption", "--text-encoder", clip, "--batch-size", 4, "--accumulate", 2]
        options += ["--set", "triplet.negative=random"]
    _, whole = tuned(*options, objective=objective, out="whole")
    stopped_after(steps, monkeypatch, lambda: tuned(*options, objective=objective, out="stopped"))
    resumed, run = tuned(*options, objective=objective, out="stopped")
    assert resumed.code == 0, resumed.err
    assert f"going on after step {steps}" in resumed.err
    assert_same_weights(whole, run)
    ours, theirs = record_of(run), record_of(whole)
    assert ours["history"] == theirs["history"]
    assert ours["training"] == theirs["training"]


def test_other_options_do_not_go_on_where_a_run_was_stopped(tuned, monkeypatch) -> None:
    _, run = tuned(out="run")
    (run / "record.json").unlink()
    result, _ = tuned("--lr", "0.5", out="run")
    assert result.code == 2
    assert "other options" in result.error


@pytest.mark.parametrize("objective", ["classification", "contrastive,captioning"])
def test_micro_batches_make_the_step_of_the_whole_batch(tuned, clip: str, objective: str) -> None:
    """24 rows in steps of 10: the last step has one short pass, which weighs less."""
    options = ["--unfreeze", "last:1", "--lr", "0.01"]
    if objective != "classification":
        decoder = ("layers=1", "dim=32", "feedforward=32", "dropout=0")
        options += ["--text", "caption", "--text-encoder", clip, "--dim", 16]
        options += [part for setting in decoder for part in ("--set", f"captioning.{setting}")]
    (result, whole), (_, parts) = (
        tuned(*options, "--batch-size", 10 // k, "--accumulate", k, objective=objective, out=f"{k}") for k in (1, 2)
    )
    assert result.code == 0, result.err
    assert_same_weights(whole, parts, within=2e-6)
    ours, theirs = record_of(parts), record_of(whole)
    for name, values in theirs["history"].items():
        assert ours["history"][name] == pytest.approx(values, abs=1e-4), name
    losses = theirs["metrics"]["test"]["losses"]
    assert ours["metrics"]["test"]["losses"] == pytest.approx(losses, abs=1e-4)
