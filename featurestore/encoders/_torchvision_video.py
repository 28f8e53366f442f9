"""Video models of torchvision: MViT, Video Swin, 3D ResNets and S3D as encoders of whole clips."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models.video import MViT, SwinTransformer3d

from featurestore.encoder import Embeddings, EncoderOptions
from featurestore.errors import EncoderError
from featurestore.pooling import choose_poolings, level_specs, pool_or_keep
from featurestore.spec import EncoderSpec
from featurestore.video_encoder import ClipTransform, VideoEncoder
from featurestore.weights import weights_digest

NAMES = frozenset(models.list_models(module=models.video))
_CLIP_LENGTH = re.compile(r"clip_len=(\d+)")
_MAX_FRAMES = 1024


def video_encoder(
    model: nn.Module, *, name: str, dim: int, weights: Any, options: EncoderOptions, encoder: str
) -> VideoEncoder:
    """Return an encoder of clips: the input of a video model's last layer, or its pooled tokens.

    Parameters
    ----------
    model
        The frozen model, its last layer an identity.
    name, dim
        Its name, and the length of what the last layer was given.
    weights
        The published weights whose transform and clip length hold.
    options
        ``native``, of MViT also called ``cls``; ``mean``, ``max`` or ``tokens`` of a transformer. Precision, stored
        type, device.
    encoder
        The encoder's id, for messages.

    Raises
    ------
    EncoderError
        If another pooling or modality was asked for.
    """
    if options.modality not in (None, "video"):
        raise EncoderError(f"{encoder} encodes video, not {options.modality}")
    poolings = choose_poolings(options, _poolings(model), encoder=encoder)
    preset = weights.transforms()
    transform = ClipTransform(
        frames=clip_length(weights),
        resize=tuple(preset.resize_size),
        crop=(preset.crop_size[0], preset.crop_size[1]),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    spec = EncoderSpec(
        family="torchvision",
        modality="video",
        architecture={"class": type(model).__name__, "name": name},
        weights=weights_digest(model),
        preprocess=transform.to_dict(),
        layer="pre_logits",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=dim,
    )
    prefix = ["class"] if isinstance(model, MViT) else []
    levels = level_specs(
        spec,
        poolings,
        options,
        layer="last_hidden_state",
        dim=dim,
        tokens={"order": "frames, each in raster order", "prefix": prefix},
    )
    return VideoEncoder(
        spec=levels,
        transform=transform,
        compute=_compute(model, poolings),
        reference_transform=preset,
        network=model,
        device=options.device,
    )


def clip_length(weights: Any) -> int:
    """Return how many frames the clips have on which torchvision states the weights' accuracy: 16 of MViT.

    Raises
    ------
    EncoderError
        If it does not say.
    """
    stated = _CLIP_LENGTH.search(weights.meta.get("_docs", "").replace("`", ""))
    frames = int(stated[1]) if stated else int(weights.meta.get("min_temporal_size", 0))
    if not 1 <= frames <= _MAX_FRAMES:
        raise EncoderError(f"torchvision's {weights} do not say how many frames a clip has")
    return frames


def mvit_tokens(model: MViT, clips: Tensor) -> Tensor:
    """Return the tokens of an MViT after its last normalisation, the class token first.

    Parameters
    ----------
    model
        Of patch sizes that divide the clips.
    clips
        Normalised, (n, 3, t, h, w).

    Returns
    -------
    Tensor
        (n, 1 + t' h' w', d): of 16 frames of 224 pixels (n, 393, 768).
    """
    tokens = model.pos_encoding(model.conv_proj(clips).flatten(2).transpose(1, 2))
    size = (model.pos_encoding.temporal_size, *model.pos_encoding.spatial_size)
    for block in model.blocks:
        tokens, size = block(tokens, size)
    normed: Tensor = model.norm(tokens)
    return normed


def swin_tokens(model: SwinTransformer3d, clips: Tensor) -> Tensor:
    """Return the tokens of a Video Swin transformer after its last normalisation.

    Returns
    -------
    Tensor
        (n, t' h' w', d); their mean is what the classifier is given.
    """
    return _swin_maps(model, clips).flatten(1, 3)


def _swin_maps(model: SwinTransformer3d, clips: Tensor) -> Tensor:
    """Return the last feature maps: (n, t', h', w', d)."""
    normed: Tensor = model.norm(model.features(model.pos_drop(model.patch_embed(clips))))
    return normed


def _poolings(model: nn.Module) -> tuple[str, ...]:
    if isinstance(model, MViT):
        return ("native", "cls", "mean", "max", "tokens")
    return ("native", "mean", "max", "tokens") if isinstance(model, SwinTransformer3d) else ("native",)


def _compute(model: nn.Module, poolings: Sequence[str]) -> Callable[[Tensor], Any]:
    """Return the forward pass read at some poolings; ``native`` is the model's own output."""
    if tuple(poolings) == ("native",):
        return model

    def read(tokens: Tensor, native: Callable[[], Tensor], *, prefix: int) -> tuple[Embeddings, ...]:
        return tuple(native() if each == "native" else pool_or_keep(tokens, each, prefix=prefix) for each in poolings)

    def compute(clips: Tensor) -> tuple[Embeddings, ...]:
        if isinstance(model, MViT):
            tokens = mvit_tokens(model, clips)
            return read(tokens, lambda: model.head(tokens[:, 0]), prefix=1)
        assert isinstance(model, SwinTransformer3d)
        maps = _swin_maps(model, clips)
        return read(maps.flatten(1, 3), lambda: model.avgpool(maps.permute(0, 4, 1, 2, 3)).flatten(1), prefix=0)

    return compute
