"""Video transformers of transformers give what that library gives: pixels, the classifier's input and the tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from data.errors import ConfigError, SampleError
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.errors import EncoderError, WeightsUnavailable
from featurestore.video_encoder import VideoEncoder
from finetune.blocks import anatomy
from finetune.patches import Patches
from finetune.towers import Tower, load_tower

SIDE = 16
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "num_frames": 4,
}
KINDS = {
    "videomae": ("VideoMAE", {"patch_size": 8, "tubelet_size": 2}),
    "vivit": ("Vivit", {"tubelet_size": [2, 8, 8]}),
    "timesformer": ("Timesformer", {"patch_size": 8}),
}


def checkpoint(folder: Path, kind: str, *, side: int = SIDE, **changes: Any) -> Path:
    """Write a small classifier of clips with its processor, as transformers does."""
    name, own = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **own, "num_labels": 3, **changes})
    torch.manual_seed(0)
    classifier = {"timesformer": "TimesformerForVideoClassification"}.get(kind, f"{name}ForVideoClassification")
    getattr(transformers, classifier)(config).save_pretrained(folder)
    processor = getattr(transformers, f"{name}VideoProcessor")
    processor(size={"shortest_edge": side + 4}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def encoder_of(folder: Path, *poolings: str, modality: Any = "video") -> VideoEncoder:
    first, *also = poolings or ("native",)
    made = load_encoder(f"hf:{folder}", EncoderOptions(modality=modality, pooling=first, also=tuple(also)))
    assert isinstance(made, VideoEncoder)
    return made


def clips(count: int = 2, *, height: int = 40, width: int = 27) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (4, height, width, 3), dtype=np.uint8) for _ in range(count)]


def logits_input(folder: Path, kind: str, frames: NDArray[np.uint8]) -> torch.Tensor:
    """Return what the library's own classifier hands to its last layers, by the library's own processor."""
    model = getattr(transformers, f"{KINDS[kind][0]}ForVideoClassification").from_pretrained(folder).eval()
    processor = transformers.AutoVideoProcessor.from_pretrained(folder)
    seen: list[torch.Tensor] = []
    layer = model.fc_norm if kind == "videomae" and model.config.use_mean_pooling else model.classifier
    layer.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    with torch.no_grad():
        model(**processor(torch.from_numpy(frames).permute(0, 3, 1, 2), return_tensors="pt"))
    return seen[0]


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_vector_is_what_the_librarys_classifier_is_given(tmp_path: Path, kind: str) -> None:
    folder, videos = checkpoint(tmp_path, kind), clips()

    encoder = encoder_of(folder)
    vectors = encoder.encode(encoder.collate([encoder.read(video) for video in videos]))

    assert isinstance(vectors, torch.Tensor)
    for vector, video in zip(vectors, videos, strict=True):
        torch.testing.assert_close(vector, logits_input(folder, kind, video)[0], atol=1e-5, rtol=1e-5)
    assert encoder.spec.dim == vectors.shape[1] == 16
    assert (encoder.spec.family, encoder.spec.modality) == ("huggingface", "video")


def test_a_videomae_without_mean_pooling_gives_its_first_token(tmp_path: Path) -> None:
    folder, video = checkpoint(tmp_path, "videomae", use_mean_pooling=False), clips(1)[0]

    encoder = encoder_of(folder)

    found = encoder.encode(encoder.collate([encoder.read(video)]))
    torch.testing.assert_close(found[0], logits_input(folder, "videomae", video)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(40, 27), (27, 40), (20, 20), (11, 60)])
def test_pixels_are_those_of_the_processor(tmp_path: Path, kind: str, shape: tuple[int, int]) -> None:
    folder, (video,) = checkpoint(tmp_path, kind), clips(1, height=shape[0], width=shape[1])
    encoder = encoder_of(folder)

    ours = encoder.transform.normalize(encoder.collate([encoder.read(video)]))

    processor = transformers.AutoVideoProcessor.from_pretrained(folder)
    theirs = processor(torch.from_numpy(video).permute(0, 3, 1, 2), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.transpose(1, 2), theirs, atol=2e-6, rtol=0)


def test_levels_of_one_pass(tmp_path: Path, kind: str) -> None:
    folder, video = checkpoint(tmp_path, kind), clips(1)[0]
    prefix = 0 if kind == "videomae" else 1
    places = 4 * 4 if kind == "timesformer" else 2 * 4

    encoder = encoder_of(folder, "native", "mean", "tokens", "mean@1")
    native, mean, tokens, lower = encoder.encode_levels(encoder.collate([encoder.read(video)]))

    assert isinstance(tokens, torch.Tensor)
    assert tokens.shape == (1, prefix + places, 16)
    torch.testing.assert_close(mean, tokens[:, prefix:].mean(dim=1))
    torch.testing.assert_close(native, tokens[:, 0] if prefix else tokens.mean(dim=1))
    assert not torch.allclose(lower, mean)
    assert len({level.fingerprint for level in encoder.levels}) == 4
    assert encoder.levels[2].architecture["tokens"]["prefix"] == ["class"] * prefix


def test_fewer_frames_repeat_the_last(tmp_path: Path) -> None:
    encoder, video = encoder_of(checkpoint(tmp_path, "videomae")), clips(1)[0]

    short = encoder.read(video[:2])

    assert torch.equal(short, encoder.read(video[[0, 1, 1, 1]]))


def test_the_modality_follows_from_the_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "videomae")

    assert encoder_of(folder, modality=None).spec.modality == "video"
    with pytest.raises(EncoderError, match=r"'videomae' does not encode text"):
        load_encoder(f"hf:{folder}", EncoderOptions(modality="text"))


def _space_only(folder: Path) -> Path:
    return checkpoint(folder, "timesformer", attention_type="space_only")


def _other_size(folder: Path) -> Path:
    return checkpoint(folder, "videomae", side=24)


def _sampling(folder: Path) -> Path:
    path = next(checkpoint(folder, "videomae").glob("*processor_config.json"))
    settings = json.loads(path.read_text(encoding="utf-8"))
    (settings.get("video_processor") or settings)["do_sample_frames"] = True
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def _damaged(folder: Path) -> Path:
    path = checkpoint(folder, "vivit") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    return folder


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_space_only, EncoderError, "attends to space only"),
        (_other_size, EncoderError, "frames of 24x24 pixels and the network takes 16x16"),
        (_sampling, ConfigError, "'do_sample_frames' is not known and might change pixels"),
        (_damaged, WeightsUnavailable, "cannot be loaded"),
    ],
)
def test_what_cannot_be_computed_as_published_is_refused(
    tmp_path: Path, make: Callable[[Path], Path], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        encoder_of(make(tmp_path))


def test_an_elongated_clip_is_a_bad_sample(tmp_path: Path) -> None:
    encoder = encoder_of(checkpoint(tmp_path, "videomae"))

    with pytest.raises(SampleError):
        encoder.read(np.zeros((4, 1, 500_000, 3), np.uint8))


def test_blocks_train_and_cells_of_a_clip_can_be_hidden(tmp_path: Path, kind: str) -> None:
    tower = load_tower(f"hf:{checkpoint(tmp_path, kind)}", modality="video", device="cpu", tokens=True)

    parts = anatomy(tower.network)
    assert len(parts.blocks) == 2
    assert set(parts.depths.values()) == ({0, 1, 2} if kind == "videomae" else {0, 1, 2, 3})
    if kind == "timesformer":
        with pytest.raises(EncoderError, match="tokens that share out the input evenly"):
            Patches.of(tower)
        return
    patches = Patches.of(tower)
    assert (patches.grid, patches.cell, patches.prefix) == ((2, 2, 2), (2, 8, 8), int(kind == "vivit"))
    assert _reads_nothing_of(tower, patches)


def _reads_nothing_of(tower: Tower, patches: Patches) -> bool:
    """Return whether a hidden cell has no influence on any token."""
    first = clips(1, height=SIDE, width=SIDE)[0]
    other = first.copy()
    other[:2, :8, :8] = 255 - other[:2, :8, :8]
    mask = torch.zeros(1, patches.count, dtype=torch.bool)
    mask[0, 0] = True
    found = []
    for video in (first, other):
        # As large as the network takes: nothing is resized, so that pixels stay in their cells.
        batch = tower.collate([torch.from_numpy(video).permute(0, 3, 1, 2).contiguous()])
        with torch.no_grad(), patches.hidden(mask, torch.zeros(patches.embedding.out_channels)):
            found.append(tower(batch)[1])
    return torch.equal(found[0], found[1])
