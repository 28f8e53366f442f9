"""Every recipe runs on a manifest of the columns that it names, with a weightless encoder in the place of its own."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

RECIPES = Path(__file__).resolve().parents[2] / "docs" / "recipes"
TABLES = {
    "speech_dementia": ("talks", ("label", "person", "audio")),
    "coronary_video": ("angiograms", ("stenosis", "StudyInstanceUID", "patient", "Split", "video")),
    "chest_xray_pretrained": ("nih", ("labels", "patient", "image")),
    "chest_xray_prompts": ("nih", ("labels", "patient", "image")),
    "film_reviews": ("reviews", ("label", "split")),
}
OPTIONS = ("--head", "linear", "--no-baselines", "--bootstrap", 10, "--min-positives", 1, "--pooling", "native")


def value_of(column: str, i: int) -> str:
    """Return what a column holds in row i; every group has a row of each class in it or beside it."""
    person, positive = i // 2, i // 2 % 2
    values = {
        "split": ("train", "val", "test")[person // 2 % 3],
        "label": ("control", "case")[positive],
        "labels": ("No Finding", "Effusion", "Effusion|Mass", "Mass")[person % 4],
        "stenosis": ("no", "yes")[positive],
        "audio": f"{i}.wav",
        "video": f"{i}.mp4",
        "image": f"{i}.png",
    }
    return values.get(column.lower(), f"p{person}")


def write(path: Path, columns: tuple[str, ...], n: int) -> Path:
    rows = [{"id": f"s{i}", "text": f"text {i} {'x' * (i // 2 % 4)}"} for i in range(n)]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, ["id", "text", *columns])
        table.writeheader()
        table.writerows({**row, **{name: value_of(name, i) for name in columns}} for i, row in enumerate(rows))
    for i in range(n):
        (path.parent / f"{i}.wav").write_bytes(b"%d" % i)  # a file that is there; no encoder of sound reads it
    return path


@pytest.mark.parametrize("recipe", TABLES)
def test_a_recipe_of_a_table_runs(frostline, toy_text, tmp_path, monkeypatch, recipe) -> None:
    monkeypatch.setenv("FROSTLINE_DATA", str(tmp_path))
    name, columns = TABLES[recipe]
    manifest, store = write(tmp_path / f"{name}.csv", columns, 72), tmp_path / "store"
    shared = ("--input", "text", "--store", store, "--encoder", toy_text)
    assert frostline("extract", manifest, *shared).code == 0
    result = frostline("compare", RECIPES / f"{recipe}.yaml", *shared, *OPTIONS, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert {row["head"] for row in result.json["table"]} == {"linear"}


def test_the_recipe_of_a_folder_runs(frostline, toy, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FROSTLINE_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    for split, n in (("Training", 6), ("Testing", 3)):
        for name in ("glioma", "meningioma", "notumor", "pituitary"):
            folder = tmp_path / "brain_mri" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    shared = ("--store", tmp_path / "store", "--encoder", toy)
    assert frostline("extract", tmp_path / "brain_mri", *shared).code == 0
    recipe = RECIPES / "brain_mri.yaml"
    result = frostline("compare", recipe, *shared, *OPTIONS, "--few-shot", 0, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    assert {row["head"] for row in result.json["table"]} == {"linear"}
