"""Tokens are the library's own, in its order; what is pooled from them is what the other poolings store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.manifest import Modality, Source
from featurestore.catalog import load_encoder
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.errors import EncoderError
from featurestore.levels import encode as encode_levels
from featurestore.levels import encode_reference, levels_of, samples

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5
Reference = Callable[[Path, Sequence[Any]], Sequence[Tensor]]


@dataclass(frozen=True)
class Case:
    """One encoder of tokens, and what its library says they are: one tensor (t, d) per sample.

    `prefix` is the number of tokens that stand for no part of the sample, `poolings` what else it has.
    """

    name: str
    id: str
    reference: Reference
    modality: Modality
    checkpoint: str
    tokens: int | None
    prefix: tuple[str, ...]
    poolings: tuple[str, ...] = ("native", "cls", "mean", "max")

    def load(self, zoo: Any, *poolings: str, **options: Any) -> Encoder:
        first, *also = poolings or ("tokens",)
        chosen = {"modality": self.modality, "pooling": first, "also": tuple(also), "dtype": "float32"} | options
        return loaded(self.id.format(folder=zoo(self.checkpoint)), EncoderOptions(**chosen))


@cache
def loaded(encoder: str, options: EncoderOptions) -> Encoder:
    """Return an encoder, made once: it is frozen, and most tests want one that another has made."""
    return load_encoder(encoder, options)


def of_images(folder: Path, pictures: Sequence[Any]) -> dict[str, Tensor]:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder)(images=list(pictures), return_tensors="pt")


def clip(folder: Path, pictures: Sequence[Any]) -> Sequence[Tensor]:
    from transformers import CLIPModel

    vision = CLIPModel.from_pretrained(folder).eval().vision_model
    return vision.post_layernorm(vision(**of_images(folder, pictures)).last_hidden_state)


def siglip(folder: Path, pictures: Sequence[Any]) -> Sequence[Tensor]:
    from transformers import SiglipModel

    return SiglipModel.from_pretrained(folder).eval().vision_model(**of_images(folder, pictures)).last_hidden_state


def last_hidden_state(folder: Path, pictures: Sequence[Any]) -> Sequence[Tensor]:
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder).eval()(**of_images(folder, pictures)).last_hidden_state


def text(folder: Path, texts: Sequence[Any]) -> Sequence[Tensor]:
    """One text at a time: nothing is padded."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    limit = min(tokenizer.model_max_length, 16)
    inputs = [tokenizer(text, truncation=True, max_length=limit, return_tensors="pt") for text in texts]
    return [model(**tokens).last_hidden_state[0] for tokens in inputs]


def open_clip(folder: Path, pictures: Sequence[Any]) -> Sequence[Tensor]:
    import open_clip as library

    model, _, transform = library.create_model_and_transforms(f"local-dir:{folder}")
    visual = model.eval().visual
    hidden = visual.transformer(visual._embeds(torch.stack([transform(picture) for picture in pictures])))
    return visual.ln_post(hidden)


def open_clip_map(folder: Path, pictures: Sequence[Any]) -> Sequence[Tensor]:
    import open_clip as library

    model, _, transform = library.create_model_and_transforms(f"local-dir:{folder}")
    tower = model.eval().visual
    maps = torch.stack([transform(picture) for picture in pictures])
    for block in (tower.stem, tower.layer1, tower.layer2, tower.layer3, tower.layer4):
        maps = block(maps)
    return by_rows(maps)


def by_rows(maps: Tensor) -> Sequence[Tensor]:
    """Return the places of feature maps, row by row from the upper left: an independent reading of the axes."""
    return [torch.stack([one[:, y, x] for y in range(one.shape[1]) for x in range(one.shape[2])]) for one in maps]


def layer4(name: str) -> Reference:
    def reference(folder: Path, pictures: Sequence[Any]) -> Sequence[Tensor]:
        from torchvision import models

        model = models.get_model(name, weights=None)
        model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        transform, maps = models.get_model_weights(name).IMAGENET1K_V1.transforms(), []
        model.eval().layer4.register_forward_hook(lambda _, __, out: maps.append(out))
        model(torch.stack([transform(picture) for picture in pictures]))
        return by_rows(maps[0])

    return reference


def timm_model(name: str) -> Reference:
    def reference(folder: Path, pictures: Sequence[Any]) -> Sequence[Tensor]:
        import timm
        from timm.data import create_transform, resolve_data_config

        model = timm.create_model(name, num_classes=7, checkpoint_path=str(folder / f"{name}.pt")).eval()
        transform = create_transform(**resolve_data_config({}, model=model))
        features = model.forward_features(torch.stack([transform(picture) for picture in pictures]))
        return features if features.ndim == 3 else by_rows(features)

    return reference


def clip_text(folder: Path, texts: Sequence[Any]) -> Sequence[Tensor]:
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(folder).eval().text_model, AutoTokenizer.from_pretrained(folder)
    inputs = [tokenizer(text, truncation=True, return_tensors="pt") for text in texts]
    return [model(**tokens).last_hidden_state[0] for tokens in inputs]


TEXT = ("mean", "cls", "max")
MAP = ("native", "mean", "max")
CASES = (
    Case("clip", "hf:{folder}", clip, "image", "clip", 17, ("class",)),
    Case("siglip", "hf:{folder}", siglip, "image", "siglip", 16, (), ("native", "mean", "max")),
    Case("dinov2", "hf:{folder}", last_hidden_state, "image", "dinov2", 17, ("class",)),
    Case("open_clip", "local-dir:{folder}", open_clip, "image", "open_clip", 17, ("class",)),
    Case("open_clip-resnet", "local-dir:{folder}", open_clip_map, "image", "open_clip_resnet", 4, (), MAP),
    Case(
        "resnet18",
        "torchvision:resnet18/IMAGENET1K_V1@{folder}/resnet18.pt",
        layer4("resnet18"),
        "image",
        "resnet18",
        49,
        (),
        MAP,
    ),
    Case("timm-vit", "timm:test_vit@{folder}/test_vit.pt", timm_model("test_vit"), "image", "timm", 101, ("class",)),
    Case(
        "timm-cnn",
        "timm:test_efficientnet@{folder}/test_efficientnet.pt",
        timm_model("test_efficientnet"),
        "image",
        "timm",
        25,
        (),
        MAP,
    ),
    Case("clip-text", "hf:{folder}", clip_text, "text", "clip", None, (), ("native",)),
    Case("bert", "hf:{folder}", text, "text", "bert", None, (), TEXT),
    Case("roberta", "hf:{folder}", text, "text", "roberta", None, (), TEXT),
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def sources_of(images: list[Source], texts: list[Source]) -> Callable[[Case], list[Source]]:
    return lambda case: images if case.modality == "image" else texts


def content(source: Source) -> Any:
    return source.text if source.path is None else Image.open(source.path).convert("RGB")


def assert_near(found: Any, expected: Any) -> None:
    """Both in float32: rounding is relative to what is in the numbers' range."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))


def tokens_of(encoder: Encoder, sources: Sequence[Source]) -> list[np.ndarray]:
    return encoded(encoder, tuple(sources))


@cache
def encoded(encoder: Encoder, sources: tuple[Source, ...]) -> list[np.ndarray]:
    (block,) = encode_levels(encoder, encoder.collate([encoder.read(source) for source in sources]))
    return samples(block)


@every_case
def test_tokens_equal_the_library_and_padding_is_not_among_them(case: Case, zoo: Any, sources_of: Any) -> None:
    encoder, sources = case.load(zoo), sources_of(case)
    with torch.inference_mode():
        expected = case.reference(zoo(case.checkpoint), [content(source) for source in sources])
    found = tokens_of(encoder, sources)
    assert len(found) == len(sources)
    assert case.tokens is None or {len(tokens) for tokens in found} == {case.tokens}
    assert case.tokens is not None or len({len(tokens) for tokens in found}) > 1, "texts of several lengths"
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == tuple(theirs.shape) == (len(ours), encoder.spec.dim)
        assert_near(ours, theirs)
    (reference,) = encode_reference(encoder, sources)
    assert_near(np.concatenate(found), np.concatenate(samples(reference)))


@every_case
def test_tokens_do_not_depend_on_the_batch_and_one_sample_keeps_its_axis(case: Case, zoo: Any, sources_of: Any) -> None:
    encoder, sources = case.load(zoo), sources_of(case)
    together = tokens_of(encoder, sources)
    for source, tokens in zip(sources, together, strict=True):
        (alone,) = tokens_of(encoder, [source])
        assert_near(alone, tokens)


@every_case
def test_what_is_pooled_from_tokens_is_what_the_poolings_store(case: Case, zoo: Any, sources_of: Any) -> None:
    sources = sources_of(case)
    tokens, prefix = tokens_of(case.load(zoo), sources), len(case.prefix)
    pooled = {"mean": lambda t: t[prefix:].mean(0), "max": lambda t: t[prefix:].max(0), "cls": lambda t: t[0]}
    for pooling in set(case.poolings) - {"native"}:
        stored = np.concatenate(tokens_of(case.load(zoo, pooling), sources))
        assert_near(np.stack(list(map(pooled[pooling], tokens))), stored)


@every_case
def test_several_levels_of_one_pass_are_what_each_is_alone(case: Case, zoo: Any, sources_of: Any) -> None:
    sources, poolings = sources_of(case), (*case.poolings, "tokens")
    encoder = case.load(zoo, *poolings)
    batch = encoder.collate([encoder.read(source) for source in sources])
    blocks, specs = encode_levels(encoder, batch), levels_of(encoder)
    assert [spec.pooling for spec in specs] == list(poolings)
    assert encoder.spec == specs[0]
    for pooling, spec, block in zip(poolings, specs, blocks, strict=True):
        alone = case.load(zoo, pooling)
        assert spec.fingerprint == alone.spec.fingerprint
        assert_near(np.concatenate(samples(block)), np.concatenate(tokens_of(alone, sources)))


@every_case
def test_the_specification_says_what_the_tokens_are(case: Case, zoo: Any) -> None:
    (tokens,) = levels_of(case.load(zoo))
    assert (tokens.pooling, tokens.ragged, tokens.dtype) == ("tokens", True, "float16")
    assert tokens.architecture["tokens"]["prefix"] == list(case.prefix)
    assert case.load(zoo, ragged_dtype="float32").spec.dtype == "float32"
    for pooling in case.poolings:
        spec = case.load(zoo, pooling).spec
        assert (spec.ragged, spec.dtype) == (False, "float32")
        assert "tokens" not in spec.architecture


@every_case
def test_tokens_in_half_precision_stay_close_to_the_reference(case: Case, zoo: Any, sources_of: Any) -> None:
    encoder, sources = case.load(zoo, precision="bf16"), sources_of(case)
    (reference,) = encode_reference(encoder, sources)
    for ours, theirs in zip(tokens_of(encoder, sources), samples(reference), strict=True):
        a, b = ours.ravel(), theirs.ravel()
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= 0.999


def test_resnet50_has_7_x_7_tokens_of_2048(zoo: Any, images: list[Source]) -> None:
    folder, sources = zoo("resnet50"), images[:1]
    encoder = load_encoder(f"torchvision:resnet50/IMAGENET1K_V1@{folder}/resnet50.pt", EncoderOptions(pooling="tokens"))
    with torch.inference_mode():
        (expected,) = layer4("resnet50")(folder, [content(source) for source in sources])
    (found,) = tokens_of(encoder, sources)
    assert found.shape == (49, 2048)
    assert encoder.spec.layer == "last_feature_map"
    assert_near(found, expected)


@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5"])
def test_the_last_pooling_of_a_network_is_found_whatever_it_is_called(name: str, images: list[Source]) -> None:
    options = EncoderOptions(pooling="native", also=("mean",))
    encoder = load_encoder(f"torchvision:{name}/random:0", options)
    native, mean = encode_levels(encoder, encoder.collate([encoder.read(images[0])]))
    assert_near(native, mean)
    assert levels_of(encoder)[1].layer == "last_feature_map"


def test_a_pooling_that_an_encoder_does_not_give_is_refused(zoo: Any) -> None:
    with pytest.raises(EncoderError, match=r"no pooling 'tokens'; it gives native"):
        load_encoder(f"py:{ROOT}/tests/contracts/own_encoder.py:letters", EncoderOptions(pooling="tokens"))
    with pytest.raises(EncoderError, match="no pooling 'cls'"):
        load_encoder(f"hf:{zoo('siglip')}", EncoderOptions(modality="image", pooling="tokens", also=("cls",)))


WORDS = """
import torch
from featurestore.spec import EncoderSpec

class Words:
    def __init__(self, options):
        self.spec = EncoderSpec(
            family="python", modality="text", architecture={"class": "Words"}, weights="none", preprocess={},
            layer="output", pooling="tokens", precision=options.precision, dtype=options.ragged_dtype, dim=1,
        )

    def read(self, source):
        return [float(len(word)) for word in source.text.split()]

    def collate(self, items):
        return items

    def encode(self, batch):
        return [torch.tensor(lengths)[:, None] for lengths in batch]

    def encode_reference(self, sources):
        return self.encode([self.read(source) for source in sources])
"""


def test_an_encoder_of_ones_own_gives_tokens_as_a_list(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(WORDS)
    encoder = load_encoder(f"py:{tmp_path}/mine.py:Words", EncoderOptions(pooling="tokens"))
    found = tokens_of(encoder, [Source("text", text="a bc"), Source("text", text="def")])
    assert [tokens[:, 0].tolist() for tokens in found] == [[1.0, 2.0], [3.0]]
