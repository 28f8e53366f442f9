"""`fit-head`, `evaluate`, `predict` and `report` as a user runs them, on a small separable picture set."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import yaml

from heads.catalog import list_heads

QUICK = {
    "linear": [],
    "knn": [],
    "svm": [],
    "mlp": ["--set", "max_epochs=20", "--set", "hidden=16", "--set", "lr=0.01", "--set", "batch_size=8"],
    "gbm": [],
    "prototype": [],
    "attention_mil": ["--set", "max_epochs=20", "--set", "hidden=16", "--set", "lr=0.01", "--set", "bags_per_step=8"],
}

# The baseline, and heads that need prompts or several sets of features, which these pictures do not have.
ELSEWHERE = {"prior", "multi_head", "zero_shot", "prompt_similarity", "concat_fusion", "weighted_sum"}


@pytest.fixture
def fitted(frostline, pictures, toy, tmp_path):
    """Return a function that extracts a picture set and fits a head on it: (result, run, manifest, store)."""

    def fit(*arguments: object, n: int = 96, classes: int = 2, target: str = "label", run: str = "run"):
        manifest, store = tmp_path / f"pictures{n}-{classes}-0" / "manifest.csv", tmp_path / "store"
        if not manifest.exists():
            manifest = pictures(n, classes)
            assert frostline("extract", manifest, "--store", store, "--encoder", toy).code == 0
        out = tmp_path / run
        command = ["fit-head", manifest, "--store", store, "--encoder", toy, "--target", target]
        options = ["--group", "patient", "--folds", 3, "--bootstrap", 50, "--out", out]
        return frostline(*command, *options, *arguments, "--json"), out, manifest, store

    return fit


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_head_is_tried_here() -> None:
    assert set(QUICK) | ELSEWHERE == set(list_heads())


@pytest.mark.parametrize("head", QUICK)
def test_a_run_directory_is_whole(fitted, head: str) -> None:
    result, run, manifest, _ = fitted("--head", head, "--split", "split", *QUICK[head])
    assert result.code == 0, result.err
    record = json.loads((run / "record.json").read_text())
    for split in ("cv", "val", "test"):
        metric = record["metrics"][split]["roc_auc"]
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert metric["value"] > 0.9
    assert record["inputs"][0]["fingerprint"]
    rows = rows_of(run / "predictions.csv")
    assert sorted(row["id"] for row in rows) == sorted(row["id"] for row in rows_of(manifest))
    assert {row["split"] for row in rows} == {"cv", "val", "test"}
    assert all(abs(float(row["prob[left]"]) + float(row["prob[right]"]) - 1) < 1e-9 for row in rows)
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "record.json", "predictions.csv", "head", "plots", "report.html"} <= names
    assert (run / "plots" / "test-roc.png").stat().st_size > 5000
    assert not list(run.parent.glob(".run.partial*"))


def test_groups_share_a_fold(fitted) -> None:
    _, run, _, _ = fitted()
    folds: dict[str, set[str]] = {}
    for row in rows_of(run / "predictions.csv"):
        folds.setdefault(row["group"], set()).add(row["fold"])
    assert len(folds) == 24
    assert all(len(each) == 1 for each in folds.values())


def test_the_same_command_gives_the_same_record(fitted) -> None:
    first, one, _, _ = fitted("--head", "mlp", *QUICK["mlp"])
    second, two, _, _ = fitted("--head", "mlp", *QUICK["mlp"], run="again")
    assert first.json["metrics"] == second.json["metrics"]
    assert (one / "predictions.csv").read_bytes() == (two / "predictions.csv").read_bytes()


def test_the_resolved_configuration_can_be_fed_back(fitted, frostline, tmp_path) -> None:
    first, run, _, _ = fitted("--set", "C=0.01", "--split", "split")
    again = frostline("fit-head", "--config", run / "config.yaml", "--out", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"] == first.json["metrics"]
    assert yaml.safe_load((run / "config.yaml").read_text())["set"] == {"C": "0.01"}


@pytest.mark.parametrize(
    ("target", "kind", "metric"), [("score", "regression", "r2"), ("label", "multiclass", "accuracy")]
)
def test_other_kinds_of_task(fitted, target: str, kind: str, metric: str) -> None:
    result, _, _, _ = fitted("--head", "linear", target=target, n=120, classes=3)
    assert result.code == 0, result.err
    assert result.json["task"]["kind"] == kind
    assert result.json["metrics"]["cv"][metric]["value"] > 0.7


def test_multilabel_with_missing_labels(fitted, frostline, pictures, toy, tmp_path) -> None:
    manifest = pictures(96, 3)
    rows = rows_of(manifest)
    for i, row in enumerate(rows):
        row["is_left"] = "" if i % 7 == 0 else str(int(row["label"] == "left"))
        row["is_right"] = str(int(row["label"] == "right"))
    with manifest.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    store = tmp_path / "multilabel"
    frostline("extract", manifest, "--store", store, "--encoder", toy)
    result = frostline(
        *("fit-head", manifest, "--store", store, "--encoder", toy, "--target", "is_left,is_right"),
        *("--folds", 3, "--bootstrap", 20, "--out", tmp_path / "ml", "--json"),
    )
    assert result.code == 0, result.err
    assert result.json["task"]["kind"] == "multilabel"
    assert result.json["metrics"]["cv"]["per_label"]["is_left"]["n_observed"] == 96 - 14
    assert result.json["metrics"]["cv"]["macro_roc_auc"]["value"] > 0.8


def test_evaluate_repeats_the_reported_test_metrics(fitted, frostline) -> None:
    result, run, manifest, store = fitted("--split", "split")
    again = frostline("evaluate", run, manifest, "--store", store, "--split", "test", "--bootstrap", 50, "--json")
    assert again.code == 0, again.err
    assert again.json["metrics"] == result.json["metrics"]["test"]


def test_a_head_of_features_that_were_named_by_their_fingerprint_is_used_like_any_other(
    fitted, frostline, toy, tmp_path
) -> None:
    result, run, manifest, store = fitted("--split", "split")
    (group,) = frostline("store", "ls", store, "--json").json
    named, other = f"{toy}@{group['fingerprint'][:12]}", tmp_path / "named"
    command = ("fit-head", manifest, "--store", store, "--encoder", named, "--target", "label", "--group", "patient")
    made = frostline(*command, "--split", "split", "--folds", 3, "--bootstrap", 50, "--out", other)
    assert made.code == 0, made.err
    arguments = (manifest, "--store", store, "--split", "test", "--bootstrap", 50, "--json")
    again = frostline("evaluate", other, *arguments)
    assert again.code == 0, again.err
    assert again.json["metrics"] == result.json["metrics"]["test"]
    for each in (run, other):
        predicted = frostline("predict", each, manifest, "--store", store, "--out", tmp_path / f"{each.name}.csv")
        assert predicted.code == 0, predicted.err
    assert rows_of(tmp_path / "named.csv") == rows_of(tmp_path / "run.csv")


def test_evaluate_refuses_rows_the_head_was_fitted_on(fitted, frostline) -> None:
    _, run, manifest, store = fitted("--split", "split")
    arguments = ("evaluate", run, manifest, "--store", store, "--split", "val", "--bootstrap", 10)
    refused = frostline(*arguments)
    assert refused.code == 2
    assert "24 of the 24 rows to evaluate" in refused.error
    allowed = frostline(*arguments, "--allow-leakage", "--json")
    assert allowed.code == 0
    assert "warning: 24 of the 24 rows" in allowed.err
    _, run, _, _ = fitted("--split", "split", "--refit", "train", run="train-only")
    assert frostline("evaluate", run, *arguments[2:]).code == 0


def test_predict_encodes_what_is_not_stored(fitted, frostline, pictures, tmp_path) -> None:
    _, run, _, store = fitted()
    new = pictures(12, 2, seed=5)
    out = tmp_path / "predictions.csv"
    result = frostline("predict", run, new, "--out", out, "--store", store)
    assert result.code == 0, result.err
    truth = {row["id"]: row["label"] for row in rows_of(new)}
    predicted = {row["id"]: row["pred"] for row in rows_of(out)}
    assert sum(predicted[name] == truth[name] for name in truth) >= 11

    single = frostline("predict", run, new.parent / "images" / "0.png", "--out", tmp_path / "one.csv")
    assert single.code == 0, single.err
    (row,) = rows_of(tmp_path / "one.csv")
    assert float(row["prob[left]"]) == pytest.approx(float(rows_of(out)[0]["prob[left]"]))


def test_predict_does_not_load_an_encoder_for_stored_samples(fitted, frostline, tmp_path, monkeypatch) -> None:
    _, run, manifest, store = fitted()
    command = ("predict", run, manifest, "--store", store, "--out")
    monkeypatch.setattr("featurestore.catalog.load_encoder", lambda *_, **__: pytest.fail("it was loaded"))
    result = frostline(*command, tmp_path / "stored.csv")
    assert result.code == 0, result.err
    assert len(rows_of(tmp_path / "stored.csv")) == 96


def test_predict_lists_what_cannot_be_read(fitted, frostline, pictures, tmp_path) -> None:
    _, run, _, _ = fitted()
    new = pictures(6, 2, seed=6)
    (new.parent / "images" / "2.png").write_bytes(b"")
    result = frostline("predict", run, new, "--out", tmp_path / "p.csv")
    assert result.code == 3
    assert "failed [empty]" in result.err
    assert len(rows_of(tmp_path / "p.csv")) == 5


def test_a_report_of_several_runs(fitted, frostline, tmp_path) -> None:
    _, one, _, _ = fitted("--head", "linear", run="one")
    _, two, _, _ = fitted("--head", "knn", run="two")
    out = tmp_path / "both.html"
    assert frostline("report", one, two, "--out", out).code == 0
    page = out.read_text()
    assert "linear" in page
    assert "knn" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="data:image/png;base64,' in page


def test_a_failed_fit_leaves_nothing_behind(fitted, tmp_path) -> None:
    result, run, _, _ = fitted("--folds", 90)
    assert result.code == 2
    assert not run.exists()
    assert not list(tmp_path.glob(".run*"))


def test_leakage_is_refused_named_and_allowed_with_a_warning(fitted, frostline, tmp_path) -> None:
    _, _, manifest, _ = fitted()
    rows = rows_of(manifest)
    train = next(row for row in rows if row["split"] == "train")
    test = next(row for row in rows if row["split"] == "test")
    images = manifest.parent
    (images / test["path"]).write_bytes((images / train["path"]).read_bytes())
    refused, run, _, _ = fitted("--split", "split", run="leaky")
    assert refused.code == 2
    assert train["id"] in refused.error
    assert test["id"] in refused.error
    assert "--allow-leakage" in refused.error
    assert not run.exists()
    allowed, run, _, _ = fitted("--split", "split", "--allow-leakage", run="leaky")
    assert allowed.code == 0, allowed.err
    assert any("leak" in warning for warning in allowed.json["warnings"])
    assert "leak" in (run / "report.html").read_text()


def test_predict_reads_the_column_that_the_head_was_fitted_on(fitted, frostline, tmp_path) -> None:
    _, _, manifest, store = fitted()
    rows = rows_of(manifest)
    both = manifest.with_name("both.csv")
    with both.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=[*rows[0], "text"])
        table.writeheader()
        table.writerows({**row, "text": f"note {i}"} for i, row in enumerate(rows))
    run = tmp_path / "both"
    encoder = json.loads(frostline("store", "ls", store, "--json").out)[0]["names"][0]
    command = ["fit-head", both, "--store", store, "--encoder", encoder, "--target", "label", "--folds", 2]
    assert "name one with --input" in frostline(*command, "--out", run).error
    assert frostline(*command, "--input", "path", "--out", run).code == 0
    result = frostline("predict", run, both, "--store", store, "--out", tmp_path / "p.csv")
    assert result.code == 0, result.err
    assert len(rows_of(tmp_path / "p.csv")) == len(rows)
