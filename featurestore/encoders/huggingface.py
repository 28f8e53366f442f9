"""Images, videos and texts of models in the format of transformers: ORG/NAME[@REVISION] or /local/folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from PIL import Image
from torch import Tensor, float32, nn, zeros
from transformers import AutoConfig, AutoImageProcessor

from featurestore.blocks import listed_blocks, with_blocks
from featurestore.chunks import make_text_encoder
from featurestore.encoder import Embeddings, Encoder, EncoderOptions
from featurestore.encoders._huggingface_video import VIDEO_TOWERS, video_encoder
from featurestore.encoders._names import split_seed
from featurestore.encoders._transformers import Checkpoint, HubTokenizer, architecture, bert_encoder, text_limit
from featurestore.errors import EncoderError, UnknownEncoder, WeightsUnavailable
from featurestore.forward import freeze, is_convolutional
from featurestore.image_encoder import ImageEncoder
from featurestore.pooling import choose_poolings, choose_text_poolings, level_specs, pool_or_keep
from featurestore.spec import EncoderSpec
from featurestore.text_encoder import similarity_of
from featurestore.transform import ImageTransform
from featurestore.transform_sources import from_hf
from featurestore.weights import weights_digest


@dataclass(frozen=True, kw_only=True)
class _ImageTower:
    """How one type of model encodes images.

    Attributes
    ----------
    model_class
        The class in transformers that has this tower and nothing else.
    tower
        The part of a two-tower configuration it is made of; None takes the whole.
    layer
        The name of `native`'s place in the network.
    native
        From the model's output to its own embedding, not normalised.
    tokens
        From the model and its output to tokens after the last normalisation.
    prefix
        Names of the leading tokens that are no patches, registers apart.
    fixed_size
        Whether it takes images of its configured size only.
    """

    model_class: str = "AutoModel"
    tower: str | None = None
    layer: str = "last_hidden_state"
    native: Callable[[Any], Tensor] = lambda out: out.last_hidden_state[:, 0]
    tokens: Callable[[Any, Any], Tensor] = lambda _, out: out.last_hidden_state
    prefix: tuple[str, ...] = ("class",)
    fixed_size: bool = False


_CLIP = _ImageTower(
    model_class="CLIPVisionModelWithProjection",
    tower="vision_config",
    layer="projection",
    native=lambda out: out.image_embeds,
    # CLIP normalises its class token only; the same layer is meant for the others.
    tokens=lambda model, out: model.vision_model.post_layernorm(out.last_hidden_state),
    fixed_size=True,
)
_SIGLIP = _ImageTower(
    model_class="SiglipVisionModel",
    tower="vision_config",
    layer="attention_pool",
    native=lambda out: out.pooler_output,
    prefix=(),
    fixed_size=True,
)
_IMAGE_TOWERS = {
    "clip": _CLIP,
    "clip_vision_model": _CLIP,
    "siglip": _SIGLIP,
    "siglip_vision_model": _SIGLIP,
    "dinov2": _ImageTower(),
    "dinov2_with_registers": _ImageTower(),
    "dinov3_vit": _ImageTower(),
    "vit": _ImageTower(fixed_size=True),
    "deit": _ImageTower(prefix=("class", "distillation"), fixed_size=True),
}


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an image, text or video encoder of a checkpoint in the format of transformers.

    Parameters
    ----------
    name
        ``org/name``, ``org/name@revision``, a folder with ``config.json``, or such a folder and ``/random:0``.
    options
        Modality (needed for two towers), pooling, precision, stored type, device, and whether code in the checkpoint
        may run.

    Raises
    ------
    UnknownEncoder
        If there is no such folder or repository.
    WeightsUnavailable
        If files are missing, damaged or out of reach.
    EncoderError
        If the model has no such modality or pooling, or its type has no recipe here.
    """
    checkpoint = _checkpoint(name, options)
    config = checkpoint.load(lambda: AutoConfig.from_pretrained(**checkpoint.settings))
    kind = config.model_type
    two_towers = kind in ("clip", "siglip")
    if options.modality is None and two_towers:
        raise EncoderError(f"{checkpoint.encoder} has an image and a text tower: say which by naming the modality")
    if kind in VIDEO_TOWERS and options.modality in (None, "video"):
        return video_encoder(checkpoint, options, config)
    wants_image = options.modality == "image" or (options.modality is None and kind in _IMAGE_TOWERS)
    if wants_image and kind in _IMAGE_TOWERS:
        return _image_encoder(checkpoint, options, config, _IMAGE_TOWERS[kind])
    if wants_image:
        raise EncoderError(
            f"{checkpoint.encoder}: no recipe for images of model_type {kind!r}; known: {', '.join(_IMAGE_TOWERS)}. "
            f"Wrap it as py:module:factory"
        )
    if options.modality not in (None, "text") or (kind in {*_IMAGE_TOWERS, *VIDEO_TOWERS} and not two_towers):
        raise EncoderError(f"{checkpoint.encoder}: model_type {kind!r} does not encode {options.modality}")
    if two_towers:
        return _contrastive_text_encoder(checkpoint, options, config)
    return bert_encoder(checkpoint, options, family="huggingface", config=config)


def _checkpoint(name: str, options: EncoderOptions) -> Checkpoint:
    base, seed = split_seed(name)
    folder = Path(base).expanduser()
    trust = options.trust_remote_code
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise WeightsUnavailable(f"hf:{name}: {folder} has no config.json; expected what save_pretrained writes")
        source = str(folder.resolve())
        return Checkpoint(encoder=f"hf:{name}", source=source, seed=seed, trust_remote_code=trust)
    if base.startswith(("/", ".", "~")) or base.count("/") > 1:
        raise UnknownEncoder(f"hf:{name}: no folder {folder}")
    if seed is not None:
        raise UnknownEncoder(f"hf:{name}: random weights need a folder with a config.json: hf:/path/to/folder/random:0")
    repo, _, revision = base.partition("@")
    return Checkpoint(encoder=f"hf:{name}", source=repo, revision=revision or None, trust_remote_code=trust)


def _image_encoder(checkpoint: Checkpoint, options: EncoderOptions, config: Any, tower: _ImageTower) -> ImageEncoder:
    prefix = [*tower.prefix, *["register"] * getattr(config, "num_register_tokens", 0)]
    tower_config = _tower_config(config, tower.tower)
    offered, blocks = ("native", *(["cls"] if prefix else []), "mean", "max", "tokens"), tower_config.num_hidden_layers
    poolings = choose_poolings(options, offered, encoder=checkpoint.encoder, blocks=blocks)
    model_class = getattr(transformers, tower.model_class)
    processor, model = checkpoint.load(
        lambda: (
            AutoImageProcessor.from_pretrained(**checkpoint.settings),
            checkpoint.model(model_class, tower_config),
        )
    )
    transform = from_hf(processor)
    if tower.fixed_size:
        _require_size(checkpoint.encoder, transform, tower_config.image_size)
    if hasattr(model, "pooler"):
        model.register_module("pooler", None)
    model = freeze(model, options.device)

    def compute(images: Tensor, poolings: Sequence[str]) -> tuple[Embeddings, ...]:
        out = model(pixel_values=images)

        def read(pooling: str) -> Embeddings:
            if pooling == "native":
                return tower.native(out)
            return pool_or_keep(tower.tokens(model, out), pooling, prefix=len(prefix))

        return tuple(map(read, poolings))

    found = listed_blocks(checkpoint.encoder, model, poolings, count=blocks)
    reading = with_blocks(compute, found, poolings, prefix=len(prefix))

    def reference_transform(image: Image.Image) -> Tensor:
        pixels: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    spec = EncoderSpec(
        family="huggingface",
        modality="image",
        architecture=architecture(model, tower_config),
        weights=weights_digest(model),
        preprocess=transform.to_dict(),
        layer=tower.layer,
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=tower_config.projection_dim if tower is _CLIP else tower_config.hidden_size,
    )
    return ImageEncoder(
        spec=level_specs(
            spec,
            poolings,
            options,
            layer="last_hidden_state",
            dims=[tower_config.hidden_size] * len(poolings),
            tokens={"order": "raster", "prefix": prefix},
        ),
        transform=transform,
        compute=lambda images: reading(images, poolings),
        reference_transform=reference_transform,
        network=model,
        device=options.device,
        channels_last=is_convolutional(model),
    )


def _contrastive_text_encoder(checkpoint: Checkpoint, options: EncoderOptions, config: Any) -> Encoder:
    """Return the text tower of CLIP or SigLIP, not normalised."""
    is_clip = config.model_type == "clip"
    # Which of SigLIP's tokens are padding it does not know itself, and its padding is never stored.
    offered = ("native", "mean", "max", "tokens") if is_clip else ("native",)
    tower_config = _tower_config(config, "text_config")
    blocks = tower_config.num_hidden_layers
    poolings = choose_text_poolings(options, offered, encoder=checkpoint.encoder, blocks=blocks)
    model_class = transformers.CLIPTextModelWithProjection if is_clip else transformers.SiglipTextModel
    tokenizer, model = checkpoint.load(lambda: (checkpoint.tokenizer(), checkpoint.model(model_class, tower_config)))
    model = freeze(model, options.device)
    tokenize = HubTokenizer(
        tokenizer,
        max_length=text_limit(checkpoint.encoder, tokenizer, tower_config),
        # SigLIP was trained on padded texts, without a mask: the padding is part of what it reads.
        padding="longest" if is_clip else "max_length",
        inputs=["input_ids", "attention_mask"] if is_clip else ["input_ids"],
        run_on=options.device,
    )

    def compute(inputs: Mapping[str, Tensor], poolings: Sequence[str]) -> tuple[Embeddings, ...]:
        out = model(**inputs)

        def read(pooling: str) -> Embeddings:
            if pooling == "native":
                vectors: Tensor = out.text_embeds if is_clip else out.pooler_output
                return vectors
            return pool_or_keep(out.last_hidden_state, pooling, mask=inputs["attention_mask"])

        return tuple(map(read, poolings))

    spec = EncoderSpec(
        family="huggingface",
        modality="text",
        architecture=architecture(model, tower_config),
        weights=weights_digest(model),
        preprocess=tokenize.to_dict(),
        layer="projection",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=tower_config.projection_dim if is_clip else tower_config.projection_size,
    )
    tokens = {"order": "text", "prefix": [], "special": "kept"}
    dims = [tower_config.hidden_size] * len(poolings)
    levels = level_specs(spec, poolings, options, layer="last_hidden_state", dims=dims, tokens=tokens)
    similarity = _similarity(checkpoint, config)
    found = listed_blocks(checkpoint.encoder, model, poolings, count=blocks)
    reading = with_blocks(compute, found, poolings, mask_of=lambda inputs: inputs["attention_mask"])
    return make_text_encoder(
        levels=levels,
        tokenizer=tokenize,
        compute=reading,
        network=model,
        device=options.device,
        similarity=similarity,
    )


class _Logits(transformers.PreTrainedModel):  # type: ignore[misc]
    """What stands between the towers of CLIP and SigLIP: loading it reads two numbers and no tower."""

    _supports_sdpa = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        is_siglip = config.model_type == "siglip"
        self.logit_scale = nn.Parameter(zeros(1 if is_siglip else ()))
        if is_siglip:
            self.logit_bias = nn.Parameter(zeros(1))
        self.post_init()


def _similarity(checkpoint: Checkpoint, config: Any) -> dict[str, float] | None:
    """Return scale and bias of the logits; None for random weights and for a checkpoint of the text tower alone."""
    if checkpoint.seed is not None:
        return None
    model, report = checkpoint.load(
        lambda: _Logits.from_pretrained(**checkpoint.settings, config=config, dtype=float32, output_loading_info=True)
    )
    return None if report["missing_keys"] else similarity_of(model.logit_scale, getattr(model, "logit_bias", None))


def _tower_config(config: Any, tower: str | None) -> Any:
    """Return the configuration of one tower, with the length of the common space, which CLIP states outside it."""
    tower_config = getattr(config, tower, None) if tower else None
    if tower_config is None:
        return config
    if config.model_type == "clip":
        tower_config.projection_dim = config.projection_dim
    return tower_config


def _require_size(encoder: str, transform: ImageTransform, image_size: int | list[int]) -> None:
    """Refuse a checkpoint whose processor makes images of another size than its network takes."""
    made = transform.crop or transform.size
    expected = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    if made != expected:
        raise EncoderError(
            f"{encoder}: the processor makes images of {made[0]}x{made[1]} pixels and the network takes "
            f"{expected[0]}x{expected[1]}; mend preprocessor_config.json"
        )
