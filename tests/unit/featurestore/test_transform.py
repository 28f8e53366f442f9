"""The transform equals the libraries' own, pixel by pixel, on images of many shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import pytest
import timm.data
import torch
import torchvision
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from data.digest import canonical_json
from data.errors import ConfigError, SampleError
from featurestore.transform import ImageTransform
from featurestore.transform_sources import from_hf, from_open_clip, from_timm, from_torchvision

Reference = Callable[[Image.Image], torch.Tensor]

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDES = [(64, 64), (1, 1), (1, 40), (40, 1), (3, 301), (301, 3), (65, 64), (64, 65), (127, 63), (63, 128), (200, 150)]


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth structure, hard edges and noise: a resampling that differs anywhere shows."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 90 * np.sin(x / 9 + y / 23), 128 + 110 * np.cos(x / 5 - y / 11), 255.0 * ((x // 7 + y // 5) % 2)]
    return (np.stack(waves, -1) + rng.normal(0, 25, (height, width, 3))).clip(0, 255).astype(np.uint8)


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(7)
    sides = [*SIDES, *(tuple(int(n) for n in rng.integers(20, 260, 2)) for _ in range(20))]
    return [picture(rng, height, width) for height, width in sides]


PICTURES = pictures()


def hf(processor: Any) -> tuple[ImageTransform, Reference]:
    return from_hf(processor), lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def open_clip_case(**settings: Any) -> tuple[ImageTransform, Reference]:
    config = PreprocessCfg(**settings)
    return from_open_clip(config), image_transform_v2(config, is_train=False)


def timm_case(**settings: Any) -> tuple[ImageTransform, Reference]:
    config = {"input_size": (3, 48, 48), "interpolation": "bicubic", "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    config |= {"crop_pct": 0.875, "crop_mode": "center", **settings}
    return from_timm(config), timm.data.create_transform(**config, is_training=False)


def torchvision_case(**settings: Any) -> tuple[ImageTransform, Reference]:
    preset = torchvision.transforms._presets.ImageClassification(**settings)
    return from_torchvision(preset), preset


CASES: dict[str, Callable[[], tuple[ImageTransform, Reference]]] = {
    "open_clip shortest": lambda: open_clip_case(size=32),
    "open_clip bilinear": lambda: open_clip_case(size=33, interpolation="bilinear", mean=IMAGENET_MEAN),
    "open_clip siglip squash": lambda: open_clip_case(size=32, mean=HALF, std=HALF, resize_mode="squash"),
    "open_clip oblong": lambda: open_clip_case(size=(24, 40), interpolation="bilinear"),
    "open_clip longest": lambda: open_clip_case(size=32, resize_mode="longest", fill_color=7),
    "torchvision V1": lambda: torchvision_case(crop_size=28, resize_size=32),
    "torchvision V2": lambda: torchvision_case(crop_size=28, resize_size=29),
    "torchvision crop larger than resize": lambda: torchvision_case(crop_size=40, resize_size=31),
    "torchvision bicubic": lambda: torchvision_case(
        crop_size=28, resize_size=33, interpolation=torchvision.transforms.InterpolationMode.BICUBIC
    ),
    "torchvision nearest": lambda: torchvision_case(
        crop_size=28, resize_size=33, interpolation=torchvision.transforms.InterpolationMode.NEAREST
    ),
    "timm lite0": lambda: timm_case(),
    "timm crop_pct 0.95 bilinear": lambda: timm_case(crop_pct=0.95, interpolation="bilinear"),
    "timm oblong": lambda: timm_case(input_size=(3, 30, 44)),
    "timm squash": lambda: timm_case(crop_mode="squash"),
    "timm border": lambda: timm_case(crop_mode="border", crop_pct=1.0),
    "timm lanczos": lambda: timm_case(interpolation="lanczos", crop_pct=0.9),
    "SigLIP": lambda: hf(transformers.SiglipImageProcessor(size={"height": 32, "width": 32})),
    "SigLIP pil": lambda: hf(transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})),
    "CLIP": lambda: hf(
        transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ),
    "CLIP pil": lambda: hf(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    ),
    "CLIP pil crop larger than resize": lambda: hf(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 35, "width": 33})
    ),
    "CLIP crop larger than resize": lambda: hf(
        transformers.CLIPImageProcessor(size={"shortest_edge": 30}, crop_size={"height": 35, "width": 33})
    ),
    "ViT": lambda: hf(transformers.ViTImageProcessor(size={"height": 32, "width": 30})),
    "ViT without normalisation": lambda: hf(transformers.ViTImageProcessor(size=32, do_normalize=False)),
    "DINOv2": lambda: hf(
        transformers.BitImageProcessor(
            size={"shortest_edge": 36},
            crop_size={"height": 31, "width": 31},
            image_mean=[0.5307, 0.5307, 0.5307],
            image_std=[0.2583, 0.2583, 0.2583],
        )
    ),
    "ConvNeXT small": lambda: hf(transformers.ConvNextImageProcessor(size={"shortest_edge": 32})),
    "ConvNeXT large": lambda: hf(transformers.ConvNextImageProcessor(size={"shortest_edge": 384})),
    "ConvNeXT small pil": lambda: hf(transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32})),
    "no resize": lambda: hf(
        transformers.CLIPImageProcessor(do_resize=False, crop_size={"height": 32, "width": 32}, resample=3)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_library(name: str) -> None:
    transform, reference = CASES[name]()
    images = PICTURES[:14] if name == "ConvNeXT large" else PICTURES
    for image in images:
        if transform.resize == "contain" and min(transform._resized(*image.shape[:2])) < 1:
            continue  # the library fails; see test_impossible_geometry_is_a_sample_error
        pixels = transform.apply(image)
        expected = reference(Image.fromarray(image))
        assert pixels.dtype == torch.uint8
        assert pixels.is_contiguous()
        values = transform.normalize(pixels[None])[0]
        assert values.dtype == torch.float32
        # One grey level is 1/255/std > 0.01: within 1e-6, every pixel is the same byte.
        assert (values - expected).abs().max() <= 1e-6, (name, image.shape)
        if transform.normalization == "fused" or not name.startswith(("SigLIP", "CLIP", "ViT", "Conv", "no")):
            assert torch.equal(values, expected), (name, image.shape)


@pytest.mark.parametrize("name", CASES)
def test_grey_equals_repeated_grey(name: str) -> None:
    transform, _ = CASES[name]()
    for image in PICTURES[::5]:
        if transform.resize == "contain" and min(transform._resized(*image.shape[:2])) < 1:
            continue
        grey = np.ascontiguousarray(image[:, :, 0])
        assert torch.equal(transform.apply(grey), transform.apply(np.repeat(grey[:, :, None], 3, axis=2)))


def test_real_presets() -> None:
    """The full-size configurations, on one ordinary and one tall image."""
    rng = np.random.default_rng(3)
    resnet = torchvision.models.ResNet50_Weights
    efficientnet = timm.data.resolve_data_config(pretrained_cfg={"interpolation": "bicubic", "crop_pct": 0.875})
    references: list[tuple[ImageTransform, Reference]] = [
        open_clip_case(),
        *((from_torchvision(w.transforms()), w.transforms()) for w in (resnet.IMAGENET1K_V1, resnet.IMAGENET1K_V2)),
        (from_timm(efficientnet), timm.data.create_transform(**efficientnet)),
    ]
    for image in (picture(rng, 300, 411), picture(rng, 701, 260)):
        for transform, reference in references:
            assert torch.equal(transform.normalize(transform.apply(image)[None])[0], reference(Image.fromarray(image)))


def test_open_clip_model_carries_its_own_configuration() -> None:
    model = open_clip.create_model("RN50", pretrained=None, force_image_size=64, load_weights=False)
    transform = from_open_clip(model.visual.preprocess_cfg)
    assert (transform.resize, transform.size, transform.crop) == ("shortest", (64, 64), (64, 64))
    assert transform.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)


@pytest.mark.parametrize("name", CASES)
def test_device_path_has_the_same_geometry(name: str) -> None:
    """Resamplings differ where a hard edge overshoots, by little on average; a shift of one pixel moves everything."""
    transform, _ = CASES[name]()
    if transform.interpolation == "nearest":
        pytest.skip("Pillow and torch take another neighbour at ties")
    for image in PICTURES[11:20]:
        fast = transform.apply_on_device(torch.from_numpy(image), "cpu")
        assert fast.dtype == torch.uint8
        exact = transform.apply(image).float()
        differs = (fast.float() - exact).abs().mean()
        moved = (fast.float()[:, :, 1:] - exact[:, :, :-1]).abs().mean()
        assert differs <= 1
        assert moved > 10 * max(differs, 0.1)


def test_to_dict_is_json_and_tells_transforms_apart() -> None:
    transforms = [build()[0] for build in CASES.values()]
    states = [canonical_json(transform.to_dict()) for transform in transforms]
    assert [json.loads(state) for state in states] == [transform.to_dict() for transform in transforms]
    assert len(set(states)) == len(set(transforms)) == len(CASES)


def test_normalize_leaves_its_input_alone() -> None:
    transform, _ = CASES["open_clip shortest"]()
    batch = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).reshape(2, 3, 4, 4)
    before = batch.clone()
    transform.normalize(batch)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_impossible_geometry_is_a_sample_error(shape: tuple[int, int]) -> None:
    """One pixel high and 60,000 wide: resized to 224 rows it would need three thousand million pixels."""
    image = np.zeros((*shape, 3), np.uint8)
    with pytest.raises(SampleError, match="would be resized to") as caught:
        open_clip_case(size=224)[0].apply(image)
    assert caught.value.kind == "unsupported"
    with pytest.raises(SampleError, match="would be resized to"):
        open_clip_case(size=224, resize_mode="longest")[0].apply(image)


def test_decode_side_allows_scaled_decoding_except_without_resize() -> None:
    assert open_clip_case(size=32)[0].decode_side == 32
    assert open_clip_case(size=(24, 40))[0].decode_side == 40
    assert CASES["no resize"]()[0].decode_side is None


class Sharpening(transformers.CLIPImageProcessor):
    def resize(self, image: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return super().resize(image, *args, **kwargs) * 2


class ExtraKey(transformers.CLIPImageProcessor):
    class valid_kwargs(transformers.CLIPImageProcessor.valid_kwargs, total=False):  # noqa: N801
        do_sharpen: bool

    do_sharpen = True


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: from_hf(Sharpening()), "its own 'resize'"),
        (lambda: from_hf(ExtraKey()), "'do_sharpen'"),
        (lambda: from_hf(transformers.CLIPImageProcessor(do_pad=True)), "'do_pad'"),
        (lambda: from_hf(transformers.Siglip2ImageProcessor()), "its own"),
        (lambda: from_hf(object()), "expected an image processor"),
        (lambda: from_hf(transformers.CLIPImageProcessor(resample=4)), "resample"),
        (
            lambda: from_hf(transformers.CLIPImageProcessor(size={"shortest_edge": 30, "longest_edge": 60})),
            "longest_edge",
        ),
        (lambda: from_hf(transformers.ConvNextImageProcessor(do_center_crop=True, size=224)), "crop_pct"),
        (lambda: from_open_clip({"size": 224, "mean": HALF, "std": HALF, "sharpen": 1}), "'sharpen'"),
        (lambda: from_open_clip({"size": 224, "mean": HALF}), "'std' is missing"),
        (lambda: from_open_clip({"size": 224, "mean": HALF, "std": HALF, "resize_mode": "tile"}), "'tile'"),
        (lambda: from_open_clip({"size": 224, "mean": HALF, "std": HALF, "mode": "L"}), "mode"),
        (lambda: from_open_clip({"size": 224, "mean": HALF, "std": HALF, "interpolation": "area"}), "'area'"),
        (lambda: from_open_clip("ViT-B-32"), "expected a mapping"),
        (lambda: timm_case(crop_mode="spiral")[0], "'spiral'"),
        (lambda: timm_case(input_size=(1, 28, 28))[0], "3 channels"),
        (lambda: from_timm({"input_size": (3, 8, 8), "mean": HALF, "std": HALF, "naflex": True}), "'naflex'"),
        (lambda: from_torchvision(torchvision.transforms.CenterCrop(3)), "ImageClassification"),
    ],
)
def test_what_is_not_known_is_refused_by_name(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
