"""What a user can get wrong: one clear line, the right exit code, nothing half-written."""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def ready(frostline, pictures, toy, tmp_path):
    manifest, store = pictures(), tmp_path / "store"
    assert frostline("extract", manifest, "--store", store, "--encoder", toy).code == 0
    return manifest, store


@pytest.fixture
def refused(frostline):
    """Run a command that must fail with code 2 and one line of error; return the line."""

    def run(*arguments: object, code: int = 2) -> str:
        result = frostline(*arguments)
        assert result.code == code, result.err
        assert result.error.startswith("frostline: error: "), result.err
        assert "Traceback" not in result.err
        assert result.out == ""
        return result.error

    return run


def edit(manifest: Path, **changes) -> Path:
    """Write a copy of a manifest with columns replaced by functions of (number, row)."""
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        for name, change in changes.items():
            row[name] = change(i, row)
    path = manifest.with_name("edited.csv")
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def test_usage(refused) -> None:
    assert "No such command 'extrct'" in refused("extrct")
    assert "No such option: --stor" in refused("extract", "--stor", "x")
    assert "--store is required" in refused("extract", "m.csv")
    assert "manifest is required" in refused("extract", "--store", "s")


def test_manifests(refused, tmp_path, toy) -> None:
    def extract(manifest: object) -> str:
        return refused("extract", manifest, "--store", tmp_path / "s", "--encoder", toy)

    assert "absent.csv" in extract(tmp_path / "absent.csv")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert str(empty) in extract(empty)
    (tmp_path / "no-rows.csv").write_text("id,path\n")
    assert "no rows" in extract(tmp_path / "no-rows.csv")
    (tmp_path / "twice.csv").write_text("id,path\na,x.png\na,y.png\n")
    assert "rows 2, 3" in extract(tmp_path / "twice.csv")
    (tmp_path / "escape.csv").write_text("id,path\na,../../etc/x.png\n")
    assert "row 2" in extract(tmp_path / "escape.csv")
    assert not (tmp_path / "s").exists()


def test_names_come_with_a_near_match(refused, ready, toy, tmp_path) -> None:
    manifest, store = ready
    base = ("fit-head", manifest, "--store", store, "--out", tmp_path / "run")
    with_toy = (*base, "--encoder", toy)
    assert "did you mean 'label'" in refused(*with_toy, "--target", "lable")
    assert "did you mean 'linear'" in refused(*with_toy, "--target", "label", "--head", "linaer")
    assert "did you mean 'C'" in refused(*with_toy, "--target", "label", "--set", "c=1")
    assert "C='lots'" in refused(*with_toy, "--target", "label", "--set", "C=lots")
    assert "did you mean 'patient'" in refused(*with_toy, "--target", "label", "--group", "patients")
    assert "toy.py" in refused(*base, "--encoder", toy + "s", "--target", "label")
    assert "minilm" in refused("extract", manifest, "--store", store, "--encoder", "offline:minilmm")
    assert "no encoder" in refused("extract", manifest, "--store", store, "--encoder", "opn_clip:ViT-B-32/openai")
    assert not (tmp_path / "run").exists()


def test_labels(refused, ready, toy, tmp_path) -> None:
    manifest, store = ready
    base = ("--store", store, "--encoder", toy, "--out", tmp_path / "run")

    def fit(path: Path, *arguments: object) -> str:
        return refused("fit-head", path, *base, "--target", "label", *arguments)

    assert "all 48 labels are 'left'" in fit(edit(manifest, label=lambda i, row: "left"))
    assert "label" in fit(edit(manifest, label=lambda i, row: ""))
    assert "expected" in fit(manifest, "--kind", "regression")
    assert "is no split" in fit(edit(manifest, split=lambda i, row: "holdout"), "--split", "split")
    assert "groups" in fit(edit(manifest, patient=lambda i, row: f"p{i % 2}"), "--group", "patient")


def test_a_class_in_one_group_cannot_be_cross_validated(refused, ready, toy, tmp_path) -> None:
    manifest, store = ready
    changes = {"label": lambda i, row: "rare" if i < 3 else "common", "patient": lambda i, row: f"p{i // 3}"}
    base = ("--store", store, "--encoder", toy, "--target", "label", "--group", "patient", "--out", tmp_path / "run")
    message = refused("fit-head", edit(manifest, **changes), *base)
    assert "are 'common'" in message
    assert "at least 2 groups" in message


def test_missing_labels_are_dropped_and_counted(frostline, ready, toy, tmp_path) -> None:
    manifest, store = ready
    some = edit(manifest, label=lambda i, row: "" if i < 5 else row["label"])
    result = frostline(
        *("fit-head", some, "--store", store, "--encoder", toy, "--target", "label"),
        *("--folds", 3, "--bootstrap", 10, "--out", tmp_path / "run", "--json"),
    )
    assert result.code == 0, result.err
    assert result.json["counts"]["dropped"]["no label"]["count"] == 5
    assert result.json["counts"]["samples"] == 43


def test_features_that_are_not_there(refused, ready, toy, tmp_path, pictures) -> None:
    _, store = ready
    new = pictures(12, 2, seed=9)
    message = refused(
        *("fit-head", new, "--store", store, "--encoder", toy, "--target", "label", "--out", tmp_path / "run")
    )
    assert "12 of 12 samples" in message
    assert "frostline extract" in message
    assert "no feature store" in refused(
        *("fit-head", new, "--store", tmp_path / "none", "--encoder", toy, "--target", "label", "--out", tmp_path / "r")
    )


def test_a_head_refuses_the_features_of_a_changed_encoder(frostline, refused, ready, toy, tmp_path) -> None:
    manifest, _ = ready
    run = tmp_path / "run"
    options = ("--target", "label", "--folds", 2, "--bootstrap", 10, "--out", run)
    own = tmp_path / "own.py"
    shutil.copy(toy.split(":")[1], own)
    name = f"py:{own}:image"
    frostline("extract", manifest, "--store", tmp_path / "s2", "--encoder", name)
    assert frostline("fit-head", manifest, "--store", tmp_path / "s2", "--encoder", name, *options).code == 0
    own.write_text(own.read_text().replace('_spec("image", options, version=1)', '_spec("image", options, version=7)'))
    message = refused("predict", run, manifest, "--out", tmp_path / "p.csv")
    assert "fit the head again" in message
    assert not (tmp_path / "p.csv").exists()


def test_devices(refused, ready, toy, tmp_path) -> None:
    manifest, _ = ready
    arguments = ("extract", manifest, "--store", tmp_path / "s", "--encoder", toy, "--device")
    assert "--device cpu" in refused(*arguments, "cuda:7")
    assert "expected auto, cpu, cuda" in refused(*arguments, "gpu")
    assert not (tmp_path / "s").exists()


def test_weights_that_are_not_here(refused, ready, tmp_path, monkeypatch) -> None:
    manifest, _ = ready
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused("extract", manifest, "--store", tmp_path / "s", "--encoder", "dinov2")
    assert "facebook/dinov2-base" in message
    assert not (tmp_path / "s").exists()


def test_runs_are_not_overwritten(frostline, refused, ready, toy, tmp_path) -> None:
    manifest, store = ready
    base = ("fit-head", manifest, "--store", store, "--encoder", toy, "--target", "label", "--folds", 2)
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "mine.txt").write_text("keep me")
    assert "--overwrite" in refused(*base, "--out", occupied)
    assert "not a run directory" in refused(*base, "--out", occupied, "--overwrite")
    assert (occupied / "mine.txt").read_text() == "keep me"


def test_foreign_directories(refused, ready, toy, tmp_path) -> None:
    manifest, _ = ready
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("...")
    assert "thesis.tex" in refused("extract", manifest, "--store", foreign, "--encoder", toy)
    assert sorted(path.name for path in foreign.iterdir()) == ["thesis.tex"]
    assert "record.json" in refused("report", foreign, "--out", tmp_path / "r.html")
    assert "foreign" in refused("predict", foreign, manifest, "--out", tmp_path / "p.csv")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_read_only_place(refused, ready, toy, tmp_path) -> None:
    manifest, _ = ready
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert "locked" in refused("extract", manifest, "--store", locked / "s", "--encoder", toy)


def test_a_full_disk(refused, ready, toy, tmp_path, monkeypatch) -> None:
    manifest, _ = ready
    monkeypatch.setattr(os, "fsync", full_disk)
    message = refused("extract", manifest, "--store", tmp_path / "s", "--encoder", toy)
    assert "No space left" in message


def full_disk(descriptor: int) -> None:
    import errno

    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_damaged_store_stops_a_fit(frostline, refused, ready, toy, tmp_path) -> None:
    manifest, store = ready
    (shard,) = [path for path in store.glob("features.zarr/*/*/x/c/**/*") if path.is_file()]
    shard.write_bytes(shard.read_bytes()[:50])
    message = refused(
        *("fit-head", manifest, "--store", store, "--encoder", toy, "--target", "label", "--out", tmp_path / "run"),
        code=4,
    )
    assert str(shard) in message
    assert "store verify" in message
    assert not (tmp_path / "run").exists()


def test_a_flipped_bit_in_the_store_stops_a_fit(refused, ready, toy, tmp_path) -> None:
    manifest, store = ready
    (shard,) = [path for path in store.glob("features.zarr/*/*/x/c/**/*") if path.is_file()]
    content = bytearray(shard.read_bytes())
    content[3] ^= 1
    shard.write_bytes(content)
    message = refused(
        *("fit-head", manifest, "--store", store, "--encoder", toy, "--target", "label", "--out", tmp_path / "run"),
        code=4,
    )
    assert f"{shard}: the checksum of chunk 0 is wrong" in message


def test_a_damaged_list_of_trained_rows_stops_an_evaluation(frostline, refused, ready, toy, tmp_path) -> None:
    manifest, store = ready
    run = tmp_path / "run"
    fitted = frostline(
        *("fit-head", manifest, "--store", store, "--encoder", toy, "--target", "label", "--folds", 2, "--out", run)
    )
    assert fitted.code == 0, fitted.err
    for content in ("", "id,key\n", "id,key\na\n", "id,key\na,xyz\n"):
        (run / "trained.csv").write_text(content)
        assert "trained.csv: damaged" in refused("evaluate", run, manifest, "--store", store)


def test_without_a_command_the_help_is_shown(frostline) -> None:
    for arguments in ((), ("store",)):
        result = frostline(*arguments)
        assert result.code == 2
        assert result.err.startswith("Usage: frostline")
        assert "Commands:\n" in result.err


def test_predictions_and_reports_name_their_option(refused, frostline, ready, toy, tmp_path) -> None:
    manifest, store = ready
    run = tmp_path / "run"
    assert (
        frostline(
            *("fit-head", manifest, "--store", store, "--encoder", toy, "--target", "label", "--folds", 2, "--out", run)
        ).code
        == 0
    )
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert f"--out {blocked}/page.html: cannot be written" in refused("report", run, "--out", blocked / "page.html")
    table = blocked / "predictions.csv"
    assert f"--out {table}: cannot be written" in refused("predict", run, manifest, "--store", store, "--out", table)
    assert "--threshold 0.3: expected youden" in refused(
        *("fit-head", manifest, "--store", store, "--encoder", toy, "--target", "label"),
        *("--threshold", "0.3", "--out", tmp_path / "other"),
    )
