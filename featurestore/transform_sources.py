"""Read an `ImageTransform` from a checkpoint's own configuration, never from its name.

A setting that would change pixels and that no function here knows is an error that names it: nothing
is approximated in silence. All of them see an image that is RGB (or grey) already; the libraries that
resize before they convert differ for palettes and transparency only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Literal, cast, get_args

from data.errors import ConfigError
from featurestore.transform import ImageTransform, Interpolation, Resize

Triple = tuple[float, float, float]


def from_open_clip(config: Any) -> ImageTransform:
    """Return the evaluation transform of an open_clip model.

    Parameters
    ----------
    config
        Its ``model.visual.preprocess_cfg``, a mapping, or open_clip's ``PreprocessCfg``.

    Raises
    ------
    ConfigError
        If the configuration holds a setting or a value that is not known here.
    """
    settings = _settings("open_clip preprocess_cfg", config)
    mode, resize_mode = settings.pop("mode", "RGB"), settings.pop("resize_mode", None) or "shortest"
    size, fill = _pair(settings.pop("size", 224)), _fill(settings.pop("fill_color", 0))
    interpolation = settings.pop("interpolation", None) or "bicubic"
    mean, std = _statistics(settings, "mean", "std")
    _refuse_rest("open_clip preprocess_cfg", settings)
    if mode != "RGB":
        raise ConfigError(f"open_clip preprocess_cfg: expected mode 'RGB', found {mode!r}")
    # "random" names a training augmentation; open_clip evaluates such models with bicubic.
    interpolation = _interpolation("bicubic" if interpolation == "random" else interpolation)
    if resize_mode == "squash":
        return ImageTransform(resize="squash", size=size, interpolation=interpolation, mean=mean, std=std)
    if resize_mode == "longest":
        return ImageTransform(
            resize="contain", size=size, crop=size, fill=fill, interpolation=interpolation, mean=mean, std=std
        )
    if resize_mode != "shortest":
        raise ConfigError(f"open_clip preprocess_cfg: resize_mode {resize_mode!r} is not known")
    if size[0] == size[1]:
        return ImageTransform(resize="shortest", size=size, crop=size, interpolation=interpolation, mean=mean, std=std)
    # open_clip resizes to an oblong target with bicubic whatever the configuration says.
    return ImageTransform(resize="cover", size=size, crop=size, interpolation="bicubic", mean=mean, std=std)


def from_torchvision(preset: Any) -> ImageTransform:
    """Return the transform of torchvision weights.

    Parameters
    ----------
    preset
        ``weights.transforms()``: an ``ImageClassification`` preset.

    Raises
    ------
    ConfigError
        If it is another kind of preset.
    """
    names = ("resize_size", "crop_size", "mean", "std", "interpolation")
    if type(preset).__name__ != "ImageClassification" or not all(hasattr(preset, name) for name in names):
        raise ConfigError(f"torchvision transform: expected an ImageClassification preset, found {type(preset)!r}")
    resize, crop = list(preset.resize_size), list(preset.crop_size)
    return ImageTransform(
        resize="shortest" if len(resize) == 1 else "squash",
        size=_pair(resize),
        crop=_pair(crop),
        interpolation=_interpolation(preset.interpolation.value),
        mean=_triple(preset.mean),
        std=_triple(preset.std),
    )


def from_timm(config: Mapping[str, Any]) -> ImageTransform:
    """Return the evaluation transform of a timm model.

    Parameters
    ----------
    config
        What ``timm.data.resolve_model_data_config(model)`` returns.

    Raises
    ------
    ConfigError
        If the configuration holds a setting or a value that is not known here.
    """
    settings = _settings("timm data config", config)
    channels, *size = settings.pop("input_size")
    crop_pct, crop_mode = settings.pop("crop_pct", None) or 0.875, settings.pop("crop_mode", None) or "center"
    interpolation = _interpolation(settings.pop("interpolation", "bilinear"))
    mean, std = _statistics(settings, "mean", "std")
    _refuse_rest("timm data config", settings)
    if channels != 3:
        raise ConfigError(f"timm data config: expected input_size of 3 channels, found {channels}")
    crop = _pair(size)
    scaled = math.floor(crop[0] / crop_pct), math.floor(crop[1] / crop_pct)
    resize: dict[str, Resize] = {
        "center": "shortest" if scaled[0] == scaled[1] else "cover",
        "squash": "squash",
        "border": "contain",
    }
    if crop_mode not in resize:
        raise ConfigError(f"timm data config: crop_mode {crop_mode!r} is not known; known: {', '.join(resize)}")
    red, green, blue = (round(255 * value) for value in mean)
    return ImageTransform(
        resize=resize[crop_mode],
        size=scaled,
        crop=crop,
        fill=(red, green, blue) if crop_mode == "border" else (0, 0, 0),
        interpolation=interpolation,
        mean=mean,
        std=std,
    )


def from_hf(processor: Any) -> ImageTransform:
    """Return the transform of a transformers image processor, of either backend.

    Parameters
    ----------
    processor
        A processor that resizes, crops, rescales and normalises as transformers' own base classes do (CLIP,
        SigLIP, ViT, DeiT, BiT and with it DINOv2, ...), as ConvNeXT's does, or as those of videos do with each frame
        (VideoMAE, TimeSformer, ViViT).

    Raises
    ------
    ConfigError
        If it computes its pixels in a way of its own, or holds a setting that is not known here.
    """
    backend = _hf_backend(processor)
    where = type(processor).__name__
    for name in set(processor.valid_kwargs.__annotations__) - _HF_KNOWN - _HF_HARMLESS:
        if getattr(processor, name, None) not in {None, False}:
            raise ConfigError(f"{where}: setting {name!r} is not known and might change pixels")
    if processor.do_pad:
        raise ConfigError(f"{where}: setting 'do_pad' would give images of several sizes; it is not supported")
    resize, size, resize_crop = _hf_resize(where, processor)
    crop = _hf_size(where, "crop_size", processor.crop_size) if processor.do_center_crop else resize_crop
    normalize, rescale = bool(processor.do_normalize), bool(processor.do_rescale)
    mean = _triple(processor.image_mean) if normalize else (0.0, 0.0, 0.0)
    offset = _hf_offset(processor) if rescale else 0.0
    return ImageTransform(
        resize=resize,
        size=size,
        crop=crop,
        crop_rule="transformers" if backend == "torch" else "transformers_pil",
        interpolation=_HF_FILTERS[int(processor.resample)] if resize != "none" else "bicubic",
        backend=backend,
        mean=(mean[0] + offset, mean[1] + offset, mean[2] + offset),
        std=_triple(processor.image_std) if normalize else (1.0, 1.0, 1.0),
        rescale=float(processor.rescale_factor) if rescale else 1.0,
        normalization="fused" if backend == "torch" and normalize and rescale else "sequential",
    )


_HF_KNOWN = {
    *("do_resize", "size", "default_to_square", "resample", "do_center_crop", "crop_size", "crop_pct"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "do_pad", "pad_size"),
}
_HF_HARMLESS = {
    *("do_convert_rgb", "data_format", "input_data_format", "device", "return_tensors", "disable_grouping"),
    *("image_seq_length", "do_reduce_labels"),
}
"""Settings of form, of placement or of label maps: they move no pixel of an RGB image."""

_HF_FILTERS: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

_HF_STEPS = (
    *("process_image", "resize", "center_crop", "rescale", "normalize", "rescale_and_normalize"),
    *("_preprocess", "_preprocess_image_like_inputs"),
)


def _hf_backend(processor: Any) -> Literal["pillow", "torch"]:
    """Return whose resampling a processor uses, after making sure that it computes nothing of its own."""
    from transformers import ConvNextImageProcessor, ConvNextImageProcessorPil, VivitVideoProcessor
    from transformers.image_processing_backends import PilBackend, TorchvisionBackend
    from transformers.video_processing_utils import BaseVideoProcessor

    # The more special ones first.
    bases: list[tuple[Literal["pillow", "torch"], tuple[type, ...]]] = [
        ("torch", (VivitVideoProcessor, BaseVideoProcessor, ConvNextImageProcessor, TorchvisionBackend)),
        ("pillow", (ConvNextImageProcessorPil, PilBackend)),
    ]
    for backend, classes in bases:
        known = next((each for each in classes if isinstance(processor, each)), None)
        if known is None:
            continue
        for step in _HF_STEPS:
            if getattr(type(processor), step, None) is not getattr(known, step, None):
                raise ConfigError(f"{type(processor).__name__}: its own {step!r} is not known and might change pixels")
        return backend
    raise ConfigError(f"{type(processor).__name__}: expected an image processor of transformers 5 or newer")


def _hf_offset(processor: Any) -> float:
    """Return what a processor takes from values it has scaled: that of ViViT 1, which makes -1..1 of them."""
    from transformers import VivitVideoProcessor

    return 1.0 if isinstance(processor, VivitVideoProcessor) else 0.0


def _hf_resize(where: str, processor: Any) -> tuple[Resize, tuple[int, int], tuple[int, int] | None]:
    """Return a processor's resize, its size, and the crop that is part of it (ConvNeXT)."""
    if not processor.do_resize:
        return "none", (0, 0), None
    if int(processor.resample) not in _HF_FILTERS:
        raise ConfigError(f"{where}: resample {processor.resample!r} is not known")
    crop_pct = getattr(processor, "crop_pct", None)
    sides = {name: value for name, value in dict(processor.size).items() if value is not None}
    if set(sides) != {"shortest_edge"}:
        return "squash", _hf_size(where, "size", processor.size), None
    short = int(sides["shortest_edge"])
    if crop_pct is None:
        return "shortest", (short, short), None
    if short >= 384:  # ConvNeXT's own rule: large inputs are squashed, small ones resized and cropped.
        return "squash", (short, short), None
    if processor.do_center_crop:  # Its crop within this crop: no checkpoint has both.
        raise ConfigError(f"{where}: 'do_center_crop' on top of 'crop_pct' is not supported")
    before = int(short / crop_pct)
    return "shortest", (before, before), (short, short)


def _hf_size(where: str, name: str, size: Any) -> tuple[int, int]:
    sides = {side: value for side, value in dict(size).items() if value is not None}
    if set(sides) != {"height", "width"}:
        raise ConfigError(f"{where}: {name} by {', '.join(sorted(sides))} is not supported; expected height and width")
    return int(sides["height"]), int(sides["width"])


def _settings(where: str, config: Any) -> dict[str, Any]:
    if is_dataclass(config) and not isinstance(config, type):
        return asdict(config)
    if isinstance(config, Mapping):
        return dict(config)
    raise ConfigError(f"{where}: expected a mapping, found {type(config)!r}")


def _refuse_rest(where: str, settings: Mapping[str, Any]) -> None:
    if settings:
        raise ConfigError(f"{where}: setting {min(settings)!r} is not known and might change pixels")


def _statistics(settings: dict[str, Any], mean: str, std: str) -> tuple[Triple, Triple]:
    missing = {mean, std} - settings.keys()
    if missing:
        raise ConfigError(f"image statistics: {min(missing)!r} is missing")
    return _triple(settings.pop(mean)), _triple(settings.pop(std))


def _triple(value: Any) -> Triple:
    values = [float(v) for v in value] if isinstance(value, list | tuple) else [float(value)] * 3
    if len(values) != 3:
        raise ConfigError(f"image statistics: expected 3 channels, found {len(values)}")
    return values[0], values[1], values[2]


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    if len(values) not in {1, 2}:
        raise ConfigError(f"image size: expected one number or two, found {value!r}")
    return int(values[0]), int(values[-1])


def _fill(value: Any) -> tuple[int, int, int]:
    red, green, blue = _triple(value)
    return int(red), int(green), int(blue)


def _interpolation(name: str) -> Interpolation:
    if name not in get_args(Interpolation):
        raise ConfigError(f"interpolation {name!r} is not known; known: {', '.join(get_args(Interpolation))}")
    return cast("Interpolation", name)
