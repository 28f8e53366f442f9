"""`zero-shot`, and `fit-head` with prompts, as a user runs them on texts and their class prompts in one space."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

# The weightless text encoder embeds spellings, so texts near a prompt's letters are near its vector.
FILE = {"classes": {"cold": ["icy snow and frost"], "hot": ["desert sand and fire"]}}
TEXTS = {"cold": "icy snow and frosts {}", "hot": "desert sand and fires {}"}


@pytest.fixture
def texts(frostline, toy_text, tmp_path) -> tuple[Path, Path, Path]:
    """Write and extract 24 short texts; return manifest, store and the file of prompts."""
    manifest, store, prompts = tmp_path / "texts.csv", tmp_path / "store", tmp_path / "prompts.yaml"
    with manifest.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "text", "label", "split", "degrees", "code"])
        for i in range(24):
            label = ("cold", "hot")[i % 2]
            split = ("train", "train", "val", "test")[i // 2 % 4]
            table.writerow([f"t{i}", TEXTS[label].format(i), label, split, i * 1.5, i % 2])
    prompts.write_text(yaml.safe_dump(FILE))
    assert frostline("extract", manifest, "--store", store, "--encoder", toy_text).code == 0
    return manifest, store, prompts


@pytest.fixture
def zero_shot(frostline, texts, toy_text, tmp_path):
    manifest, store, prompts = texts
    base = ("zero-shot", manifest, "--store", store, "--encoder", toy_text, "--target", "label", "--bootstrap", 20)

    def run(*arguments: object, out: str = "run"):
        return frostline(*base, "--prompts", prompts, "--out", tmp_path / out, *arguments), tmp_path / out

    return run


def test_planted_texts_are_told_apart(zero_shot, frostline, texts) -> None:
    result, run = zero_shot("--json")
    assert result.code == 0, result.err
    assert result.json["metrics"]["test"]["accuracy"]["value"] == 1
    assert result.json["counts"]["splits"]["test"]["samples"] == 24
    assert result.json["prompts"]["positive"] == [["icy snow and frost"], ["desert sand and fire"]]
    assert result.json["thresholds"]["hot"]["rule"] == "half"
    assert "states no scale of logits" in result.err
    page = (run / "report.html").read_text()
    assert "It learned from no sample and was judged by 24 test samples." in page
    assert "icy snow and frost" in page
    # The very rows may be evaluated again: the head was fitted on none of them.
    manifest, store, _ = texts
    again = frostline("evaluate", run, manifest, "--store", store, "--bootstrap", 20, "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"]["accuracy"]["value"] == 1


def test_two_runs_and_the_resolved_configuration_give_one_record(zero_shot, frostline, tmp_path) -> None:
    first, run = zero_shot("--json")
    second, _ = zero_shot("--json", out="again")
    third = frostline("zero-shot", "--config", run / "config.yaml", "--out", tmp_path / "third", "--json")
    stable = ("metrics", "prompts", "inputs", "split_digest", "counts", "thresholds")
    for other in (second, third):
        assert other.code == 0, other.err
        assert all(other.json[key] == first.json[key] for key in stable)


def test_a_split_column_leaves_train_rows_alone(zero_shot) -> None:
    result, run = zero_shot("--split", "split", "--json")
    assert result.code == 0, result.err
    assert set(result.json["metrics"]) == {"val", "test"}
    with (run / "predictions.csv").open(newline="") as file:
        assert {row["split"] for row in csv.DictReader(file)} == {"val", "test"}


@pytest.mark.parametrize(("control", "accuracy"), [("zero", 0.5), ("shuffled", 0.0)])
def test_controls_know_nothing_or_the_opposite(zero_shot, control: str, accuracy: float) -> None:
    result, _ = zero_shot("--prompt-control", control, "--json")
    assert result.json["metrics"]["test"]["accuracy"]["value"] == accuracy
    assert result.json["prompts"]["control"] == control


def test_fit_head_judges_prompts_by_cross_validation(frostline, texts, toy_text, tmp_path) -> None:
    manifest, store, prompts = texts
    base = ("fit-head", manifest, "--store", store, "--encoder", toy_text, "--target", "label", "--head", "zero_shot")
    out = tmp_path / "fitted"
    result = frostline(*base, "--prompt-encoder", toy_text, "--prompts", prompts, "--folds", 3, "--out", out, "--json")
    assert result.code == 0, result.err
    assert result.json["metrics"]["cv"]["roc_auc"]["value"] == 1
    bundle = json.loads((out / "head" / "head.json").read_text())
    assert bundle["extra"]["prompts"]["classes"] == ["cold", "hot"]
    bundle["extra"]["prompts"]["classes"].reverse()
    (out / "head" / "head.json").write_text(json.dumps(bundle))
    refused = frostline("predict", out, manifest, "--store", store, "--out", tmp_path / "p.csv")
    assert refused.code == 2
    assert "the prompts are of hot, cold in this order" in refused.error


def test_errors_are_one_line_and_leave_no_run(frostline, texts, toy_text, tmp_path) -> None:
    manifest, store, _ = texts
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(yaml.safe_dump({"names": {"warm": "warm"}}))
    base = ("zero-shot", manifest, "--store", store, "--out", tmp_path / "run")
    own, label = ("--encoder", toy_text), ("--target", "label")
    said = {
        "encodes images only": (*label, "--encoder", "offline:efficientnet-lite0"),
        "no features of 'offline:minilm'": (*label, "--encoder", "offline:minilm"),
        "no column 'lable'; did you mean 'label'": (*own, "--target", "lable"),
        "no column 'splits'": (*label, *own, "--split", "splits"),
        "class '0' is no word": (*own, "--target", "code"),
        "share no space": (*label, *own, "--prompt-encoder", "offline:minilm"),
        "does not say where the class goes": (*label, *own, "--template", "signs of {class}"),
        "the task has no class 'warm'": (*label, *own, "--prompts", wrong),
        "does not learn regression tasks": (*own, "--target", "degrees"),
        "expected 'softmax' or 'sigmoid'": (*label, *own, "--set", "scoring=cosine"),
        "with features of one encoder, 2 are named": (*label, *own, "--encoder", "offline:minilm"),
    }
    for words, arguments in said.items():
        result = frostline(*base, *arguments)
        assert result.code == 2, words
        assert words in result.error
    assert not (tmp_path / "run").exists()
