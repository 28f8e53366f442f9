"""Objectives on the command line: captions, pairs, sums and weights of samples."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from finetuned_runs import assert_same_weights, record_of
from safetensors.torch import load_file

from heads.evaluation.bootstrap import format_number


def test_captions_are_written_and_judged(tuned, frostline, pairs: Path, tmp_path: Path) -> None:
    sizes = ["--set", "captioning.layers=1", "--set", "captioning.dim=32", "--set", "captioning.feedforward=32"]
    options = ["--text", "caption", "--unfreeze", "none", "--lr", "0.01", *sizes]
    result, run = tuned(*options, objective="captioning", epochs=3)
    assert result.code == 0, result.err
    metrics = record_of(run)["metrics"]["test"]
    assert 0 <= metrics["captions"]["rougeL"]["value"] <= 1
    with (run / "texts.csv").open() as file:
        written = {row["id"]: row["written"] for row in csv.DictReader(file)}
    assert frostline("predict", run, pairs, "--out", tmp_path / "captions.csv").code == 3  # one picture is damaged
    with (tmp_path / "captions.csv").open() as file:
        again = {row["id"]: row["written"] for row in csv.DictReader(file)}
    assert len(again) == 40
    assert {name: again[name] for name in written} == written


def test_captions_have_a_length_and_a_vocabulary(tuned, frostline, clip: str, pairs: Path, tmp_path: Path) -> None:
    sizes = ["--set", "captioning.layers=1", "--set", "captioning.dim=32", "--set", "captioning.feedforward=32"]
    words = ["--set", f"captioning.vocabulary={clip}", "--set", "captioning.max_length=6"]
    options = ["--text", "caption", "--unfreeze", "none", "--lr", "0.01", *sizes, *words]
    result, run = tuned(*options, objective="captioning", epochs=1)
    assert result.code == 0, result.err
    # "red a" has four tokens of one letter, and begins and ends with one more.
    (warning,) = [each for each in record_of(run)["warnings"] if "were cut" in each]
    assert warning.startswith("20 of 40 captions are longer than 6 tokens")
    assert load_file(run / "objectives.safetensors")["objectives.captioning.decoder.embedding.weight"].shape[0] == 54
    with (run / "texts.csv").open() as file:
        written = {row["id"]: row["written"] for row in csv.DictReader(file)}
    assert frostline("predict", run, pairs, "--out", tmp_path / "captions.csv").code == 3  # one picture is damaged
    with (tmp_path / "captions.csv").open() as file:
        again = {row["id"]: row["written"] for row in csv.DictReader(file)}
    assert {name: again[name] for name in written} == written
    # A caption that does not end has a beginning and five letters, the last of each word by itself.
    assert max(len(text.replace(" ", "")) for text in again.values()) <= 5
    judged = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert judged.json["metrics"]["captions"] == record_of(run)["metrics"]["test"]["captions"]
    short, _ = tuned(*options, "--set", "captioning.positions=4", objective="captioning", out="short")
    assert short.code == 2
    assert "captioning: positions=4 is too few for captions of max_length=6 tokens" in short.error


def test_a_text_tower_of_open_clip_may_stand_beside_a_decoder(tuned, pairs: Path, tmp_path: Path) -> None:
    """CLIP's own tokenizer is none of transformers: captions are made of other words, which is said."""
    import open_clip
    from safetensors.torch import save_file

    text = {"context_length": 16, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1}
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16}
    config = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    preprocess = {"size": 32, "mode": "RGB", "mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic"}
    described = {"model_cfg": config, "preprocess_cfg": {**preprocess, "resize_mode": "shortest", "fill_color": 0}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(described))
    sizes = ["--set", "captioning.layers=1", "--set", "captioning.dim=8", "--set", "captioning.feedforward=8"]
    options = ["--text", "caption", "--text-encoder", f"open_clip:local-dir:{tmp_path}", "--dim", 16, *sizes]
    result, run = tuned(*options, objective="contrastive,captioning", epochs=1)
    assert result.code == 0, result.err
    (warning,) = [each for each in record_of(run)["warnings"] if "offline:minilm" in each]
    assert warning.startswith("captions are made of the words of offline:minilm, since open_clip:local-dir:")
    assert load_file(run / "objectives.safetensors")["objectives.captioning.decoder.embedding.weight"].shape[0] == 30522


@pytest.mark.parametrize("objective", ["contrastive", "sigmoid", "triplet"])
def test_pairs_are_judged_by_retrieval(tuned, frostline, clip: str, pairs: Path, objective: str) -> None:
    options = ["--text", "caption", "--text-encoder", clip, "--dim", 16, "--unfreeze", "none", "--lr", "0.01"]
    result, run = tuned(*options, objective=objective)
    assert result.code == 0, result.err
    record = record_of(run)
    retrieval = record["metrics"]["test"]["retrieval"]
    assert retrieval["input_to_text"]["candidates"] == 8
    assert 0 <= retrieval["text_to_input"]["recall@5"]["value"] <= 1
    assert record["parameters"]["projection"] == {"all": 24 * 16, "trained": 24 * 16}
    if objective != "triplet":
        assert f'"learned/{objective}/temperature"' in (run / "metrics.jsonl").read_text()
    assert [each["modality"] for each in record["inputs"]] == ["image", "text"]
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    found = again.json["metrics"]["retrieval"]["pairs"]["alignment"]
    assert found == pytest.approx(retrieval["pairs"]["alignment"], abs=1e-5)


def test_an_aligned_pair_is_judged_by_prompts_as_zero_shot_does(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path
) -> None:
    words = ["--template", "{finding}", "--template", "a {finding}"]
    options = ["--text", "caption", "--text-encoder", clip, "--dim", 16, "--unfreeze", "last:1", "--lr", "0.01"]
    result, run = tuned(
        *options, *words, "--target", "label", "--choose", "zero_shot/log_loss", objective="contrastive", epochs=6
    )
    assert result.code == 0, result.err
    record = record_of(run)
    found = record["metrics"]["test"]["zero_shot"]
    assert {"value", "low", "high"} <= set(found["accuracy"])
    assert record["training"]["best_value"] == min(record["history"]["val/zero_shot/log_loss"])
    assert record["training"]["best_value"] < record["training"]["before"]["zero_shot/log_loss"]
    assert "Zero-shot: Accuracy" in (run / "report.html").read_text()
    assert record["prompts"]["positive"] == [["green", "a green"], ["red", "a red"]]

    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"]["zero_shot"]["log_loss"]["value"] == pytest.approx(
        found["log_loss"]["value"], abs=1e-5
    )

    store = ["--store", tmp_path / "features", "--encoder", run / "encoder"]
    assert frostline("extract", pairs, "--input", "path", *store).code == 3  # one picture is damaged
    judged = ["--target", "label", "--split", "split", "--group", "patient", "--bootstrap", 20]
    alone = frostline(
        "zero-shot", pairs, "--input", "path", *store, *judged, *words, "--prompt-average", "renormalized",
        "--out", tmp_path / "zero-shot", "--json",
    )  # fmt: skip
    assert alone.code == 0, alone.err
    for metric in ("accuracy", "roc_auc", "log_loss"):
        assert alone.json["metrics"]["test"][metric]["value"] == pytest.approx(found[metric]["value"], abs=1e-4)


def test_samples_of_one_target_may_be_right_answers(tuned, frostline, clip: str, pairs: Path) -> None:
    options = ["--text", "caption", "--text-encoder", clip, "--dim", 16, "--unfreeze", "none", "--lr", "0.01"]
    wanted = ["--set", "contrastive.positives=target"]
    refused, _ = tuned(*options, *wanted, objective="contrastive", out="refused")
    assert refused.code == 2
    assert "needs --target" in refused.error
    result, run = tuned(*options, *wanted, "--target", "label", objective="contrastive")
    assert result.code == 0, result.err
    record = record_of(run)
    assert record["task"]["classes"] == ["green", "red"]
    assert set(record["metrics"]["test"]) == {"retrieval", "zero_shot", "losses"}
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    found, recorded = again.json["metrics"]["losses"], record["metrics"]["test"]["losses"]
    assert found["contrastive"] == pytest.approx(recorded["contrastive"], abs=1e-5)
    # Half of each batch has the same colour: no answer could be told from the other right ones.
    assert recorded["contrastive"] > math.log(3)


def test_training_rows_may_have_weights(tuned, frostline, pairs: Path) -> None:
    """Weights of rows that judge are not read, and green pictures of weight 0 are as if they were not there."""
    with pairs.open() as file:
        rows = list(csv.DictReader(file))
    table = pairs.parent / "weights.csv"

    def write(weights: dict[str, str]) -> None:
        with table.open("w", newline="") as file:
            out = csv.DictWriter(file, [*rows[0], "severity"])
            out.writeheader()
            for row in rows:
                weight = weights[row["label"]] if row["split"] == "train" else "?"
                out.writerow({**row, "severity": weight})

    write({"red": "2.5", "green": "0"})
    result, run = tuned("--sample-weight", "severity", "--lr", "0.1", manifest=table)
    assert result.code == 0, result.err
    with (run / "predictions.csv").open() as file:
        red = [float(row["prob[red]"]) for row in csv.DictReader(file)]
    _, plain = tuned("--lr", "0.1", out="plain")
    with (plain / "predictions.csv").open() as file:
        before = [float(row["prob[red]"]) for row in csv.DictReader(file)]
    assert min(red) > max(0.5, sum(before) / len(before))
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"]["losses"]["loss"] == pytest.approx(
        record_of(run)["metrics"]["test"]["losses"]["loss"], abs=1e-5
    )
    write({"red": "1", "green": "1"})
    _, even = tuned("--sample-weight", "severity", "--lr", "0.1", manifest=table, out="even")
    assert_same_weights(even, plain)
    for weight, said in (("", "expected a weight, a number of 0 or more, found 'nothing'"), ("-1", "found '-1'")):
        write({"red": "1", "green": weight})
        refused, where = tuned("--sample-weight", "severity", manifest=table, out="refused")
        assert refused.code == 2
        assert said in refused.error
        assert not where.exists()


def test_several_objectives_are_summed(tuned, clip: str) -> None:
    options = ["--text", "caption", "--text-encoder", clip, "--unfreeze", "last:1"]
    result, run = tuned(*options, objective="classification,contrastive")
    assert result.code == 0, result.err
    history = record_of(run)["history"]
    total = [a + b for a, b in zip(history["train/classification"], history["train/contrastive"], strict=True)]
    assert history["train/loss"] == pytest.approx(total, rel=1e-6)
    page = (run / "report.html").read_text()
    losses = page[page.index("Training, first") : page.index("Each loss before its weight")]
    assert format_number(history["val/contrastive"][record_of(run)["training"]["best_epoch"]]) in losses
    _, alone = tuned("--unfreeze", "none", out="alone")
    assert "Training, first" not in (alone / "report.html").read_text()
