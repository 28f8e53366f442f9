"""A fine-tuned encoder on the command line: extracted, fitted on and predicted with like any other."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from data.progress import Silent
from data.sources import read_manifest
from data.task import Task
from featurestore.store import FeatureStore
from finetune.handback import save_encoder
from finetune.towers import load_tower
from finetune.warm_start import classifier_from_run
from heads.saved import join_inputs, load_head

BASE = "timm:test_efficientnet/random:0"


def handed_back(folder: Path, *, seed: int = 0) -> Path:
    """Write an encoder whose last block has been moved, with a projection."""
    tower = load_tower(BASE, modality="image", device="cpu")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        tower.network.conv_head.weight += 0.1 * torch.randn_like(tower.network.conv_head.weight)
        tower.projection = nn.Linear(tower.dim, 12)
    save_encoder(folder, {"image": tower}, similarity=None)
    return folder


@pytest.fixture
def encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    handed_back(tmp_path / "runs" / "tuned" / "encoder")
    return Path("runs/tuned/encoder")


def test_extract_fit_predict_and_move(frostline, encoder: Path, pictures, tmp_path: Path) -> None:
    manifest = pictures(24)
    store = ("--store", tmp_path / "store")
    base = frostline("extract", manifest, *store, "--encoder", BASE, "--json").json
    made = frostline("extract", manifest, *store, "--encoder", encoder, "--json")
    assert made.code == 0, made.err
    assert made.json["encoder"] == f"finetuned:{encoder.resolve()}"
    assert made.json["fingerprint"] != base["fingerprint"]
    assert made.json["encoded"] == 24

    fit = ("fit-head", manifest, *store, "--target", "label", "--group", "patient", "--bootstrap", 20)
    for name, given in (("old", BASE), ("new", encoder)):
        result = frostline(*fit, "--encoder", given, "--out", tmp_path / name)
        assert result.code == 0, result.err
    predicted = frostline("predict", tmp_path / "new", manifest, "--out", tmp_path / "p.csv")
    assert predicted.code == 0, predicted.err
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 24

    # The head of the base's features does not take those of the trained encoder, whatever its name.
    bundle = tmp_path / "old" / "head" / "head.json"
    bundle.write_text(bundle.read_text().replace(BASE, f"finetuned:{encoder.resolve()}"))
    refused = frostline("predict", tmp_path / "old", manifest, *store, "--out", tmp_path / "q.csv")
    assert refused.code == 2
    assert f"fitted on features {base['fingerprint'][:12]}" in refused.error
    assert not (tmp_path / "q.csv").exists()

    # Moved, it is the same encoder, and nothing is encoded again; where it was, nothing is found.
    moved = shutil.move(encoder.parent, tmp_path / "elsewhere")
    again = frostline("extract", manifest, *store, "--encoder", f"{moved}/encoder", "--json").json
    assert (again["fingerprint"], again["encoded"]) == (made.json["fingerprint"], 0)
    gone = frostline("predict", tmp_path / "new", manifest, "--out", tmp_path / "r.csv")
    assert gone.code == 2
    assert f"finetuned:{(tmp_path / encoder)}: no encoder.json there" in gone.error
    assert "move it back" in gone.error


def test_it_encodes_the_frames_of_videos(frostline, encoder: Path, make_film, make_scenes, tmp_path: Path) -> None:
    with (tmp_path / "films.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "path"])
        for i in range(3):
            table.writerow([i, make_film(tmp_path / f"{i}.mp4", make_scenes(3, seed=i)).name])
    result = frostline(
        "extract", tmp_path / "films.csv", "--store", tmp_path / "store", "--encoder", f"frames:2+{encoder}", "--json"
    )
    assert result.code == 0, result.err
    assert result.json["encoded"] == 3
    assert result.json["encoder"] == f"frames:2+finetuned:{encoder.resolve()}"


def test_a_head_on_stored_features_is_where_training_through_the_encoder_begins(
    frostline, pictures, tmp_path: Path
) -> None:
    """The cached path and the end-to-end one agree: logits through the network are those of the head."""
    manifest, store = pictures(36, classes=3), tmp_path / "store"
    assert frostline("extract", manifest, "--store", store, "--encoder", BASE).code == 0
    fit = ("fit-head", manifest, "--store", store, "--target", "label", "--group", "patient", "--bootstrap", 20)
    result = frostline(*fit, "--encoder", BASE, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    tower = load_tower(BASE, modality="image", device="cpu")
    bundle = load_head(tmp_path / "run")
    classifier = classifier_from_run(tmp_path / "run", tower.encoder.spec, Task.from_dict(bundle.task))
    table = read_manifest(manifest, input="path")
    with torch.no_grad():
        logits = classifier(tower(tower.collate([tower.read(each) for each in table.sources]))[0])
    X = join_inputs(table, bundle, FeatureStore(store), Silent()).X
    expected = torch.from_numpy(bundle.head.decision_function(X)).float()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
