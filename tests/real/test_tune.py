"""The support vector machine's grid of the literature through `tune`, on real sentences, beside scikit-learn's."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from data.progress import Silent
from data.sources import read_manifest
from data.split import make_folds
from data.task import encode_targets, read_task
from featurestore.store import FeatureStore
from heads.labelled import join_features

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]

TEXTS = "offline:minilm"
GRID = {"C": [0.1, 1.0, 10.0, 100.0], "gamma": ["scale", "auto", 0.1, 0.01], "kernel": ["linear", "rbf"]}
ROWS = {"train": 400, "test": 200}


@pytest.fixture(scope="module")
def sentences(datasets, extracted, tmp_path_factory) -> tuple[Path, Path]:
    """The first sentences of each split, and a store with their features."""
    with (datasets / "rt_polarity" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = [row for split, n in ROWS.items() for row in [row for row in rows if row["split"] == split][:n]]
    manifest = tmp_path_factory.mktemp("rt") / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(kept)
    return manifest, extracted(manifest, TEXTS)[0]


@pytest.mark.parametrize("metric", ["roc_auc", "accuracy"])
def test_the_grid_of_the_literature_has_the_best_parameters_of_scikit_learn(
    sentences, frostline, tmp_path, metric: str
) -> None:
    manifest, store = sentences
    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"svm": GRID}))
    result = frostline(
        *("tune", manifest, "--store", store, "--encoder", TEXTS, "--target", "label", "--split", "split"),
        *("--head", "svm", "--space", tmp_path / "space.yaml", "--normalize", "none", "--trials", 32, "--batch", 32),
        *("--metric", metric, "--bootstrap", 200, "--out", tmp_path / "study", "--json"),
    )
    assert result.code == 0, result.err
    record = result.json
    assert record["study"]["sampler"] == "grid"
    assert record["study"]["complete"] == 32

    manifest = read_manifest(manifest)
    task, _ = read_task(manifest, ("label",))
    inputs = join_features(
        manifest, FeatureStore(store), (TEXTS,), pooling=None, precision=None, normalize="none", progress=Silent()
    )
    train = np.array([cell == "train" for cell in inputs.manifest.column("split")])
    X, y = inputs.X[train].astype(np.float64), encode_targets(task, inputs.manifest)[train]
    folds = make_folds(y, "binary", np.arange(len(y)), 5, 0).assignment
    theirs = GridSearchCV(
        make_pipeline(StandardScaler(), SVC()),
        {f"svc__{name}": values for name, values in GRID.items()},
        cv=PredefinedSplit(folds),
        scoring=metric,
    ).fit(X, y)
    assert record["best"]["params"] == {
        name.removeprefix("svc__"): value for name, value in theirs.best_params_.items()
    }
    assert record["best"]["value"] == pytest.approx(theirs.best_score_, abs=1e-2)
