"""What the comparisons of the project are made of: prepared manifests, and the page from a suite's tables."""

from __future__ import annotations

import csv
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def comparisons() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return import_module("comparisons")


def write(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def test_films_of_unknown_findings_are_left_out_of_the_prepared_manifest(comparisons, tmp_path):
    films = [
        ("a", "Pneumonia|Viral|COVID-19", "1", "COVID-19"),
        ("b", "Pneumonia|Viral|Influenza", "1", "other"),
        ("c", "", "1", "other"),
        ("d", "", "0", None),
    ]
    rows = [{"id": name, "path": f"images/{name}.jpg", "labels": labels, "label_known": known}
            for name, labels, known, _ in films]  # fmt: skip
    write(tmp_path / "data" / "covid_cxr_notes" / "manifest.csv", rows)
    comparisons.write_all(tmp_path / "data", tmp_path / "out", ["covid_cxr_notes"])
    prepared = comparisons.rows_of(tmp_path / "out" / "covid_cxr_notes.csv")
    assert [(row["id"], row["covid19"]) for row in prepared] == [(f[0], f[3]) for f in films if f[3]]
    assert prepared[0]["path"] == str(tmp_path / "data" / "covid_cxr_notes" / "images" / "a.jpg")


def test_a_patient_filmed_ill_and_well_is_two_studies_of_one_group(comparisons, tmp_path):
    clips = [("a", "p1", "covid19"), ("b", "p1", "covid19"), ("c", "p1", "regular"), ("d", "p2", "regular")]
    rows = [{"id": name, "path": f"{name}.mp4", "group_id": who, "label": what} for name, who, what in clips]
    write(tmp_path / "lus_video" / "manifest.csv", rows)
    comparisons.write_all(tmp_path, tmp_path / "out", ["lus_video"])
    prepared = comparisons.rows_of(tmp_path / "out" / "lus_video.csv")
    assert [row["study"] for row in prepared] == ["p1-covid19", "p1-covid19", "p1-regular", "p2-regular"]
    assert [row["group_id"] for row in prepared] == ["p1", "p1", "p1", "p2"]


def test_every_suite_has_its_extraction_and_its_words(comparisons):
    assert set(comparisons.SUITES) == {path.stem for path in (FOLDER / "suites").glob("*.yaml")}
    for suite in comparisons.SUITES:
        words = comparisons.prose_of(FOLDER / "suites" / f"{suite}.yaml")
        assert words
        assert not any("frostline" in line for line in words)
        assert words[0]
        assert words[-1]
    assert "NOTES LEAK THE LABEL" in " ".join(comparisons.prose_of(FOLDER / "suites" / "covid_cxr_notes.yaml"))


def test_a_data_set_of_several_gets_its_own_table(comparisons):
    common = {"metric": "accuracy", "low": "0.5", "high": "0.9", "fit_seconds": "1.25", "parameters": "1200"}
    table = [
        {"encoder": "", "head": "prior", "value": "0.5", **common},
        {"encoder": "e", "head": "linear", "value": "0.7", **common},
        {"encoder": "e", "head": "mlp", "value": "0.8", **common},
    ]
    tests = [
        {"test": "bootstrap", "metric": "accuracy", "encoder_a": "e", "head_a": "linear", "encoder_b": "e",
         "head_b": "mlp", "difference": "-0.1", "low": "-0.2", "high": "0.0", "p": "0.04", "p_holm": "0.04"},
    ]  # fmt: skip
    lines = comparisons.standing(table, tests)
    assert lines[2] == "| mlp | e | 0.800 [0.500, 0.900] | best | 1,200 | 1.2 |"
    assert lines[3] == "| linear | e | 0.700 [0.500, 0.900] | 0.040 | 1,200 | 1.2 |"
    assert lines[4].startswith("| prior | none |")
