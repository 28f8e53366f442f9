"""A suite of the project on real sentences: what its table says is what scikit-learn says of the same predictions."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from sklearn.metrics import accuracy_score, average_precision_score, roc_auc_score

pytestmark = [pytest.mark.real_data, pytest.mark.slow, pytest.mark.timeout(900)]

SUITE = Path(__file__).resolve().parents[2] / "benchmarks" / "suites" / "rt_polarity.yaml"
TEXTS = "offline:minilm"
ROWS = {"train": 600, "test": 300}


@pytest.fixture(scope="module")
def sentences(datasets, extracted, tmp_path_factory) -> tuple[Path, Path]:
    """A folder of data sets with some sentences of each split, and a store with their features."""
    with (datasets / "rt_polarity" / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    folder = tmp_path_factory.mktemp("datasets")
    (folder / "rt_polarity").mkdir()
    manifest = folder / "rt_polarity" / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        for split, n in ROWS.items():
            table.writerows([row for row in rows if row["split"] == split][:n])
    return folder, extracted(manifest, TEXTS)[0]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_suite_on_real_sentences(sentences, frostline, tmp_path, monkeypatch) -> None:
    datasets, store = sentences
    monkeypatch.setenv("FROSTLINE_DATASETS", str(datasets))
    out = tmp_path / "out"
    options = ("--head", "linear", "--head", "prototype", "--bootstrap", 300, "--few-shot", 2)
    result = frostline("compare", SUITE, "--store", store, *options, "--out", out, "--json")
    assert result.code == 0, result.err
    found = {(row["head"], row["metric"]): row for row in result.json["table"]}
    assert {head for head, _ in found} == {"prior", "linear", "prototype", "zero_shot"}
    for head in ("linear", "prototype", "zero_shot"):
        predictions = rows_of(out / found[head, "roc_auc"]["run"] / "predictions.csv")
        judged = [row for row in predictions if row["split"] == "test"]
        assert len(judged) == ROWS["test"]
        truth = [row["true"] == "positive" for row in judged]
        scores = [float(row["prob[positive]"]) for row in judged]
        answers = [row["pred"] == "positive" for row in judged]
        for metric, expected in (
            ("roc_auc", roc_auc_score(truth, scores)),
            ("average_precision", average_precision_score(truth, scores)),
            ("accuracy", accuracy_score(truth, answers)),
        ):
            assert float(found[head, metric]["value"]) == pytest.approx(expected, abs=1e-6), (head, metric)
    assert float(found["linear", "roc_auc"]["low"]) > 0.6
    assert float(found["zero_shot", "roc_auc"]["value"]) > 0.6
    assert float(found["prior", "roc_auc"]["value"]) == 0.5
    tests = {(row["test"], row["metric"], row["head_a"], row["head_b"]): row for row in result.json["tests"]}
    pair = ("roc_auc", "linear", "prototype")
    delong, bootstrap = (tests[test, *pair] for test in ("delong", "bootstrap"))
    for end in ("difference", "low", "high"):
        tolerance = 1e-6 if end == "difference" else 0.02
        assert float(delong[end]) == pytest.approx(float(bootstrap[end]), abs=tolerance), end
    curve = [row for row in rows_of(out / "few_shot.csv") if row["head"] == "prototype"]
    assert [row["n"] for row in curve] == ["1", "2", "4", "8", "16", "32", "64", "128", "256", "all"]
    assert float(curve[-1]["value"]) > float(curve[0]["value"]) + 0.1
