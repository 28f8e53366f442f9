"""Several layers of a network as columns of one `extract`, and heads on them side by side, as a user runs them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from featurestore.store import FeatureStore

VIT = "timm:test_vit/random:0"


@pytest.fixture
def stored(frostline, pictures, tmp_path) -> tuple[Path, Path]:
    manifest, store = pictures(36), tmp_path / "store"
    result = frostline(
        "extract", manifest, "--store", store, "--encoder", VIT, "--pooling", "cls@2,mean@-2,native", "--json"
    )
    assert result.code == 0, result.err
    assert [result.json["pooling"], *(each["pooling"] for each in result.json["also"])] == ["cls@2", "mean@5", "native"]
    return manifest, store


def test_a_head_picks_one_layer_and_finds_it_again(frostline, stored, tmp_path) -> None:
    manifest, store = stored
    assert {(row["pooling"], row["dim"]) for row in frostline("store", "ls", store, "--json").json} == {
        ("cls@2", 64),
        ("mean@5", 64),
        ("native", 64),
    }
    what = ("--encoder", VIT, "--target", "label", "--folds", 3)
    run = tmp_path / "run"
    fitted = frostline("fit-head", manifest, "--store", store, *what, "--pooling", "mean@5", "--out", run, "--json")
    assert fitted.code == 0, fitted.err
    expected = FeatureStore(store).find(VIT, pooling="mean@5")
    assert expected.spec.layer == "block_5"
    assert [block["fingerprint"] for block in fitted.json["inputs"]] == [expected.fingerprint]
    # Without a store the layer is encoded again.
    assert frostline("predict", run, manifest, "--out", tmp_path / "encoded.csv").code == 0
    assert frostline("predict", run, manifest, "--store", store, "--out", tmp_path / "stored.csv").code == 0
    assert (tmp_path / "encoded.csv").read_text() == (tmp_path / "stored.csv").read_text()

    either = frostline("fit-head", manifest, "--store", store, *what, "--out", tmp_path / "either")
    assert either.code == 2
    assert "choose with --pooling" in either.error
    other = frostline("fit-head", manifest, "--store", store, *what, "--pooling", "mean@4", "--out", tmp_path / "other")
    assert "is stored with pooling cls@2 / pooling mean@5 / pooling native, not with pooling mean@4" in other.error


def test_layers_are_compared_as_encoders_of_a_suite(frostline, stored, tmp_path) -> None:
    manifest, store = stored
    layers = {"second": "cls@2", "fifth": "mean@5", "whole": "native"}
    suite, out = tmp_path / "suite.yaml", tmp_path / "out"
    content = {
        "datasets": {"pictures": {"manifest": str(manifest), "target": "label"}},
        "encoders": [{"name": name, "encoder": VIT, "pooling": pooling} for name, pooling in layers.items()],
        "heads": ["linear"],
    }
    suite.write_text(yaml.safe_dump(content))
    result = frostline("compare", suite, "--store", store, "--folds", 3, "--bootstrap", 20, "--out", out, "--json")
    assert result.code == 0, result.err
    with (out / "table.csv").open() as table:
        rows = [row for row in csv.DictReader(table) if row["metric"] == "roc_auc" and row["head"] == "linear"]
    assert sorted(row["encoder"] for row in rows) == sorted(layers)
    assert len({row["value"] for row in rows}) > 1


def test_tune_chooses_among_layers_and_leaves_their_tokens_alone(frostline, stored) -> None:
    from heads.tuning.views import stored_poolings

    manifest, store = stored
    assert frostline("extract", manifest, "--store", store, "--encoder", VIT, "--pooling", "tokens@3").code == 0
    assert stored_poolings(FeatureStore(store), [VIT], None) == ("cls@2", "mean@5", "native")
