"""Tiny checkpoints with random weights, written by the libraries themselves, and pictures to encode."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data.manifest import Source

TEXTS = (
    "no acute finding",
    "a small nodule in the left upper lobe",
    "ok",
    "heart size normal and the lungs are clear of any consolidation",
)
WORDS = sorted({word for text in TEXTS for word in text.split()} | set(string.ascii_lowercase))
SIDE = 32


@dataclass(frozen=True)
class Zoo:
    """A folder of tiny checkpoints, each made when it is first asked for."""

    root: Path
    made: dict[str, Path] = field(default_factory=dict)

    def __call__(self, name: str, *, seed: int = 0) -> Path:
        key = f"{name}-{seed}"
        if key not in self.made:
            folder = self.root / key
            folder.mkdir()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                MAKERS[name](folder)
            self.made[key] = folder
        return self.made[key]


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Make tiny checkpoints by name."""
    return Zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Sums in one order, and no fight for cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Smooth pictures of odd sizes: colour and grey, PNG and JPEG, upright and wide."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    sources = []
    for i, (width, height, mode, suffix) in enumerate(
        [(97, 61, "RGB", "png"), (53, 120, "RGB", "jpg"), (64, 64, "L", "png"), (301, 77, "RGB", "jpg")]
    ):
        coarse = rng.integers(0, 256, size=(5, 6, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)
        path = folder / f"{i}.{suffix}"
        picture.save(path)
        sources.append(Source("image", path=path))
    return sources


@pytest.fixture(scope="session")
def texts() -> list[Source]:
    """Texts of several lengths."""
    return [Source("text", text=text) for text in TEXTS]


@pytest.fixture(scope="session")
def videos(
    tmp_path_factory: pytest.TempPathFactory, make_film: Callable[..., Path], make_scenes: Callable[..., Any]
) -> list[Source]:
    """Short and long videos of odd sizes, lossless and not."""
    folder = tmp_path_factory.mktemp("videos")
    shapes = [("a.mp4", 3, 48, 64, {}), ("b.avi", 21, 72, 40, {"codec": "mpeg4", "pix_fmt": "yuv420p"})]
    shapes.append(("c.mkv", 9, 64, 120, {"codec": "ffv1", "pix_fmt": "bgr0"}))
    return [
        Source("video", path=make_film(folder / name, make_scenes(n, height=h, width=w, seed=n), **options))
        for name, n, h, w, options in shapes
    ]


@pytest.fixture(scope="session")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> list[Source]:
    """Noise that comes and goes, of several rates, depths, lengths and numbers of channels."""
    import soundfile

    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    sources = []
    for i, (rate, seconds, channels, depth) in enumerate(
        [(16_000, 1.0, 1, "PCM_16"), (8_000, 0.7, 1, "PCM_16"), (44_100, 1.3, 2, "PCM_24"), (16_000, 0.2, 1, "FLOAT")]
    ):
        length = round(rate * seconds)
        loudness = np.interp(np.arange(length), np.linspace(0, length, 7), rng.uniform(0, 0.2, 7))
        smooth = np.cumsum(rng.normal(size=(length, channels)), axis=0) / 50
        noise = np.diff(smooth, axis=0, prepend=0) + 0.1 * np.sin(smooth * 20)
        path = folder / f"{i}.wav"
        soundfile.write(path, noise * loudness[:, None], rate, subtype=depth)
        sources.append(Source("audio", path=path))
    return sources


def _open_clip(folder: Path, **vision: Any) -> None:
    import open_clip
    from safetensors.torch import save_file

    vision = vision or {"image_size": SIDE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    config = {
        "embed_dim": 24,
        "vision_cfg": vision,
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }
    model = open_clip.CLIP(**config)
    preprocess = {"size": vision["image_size"], "mode": "RGB", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    preprocess |= {"interpolation": "bicubic", "resize_mode": "shortest", "fill_color": 0}
    settings = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")


def _open_clip_resnet(folder: Path) -> None:
    _open_clip(folder, image_size=64, layers=(1, 1, 1, 1), width=8)


def _towers() -> tuple[dict[str, Any], dict[str, Any]]:
    shape = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**shape, "vocab_size": 200, "max_position_embeddings": 16}
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return {**text, **ids}, {**shape, "image_size": SIDE, "patch_size": 8}


def _clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    text, vision = _towers()
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    characters = ["<|startoftext|>", "<|endoftext|>", *string.ascii_lowercase]
    characters += [f"{letter}</w>" for letter in string.ascii_lowercase]
    vocabulary = {token: i for i, token in enumerate(characters)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16).save_pretrained(folder)


def _siglip(folder: Path) -> None:
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    text, vision = _towers()
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    # The tokenizer allows less than the network has positions for, as XraySigLIP's does.
    _word_tokenizer(folder, max_length=12)


def _dinov2(folder: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 40, "patch_size": 8}
    Dinov2Model(Dinov2Config(**shape)).save_pretrained(folder)
    # The position embeddings are interpolated: the processor's size is not the configuration's.
    BitImageProcessor(
        size={"shortest_edge": 36},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.53] * 3,
        image_std=[0.25] * 3,
    ).save_pretrained(folder)


def _vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    _, vision = _towers()
    ViTModel(ViTConfig(**vision), add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def _word_tokenizer(folder: Path, *, max_length: int) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>", model_max_length=max_length
    ).save_pretrained(folder)


def _bert_tokenizer(folder: Path, *, lower: bool = True) -> None:
    from transformers import BertTokenizer

    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    BertTokenizer(vocab=vocabulary, do_lower_case=lower, model_max_length=512).save_pretrained(folder)


def _bert(folder: Path) -> None:
    from transformers import BertConfig, BertModel

    text, _ = _towers()
    BertModel(BertConfig(**{**text, "pad_token_id": 0})).save_pretrained(folder)
    _bert_tokenizer(folder)


def _distilbert(folder: Path) -> None:
    from transformers import DistilBertConfig, DistilBertModel

    config = DistilBertConfig(
        vocab_size=200, dim=32, hidden_dim=37, n_layers=2, n_heads=4, max_position_embeddings=16, pad_token_id=0
    )
    DistilBertModel(config).save_pretrained(folder)
    _bert_tokenizer(folder)


def _roberta(folder: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    text, _ = _towers()
    RobertaModel(RobertaConfig(**{**text, "max_position_embeddings": 18})).save_pretrained(folder)
    _word_tokenizer(folder, max_length=512)


def _resnet(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        from torchvision.models import get_model

        torch.save(get_model(name, weights=None).state_dict(), folder / f"{name}.pt")

    return make


def _timm(folder: Path) -> None:
    import timm

    torch.save(timm.create_model("test_vit", num_classes=7).state_dict(), folder / "test_vit.pt")
    torch.save(timm.create_model("test_efficientnet", num_classes=7).state_dict(), folder / "test_efficientnet.pt")


def _timm_resnet(folder: Path) -> None:
    import timm

    torch.save(timm.create_model("test_resnet", num_classes=7).state_dict(), folder / "test_resnet.pt")


MAKERS: dict[str, Callable[[Path], None]] = {
    "open_clip": _open_clip,
    "open_clip_resnet": _open_clip_resnet,
    "clip": _clip,
    "siglip": _siglip,
    "dinov2": _dinov2,
    "vit": _vit,
    "bert": _bert,
    "distilbert": _distilbert,
    "roberta": _roberta,
    "resnet18": _resnet("resnet18"),
    "resnet50": _resnet("resnet50"),
    "timm": _timm,
    "timm_resnet": _timm_resnet,
}
