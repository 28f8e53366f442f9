"""`compare` as a user runs it, on small pictures and texts: whole, honest, resumable, and the same every time."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from heads.evaluation.metrics import HEADLINE

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--folds", 3, "--bootstrap", 40)
COLUMNS = ["encoder", "head", "metric", "value", "low", "high", "fit_seconds", "parameters", "run"]
NETWORK = {"max_epochs": 4, "members": 1, "batch_size": 16}
WORDS = {"cold": "icy snow and frosts", "hot": "desert sand and fires"}


@pytest.fixture(autouse=True)
def undrawn(monkeypatch) -> None:
    """Leave out the pages of single runs, which cost most of the time; `monkeypatch.undo` brings them back."""
    for drawn in ("write_plots", "write_report"):
        monkeypatch.setattr(f"heads.fit.{drawn}", lambda *_: None)


@pytest.fixture
def stored(frostline, pictures, toy, tmp_path):
    """A manifest and a store with its features."""
    manifest, store = pictures(48, 2), tmp_path / "store"
    assert frostline("extract", manifest, "--store", store, "--encoder", toy).code == 0
    return manifest, store


@pytest.fixture
def compare(frostline, stored, toy, tmp_path):
    """Compare heads on the pictures: the result and its directory."""

    def run(*arguments: object, out: str = "comparison", heads=("linear", "knn")):
        manifest, store = stored
        command = ["compare", manifest, "--store", store, "--encoder", toy, "--target", "label", "--group", "patient"]
        command += [part for head in heads for part in ("--head", head)]
        return frostline(*command, *QUICK, "--out", tmp_path / out, "--json", *arguments), tmp_path / out

    return run


@pytest.fixture
def texts(frostline, toy_text, tmp_path) -> tuple[Path, Path]:
    """Write and extract short texts; return manifest and store."""
    manifest, store = tmp_path / "texts.csv", tmp_path / "store"
    with manifest.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "text", "label", "group"])
        for i in range(48):
            label = list(WORDS)[i % 2]
            table.writerow([f"t{i}", f"{WORDS[label]} {i * 7919 % 1000}", label, i // 4])
    assert frostline("extract", manifest, "--store", store, "--encoder", toy_text).code == 0
    return manifest, store


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def text(value: float | None) -> str:
    return "" if value is None else repr(value)


def stable(out: Path) -> dict[str, object]:
    """Return everything that a comparison left behind, but for times and the pages and plots drawn from the rest."""
    files: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.name == "record.json":
            record = json.loads(path.read_text())
            assert record.pop("volatile")
            files[name] = record
        elif path.name == "table.csv" and path.parent == out:
            files[name] = [{**row, "fit_seconds": ""} for row in rows_of(path)]
        elif path.is_file() and path.suffix not in (".html", ".png", ".yaml"):
            files[name] = path.read_bytes()
    return files


def test_a_comparison_is_whole(compare) -> None:
    result, out = compare("--few-shot", 2)
    assert result.code == 0, result.err
    assert {path.name for path in out.iterdir()} == {
        *("table.csv", "tests.csv", "ranks.csv", "few_shot.csv", "left_out.csv", "report.html", "config.yaml"),
        *("cells", "few_shot", "plots"),
    }
    table = rows_of(out / "table.csv")
    assert list(table[0]) == COLUMNS
    assert table == result.json["table"]
    assert [(row["encoder"] == "", row["head"]) for row in table if row["metric"] == "roc_auc"] == [
        (True, "prior"),
        (False, "linear"),
        (False, "knn"),
    ]
    for row in table:
        record = json.loads((out / row["run"] / "record.json").read_text())
        found = record["metrics"]["cv"][row["metric"]]
        for end in ("value", "low", "high"):
            assert row[end] == text(found[end]), row
        assert int(row["parameters"]) == record["head"]["n_parameters"]
    tests = rows_of(out / "tests.csv")
    assert {(row["test"], row["metric"]) for row in tests} == {
        *(("bootstrap", name) for name in HEADLINE["binary"][:3]),
        ("delong", "roc_auc"),
        ("mcnemar", "accuracy"),
    }
    assert {row["p_holm"] == row["p"] for row in tests} == {True}  # one pair is a family of one
    assert [(row["head"], row["reason"]) for row in rows_of(out / "left_out.csv")] == [
        ("zero_shot", "there are no prompts to compare with; add prompt_encoder")
    ]
    curve = rows_of(out / "few_shot.csv")
    assert [row["n"] for row in curve if row["head"] == "knn"] == ["1", "2", "4", "8", "all"]
    assert all(float(row["low"]) <= float(row["value"]) <= float(row["high"]) for row in curve if row["n"] != "1")


def test_every_number_of_the_page_links_to_its_run(compare, monkeypatch) -> None:
    monkeypatch.undo()
    _, out = compare("--repeats", 2, heads=("knn",))
    page = (out / "report.html").read_text()
    linked = set(re.findall(r'href="(cells/[^"]+)"', page))
    assert linked == {f"cells/{path.parent.name}/report.html" for path in out.glob("cells/*/record.json")}
    assert len(linked) == 4
    assert all((out / link).is_file() for link in linked)
    for row in rows_of(out / "table.csv"):
        if row["metric"] in HEADLINE["binary"][:3]:
            shown = re.escape(f"{float(row['value']):.3f}")
            assert re.search(rf'href="{row["run"]}/report.html">{shown}<', page), row
    assert "How to reproduce" in page


def test_two_runs_leave_the_same_behind(compare) -> None:
    first, one = compare("--few-shot", 2, "--repeats", 2)
    second, other = compare("--few-shot", 2, "--repeats", 2, out="other")
    assert (first.code, second.code) == (0, 0), second.err
    left = [stable(folder) for folder in (one, other)]
    for files in left:
        for name, record in files.items():
            if name.endswith("record.json"):
                assert isinstance(record, dict)
                record.pop("command")
                record["config"].pop("out")
    assert left[0] == left[1]
    third, _ = compare("--repeats", 2, "--seed", 5, out="third")
    assert [row["value"] for row in third.json["table"]] != [row["value"] for row in second.json["table"]]


def test_finished_cells_are_not_fitted_again(compare, monkeypatch) -> None:
    _, out = compare("--few-shot", 2)
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/record.json")}

    def refuse(*_arguments, **_keywords):
        raise AssertionError("a cell was fitted again")

    table = (out / "table.csv").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("heads.comparing.cells.fit_labelled", refuse)
        patched.setattr("heads.comparing.few_shot.fit_on", refuse)
        result, _ = compare("--few-shot", 2)
    assert result.code == 0, result.err
    assert (out / "table.csv").read_bytes() == table
    more, _ = compare("--few-shot", 2, heads=("linear", "knn", "prototype"))
    assert more.code == 0, more.err
    after = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/record.json")}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    other, _ = compare("--bootstrap", 20)
    assert other.code == 0, other.err
    assert len(list(out.glob("cells/*/record.json"))) > len(after)
    anew, _ = compare("--overwrite")
    assert anew.code == 0, anew.err
    assert len(list(out.glob("cells/*/record.json"))) == 3


def test_the_resolved_configuration_gives_the_same_table(compare, frostline, tmp_path) -> None:
    first, out = compare()
    second = frostline("compare", "--config", out / "config.yaml", "--out", tmp_path / "again", "--json")
    assert second.code == 0, second.err
    for one, other in zip(first.json["table"], second.json["table"], strict=True):
        assert {**one, "fit_seconds": ""} == {**other, "fit_seconds": ""}


def test_controls_and_baselines_stand_beside_heads_with_prompts(frostline, texts, toy_text, tmp_path) -> None:
    _, store = texts
    suite = tmp_path / "suite.yaml"
    content = {
        "datasets": {"texts": {"manifest": "texts.csv", "target": "label", "group": "group"}},
        "encoders": [toy_text],
        "prompt_encoder": toy_text,
        "heads": ["linear", {"label": "similar", "head": "prompt_similarity", "set": NETWORK}],
    }
    suite.write_text(yaml.safe_dump(content, sort_keys=False))
    result = frostline("compare", suite, "--store", store, *QUICK, "--out", tmp_path / "out", "--json")
    assert result.code == 0, result.err
    heads = [row["head"] for row in result.json["table"] if row["metric"] == "roc_auc"]
    real, zero, shuffled = "similar", "similar, zero prompts", "similar, shuffled prompts"
    assert heads == ["prior", "linear", real, zero, shuffled, "zero_shot"]
    pairs = {(row["head_a"], row["head_b"]) for row in result.json["tests"] if row["test"] == "bootstrap"}
    contenders = {("linear", real), ("linear", "zero_shot"), (real, "zero_shot")}
    assert pairs == contenders | {(real, zero), (real, shuffled)}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Controls" in page
    assert "better than both controls" in page
    ranked = {row["name"] for row in rows_of(tmp_path / "out" / "ranks.csv") if row["of"] == "head"}
    assert ranked == {"linear", real, "zero_shot"}
    prior = next(row for row in result.json["table"] if (row["head"], row["metric"]) == ("prior", "roc_auc"))
    assert float(prior["value"]) <= 0.5


def test_several_data_sets_and_a_cell_that_fails(frostline, stored, texts, toy, tmp_path) -> None:
    manifest, store = stored
    suite = tmp_path / "suite.yaml"
    content = {
        "store": str(store),
        "datasets": {
            name: {"manifest": str(manifest), "target": target, "group": "patient"}
            for name, target in (("sides", "label"), ("scores", "score"))
        },
        "encoders": [toy],
        "heads": ["linear", "knn", {"label": "wrong", "head": "mlp", "set": {"lr": -1}}],
    }
    suite.write_text(yaml.safe_dump(content, sort_keys=False))
    result = frostline("compare", suite, *QUICK, "--out", tmp_path / "out", "--few-shot", 1, "--json")
    assert result.code == 3, result.err
    assert {(row["dataset"], row["metric"]) for row in result.json["table"]} >= {
        ("sides", "roc_auc"),
        ("scores", "mae"),
    }
    assert [(row["data"], row["head"]) for row in result.json["failed"]] == [("sides", "wrong"), ("scores", "wrong")]
    assert "lr" in result.json["failed"][0]["reason"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "wrong" in page
    assert "a regression has no classes" in page


def test_the_test_rows_stay_sealed_unless_they_judge(compare) -> None:
    result, out = compare("--split", "split")
    assert result.code == 0, result.err
    for record in out.glob("cells/*/record.json"):
        assert set(json.loads(record.read_text())["metrics"]) == {"cv", "val"}
    judged, out = compare("--split", "split", "--judge", "test", out="judged")
    assert judged.code == 0, judged.err
    for row in judged.json["table"]:
        record = json.loads((out / row["run"] / "record.json").read_text())
        assert row["value"] == text(record["metrics"]["test"][row["metric"]]["value"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--metric", "rocauc"), "did you mean 'roc_auc'"),
        (("--head", "lineer"), "no head 'lineer'; did you mean 'linear'?"),
        (("--judge", "test"), "has no test rows"),
        (("--repeats", "0"), "--repeats: expected greater than or equal to 1"),
        (("--encoder", "offline:nowhere"), "offline:nowhere"),
    ],
)
def test_errors_are_one_line(compare, arguments, said: str) -> None:
    result, out = compare(*arguments)
    assert result.code == 2
    assert said in result.error
    assert not (out / "table.csv").exists()


def test_a_directory_of_something_else_is_left_alone(compare, tmp_path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    for flags in ((), ("--overwrite",)):
        result, out = compare(*flags, out="notes")
        assert result.code == 2
        assert "is no comparison" in result.error
        assert (out / "mine.txt").read_text() == "keep"


@pytest.mark.slow
def test_a_killed_comparison_goes_on(compare, stored, toy, tmp_path) -> None:
    manifest, store = stored
    whole, _ = compare(heads=("linear", "knn", "svm"))
    out = tmp_path / "killed"
    command = [
        *(sys.executable, "-m", "cli", "compare", manifest, "--store", store, "--encoder", toy, "--target", "label"),
        *("--group", "patient", "--head", "linear", "--head", "knn", "--head", "svm", *QUICK, "--out", out),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([str(each) for each in command], env=environment, stderr=subprocess.PIPE)
    until = time.monotonic() + 60
    while len(list(out.glob("cells/*/record.json"))) < 2 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/record.json")}
    assert 2 <= len(done) < 4
    assert not (out / "table.csv").exists()
    result, _ = compare(heads=("linear", "knn", "svm"), out="killed")
    assert result.code == 0, result.err
    assert done == {path: path.stat().st_mtime_ns for path in done}
    for one, other in zip(whole.json["table"], result.json["table"], strict=True):
        assert {**one, "fit_seconds": ""} == {**other, "fit_seconds": ""}
