"""Photographs and their captions: a ridge map between two frozen encoders finds one by the other."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
CAPTIONS = ("caption_0", "caption_1")


def test_captions_are_found_by_photographs_and_back(datasets, frostline, extracted, monkeypatch, tmp_path) -> None:
    manifest, encoders = datasets / "flickr8k_1k" / "manifest.csv", ("offline:efficientnet-lite0", "offline:minilm")
    store, _ = extracted(manifest, encoders[0], "--input", "path")
    for column in CAPTIONS:
        options = ("--input", column, "--store", store, "--encoder", encoders[1])
        assert frostline("extract", manifest, *options).code == 0
    monkeypatch.syspath_prepend(str(FOLDER))
    retrieval = import_module("retrieval")
    pairs, split = retrieval.read_pairs(manifest, store, "path", CAPTIONS, encoders, "split", "group_id")
    assert pairs.captions.shape == (700, 2, 384)
    found, _ = retrieval.results(pairs, split)
    for direction in ("image to text", "text to image"):
        ridge, control = (found[name][direction]["recall@10"] for name in ("ridge map", "random map (control)"))
        assert ridge["low"] > 0.4
        assert ridge["low"] > control["high"]
        assert control["low"] - 0.03 < found["chance"][direction]["recall@10"] < control["high"] + 0.03
