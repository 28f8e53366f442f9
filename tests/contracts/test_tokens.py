"""Tokens are the library's own, in its order; what is pooled from them is what the other poolings store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from featurestore.levels import encode as encode_levels
from featurestore.levels import encode_reference, levels_of, samples

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
        return load_encoder(self.id.format(folder=zoo(self.checkpoint)), EncoderOptions(**chosen))


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


TEXT = ("mean", "cls", "max")
CASES = (
    Case("clip", "hf:{folder}", clip, "image", "clip", 17, ("class",)),
    Case("siglip", "hf:{folder}", siglip, "image", "siglip", 16, (), ("native", "mean", "max")),
    Case("dinov2", "hf:{folder}", last_hidden_state, "image", "dinov2", 17, ("class",)),
    Case("bert", "hf:{folder}", text, "text", "bert", None, (), TEXT),
    Case("roberta", "hf:{folder}", text, "text", "roberta", None, (), TEXT),
)
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def sources_of(images: list[Source], texts: list[Source]) -> Callable[[Case], list[Source]]:
    return lambda case: images if case.modality == "image" else texts


def content(source: Source) -> Any:
    return source.text if source.path is None else Image.open(source.path).convert("RGB")


def tokens_of(encoder: Encoder, sources: Sequence[Source]) -> list[np.ndarray]:
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
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=TOLERANCE * max(1.0, float(theirs.abs().max())))
    (reference,) = encode_reference(encoder, sources)
    np.testing.assert_allclose(np.concatenate(found), reference.values, rtol=0, atol=2 * TOLERANCE)  # type: ignore[union-attr]


@every_case
def test_tokens_do_not_depend_on_the_batch_and_one_sample_keeps_its_axis(case: Case, zoo: Any, sources_of: Any) -> None:
    encoder, sources = case.load(zoo), sources_of(case)
    together = tokens_of(encoder, sources)
    for source, tokens in zip(sources, together, strict=True):
        (alone,) = tokens_of(encoder, [source])
        np.testing.assert_allclose(alone, tokens, rtol=0, atol=TOLERANCE)


@every_case
def test_what_is_pooled_from_tokens_is_what_the_poolings_store(case: Case, zoo: Any, sources_of: Any) -> None:
    sources = sources_of(case)
    tokens, prefix = tokens_of(case.load(zoo), sources), len(case.prefix)
    pooled = {"mean": lambda t: t[prefix:].mean(0), "max": lambda t: t[prefix:].max(0), "cls": lambda t: t[0]}
    for pooling in set(case.poolings) - {"native"}:
        stored = np.concatenate(tokens_of(case.load(zoo, pooling), sources))
        np.testing.assert_allclose(np.stack(list(map(pooled[pooling], tokens))), stored, rtol=0, atol=TOLERANCE)


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
        np.testing.assert_allclose(
            np.concatenate(samples(block)), np.concatenate(tokens_of(alone, sources)), rtol=0, atol=TOLERANCE
        )


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
