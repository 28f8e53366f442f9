"""Models of images and of videos, cut before the classifier: NAME/WEIGHTS, NAME@FILE, NAME/random:SEED."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

from torch import Tensor, nn
from torchvision import models

from featurestore.encoder import Encoder, EncoderOptions
from featurestore.encoders import _torchvision_video
from featurestore.encoders._names import ModelName, require_images, unknown
from featurestore.errors import WeightsUnavailable
from featurestore.forward import freeze, is_convolutional
from featurestore.image_encoder import ImageEncoder
from featurestore.pooling import choose_pooling
from featurestore.spec import EncoderSpec
from featurestore.transform_sources import from_torchvision
from featurestore.weights import assign_weights, first_line, load_weights, seeded, weights_digest

_EXAMPLE = "torchvision:resnet50/IMAGENET1K_V2"
_UNTRAINED: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True, "init_weights": False},
    "inception_v3": {"transform_input": True, "init_weights": False},
}
"""What these two set by themselves only where torchvision loads their published weights."""


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an encoder of images or of videos: the input of a torchvision model's last layer.

    Parameters
    ----------
    name
        ``resnet50/IMAGENET1K_V2``, ``mvit_v2_s/KINETICS400_V1``; ``resnet50@/path/to/state_dict.pt``, with the
        preprocessing of a tag put before the ``@`` or else of the default weights; or ``resnet50/random:0``.
        ``DEFAULT`` is resolved to the tag it stands for.
    options
        Precision, stored type and device; of videos' transformers also the pooling.

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
    spec = EncoderSpec(
        family="torchvision",
        modality="image",
        architecture={"class": type(model).__name__, "name": parsed.model},
        weights=weights_digest(model),
        preprocess=transform.to_dict(),
        layer="pre_logits",
        pooling=choose_pooling(options.pooling, ("native",), encoder=encoder),
        precision=options.precision,
        dtype=options.dtype,
        dim=dim,
    )

    def compute(images: Tensor) -> Tensor:
        vectors: Tensor = model(images)
        return vectors

    return ImageEncoder(
        spec=spec,
        transform=transform,
        compute=compute,
        reference_transform=preset,
        device=options.device,
        channels_last=is_convolutional(model),
    )


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
