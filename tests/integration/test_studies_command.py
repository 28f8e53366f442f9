"""Studies of several views from the command line: views, caps, two levels, and rows that could not be read."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml

import cli
from heads.comparing.suite import read_suite
from heads.config import CompareConfig

TOY = f"py:{Path(__file__).resolve().parent.parent / 'assets' / 'toy.py'}:image"
VIT = "timm:test_vit/random:0"
MIL = ["--head", "attention_mil", "--set", "max_epochs=6", "--set", "hidden=8", "--set", "lr=0.02"]
MIL += ["--set", "bags_per_step=8", "--set", "members=1"]
WHAT = ["--target", "label", "--bag", "study", "--group", "patient", "--split", "split", "--input", "path"]
WHAT += ["--folds", "3", "--bootstrap", "20"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.fixture(scope="module")
def studies(shared_pictures, tmp_path_factory) -> tuple[Path, Path]:
    """Two pictures per study, of one angle each, and their features: (manifest, store)."""
    folder = tmp_path_factory.mktemp("studies")
    rows, seen = [], dict[str, int]()
    for row in rows_of(shared_pictures):
        study = f"{row['patient']} {row['label']}"
        number = seen[study] = seen.get(study, -1) + 1
        angle = "" if len(rows) % 11 == 0 else ("long", "short")[number % 2]
        rows.append({**row, "path": str(shared_pictures.parent / row["path"]), "study": study, "angle": angle})
    manifest = write_rows(folder / "studies.csv", rows)
    command = ["extract", str(manifest), "--input", "path", "--store", str(folder / "store"), "--encoder", TOY]
    assert cli.run(command) == 0
    return manifest, folder / "store"


@pytest.fixture(scope="module")
def run(studies, tmp_path_factory) -> Path:
    """A run that learned the angles."""
    manifest, store = studies
    out: Path = tmp_path_factory.mktemp("views") / "run"
    command = ["fit-head", str(manifest), "--store", str(store), "--encoder", TOY, *WHAT, *MIL, "--view", "angle"]
    assert cli.run([*command, "--out", str(out)]) == 0
    return out


def test_the_record_and_the_page_say_what_the_bags_and_views_are(run, studies) -> None:
    manifest, _ = studies
    rows = rows_of(manifest)
    record = json.loads((run / "record.json").read_text())
    sizes = [sum(row["study"] == study for row in rows) for study in {row["study"] for row in rows}]
    angles = [row["angle"] or "none" for row in rows]
    assert record["counts"]["bags"] == {
        "column": "study",
        "rows": len(rows),
        "fewest": min(sizes),
        "most": max(sizes),
        "views": {"column": "angle", "rows": {each: angles.count(each) for each in ("long", "short", "none")}},
    }
    assert record["config"]["view"] == "angle"
    # A plain run has 3 classes x (16 + 1) logits and the attention; each of the three views adds a vector of 16.
    assert record["head"]["n_parameters"] == 3 * 17 + (16 * 16 + 16 + 8) + 3 * 16
    assert json.loads((run / "head" / "head.json").read_text())["head"]["state"]["views_"] == ["long", "short"]
    page = (run / "report.html").read_text()
    assert "named by column study" in page
    assert "column angle: " in page


def test_no_study_and_no_patient_is_in_two_folds(run, studies) -> None:
    manifest, _ = studies
    predictions = rows_of(run / "predictions.csv")
    assert len({row["id"] for row in predictions}) == len(predictions) == len({r["study"] for r in rows_of(manifest)})
    folds: dict[str, set[str]] = {}
    for row in predictions:
        folds.setdefault(row["group"], set()).add(row["split"] + row["fold"])
    assert all(len(found) == 1 for found in folds.values())
    assert set.union(*folds.values()) == {"cv0", "cv1", "cv2", "val", "test"}


def test_evaluate_and_predict_see_the_views_of_the_run(run, studies, frostline, tmp_path) -> None:
    manifest, store = studies
    record = json.loads((run / "record.json").read_text())
    judged = frostline("evaluate", run, manifest, "--store", store, "--split", "test", "--bootstrap", 20, "--json")
    assert judged.code == 0, judged.err
    assert judged.json["metrics"] == record["metrics"]["test"]

    def predicted(rows: list[dict[str, str]], *options: str) -> dict[str, float]:
        table, out = write_rows(tmp_path / "m.csv", rows), tmp_path / "p.csv"
        result = frostline("predict", run, table, "--store", store, "--out", out, *options)
        assert result.code == 0, result.err
        said.append(result.err)
        return {row["id"]: float(row["prob[left]"]) for row in rows_of(out)}

    said: list[str] = []
    rows = rows_of(manifest)
    own = predicted(rows)
    for row in rows_of(run / "predictions.csv"):
        if row["split"] == "test":
            assert own[row["id"]] == pytest.approx(float(row["prob[left]"]), abs=1e-6)
    none = sum(not row["angle"] for row in rows)
    assert f"{none} of {len(rows)} rows are of views that the head did not learn (none: {none})" in said[-1]
    # The order of rows says nothing; the view does, and one that was never seen is as good as none.
    assert predicted(rows[::-1]) == pytest.approx(own, abs=1e-6)
    assert predicted([{**row, "angle": "long"} for row in rows]) != pytest.approx(own, abs=1e-4)
    assert "did not learn" not in said[-1]
    unknown = predicted([{**row, "angle": "fetal"} for row in rows])
    assert f"(fetal: {len(rows)})" in said[-1]
    assert predicted([{**row, "angle": ""} for row in rows]) == unknown
    renamed = [{("plane" if name == "angle" else name): value for name, value in row.items()} for row in rows]
    assert predicted(renamed, "--view", "plane") == own
    lost = frostline("predict", run, tmp_path / "m.csv", "--store", store, "--out", tmp_path / "p.csv")
    assert lost.code == 2
    assert "no column 'angle'" in lost.error
    # A single file is a bag of one, and shows nothing that is known.
    alone = frostline("predict", run, rows[0]["path"], "--store", store, "--out", tmp_path / "one.csv")
    assert alone.code == 0, alone.err
    assert "1 of 1 rows are of views" in alone.err
    assert len(rows_of(tmp_path / "one.csv")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--head", "attention_mil", "--bag", "study", "--view", "angel"], "no column 'angel'"),
        (["--head", "attention_mil", "--view", "angle"], "--view angle: a view is what a row of a bag shows"),
        (["--head", "linear", "--bag", "study", "--view", "angle"], "head linear learns nothing from views"),
    ],
)
def test_views_that_nobody_can_use_are_refused(studies, frostline, tmp_path, options, message) -> None:
    manifest, store = studies
    shared = (manifest, "--input", "path", "--store", store, "--encoder", TOY, "--target", "label")
    result = frostline("fit-head", *shared, *options, "--out", tmp_path / "run")
    assert result.code == 2
    assert message in result.error
    if "linear" in options:
        assert "use attention_mil" in result.error
        both = frostline("tune", *shared, *options, "--head", "attention_mil", "--trials", 2, "--out", tmp_path / "t")
        assert message in both.error
        none = frostline("compare", *shared, *options, "--out", tmp_path / "c")
        assert none.code == 2
        assert "no head to compare learns from views; add one of: attention_mil" in none.error


def test_compare_gives_views_to_the_heads_that_can_use_them(studies, tmp_path) -> None:
    manifest, store = studies

    def views(heads: list[object], **options: object) -> dict[str, str | None]:
        content = {"datasets": {"pictures": {"manifest": str(manifest)}}, "encoders": [TOY], "heads": heads}
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump(content))
        values = {"manifest": path, "store": store, "target": "label", "bag": "study", "out": tmp_path / "c", **options}
        return {cell.head: cell.config.view for cell in read_suite(CompareConfig.build(values, where="here")).cells}

    own = {"head": "attention_mil", "label": "with angles", "view": "angle"}
    found = {"prior": None, "linear": None, "attention_mil": None, "with angles": "angle"}
    assert views(["linear", "attention_mil", own]) == found
    assert views(["linear", "attention_mil"], view="angle") == {"prior": None, "linear": None, "attention_mil": "angle"}
    # Where a head is told of views itself, it is not left out in silence: its cell fails, with the reason.
    assert views([{"head": "linear", "view": "angle"}, "attention_mil"])["linear"] == "angle"


def test_tune_searches_with_the_views(studies, frostline, tmp_path) -> None:
    manifest, store = studies
    space = tmp_path / "space.yaml"
    space.write_text("attention_mil: {pooling: [mean, max]}")
    fixed = ("--set", "max_epochs=2", "--set", "members=1", "--normalize", "none", "--view", "angle")
    command = ("tune", manifest, "--store", store, "--encoder", TOY, *WHAT, "--head", "attention_mil", *fixed)
    result = frostline(*command, "--space", space, "--trials", 2, "--out", tmp_path / "t")
    assert result.code == 0, result.err
    assert yaml.safe_load((tmp_path / "t" / "best.yaml").read_text())["view"] == "angle"
    state = json.loads((tmp_path / "t" / "best" / "head" / "head.json").read_text())["head"]["state"]
    assert state["views_"] == ["long", "short"]


def test_a_run_without_views_takes_none(studies, frostline, tmp_path) -> None:
    manifest, store = studies
    what = [*WHAT, "--head", "knn", "--out", tmp_path / "run"]
    assert frostline("fit-head", manifest, "--store", store, "--encoder", TOY, *what).code == 0
    for command in (("evaluate", "--split", "test"), ("predict", "--out", tmp_path / "p.csv")):
        result = frostline(command[0], tmp_path / "run", manifest, "--store", store, *command[1:], "--view", "angle")
        assert result.code == 2
        assert "was fitted without views; leave it out" in result.error


def test_rows_that_could_not_be_read_still_say_what_their_study_is(studies, frostline, tmp_path) -> None:
    manifest, store = studies
    rows = rows_of(manifest)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    of = {row["study"]: [i for i, other in enumerate(rows) if other["study"] == row["study"]] for row in rows}
    half = next(study for study, at in of.items() if len(at) > 1 and rows[at[0]]["split"] == "test")
    gone = next(study for study, at in of.items() if rows[at[0]]["split"] == "train")
    first, *others = of[half]
    # Only the unreadable row says which split, patient and label its study has; another study has no readable row.
    rows[first]["path"] = str(broken)
    for i in others:
        rows[i] |= {"split": "", "patient": "", "label": ""}
    for i in of[gone]:
        rows[i]["path"] = ""
    table, own = write_rows(tmp_path / "broken.csv", rows), tmp_path / "store"
    shutil.copytree(store, own)
    encoded = frostline("extract", table, "--input", "path", "--store", own, "--encoder", TOY)
    assert encoded.code == 3
    command = ("fit-head", table, "--store", own, "--encoder", TOY, *WHAT, "--head", "knn")
    result = frostline(*command, "--out", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    said = {row["id"]: row for row in rows_of(tmp_path / "run" / "predictions.csv")}
    assert (said[half]["split"], said[half]["group"], said[half]["true"]) == (
        "test",
        rows[first]["patient"],
        rows[first]["label"],
    )
    assert gone not in said
    dropped = result.json["counts"]["dropped"]
    assert dropped["bags without a row"] == {"count": 1, "ids": [gone]}
    assert dropped[f"rows of bags, {TOY}: unreadable"]["count"] == 1
    assert "no split" not in dropped
    # A contradiction counts even if its row could not be read.
    rows[others[0]]["split"] = "train"
    result = frostline(*command[:1], write_rows(table, rows), *command[2:], "--out", tmp_path / "wrong")
    assert result.code == 2
    assert f"{half!r} is 'test' in row {first + 2} but 'train' in row {others[0] + 2}" in result.error


def test_a_row_without_a_label_does_not_conflict_with_its_copy(studies, frostline, tmp_path) -> None:
    manifest, store = studies
    rows = rows_of(manifest)
    at = next(i for i, row in enumerate(rows) if row["split"] == "train")
    rows.append({**rows[at], "id": "copy", "label": ""})
    command = ("fit-head", write_rows(tmp_path / "m.csv", rows), "--store", store, "--encoder", TOY, *WHAT)
    result = frostline(*command, "--head", "knn", "--out", tmp_path / "run", "--json")
    assert result.code == 0, result.err
    assert result.json["leakage"]["conflicting"]["count"] == 0


@pytest.mark.filterwarnings("ignore:.*test_vit.*")
def test_tokens_of_the_rows_of_a_study_are_bags_of_two_levels(pictures, frostline, tmp_path) -> None:
    rows = rows_of(pictures(24))
    folder = tmp_path / "pictures24-2-0"
    for i, row in enumerate(rows):
        row |= {"path": str(folder / row["path"]), "study": f"{row['patient']} {row['label']}", "angle": "ab"[i % 2]}
    manifest, store = write_rows(tmp_path / "studies.csv", rows), tmp_path / "store"
    arguments = ("extract", manifest, "--input", "path", "--store", store, "--encoder", VIT, "--pooling", "cls,tokens")
    assert frostline(*arguments).code == 0
    sizes = [sum(row["study"] == study for row in rows) for study in {row["study"] for row in rows}]
    what = [
        *("--input", "path", "--target", "label", "--bag", "study", "--group", "patient", "--folds", 2),
        *("--bootstrap", 10, "--store", store, "--encoder", VIT),
    ]
    mil = [*MIL, "--set", "max_epochs=2", "--set", "max_parts=1", "--set", "max_instances=60", "--view", "angle"]
    run = tmp_path / "run"
    fitted = frostline("fit-head", manifest, *what, *mil, "--pooling", "tokens", "--out", run, "--json")
    assert fitted.code == 0, fitted.err
    counts = fitted.json["counts"]
    assert counts["instances"] == {"total": 24 * 101, "fewest": 101 * min(sizes), "most": 101 * max(sizes)}
    assert counts["bags"].pop("views") == {"column": "angle", "rows": {"a": 12, "b": 12}}
    assert counts["bags"] == {"column": "study", "rows": 24, "fewest": min(sizes), "most": max(sizes)}
    assert counts["samples"] == len(sizes)
    more = sum(size > 1 for size in sizes)
    assert more
    remarks = "\n".join(fitted.json["warnings"])
    assert f"max_parts=1: {more} of {len(sizes)} bags have more parts and are cut" in remarks
    assert f"max_instances=60: {len(sizes)} of {len(sizes)} bags have more instances and are cut" in remarks
    saved = json.loads((run / "head" / "head.json").read_text())["head"]["state"]
    assert (saved["levels_"], saved["views_"]) == (2, ["a", "b"])
    assert frostline("predict", run, manifest, "--store", store, "--out", tmp_path / "p.csv").code == 0
    assert len(rows_of(tmp_path / "p.csv")) == len(sizes)

    # Heads of one vector see the mean over a study, of tokens as of vectors.
    linear = frostline("fit-head", manifest, *what, "--pooling", "tokens", "--out", tmp_path / "linear", "--json")
    assert "each study is the mean of its" in "\n".join(linear.json["warnings"])
    plain = frostline("fit-head", manifest, *what, *mil, "--pooling", "cls", "--out", tmp_path / "cls")
    assert plain.code == 2
    assert "max_parts=1: these bags have no parts; use max_instances" in plain.error
