"""Tiny networks, pairs and studies for tests of fine-tuning."""

from __future__ import annotations

import csv
import shutil
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuned_runs import written

Run = Callable[..., Any]
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


@pytest.fixture(scope="session")
def vision(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny ViT with random weights, as transformers writes it."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    folder = tmp_path_factory.mktemp("vit")
    shape = {"hidden_size": 16, "intermediate_size": 17, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(ViTConfig(**shape, image_size=32, patch_size=16)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pictures with a label, a number and a split; 12 train."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, size=(32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        split = "train" if i < 12 else "val" if i < 18 else "test"
        rows.append([f"s{i}", f"{i}.png", "ab"[i % 2], str(i), split])
    return written(folder / "manifest.csv", rows)


@pytest.fixture
def tune(frostline, vision: str, table: Path, tmp_path: Path) -> Run:
    """Return a function that fine-tunes: (result, run)."""

    def run(*arguments: object, manifest: Path = table, out: str = "run", target: str = "label") -> Any:
        command = ["finetune", manifest, "--input", "path", "--encoder", vision, "--split", "split", "--target", target]
        options = ["--objective", "classification", "--epochs", 2, "--batch-size", 6, "--bootstrap", 0]
        return frostline(*command, *options, "--out", tmp_path / out, *arguments), tmp_path / out

    return run


@pytest.fixture(scope="session")
def finished(vision: str, table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, to be copied before it is damaged."""
    from finetune.config import FinetuneConfig
    from finetune.fit import finetune

    out = tmp_path_factory.mktemp("finished") / "run"
    values = {"input": "path", "split": "split", "target": "label", "objective": "classification", "epochs": 2}
    finetune(FinetuneConfig(manifest=table, encoder=vision, unfreeze="last:1", bootstrap=0, out=out, **values))
    return out


@pytest.fixture
def damaged(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    return Path(shutil.copytree(finished, tmp_path / "damaged"))
