"""Video transformers in transformers' format: VideoMAE, ViViT and TimeSformer as encoders of whole clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from torch import Tensor
from transformers import AutoVideoProcessor

from featurestore.blocks import listed_blocks, with_blocks
from featurestore.encoder import Embeddings, EncoderOptions
from featurestore.encoders._transformers import Checkpoint, architecture
from featurestore.errors import EncoderError
from featurestore.forward import freeze
from featurestore.pooling import choose_poolings, level_specs, pool_or_keep
from featurestore.spec import EncoderSpec
from featurestore.transform_sources import from_hf
from featurestore.video_encoder import FramesTransform, VideoEncoder
from featurestore.weights import weights_digest


@dataclass(frozen=True, kw_only=True)
class _VideoTower:
    """How one type of model encodes clips.

    Attributes
    ----------
    model_class
        The class in transformers that has the tower and no classifier.
    prefix
        Names of the leading tokens that are no patches.
    order
        How the other tokens lie in a clip.
    """

    model_class: str
    prefix: tuple[str, ...] = ("class",)
    order: str = "frames, each in raster order"


VIDEO_TOWERS = {
    "videomae": _VideoTower(model_class="VideoMAEModel", prefix=()),
    "vivit": _VideoTower(model_class="VivitModel"),
    "timesformer": _VideoTower(model_class="TimesformerModel", order="places in raster order, each in time"),
}


def video_encoder(checkpoint: Checkpoint, options: EncoderOptions, config: Any) -> VideoEncoder:
    """Return an encoder of clips.

    Parameters
    ----------
    checkpoint
        Where its weights and its processor are.
    options
        ``native``, which is what the model's own classifier is given before its norm: of VideoMAE the mean of the
        tokens, of the others (and of a VideoMAE whose configuration says so) the first one; ``cls`` where there is a
        class token, ``mean``, ``max`` or ``tokens``, also behind a block. Precision, stored type, device.
    config
        The model's configuration, of a `VIDEO_TOWERS` type.

    Raises
    ------
    EncoderError
        If the processor makes other frames than the network takes, or there is no such pooling.
    """
    tower = VIDEO_TOWERS[config.model_type]
    if getattr(config, "attention_type", None) == "space_only":
        raise EncoderError(f"{checkpoint.encoder}: a TimeSformer that attends to space only has no tokens of a clip")
    offered = ("native", *(["cls"] if tower.prefix else []), "mean", "max", "tokens")
    count = config.num_hidden_layers
    poolings = choose_poolings(options, offered, encoder=checkpoint.encoder, blocks=count)
    processor, model = checkpoint.load(
        lambda: (
            AutoVideoProcessor.from_pretrained(**checkpoint.settings),
            checkpoint.model(getattr(transformers, tower.model_class), config),
        )
    )
    transform = FramesTransform(frames=config.num_frames, image=from_hf(processor))
    _require_size(checkpoint.encoder, transform, config.image_size)
    if hasattr(model, "pooler"):
        model.register_module("pooler", None)
    model = freeze(model, options.device)
    averages = getattr(config, "use_mean_pooling", False)

    def compute(clips: Tensor, poolings: Sequence[str]) -> tuple[Embeddings, ...]:
        tokens = model(pixel_values=clips.transpose(1, 2)).last_hidden_state

        def read(pooling: str) -> Embeddings:
            if pooling == "native" and not averages:
                first: Tensor = tokens[:, 0]
                return first
            return pool_or_keep(tokens, "mean" if pooling == "native" else pooling, prefix=len(tower.prefix))

        return tuple(map(read, poolings))

    found = listed_blocks(checkpoint.encoder, model, poolings, count=count)
    reading = with_blocks(compute, found, poolings, prefix=len(tower.prefix))
    spec = EncoderSpec(
        family="huggingface",
        modality="video",
        architecture=architecture(model, config),
        weights=weights_digest(model),
        preprocess=transform.to_dict(),
        layer="last_hidden_state",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=config.hidden_size,
    )
    return VideoEncoder(
        spec=level_specs(
            spec,
            poolings,
            options,
            layer="last_hidden_state",
            dims=[config.hidden_size] * len(poolings),
            tokens={"order": tower.order, "prefix": list(tower.prefix)},
        ),
        transform=transform,
        compute=lambda clips: reading(clips, poolings),
        reference_transform=_reference(processor),
        network=model,
        device=options.device,
    )


def _reference(processor: Any) -> Callable[[Tensor], Tensor]:
    """Return the processor as a function of the uint8 frames of a clip, (t, 3, h, w)."""

    def transform(frames: Tensor) -> Tensor:
        pixels: Tensor = processor(frames, return_tensors="pt")["pixel_values"][0]
        return pixels.transpose(0, 1)

    return transform


def _require_size(encoder: str, transform: FramesTransform, image_size: int | Sequence[int]) -> None:
    """Refuse a checkpoint whose processor makes frames of another size than its network takes."""
    made = transform.image.crop or transform.image.size
    expected = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if made != expected:
        raise EncoderError(
            f"{encoder}: the processor makes frames of {made[0]}x{made[1]} pixels and the network takes "
            f"{expected[0]}x{expected[1]}; mend preprocessor_config.json or video_preprocessor_config.json"
        )
