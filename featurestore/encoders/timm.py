"""Image models of timm, cut before the classifier: NAME[.TAG], NAME[.TAG]@FILE, NAME/random:SEED."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from featurestore.encoder import Embeddings, Encoder, EncoderOptions
from featurestore.encoders._names import ModelName, require_images, unknown
from featurestore.errors import WeightsUnavailable
from featurestore.forward import freeze, is_convolutional
from featurestore.hub import from_cache_or_hub
from featurestore.image_encoder import ImageEncoder
from featurestore.pooling import choose_poolings, level_specs, pool_or_keep, raster
from featurestore.spec import EncoderSpec
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
        network's last feature map), precision, stored type, device.

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
    compute, levels = readings(model, options, encoder=encoder)
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
    model: Any, options: EncoderOptions, *, encoder: str
) -> tuple[Callable[[Tensor], tuple[Embeddings, ...]], Callable[[EncoderSpec], tuple[EncoderSpec, ...]]]:
    """Return how a model without its classifier is read at the poolings that were asked for.

    Parameters
    ----------
    model
        A model of timm.
    options
        Know the poolings.
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
        If the model has no such pooling.
    """
    prefix = prefix_tokens(model)
    offered = ("native", *(["cls"] if "class" in prefix else []), "mean", "max", "tokens")
    poolings = choose_poolings(options, offered, encoder=encoder)

    def compute(images: Tensor) -> tuple[Embeddings, ...]:
        features = model.forward_features(images)

        def read(pooling: str) -> Embeddings:
            if pooling == "native":
                vectors: Tensor = model.forward_head(features, pre_logits=True)
                return vectors
            return pool_or_keep(_tokens(model, features), pooling, prefix=len(prefix))

        return tuple(map(read, poolings))

    def levels(native: EncoderSpec) -> tuple[EncoderSpec, ...]:
        return level_specs(
            native,
            poolings,
            options,
            layer="last_hidden_state",
            dim=model.num_features,
            tokens={"order": "raster", "prefix": prefix},
        )

    return compute, levels


def prefix_tokens(model: Any) -> list[str]:
    """Return the names of a transformer's leading tokens that are no patches."""
    tokens = {"class": "cls_token", "distillation": "dist_token"}
    named = [name for name, attribute in tokens.items() if getattr(model, attribute, None) is not None]
    count = getattr(model, "num_prefix_tokens", 0)
    return [*named, *["register"] * (count - len(named))][:count]


def _tokens(model: Any, features: Tensor) -> Tensor:
    """Return what a model gives its pooling as tokens: those of a transformer, or the places of a feature map."""
    if features.ndim == 3:
        return features
    return raster(features, channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC")


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
