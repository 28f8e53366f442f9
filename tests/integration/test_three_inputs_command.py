"""All modes of one system in one comparison: an image, image and text, and both with a few numbers of the text."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from heads.artifact import load_bundle

FULL = {
    "branch_hidden": [[64], [], []],
    "branch_norm": "layer",
    "order": "linear-activation-norm",
    "joined_norm": "layer",
    "hidden": [512, 128],
    "norm": "none",
    "dropout": [0.35, 0.25],
    "standardize": [True, False, False],
    "members": 1,
    "max_epochs": 3,
}
SIZES = {"numbers": 14, "image": 16, "text": 16}


@pytest.fixture
def stored(frostline, pictures, toy, toy_text, tmp_path) -> tuple[Path, Path]:
    """Pictures with notes in a column called text, and a store of three sets of features."""
    manifest = pictures()
    with manifest.open(newline="") as file:
        rows = [
            {("text" if name == "note" else name): cell for name, cell in row.items()} for row in csv.DictReader(file)
        ]
    with manifest.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    store = tmp_path / "store"
    for column, encoder in (("path", toy), ("text", toy_text), ("text", "speech:features")):
        result = frostline("extract", manifest, "--input", column, "--store", store, "--encoder", encoder)
        assert result.code == 0, result.err
    return manifest, store


def test_all_modes_are_judged_on_the_same_rows_and_folds(frostline, stored, toy, toy_text, tmp_path) -> None:
    manifest, store = stored
    mlp = {"hidden": [256], "norm": "none", "input_norm": "layer", "members": 1, "max_epochs": 3, "standardize": False}
    modes = {
        "vision_only": ([toy], {"head": "mlp", "set": {**mlp, "dropout": 0.5}}),
        "multimodal_basic": ([toy, toy_text], {"head": "mlp", "set": {**mlp, "dropout": 0.4}}),
        "multimodal_full": (["speech:features", toy, toy_text], {"head": "concat_fusion", "set": FULL}),
    }
    suite = tmp_path / "modes.yaml"
    content = {
        "datasets": {"people": {"manifest": str(manifest), "input": "path", "target": "label", "group": "patient"}},
        "folds": 3,
        "bootstrap": 20,
        "encoders": [
            {"name": mode, "encoder": encoders, "heads": [{"label": "published", **head}]}
            for mode, (encoders, head) in modes.items()
        ],
    }
    suite.write_text(yaml.safe_dump(content), encoding="utf-8")
    result = frostline("compare", suite, "--store", store, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    found = {row["encoder"]: row for row in result.json["table"] if row["metric"] == "roc_auc"}
    assert set(found) == {"", *modes}

    # Published counts are of two logits; of two classes one is learned, with a weight per input and a bias fewer.
    joined = 64 + SIZES["image"] + SIZES["text"]
    full = (14 * 64 + 64) + 2 * 64 + 2 * joined + (joined * 512 + 512) + (512 * 128 + 128) + (128 + 1)
    basic = sum((2 * 32, 32 * 256 + 256, 256 + 1))
    assert int(found["multimodal_full"]["parameters"]) == full
    assert int(found["multimodal_basic"]["parameters"]) == basic

    run = tmp_path / "out" / found["multimodal_full"]["run"]
    head = load_bundle(run / "head").head
    assert head.blocks_ == list(SIZES.values())
    assert (head.scale_[SIZES["numbers"] :] == 1).all()

    judged = {}
    for mode in modes:
        with (tmp_path / "out" / found[mode]["run"] / "predictions.csv").open(newline="") as file:
            judged[mode] = [(row["id"], row["fold"]) for row in csv.DictReader(file)]
    assert judged["vision_only"] == judged["multimodal_basic"] == judged["multimodal_full"]


def test_the_lists_are_given_on_the_command_line(frostline, stored, toy, toy_text, tmp_path) -> None:
    manifest, store = stored
    encoders = ("--encoder", "speech:features", "--encoder", toy, "--encoder", toy_text)
    fit = ("fit-head", manifest, "--input", "path", "--store", store, *encoders, "--target", "label", "--folds", 2)
    text = {
        **{name: value for name, value in FULL.items() if not isinstance(value, list)},
        "branch_hidden": "[[64],[],[]]",
        "hidden": "512,128",
        "dropout": "0.35,0.25",
        "standardize": "true,false,false",
    }
    given = [part for name, value in text.items() for part in ("--set", f"{name}={value}")]
    options = ("--head", "concat_fusion", "--bootstrap", 20, "--json", *given)
    fitted = frostline(*fit, *options, "--out", tmp_path / "run")
    assert fitted.code == 0, fitted.err
    assert [block["dim"] for block in fitted.json["inputs"]] == list(SIZES.values())

    wrong = frostline(*fit, *options, "--set", "branch_hidden=[[64],[]]", "--out", tmp_path / "wrong")
    assert wrong.code == 2
    assert "branch_hidden=((64,), ()) is for 2 sets of features, and there are 3" in wrong.error
    assert not (tmp_path / "wrong").exists()
