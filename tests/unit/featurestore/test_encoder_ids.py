"""Ids are split where encoders are joined, and never between a wrapper and what it wraps."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.catalog import canonical, families, from_anywhere, modality_of
from featurestore.encoder_ids import WRAPPERS, WrappedId, split_joined, without_views
from featurestore.errors import UnknownEncoder
from heads.comparing.suite import _encoder

LITE = "offline:efficientnet-lite0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LITE, (LITE,)),
        ("a:1+b:2+c:3", ("a:1", "b:2", "c:3")),
        (f"frames+{LITE}", (f"frames+{LITE}",)),
        (f"frames:8,max+{LITE}", (f"frames:8,max+{LITE}",)),
        (f"frames+{LITE}+offline:minilm", (f"frames+{LITE}", "offline:minilm")),
        (f"offline:minilm+frames+{LITE}", ("offline:minilm", f"frames+{LITE}")),
        (f"frames+x:1+spectrogram:squash+{LITE}+minilm", ("frames+x:1", f"spectrogram:squash+{LITE}", "minilm")),
        ("frames", ("frames",)),
        ("hf:org/frames+minilm", ("hf:org/frames", "minilm")),
        (f"augmented:8,flip+{LITE}+augmented:8,flip+x:1", (f"augmented:8,flip+{LITE}", "augmented:8,flip+x:1")),
    ],
)
def test_joined_ids_are_split(text: str, expected: tuple[str, ...]) -> None:
    assert split_joined(text) == expected


PLAIN = st.sampled_from(["minilm", LITE, "hf:org/name@abc", "torchvision:r3d_18/random:0", "timm:a.b"])
WRAPPED = st.builds("{}+{}".format, st.sampled_from(["frames", "frames:8", "spectrogram:squash,mean"]), PLAIN)


@given(st.lists(PLAIN | WRAPPED, min_size=1, max_size=6))
def test_splitting_undoes_joining(ids: list[str]) -> None:
    assert split_joined("+".join(ids)) == tuple(ids)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("frames+efficientnet-lite0", f"frames+{LITE}"),
        ("frames:16,mean+efficientnet-lite0", f"frames+{LITE}"),
        ("frames:max,8+efficientnet-lite0", f"frames:8,max+{LITE}"),
        (" frames:8+local-dir:/some/folder", "frames:8+open_clip:local-dir:/some/folder"),
        ("spectrogram:windows+ResNet50", "spectrogram+torchvision:resnet50/IMAGENET1K_V2"),
        ("spectrogram:fmax=4000,trim=25,mean+minilm", "spectrogram:trim=25,fmax=4000+offline:minilm"),
        ("augmented:4,seed=0+efficientnet-lite0", f"augmented+{LITE}"),
        ("augmented:seed=2,rotation=5,flip,8+efficientnet-lite0", f"augmented:8,flip,rotation=5,seed=2+{LITE}"),
        ("spectrogram:squash+hf:/a/b@c/random:0", "spectrogram:squash+hf:/a/b@c/random:0"),
    ],
)
def test_a_wrapped_id_has_one_spelling(given: str, expected: str) -> None:
    assert canonical(given) == expected
    assert canonical(expected) == expected


def test_every_option_has_a_value() -> None:
    wrapped = WrappedId.parse("frames:max+minilm")
    assert wrapped is not None
    assert wrapped.options == {"count": "16", "pool": "max"}
    assert WrappedId.parse("minilm") is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("frames", "wraps no encoder"),
        ("frames+", "wraps no encoder"),
        ("frames:8", "wraps no encoder"),
        ("frames:0+minilm", "no option '0'"),
        ("frames:meen+minilm", "did you mean 'mean'"),
        ("frames:8,9+minilm", "both '8' and '9'"),
        ("spectrogram:8+minilm", "no option '8'"),
        ("spectrogram:sqush+minilm", "did you mean 'squash'"),
        ("spectrogram:trim+minilm", "did you mean 'trim=...'"),
        ("frames:none+minilm", "a number, max, mean"),
        ("frames+minilmm", "did you mean 'minilm'"),
        ("frames:x", "wraps no encoder"),
        ("augmented", "wraps no encoder"),
        ("augmented:flop+minilm", "did you mean 'flip'"),
        ("augmented:randaugment=x+minilm", "randaugment, randaugment=..., rotation=..., seed=..."),
        ("augmented:8,4+minilm", "both '8' and '4'"),
    ],
)
def test_a_mistake_in_a_wrapper_is_one_clear_line(given: str, message: str) -> None:
    with pytest.raises(UnknownEncoder) as raised:
        canonical(given)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_judged_is_the_image_itself() -> None:
    assert without_views(f"augmented:8,flip+{LITE}") == LITE
    assert without_views(f"frames+{LITE}") == f"frames+{LITE}"
    assert without_views("minilm") == "minilm"


def test_the_modality_of_a_wrapper_is_its_own() -> None:
    assert modality_of("frames+efficientnet-lite0") == "video"
    assert modality_of("spectrogram:squash+hf:someone/something") == "audio"


def test_wrappers_are_listed_as_they_are_written() -> None:
    forms = {family.prefix: family.form for family in families()}
    assert forms["frames"] == "frames+ID"
    assert forms["timm"] == "timm:"
    assert set(WRAPPERS) <= set(forms)


def test_a_suite_keeps_wrappers_whole(tmp_path: object) -> None:
    assert _encoder("frames+a:1+b:2", None, "") == ("frames+a:1+b:2", {"encoder": ("frames+a:1", "b:2")})  # type: ignore[arg-type]
    label, options = _encoder({"encoder": "b:2+frames+a:1"}, None, "")  # type: ignore[arg-type]
    assert (label, options["encoder"]) == ("b:2+frames+a:1", ("b:2", "frames+a:1"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("hf:here", "hf:{}/here"),
        ("hf:./here/random:3", "hf:{}/here/random:3"),
        ("open_clip:local-dir:here", "open_clip:local-dir:{}/here"),
        ("local-dir:here/random:0", "open_clip:local-dir:{}/here/random:0"),
        ("timm:resnet18@a/b.safetensors", "timm:resnet18@{}/a/b.safetensors"),
        ("py:own.py:make", "py:{}/own.py:make"),
        ("frames+hf:here", "frames+hf:{}/here"),
        ("hf:org/name@v1", "hf:org/name@v1"),
        ("py:own.module:make", "py:own.module:make"),
        (LITE, LITE),
    ],
)
def test_a_path_in_an_id_becomes_absolute(
    given: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "a").mkdir()
    for name in ("a/b.safetensors", "own.py"):
        (tmp_path / name).touch()
    assert from_anywhere(given) == expected.format(tmp_path)
    assert from_anywhere(expected.format(tmp_path)) == expected.format(tmp_path)
