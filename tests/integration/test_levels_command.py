"""`extract` of several poolings and encoders at once, tokens among them, as a user runs them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import data.images
from data.digest import as_keys, content_key
from featurestore import image_encoder
from featurestore.config import ExtractConfig
from featurestore.extract import extract
from featurestore.features import Features
from featurestore.store import FeatureStore

VIT = "timm:test_vit/random:0"
CNN = "timm:test_efficientnet/random:0"


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def found(store: Path, encoder: str, pooling: str) -> Features:
    return FeatureStore(store).find(encoder, pooling=pooling)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every picture that is decoded, by name; the canaries are left out."""
    read: list[str] = []
    load = data.images.load_image

    def watch(source: Any, **options: Any) -> Any:
        if "canary" not in str(source):
            read.append(Path(source.path).name)
        return load(source, **options)

    monkeypatch.setattr(image_encoder, "load_image", watch)
    return read


def test_every_level_of_one_pass_is_in_a_group_of_its_own(frostline, pictures, tmp_path) -> None:
    manifest, store = pictures(12), tmp_path / "store"
    result = frostline(
        "extract", manifest, "--store", store, "--encoder", VIT, "--pooling", "cls,mean,tokens", "--json"
    )
    assert result.code == 0, result.err
    assert "tokens of timm:test_vit/random:0: 101 x 64 float16 a sample, 13.0 kB; 155.4 kB for 12 samples" in result.err
    summary = result.json
    assert [summary["pooling"], *(each["pooling"] for each in summary["also"])] == ["cls", "mean", "tokens"]
    assert [summary["encoded"], *(each["encoded"] for each in summary["also"])] == [12, 12, 12]
    assert summary["also"][1]["fidelity"]["min_cosine"] > 0.99999
    keys = found(store, VIT, "cls").keys()
    tokens = found(store, VIT, "tokens").take_bags(keys)
    assert tokens.values.dtype == np.float16
    assert set(np.diff(tokens.offsets)) == {101}
    bags = tokens.values.astype(np.float32).reshape(12, 101, 64)
    for pooling, pooled in (("cls", bags[:, 0]), ("mean", bags[:, 1:].mean(1))):
        np.testing.assert_allclose(pooled, found(store, VIT, pooling).take(keys), atol=2e-3)

    alone = tmp_path / "alone"
    frostline("extract", manifest, "--store", alone, "--encoder", VIT, "--pooling", "mean")
    mean = found(alone, VIT, "mean")
    assert mean.fingerprint == found(store, VIT, "mean").fingerprint
    np.testing.assert_allclose(mean.take(keys), found(store, VIT, "mean").take(keys), atol=1e-6)
    listing = {row["pooling"] for row in frostline("store", "ls", store, "--json").json}
    assert listing == {"cls", "mean", "tokens"}
    assert frostline("store", "verify", store).code == 0


def test_what_all_levels_hold_is_not_encoded_again_and_what_one_lacks_is_added(
    frostline, pictures, watched, tmp_path
) -> None:
    manifest, store = pictures(12), tmp_path / "store"
    arguments = ("extract", manifest, "--store", store, "--encoder", VIT, "--batch-size", 4, "--json")
    assert frostline(*arguments, "--pooling", "cls", "--limit", 6).json["encoded"] == 6
    before = found(store, VIT, "cls").take(found(store, VIT, "cls").keys()).copy()
    keys = found(store, VIT, "cls").keys()
    both = frostline(*arguments, "--pooling", "cls", "--pooling", "tokens").json
    assert (both["cached"], both["encoded"], both["also"][0]["encoded"]) == (6, 6, 12)
    np.testing.assert_array_equal(found(store, VIT, "cls").take(keys), before)
    watched.clear()
    again = frostline(*arguments, "--pooling", "cls", "--pooling", "tokens").json
    assert (again["cached"], again["encoded"], again["also"][0]["cached"]) == (12, 0, 12)
    assert not watched


def test_an_interrupted_run_goes_on_to_the_same_bits(pictures, tmp_path) -> None:
    manifest = pictures(12)

    def config(store: str) -> ExtractConfig:
        return ExtractConfig(
            manifest=manifest, store=tmp_path / store, encoder=(VIT,), pooling=("cls", "tokens"), batch_size=4
        )

    extract(config("whole"))
    assert extract(config("broken"), stop=lambda: 15).interrupted == 15
    assert len(found(tmp_path / "broken", VIT, "tokens")) == 4
    extract(config("broken"))
    keys = found(tmp_path / "whole", VIT, "cls").keys()
    whole, broken = (
        (found(tmp_path / store, VIT, "cls").take(keys), found(tmp_path / store, VIT, "tokens").take_bags(keys).values)
        for store in ("whole", "broken")
    )
    np.testing.assert_array_equal(whole[0], broken[0])
    np.testing.assert_array_equal(whole[1], broken[1])


def test_tokens_are_float32_only_where_that_is_asked_for(frostline, pictures, tmp_path) -> None:
    manifest, store = pictures(4), tmp_path / "store"
    arguments = ("extract", manifest, "--store", store, "--encoder", VIT, "--pooling", "tokens")
    assert frostline(*arguments, "--dtype", "float32", "--json").json["dtype"] == "float32"
    assert frostline(*arguments, "--json").json["dtype"] == "float16"


def test_a_dry_run_says_what_tokens_would_take(frostline, pictures, tmp_path) -> None:
    manifest, store = pictures(12), tmp_path / "store"
    arguments = ("extract", manifest, "--store", store, "--encoder", CNN, "--pooling", "native,tokens", "--dry-run")
    outlook = frostline(*arguments, "--json").json
    # 25 places of 256 numbers of two bytes, key and offset; one vector of four bytes a number, and key.
    assert outlook["bytes"] == 12 * (25 * 256 * 2 + 16 + 8) + 12 * (256 * 4 + 16)
    assert "25 x 256 float16 a sample" in frostline(*arguments).out
    assert not store.exists()


def test_a_disk_that_cannot_hold_the_tokens_is_found_before_they_are_encoded(
    frostline, pictures, tmp_path, monkeypatch
) -> None:
    from featurestore import cost

    monkeypatch.setattr(cost.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    result = frostline("extract", pictures(4), "--store", tmp_path / "store", "--encoder", VIT, "--pooling", "tokens")
    assert result.code == 2
    assert "about 51.8 kB would be stored and the disk has 1.0 kB free" in result.error
    assert len(found(tmp_path / "store", VIT, "tokens")) == 0


def test_texts_keep_their_own_number_of_tokens(frostline, tmp_path) -> None:
    texts = ["one", "one two", "one two three four five six"]
    manifest, store = tmp_path / "texts.csv", tmp_path / "store"
    manifest.write_text("id,text\n" + "".join(f"t{i},{text}\n" for i, text in enumerate(texts)))
    result = frostline(
        "extract", manifest, "--store", store, "--encoder", "minilm", "--pooling", "mean,tokens", "--json"
    )
    assert result.code == 0, result.err
    keys = as_keys(content_key(text.encode()) for text in texts)
    tokens = found(store, "offline:minilm", "tokens").take_bags(keys)
    assert np.diff(tokens.offsets).tolist() == [3, 4, 8], "the words and two special tokens, no padding"
    means = np.add.reduceat(tokens.values.astype(np.float32), tokens.offsets[:-1]) / np.diff(tokens.offsets)[:, None]
    np.testing.assert_allclose(means, found(store, "offline:minilm", "mean").take(keys), atol=2e-3)


def test_several_encoders_decode_each_picture_once(frostline, pictures, watched, tmp_path) -> None:
    manifest, store = pictures(10), tmp_path / "store"
    arguments = ("extract", manifest, "--store", store, "--json")
    result = frostline(*arguments, "--encoder", VIT, "--encoder", CNN)
    assert result.code == 0, result.err
    # Two samples are decoded again for each encoder's own reference.
    assert len(watched) == 10 + 2 * 2
    assert [result.json["encoder"], result.json["also"][0]["encoder"]] == [VIT, CNN]
    for encoder in (VIT, CNN):
        alone = tmp_path / encoder.replace("/", "-")
        frostline("extract", manifest, "--store", alone, "--encoder", encoder)
        (apart,) = FeatureStore(alone).features()
        joint = FeatureStore(store).find(encoder)
        assert joint.fingerprint == apart.fingerprint
        np.testing.assert_allclose(joint.take(apart.keys()), apart.take(apart.keys()), atol=1e-6)

    third = frostline(*arguments, "--encoder", VIT, "--encoder", CNN, "--encoder", "timm:test_resnet/random:0").json
    assert {third["encoder"]: third["encoded"]} | {each["encoder"]: each["encoded"] for each in third["also"]} == {
        "timm:test_resnet/random:0": 10,
        VIT: 0,
        CNN: 0,
    }


def test_what_cannot_be_read_is_a_failure_of_every_column(frostline, pictures, tmp_path) -> None:
    manifest, store = pictures(6), tmp_path / "store"
    (manifest.parent / "images" / "3.png").write_bytes(b"no picture")
    arguments = (
        "extract",
        manifest,
        "--store",
        store,
        "--encoder",
        VIT,
        "--encoder",
        CNN,
        "--pooling",
        "native,tokens",
    )
    result = frostline(*arguments, "--json")
    assert result.code == 3
    assert [failure["id"] for failure in result.json["failures"]] == ["s003"]
    assert [row["failed"] for row in frostline("store", "ls", store, "--json").json] == [1, 1, 1, 1]


def test_tokens_that_do_not_fit_the_stored_type_fail_alone(frostline, tmp_path) -> None:
    (tmp_path / "mine.py").write_text(OVERFLOWING)
    manifest, store = tmp_path / "texts.csv", tmp_path / "store"
    manifest.write_text("id,text\na,1 2\nb,3 70000 4\nc,5\n")
    result = frostline("extract", manifest, "--store", store, "--encoder", f"py:{tmp_path}/mine.py:Numbers", "--json")
    assert result.code == 3
    (failure,) = result.json["failures"]
    assert (failure["id"], failure["kind"]) == ("b", "not_finite")
    assert "the tokens are not finite in float16" in failure["message"]
    (features,) = FeatureStore(store).features()
    kept = features.take_bags(as_keys(content_key(text) for text in (b"5", b"1 2")))
    assert (kept.values.ravel().tolist(), kept.offsets.tolist()) == ([5.0, 1.0, 2.0], [0, 1, 3])


OVERFLOWING = """
import torch
from featurestore.spec import EncoderSpec

class Numbers:
    def __init__(self, options):
        self.spec = EncoderSpec(
            family="python", modality="text", architecture={"class": "Numbers"}, weights="none", preprocess={},
            layer="output", pooling="tokens", precision=options.precision, dtype=options.ragged_dtype, dim=1,
        )

    def read(self, source):
        return [float(word) if word.isdigit() else float(len(word)) for word in source.text.split()]

    def collate(self, items):
        return items

    def encode(self, batch):
        return [torch.tensor(numbers)[:, None] for numbers in batch]

    def encode_reference(self, sources):
        return self.encode([self.read(source) for source in sources])
"""
