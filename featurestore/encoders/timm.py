"""Image models of timm, cut before the classifier: NAME[.TAG], NAME[.TAG]@FILE, NAME/random:SEED."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from featurestore.blocks import Compute, as_tokens, output_dims, with_blocks
from featurestore.encoder import Embeddings, Encoder, EncoderOptions
from featurestore.encoders._names import ModelName, require_images, unknown
from featurestore.errors import EncoderError, WeightsUnavailable
from featurestore.forward import freeze, is_convolutional
from featurestore.hub import from_cache_or_hub
from featurestore.image_encoder import ImageEncoder
from featurestore.pooling import choose_poolings, level_specs, pool_or_keep
from featurestore.pooling_text import Pooling
from featurestore.spec import EncoderSpec
from featurestore.transform import ImageTransform
from featurestore.transform_sources import from_timm
from featurestore.weights import assign_weights, first_line, load_weights, seeded, weights_digest

_EXAMPLE = "timm:vit_small_patch16_224.augreg_in21k_ft_in1k"


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an image encoder: what a timm model gives its classifier.

    Parameters
    ----------
    name
        ``vit_small_patch16_224.augreg_in21k_ft_in1k``, the first tag where none is named; ``NAME@/path/to/file``
        with the preprocessing of that tag; or ``NAME/random:0``.
    options
        Pooling (``native``; ``cls`` of a transformer, ``mean``, ``max`` and ``tokens`` of a transformer's tokens or a
        network's last feature map, or behind a block), precision, stored type, device.

    Raises
    ------
    UnknownEncoder
        If there is no such model or tag.
    WeightsUnavailable
        If the weights are neither cached nor reachable, or do not fit.
    EncoderError
        If the model has no such modality or pooling.
    """
    encoder, parsed = f"timm:{name}", ModelName.parse(name)
    require_images(encoder, options)
    _require_known(encoder, parsed)
    model = _build(encoder, parsed)
    data_config = resolve_data_config({}, model=model)
    transform = from_timm(data_config)
    model = freeze(model, options.device)
    architecture = {"class": type(model).__name__, "name": parsed.model.partition(".")[0]}
    compute, levels = readings(model, options, transform, encoder=encoder)
    spec = EncoderSpec(
        family="timm",
        modality="image",
        architecture=architecture,
        weights=weights_digest(model),
        preprocess=transform.to_dict(),
        layer="pre_logits",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=model.head_hidden_size,
    )
    return ImageEncoder(
        spec=levels(spec),
        transform=transform,
        compute=compute,
        reference_transform=create_transform(**data_config, is_training=False),
        network=model,
        device=options.device,
        channels_last=is_convolutional(model),
    )


def readings(
    model: Any, options: EncoderOptions, transform: ImageTransform, *, encoder: str
) -> tuple[Callable[[Tensor], tuple[Embeddings, ...]], Callable[[EncoderSpec], tuple[EncoderSpec, ...]]]:
    """Return how a model without its classifier is read at the poolings that were asked for.

    Parameters
    ----------
    model
        A model of timm.
    options
        Know the poolings.
    transform
        Makes its images.
    encoder
        The encoder's id, for messages.

    Returns
    -------
    compute
        From images to the embeddings of each pooling.
    levels
        From the specification of ``native`` to that of each pooling.

    Raises
    ------
    EncoderError
        If the model has no such pooling or block.
    """
    prefix, blocks = prefix_tokens(model), blocks_of(model)
    offered = ("native", *(["cls"] if "class" in prefix else []), "mean", "max", "tokens")
    poolings = choose_poolings(options, offered, encoder=encoder, blocks=len(blocks))

    def compute(images: Tensor, poolings: Sequence[str]) -> tuple[Embeddings, ...]:
        features = model.forward_features(images)

        def read(pooling: str) -> Embeddings:
            if pooling == "native":
                vectors: Tensor = model.forward_head(features, pre_logits=True)
                return vectors
            return pool_or_keep(as_tokens(features, channels_last=is_channels_last(model)), pooling, prefix=len(prefix))

        return tuple(map(read, poolings))

    read_all = with_blocks(compute, blocks, poolings, prefix=len(prefix), channels_last=is_channels_last(model))

    def read(images: Tensor) -> tuple[Embeddings, ...]:
        return read_all(images, poolings)

    dims = [model.num_features] * len(poolings)
    if any(Pooling.parse(pooling).block for pooling in poolings):
        black = torch.zeros(1, 3, *(transform.crop or transform.size), device=options.device)
        dims = output_dims(read, black)
        if prefix:
            _require_prefix(encoder, read_all, black, poolings)

    def levels(native: EncoderSpec) -> tuple[EncoderSpec, ...]:
        tokens = {"order": "raster", "prefix": prefix}
        return level_specs(native, poolings, options, layer="last_hidden_state", dims=dims, tokens=tokens)

    return read, levels


def blocks_of(model: Any) -> list[nn.Module]:
    """Return the blocks of a transformer, or the stages of another network, as timm's ``feature_info`` lists them.

    What comes before the first stage and is listed beside them (``act1`` before ``layer1``, ``stem`` before ``s1``) is
    none.
    """
    names = [row.get("module", "") for row in getattr(model, "feature_info", None) or ()]
    if len(names) > 1 and names[0].rstrip("0123456789") != names[1].rstrip("0123456789"):
        del names[0]
    with suppress(AttributeError):  # the list names something that the model does not have
        return [model.get_submodule(name) for name in names if name]
    return []


def _require_prefix(encoder: str, read: Compute[Tensor], images: Tensor, poolings: Sequence[str]) -> None:
    """Refuse blocks whose tokens are not those of the output: a class token that joins them later is none of theirs."""
    behind = [pooling.block for pooling in map(Pooling.parse, poolings) if pooling.block is not None]
    with torch.inference_mode():
        last, *others = read(images, ["tokens", *(f"tokens@{number}" for number in behind)])
    for number, tokens in zip(behind, others, strict=True):
        found, expected = len(tokens[0]), len(last[0])
        if found != expected:
            raise EncoderError(
                f"{encoder}: behind block {number} there are {found} tokens, and the output has {expected}: which of "
                f"them stand for no patch is not known"
            )


def is_channels_last(model: Any) -> bool:
    """Return whether a model of timm has feature maps of shape (n, h, w, d)."""
    return bool(getattr(model, "output_fmt", "NCHW") == "NHWC")


def prefix_tokens(model: Any) -> list[str]:
    """Return the names of a transformer's leading tokens that are no patches."""
    tokens = {"class": "cls_token", "distillation": "dist_token"}
    named = [name for name, attribute in tokens.items() if getattr(model, attribute, None) is not None]
    count = getattr(model, "num_prefix_tokens", 0)
    return [*named, *["register"] * (count - len(named))][:count]


def _require_known(encoder: str, parsed: ModelName) -> None:
    architecture, _, tag = parsed.model.partition(".")
    if not timm.is_model(architecture):
        raise unknown("timm model", architecture, timm.list_models(), example=_EXAMPLE)
    if tag and parsed.model not in timm.list_pretrained(f"{architecture}.*"):
        raise unknown("timm weights", parsed.model, timm.list_pretrained(f"{architecture}.*"), example=_EXAMPLE)
    if not tag and parsed.path is None and parsed.seed is None and not timm.list_pretrained(f"{architecture}.*"):
        raise WeightsUnavailable(
            f"{encoder}: timm has no weights of it; give a file, {encoder}@/path/to/file, or ask for untrained ones "
            f"by name, {encoder}/random:0"
        )


def _build(encoder: str, parsed: ModelName) -> Any:
    """Return the model without its classifier."""
    if parsed.seed is None and parsed.path is None:
        model = _published_model(encoder, parsed.model)
        model.reset_classifier(0)
        return model
    with seeded(parsed.seed or 0):
        model = timm.create_model(parsed.model, pretrained=False)
    model.reset_classifier(0)
    if parsed.path is not None:
        names = model.pretrained_cfg["classifier"]
        classifiers = (names,) if isinstance(names, str) else tuple(names)
        # The weights may have been trained for any number of classes.
        ignored = tuple(f"{name}." for name in classifiers)
        assign_weights(model, load_weights(parsed.path), path=parsed.path, ignored=ignored)
    return model


def _published_model(encoder: str, name: str) -> Any:
    repo = timm.get_pretrained_cfg(name).hf_hub_id
    if repo:
        return from_cache_or_hub(lambda: timm.create_model(name, pretrained=True), encoder=encoder, repo=repo)
    try:
        return timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise WeightsUnavailable(f"{encoder}: the weights cannot be loaded: {first_line(error)}") from error
