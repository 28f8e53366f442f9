"""Video models give what torchvision gives: transform, clip length, the classifier's input and the tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.video.mvit import MSBlockConfig, MViT
from torchvision.models.video.swin_transformer import SwinTransformer3d
from torchvision.transforms._presets import VideoClassification

from data.errors import SampleError
from data.manifest import Source
from data.video import read_frames
from featurestore import fidelity
from featurestore.catalog import load_encoder, modality_of
from featurestore.encoder import EncoderOptions
from featurestore.encoders._names import ModelName
from featurestore.encoders._torchvision_video import (
    NAMES,
    clip_length,
    mvit_tokens,
    swin_tokens,
    video_encoder,
)
from featurestore.encoders.torchvision import _build
from featurestore.errors import EncoderError, UnknownEncoder, WeightsUnavailable
from featurestore.forward import freeze
from featurestore.levels import as_levels
from featurestore.video_encoder import VideoEncoder

Make = Callable[..., Any]


def outputs_of(model: nn.Module, part: nn.Module, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what a part of a model was given and gave while the model computed, and the model's output."""
    seen: list[Tensor] = []
    handle = part.register_forward_hook(lambda _, given, gave: seen.extend([given[0].clone(), gave.clone()]))
    with torch.inference_mode():
        logits = model(clips)
    handle.remove()
    return seen[0], seen[1], logits


def tiny_mvit(*, v2: bool, seed: int = 0) -> MViT:
    torch.manual_seed(seed)
    kernel = [3, 3, 3]
    widths = (16, 32, 32) if v2 else (16, 16, 32)
    blocks = [
        MSBlockConfig(1, widths[0], widths[1], [], kernel, [], [1, 2, 2]),
        MSBlockConfig(2, widths[1], widths[2], kernel, kernel, [1, 2, 2], [1, 2, 2]),
    ]
    return MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=blocks,
        residual_pool=v2,
        residual_with_cls_embed=not v2,
        rel_pos_embed=v2,
        proj_after_attn=v2,
    ).eval()


def tiny_swin() -> SwinTransformer3d:
    torch.manual_seed(0)
    return SwinTransformer3d([2, 4, 4], 24, [1, 1], [2, 2], [2, 2, 2]).eval()


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))


# What is computed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("v2", [False, True])
def test_tokens_of_mvit_are_what_its_last_normalisation_gives(v2: bool, clips: Tensor) -> None:
    model = tiny_mvit(v2=v2)
    _, tokens, _ = outputs_of(model, model.norm, clips)
    given, _, logits = outputs_of(model, model.head[1], clips)
    with torch.inference_mode():
        ours = mvit_tokens(model, clips)
        ends_in = model.head(ours[:, 0])
    assert ours.shape == (2, 1 + 2 * 4 * 4, 32)
    torch.testing.assert_close(ours, tokens, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours[:, 0], given, rtol=0, atol=1e-5)
    torch.testing.assert_close(ends_in, logits, rtol=0, atol=1e-5)


def test_tokens_of_swin_average_to_what_its_classifier_is_given(clips: Tensor) -> None:
    model = tiny_swin()
    given, _, _ = outputs_of(model, model.head, clips)
    _, maps, _ = outputs_of(model, model.norm, clips)
    with torch.inference_mode():
        ours = swin_tokens(model, clips)
    torch.testing.assert_close(ours, maps.flatten(1, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.mean(1), given, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["native", "cls", "mean", "max"])
def test_poolings_of_an_mvit(pooling: str, clips: Tensor) -> None:
    whole, cut = tiny_mvit(v2=True), tiny_mvit(v2=True)
    cut.head[1] = nn.Identity()
    encoder = video_encoder(
        freeze(cut, "cpu"),
        name="tiny",
        dim=32,
        weights=models.video.MViT_V2_S_Weights.DEFAULT,
        options=EncoderOptions(pooling=pooling),
        encoder="tiny",
    )
    _, tokens, _ = outputs_of(whole, whole.norm, clips)
    expected = {"mean": tokens[:, 1:].mean(1), "max": tokens[:, 1:].amax(1)}.get(pooling, tokens[:, 0])
    (found,) = as_levels(encoder._forward(clips))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert encoder.spec.pooling == pooling
    assert encoder.spec.layer == ("pre_logits" if pooling == "native" else "last_hidden_state")


@pytest.mark.parametrize("make", [lambda: tiny_mvit(v2=True), tiny_swin])
def test_several_poolings_of_one_pass_are_those_of_a_pass_each(make: Callable[[], MViT], clips: Tensor) -> None:
    cut = make()
    last = "head.1" if isinstance(cut, MViT) else "head"
    cut.set_submodule(last, nn.Identity())

    def encoder(*poolings: str) -> VideoEncoder:
        return video_encoder(
            freeze(cut, "cpu"),
            name="tiny",
            dim=32,
            weights=models.video.MViT_V2_S_Weights.DEFAULT,
            options=EncoderOptions(pooling=poolings[0], also=poolings[1:]),
            encoder="tiny",
        )

    poolings = ("native", "mean", "max", "tokens")
    together, single = encoder(*poolings), [encoder(pooling) for pooling in poolings]
    assert [level.fingerprint for level in together.levels] == [each.spec.fingerprint for each in single]
    found = together._forward(clips)
    for each, alone in zip(found, single, strict=True):
        torch.testing.assert_close(each, as_levels(alone._forward(clips))[0], rtol=0, atol=1e-6)
    tokens = (mvit_tokens if isinstance(cut, MViT) else swin_tokens)(cut, clips)
    torch.testing.assert_close(found[3], tokens, rtol=0, atol=1e-6)
    prefix = ["class"] if isinstance(cut, MViT) else []
    assert together.levels[3].architecture["tokens"] == {"order": "frames, each in raster order", "prefix": prefix}
    assert together.levels[3].ragged


def test_an_mvit_is_read_behind_its_blocks_whose_widths_differ(clips: Tensor) -> None:
    model = tiny_mvit(v2=False)  # the width grows behind its first block
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out[0]))
    with torch.inference_mode():
        model(clips)
    expected = tuple(outputs)
    poolings = ("cls@1", "tokens@1", "mean@-2", "max@-1", "native")
    encoder = video_encoder(
        freeze(model, "cpu"),
        name="tiny",
        dim=32,
        weights=models.video.MViT_V2_S_Weights.DEFAULT,
        options=EncoderOptions(pooling=poolings[0], also=poolings[1:]),
        encoder="tiny",
    )
    outputs.clear()
    found = as_levels(encoder._forward(clips))
    assert len(outputs) == len(expected) == 2, "one pass"
    assert [(spec.pooling, spec.layer, spec.dim) for spec in encoder.levels] == [
        ("cls@1", "block_1", 16),
        ("tokens@1", "block_1", 16),
        ("mean@1", "block_1", 16),
        ("max@2", "block_2", 32),
        ("native", "pre_logits", 32),
    ]
    one, two = expected
    for ours, theirs in zip(found, (one[:, 0], one, one[:, 1:].mean(1), two[:, 1:].amax(1)), strict=False):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_mvit_v2_s_of_a_seed_is_torchvisions_own(make_film: Make, make_scenes: Make, tmp_path: Path) -> None:
    source = Source("video", path=make_film(tmp_path / "a.mp4", make_scenes(20, height=64, width=96)))
    torch.manual_seed(7)
    model = models.video.mvit_v2_s(weights=None).eval()
    preset = models.video.MViT_V2_S_Weights.KINETICS400_V1.transforms()
    frames = torch.from_numpy(read_frames(source, 16)).permute(0, 3, 1, 2)
    _, tokens, _ = outputs_of(model, model.norm, preset(frames).unsqueeze(0))
    assert tokens.shape == (1, 393, 768)
    encoder = load_encoder("torchvision:mvit_v2_s/random:7", EncoderOptions())
    assert isinstance(encoder, VideoEncoder)
    assert (encoder.spec.dim, encoder.spec.modality) == (768, "video")
    vectors = encoder.encode(encoder.collate([encoder.read(source)]))
    torch.testing.assert_close(vectors, tokens[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("name", "last", "dim"), [("r3d_18", "fc", 512), ("s3d", "classifier.1", 1024)])
def test_a_convolutional_model_gives_what_its_classifier_is_given(name: str, last: str, dim: int) -> None:
    torch.manual_seed(3)
    whole = models.get_model(name, weights=None).eval()
    size = 64 if name == "r3d_18" else 224
    clips = torch.randn(1, 3, 4 if name == "r3d_18" else 14, size, size, generator=torch.Generator().manual_seed(1))
    given, _, _ = outputs_of(whole, whole.get_submodule(last), clips)
    weights = models.get_model_weights(name).DEFAULT
    model, found = _build("x", ModelName(model=name, seed=3), weights)
    with torch.inference_mode():
        vectors = freeze(model, "cpu")(clips)
    assert (found, vectors.shape) == (dim, (1, dim))
    torch.testing.assert_close(vectors, given.flatten(2).mean(2) if given.ndim > 2 else given, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_encoder_of_clips_does_what_encoders_do(
    precision: Any, make_film: Make, make_scenes: Make, tmp_path: Path
) -> None:
    """Equal to its reference, alone as in a batch; the guards of `extract` know it."""
    sources = [
        Source("video", path=make_film(tmp_path / f"{n}.mp4", make_scenes(n, height=48, width=40 + 8 * n, seed=n)))
        for n in (3, 20)
    ]
    model = tiny_mvit(v2=True)
    model.head[1] = nn.Identity()
    preset = VideoClassification(crop_size=(32, 32), resize_size=(36,))
    encoder = video_encoder(
        freeze(model, "cpu"),
        name="tiny",
        dim=32,
        weights=SimpleNamespace(transforms=lambda: preset, meta={"_docs": "`clip_len=4`"}),
        options=EncoderOptions(precision=precision),
        encoder="tiny",
    )
    together = encoder.encode(encoder.collate([encoder.read(source) for source in sources]))
    assert together.shape == (2, 32)
    assert not together.requires_grad
    alone = torch.cat([encoder.encode(encoder.collate([encoder.read(source)])) for source in sources])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    (measured,) = fidelity.check_fidelity(encoder, sources, (together.numpy(),), names=["tiny"])
    assert measured.samples == 2
    assert precision != "fp32" or measured.max_abs < 1e-5
    assert [canary.shape for canary in fidelity.canary_vectors(encoder)] == [(2, 32)]


def test_weights_of_a_file_are_those_of_the_seed_they_were_drawn_from(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(models.video.mc3_18(weights=None).state_dict(), tmp_path / "mc3.pt")
    named = (f"torchvision:mc3_18@{tmp_path}/mc3.pt", "torchvision:mc3_18/random:0", "torchvision:mc3_18/random:1")
    from_file, seeded, other = (load_encoder(name, EncoderOptions()).spec.fingerprint for name in named)
    assert from_file == seeded != other


# What is seen -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(NAMES))
@pytest.mark.parametrize(("height", "width"), [(240, 320), (97, 61)])
def test_the_transform_is_the_weights_own(name: str, height: int, width: int) -> None:
    preset = models.get_model_weights(name).DEFAULT.transforms()
    encoder = video_encoder(
        tiny_mvit(v2=True),
        name="tiny",
        dim=32,
        weights=models.get_model_weights(name).DEFAULT,
        options=EncoderOptions(),
        encoder="tiny",
    )
    frames = np.random.default_rng(0).integers(0, 256, size=(3, height, width, 3), dtype=np.uint8)
    expected = preset(torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous())
    ours = encoder.transform.normalize(encoder.transform.apply(frames).unsqueeze(0))[0]
    torch.testing.assert_close(ours, expected, rtol=0, atol=0)
    assert encoder.spec.preprocess["mean"] == preset.mean
    assert encoder.spec.preprocess["crop"] == preset.crop_size


def test_clips_are_as_long_as_the_weights_say() -> None:
    lengths = {name: clip_length(models.get_model_weights(name).DEFAULT) for name in NAMES}
    assert lengths == {
        **dict.fromkeys(("mvit_v1_b", "mvit_v2_s", "r3d_18", "mc3_18", "r2plus1d_18"), 16),
        **dict.fromkeys(("swin3d_t", "swin3d_s", "swin3d_b"), 32),
        "s3d": 128,
    }


def test_a_short_video_repeats_its_last_frame(make_film: Make, make_scenes: Make, tmp_path: Path) -> None:
    source = Source("video", path=make_film(tmp_path / "a.mp4", make_scenes(5)))
    clip = load_encoder("torchvision:mc3_18/random:0", EncoderOptions()).read(source)
    assert clip.shape == (16, 3, 112, 112)
    assert torch.equal(clip[5:], clip[4:5].expand(11, -1, -1, -1))
    assert not torch.equal(clip[3], clip[4])


def test_elongated_frames_are_told_with_their_file(make_film: Make, tmp_path: Path) -> None:
    frames = [np.zeros((2, 4000, 3), np.uint8)]
    source = Source("video", path=make_film(tmp_path / "thin.mkv", frames, codec="ffv1", pix_fmt="bgr0"))
    encoder = video_encoder(
        tiny_mvit(v2=True),
        name="tiny",
        dim=32,
        weights=models.video.MViT_V2_S_Weights.DEFAULT,
        options=EncoderOptions(),
        encoder="tiny",
    )
    with pytest.raises(SampleError, match="too elongated") as raised:
        encoder.read(source)
    assert str(raised.value).startswith(str(source))


# Names --------------------------------------------------------------------------------------------------------------


def test_the_modality_of_every_torchvision_model_is_known_without_loading_it() -> None:
    assert {modality_of(f"torchvision:{name}/DEFAULT") for name in NAMES} == {"video"}
    assert {modality_of(f"torchvision:{name}/DEFAULT") for name in models.list_models(module=models)} == {"image"}


@pytest.mark.parametrize(
    ("encoder_id", "options", "error", "message"),
    [
        ("mvit_v2", {}, UnknownEncoder, "did you mean 'mvit_v2_s'"),
        ("mvit_v2_s", {}, WeightsUnavailable, "mvit_v2_s/KINETICS400_V1"),
        ("mvit_v2_s/KINETICS", {}, UnknownEncoder, "KINETICS400_V1"),
        ("mc3_18/random:0", {"modality": "image"}, EncoderError, "encodes video, not image"),
        ("resnet18/random:0", {"modality": "video"}, EncoderError, "encodes images, not video"),
        ("mc3_18/random:0", {"pooling": "cls"}, EncoderError, "no pooling 'cls'"),
        ("mc3_18/random:0", {"pooling": "tokens"}, EncoderError, "torchvision:mc3_18/random:0: no pooling 'tokens'"),
    ],
)
def test_mistakes_are_one_clear_line(encoder_id: str, options: Any, error: type[EncoderError], message: str) -> None:
    with pytest.raises(error) as raised:
        load_encoder(f"torchvision:{encoder_id}", EncoderOptions(**options))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_the_fingerprint_follows_weights_and_pooling() -> None:
    model = tiny_mvit(v2=True)

    def fingerprint(model: nn.Module, weights: Any, **options: Any) -> str:
        made = video_encoder(
            model, name="tiny", dim=32, weights=weights, options=EncoderOptions(**options), encoder="tiny"
        )
        return made.spec.fingerprint

    weights = models.video.MViT_V2_S_Weights.DEFAULT
    prints = [
        fingerprint(model, weights),
        fingerprint(model, weights, pooling="mean"),
        fingerprint(model, weights, precision="bf16"),
        fingerprint(model, models.video.Swin3D_T_Weights.DEFAULT),
        fingerprint(tiny_mvit(v2=True, seed=1), weights),
    ]
    assert len(set(prints)) == len(prints)
