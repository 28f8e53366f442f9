"""Spectrograms as pictures: nothing of a recording is cut off, and the identity follows how it is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from data.audio import RATE, load_audio
from data.errors import SampleError
from data.manifest import Source
from data.spectrogram import MelSettings, spectrogram_image
from featurestore import fidelity
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.encoders import spectrogram
from featurestore.encoders.spectrogram import windows
from featurestore.errors import EncoderError, UnknownEncoder
from featurestore.many_images import ManyImages
from featurestore.transform import ImageTransform

ID = "timm:test_vit/random:0"
STATISTICS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def load(encoder_id: str, **options: Any) -> ManyImages:
    encoder = load_encoder(encoder_id, EncoderOptions(**options))
    assert isinstance(encoder, ManyImages)
    return encoder


def vectors(encoder: ManyImages, *sources: Source) -> torch.Tensor:
    return encoder.encode(encoder.collate([encoder.read(source) for source in sources]))


def sound(path: Path, seconds: float, seed: int = 0, *, silent_end: float = 0.0) -> Source:
    """Write noise that comes and goes, with an end that is nearly silent."""
    rng, length = np.random.default_rng(seed), round(seconds * RATE)
    loudness = np.interp(np.arange(length), np.linspace(0, length, 9), rng.uniform(0.02, 0.4, 9))
    samples = rng.normal(size=length) * loudness / 4
    samples[length - round(silent_end * RATE) :] *= 1e-3
    soundfile.write(path, samples, RATE)
    return Source("audio", path=path)


def picture(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 256, size=(80, frames), dtype=np.uint8)


# How a spectrogram is cut -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [81, 120, 121, 160, 161, 997])
def test_windows_cover_all_and_overlap_by_half_or_more(frames: int) -> None:
    whole = np.arange(frames, dtype=np.int64)[None].repeat(80, 0)
    cut = windows(whole, 80, "x")  # type: ignore[arg-type]
    starts = [int(each[0, 0]) for each in cut]
    assert all(np.array_equal(each, whole[:, start : start + 80]) for each, start in zip(cut, starts, strict=True))
    assert (starts[0], starts[-1]) == (0, frames - 80)
    assert all(0 < step <= 40 for step in np.diff(starts))


@pytest.mark.parametrize("frames", [1, 30, 80])
def test_a_short_spectrogram_is_one_window_that_ends_in_black(frames: int) -> None:
    (only,) = windows(picture(frames), 80, "x")
    assert only.shape == (80, 80)
    assert np.array_equal(only[:, :frames], picture(frames))
    assert not only[:, frames:].any()


def test_too_many_windows_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectrogram, "MAX_WINDOWS", 3)
    assert len(windows(picture(160), 80, "x")) == 3
    with pytest.raises(SampleError, match=r"at most 3 windows, found 4 .* use spectrogram:squash"):
        windows(picture(161), 80, "x")


@pytest.mark.parametrize(
    "transform",
    [
        ImageTransform(resize="shortest", size=(256, 256), crop=(224, 224), **STATISTICS),
        ImageTransform(resize="shortest", size=(37, 37), crop=(32, 32), **STATISTICS),
        ImageTransform(resize="shortest", size=(37, 37), crop=(32, 32), crop_rule="transformers", **STATISTICS),
        ImageTransform(resize="shortest", size=(232, 232), crop=(224, 224), interpolation="bilinear", **STATISTICS),
        ImageTransform(resize="shortest", size=(232, 232), crop=(224, 224), backend="torch", **STATISTICS),
        ImageTransform(resize="squash", size=(64, 48), **STATISTICS),
        ImageTransform(resize="cover", size=(64, 48), crop=(64, 48), **STATISTICS),
        ImageTransform(resize="contain", size=(64, 48), crop=(64, 48), **STATISTICS),
    ],
)
def test_the_whole_spectrogram_is_seen_through_any_transform(transform: ImageTransform) -> None:
    height, width = transform.crop or transform.size
    expected = np.asarray(Image.fromarray(picture(500)).resize((width, height), Image.Resampling.BILINEAR))
    seen = transform.apply(transform.entire(picture(500)))
    assert seen.shape == (3, height, width)
    assert np.array_equal(seen[0].numpy(), expected)
    assert torch.equal(seen[0], seen[2])


def test_a_transform_without_geometry_takes_the_spectrogram_as_it_is() -> None:
    transform = ImageTransform(resize="none", size=(1, 1), **STATISTICS)
    assert np.array_equal(transform.entire(picture(90)), picture(90))


# What it becomes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["", ":squash"])
def test_the_end_of_a_recording_counts(framing: str, tmp_path: Path) -> None:
    """A centre crop would show one second of ten, and both would be the same."""
    encoder = load(f"spectrogram{framing}+{ID}")
    loud, quiet = sound(tmp_path / "a.wav", 10), sound(tmp_path / "b.wav", 10, silent_end=2)
    a, b = vectors(encoder, loud, quiet)
    assert float((a - b).abs().max()) > 1e-3


@pytest.mark.parametrize(("pool", "expected"), [("mean", lambda x: x.mean(0)), ("max", lambda x: x.amax(0))])
def test_windows_are_pooled_pictures(pool: str, expected: Any, tmp_path: Path) -> None:
    source = sound(tmp_path / "a.wav", 2.3)
    whole = spectrogram_image(load_audio(source), MelSettings())
    inner = load_encoder(ID, EncoderOptions())
    pictures = []
    for i, window in enumerate(windows(whole, 80, "x")):
        squashed = Image.fromarray(window).resize((160, 160), Image.Resampling.BILINEAR)
        canvas = Image.new("L", inner.transform.size)  # type: ignore[attr-defined]
        canvas.paste(squashed, ((canvas.width - 160) // 2, (canvas.height - 160) // 2))
        canvas.save(tmp_path / f"{i}.png")
        pictures.append(Source("image", path=tmp_path / f"{i}.png"))
    each = inner.encode(inner.collate([inner.read(one) for one in pictures]))
    ours = vectors(load(f"spectrogram:{pool}+{ID}"), source)[0]
    assert len(pictures) == 5
    torch.testing.assert_close(ours, expected(each), rtol=0, atol=1e-5)


@pytest.mark.parametrize("framing", ["", ":squash"])
def test_the_fidelity_check_and_the_canary_know_spectrograms(framing: str, tmp_path: Path) -> None:
    encoder = load(f"spectrogram{framing}+{ID}")
    sources = [sound(tmp_path / f"{i}.wav", seconds, seed=i) for i, seconds in enumerate((0.3, 1.7))]
    made = vectors(encoder, *sources).numpy()
    (measured,) = fidelity.check_fidelity(encoder, sources, [made], names=["spectrogram"])
    assert measured.max_abs < 1e-5
    assert fidelity.canary_vectors(encoder)[0].shape == (2, encoder.spec.dim)


def test_the_fingerprint_follows_how_the_sound_becomes_pictures() -> None:
    inner = load_encoder(ID, EncoderOptions()).spec
    options = ("", ":squash", ":max", ":trim=25", ":fmax=4000", ":fmax=4000,trim=25")
    specs = [load(f"spectrogram{each}+{ID}").spec for each in options]
    specs.append(load("spectrogram+timm:test_vit/random:1").spec)
    assert len({spec.fingerprint for spec in specs}) == len(specs)
    assert (specs[0].modality, specs[0].family, specs[0].dim) == ("audio", "spectrogram", inner.dim)
    assert specs[0].architecture == {"encoder": inner.to_dict()}
    assert specs[0].preprocess["spectrogram"]["top_db"] == 80


@pytest.mark.parametrize(
    ("encoder_id", "error", "message"),
    [
        (f"spectrogram:squash,max+{ID}", UnknownEncoder, "squash makes one picture"),
        (f"spectrogram:fmax=9+{ID}", UnknownEncoder, "expected fmax from 500 to 8000"),
        ("spectrogram+minilm", EncoderError, "encodes text, not image"),
        ("spectrogram+audio:mfcc", EncoderError, "encodes audio, not image"),
    ],
)
def test_mistakes_are_one_clear_line(encoder_id: str, error: type[EncoderError], message: str) -> None:
    with pytest.raises(error) as raised:
        load_encoder(encoder_id, EncoderOptions())
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_silence_is_told_and_never_a_black_picture(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    with pytest.raises(SampleError, match="silence"):
        load(f"spectrogram+{ID}").read(Source("audio", path=tmp_path / "a.wav"))
