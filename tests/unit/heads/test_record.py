"""Records: what comes back, what two equal runs share, and what is refused."""

from __future__ import annotations

import json
import os

import pytest

from heads.errors import RunError
from heads.record import RunRecord, describe_environment, read_commit


def make_record(**changes):
    fields = {
        "command": "frostline fit-head m.csv --out run",
        "config": {"head": "linear", "out": "run", "seed": 0},
        "manifest_digest": "a" * 64,
        "split_digest": "b" * 64,
        "inputs": [
            {
                "encoder": "offline:x",
                "fingerprint": "c" * 64,
                "snapshot": "d",
                "dim": 8,
                "modality": "image",
                "pooling": "native",
                "precision": "fp32",
                "dtype": "float16",
            }
        ],
        "head": {"name": "linear", "version": 1, "params": {"C": 0.1}},
        "task": {"kind": "binary", "targets": ["label"], "classes": ["benign", "malignant"]},
        "counts": {
            "samples": 4,
            "groups": 3,
            "splits": {"train": {"samples": 4, "groups": 3, "classes": {"benign": 2, "malignant": 2}}},
            "dropped": {"no label": {"count": 1, "ids": ["x"]}},
        },
        "metrics": {"cv": {"accuracy": {"value": 0.5, "low": 0.1, "high": 0.9}}},
        "thresholds": {"malignant": {"value": 0.4, "rule": "youden"}},
        "seed": 0,
        "timings": {"fit_seconds": 0.2},
    }
    return RunRecord(**{**fields, **changes})


def test_record_comes_back_whole(tmp_path):
    record = make_record(warnings=("leakage allowed: 3 groups",))
    record.write(tmp_path)
    assert RunRecord.read(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_metrics_lie_where_scripts_look_for_them(tmp_path):
    make_record().write(tmp_path)
    values = json.loads((tmp_path / "record.json").read_text())
    assert values["metrics"]["cv"]["accuracy"] == {"value": 0.5, "low": 0.1, "high": 0.9}
    assert set(values["volatile"]) == {"created", "timings", "environment", "openings"}


def test_equal_work_has_an_equal_digest_wherever_and_whenever_it_ran():
    one = make_record()
    two = make_record(
        command="frostline fit-head m.csv --out other",
        config={"head": "linear", "out": "other", "seed": 0},
        created="2020-01-01T00:00:00+00:00",
        timings={"fit_seconds": 99.0},
    )
    assert one.stable_digest() == two.stable_digest()
    assert make_record(seed=1).stable_digest() != one.stable_digest()


def test_headline_is_the_most_independent_split():
    metrics = {name: {"accuracy": {"value": 1.0, "low": 1.0, "high": 1.0}} for name in ("cv", "val", "test")}
    assert make_record(metrics=metrics).headline_split == "test"
    assert make_record().headline_split == "cv"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not the record"),
        ('{"loss": 1}', "not the record"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1, "command": "x"}', "damaged at config"),
    ],
)
def test_a_damaged_or_foreign_record_is_refused(tmp_path, text, message):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(RunError, match=message):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": {"samples": 1}}, "counts"),
        ({"head": {"name": "linear"}}, "head"),
        ({"task": {"kind": "ordinal", "targets": ["x"]}}, "unknown kind"),
        ({"color": "red"}, "color"),
    ],
)
def test_damage_is_located(change, message):
    with pytest.raises(RunError, match=message):
        RunRecord.from_dict({**make_record().to_dict(), **change}, where="record.json")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="not a run directory"):
        RunRecord.read(tmp_path)
    with pytest.raises(RunError, match="does not exist"):
        RunRecord.read(tmp_path / "none")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_directory_is_one_clear_line(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(RunError, match="cannot be written"):
        make_record().write(tmp_path)


def test_a_failed_write_keeps_the_old_record(tmp_path, monkeypatch):
    make_record().write(tmp_path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left"):
        make_record(seed=5).write(tmp_path)
    assert RunRecord.read(tmp_path).seed == 0
    assert len(list(tmp_path.iterdir())) == 1


def test_environment_names_versions_but_neither_host_nor_user():
    environment = describe_environment()
    assert {"python", "platform", "numpy"} <= set(environment)
    assert os.uname().nodename not in environment.values()


def test_commit_is_read_from_branch_packed_refs_and_detached_head(tmp_path):
    git = tmp_path / ".git"
    (git / "refs/heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert read_commit(tmp_path) is None
    (git / "packed-refs").write_text("# pack-refs\n" + "1" * 40 + " refs/heads/main\n")
    assert read_commit(tmp_path) == "1" * 40
    (git / "refs/heads/main").write_text("2" * 40 + "\n")
    assert read_commit(tmp_path) == "2" * 40
    (git / "HEAD").write_text("3" * 40 + "\n")
    assert read_commit(tmp_path) == "3" * 40
