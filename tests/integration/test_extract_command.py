"""`extract` as a user runs it, on real files, through a weightless encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featurestore.store import FeatureStore


def stored(store: Path) -> np.ndarray:
    (features,) = FeatureStore(store).features()
    keys, x = features.load()
    return x[np.lexsort((keys[:, 1], keys[:, 0]))]


def test_a_second_run_encodes_nothing(frostline, pictures, toy, tmp_path) -> None:
    manifest, store = pictures(), tmp_path / "store"
    first = frostline("extract", manifest, "--store", store, "--encoder", toy, "--json")
    assert first.code == 0, first.err
    assert (first.json["encoded"], first.json["cached"], first.json["stored"]) == (48, 0, 48)
    assert first.json["fidelity"]["min_cosine"] > 0.99999
    second = frostline("extract", manifest, "--store", store, "--encoder", toy, "--json")
    assert (second.json["encoded"], second.json["cached"]) == (0, 48)


def test_a_moved_and_renamed_data_set_is_still_cached(frostline, pictures, toy, tmp_path) -> None:
    manifest, store = pictures(), tmp_path / "store"
    frostline("extract", manifest, "--store", store, "--encoder", toy)
    moved = manifest.parent.rename(tmp_path / "elsewhere")
    again = frostline("extract", moved / "manifest.csv", "--store", store, "--encoder", toy, "--json")
    assert again.json["encoded"] == 0


def test_a_changed_file_is_encoded_again_and_only_that(frostline, pictures, toy, tmp_path) -> None:
    manifest, store = pictures(), tmp_path / "store"
    frostline("extract", manifest, "--store", store, "--encoder", toy)
    images = manifest.parent / "images"
    changed = (images / "1.png").read_bytes()
    (images / "0.png").write_bytes(changed[:-4] + b"xxxx")
    again = frostline("extract", manifest, "--store", store, "--encoder", toy, "--json")
    assert again.json["encoded"] == 1


def test_shards_fill_one_store_with_the_same_values_as_one_process(frostline, pictures, toy, tmp_path) -> None:
    manifest = pictures()
    frostline("extract", manifest, "--store", tmp_path / "one", "--encoder", toy, "--batch-size", 5)
    for i in range(3):
        arguments = ("--encoder", toy, "--batch-size", 5, "--shard", f"{i}/3")
        assert frostline("extract", manifest, "--store", tmp_path / "three", *arguments).code == 0
    assert np.array_equal(stored(tmp_path / "one"), stored(tmp_path / "three"))


def test_failures_are_listed_retried_and_end_in_exit_code_3(frostline, pictures, toy, tmp_path) -> None:
    manifest, store = pictures(), tmp_path / "store"
    images = manifest.parent / "images"
    whole = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(whole[: len(whole) // 2])
    (images / "4.png").write_bytes(b"")
    (images / "5.png").write_text("no picture")
    (images / "6.png").unlink()
    result = frostline("extract", manifest, "--store", store, "--encoder", toy, "--json")
    assert result.code == 3
    kinds = {failure["id"]: failure["kind"] for failure in result.json["failures"]}
    assert kinds == {"s003": "truncated", "s004": "empty", "s005": "unreadable", "s006": "missing"}
    assert result.json["stored"] == 44
    listing = frostline("store", "ls", store, "--json").json
    assert listing[0]["failed"] == 4

    (images / "3.png").write_bytes(whole)
    again = frostline("extract", manifest, "--store", store, "--encoder", toy, "--json")
    assert (again.code, again.json["encoded"], len(again.json["failures"])) == (3, 1, 3)


def test_dry_run_says_what_would_be_done_and_why(frostline, pictures, toy, tmp_path) -> None:
    manifest, store = pictures(), tmp_path / "store"
    outlook = frostline("extract", manifest, "--store", store, "--encoder", toy, "--dry-run", "--json")
    assert (outlook.code, outlook.json["missing"], outlook.json["cached"]) == (0, 48, 0)
    assert outlook.json["bytes"] == 48 * (16 * 4 + 16)
    assert outlook.json["seconds"] > 0
    assert not store.exists()
    frostline("extract", manifest, "--store", store, "--encoder", toy)
    v2 = toy.replace(":image", ":image_v2")
    FeatureStore(store).open(next(iter(FeatureStore(store).features())).spec, name=v2)
    changed = frostline("extract", manifest, "--store", store, "--encoder", v2, "--dry-run")
    assert "48 rows are stored under fingerprint" in changed.out
    assert "version: 1 -> 2" in changed.out


def test_limit_encodes_the_first_samples(frostline, pictures, toy, tmp_path) -> None:
    result = frostline("extract", pictures(), "--store", tmp_path / "s", "--encoder", toy, "--limit", 7, "--json")
    assert (result.json["samples"], result.json["encoded"]) == (7, 7)


def test_a_configuration_file_is_taken_and_flags_win(frostline, pictures, toy, tmp_path) -> None:
    config = tmp_path / "extract.yaml"
    config.write_text(f"manifest: {pictures()}\nstore: {tmp_path / 's'}\nencoder: '{toy}'\nlimit: 5\nbatch-size: 4\n")
    result = frostline("extract", "--config", config, "--limit", 3, "--json")
    assert (result.code, result.json["encoded"], result.json["batch_size"]) == (0, 3, 4)


def test_an_image_folder_needs_no_table(frostline, pictures, toy, tmp_path) -> None:
    folder = pictures().parent / "images"
    result = frostline("extract", folder, "--store", tmp_path / "s", "--encoder", toy, "--json")
    assert (result.code, result.json["encoded"]) == (0, 48)


def test_store_commands(frostline, pictures, toy, tmp_path) -> None:
    store = tmp_path / "store"
    frostline("extract", pictures(), "--store", store, "--encoder", toy, "--batch-size", 8)
    assert "version of our code" in frostline("store", "info", store).out
    assert frostline("store", "verify", store).code == 0
    assert frostline("store", "compact", store).code == 0
    assert frostline("store", "gc", store).code == 0
    assert frostline("store", "export", store, "--out", tmp_path / "f.h5").code == 0
    assert frostline("store", "import", tmp_path / "f.h5", "--store", tmp_path / "copy").code == 0
    assert np.array_equal(stored(store), stored(tmp_path / "copy"))


def test_a_damaged_store_is_exit_code_4(frostline, pictures, toy, tmp_path) -> None:
    store = tmp_path / "store"
    frostline("extract", pictures(), "--store", store, "--encoder", toy)
    (shard,) = [path for path in store.glob("features.zarr/*/*/x/c/**/*") if path.is_file()]
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(bytes(content))
    damaged = frostline("store", "verify", store)
    assert damaged.code == 4
    assert str(shard) in damaged.out
    shard.unlink()
    missing = frostline("store", "verify", store)
    assert missing.code == 4


@pytest.mark.parametrize("signal_number", [2, 15])
def test_a_signal_finishes_the_batch_and_the_run_resumes(
    frostline: Callable, pictures, toy, tmp_path, signal_number: int, monkeypatch
) -> None:
    import contextlib

    import cli

    @contextlib.contextmanager
    def stop_after_the_first_batch():
        yield lambda: signal_number

    manifest, store = pictures(), tmp_path / "store"
    monkeypatch.setattr(cli, "_stop_on_signal", stop_after_the_first_batch)
    stopped = frostline("extract", manifest, "--store", store, "--encoder", toy, "--batch-size", 10)
    assert stopped.code == 128 + signal_number
    assert "goes on from here" in stopped.err
    monkeypatch.undo()
    resumed = frostline("extract", manifest, "--store", store, "--encoder", toy, "--batch-size", 10, "--json")
    assert (resumed.json["cached"], resumed.json["encoded"]) == (10, 38)
