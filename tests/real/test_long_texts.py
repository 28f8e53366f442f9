"""Real clinical notes: how many an encoder cuts, and what pieces change."""

from __future__ import annotations

import numpy as np
import pytest

from featurestore.store import FeatureStore

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(600)]


def test_notes_that_are_too_long_are_encoded_whole(datasets, frostline, tmp_path) -> None:
    manifest, store = datasets / "covid_cxr_notes" / "manifest.csv", tmp_path / "store"
    extract = ("extract", manifest, "--input", "text", "--store", store, "--encoder", "minilm", "--json")
    cut, whole = frostline(*extract), frostline(*extract, "--pooling", "auto+chunks")
    assert (cut.code, whole.code) == (0, 0), cut.err + whole.err
    assert (cut.json["encoded"], cut.json["truncated"], cut.json["chunked"]) == (162, 3, 0)
    assert (whole.json["encoded"], whole.json["truncated"], whole.json["chunked"]) == (162, 0, 3)
    assert cut.json["truncation_rate"] == pytest.approx(3 / 162)

    stored = [FeatureStore(store).find("offline:minilm", pooling=pooling).load() for pooling in ("mean", "mean+chunks")]
    (keys, x), (other_keys, y) = ((k[order := np.lexsort(k.T)], v[order]) for k, v in stored)
    np.testing.assert_array_equal(keys, other_keys)
    moved = np.abs(x - y).max(axis=1)
    assert (moved > 1e-3).sum() == 3, "the notes that were cut"
    assert np.sort(moved)[:-3].max() < 1e-5, "and no others"
