"""What is read behind a block is the library's own output of that block, and all of it comes of one pass."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from data.manifest import Modality, Source
from featurestore.catalog import load_encoder
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.errors import EncoderError
from featurestore.levels import encode as encode_levels
from featurestore.levels import encode_reference, levels_of, samples

TOLERANCE = 1e-5
Reference = Callable[[Path, Sequence[Any]], Sequence[Sequence[Tensor]]]


@dataclass(frozen=True)
class Case:
    """One encoder, and what its library says of its blocks: block by block and sample by sample, a tensor (t, d)."""

    name: str
    id: str
    reference: Reference
    checkpoint: str
    blocks: int
    prefix: int = 0
    cls: bool = True
    modality: Modality = "image"
    own: str = "native"

    def load(self, zoo: Any, *poolings: str) -> Encoder:
        first, *also = poolings
        options = EncoderOptions(
            modality=self.modality, pooling=first, also=tuple(also), dtype="float32", ragged_dtype="float32"
        )
        return load_encoder(self.id.format(folder=zoo(self.checkpoint)), options)

    def poolings(self, block: int) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the poolings behind a block, each with its meaning in terms of the tokens there."""
        meaning = {
            "tokens": lambda tokens: tokens,
            "mean": lambda tokens: tokens[self.prefix :].mean(0, keepdim=True),
            "max": lambda tokens: tokens[self.prefix :].amax(0, keepdim=True),
            "cls": lambda tokens: tokens[:1],
        }
        return {f"{how}@{block}": pooled for how, pooled in meaning.items() if how != "cls" or self.cls}


def hidden_states(model_class: str, part: str | None = None) -> Reference:
    """Return the hidden states that a model of transformers lists, the embedding layer's left out."""

    def of_images(folder: Path, pictures: Sequence[Any]) -> Sequence[Sequence[Tensor]]:
        import transformers

        model = getattr(transformers, model_class).from_pretrained(folder).eval()
        pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images=list(pictures), return_tensors="pt")
        tower = getattr(model, part) if part else model
        return tower(**pixels, output_hidden_states=True).hidden_states[1:]

    return of_images


def text_states(model_class: str, part: str | None = None) -> Reference:
    """As `hidden_states`, one text at a time, so that nothing is padded."""

    def of_texts(folder: Path, texts: Sequence[Any]) -> Sequence[Sequence[Tensor]]:
        import transformers

        model = getattr(transformers, model_class).from_pretrained(folder).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        tower, limit = (getattr(model, part) if part else model), min(tokenizer.model_max_length, 16)
        inputs = [tokenizer(text, truncation=True, max_length=limit, return_tensors="pt") for text in texts]
        states = [tower(**each, output_hidden_states=True).hidden_states[1:] for each in inputs]
        return [[each[0] for each in block] for block in zip(*states, strict=True)]

    return of_texts


def open_clip_intermediates(folder: Path, pictures: Sequence[Any]) -> Sequence[Sequence[Tensor]]:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    pixels, visual = torch.stack([transform(picture) for picture in pictures]), model.eval().visual
    if hasattr(visual, "layer4"):
        # Number 0 is the stem.
        return list(map(by_rows, visual.forward_intermediates(pixels, indices=[1, 2, 3, 4])["image_intermediates"]))
    out = visual.forward_intermediates(pixels, output_fmt="NLC", output_extra_tokens=True)
    pairs = zip(out["image_intermediates_prefix"], out["image_intermediates"], strict=True)
    return [torch.cat(pair, 1) for pair in pairs]


def timm_intermediates(name: str, indices: Sequence[int] | None = None) -> Reference:
    def reference(folder: Path, pictures: Sequence[Any]) -> Sequence[Sequence[Tensor]]:
        import timm
        from timm.data import create_transform, resolve_data_config

        model = timm.create_model(name, num_classes=7, checkpoint_path=str(folder / f"{name}.pt")).eval()
        transform = create_transform(**resolve_data_config({}, model=model))
        pixels = torch.stack([transform(picture) for picture in pictures])
        if name != "test_vit":
            return list(map(by_rows, model.forward_intermediates(pixels, indices=indices, intermediates_only=True)))
        settings = {"output_fmt": "NLC", "return_prefix_tokens": True, "intermediates_only": True}
        return [torch.cat([prefix, rest], 1) for rest, prefix in model.forward_intermediates(pixels, **settings)]

    return reference


def stages(folder: Path, pictures: Sequence[Any]) -> Sequence[Sequence[Tensor]]:
    from torchvision import models

    model, maps = models.resnet18(weights=None), list[Tensor]()
    model.load_state_dict(torch.load(folder / "resnet18.pt", weights_only=True))
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _, __, out: maps.append(out))
    transform = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    model.eval()(torch.stack([transform(picture) for picture in pictures]))
    return list(map(by_rows, maps))


def by_rows(maps: Tensor) -> list[Tensor]:
    """Return the places of feature maps, row by row from the upper left: an independent reading of the axes."""
    return [torch.stack([one[:, y, x] for y in range(one.shape[1]) for x in range(one.shape[2])]) for one in maps]


RESNET18 = "torchvision:resnet18/IMAGENET1K_V1@{folder}/resnet18.pt"
CASES = (
    Case("clip", "hf:{folder}", hidden_states("CLIPModel", "vision_model"), "clip", 2, 1),
    Case("siglip", "hf:{folder}", hidden_states("SiglipModel", "vision_model"), "siglip", 2, cls=False),
    Case("dinov2", "hf:{folder}", hidden_states("AutoModel"), "dinov2", 2, 1),
    Case("vit", "hf:{folder}", hidden_states("AutoModel"), "vit", 2, 1),
    Case("open_clip", "local-dir:{folder}", open_clip_intermediates, "open_clip", 2, 1),
    Case("open_clip-resnet", "local-dir:{folder}", open_clip_intermediates, "open_clip_resnet", 4, cls=False),
    Case("timm-vit", "timm:test_vit@{folder}/test_vit.pt", timm_intermediates("test_vit"), "timm", 6, 1),
    Case(
        "timm-cnn",
        "timm:test_efficientnet@{folder}/test_efficientnet.pt",
        timm_intermediates("test_efficientnet"),
        "timm",
        5,
        cls=False,
    ),
    Case(
        "timm-resnet",
        "timm:test_resnet@{folder}/test_resnet.pt",
        timm_intermediates("test_resnet", [1, 2, 3, 4]),
        "timm_resnet",
        4,
        cls=False,
    ),
    Case("resnet18", RESNET18, stages, "resnet18", 4, cls=False),
    Case("bert", "hf:{folder}", text_states("AutoModel"), "bert", 2, modality="text", own="mean"),
    Case("distilbert", "hf:{folder}", text_states("AutoModel"), "distilbert", 2, modality="text", own="mean"),
    Case("roberta", "hf:{folder}", text_states("AutoModel"), "roberta", 2, modality="text", own="mean"),
    Case("clip-text", "hf:{folder}", text_states("CLIPModel", "text_model"), "clip", 2, cls=False, modality="text"),
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
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())))


@contextmanager
def counted_calls() -> Iterator[Counter[int]]:
    """Count how often every layer with a matrix of weights is run; what normalises may do so to several outputs."""
    calls: Counter[int] = Counter()

    def count(module: nn.Module, _: Any) -> None:
        if any(weights.ndim > 1 for weights in module.parameters(recurse=False)):
            calls[id(module)] += 1

    handle = nn.modules.module.register_module_forward_pre_hook(count)
    yield calls
    handle.remove()


@every_case
def test_every_pooling_behind_every_block_is_the_librarys_and_comes_of_one_pass(
    case: Case, zoo: Any, sources_of: Any
) -> None:
    sources = sources_of(case)
    wanted = {text: pooled for k in range(1, case.blocks + 1) for text, pooled in case.poolings(k).items()}
    encoder = case.load(zoo, *wanted, case.own)
    batch = encoder.collate([encoder.read(source) for source in sources])
    with counted_calls() as calls:
        *blocks, own = encode_levels(encoder, batch)
    assert set(calls.values()) == {1}, "each layer runs once, whatever is read"

    with torch.inference_mode():
        states = case.reference(zoo(case.checkpoint), [content(source) for source in sources])
    assert len(states) == case.blocks
    for text, spec, block in zip(wanted, levels_of(encoder), blocks, strict=False):
        number = int(text.partition("@")[2])
        assert (spec.pooling, spec.layer, spec.dim) == (text, f"block_{number}", states[number - 1][0].shape[-1])
        for found, tokens in zip(samples(block), states[number - 1], strict=True):
            assert_near(found, wanted[text](tokens))
    alone = case.load(zoo, case.own)
    assert levels_of(encoder)[-1].fingerprint == alone.spec.fingerprint
    assert_near(np.concatenate(samples(own)), np.concatenate(samples(encode_levels(alone, batch)[0])))
    for block, reference in zip(blocks, encode_reference(encoder, sources), strict=False):
        assert_near(np.concatenate(samples(block)), np.concatenate(samples(reference)))


@every_case
def test_a_block_has_one_identity_from_either_end(case: Case, zoo: Any) -> None:
    last, before = f"mean@{case.blocks}", f"mean@{case.blocks - 1}"
    encoder = case.load(zoo, "mean@-1", last, "mean@-2", "mean")
    assert [spec.pooling for spec in levels_of(encoder)] == [last, before, "mean"]
    assert encoder.spec.fingerprint == case.load(zoo, last).spec.fingerprint
    assert len({spec.fingerprint for spec in levels_of(encoder)}) == 3
    for absent in (case.blocks + 1, -case.blocks - 1):
        with pytest.raises(EncoderError, match=rf"no block {absent} .* has blocks 1 to {case.blocks}, or -"):
            case.load(zoo, f"mean@{absent}")


@pytest.mark.parametrize("text", ["native@1", "auto@1", "mean@0", "mean@last", "mean@"])
def test_what_is_no_pooling_behind_a_block_is_refused(text: str, zoo: Any) -> None:
    with pytest.raises(EncoderError, match=f"no pooling '{text}'"):
        CASES[0].load(zoo, text)


def test_what_follows_the_last_block_is_not_in_it(zoo: Any, images: list[Source]) -> None:
    """A transformer normalises behind its last block, BERT and a ResNet do not."""
    for case in CASES:
        if case.modality == "image":
            encoder = case.load(zoo, "mean@-1", "mean")
            behind, final = encode_levels(encoder, encoder.collate([encoder.read(images[0])]))
            normalises = case.name in ("clip", "siglip", "dinov2", "vit", "open_clip", "timm-vit", "timm-cnn")
            assert (np.abs(samples(behind)[0].mean() - samples(final)[0].mean()) > 1e-4) == normalises, case.name


@pytest.mark.parametrize(
    ("encoder", "reason"),
    [
        ("audio:mfcc", "no blocks whose tokens can be read"),
        ("speech:features", "no blocks whose tokens can be read"),
        ("torchvision:mobilenet_v2/random:0", "no blocks whose tokens can be read"),
        ("timm:cait_xxs24_224/random:0", "behind block 2 there are 196 tokens, and the output has 197"),
        (f"py:{Path(__file__).parent}/own_encoder.py:letters", "it gives native"),
    ],
)
def test_an_encoder_without_blocks_says_so(encoder: str, reason: str) -> None:
    with pytest.raises(EncoderError, match=reason):
        load_encoder(encoder, EncoderOptions(pooling="mean@2"))


def test_padding_and_causality_keep_siglips_texts_without_blocks(zoo: Any) -> None:
    with pytest.raises(EncoderError, match="no blocks whose tokens can be read"):
        load_encoder(f"hf:{zoo('siglip')}", EncoderOptions(modality="text", pooling="mean@1"))


def test_a_long_text_is_averaged_over_its_pieces_behind_a_block_too(zoo: Any) -> None:
    folder, text = zoo("bert"), Source("text", text="a small nodule in the left upper lobe " * 4)
    encoder = load_encoder(f"hf:{folder}", EncoderOptions(pooling="mean@1+chunks", also=("mean@1", "mean@-1+chunks")))
    assert [spec.pooling for spec in levels_of(encoder)] == ["mean@1+chunks", "mean@2+chunks", "mean@1"]
    pieces, last, cut = encode_levels(encoder, encoder.collate([encoder.read(text)]))
    assert np.abs(pieces - cut).max() > 1e-3
    assert np.abs(pieces - last).max() > 1e-3
    with pytest.raises(EncoderError, match="which tokens cannot be"):
        load_encoder(f"hf:{folder}", EncoderOptions(pooling="tokens@1+chunks"))


def test_a_network_that_runs_one_block_several_times_is_refused(tmp_path: Path, zoo: Any) -> None:
    import transformers

    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.AlbertConfig(vocab_size=200, embedding_size=16, max_position_embeddings=16, **shape)
    transformers.AlbertModel(config).save_pretrained(tmp_path)
    transformers.AutoTokenizer.from_pretrained(zoo("bert")).save_pretrained(tmp_path)
    with pytest.raises(EncoderError, match=r"expected one list of the 3 blocks .*, found 0 in AlbertModel"):
        load_encoder(f"hf:{tmp_path}", EncoderOptions(pooling="mean@1"))


def test_a_vision_transformer_of_torchvision_is_read_behind_its_blocks() -> None:
    from torchvision.models import VisionTransformer

    from featurestore.encoders.torchvision import _block_names, _TokenReader

    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=32, patch_size=8, num_layers=12, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    ).eval()
    model.heads = nn.Identity()
    outputs: list[Tensor] = []
    for block in model.encoder.layers:
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        native, states = model(pixels), tuple(outputs)
        reader = _TokenReader("x", model, ("native", "tokens@1", "mean@11", "cls@12", "tokens"), _block_names(model))
        found, final = reader(pixels), model.encoder.ln(states[11])
    assert len(_block_names(model)) == len(states) == 12
    expected = [native, states[0], states[10][:, 1:].mean(1), states[11][:, 0], final]
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(np.asarray(ours), theirs)
