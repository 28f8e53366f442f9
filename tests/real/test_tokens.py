"""Tokens of real brain MRI slices: heads on the 7 x 7 places of a network's last feature map."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featurestore.store import FeatureStore

ENCODER = "offline:efficientnet-lite0"
OF_EACH_CLASS = {"train": 25, "test": 10}

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def slices(frostline, datasets, tmp_path_factory) -> tuple[Path, Path]:
    """140 slices of four classes, as vectors and as tokens of one pass: (manifest, store)."""
    source, folder = datasets / "brain_mri", tmp_path_factory.mktemp("tokens")
    taken: Counter[tuple[str, str]] = Counter()
    rows = []
    with (source / "manifest.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kind = (row["split_clean"], row["label"])
            if taken[kind] < OF_EACH_CLASS.get(row["split_clean"], 0):
                taken[kind] += 1
                rows.append([row["id"], source / row["path"], row["label"], row["split_clean"], row["group_id"]])
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["id", "path", "label", "split", "group"])
        table.writerows(rows)
    store = folder / "store"
    arguments = ("--store", store, "--encoder", ENCODER, "--pooling", "native,tokens")
    result = frostline("extract", folder / "manifest.csv", *arguments, "--json")
    assert result.code == 0, result.err
    return folder / "manifest.csv", store


def test_the_mean_of_stored_tokens_is_the_stored_vector(slices) -> None:
    _, store = slices
    vectors, tokens = (FeatureStore(store).find(ENCODER, pooling=pooling) for pooling in ("native", "tokens"))
    keys = vectors.keys()
    bags = tokens.take_bags(keys)
    assert set(np.diff(bags.offsets)) == {49}
    means = bags.values.astype(np.float64).reshape(len(keys), 49, 1280).mean(1)
    np.testing.assert_allclose(means, vectors.take(keys), atol=1e-3)


@pytest.mark.parametrize(("head", "floor"), [("linear", 0.75), ("attention_mil", 0.7)])
def test_heads_learn_from_tokens(frostline, slices, tmp_path, head: str, floor: float) -> None:
    manifest, store = slices
    what = ("--target", "label", "--group", "group", "--split", "split", "--head", head, "--pooling", "tokens")
    settings = ("--set", "max_epochs=20") if head == "attention_mil" else ()
    run, out = tmp_path / "run", tmp_path / "predictions.csv"
    arguments = ("--store", store, "--encoder", ENCODER, *what, *settings, "--out", run, "--json")
    result = frostline("fit-head", manifest, *arguments)
    assert result.code == 0, result.err
    assert result.json["counts"]["instances"]["most"] == 49
    assert result.json["metrics"]["cv"]["macro_roc_auc"]["value"] > floor
    again = frostline("evaluate", run, manifest, "--store", store, "--split", "test", "--json")
    assert again.json["metrics"] == result.json["metrics"]["test"]
    assert frostline("predict", run, manifest, "--store", store, "--out", out).code == 0
    assert len(out.read_text().splitlines()) == 141
