"""Synthetic runs of every kind, made of real metrics on random scores."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from data.task import Task
from heads.evaluation.metrics import evaluate
from heads.evaluation.thresholds import choose_thresholds
from heads.record import RunRecord

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax",
)  # fmt: skip
TASKS = {
    "binary": Task(kind="binary", targets=("label",), classes=("benign", "malignant")),
    "multiclass": Task(
        kind="multiclass", targets=("tumour",), classes=("glioma", "meningioma", "notumor", "pituitary")
    ),
    "multilabel": Task(kind="multilabel", targets=("findings",), classes=FINDINGS[:7]),
    "regression": Task(kind="regression", targets=("age",)),
}


def draw(rng, task, n):
    """Return labels and scores that know something about them."""
    if task.kind == "binary":
        y = (rng.random(n) < 0.3).astype(int)
        return y, 1 / (1 + np.exp(-(rng.normal(size=n) + 2.2 * y - 1.2)))
    if task.kind == "multiclass":
        k = len(task.classes)
        y = rng.choice(k, n)
        logits = rng.normal(size=(n, k)) + 2.0 * np.eye(k)[y]
        return y, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if task.kind == "multilabel":
        y = (rng.random((n, len(task.classes))) < np.linspace(0.02, 0.3, len(task.classes))).astype(float)
        scores = 1 / (1 + np.exp(-(rng.normal(size=y.shape) + np.linspace(0.3, 2.5, y.shape[1]) * y - 1.5)))
        y[rng.random(y.shape) < 0.05] = np.nan
        return y, scores
    y = rng.normal(55, 15, (n, len(task.targets))).clip(1, 95)
    predicted = 55 + 0.8 * (y - 55) + rng.normal(size=y.shape) * 7
    return (y, predicted) if len(task.targets) > 1 else (y[:, 0], predicted[:, 0])


def rows_of(task, split, y, scores, groups, thresholds, fold):
    """Return the rows of predictions.csv."""
    cuts = np.array([threshold.value for threshold in thresholds.values()])
    for i in range(len(y)):
        row = {"id": f"{split}-{i:04d}", "split": split, "fold": i % 5 if fold else "", "group": groups[i]}
        if task.kind == "regression" and len(task.targets) == 1:
            row |= {"true": y[i], "pred": scores[i]}
        elif task.kind == "regression":
            row |= {f"true[{name}]": y[i, j] for j, name in enumerate(task.targets)}
            row |= {f"pred[{name}]": scores[i, j] for j, name in enumerate(task.targets)}
        elif task.kind == "multilabel":
            row |= {f"true[{name}]": "" if np.isnan(y[i, j]) else int(y[i, j]) for j, name in enumerate(task.classes)}
            row |= {f"pred[{name}]": int(scores[i, j] >= cuts[j]) for j, name in enumerate(task.classes)}
            row |= {f"prob[{name}]": scores[i, j] for j, name in enumerate(task.classes)}
        else:
            proba = scores[i] if task.kind == "multiclass" else np.array([1 - scores[i], scores[i]])
            said = int(proba.argmax()) if task.kind == "multiclass" else int(scores[i] >= cuts[0])
            row |= {"true": task.classes[y[i]], "pred": task.classes[said]}
            row |= {f"prob[{name}]": p for name, p in zip(task.classes, proba, strict=True)}
        yield row


def write_run(
    folder, kind, *, task=None, splits=(("cv", 300), ("test", 160)), seed=0, n_boot=60, head="linear", **record
):
    """Write a run directory as `fit-head` does, without bundle, plots and page."""
    task = task or TASKS[kind]
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    thresholds, metrics, rows, counts = {}, {}, [], {}
    for split, n in splits:
        y, scores = draw(rng, task, n)
        groups = [f"patient {g}" for g in rng.integers(0, n // 2, n)]
        if split == "cv":
            thresholds = choose_thresholds(task, y, scores)
        metrics[split] = evaluate(
            task.kind,
            y,
            scores,
            classes=task.classes or task.targets,
            groups=groups,
            thresholds=[threshold.value for threshold in thresholds.values()],
            n_boot=n_boot,
            min_positives=5,
        )
        rows += rows_of(task, split, y, scores, groups, thresholds, split == "cv")
        known = np.isfinite(y).sum() if task.kind == "regression" else 0
        classes = (
            {name: int(known) for name in task.targets}
            if task.kind == "regression"
            else {name: int((y[:, j] == 1).sum()) for j, name in enumerate(task.classes)}
            if task.kind == "multilabel"
            else {name: int((y == j).sum()) for j, name in enumerate(task.classes)}
        )
        counts["train" if split == "cv" else split] = {"samples": n, "groups": len(set(groups)), "classes": classes}
    with (folder / "predictions.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    fields = {
        "command": f"frostline fit-head manifest.csv --store store --encoder offline:efficientnet-lite0 --head {head}",
        "config": {"manifest": "manifest.csv", "head": head, "folds": 5, "seed": seed, "out": str(folder)},
        "manifest_digest": "5e" * 32,
        "split_digest": "a7" * 32,
        "inputs": [
            {
                "encoder": "offline:efficientnet-lite0",
                "fingerprint": "c0ffee" * 10 + "beef",
                "snapshot": "1f" * 32,
                "dim": 1280,
                "modality": "image",
                "pooling": "native",
                "precision": "fp32",
                "dtype": "float16",
            }
        ],
        "head": {"name": head, "version": 1, "params": {"C": 0.1, "class_weight": "balanced", "standardize": True}},
        "task": task.to_dict(),
        "counts": {
            "samples": sum(n for _, n in splits),
            "groups": sum(split["groups"] for split in counts.values()),
            "splits": counts,
            "dropped": {},
        },
        "metrics": metrics,
        "thresholds": {name: threshold.to_dict() for name, threshold in thresholds.items()},
        "leakage": {"clean": True},
        "seed": seed,
        "timings": {"total_seconds": 3.21, "fit_seconds": 0.42},
    }
    RunRecord(**{**fields, **record}).write(folder)
    return folder


def write_history(folder: Path):
    """Write learning curves as the mlp head records them."""
    epochs = np.arange(1, 31)
    train = 0.3 + 0.9 * np.exp(-epochs / 6)
    history = {
        "train_loss": train.tolist(),
        "monitor_loss": (train + 0.05 + 0.0004 * epochs**2).tolist(),
        "lr": [0.001] * len(epochs),
    }
    (folder / "history.json").write_text(json.dumps(history))


@pytest.fixture
def make_run(tmp_path):
    """Write a synthetic run and return its directory."""

    def make(kind, name="run", **options):
        return write_run(tmp_path / name, kind, **options)

    return make
