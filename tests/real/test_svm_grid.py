"""The support vector machine's grid of the literature on real sentences: `fit-head`, `tune` and scikit-learn agree."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
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
ROWS = {"train": 600, "test": 200}


@pytest.fixture(scope="module")
def sentences(datasets, extracted, tmp_path_factory) -> tuple[Path, Path]:
    """The first sentences of two splits, and a store with their features."""
    with (datasets / "rt_polarity" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    kept = [row for split, n in ROWS.items() for row in [row for row in rows if row["split"] == split][:n]]
    manifest = tmp_path_factory.mktemp("rt") / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(kept)
    return manifest, extracted(manifest, TEXTS)[0]


def arrays(manifest: Path, store: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return features and labels of each split."""
    table = read_manifest(manifest)
    task, _ = read_task(table, ("label",))
    inputs = join_features(
        table, FeatureStore(store), (TEXTS,), pooling=None, precision=None, normalize="none", progress=Silent()
    )
    y, split = encode_targets(task, inputs.manifest), np.array(inputs.manifest.column("split"))
    return {name: (inputs.X[split == name], y[split == name]) for name in ROWS}


def test_both_commands_have_the_best_parameters_and_scores_of_scikit_learn(sentences, frostline, tmp_path) -> None:
    manifest, store = sentences
    data = arrays(manifest, store)
    X, y = data["train"]
    folds = make_folds(y, "binary", np.arange(len(y)), 5, 0).assignment
    theirs = GridSearchCV(SVC(), GRID, cv=PredefinedSplit(folds), scoring="accuracy").fit(X, y)

    common = (manifest, "--store", store, "--encoder", TEXTS, "--target", "label", "--split", "split", "--head", "svm")
    common = (*common, "--bootstrap", 200, "--json")
    fitted = frostline(
        *("fit-head", *common, "--out", tmp_path / "run", "--folds", 2),
        *("--set", "search=grid", "--set", "standardize=false"),
    )
    assert fitted.code == 0, fitted.err
    record = fitted.json
    assert record["head"]["chosen"] == theirs.best_params_
    new, truth = data["test"]
    auc = roc_auc_score(truth, theirs.decision_function(new))
    assert record["metrics"]["test"]["roc_auc"]["value"] == pytest.approx(auc, abs=1e-6)
    assert "Chosen in the fit" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    (tmp_path / "space.yaml").write_text(yaml.safe_dump({"svm": {**GRID, "platt": False, "standardize": False}}))
    tuned = frostline(
        *("tune", *common, "--out", tmp_path / "study", "--space", tmp_path / "space.yaml", "--normalize", "none"),
        *("--metric", "accuracy", "--trials", 32, "--batch", 32),
    )
    assert tuned.code == 0, tuned.err
    best = tuned.json["best"]
    assert {name: best["params"][name] for name in GRID} == theirs.best_params_
    assert best["value"] == pytest.approx(theirs.best_score_, abs=1e-12)
    with (tmp_path / "study" / "trials.csv").open(newline="", encoding="utf-8") as file:
        values = [float(row["value"]) for row in csv.DictReader(file)]
    assert values == pytest.approx(theirs.cv_results_["mean_test_score"].tolist(), abs=1e-6)
