"""Heads on tokens: as bags where they take them, and nothing pooled in silence, as a user runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featurestore.store import FeatureStore

VIT = "timm:test_vit/random:0"


@pytest.fixture
def stored(frostline, pictures, tmp_path) -> tuple[Path, Path]:
    manifest, store = pictures(48), tmp_path / "store"
    arguments = ("extract", manifest, "--store", store, "--encoder", VIT, "--pooling", "cls,tokens")
    assert frostline(*arguments).code == 0
    return manifest, store


def test_heads_see_tokens_as_bags_and_nothing_is_pooled_in_silence(
    frostline: Callable[..., Any], stored: tuple[Path, Path], tmp_path: Path
) -> None:
    manifest, store = stored
    what = ("--store", store, "--encoder", VIT, "--target", "label", "--folds", 3)
    mil = ("--head", "attention_mil", "--set", "max_epochs=3", "--set", "members=1", "--pooling", "tokens")
    run = tmp_path / "mil"
    fitted = frostline("fit-head", manifest, *what, *mil, "--out", run, "--json")
    assert fitted.code == 0, fitted.err
    assert fitted.json["counts"]["instances"] == {"total": 48 * 101, "fewest": 101, "most": 101}
    assert 0 <= fitted.json["metrics"]["cv"]["roc_auc"]["value"] <= 1
    assert not any("the mean of" in warning for warning in fitted.json["warnings"])

    judged = frostline("evaluate", run, manifest, "--store", store, "--allow-leakage", "--json")
    assert judged.code == 0, judged.err
    assert frostline("predict", run, manifest, "--store", store, "--out", tmp_path / "stored.csv").code == 0
    assert frostline("predict", run, manifest, "--out", tmp_path / "encoded.csv").code == 0
    lines = [(tmp_path / name).read_text().splitlines() for name in ("stored.csv", "encoded.csv")]
    assert len(lines[0]) == 49
    scores = [np.array([[float(cell) for cell in line.split(",")[2:]] for line in each[1:]]) for each in lines]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)

    pooled = frostline("fit-head", manifest, *what, "--pooling", "mean", "--out", tmp_path / "mean")
    assert pooled.code == 2
    assert "is stored with pooling cls / pooling tokens, not with pooling mean" in pooled.error
    either = frostline("fit-head", manifest, *what, "--out", tmp_path / "either")
    assert "choose with --pooling" in either.error
    linear = frostline("fit-head", manifest, *what, "--pooling", "tokens", "--out", tmp_path / "linear", "--json")
    assert "each sample is the mean of its 101 embeddings" in "".join(linear.json["warnings"])


def test_tokens_that_no_memory_holds_are_refused(frostline, stored, tmp_path, monkeypatch) -> None:
    from heads import inputs

    manifest, store = stored
    monkeypatch.setattr(inputs.os, "sysconf", lambda _: 1000)
    arguments = ("--store", store, "--encoder", VIT, "--target", "label", "--pooling", "tokens")
    result = frostline("fit-head", manifest, *arguments, "--out", tmp_path / "run")
    assert result.code == 2
    assert "the tokens of 48 samples take 1.2 MB in memory, and this machine has 1.0 MB" in result.error


def test_tune_searches_tokens_only_where_it_is_told_to(stored: tuple[Path, Path]) -> None:
    from heads.tuning.views import stored_poolings

    _, store = stored
    assert stored_poolings(FeatureStore(store), [VIT], None) == ("cls",)
