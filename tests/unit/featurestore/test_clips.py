"""Clips of a video: each its own stretch and its own frames, none of them twice in the mean."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

import data.video
from data.manifest import Source
from featurestore import many_images
from featurestore.catalog import canonical, load_encoder, modality_of
from featurestore.encoder import EncoderOptions
from featurestore.encoder_ids import split_joined
from featurestore.errors import EncoderError, UnknownEncoder
from featurestore.extract import automatic_batch_size
from featurestore.spec import EncoderSpec
from featurestore.video_encoder import ClipTransform, VideoEncoder

FRAMES = 3
MODEL = "torchvision:mc3_18/random:0"
Make = Callable[..., Any]


def toy(options: EncoderOptions) -> VideoEncoder:
    """An encoder of clips of three frames: the mean of each frame and channel, in time's order."""
    transform = ClipTransform(
        frames=FRAMES, resize=(8, 8), crop=(8, 8), interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1)
    )

    def reference(frames: Tensor) -> Tensor:
        return transform.normalize(transform.apply(frames.permute(0, 2, 3, 1).numpy()).unsqueeze(0))[0]

    spec = EncoderSpec(
        family="toy", modality="video", architecture={}, weights="none", preprocess=transform.to_dict(), layer="pixels",
        pooling="native", precision=options.precision, dtype=options.dtype, dim=3 * FRAMES,
    )  # fmt: skip
    return VideoEncoder(
        spec=spec,
        transform=transform,
        compute=lambda clips: clips.mean((3, 4)).transpose(1, 2).flatten(1),
        reference_transform=reference,
        device="cpu",
    )


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the encoder inside a wrapper the toy."""
    monkeypatch.setattr(many_images, "load_encoder", lambda _, options: toy(options))


@pytest.fixture
def film(make_film: Make, make_scenes: Make, tmp_path: Path) -> Callable[[int], Source]:
    """Write a video of n frames that all differ."""
    return lambda n: Source("video", path=make_film(tmp_path / f"{n}.mp4", make_scenes(n, height=32, width=48)))


def load(encoder_id: str, **options: Any) -> many_images.ManyImages:
    encoder = load_encoder(encoder_id, EncoderOptions(dtype="float32", **options))
    assert isinstance(encoder, many_images.ManyImages)
    return encoder


def clip_vectors(source: Source, clips: list[list[int]]) -> Tensor:
    """Return the toy's vector of each clip, of frames that PyAV decodes."""
    with av.open(str(source.path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    encoder = toy(EncoderOptions())
    return torch.cat([encoder.encode(encoder.collate([encoder.read(frames[clip])])) for clip in clips])


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize(
    ("total", "clips"),
    [
        # Twenty frames are four stretches of five, each with its first, middle and last frame.
        (20, [[0, 2, 4], [5, 7, 9], [10, 12, 14], [15, 17, 19]]),
        # Eleven frames are enough for three clips, not four; two are one clip, whose last frame is repeated.
        (11, [[0, 1, 2], [3, 4, 6], [7, 8, 10]]),
        (5, [[0, 2, 4]]),
        (2, [[0, 1, 1]]),
        (1, [[0, 0, 0]]),
    ],
)
def test_a_video_is_the_mean_or_the_maximum_of_its_clips(
    total: int, clips: list[list[int]], film: Callable[[int], Source]
) -> None:
    source, expected = film(total), clip_vectors(film(total), clips)
    for encoder_id, pooled in ((f"clips:4+{MODEL}", expected.mean(0)), (f"clips:4,max+{MODEL}", expected.amax(0))):
        encoder = load(encoder_id)
        items = [encoder.read(source), encoder.read(film(7))]
        assert len(items[0]) == len(clips)
        found = encoder.encode(encoder.collate(items))
        torch.testing.assert_close(found[0], pooled, rtol=0, atol=1e-6)
        torch.testing.assert_close(encoder.encode_reference([source])[0], pooled, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("inside")
def test_the_file_is_gone_through_once_and_only_frames_that_are_needed_become_pictures(
    film: Callable[[int], Source], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, pictures = [], []
    decode, rgb = data.video._Video.decode, data.video._rgb
    monkeypatch.setattr(data.video._Video, "decode", lambda *a: passes.append(1) or decode(*a))
    monkeypatch.setattr(data.video, "_rgb", lambda *a: pictures.append(1) or rgb(*a))
    load(f"clips:4+{MODEL}").read(film(40))
    assert (len(passes), len(pictures)) == (1, 4 * FRAMES)


@pytest.mark.usefixtures("inside")
def test_the_identity_is_that_of_the_model_and_the_clips() -> None:
    spec, inner = load(f"clips:8+{MODEL}").spec, toy(EncoderOptions(dtype="float32")).spec
    assert (spec.family, spec.modality, spec.dim) == ("clips", "video", inner.dim)
    assert spec.architecture == {"encoder": inner.to_dict()}
    assert spec.preprocess == {"clips": 8, "spacing": "uniform", "short": "fewer clips", "pool": "mean"}
    ids = [f"clips+{MODEL}", f"clips:8+{MODEL}", f"clips:max+{MODEL}"]
    assert len({load(each).spec.fingerprint for each in ids} | {inner.fingerprint}) == 4
    assert load(f"clips:4,mean+{MODEL}").spec.fingerprint == load(ids[0]).spec.fingerprint


@pytest.mark.usefixtures("inside")
def test_a_batch_is_as_small_as_its_clips_are_many() -> None:
    encoder = load(f"clips:4+{MODEL}")
    assert encoder.images_per_sample == 64
    assert automatic_batch_size("video", "cpu", encoder.images_per_sample) == 1
    assert encoder._at_once == 1


def test_ids_of_clips() -> None:
    assert canonical(f"clips:4+{MODEL}") == f"clips+{MODEL}"
    assert canonical(f"clips:max,2+{MODEL}") == f"clips:2,max+{MODEL}"
    assert modality_of(f"clips+{MODEL}") == "video"
    assert split_joined(f"clips:8+{MODEL}+minilm") == (f"clips:8+{MODEL}", "minilm")
    for wrong in ("clips:0", "clips:4,median", "clips:1000"):
        with pytest.raises(UnknownEncoder, match="clips has no option"):
            canonical(f"{wrong}+{MODEL}")


@pytest.mark.parametrize(
    ("encoder_id", "options", "message"),
    [
        ("clips+timm:test_vit/random:0", {}, "timm:test_vit/random:0 encodes images, not video"),
        ("clips+frames+timm:test_vit/random:0", {}, "clips needs an encoder made as `VideoEncoder`, found ManyImages"),
        (f"clips+{MODEL}", {"also": ("tokens",)}, "the clips of a sample are pooled to one vector"),
        (f"clips+{MODEL}", {"modality": "image"}, "encodes video, not image"),
        (f"clips+{MODEL}", {"pooling": "mean@2"}, "no blocks whose tokens can be read"),
    ],
)
def test_what_cannot_be_cut_into_clips_is_refused(encoder_id: str, options: Any, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder(encoder_id, EncoderOptions(**options))


def test_one_clip_of_a_network_is_the_network(film: Callable[[int], Source]) -> None:
    source, alone, one = film(20), load_encoder(MODEL, EncoderOptions()), load(f"clips:1+{MODEL}")
    expected = alone.encode(alone.collate([alone.read(source)]))
    assert one.spec.dim == alone.spec.dim == 512
    torch.testing.assert_close(one.encode(one.collate([one.read(source)])), expected, rtol=0, atol=1e-5)
