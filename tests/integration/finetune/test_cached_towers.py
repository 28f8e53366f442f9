"""`finetune --cache-depth`: what is frozen is computed once, is what `extract` stores, and changes no result."""

from __future__ import annotations

import csv
import json
import os
import string
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from data.progress import Silent
from data.sources import read_manifest
from featurestore.forward import Forward
from featurestore.store import FeatureStore
from heads.labelled import join_features

ROOT = Path(__file__).resolve().parents[3]
Finetune = Callable[..., Any]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny CLIP with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**shape, **ids, "vocab_size": 80, "max_position_embeddings": 40}
    vision = {**shape, "image_size": 32, "patch_size": 16}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    letters = string.ascii_lowercase + string.digits
    characters = ["<|startoftext|>", "<|endoftext|>", *letters, *[f"{letter}</w>" for letter in letters]]
    CLIPTokenizer(vocab={each: i for i, each in enumerate(characters)}, merges=[], model_max_length=40).save_pretrained(
        folder
    )
    return f"hf:{folder}"


@pytest.fixture
def rows(pictures: Callable[..., Path]) -> Path:
    """32 pictures with notes, of which neighbours share one; one picture more is damaged."""
    manifest = pictures(32)
    with manifest.open() as file:
        table = list(csv.DictReader(file))
    for i, row in enumerate(table):
        row["note"] = table[i - i % 2]["note"]
    damaged = manifest.parent / "damaged.png"
    damaged.write_bytes((manifest.parent / table[0]["path"]).read_bytes()[:300])
    table.append({**table[0], "id": "damaged", "path": "damaged.png"})
    with manifest.open("w", newline="") as file:
        written = csv.DictWriter(file, list(table[0]))
        written.writeheader()
        written.writerows(table)
    return manifest


@pytest.fixture
def command(clip: str, rows: Path) -> list[object]:
    """The part of the command that is the same for all."""
    options: list[object] = ["finetune", rows, "--input", "path", "--encoder", clip, "--split", "split"]
    return [*options, "--group", "patient", "--epochs", 2, "--batch-size", 6, "--bootstrap", 10, "--lr", 0.01]


@pytest.fixture
def finetune(frostline, command: list[object], tmp_path: Path) -> Finetune:
    """Return a function that fine-tunes: (result, record)."""

    def run(*options: object, out: str) -> tuple[Any, dict[str, Any]]:
        result = frostline(*command, *options, "--out", tmp_path / out)
        path = tmp_path / out / "record.json"
        return result, json.loads(path.read_text()) if path.is_file() else {}

    return run


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many samples each frozen forward pass took."""
    passes: list[int] = []
    reference = Forward.reference

    def counted(self: Forward[Any, Any], inputs: Any) -> Any:
        passes.append(len(inputs["input_ids"] if isinstance(inputs, dict) else inputs))
        return reference(self, inputs)

    monkeypatch.setattr(Forward, "reference", counted)
    return passes


def assert_same_results(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Compare losses, epoch by epoch, and what was dropped."""
    assert one["history"].keys() == other["history"].keys()
    for name, values in one["history"].items():
        assert values == pytest.approx(other["history"][name], abs=1e-5, rel=1e-5), name
    assert one["counts"] == other["counts"]


PAIR = ["--objective", "contrastive", "--text", "note", "--dim", 8]


def pair(clip: str, *options: object) -> list[object]:
    return [*PAIR, "--text-encoder", clip, *options]


@pytest.mark.parametrize(
    ("policies", "kept"),
    [
        (["none"], ["vectors", "vectors"]),
        (["last:1", "--text-unfreeze", "none"], ["activations behind block 1 of 2", "vectors"]),
        (["none", "--text-unfreeze", "last:1"], ["vectors", "activations behind block 1 of 2"]),
        (["none", "--text-unfreeze", "all"], ["vectors", None]),
        (["lora:2", "--text-unfreeze", "none"], [None, "vectors"]),
        (["none", "--augment", "flip"], [None, "vectors"]),
    ],
)
def test_pairs_have_the_losses_of_towers_that_are_computed_anew(
    finetune: Finetune, clip: str, policies: list[str], kept: list[str | None]
) -> None:
    options = pair(clip, "--unfreeze", *policies)
    _, whole = finetune(*options, out="whole")
    result, cached = finetune(*options, "--cache-depth", out="cached")
    assert result.code == 0, result.err
    assert_same_results(cached, whole)
    assert [each["kept"] for each in cached["inputs"]] == kept
    assert [each["kept"] for each in whole["inputs"]] == [None, None]
    assert cached["counts"]["dropped"]["truncated"]["ids"] == ["damaged"]
    assert result.err.count("computed anew in every epoch") == kept.count(None)
    for each in filter(None, kept):
        assert f"its {each} are kept in" in result.err


def test_a_second_run_encodes_nothing(finetune: Finetune, clip: str, encoded: list[int]) -> None:
    finetune(*pair(clip, "--cache-depth"), out="first")
    # 32 pictures and 16 notes, each once; besides, what guards the store looks at a few, and at inputs of its own.
    guards = 2 * (1 + 2)
    assert 32 + 16 <= sum(encoded) <= 32 + 16 + 2 * guards
    encoded.clear()
    result, _ = finetune(*pair(clip, "--cache-depth", "--lr", 0.02), out="second")
    assert result.code == 0, result.err
    assert encoded == []


def test_nothing_of_a_frozen_network_runs_in_training(
    finetune: Finetune, clip: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.image_encoder import ImageEncoder
    from featurestore.text_encoder import TextEncoder

    def refused(*_: object) -> None:
        raise AssertionError("a frozen network was run")

    for encoder in (ImageEncoder, TextEncoder):
        monkeypatch.setattr(encoder, "differentiable", refused)
    result, _ = finetune(*pair(clip, "--cache-depth"), out="run")
    assert result.code == 0, result.err


def test_extract_and_finetune_find_the_features_of_each_other(
    finetune: Finetune, frostline, clip: str, rows: Path, tmp_path: Path, encoded: list[int]
) -> None:
    store = tmp_path / "store"
    images = ["extract", rows, "--input", "path", "--encoder", clip, "--store", store, "--precision", "fp32", "--json"]
    assert frostline(*images).json["encoded"] == 32
    encoded.clear()
    result, record = finetune(*pair(clip, "--cache-depth"), out="run")
    assert result.code == 0, result.err
    assert 16 <= sum(encoded) < 32, "the pictures were encoded again"
    texts = ["extract", rows, "--input", "note", "--encoder", clip, "--store", store, "--precision", "fp32", "--json"]
    found = frostline(*texts)
    assert found.code == 0, found.err
    assert (found.json["encoded"], found.json["cached"]) == (0, 16)
    listed = {row["fingerprint"] for row in frostline("store", "ls", store, "--json").json}
    assert listed == {each["fingerprint"] for each in record["inputs"]}


def test_a_classifier_learns_on_the_features_that_fit_head_reads(
    finetune: Finetune, clip: str, rows: Path, tmp_path: Path
) -> None:
    options = ["--objective", "classification", "--target", "label"]
    _, whole = finetune(*options, out="whole")
    result, cached = finetune(*options, "--cache-depth", out="cached")
    assert result.code == 0, result.err
    assert_same_results(cached, whole)
    inputs = join_features(
        read_manifest(rows, input="path", split="split"),
        FeatureStore(tmp_path / "store"),
        (clip,),
        pooling=None,
        precision=None,
        normalize="none",
        progress=Silent(),
    )
    head = load_file(tmp_path / "cached" / "objectives.safetensors")
    weight, bias = (next(each for name, each in head.items() if name.endswith(part)) for part in ("weight", "bias"))
    scores = torch.sigmoid(torch.from_numpy(inputs.X) @ weight.T + bias)[:, 0]
    expected = dict(zip(inputs.manifest.ids, scores.tolist(), strict=True))
    with (tmp_path / "cached" / "predictions.csv").open() as file:
        found = {row["id"]: float(row["prob[right]"]) for row in csv.DictReader(file)}
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-6)
    assert len(found) == 16


def test_captions_are_written_from_stored_tokens(
    finetune: Finetune, frostline, clip: str, rows: Path, tmp_path: Path, encoded: list[int]
) -> None:
    sizes = ["--set", "captioning.layers=1", "--set", "captioning.dim=16", "--set", "captioning.feedforward=16"]
    options = ["--objective", "captioning", "--text", "note", "--text-encoder", clip, *sizes, "--epochs", 1]
    _, whole = finetune(*options, out="whole")
    encoded.clear()
    result, cached = finetune(*options, "--cache-depth", out="cached")
    assert result.code == 0, result.err
    assert_same_results(cached, whole)
    assert cached["inputs"][0]["kept"] == "vectors and tokens"
    written = [(tmp_path / run / "texts.csv").read_text() for run in ("whole", "cached")]
    assert written[0] == written[1]
    # The same tokens as of `extract`, where these are asked for as float32.
    again = ["--pooling", "auto,tokens", "--precision", "fp32", "--dtype", "float32", "--json"]
    found = frostline("extract", rows, "--input", "path", "--encoder", clip, "--store", tmp_path / "store", *again)
    assert [found.json["encoded"], found.json["also"][0]["encoded"]] == [0, 0]


@pytest.mark.parametrize(("policy", "kept"), [("none", "tokens"), ("last:1", "activations behind block 1 of 2")])
def test_a_pooling_is_learned_on_what_is_stored(finetune: Finetune, policy: str, kept: str) -> None:
    options = ["--objective", "classification", "--target", "label", "--pooling", "learned:attention"]
    options += ["--unfreeze", policy]
    _, whole = finetune(*options, out="whole")
    result, cached = finetune(*options, "--cache-depth", out="cached")
    assert result.code == 0, result.err
    assert_same_results(cached, whole)
    assert cached["inputs"][0]["kept"] == kept
    assert cached["parameters"]["pooling"]["trained"] > 0


@pytest.mark.parametrize("policy", ["none", "last:1"])
def test_prompts_are_kept_like_texts(finetune: Finetune, clip: str, policy: str) -> None:
    options = pair(clip, "--target", "label", "--text-unfreeze", policy)
    _, whole = finetune(*options, out="whole")
    result, cached = finetune(*options, "--cache-depth", out="cached")
    assert result.code == 0, result.err
    assert_same_results(cached, whole)
    ours, theirs = (run["metrics"]["test"]["zero_shot"]["roc_auc"]["value"] for run in (whole, cached))
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_studies_share_the_features_of_their_views(finetune: Finetune, tmp_path: Path, rows: Path) -> None:
    with rows.open() as file:
        table = list(csv.DictReader(file))
    with rows.open("w", newline="") as file:
        written = csv.DictWriter(file, [*table[0], "grade"])
        written.writeheader()
        for row in table:
            written.writerow({**row, "grade": ("low", "high")[int(row["patient"][1:]) // 4 % 2]})
    options = ["--objective", "classification", "--target", "grade", "--bag", "patient", "--max-views", 2]
    _, whole = finetune(*options, out="whole")
    result, cached = finetune(*options, "--cache-depth", out="cached")
    assert result.code == 0, result.err
    assert_same_results(cached, whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--unfreeze", "all"], "of --unfreeze all no lower blocks stay as they are"),
        (["--unfreeze", "lora:2"], "of --unfreeze lora:2 no lower blocks stay as they are"),
        (["--unfreeze", "last:2"], "choose at most last:1"),
        (["--augment", "flip"], "augmented samples are new in every epoch"),
        (["--objective", "classification,masked"], "masked works on the input itself"),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(
    finetune: Finetune, tmp_path: Path, options: list[str], said: str
) -> None:
    result, _ = finetune("--objective", "classification", "--target", "label", *options, "--cache-depth", out="run")
    assert result.code == 2
    assert "--cache-depth: nothing can be kept" in result.error
    assert said in result.error
    assert not (tmp_path / "run").exists()


def test_a_text_that_gives_no_numbers_is_named(finetune: Finetune, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from featurestore.text_encoder import TextEncoder

    encode = TextEncoder.encode_levels

    def damaged(self: TextEncoder, batch: Any) -> Any:
        vectors: Any = encode(self, batch)[0]
        return (torch.where(torch.arange(len(vectors))[:, None] == 3, torch.nan, vectors),)

    monkeypatch.setattr(TextEncoder, "encode_levels", damaged)
    result, _ = finetune(*pair(clip, "--cache-depth"), out="run")
    assert result.code == 2
    assert "the text of 's" in result.error
    assert "not finite" in result.error


@pytest.mark.slow
def test_of_two_processes_one_fills_the_store(
    finetune: Finetune, command: list[object], clip: str, tmp_path: Path
) -> None:
    options = pair(clip, "--cache-depth", "--epochs", 1)
    _, one = finetune(*options, out="one")
    store = tmp_path / "shared"
    two = [*command, *options, "--store", store, "--out", tmp_path / "two"]
    arguments = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*arguments, "-m", "cli", *map(str, two)],
        capture_output=True, text=True, env=environment, check=False, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "two" / "record.json").read_text())
    assert record["training"]["processes"] == 2
    for ours, theirs in zip(record["inputs"], one["inputs"], strict=True):
        assert {**ours, "trained": None} == {**theirs, "trained": None}
        assert len(ours["trained"]) == 64
    assert_same_results(record, one)
    # The damaged picture was tried, and written down, once.
    ledger = [line for path in (store / "ledger").glob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(ledger) == 1
