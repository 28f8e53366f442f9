"""Models of images and of videos, cut before the classifier: NAME/WEIGHTS, NAME@FILE, NAME/random:SEED."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from featurestore.encoder import Embeddings, Encoder, EncoderOptions
from featurestore.encoders import _torchvision_video
from featurestore.encoders._names import ModelName, require_images, unknown
from featurestore.errors import EncoderError, WeightsUnavailable
from featurestore.forward import freeze, is_convolutional
from featurestore.image_encoder import ImageEncoder
from featurestore.pooling import choose_poolings, level_specs, pool_or_keep, raster
from featurestore.spec import EncoderSpec
from featurestore.transform_sources import from_torchvision
from featurestore.weights import assign_weights, first_line, load_weights, seeded, weights_digest

_POOLINGS = ("adaptive_avg_pool2d", "mean")
"""What models call that pool by a function and not by a module."""

_EXAMPLE = "torchvision:resnet50/IMAGENET1K_V2"
_UNTRAINED: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}
"""What these two set by themselves only where torchvision loads their published weights."""


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an encoder of images or of videos: the input of a torchvision model's last layer, or what that pools.

    Parameters
    ----------
    name
        ``resnet50/IMAGENET1K_V2``, ``mvit_v2_s/KINETICS400_V1``; ``resnet50@/path/to/state_dict.pt``, with the
        preprocessing of a tag put before the ``@`` or else of the default weights; or ``resnet50/random:0``.
        ``DEFAULT`` is resolved to the tag it stands for.
    options
        Pooling (``native``; ``mean``, ``max`` and ``tokens`` of an image model's last feature map, or of a
        transformer's tokens; ``cls`` where these have one), precision, stored type and device.

    Raises
    ------
    UnknownEncoder
        If there is no such model, or it has no such weights.
    WeightsUnavailable
        If weights are not named, neither cached nor reachable, or do not fit.
    EncoderError
        If another modality or pooling was asked for.
    """
    encoder, parsed = f"torchvision:{name}", ModelName.parse(name)
    if parsed.model not in _torchvision_video.NAMES:
        require_images(encoder, options)
    weights = _published_weights(encoder, parsed)
    model, dim = _build(encoder, parsed, weights)
    model = freeze(model, options.device)
    if parsed.model in _torchvision_video.NAMES:
        return _torchvision_video.video_encoder(
            model, name=parsed.model, dim=dim, weights=weights, options=options, encoder=encoder
        )
    preset = weights.transforms()
    transform = from_torchvision(preset)
    is_transformer = isinstance(model, models.VisionTransformer)
    offered = ("native", *(["cls"] if is_transformer else []), "mean", "max", "tokens")
    poolings = choose_poolings(options, offered, encoder=encoder)
    native = EncoderSpec(
        family="torchvision",
        modality="image",
        architecture={"class": type(model).__name__, "name": parsed.model},
        weights=weights_digest(model),
        preprocess=transform.to_dict(),
        layer="pre_logits",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=dim,
    )
    read = model if poolings == ("native",) else _TokenReader(encoder, model, poolings)
    levels = level_specs(
        native,
        poolings,
        options,
        layer="last_hidden_state" if is_transformer else "last_feature_map",
        dim=read.dim(transform.crop or transform.size, options.device) if isinstance(read, _TokenReader) else dim,
        tokens={"order": "raster", "prefix": ["class"] if is_transformer else []},
    )
    return ImageEncoder(
        spec=levels,
        transform=transform,
        compute=read,
        reference_transform=preset,
        network=model,
        device=options.device,
        channels_last=is_convolutional(model),
    )


class _TokenReader:
    """A model that is read before its pooling: the places of the last feature map, or a transformer's tokens.

    Parameters
    ----------
    encoder
        The encoder's id, for messages.
    model
        A classification model without its classifier.
    poolings
        What to read; ``native`` is the model's own output.

    Raises
    ------
    EncoderError
        If the model pools no feature map.
    """

    def __init__(self, encoder: str, model: nn.Module, poolings: Sequence[str]) -> None:
        _, names = get_graph_node_names(model, suppress_diff_warning=True)
        taken = {_before_pooling(encoder, model, names): "tokens", names[-1]: "native"}
        self._features = create_feature_extractor(model, taken, suppress_diff_warning=True)
        self._poolings = tuple(poolings)
        self._prefix = int(isinstance(model, models.VisionTransformer))

    def __call__(self, images: Tensor) -> tuple[Embeddings, ...]:
        """Return the embeddings of each pooling."""
        out = self._features(images)
        tokens = out["tokens"] if out["tokens"].ndim == 3 else raster(out["tokens"])
        return tuple(
            out["native"] if pooling == "native" else pool_or_keep(tokens, pooling, prefix=self._prefix)
            for pooling in self._poolings
        )

    def dim(self, size: tuple[int, int], device: str) -> int:
        """Return the length of a token; images are of this height and width."""
        with torch.inference_mode():
            tokens: Tensor = self._features(torch.zeros(1, 3, *size, device=device))["tokens"]
        return tokens.shape[1 if tokens.ndim == 4 else 2]


def _before_pooling(encoder: str, model: nn.Module, names: Sequence[str]) -> str:
    """Return the name of what a model pools last, among the names of all its steps in the order of computation."""
    if isinstance(model, models.VisionTransformer):
        return "encoder.ln"
    modules = dict(model.named_modules())
    for step in range(len(names) - 1, 0, -1):
        if names[step] in _POOLINGS or isinstance(modules.get(names[step]), nn.AdaptiveAvgPool2d):
            return names[step - 1]
    raise EncoderError(f"{encoder}: pools no feature map, so it has no tokens")


def _published_weights(encoder: str, parsed: ModelName) -> Any:
    """Return the published weights that are named, or those whose preprocessing other weights use."""
    known = [*models.list_models(module=models), *_torchvision_video.NAMES]
    if parsed.model not in known:
        raise unknown("torchvision model", parsed.model, known, example=_EXAMPLE)
    tags = models.get_model_weights(parsed.model)
    if parsed.tag is None and parsed.path is None and parsed.seed is None:
        raise WeightsUnavailable(
            f"{encoder}: name the weights: {', '.join(f'{encoder}/{tag.name}' for tag in tags)}; "
            f"{encoder}@/path/to/state_dict.pt; or, untrained, {encoder}/random:0"
        )
    tag = parsed.tag or "DEFAULT"
    if tag not in tags.__members__:
        raise unknown(f"weights of torchvision's {parsed.model}", tag, tags.__members__, example=_EXAMPLE)
    return tags[tag]


def _build(encoder: str, parsed: ModelName, weights: Any) -> tuple[nn.Module, int]:
    """Return the model without its classifier, and the length of what the classifier was given."""
    if parsed.path is None and parsed.seed is None:
        model = _published_model(encoder, parsed, weights)
    else:
        with seeded(parsed.seed or 0):
            model = models.get_model(parsed.model, weights=None, **_UNTRAINED.get(parsed.model, {}))
    # In every classification model of torchvision the last layer with weights is the classifier.
    name, classifier = [
        (name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d)
    ][-1]
    dim = classifier.in_features if isinstance(classifier, nn.Linear) else classifier.in_channels
    model.set_submodule(name, nn.Identity())
    if parsed.path is not None:
        assign_weights(model, load_weights(parsed.path), path=parsed.path, ignored=(f"{name}.",))
    return model, dim


def _published_model(encoder: str, parsed: ModelName, weights: Any) -> nn.Module:
    try:
        # A download announces itself on stdout, which belongs to our results, and draws a bar of its own.
        with redirect_stdout(io.StringIO()):
            model: nn.Module = models.get_model(parsed.model, weights=weights, progress=False)
    except (OSError, RuntimeError) as error:
        raise WeightsUnavailable(
            f"{encoder}: {weights.url} is neither in the cache of torch.hub nor reachable ({first_line(error)}). Run "
            f"once with a network, or give the file: torchvision:{parsed.model}/{weights.name}@/path/to/file.pth"
        ) from error
    return model
