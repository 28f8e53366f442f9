"""Encoders that `frostline finetune` has trained: a path to RUN/encoder, or finetuned:RUN/encoder.

::

    encoder/
      encoder.json             of each tower: the base encoder, digests of its weights before and after, what is above
      <modality>.safetensors   the tensors that differ from the base's, and those of what is above it

The base is loaded by its id, and the tensors that differ take the place of its own. Above the network may be a learned
pooling of its tokens, and a projection. Samples are read exactly as the base reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from data.digest import digest_json
from data.manifest import Modality
from featurestore.catalog import HANDED_BACK, canonical, load_encoder
from featurestore.encoder import Embeddings, Encoder, EncoderOptions
from featurestore.encoder_ids import WrappedId
from featurestore.encoders._projection import Layer, make_projection
from featurestore.encoders._token_pooling import TokenPooling, make_token_pooling
from featurestore.errors import EncoderError, UnknownEncoder, WeightsUnavailable
from featurestore.image_encoder import ImageEncoder
from featurestore.pooling_text import CHUNKS, TOKENS
from featurestore.spec import EncoderSpec
from featurestore.text_encoder import TextEncoder
from featurestore.together import Together
from featurestore.video_encoder import VideoEncoder
from featurestore.weights import first_line, load_weights, weights_digest

FORMAT = 1
"""Version of the files' layout; this release reads it and older ones."""

NETWORK, POOLING, PROJECTION = "network.", "pooling.", "projection."
"""What the names of tensors begin with."""

_OF_A_LEVEL = ("tokens", "token_pooling", "projection", "similarity")
"""What an architecture says of one level of a network."""

_Trainable = ImageEncoder | TextEncoder | VideoEncoder


class TrainedTower(BaseModel):
    """What ``encoder.json`` says of a tower.

    Attributes
    ----------
    encoder
        The id of the base encoder.
    pooling
        The level that was trained, and that what is above the network is for; ``tokens`` where a pooling was learned.
    base
        See `identity`: of the base, whose other weights would make another encoder.
    weights
        Digest of the network's weights after training.
    token_pooling
        What was learned to make a vector of the tokens; None where the base's own pooling is meant.
    projection
        Layers from the vector to the common space; none where the vectors are meant as they are.
    changed
        Whether there is a file of tensors.
    """

    model_config = ConfigDict(extra="forbid")
    encoder: str
    pooling: str
    base: str
    weights: str
    token_pooling: TokenPooling | None = None
    projection: list[Layer] = []
    changed: bool


class Trained(BaseModel):
    """The content of ``encoder.json``.

    Attributes
    ----------
    towers
        By modality.
    similarity
        How training made logits of cosines: ``scale``, and ``bias`` where it has one; None where it did not.
    """

    model_config = ConfigDict(extra="forbid")
    format: Literal["frostline-encoder"] = "frostline-encoder"
    format_version: int = FORMAT
    towers: dict[Modality, TrainedTower]
    similarity: dict[str, float] | None = None


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return the encoder that a fine-tuning run has handed back.

    Its fingerprint depends on what the folder holds, not on where it is. A tower that training left as it was is the
    base encoder, and has its fingerprint.

    Parameters
    ----------
    name
        The folder.
    options
        As of the base encoder; ``auto`` pooling is the one that was trained. Where training has made a space of its
        own, by a learned pooling, a projection or for a pair of towers, that is called ``native``. Other poolings are
        read off the trained network as they are.

    Raises
    ------
    UnknownEncoder
        If there is no such folder.
    WeightsUnavailable
        If a file is damaged, or the base encoder is not here or has other weights than training began with.
    EncoderError
        If it has no such modality or pooling, or the modality is not named where there are two.
    """
    folder = Path(name).expanduser().resolve()
    encoder_id = f"finetuned:{folder}"
    trained = _read(encoder_id, folder)
    modality = _modality(encoder_id, trained, options)
    tower = trained.towers[modality]
    is_new = tower.token_pooling is not None or bool(tower.projection) or len(trained.towers) > 1
    own = "native" if is_new else tower.pooling
    made = _base(encoder_id, tower, replace(_of_base(options, tower.pooling, own), modality=modality))
    members = cast("tuple[_Trainable, ...]", made.encoders if isinstance(made, Together) else (made,))
    state = load_weights(folder / f"{modality}.safetensors") if tower.changed else {}
    _refuse_other_names(encoder_id, state)
    _require_base(encoder_id, tower, members[0].spec)
    # Members of several have one network: texts cut, and in pieces.
    _replace_weights(encoder_id, tower, members[0], _part(state, NETWORK))
    above: dict[str, Any] = {"path": folder, "device": options.device}
    pooling = make_token_pooling(tower.token_pooling, _part(state, POOLING), **above)
    projection = make_projection(tower.projection, _part(state, PROJECTION), **above)
    similarity = trained.similarity if modality == "text" else None
    for encoder in members:
        if pooling is not None:
            _pool(encoder, pooling, own, options)
        _follow(encoder, tower, own, projection, similarity)
    return Together(members) if isinstance(made, Together) else made


def identity(spec: EncoderSpec) -> str:
    """Return a digest of an encoder's network and weights, whatever level of it the specification is of."""
    architecture = {name: value for name, value in spec.architecture.items() if name not in _OF_A_LEVEL}
    return digest_json({"weights": spec.weights, "architecture": architecture})


def _read(encoder_id: str, folder: Path) -> Trained:
    path = folder / HANDED_BACK
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnknownEncoder(
            f"{encoder_id}: no {HANDED_BACK} there; expected RUN/encoder as `frostline finetune` writes it. If the run "
            f"has moved, move it back, or extract with its new path and fit the head again"
        ) from error
    except (OSError, ValueError) as error:
        raise WeightsUnavailable(f"{path}: cannot be read as JSON: {first_line(error)}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise WeightsUnavailable(f"{path}: format version {version}, this release reads up to {FORMAT}; upgrade")
    try:
        return Trained.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise WeightsUnavailable(f"{path}: not the description of an encoder: {where}: {first['msg']}") from error


def _modality(encoder_id: str, trained: Trained, options: EncoderOptions) -> Modality:
    towers = list(trained.towers)
    if options.modality is None and len(towers) > 1:
        raise EncoderError(f"{encoder_id} has {' and '.join(towers)} towers: say which by naming the modality")
    if options.modality not in (None, *towers):
        raise EncoderError(f"{encoder_id} encodes {' and '.join(towers)}, not {options.modality}")
    return options.modality or towers[0]


def _of_base(options: EncoderOptions, pooling: str, own: str) -> EncoderOptions:
    """Return the options with the base's name of the trained pooling in the place of ``auto`` and its own name."""

    def named(asked: str) -> str:
        plain = asked.removesuffix(CHUNKS)
        return pooling.removesuffix(CHUNKS) + asked[len(plain) :] if plain in ("auto", own) else asked

    first = pooling if options.pooling == "auto" else named(options.pooling)
    return replace(options, pooling=first, also=tuple(map(named, options.also)))


def _base(encoder_id: str, tower: TrainedTower, options: EncoderOptions) -> _Trainable | Together:
    # A folder that somebody else has written must not choose code to run.
    if (WrappedId.parse(tower.encoder) or tower.encoder.startswith("py:")) and not options.trust_remote_code:
        raise EncoderError(
            f"{encoder_id}: its base encoder {tower.encoder} runs code that this folder names; allow it with "
            f"--trust-remote-code if you know it"
        )
    if encoder_id in (tower.encoder, canonical(tower.encoder)):
        raise WeightsUnavailable(f"{encoder_id}: damaged; {HANDED_BACK} names the folder itself as its base encoder")
    try:
        made = load_encoder(tower.encoder, options)
    except EncoderError as error:
        raise type(error)(f"{encoder_id}: its base encoder cannot be loaded: {error}") from error
    members = made.encoders if isinstance(made, Together) else (made,)
    if not all(isinstance(each, _Trainable) and each.network is not None for each in members):
        raise EncoderError(f"{encoder_id}: its base encoder {tower.encoder} shows no network")
    return cast("_Trainable | Together", made)


def _require_base(encoder_id: str, tower: TrainedTower, spec: EncoderSpec) -> None:
    found = identity(spec)
    if found != tower.base:
        raise WeightsUnavailable(
            f"{encoder_id}: was trained from weights {tower.base[:12]} of {tower.encoder}, which now has {found[:12]}; "
            f"bring those weights back, or fine-tune again"
        )


def _refuse_other_names(encoder_id: str, state: Mapping[str, Tensor]) -> None:
    other = [name for name in state if not name.startswith((NETWORK, POOLING, PROJECTION))]
    if other:
        raise WeightsUnavailable(f"{encoder_id}: damaged; the tensor {other[0]} is of no known part")


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _replace_weights(encoder_id: str, tower: TrainedTower, encoder: _Trainable, state: Mapping[str, Tensor]) -> None:
    network = encoder.network
    assert network is not None
    try:
        strange = network.load_state_dict(dict(state), strict=False).unexpected_keys
    except RuntimeError as error:
        raise WeightsUnavailable(f"{encoder_id}: damaged: {' '.join(str(error).split())[:300]}") from error
    if strange or weights_digest(network) != tower.weights:
        raise WeightsUnavailable(
            f"{encoder_id}: damaged; the weights do not have the digest that {HANDED_BACK} states, {tower.weights[:12]}"
        )


def _pool(encoder: _Trainable, pooling: tuple[nn.Module, Mapping[str, Any]], own: str, options: EncoderOptions) -> None:
    """Let a learned pooling make a vector, called `own`, of tokens; these stay a level where they were asked for."""
    module, described = pooling
    asked = dict.fromkeys(each in ("auto", own) for each in options.poolings if each in ("auto", own, TOKENS))
    before = encoder.levels
    readings = [
        (at, pooled) for at, level in enumerate(before) for pooled in (asked if level.pooling == TOKENS else (False,))
    ]

    def named(level: EncoderSpec) -> EncoderSpec:
        architecture = {name: value for name, value in level.architecture.items() if name != "tokens"}
        architecture["token_pooling"] = dict(described)
        return replace(level, architecture=architecture, layer="token_pooling", pooling=own, dtype=options.dtype)

    def after(made: tuple[Embeddings, ...]) -> tuple[Embeddings, ...]:
        return tuple(module(made[at]) if pooled else made[at] for at, pooled in readings)

    encoder.followed_by(after, tuple(named(before[at]) if pooled else before[at] for at, pooled in readings))


def _follow(
    encoder: _Trainable,
    tower: TrainedTower,
    own: str,
    projection: tuple[nn.Module, Mapping[str, Any]] | None,
    similarity: Mapping[str, float] | None,
) -> None:
    """Give an encoder whose weights were replaced its projection, its similarity and its new identity."""
    plain = own if tower.token_pooling else tower.pooling.removesuffix(CHUNKS)
    trained = [level.pooling.removesuffix(CHUNKS) == plain for level in encoder.levels]
    differs = similarity is not None and similarity != getattr(encoder, "similarity", None)

    def named(level: EncoderSpec, *, is_trained: bool) -> EncoderSpec:
        architecture = dict(level.architecture)
        if differs:
            # It is no part of a vector's value, but is kept with the vectors, so each has its own.
            architecture["similarity"] = similarity
        if is_trained:
            level = replace(level, pooling=own + CHUNKS * level.pooling.endswith(CHUNKS))
        if is_trained and projection is not None:
            described = dict(projection[1])
            architecture["projection"] = [*architecture.get("projection", []), described]
            level = replace(level, layer="projection", dim=described["dim"])
        return replace(level, architecture=architecture, weights=tower.weights if tower.changed else level.weights)

    def after(made: tuple[Embeddings, ...]) -> tuple[Embeddings, ...]:
        if projection is None:
            return made
        return tuple(
            projection[0](each) if is_trained else each for each, is_trained in zip(made, trained, strict=True)
        )

    levels = [named(level, is_trained=each) for level, each in zip(encoder.levels, trained, strict=True)]
    encoder.followed_by(after, tuple(levels))
    if isinstance(encoder, TextEncoder):
        encoder.similarity = similarity
