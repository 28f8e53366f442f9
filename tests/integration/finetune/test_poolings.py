"""Poolings that are learned, on the command line."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from finetuned_runs import record_of
from safetensors.torch import load_file


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
