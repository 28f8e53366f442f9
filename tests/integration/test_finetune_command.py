"""`finetune` and what follows it, on tiny networks: runs are whole, go on, agree with frozen features and refuse."""

from __future__ import annotations

import csv
import json
import math
import os
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from finetune.loop import Loop

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("red", "green")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny CLIP with random weights, as transformers writes it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    shape = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**shape, **ids, "vocab_size": 200, "max_position_embeddings": 24}
    vision = {**shape, "image_size": 32, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    characters = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    characters += [f"{letter}</w>" for letter in string.ascii_lowercase]
    tokens = {token: i for i, token in enumerate(characters)}
    CLIPTokenizer(vocab=tokens, merges=[], model_max_length=24).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 pictures of a colour with captions: id, path, label, split, patient, caption; one picture is damaged."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        label = i % 2
        pixels = rng.integers(0, 200, size=(36, 40, 3), dtype=np.uint8)
        pixels[..., label] = 230
        Image.fromarray(pixels).save(folder / f"{i}.png")
        split = "train" if i < 24 else "val" if i < 32 else "test"
        caption = f"{COLOURS[label]} {string.ascii_lowercase[i // 2]}"
        rows.append([f"s{i}", f"{i}.png", COLOURS[label], split, f"p{i // 2}", caption])
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:200])
    rows.append(["broken", "broken.png", "red", "train", "p99", "red zz"])
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "path", "label", "split", "patient", "caption"], *rows])
    return manifest


@pytest.fixture
def tuned(frostline, clip: str, pairs: Path, tmp_path: Path):
    """Return a function that fine-tunes: (result, run)."""

    def run(
        *arguments: object,
        out: str = "run",
        epochs: int = 2,
        objective: str = "classification",
        manifest: Path = pairs,
    ):
        folder = tmp_path / out
        command = ["finetune", manifest, "--input", "path", "--encoder", clip, "--split", "split", "--group", "patient"]
        named = "--target" in arguments or "classification" not in objective
        target = [] if named else ["--target", "label"]
        options = ["--objective", objective, "--epochs", epochs, "--batch-size", 8, "--bootstrap", 20, "--out", folder]
        return frostline(*command, *target, *options, *arguments), folder

    return run


def record_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "record.json").read_text())
    return found


def best_weights(run: Path) -> dict[str, torch.Tensor]:
    (path,) = (run / "checkpoints").glob("best-*.safetensors")
    return load_file(path)


def assert_same_weights(one: Path, other: Path, *, within: float = 0.0) -> None:
    ours, theirs = best_weights(one), best_weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        # Softmax takes no notice of a key's bias: its gradient is rounding alone, which Adam makes as large as others.
        if within and name.endswith(("k_proj.bias", "key_value.bias")):
            continue
        assert torch.allclose(tensor, theirs[name], rtol=0, atol=within), name


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


def test_two_runs_end_with_the_same_record_and_weights(tuned) -> None:
    from finetune.record import FinetuneRecord

    options = ["--unfreeze", "all", "--augment", "flip,rotation=10"]
    (_, one), (_, other) = tuned(*options, out="one"), tuned(*options, "--track", "tensorboard", out="other")
    assert_same_weights(one, other)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert FinetuneRecord.read(one).stable_digest() == FinetuneRecord.read(other).stable_digest()
    assert list((other / "tensorboard").iterdir())


def stopped_after(steps: int, monkeypatch, run: Callable[[], Any]) -> Path:
    """Return the directory of a run that is interrupted after some steps, each of which was saved."""
    done, step = [0], Loop._step

    def stopping(self: Loop, *arguments: Any, **named: Any) -> Any:
        if done[0] == steps:
            raise KeyboardInterrupt
        done[0] += 1
        return step(self, *arguments, **named)

    monkeypatch.setattr("finetune.loop.SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_step", stopping)
        stopped, folder = run()
    assert stopped.code == 130
    return folder


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


def test_a_frozen_encoder_gives_the_scores_of_cached_features(
    tuned, frostline, clip: str, pairs: Path, tmp_path
) -> None:
    from data.progress import Silent
    from data.sources import read_manifest
    from featurestore.store import FeatureStore
    from heads.labelled import join_features

    result, run = tuned("--unfreeze", "none", "--lr", "0.05")
    assert result.code == 0, result.err
    assert record_of(run)["parameters"]["encoder"]["trained"] == 0
    store = tmp_path / "features"
    frostline("extract", pairs, "--input", "path", "--encoder", clip, "--store", store, "--precision", "fp32")
    manifest = read_manifest(pairs, input="path", split="split")
    inputs = join_features(
        manifest, FeatureStore(store), (clip,), pooling=None, precision=None, normalize="none", progress=Silent()
    )
    head = load_file(run / "objectives.safetensors")
    weight = next(value for name, value in head.items() if name.endswith("weight")).numpy()
    bias = next(value for name, value in head.items() if name.endswith("bias")).numpy()
    logits = inputs.X @ weight.T + bias
    expected = dict(zip(inputs.manifest.ids, 1 / (1 + np.exp(-logits[:, 0])), strict=True))
    with (run / "predictions.csv").open() as file:
        found = {row["id"]: float(row["prob[red]"]) for row in csv.DictReader(file)}
    assert len(found) == 16
    for name, score in found.items():
        assert score == pytest.approx(expected[name], abs=1e-5)


@pytest.mark.parametrize("kind", ["attention", "cls_token"])
def test_a_learned_pooling_is_a_part_of_the_encoder(tuned, frostline, pairs: Path, tmp_path: Path, kind: str) -> None:
    from data.progress import Silent
    from data.sources import read_manifest
    from featurestore.store import FeatureStore
    from heads.labelled import join_features

    result, run = tuned("--pooling", f"learned:{kind}", "--unfreeze", "last:1", "--lr", "0.01", "--encoder-lr", "0.1")
    assert result.code == 0, result.err
    record = record_of(run)
    attention = 4 * 32 * 32 + 4 * 32
    count = 32 + attention + 2 * 32 if kind == "attention" else 32 + attention + 2 * 32 * 128 + 128 + 32 + 4 * 32
    assert record["parameters"]["pooling"] == {"all": count, "trained": count}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (last,) = [line for line in lines if line["step"] == 5 and "step/loss" in line]
    assert last["lr/tower pooling"] == last["lr/objectives"] == pytest.approx(10 * last["lr/tower"])
    store, encoder = tmp_path / "features", run / "encoder"
    rows = ["--input", "path", "--store", store, "--precision", "fp32", "--dtype", "float32"]
    assert frostline("extract", pairs, "--encoder", encoder, *rows).code == 3  # one picture is damaged
    (kept,) = frostline("store", "ls", store, "--json").json
    assert kept["fingerprint"] == record["inputs"][0]["trained"]
    manifest = read_manifest(pairs, input="path", split="split")
    inputs = join_features(
        manifest,
        FeatureStore(store),
        (str(encoder),),
        pooling=None,
        precision=None,
        normalize="none",
        progress=Silent(),
    )
    head = load_file(run / "objectives.safetensors")
    (weight,), (bias,) = (
        [value.numpy() for name, value in head.items() if name.endswith(end)] for end in ("weight", "bias")
    )
    logits = inputs.X @ weight.T + bias
    expected = dict(zip(inputs.manifest.ids, 1 / (1 + np.exp(-logits[:, 0])), strict=True))
    with (run / "predictions.csv").open() as file:
        found = {row["id"]: float(row["prob[red]"]) for row in csv.DictReader(file)}
    assert len(found) == 16
    for name, score in found.items():
        assert score == pytest.approx(expected[name], abs=1e-5)
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"]["log_loss"]["value"] == pytest.approx(
        record["metrics"]["test"]["log_loss"]["value"], abs=1e-5
    )


def test_pooled_pairs_are_captioned_and_restored(tuned, frostline, clip: str, pairs: Path) -> None:
    """Both towers pool what they learned to, and the decoder reads the tokens below the pooling."""
    options = ["--pooling", "learned:attention", "--text-pooling", "learned:cls_token", "--dim", 16]
    options += ["--text", "caption", "--text-encoder", clip, "--unfreeze", "none", "--lr", "0.01"]
    sizes = ["--set", "captioning.layers=1", "--set", "captioning.dim=32", "--set", "captioning.feedforward=32"]
    result, run = tuned(*options, *sizes, objective="contrastive,captioning")
    assert result.code == 0, result.err
    record = record_of(run)
    assert {"pooling", "text pooling", "projection", "text projection"} <= set(record["parameters"])
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    ours, theirs = again.json["metrics"], record["metrics"]["test"]
    assert ours["losses"] == pytest.approx(theirs["losses"], abs=1e-5)
    assert ours["captions"]["rougeL"]["value"] == pytest.approx(theirs["captions"]["rougeL"]["value"])


def test_a_learned_pooling_above_a_cached_depth_trains_the_same(tuned) -> None:
    options = ["--pooling", "learned:attention", "--unfreeze", "last:1", "--lr", "0.01"]
    _, whole = tuned(*options, out="whole")
    result, cached = tuned(*options, "--cache-depth", out="cached")
    assert result.code == 0, result.err
    ours, theirs = (record_of(run)["history"] for run in (whole, cached))
    for name in ("train/loss", "val/loss"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


def fit_head(frostline, clip: str, pairs: Path, tmp_path: Path, *options: str) -> Path:
    """Fit a linear head on features of the same encoder."""
    store, head = tmp_path / "store", tmp_path / "head"
    frostline("extract", pairs, "--input", "path", "--encoder", clip, "--store", store, "--precision", "fp32")
    rows = ["--input", "path", "--target", "label", "--split", "split", "--group", "patient"]
    fitted = frostline(
        *["fit-head", pairs, *rows, "--encoder", clip, "--store", store, "--head", "linear", "--bootstrap", "20"],
        *["--folds", "2", "--threshold", "0.5", "--out", head, *options],
    )
    assert fitted.code == 0, fitted.err
    return head


def test_a_head_to_begin_with_must_not_have_seen_rows_that_judge(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path
) -> None:
    result, run = tuned("--warm-start", fit_head(frostline, clip, pairs, tmp_path))
    assert result.code == 2
    assert "was fitted on 8 of the 8 val rows" in result.err
    assert "--refit train" in result.err
    assert not run.exists()


def test_a_teacher_is_learned_from_the_training_rows(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path, monkeypatch
) -> None:
    from finetune.teacher import taught_by

    head = fit_head(frostline, clip, pairs, tmp_path, "--refit", "train", "--calibration", "temperature")
    taught: list[np.ndarray] = []

    def listening(*given: Any) -> np.ndarray:
        taught.append(taught_by(*given))
        return taught[-1]

    monkeypatch.setattr("finetune.fit.taught_by", listening)
    alone = ["--set", "classification.teacher_weight=1", "--set", "classification.teacher_temperature=1"]
    result, run = tuned("--teacher", head, *alone, "--unfreeze", "none", "--lr", "0.05", epochs=20)
    assert result.code == 0, result.err
    with pairs.open() as file:
        train = [row["split"] == "train" for row in csv.DictReader(file)][:40]
    frostline("predict", head, pairs, "--store", tmp_path / "store", "--out", tmp_path / "said.csv")
    with (tmp_path / "said.csv").open() as file:
        said = np.array([float(row["prob[red]"]) for row in csv.DictReader(file)])
    np.testing.assert_allclose(taught[0][train, 0], said[train], atol=1e-6)
    assert np.isnan(taught[0][~np.array(train)]).all()
    history = record_of(run)["history"]
    assert history["train/classification"][-1] < history["train/classification"][0] / 10
    # What judges is the loss of the labels, here and where the run is read back.
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    recorded = record_of(run)["metrics"]["test"]
    assert again.json["metrics"]["losses"]["loss"] == pytest.approx(recorded["losses"]["loss"], abs=1e-5)
    assert recorded["losses"]["loss"] == pytest.approx(recorded["log_loss"]["value"], abs=1e-5)


def test_a_teacher_must_not_have_seen_rows_that_judge(tuned, frostline, clip: str, pairs: Path, tmp_path: Path) -> None:
    head = fit_head(frostline, clip, pairs, tmp_path)
    result, run = tuned("--teacher", head)
    assert result.code == 2
    assert f"--teacher {head}: the head was fitted on 8 of the 8 val rows" in result.err
    assert not run.exists()
    empty, _ = tuned("--teacher", head, "--store", tmp_path / "empty")
    assert empty.code == 2
    other, _ = tuned("--teacher", head, "--target", "split", "--kind", "multiclass")
    assert other.code == 2
    assert "the head learned binary of label" in other.err
    _, student = tuned(epochs=1, out="student")
    tuned_too, _ = tuned("--teacher", student)
    assert tuned_too.code == 2
    assert "is a fine-tuned run, and has no head; extract with --encoder" in tuned_too.error


def test_another_head_at_the_same_place_is_another_run(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path
) -> None:
    head = fit_head(frostline, clip, pairs, tmp_path, "--refit", "train")
    _, run = tuned("--teacher", head, epochs=1)
    (run / "record.json").unlink()
    again, _ = tuned("--teacher", head, epochs=1)
    assert again.code == 0, again.err
    (run / "record.json").unlink()
    described = json.loads((head / "head" / "head.json").read_text())
    (head / "head" / "head.json").write_text(json.dumps({**described, "extra": {**described["extra"], "view": None}}))
    result, _ = tuned("--teacher", head, epochs=1)
    assert result.code == 2
    assert "other options" in result.error


def test_training_that_makes_a_warm_start_worse_is_told(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path
) -> None:
    head = fit_head(frostline, clip, pairs, tmp_path, "--refit", "train")
    result, run = tuned("--warm-start", head, "--unfreeze", "all", "--lr", "1", "--encoder-lr", "1", "--warmup", "0")
    assert result.code == 0, result.err
    assert "epoch 0: loss" in result.err
    (warning,) = [each for each in record_of(run)["warnings"] if "training made it worse" in each]
    assert warning in result.err
    record = record_of(run)
    assert record["history"]["val/loss"][record["training"]["best_epoch"]] > record["training"]["before"]["loss"]


def test_a_warm_start_on_unit_vectors_is_restored(tuned, frostline, clip: str, pairs: Path, tmp_path: Path) -> None:
    head = fit_head(frostline, clip, pairs, tmp_path, "--refit", "train", "--normalize", "l2")
    result, run = tuned("--warm-start", head, "--lr", "1e-3", epochs=1)
    assert result.code == 0, result.err
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"]["log_loss"] == pytest.approx(record_of(run)["metrics"]["test"]["log_loss"], abs=1e-6)


def test_evaluate_finds_in_a_new_process_what_the_run_recorded(tuned, frostline, pairs: Path) -> None:
    _, run = tuned("--unfreeze", "last:1", "--lr", "0.01")
    result = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20, "--json")
    assert result.code == 0, result.err
    recorded = record_of(run)["metrics"]["test"]
    for name in ("roc_auc", "accuracy", "log_loss"):
        assert result.json["metrics"][name] == pytest.approx(recorded[name], abs=1e-6)
    refused = frostline("evaluate", run, pairs, "--split", "train")
    assert refused.code == 2
    assert "was trained on" in refused.error


def test_predict_needs_no_labels(tuned, frostline, pairs: Path, tmp_path: Path) -> None:
    _, run = tuned("--unfreeze", "last:1", "--lr", "0.05")
    with (run / "predictions.csv").open() as file:
        recorded = {row["id"]: float(row["prob[red]"]) for row in csv.DictReader(file)}
    folder = tmp_path / "new"
    folder.mkdir()
    for i in (32, 33):
        (folder / f"{i}.png").write_bytes((pairs.parent / f"{i}.png").read_bytes())
    result = frostline("predict", run, folder, "--out", tmp_path / "predictions.csv")
    assert result.code == 0, result.err
    with (tmp_path / "predictions.csv").open() as file:
        found = [float(row["prob[red]"]) for row in csv.DictReader(file)]
    assert found == pytest.approx([recorded["s32"], recorded["s33"]], abs=1e-5)
    refused = frostline("predict", run, folder, "--out", tmp_path / "near.csv", "--neighbours", 3, "--store", tmp_path)
    assert refused.code == 2
    assert "fine-tuned run" in refused.error


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


def test_extract_takes_the_encoder_under_a_new_fingerprint(tuned, frostline, clip: str, pairs: Path, tmp_path) -> None:
    _, run = tuned("--unfreeze", "last:1", "--lr", "0.05")
    store = tmp_path / "features"
    for encoder in (clip, run / "encoder"):
        command = ["extract", pairs, "--input", "path", "--store", store, "--encoder", encoder]
        assert frostline(*command).code == 3  # one picture is damaged
    prints = {row["fingerprint"] for row in frostline("store", "ls", store, "--json").json}
    assert len(prints) == 2
    (tower,) = record_of(run)["inputs"]
    assert {tower["fingerprint"], tower["trained"]} == prints


def test_an_encoder_that_was_named_by_a_relative_path_is_found_from_anywhere(
    tuned, frostline, clip: str, pairs: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = Path(clip.removeprefix("hf:"))
    monkeypatch.chdir(folder.parent)
    result, run = tuned("--unfreeze", "last:1", "--encoder", f"hf:{folder.name}", "--lr", "0.05")
    assert result.code == 0, result.err
    _, other = tuned("--unfreeze", "last:1", "--lr", "0.05", out="other")
    monkeypatch.chdir(tmp_path)
    again = frostline("evaluate", run, pairs, "--split", "test", "--bootstrap", 20)
    assert again.code == 0, again.err
    assert record_of(run)["inputs"][0]["trained"] == record_of(other)["inputs"][0]["trained"]


def test_val_rows_are_answered_as_their_metrics_are_cut(tuned, frostline, pairs: Path) -> None:
    """At 0.5: the threshold of the test rows is chosen on them."""
    _, run = tuned("--unfreeze", "none", "--lr", "0.001", "--threshold", "sensitivity=0.9", "--epochs", 1)
    record = record_of(run)
    with (run / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    (threshold,) = (each["value"] for each in record["thresholds"].values())
    scores = [float(row["prob[red]"]) for row in rows if row["split"] == "val"]
    assert any((score >= threshold) != (score >= 0.5) for score in scores)
    for split in ("val", "test"):
        own = [row for row in rows if row["split"] == split]
        confusion = record["metrics"][split]["confusion"]
        pairs_of = [(row["true"], row["pred"]) for row in own]
        names = confusion["classes"]
        assert [[pairs_of.count((true, said)) for said in names] for true in names] == confusion["counts"]
    again = frostline("evaluate", run, pairs, "--split", "val", "--bootstrap", 20, "--json").json
    assert again["metrics"]["confusion"] == record["metrics"]["val"]["confusion"]


def test_where_a_run_is_computed_is_no_part_of_it(tuned) -> None:
    from finetune.record import FinetuneRecord

    (_, one), (_, other) = tuned(out="one"), tuned("--device", "cpu", "--workers", 1, out="other")
    assert FinetuneRecord.read(one).stable_digest() == FinetuneRecord.read(other).stable_digest()


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


def test_several_objectives_are_summed(tuned, clip: str) -> None:
    options = ["--text", "caption", "--text-encoder", clip, "--unfreeze", "last:1"]
    result, run = tuned(*options, objective="classification,contrastive")
    assert result.code == 0, result.err
    history = record_of(run)["history"]
    total = [a + b for a, b in zip(history["train/classification"], history["train/contrastive"], strict=True)]
    assert history["train/loss"] == pytest.approx(total, rel=1e-6)


def test_a_cached_depth_trains_the_same_upper_blocks(tuned, frostline, tmp_path: Path) -> None:
    options = ["--unfreeze", "last:1", "--lr", "0.01"]
    _, whole = tuned(*options, out="whole")
    result, cached = tuned(*options, "--cache-depth", out="cached")
    assert result.code == 0, result.err
    assert_same_weights(whole, cached, within=2e-5)
    (kept,) = frostline("store", "ls", tmp_path / "store", "--json").json
    assert "up to block 1" in kept["names"][0]
    assert record_of(cached)["inputs"][0]["fingerprint"] == record_of(whole)["inputs"][0]["fingerprint"]
    refused, _ = tuned(*options, "--cache-depth", "--augment", "flip", out="augmented")
    assert refused.code == 2
    assert "augment" in refused.error


def test_a_frozen_share_is_the_blocks_that_it_leaves(tuned) -> None:
    """Half of two blocks; a ramp that a run does not reach the end of is refused where nothing would ever train."""
    (_, last), (_, frozen) = tuned("--unfreeze", "last:1", out="last"), tuned("--unfreeze", "frozen:0.5", out="frozen")
    assert_same_weights(last, frozen)
    unreached, _ = tuned("--unfreeze", "frozen:0.5:step:2", out="unreached")
    assert unreached.code == 2
    assert "nothing would ever be unfrozen" in unreached.error
    assert record_of(frozen)["parameters"]["encoder"] == record_of(last)["parameters"]["encoder"]
    cached, _ = tuned("--unfreeze", "frozen:0.5:linear:2", "--cache-depth", out="cached")
    assert cached.code == 2
    assert "no lower blocks stay as they are" in cached.error


@pytest.fixture
def studies(pairs: Path) -> Path:
    """Two pictures of a patient as a study, whose grade is that of its first row: every second row says nothing."""
    with pairs.open() as file:
        rows = list(csv.DictReader(file))
    studies = pairs.parent / "studies.csv"
    with studies.open("w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0], "grade"])
        table.writeheader()
        for i, row in enumerate(rows):
            table.writerow({**row, "grade": "" if i % 2 else ["high", "low"][i // 2 % 2]})
    return studies


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


VIEWS = ["--single-view", "0.3", "--view-dropout", "0.3", "--consistency", "0.2", "--unfreeze", "last:1"]


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


PAIR = ["--text", "caption", "--target", "label"]
TOGETHER = {
    "looks": (["--unfreeze", "gradual:1:1", "--judge-every", 2, *PAIR], "classification,contrastive", 2),
    "a falling share": (["--unfreeze", "frozen:0:linear:2", *PAIR], "classification,contrastive", 3),
    "studies": (["--bag", "patient", "--target", "grade", *VIEWS], "classification", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TOGETHER))
def test_two_processes_train_as_one(tuned, clip: str, pairs: Path, studies: Path, tmp_path: Path, name: str) -> None:
    """Two passes on each of two against one on one, with looks in between, other parameters by the epoch, and views."""
    own, objective, epochs = TOGETHER[name]
    manifest = studies if name == "studies" else pairs
    options = [*own, *(["--text-encoder", clip] if "--text" in own else []), "--lr", "0.01"]
    result, one = tuned(*options, objective=objective, epochs=epochs, manifest=manifest)
    assert result.code == 0, result.err
    two = tmp_path / "two"
    command = ["finetune", manifest, "--input", "path", "--encoder", clip, "--split", "split", "--group", "patient"]
    command += ["--objective", objective, "--epochs", epochs, "--batch-size", 4, "--accumulate", 2, "--bootstrap", 20]
    port = str(29617 + list(TOGETHER).index(name))
    arguments = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    arguments += ["-m", "cli", *map(str, [*command, *options, "--out", two])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment, check=False, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_same_weights(one, two, within=2e-5)
    ours, theirs = record_of(one), record_of(two)
    assert theirs["training"]["processes"] == 2
    for name in ("roc_auc", "log_loss"):
        assert ours["metrics"]["test"][name]["value"] == pytest.approx(
            theirs["metrics"]["test"][name]["value"], abs=1e-4
        )


@pytest.mark.parametrize(
    ("arguments", "objective", "said"),
    [
        ([], "clasification", "did you mean 'classification'"),
        ([], "contrastive", "needs --text"),
        (["--unfreeze", "last"], "classification", "expected none, last:K"),
        (["--unfreeze", "last:9"], "classification", "has 2 blocks"),
        (["--set", "classification.hiden=3"], "classification", "did you mean 'hidden'"),
        (["--set", "sigmoid.bias=3"], "classification", "objective of this run"),
        (["--augment", "flop"], "classification", "did you mean 'flip'"),
        (["--choose", "rocauc"], "classification", "did you mean 'roc_auc'"),
        (["--track", "tensorbord"], "classification", "did you mean 'tensorboard'"),
        (["--text", "caption"], "classification", "leave it out"),
        (["--text-unfreeze", "all"], "classification", "no --text-encoder was named"),
        (["--text-lr", "0.5"], "classification", "no --text-encoder was named"),
        (["--text", "caption", "--sample-weight", "label"], "captioning", "nothing of --objective captioning weighs"),
        (["--sample-weight", "lable"], "classification", "did you mean 'label'"),
        (["--template", "{finding}"], "classification", "--template and --prompts: judge aligned pairs"),
        (["--pooling", "tokens"], "classification", "makes no vector of a sample"),
        (["--pooling", "learned:max"], "classification", "did you mean 'learned:attention'"),
        (["--pooling", "learned:attention", "--warm-start", "x"], "classification", "makes others"),
        (["--pooling", "learned:attention", "--text", "caption"], "captioning", "reads the vector"),
        (["--text-pooling", "learned:attention"], "classification", "reads the vector"),
        (["--max-views", "3"], "classification", "--max-views: is for studies"),
        (["--single-view", "0.3"], "classification", "--single-view: is for studies"),
        (["--view-dropout", "0.3"], "classification", "--view-dropout: is for studies"),
        (["--consistency", "0.2"], "classification", "--consistency: is for studies"),
        (["--bag", "patient", "--view-dropout", "1"], "classification", "less than 1"),
        (["--bag", "patient", "--single-view", "-0.1"], "classification", "greater than or equal to 0"),
        (["--bag", "patient", "--consistency", "nan"], "classification", "consistency"),
        (["--bag", "patient", "--weight", "consistency=1"], "classification", "leave it out of --weight"),
        (["--teacher", "nowhere"], "classification", "nowhere: does not exist"),
        (["--set", "classification.teacher_weight=1"], "classification", "there is no teacher"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tuned, arguments, objective: str, said: str) -> None:
    result, run = tuned(*arguments, objective=objective)
    assert result.code == 2
    assert said in result.error
    assert "Traceback" not in result.err
    assert not (run / "record.json").exists()


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_that_train_nothing_are_refused(tuned, clip: str, accumulate: int) -> None:
    """A triplet loss has no parameters of its own, and nothing of the towers is trained in the first epoch."""
    options = ["--text", "caption", "--text-encoder", clip, "--unfreeze", "gradual:1:1", "--accumulate", accumulate]
    result, _ = tuned(*options, objective="triplet")
    assert result.code == 2
    assert "no loss depends on anything that is trained in epoch 0, step 0" in result.error


def test_a_finished_run_is_kept(tuned) -> None:
    tuned()
    result, _ = tuned()
    assert result.code == 2
    assert "--overwrite" in result.error
    again, _ = tuned("--overwrite")
    assert again.code == 0


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
