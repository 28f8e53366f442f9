"""Studies of several views as samples of fine-tuning."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finetuned_runs import VIEWS, assert_same_weights, fit_head, record_of

from finetune.loop import Loop


@pytest.mark.parametrize("aggregate", ["mean", "transformer:1:4"])
def test_studies_of_several_views_are_one_sample(tuned, frostline, studies: Path, aggregate: str) -> None:
    options = ["--bag", "patient", "--aggregate", aggregate, "--max-views", 1, "--unfreeze", "last:1"]
    result, run = tuned(*options, "--target", "grade", manifest=studies)
    assert result.code == 0, result.err
    record = record_of(run)
    assert record["counts"]["splits"]["test"]["samples"] == 4
    assert record["counts"]["dropped"]["bags without a row"]["ids"] == ["p99"]
    assert ("aggregator" in record["parameters"]) == (aggregate != "mean")
    with (run / "predictions.csv").open() as file:
        assert {row["id"] for row in csv.DictReader(file) if row["split"] == "test"} == {"p16", "p17", "p18", "p19"}
    again = frostline("evaluate", run, studies, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"]["log_loss"]["value"] == pytest.approx(
        record["metrics"]["test"]["log_loss"]["value"], abs=1e-5
    )


def test_a_study_has_the_weight_of_any_of_its_rows(tuned, pairs: Path, monkeypatch) -> None:
    from finetune.samples import weights_of

    found: list[Any] = []

    def listening(*given: Any) -> Any:
        found.append((given[1], weights_of(*given)))
        return found[-1][1]

    monkeypatch.setattr("finetune.build.weights_of", listening)
    with pairs.open() as file:
        rows = [{**row, "study": row["patient"]} for row in csv.DictReader(file)]
    studies = pairs.parent / "weighted_studies.csv"

    def run(weights: dict[int, str]) -> Any:
        with studies.open("w", newline="") as file:
            table = csv.DictWriter(file, [*rows[0], "grade", "severity"])
            table.writeheader()
            for i, row in enumerate(rows):
                severity = weights.get(i, "" if i % 2 else str(i // 2 % 3))
                table.writerow({**row, "grade": ["high", "low"][i // 2 % 2], "severity": severity})
        return tuned(*options, manifest=studies)[0]

    options = ["--bag", "study", "--target", "grade", "--sample-weight", "severity"]
    assert run({}).code == 0
    samples, weights = found[0]
    at = dict(zip(samples.data.manifest.ids, weights, strict=True))
    assert [at[f"p{i}"] for i in range(16)] == [i % 3 for i in range(12)] + [1] * 4
    for wrong, said in (({5: "7"}, "'p2' is '2'"), ({4: ""}, "no row of study 'p2' has a weight"), ({4: "x"}, "'x'")):
        options = [*options, "--overwrite"]
        result = run(wrong)
        assert result.code == 2
        assert said in result.error


def test_a_teacher_of_studies_says_what_it_predicts(tuned, frostline, clip: str, pairs: Path, tmp_path, monkeypatch):
    from finetune.teacher import taught_by

    found: list[Any] = []

    def listening(run: Path, samples: Any, *given: Any) -> Any:
        found.append((samples.data, taught_by(run, samples, *given)))
        return found[-1][1]

    monkeypatch.setattr("finetune.fit.taught_by", listening)
    with pairs.open() as file:
        rows = list(csv.DictReader(file))
    studies = pairs.parent / "taught_studies.csv"
    with studies.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        # The rows of a study are apart, and one of each says its label.
        for i, row in sorted(enumerate(rows), key=lambda each: each[0] % 2):
            table.writerow({**row, "label": "" if i % 2 else ["high", "low"][i // 2 % 2]})
    head = fit_head(frostline, clip, studies, tmp_path, "--refit", "train", "--bag", "patient")
    result, _ = tuned("--teacher", head, "--bag", "patient", manifest=studies, epochs=1)
    assert result.code == 0, result.err
    frostline("predict", head, studies, "--store", tmp_path / "store", "--out", tmp_path / "said.csv")
    with (tmp_path / "said.csv").open() as file:
        said = {row["id"]: float(row["prob[low]"]) for row in csv.DictReader(file)}
    ((data, taught),) = found
    train = [data.manifest.ids[i] for i in data.rows("train")]
    assert len(train) == 12
    np.testing.assert_allclose(taught[data.rows("train"), 0], [said[name] for name in train], atol=1e-6)


def test_views_are_drawn_in_training_and_their_consistency_is_a_loss(tuned, studies: Path, frostline) -> None:
    options = ["--bag", "patient", "--aggregate", "transformer:1:4", "--target", "grade", "--unfreeze", "last:1"]
    (_, plain), (result, run) = (
        tuned(*options, manifest=studies, out="plain"),
        tuned(*options, *VIEWS, manifest=studies),
    )
    assert result.code == 0, result.err
    ours, theirs = record_of(run), record_of(plain)
    history = ours["history"]
    total = [a + 0.2 * b for a, b in zip(history["train/classification"], history["train/consistency"], strict=True)]
    assert history["train/loss"] == pytest.approx(total, rel=1e-6)
    assert all(0 < each < 1 for each in history["train/consistency"])
    # What is judged is judged as without these options: every study whole, by the same aggregator, before any training
    assert ours["training"]["before"] == theirs["training"]["before"]
    assert history["val/loss"] == history["val/classification"]
    assert "consistency" not in ours["metrics"]["test"]["losses"]
    again = frostline("evaluate", run, studies, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"]["losses"] == pytest.approx(ours["metrics"]["test"]["losses"], abs=1e-5)


def test_drawn_views_go_on_where_a_run_was_stopped(tuned, studies: Path, monkeypatch) -> None:
    options = ["--bag", "patient", "--aggregate", "transformer:1:4", "--target", "grade", *VIEWS, "--batch-size", 4]
    _, whole = tuned(*options, manifest=studies, out="whole")
    step = Loop._step

    def stopping(self: Loop, passes: Any, epoch: int, number: int, **named: Any) -> Any:
        if number == 4:
            raise KeyboardInterrupt
        return step(self, passes, epoch, number, **named)

    monkeypatch.setattr("finetune.loop.SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", stopping)
        stopped, run = tuned(*options, manifest=studies, out="stopped")
    assert stopped.code == 130
    resumed, run = tuned(*options, manifest=studies, out="stopped")
    assert resumed.code == 0, resumed.err
    assert_same_weights(whole, run)
    assert record_of(run)["history"] == record_of(whole)["history"]
