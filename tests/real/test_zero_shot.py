"""Zero-shot with real weights: movie reviews told apart by two sentences; docs/prompts.md has the recorded scores."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.filterwarnings("ignore::heads.base.HeadWarning")
def test_reviews_are_told_apart_by_prompts(datasets, extracted, frostline, tmp_path) -> None:
    manifest = datasets / "rt_polarity" / "manifest.csv"
    store, _ = extracted(manifest, "offline:minilm")
    base = ("zero-shot", manifest, "--store", store, "--encoder", "offline:minilm", "--target", "label", "--json")
    options = ("--template", "a {finding} movie review", "--bootstrap", 100)
    result = frostline(*base, *options, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    metrics = result.json["metrics"]["test"]
    assert metrics["roc_auc"]["value"] > 0.7
    assert metrics["accuracy"]["low"] > 0.55
    control = frostline(*base, *options, "--prompt-control", "shuffled", "--out", tmp_path / "control")
    assert control.json["metrics"]["test"]["roc_auc"]["value"] == pytest.approx(1 - metrics["roc_auc"]["value"])
