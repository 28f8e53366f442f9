"""CLIP models of open_clip, image and text: ARCH/TAG, ARCH@FILE, hf-hub:ORG/NAME, local-dir:/PATH, ARCH/random:SEED."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import hf_hub_download
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2
from torch import Tensor, nn

from featurestore.chunks import make_text_encoder
from featurestore.encoder import Embeddings, Encoder, EncoderOptions
from featurestore.encoders._class_token import class_token_only
from featurestore.encoders._names import ModelName, split_seed, unknown
from featurestore.encoders._open_clip_tokenizer import OpenClipTokenizer
from featurestore.encoders._transformers import architecture
from featurestore.encoders.timm import prefix_tokens
from featurestore.errors import EncoderError, UnknownEncoder, WeightsUnavailable
from featurestore.forward import freeze, is_convolutional
from featurestore.hub import from_cache_or_hub
from featurestore.image_encoder import ImageEncoder
from featurestore.levels import as_levels
from featurestore.pooling import choose_poolings, choose_text_poolings, level_specs, pool_or_keep, raster
from featurestore.spec import EncoderSpec
from featurestore.text_encoder import similarity_of
from featurestore.transform_sources import from_open_clip
from featurestore.weights import first_line, seeded, weights_digest

_EXAMPLE = "open_clip:ViT-B-16/laion2b_s34b_b88k"
_CONFIG_FILE = "open_clip_config.json"
_TEXT_PARTS = ("text", "transformer", "token_embedding", "ln_final", "text_decoder")


@dataclass(frozen=True, kw_only=True)
class _Request:
    """Which model to make, in the words of `open_clip.create_model`.

    Attributes
    ----------
    encoder
        The encoder's id, for messages.
    model
        An architecture, ``hf-hub:org/name`` or ``local-dir:/path``.
    config
        The model's configuration as its source states it.
    pretrained
        A tag or a file; None where the source has the weights.
    quick_gelu
        Whether the activation must be QuickGELU although the architecture does not say so.
    seed
        Seed of random weights; None loads the real ones.
    """

    encoder: str
    model: str
    config: Mapping[str, Any]
    pretrained: str | None = None
    quick_gelu: bool = False
    seed: int | None = None

    def create(self) -> Any:
        """Return the model, on the CPU."""
        with _quiet(), seeded(self.seed or 0):
            return open_clip.create_model(
                self.model,
                pretrained=self.pretrained,
                load_weights=self.seed is None,
                require_pretrained=self.seed is None,
                force_quick_gelu=self.quick_gelu,
                pretrained_text=False,
                precision="fp32",
            )

    def tokenizer(self) -> Any:
        """Return the tokenizer of the model."""
        with _quiet():
            return open_clip.get_tokenizer(self.model)

    def tower(self, name: str) -> dict[str, Any]:
        """Return what the configuration says of one tower."""
        noise = (
            "hf_tokenizer_name",
            "hf_model_name",
            "tokenizer_kwargs",
            "timm_model_pretrained",
            "hf_model_pretrained",
        )
        stated = {key: value for key, value in self.config[name].items() if key not in noise}
        quick_gelu = bool(self.quick_gelu or self.config.get("quick_gelu"))
        return {name: stated, "embed_dim": self.config["embed_dim"], "quick_gelu": quick_gelu}


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return one tower of a CLIP model of open_clip; vectors are not normalised.

    Parameters
    ----------
    name
        ``ViT-B-16/laion2b_s34b_b88k``; ``ViT-B-16@/path/to/checkpoint``, computed as the architecture states;
        ``hf-hub:org/name``; ``local-dir:/path`` to a folder with ``open_clip_config.json``; ``ViT-B-32/random:0``,
        ``local-dir:/path/random:0``. Weights that were trained with QuickGELU are computed with it, whether the
        architecture's name ends in ``-quickgelu`` or not.
    options
        Modality, pooling (images: ``native``; ``cls``, ``mean``, ``max`` and ``tokens`` of the tokens, or of a
        convolutional tower's last feature map; texts: ``native``, ``native+chunks``), precision, stored type, device.

    Raises
    ------
    UnknownEncoder
        If there is no such architecture, tag or folder.
    WeightsUnavailable
        If weights are not named, neither cached nor reachable, or do not fit.
    EncoderError
        If the modality is not named, or the model has no such modality or pooling.
    """
    encoder = f"open_clip:{name}"
    if options.modality is None:
        raise EncoderError(f"{encoder} has an image and a text tower: say which by naming the modality")
    if options.modality not in ("image", "text"):
        raise EncoderError(f"{encoder} encodes image and text, not {options.modality}")
    wants_image = options.modality == "image"
    if name.startswith("hf-hub:"):
        repo = name.removeprefix("hf-hub:")
        request, model, tokenizer = from_cache_or_hub(
            lambda: _parts(_hub_request(encoder, name, repo), tokenizer=not wants_image), encoder=encoder, repo=repo
        )
    else:
        request = _local_request(encoder, name) if name.startswith("local-dir:") else _named_request(encoder, name)
        request, model, tokenizer = _load_parts(request, tokenizer=not wants_image)
    if wants_image:
        return _image_encoder(request, model, options)
    return _text_encoder(request, model, tokenizer, options)


def _parts(request: _Request, *, tokenizer: bool) -> tuple[_Request, Any, Any]:
    return request, request.create(), request.tokenizer() if tokenizer else None


def _load_parts(request: _Request, *, tokenizer: bool) -> tuple[_Request, Any, Any]:
    """Return the model and, for text, its tokenizer; a tag's weights come from the cache or the hub."""
    repo = get_pretrained_cfg(request.model, request.pretrained or "").get("hf_hub", "")
    if repo:
        repo = "/".join(repo.split("/")[:2])
        return from_cache_or_hub(lambda: _parts(request, tokenizer=tokenizer), encoder=request.encoder, repo=repo)
    try:
        return _parts(request, tokenizer=tokenizer)
    except Exception as error:  # open_clip raises what torch, safetensors, transformers and urllib raise
        raise WeightsUnavailable(f"{request.encoder}: cannot be loaded: {first_line(error)}") from error


def _hub_request(encoder: str, name: str, repo: str) -> _Request:
    path = Path(hf_hub_download(repo, _CONFIG_FILE))
    return _Request(encoder=encoder, model=name, config=json.loads(path.read_text(encoding="utf-8"))["model_cfg"])


def _local_request(encoder: str, name: str) -> _Request:
    base, seed = split_seed(name.removeprefix("local-dir:"))
    folder = Path(base).expanduser().resolve()
    if not folder.is_dir():
        raise UnknownEncoder(f"{encoder}: no folder {folder}")
    try:
        config = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
    except (OSError, ValueError, KeyError) as error:
        raise WeightsUnavailable(
            f"{encoder}: {folder / _CONFIG_FILE} cannot be read as open_clip writes it: {first_line(error)}"
        ) from error
    return _Request(encoder=encoder, model=f"local-dir:{folder}", config=config, seed=seed)


def _named_request(encoder: str, name: str) -> _Request:
    parsed = ModelName.parse(name)
    known = open_clip.list_models()
    if parsed.model not in known:
        raise unknown("open_clip architecture", parsed.model, known, example=_EXAMPLE)
    config = deepcopy(open_clip.get_model_config(parsed.model))
    if parsed.seed is not None:
        return _Request(encoder=encoder, model=parsed.model, config=config, seed=parsed.seed)
    if parsed.path is not None:
        if not parsed.path.is_file():
            raise WeightsUnavailable(f"{encoder}: no checkpoint file {parsed.path}")
        return _Request(encoder=encoder, model=parsed.model, config=config, pretrained=str(parsed.path))
    tags = [tag for architecture_, tag in open_clip.list_pretrained() if architecture_ == parsed.model]
    if parsed.tag is None:
        raise WeightsUnavailable(
            f"open_clip:{parsed.model}: name the weights: a tag ({', '.join(tags) or 'none published'}), "
            f"open_clip:{parsed.model}@/path/to/file or, untrained, open_clip:{parsed.model}/random:0"
        )
    tag = get_pretrained_cfg(parsed.model, parsed.tag)
    if not tag:
        raise unknown(f"weights of open_clip's {parsed.model}", parsed.tag, tags, example=_EXAMPLE)
    # The published table knows how weights were trained; an architecture that states QuickGELU keeps it.
    return _Request(
        encoder=encoder,
        model=parsed.model,
        config=config,
        pretrained=parsed.tag,
        quick_gelu=bool(tag.get("quick_gelu") or config.get("quick_gelu")),
    )


def _image_encoder(request: _Request, model: Any, options: EncoderOptions) -> ImageEncoder:
    for part in _TEXT_PARTS:
        if hasattr(model, part):
            model.register_module(part, None)
    model = freeze(model, options.device)
    preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
    transform = from_open_clip(preprocess)
    prefix = _prefix(model.visual)
    offered = ("native", *(["cls"] if prefix else []), "mean", "max", "tokens")
    poolings = choose_poolings(options, offered, encoder=request.encoder)
    is_native = poolings == ("native",)
    whole = _native(model) if is_native else _readings(model, poolings)
    dims = _output_dims(whole, transform.crop or transform.size, options.device)
    native = EncoderSpec(
        family="open_clip",
        modality="image",
        architecture={"class": type(model.visual).__name__, **request.tower("vision_cfg")},
        weights=weights_digest(model.visual),
        preprocess=transform.to_dict(),
        layer="projection",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=dims[poolings.index("native")] if "native" in poolings else 0,
    )
    levels = level_specs(
        native,
        poolings,
        options,
        layer="last_hidden_state",
        dim=next((dim for dim, pooling in zip(dims, poolings, strict=True) if pooling != "native"), 0),
        tokens={"order": "raster", "prefix": prefix},
    )
    return ImageEncoder(
        spec=levels,
        transform=transform,
        compute=(class_token_only(model.visual) if is_native else None) or whole,
        reference_compute=whole,
        reference_transform=image_transform_v2(preprocess, is_train=False),
        network=model.visual,
        device=options.device,
        channels_last=is_convolutional(model.visual),
    )


def _prefix(visual: Any) -> list[str]:
    """Return the names of an image tower's leading tokens that are no patches; SigLIP has none."""
    trunk = getattr(visual, "trunk", None)
    return prefix_tokens(trunk) if trunk is not None else ["class"] if hasattr(visual, "class_embedding") else []


def _native(model: Any) -> Callable[[Tensor], Tensor]:
    def compute(images: Tensor) -> Tensor:
        vectors: Tensor = model.encode_image(images, normalize=False)
        return vectors

    return compute


def _readings(model: Any, poolings: Sequence[str]) -> Callable[[Tensor], tuple[Embeddings, ...]]:
    """Return a forward pass read at some poolings; tokens are normalised as the tower normalises its last."""
    is_transformer = hasattr(getattr(model.visual, "trunk", model.visual), "patch_embed") or bool(_prefix(model.visual))

    def compute(images: Tensor) -> tuple[Embeddings, ...]:
        out = model.visual.forward_intermediates(
            images,
            indices=1,
            intermediates_only="native" not in poolings,
            normalize_intermediates=True,
            output_fmt="NLC" if is_transformer else "NCHW",
            output_extra_tokens=is_transformer,
        )
        last, prefix = out["image_intermediates"][-1], out.get("image_intermediates_prefix", [])[-1:]
        tokens = torch.cat([*prefix, last], dim=1) if is_transformer else raster(last)
        count = sum(each.shape[1] for each in prefix)
        return tuple(
            out["image_features"] if pooling == "native" else pool_or_keep(tokens, pooling, prefix=count)
            for pooling in poolings
        )

    return compute


def _output_dims(compute: Callable[[Tensor], Any], size: tuple[int, int], device: str) -> list[int]:
    """Return the length of an embedding at each level."""
    with torch.inference_mode():
        return [int(each[0].shape[-1]) for each in as_levels(compute(torch.zeros(1, 3, *size, device=device)))]


def _text_encoder(request: _Request, model: Any, tokenizer: Any, options: EncoderOptions) -> Encoder:
    poolings = choose_text_poolings(options, ("native",), encoder=request.encoder)
    model.register_module("visual", None)
    model = freeze(model, options.device)
    tokenize = OpenClipTokenizer(request.encoder, tokenizer)

    def compute(inputs: Mapping[str, Tensor], poolings: Sequence[str]) -> tuple[Tensor, ...]:
        vectors: Tensor = model.encode_text(inputs["text"], normalize=False)
        return (vectors,) * len(poolings)

    spec = EncoderSpec(
        family="open_clip",
        modality="text",
        architecture=_text_architecture(request, model),
        weights=_text_weights(model),
        preprocess=tokenize.to_dict(),
        layer="projection",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=int(request.config["embed_dim"]),
    )
    similarity = similarity_of(model.logit_scale, getattr(model, "logit_bias", None))
    levels = level_specs(spec, poolings, options, layer=spec.layer, dim=spec.dim, tokens={})
    return make_text_encoder(
        levels=levels,
        tokenizer=tokenize,
        compute=compute,
        network=model,
        device=options.device,
        similarity=similarity,
    )


def _text_architecture(request: _Request, model: Any) -> dict[str, Any]:
    tower = getattr(model, "text", None) or model.transformer
    # A text tower from transformers is described by its own configuration, not by the name of a repository.
    of_transformers = architecture(tower.transformer, tower.config) if hasattr(tower, "config") else {}
    return {"class": type(tower).__name__, "transformers": of_transformers, **request.tower("text_cfg")}


def _text_weights(model: Any) -> str:
    if getattr(model, "text", None) is not None:
        return weights_digest(model.text)
    projection = model.text_projection
    modules = [model.token_embedding, model.transformer, model.ln_final]
    if isinstance(projection, nn.Module):
        return weights_digest(*modules, projection, positional_embedding=model.positional_embedding)
    return weights_digest(*modules, positional_embedding=model.positional_embedding, text_projection=projection)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip from writing to the root logger; its failures are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)
