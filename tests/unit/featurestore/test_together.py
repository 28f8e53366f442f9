"""Encoders that agree on what is decoded share it, and give what they give alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from data.manifest import Source
from featurestore import video_encoder
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.encoders import audio, frames
from featurestore.together import Together

VIT = "timm:test_vit/random:0"
Make = Callable[..., Any]


def check_shared(source: Source, ids: tuple[str, ...], reads: list[str], *, expected: int) -> None:
    """Read a sample by all encoders at once, and by each alone; count how often it is decoded at once."""
    encoders = [load_encoder(each, EncoderOptions(dtype="float32")) for each in ids]
    both = Together(encoders)
    reads.clear()
    item = both.read(source)
    assert len(reads) == expected
    together = both.encode_levels(both.collate([item]))
    for found, encoder in zip(together, encoders, strict=True):
        alone = encoder.encode(encoder.collate([encoder.read(source)]))
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


@pytest.fixture
def video_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every decode of a video."""
    reads: list[str] = []
    for module in (frames, video_encoder):
        read = module.read_frames
        monkeypatch.setattr(module, "read_frames", lambda *a, r=read, **k: reads.append("read") or r(*a, **k))
    return reads


@pytest.mark.parametrize("total", [3, 30])
@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((f"frames:8+{VIT}", f"frames:8,max+{VIT}", "frames:8+timm:test_vit/random:1"), 1),
        ((f"frames:8+{VIT}", f"frames:4+{VIT}"), 2),
        ((f"frames+{VIT}", "torchvision:mc3_18/random:0"), 1),
    ],
)
def test_the_same_frames_are_decoded_once(
    ids: tuple[str, ...], expected: int, total: int, video_reads: list[str], make_film: Make, make_scenes: Make,
    tmp_path: Path,
) -> None:  # fmt: skip
    source = Source("video", path=make_film(tmp_path / "a.mp4", make_scenes(total, height=48, width=64)))
    check_shared(source, ids, video_reads, expected=expected)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (("audio:mfcc", "audio:logmel"), 1),
        (("audio:mfcc/trim=25", "audio:logmel/trim=25"), 1),
        (("audio:mfcc", "audio:logmel/trim=25"), 2),
        (("audio:mfcc", "audio:logmel/norm=cmvn"), 2),
    ],
)
def test_the_same_spectrogram_is_made_once(
    ids: tuple[str, ...], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []
    load_audio = audio.load_audio
    monkeypatch.setattr(audio, "load_audio", lambda *a, **k: reads.append("read") or load_audio(*a, **k))
    noise = np.random.default_rng(0).normal(size=8000) * np.linspace(0.01, 0.2, 8000)
    soundfile.write(tmp_path / "a.wav", noise, 8000)
    check_shared(Source("audio", path=tmp_path / "a.wav"), ids, reads, expected=expected)
