"""Videos as frames: the identity follows the frames and the image encoder, and mistakes are told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.errors import SampleError
from data.manifest import Source
from featurestore import fidelity
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.errors import EncoderError, UnknownEncoder
from featurestore.extract import automatic_batch_size
from featurestore.many_images import ManyImages
from featurestore.together import Together

ROOT = Path(__file__).resolve().parents[3]
ID = "timm:test_vit/random:0"
Make = Callable[..., Any]


def load(encoder_id: str, **options: Any) -> ManyImages:
    encoder = load_encoder(encoder_id, EncoderOptions(**options))
    assert isinstance(encoder, ManyImages)
    return encoder


def test_the_specification_holds_the_image_encoder_and_the_frames() -> None:
    inner, spec = load_encoder(ID, EncoderOptions()).spec, load(f"frames:8+{ID}").spec
    assert (spec.family, spec.modality, spec.dim) == ("frames", "video", inner.dim)
    assert spec.architecture == {"encoder": inner.to_dict()}
    assert spec.preprocess == {"frames": 8, "spacing": "uniform", "short": "kept", "pool": "mean"}
    assert spec.weights == inner.weights


def test_the_fingerprint_follows_frames_pooling_and_the_image_encoder() -> None:
    ids = [f"frames+{ID}", f"frames:8+{ID}", f"frames:max+{ID}", "frames+timm:test_vit/random:1"]
    prints = [load(encoder_id).spec.fingerprint for encoder_id in ids]
    changes = ({"pooling": "cls"}, {"precision": "bf16"}, {"dtype": "float32"})
    prints += [load(f"frames+{ID}", **change).spec.fingerprint for change in changes]
    assert len(set(prints)) == len(prints)
    assert load(f"frames:mean,16+{ID}").spec.fingerprint == prints[0]


def test_a_video_of_one_picture_is_that_picture(make_film: Make, make_scenes: Make, tmp_path: Path) -> None:
    from PIL import Image

    (scene,) = make_scenes(1, height=96, width=128)
    path = make_film(tmp_path / "a.mp4", [scene] * 30)
    Image.fromarray(scene).save(tmp_path / "a.png")
    of_video, of_image = load(f"frames+{ID}"), load_encoder(ID, EncoderOptions())
    video = of_video.encode(of_video.collate([of_video.read(Source("video", path=path))]))
    image = of_image.encode(of_image.collate([of_image.read(Source("image", path=tmp_path / "a.png"))]))
    torch.testing.assert_close(video, image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_fidelity_check_and_the_canary_know_videos(
    precision: Any, make_film: Make, make_scenes: Make, tmp_path: Path
) -> None:
    encoder = load(f"frames:4+{ID}", precision=precision)
    sources = [Source("video", path=make_film(tmp_path / f"{n}.mp4", make_scenes(n, seed=n))) for n in (3, 7)]
    x = encoder.encode(encoder.collate([encoder.read(source) for source in sources])).numpy()
    (measured,) = fidelity.check_fidelity(encoder, sources, [x], names=["frames"])
    assert measured.samples == 2
    (canary,) = fidelity.canary_vectors(encoder)
    assert canary.shape == (2, encoder.spec.dim)
    assert np.array_equal(canary, fidelity.canary_vectors(encoder)[0])
    assert not np.allclose(canary[0], canary[1], atol=1e-3)


def test_a_frame_that_cannot_be_resized_is_told_with_its_file(make_film: Make, tmp_path: Path) -> None:
    frames = [np.zeros((2, 30_000, 3), np.uint8)] * 2
    path = make_film(tmp_path / "thin.mkv", frames, codec="ffv1", pix_fmt="bgr0")
    with pytest.raises(SampleError, match="would be resized to") as raised:
        load("frames+efficientnet-lite0").read(Source("video", path=path))
    assert str(raised.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("encoder_id", "error", "message"),
    [
        ("frames+minilm", EncoderError, "encodes text, not image"),
        ("frames+frames+efficientnet-lite0", EncoderError, "encodes video, not image"),
        (f"frames+py:{ROOT}/tests/assets/toy.py:image", EncoderError, "needs an encoder made as `ImageEncoder`"),
        ("frames+timm:resnt18", UnknownEncoder, "did you mean 'resnet18'"),
    ],
)
def test_what_encodes_no_images_cannot_be_wrapped(encoder_id: str, error: type[EncoderError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_encoder(encoder_id, EncoderOptions())


def test_levels_of_the_image_encoder_are_levels_of_the_video(
    make_film: Make, make_scenes: Make, tmp_path: Path
) -> None:
    sources = [Source("video", path=make_film(tmp_path / f"{n}.mp4", make_scenes(n, seed=n))) for n in (3, 7)]
    several = load(f"frames:4+{ID}", pooling="native", also=("mean",))
    batch = several.collate([several.read(source) for source in sources])
    for level, spec, pooling in zip(several.encode_levels(batch), several.levels, ("native", "mean"), strict=True):
        alone = load(f"frames:4+{ID}", pooling=pooling)
        assert alone.spec.fingerprint == spec.fingerprint
        torch.testing.assert_close(level, alone.encode(batch), rtol=0, atol=1e-5)
    with pytest.raises(EncoderError, match="no pooling 'tokens'"):
        load(f"frames:4+{ID}", pooling="tokens")


def test_encoders_of_the_same_frames_share_one_decode(
    make_film: Make, make_scenes: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featurestore.encoders import frames

    decoded: list[Source] = []
    plain = frames.read_frames
    monkeypatch.setattr(frames, "read_frames", lambda source, count: decoded.append(source) or plain(source, count))
    source = Source("video", path=make_film(tmp_path / "a.mp4", make_scenes(9)))
    ids = (f"frames:4+{ID}", "frames:4,max+timm:test_efficientnet/random:0", f"frames:5+{ID}")
    encoders = [load(encoder_id) for encoder_id in ids]
    items = Together(encoders).read(source)
    assert len(decoded) == 2
    for encoder, item in zip(encoders, items, strict=True):
        torch.testing.assert_close(item, encoder.read(source), rtol=0, atol=0)


def test_frames_are_not_images() -> None:
    with pytest.raises(EncoderError, match="encodes video, not image"):
        load_encoder(f"frames+{ID}", EncoderOptions(modality="image"))


def test_a_batch_of_videos_is_smaller_than_one_of_images() -> None:
    encoder = load(f"frames+{ID}")
    assert automatic_batch_size("video", "cpu", encoder.images_per_sample) == 2
    assert automatic_batch_size("image", "cpu") == 8
