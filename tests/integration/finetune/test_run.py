"""`finetune` on tiny networks: what a run directory holds, and that it is a function of its options."""

from __future__ import annotations

import csv
import json
import math

import pytest
import torch
from finetuned_runs import assert_same_weights, record_of


def test_a_run_directory_is_whole(tuned) -> None:
    result, run = tuned("--unfreeze", "last:1", "--lr", "0.01")
    assert result.code == 0, result.err
    record = record_of(run)
    assert record["kind"] == "finetune"
    assert {"val", "test"} == set(record["metrics"])
    metric = record["metrics"]["test"]["roc_auc"]
    assert metric["low"] <= metric["value"] <= metric["high"]
    assert record["counts"]["dropped"]["truncated"]["ids"] == ["broken"]
    assert record["counts"]["trained"] == 24
    trained = record["parameters"]["encoder"]
    assert 0 < trained["trained"] < trained["all"]
    assert record["training"]["steps"] == 2 * 3
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "step/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert len(record["history"]["train/loss"]) == 2
    page = (run / "report.html").read_text()
    assert "fine-tuned" in page
    assert "parameters were trained" in page
    with (run / "predictions.csv").open() as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"val", "test"}


def test_the_learning_rate_of_each_step_is_that_of_the_schedule(tuned) -> None:
    _, run = tuned(
        "--unfreeze", "last:1", "--lr", "0.01", "--encoder-lr", "0.1", "--warmup", "0.5", "--lr-floor", "0.2"
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step/loss" in line]
    after = [0.2 + 0.8 * (1 + math.cos(math.pi * done / 3)) / 2 for done in range(3)]
    for line, factor in zip(steps, [0, 1 / 3, 2 / 3, *after], strict=True):
        assert line["lr/objectives"] == pytest.approx(0.01 * factor)
        assert line["lr/tower"] == pytest.approx(0.001 * factor)


def test_a_rate_may_change_by_epochs(tuned) -> None:
    """Two epochs of warm-up that do not begin at nothing, then a cosine to the floor, as of one source."""
    options = ["--warmup", "0.5", "--lr-floor", "0.05", "--lr", "0.01", "--schedule-by", "epoch"]
    _, run = tuned(*options, epochs=4)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr/objectives"] for line in lines if "step/loss" in line]
    expected = [0.005, 0.01, 0.01, 0.01 * (0.05 + 0.95 * 0.5)]
    assert rates == pytest.approx([rate for rate in expected for _ in range(3)])


def test_half_precision_ends_near_full_precision(tuned) -> None:
    (_, full), (result, half) = tuned(out="full"), tuned("--amp", "bf16", out="half")
    assert result.code == 0, result.err
    ours, theirs = (record_of(run)["metrics"]["test"]["log_loss"]["value"] for run in (full, half))
    assert ours != theirs
    assert ours == pytest.approx(theirs, rel=0.05)


def test_two_runs_end_with_the_same_record_and_weights(tuned) -> None:
    from finetune.record import FinetuneRecord

    options = ["--unfreeze", "all", "--augment", "flip,rotation=10"]
    (_, one), (_, other) = tuned(*options, out="one"), tuned(*options, "--track", "tensorboard", out="other")
    assert_same_weights(one, other)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert FinetuneRecord.read(one).stable_digest() == FinetuneRecord.read(other).stable_digest()
    assert list((other / "tensorboard").iterdir())


def test_where_a_run_is_computed_is_no_part_of_it(tuned) -> None:
    from finetune.record import FinetuneRecord

    (_, one), (_, other) = tuned(out="one"), tuned("--device", "cpu", "--workers", 1, out="other")
    assert FinetuneRecord.read(one).stable_digest() == FinetuneRecord.read(other).stable_digest()


def test_a_finished_run_is_kept(tuned) -> None:
    tuned()
    result, _ = tuned()
    assert result.code == 2
    assert "--overwrite" in result.error
    again, _ = tuned("--overwrite")
    assert again.code == 0


@pytest.mark.parametrize(("values", "code"), [([math.nan, 2.0, 3.0], 0), ([math.nan] * 3, 2)])
def test_what_is_no_number_is_never_best(tuned, monkeypatch, values: list[float], code: int) -> None:
    given = iter([0.0, *values])  # the first is asked for before any training
    monkeypatch.setattr("finetune.fit.value_of", lambda *_: next(given))
    result, run = tuned(epochs=3)
    assert result.code == code, result.err
    if code:
        assert "never a finite number" in result.error
    else:
        assert record_of(run)["training"]["best_epoch"] == 1


def test_gradients_that_are_not_finite_are_told(tuned, monkeypatch) -> None:
    norm = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils, "clip_grad_norm_", lambda *given, **options: norm(*given, **options) * torch.inf
    )
    result, run = tuned("--unfreeze", "last:1")
    assert result.code == 2
    assert "the gradients have the norm inf in epoch 0, step 0" in result.error
    assert not (run / "record.json").exists()


def test_a_loss_that_diverges_is_told_and_never_best(tuned) -> None:
    result, run = tuned("--unfreeze", "all", "--lr", "1e30", "--encoder-lr", "1e6", epochs=3)
    assert result.code == 2
    assert "training diverged" in result.error
    assert not (run / "record.json").exists()
