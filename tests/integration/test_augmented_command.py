"""Augmented views from pictures to a report: heads learn from them, and everything that is said is of the pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cli
from data.digest import key_bytes
from data.progress import Silent
from featurestore.store import FeatureStore
from heads.config import FitConfig
from heads.loading import load

A, B = "timm:test_vit/random:0", "timm:test_vit/random:1"
VIEWS, OF_B = f"augmented:2+{A}", f"augmented:2+{B}"
OTHER = f"augmented:3,flip+{B}"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pages of single runs, which cost most of the time."""
    for drawn in ("write_plots", "write_report"):
        monkeypatch.setattr(f"heads.fit.{drawn}", lambda *_: None)


@pytest.fixture(scope="module")
def pictures(shared_pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 48 pictures of three classes, by absolute paths."""
    rows = [{**row, "path": str(shared_pictures.parent / row["path"])} for row in table(shared_pictures)]
    return write(tmp_path_factory.mktemp("manifest") / "manifest.csv", rows[:48])


@pytest.fixture(scope="module")
def store(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of plain features and of views by two encoders."""
    folder = tmp_path_factory.mktemp("augmented") / "store"
    extract = ["extract", str(pictures), "--input", "path", "--store", str(folder)]
    encoders = [part for name in (A, B, VIEWS, OF_B) for part in ("--encoder", name)]
    assert cli.run([*extract, *encoders]) == 0
    assert cli.run([*extract, "--encoder", OTHER, "--limit", "2"]) == 0
    return folder


@pytest.fixture
def command(frostline: Any, pictures: Path, store: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run a command on these pictures; the arguments name its encoders."""

    def run(name: str, *arguments: object, out: str = "run", store: Path = store) -> Any:
        base = (name, pictures, "--input", "path", "--store", store, "--target", "label", "--group", "patient")
        return frostline(*base, "--bootstrap", 20, "--out", tmp_path / out, *arguments, "--json"), tmp_path / out

    return run


def test_a_run_is_fitted_on_views_and_says_all_of_the_pictures(
    command: Any, frostline: Any, pictures: Path, store: Path, tmp_path: Path
) -> None:
    options = ("--split", "split", "--folds", 3)
    plain, of_plain = command("fit-head", "--encoder", A, *options, out="plain")
    result, run = command("fit-head", "--encoder", VIEWS, *options)
    assert (plain.code, result.code) == (0, 0), result.err
    record = json.loads((run / "record.json").read_text())
    assert [each["encoder"] for each in record["inputs"]] == [A]
    assert record["inputs"] == json.loads((of_plain / "record.json").read_text())["inputs"]
    assert record["config"]["encoder"] == [VIEWS]
    counts = dict(record["counts"])
    views = counts.pop("views")
    assert counts == json.loads((of_plain / "record.json").read_text())["counts"]
    assert (views["encoders"], views["per_sample"], views["policy"]["seed"]) == ([VIEWS], 2, 0)
    assert any("learned from 2 augmented views of each training sample" in each for each in record["warnings"])
    assert table(run / "trained.csv") == table(of_plain / "trained.csv")
    mine, theirs = table(run / "predictions.csv"), table(of_plain / "predictions.csv")
    for name in ("id", "split", "fold", "group", "true"):
        assert [row[name] for row in mine] == [row[name] for row in theirs]
    assert mine != theirs
    judged = frostline("evaluate", run, pictures, "--store", store, "--split", "test", "--bootstrap", 20, "--json")
    assert judged.code == 0, judged.err
    assert judged.json["metrics"]["accuracy"]["value"] == record["metrics"]["test"]["accuracy"]["value"]
    said = frostline("predict", run, pictures, "--out", tmp_path / "said.csv")  # encodes the pictures themselves
    assert said.code == 0, said.err
    of_test = {row["id"]: row for row in mine if row["split"] == "test"}
    for row in table(tmp_path / "said.csv"):
        if row["id"] in of_test:
            assert float(row["prob[left]"]) == pytest.approx(float(of_test[row["id"]]["prob[left]"]), abs=1e-3)


def test_two_runs_give_the_same_record(command: Any) -> None:
    found = []
    for out in ("one", "two"):
        result, run = command(
            "fit-head",
            "--encoder",
            VIEWS,
            "--head",
            "mlp",
            "--set",
            "max_epochs=2",
            "--set",
            "members=1",
            "--folds",
            2,
            out=out,
        )
        assert result.code == 0, result.err
        found.append((run / "predictions.csv").read_bytes())
    assert found[0] == found[1]


def config_of(pictures: Path, store: Path, *encoders: str, **options: Any) -> FitConfig:
    values = {
        "manifest": pictures,
        "input": "path",
        "store": store,
        "target": ("label",),
        "group": "patient",
        "out": "o",
    }
    return FitConfig.build({**values, "encoder": encoders, **options}, where="a test")


def test_views_are_joined_view_by_view_and_an_encoder_without_them_is_repeated(pictures: Path, store: Path) -> None:
    stored = FeatureStore(store)
    both = load(config_of(pictures, store, VIEWS, OF_B), Silent())
    one = load(config_of(pictures, store, VIEWS, B), Silent())
    assert both.views is not None
    assert one.views is not None
    keys, (n, d) = both.instances.keys, both.X.shape
    of_a, of_b = (stored.find(name).take_bags(keys).values.reshape(n, 2, d // 2) for name in (VIEWS, OF_B))
    np.testing.assert_array_equal(both.views.values, np.concatenate([of_a, of_b], axis=2))
    again = np.repeat(np.asarray(one.X)[:, None, d // 2 :], 2, axis=1)
    np.testing.assert_array_equal(one.views.values, np.concatenate([of_a, again], axis=2))
    scaled = load(config_of(pictures, store, VIEWS, B, normalize="l2"), Silent())
    assert scaled.views is not None
    for half in np.split(scaled.views.values, 2, axis=2):
        np.testing.assert_allclose(np.linalg.norm(half, axis=2), 1, rtol=1e-5)


def test_views_are_needed_of_training_samples_only(
    command: Any, frostline: Any, pictures: Path, tmp_path: Path
) -> None:
    rows, small = table(pictures), tmp_path / "small"
    train = write(tmp_path / "train.csv", [row for row in rows if row["split"] == "train"])
    for manifest, encoder in ((pictures, A), (train, VIEWS)):
        extracted = frostline("extract", manifest, "--input", "path", "--store", small, "--encoder", encoder)
        assert extracted.code == 0, extracted.err
    options = {"store": small}
    result, _ = command("fit-head", "--encoder", VIEWS, "--split", "split", "--folds", 3, **options)
    assert result.code == 0, result.err
    (remark,) = [each for each in result.json["warnings"] if "augmented views" in each]
    n = sum(row["split"] == "val" for row in rows)
    assert "some views are mirrored" in remark
    assert remark.endswith(f"{n} of {n} val samples have none where they join the final fit")
    refused, out = command("fit-head", "--encoder", VIEWS, out="refused", **options)
    assert refused.code == 2
    left = sum(row["split"] != "train" for row in rows)
    assert f"{left} of {len(rows)} training samples have no {VIEWS} features in the store" in refused.error
    assert f"frostline extract {pictures} --encoder {VIEWS} --store {small}" in refused.error
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("zero-shot", ("--encoder", VIEWS, "--prompt-encoder", "offline:minilm"), "augmented views are for training"),
        ("fit-head", ("--encoder", VIEWS, "--encoder", OTHER), "are augmented in different ways (policy"),
        ("fit-head", ("--encoder", A, "--encoder", VIEWS), f"brings the features of {A} with it"),
        ("fit-head", ("--encoder", f"augmented:7+{A}"), f"no features of 'augmented:7+{A}'"),
        ("fit-head", ("--encoder", VIEWS, "--bag", "patient"), "views of bags (--bag patient) are not supported"),
        ("fit-head", ("--encoder", VIEWS, "--pooling", "mean"), "not with pooling mean"),
        ("tune", ("--encoder", VIEWS, "--encoder", OTHER, "--trials", 2), "are augmented in different ways"),
    ],
)
def test_refusals_are_one_line(command: Any, name: str, arguments: tuple[object, ...], said: str) -> None:
    result, out = command(name, *arguments)
    assert result.code == 2, result.err
    assert said in result.error
    assert "Traceback" not in result.err
    assert not out.exists()


def test_prompts_are_not_augmented(command: Any) -> None:
    head = ("--head", "prompt_similarity", "--prompt-encoder", "augmented+offline:minilm")
    result, _ = command("fit-head", "--encoder", A, *head)
    assert result.code == 2
    assert "--prompt-encoder augmented+offline:minilm" in result.error


def test_a_comparison_with_and_without_views_is_paired(command: Any) -> None:
    result, out = command("compare", "--encoder", A, "--encoder", VIEWS, "--folds", 2, "--few-shot", 1)
    assert result.code == 0, result.err
    rows = [row for row in table(out / "table.csv") if row["metric"] == "accuracy" and row["head"] == "linear"]
    assert [row["encoder"] for row in rows] == [A, VIEWS]
    tests = [row for row in table(out / "tests.csv") if {row["encoder_a"], row["encoder_b"]} == {A, VIEWS}]
    assert tests
    assert all(0 <= float(row["p"]) <= 1 for row in tests)


def test_a_study_tunes_a_head_on_views_and_its_best_can_be_fitted_again(
    command: Any, frostline: Any, tmp_path: Path
) -> None:
    options = ("--split", "split", "--folds", 3, "--trials", 3, "--head", "linear", "--normalize", "none")
    result, out = command("tune", "--encoder", VIEWS, *options)
    assert result.code == 0, result.err
    assert result.json["best"]["encoders"] == [VIEWS]
    assert [each["encoder"] for each in result.json["inputs"]] == [A]
    again = frostline("fit-head", "--config", out / "best.yaml", "--out", tmp_path / "again", "--json")
    assert again.code == 0, again.err
    assert again.json["counts"]["views"]["per_sample"] == 2
    assert (tmp_path / "again" / "predictions.csv").read_bytes() == (out / "best" / "predictions.csv").read_bytes()


def test_views_through_another_form_of_the_encoder_are_refused(
    command: Any, frostline: Any, pictures: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    for encoder, dtype in ((A, "float16"), (VIEWS, "float32")):
        extract = ("extract", pictures, "--input", "path", "--store", small, "--limit", 2, "--encoder", encoder)
        assert frostline(*extract, "--dtype", dtype).code == 0
    small_pictures = write(tmp_path / "two.csv", table(pictures)[:2])
    result = frostline(
        "fit-head",
        small_pictures,
        "--input",
        "path",
        "--store",
        small,
        "--encoder",
        VIEWS,
        "--target",
        "label",
        "--out",
        tmp_path / "o",
    )
    assert result.code == 2
    assert f"its views went through another encoder than the stored features of {A}" in result.error
    assert "dtype: float16 -> float32" in result.error


def test_a_sample_whose_views_failed_goes_without(command: Any, frostline: Any, pictures: Path, tmp_path: Path) -> None:
    rows, small = table(pictures), tmp_path / "small"
    others = write(tmp_path / "others.csv", rows[1:])
    for manifest, encoder in ((pictures, A), (others, VIEWS)):
        assert frostline("extract", manifest, "--input", "path", "--store", small, "--encoder", encoder).code == 0
    options = ("--encoder", VIEWS, "--folds", 2)
    refused, _ = command("fit-head", *options, store=small)
    assert f"1 of 48 training samples have no {VIEWS} features in the store (first: {rows[0]['id']})" in refused.error
    stored = FeatureStore(small)
    views, plain = stored.find(VIEWS), stored.find(A)
    (position,) = views.missing(plain.keys())
    stored.ledger(views.group).add(
        key_bytes(plain.keys()[position]),
        id=rows[0]["id"],
        source=rows[0]["path"],
        kind="not_finite",
        message="not finite",
    )
    result, _ = command("fit-head", *options, store=small)
    assert result.code == 0, result.err
    assert any(each.endswith("1 of 48 training samples have no views") for each in result.json["warnings"])


def test_a_sample_without_an_image_has_no_views_where_that_is_masked(
    frostline: Any, pictures: Path, toy_text: str, tmp_path: Path
) -> None:
    rows = [{**row, "text": row.pop("note")} for row in table(pictures)]
    for row in rows[::6]:
        row["path"] = ""
    manifest, small = write(tmp_path / "pairs.csv", rows), tmp_path / "small"
    for column, encoder in (("path", A), ("path", VIEWS), ("text", toy_text)):
        assert frostline("extract", manifest, "--input", column, "--store", small, "--encoder", encoder).code == 0
    encoders = ("--encoder", VIEWS, "--encoder", toy_text)
    small_network = ("--set", "max_epochs=1", "--set", "members=1")
    result = frostline(
        "fit-head", manifest, "--input", "path", "--store", small, *encoders, "--target", "label", "--group", "patient",
        "--head", "concat_fusion", *small_network, "--missing", "mask", "--folds", 2, "--bootstrap", 20,
        "--out", tmp_path / "run", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert any(each.endswith("8 of 48 training samples have no views") for each in result.json["warnings"])
