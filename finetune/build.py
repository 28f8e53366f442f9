"""From a configuration to the network that is trained, and what of it trains at which rate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from data.errors import ConfigError
from data.manifest import Modality, Source
from featurestore.store import FeatureStore
from featurestore.weights import seeded
from finetune.aggregator import Aggregate
from finetune.captions import CaptionTokenizer
from finetune.config import FinetuneConfig
from finetune.errors import FinetuneError
from finetune.feed import Known
from finetune.groups import parameter_groups
from finetune.model import Model
from finetune.objectives.classification import Classification
from finetune.objectives.weighted import Weighted, parse_weight
from finetune.outputs import Objective
from finetune.pairs import number_texts
from finetune.partial import PartialTower
from finetune.registry import make_objective, objective_class, split_settings
from finetune.samples import Samples
from finetune.towers import Tower, load_tower
from finetune.unfreeze import Policy
from finetune.warm_start import classifier_from_run

DIM = 512
"""Length of the common space where none is given and the towers' own lengths differ."""


@dataclass(frozen=True, kw_only=True)
class Towers:
    """The encoders of a run, their policies prepared.

    Attributes
    ----------
    tower, text_tower
        Of the samples, and of their texts where an objective needs these as vectors.
    """

    tower: Tower
    text_tower: Tower | None

    @property
    def by_name(self) -> dict[str, Tower]:
        """The towers by their names in the model."""
        found = {"tower": self.tower, "text_tower": self.text_tower}
        return {name: tower for name, tower in found.items() if tower is not None}


@dataclass(frozen=True, kw_only=True)
class Built:
    """A network and how it is trained.

    Attributes
    ----------
    model
        The network.
    policies
        Of ``tower`` and ``text_tower``.
    known
        What objectives know of the samples.
    captions
        Makes token numbers of texts; None where nothing asks for them.
    """

    model: Model
    policies: dict[str, Policy]
    known: Known
    captions: CaptionTokenizer | None = None


def check_options(config: FinetuneConfig) -> None:
    """Refuse options that do not fit each other, before anything is read.

    Raises
    ------
    ConfigError
        If an objective is unknown, or lacks or does not use an option.
    """
    for option in ("text_unfreeze", "text_lr", "dim"):
        if getattr(config, option) is not None and config.text_encoder is None:
            raise ConfigError(
                f"--{option.replace('_', '-')}: is of pairs, and no --text-encoder was named; leave it out"
            )
    if config.text_pooling != "auto" and config.text_encoder is None:
        raise ConfigError("--text-pooling: is of pairs, and no --text-encoder was named; leave it out")
    needs = {name: objective_class(name).needs for name in config.objective}
    split_settings(config.set, config.objective)
    for tower in (config.unfreeze, config.text_unfreeze or config.unfreeze):
        policy = Policy.parse(tower)
        if policy.frozen_epochs >= config.epochs:
            raise ConfigError(
                f"--unfreeze {tower}: nothing would ever be unfrozen in --epochs {config.epochs}; give it more epochs"
            )
    needed = frozenset().union(*needs.values())
    wanting = {
        "--target": ("targets" in needed, bool(config.target)),
        "--text": (bool(needed & {"texts", "captions"}), config.text is not None),
        "--text-encoder": ("texts" in needed, config.text_encoder is not None),
    }
    for option, (wanted, given) in wanting.items():
        if wanted and not given:
            raise ConfigError(f"--objective {','.join(config.objective)} needs {option}; name it")
        if given and not wanted and option != "--text-encoder":
            raise ConfigError(f"{option}: nothing of --objective {','.join(config.objective)} uses it; leave it out")
    if config.text_encoder is not None and not needed & {"texts", "captions"}:
        raise ConfigError(
            f"--text-encoder: nothing of --objective {','.join(config.objective)} reads texts; leave it out"
        )
    Aggregate.parse(config.aggregate)
    if config.bag is not None and "captioning" in config.objective:
        raise ConfigError("--bag: a caption is written from the tokens of one input; leave --bag or captioning out")
    if config.bag is None and (config.aggregate != "mean" or config.max_views is not None):
        raise ConfigError("--aggregate and --max-views are for studies of several inputs; name their column with --bag")
    if config.cache_depth and "masked" in config.objective:
        raise ConfigError("--cache-depth: masked modelling hides parts of the input itself; leave one of them out")
    if config.warm_start is not None and "classification" not in config.objective:
        raise ConfigError("--warm-start: needs --objective classification, whose classifier begins with that head")


def load_towers(config: FinetuneConfig, modality: Modality, *, device: str) -> Towers:
    """Return the encoders of a run as they are before training.

    Raises
    ------
    FrostlineError
        If there is no such encoder, or it cannot be trained.
    """
    needed = needed_by(config)
    tower = load_tower(
        config.encoder,
        modality=modality,
        device=device,
        pooling=config.pooling,
        tokens="tokens" in needed,
        trust_remote_code=config.trust_remote_code,
    )
    if "texts" not in needed:
        return Towers(tower=tower, text_tower=None)
    assert config.text_encoder is not None  # checked with the options
    text_tower = load_tower(
        config.text_encoder,
        modality="text",
        device=device,
        pooling=config.text_pooling,
        trust_remote_code=config.trust_remote_code,
    )
    return Towers(tower=tower, text_tower=text_tower)


def with_cached_depth(config: FinetuneConfig, towers: Towers, store: FeatureStore) -> Towers:
    """Return towers of which that of the samples keeps what lies below its lowest trained block in a store.

    Raises
    ------
    EncoderError
        If another policy than ``last:K`` is used, samples are augmented, or the network cannot be cut there.
    """
    policy = Policy.parse(config.unfreeze)
    return replace(towers, tower=PartialTower(towers.tower, policy, store, augmented=bool(config.augment)))


def build(
    config: FinetuneConfig,
    samples: Samples,
    towers: Towers,
    *,
    device: str,
    captions: CaptionTokenizer | None = None,
) -> Built:
    """Return the network of a run, before any training.

    Parameters
    ----------
    config
        What to build.
    samples
        Their targets decide the classifier, their texts the vocabulary.
    towers
        The encoders; they get additions and projections.
    device
        A torch device.
    captions
        The vocabulary of captions, where there is one already.

    Raises
    ------
    FrostlineError
        If an objective or a policy does not fit.
    """
    tower, text_tower = towers.tower, towers.text_tower
    spec = tower.encoder.spec
    policies = {}
    for number, (name, each) in enumerate(towers.by_name.items()):
        text = config.unfreeze if name == "tower" else config.text_unfreeze or config.unfreeze
        policies[name] = Policy.parse(text)
        policies[name].prepare(each.network, seed=config.seed + number)
    with seeded(config.seed):
        if text_tower is not None:
            _project(tower, text_tower, config.dim)
        if captions is None and "captions" in needed_by(config):
            captions = _caption_tokenizer(config, text_tower)
        objectives = _objectives(config, samples, tower, captions)
        aggregator = Aggregate.parse(config.aggregate).make(_dim_of(tower)) if samples.are_studies else None
    if config.warm_start is not None and tower.projection is not None:
        raise FinetuneError(
            "--warm-start: the classifier reads the common space of the pair, and that head was fitted on the "
            "encoder's own vectors; leave --warm-start, or the pair, out"
        )
    if config.warm_start is not None:
        classification = objectives["classification"]
        assert isinstance(classification, Classification)
        assert samples.task is not None  # it is what the classifier learns
        classification.start_from(classifier_from_run(config.warm_start, spec, samples.task))
    weights = {name: parse_weight(weight) for name, weight in config.weight.items()}
    made = Weighted(objectives, weights)
    model = Model(tower, text_tower, made, aggregator=aggregator, device=torch.device(device))
    return Built(
        model=model,
        policies=policies,
        known=_known(config, samples, captions),
        captions=captions,
    )


def needed_by(config: FinetuneConfig) -> frozenset[str]:
    """Return the fields of `Outputs` that the objectives of a run need."""
    return frozenset[str]().union(*(objective_class(name).needs for name in config.objective))


def text_sources(texts: tuple[str, ...]) -> tuple[Source, ...]:
    """Return texts as sources of a text tower."""
    return tuple(Source(modality="text", text=text) for text in texts)


def _project(tower: Tower, text_tower: Tower, dim: int | None) -> None:
    """Give both towers linear layers into a common space; none where they have one already."""
    if dim is None and tower.dim == text_tower.dim:
        return
    for each in (tower, text_tower):
        each.projection = nn.Linear(each.dim, dim or DIM, bias=False)


def _dim_of(tower: Tower) -> int:
    """Return the length of a tower's vector behind its projection."""
    return tower.projection.out_features if isinstance(tower.projection, nn.Linear) else tower.dim


def _caption_tokenizer(config: FinetuneConfig, text_tower: Tower | None) -> CaptionTokenizer:
    if text_tower is not None:
        return CaptionTokenizer.of_encoder(text_tower.encoder, text_tower.name)
    name = config.text_encoder or "offline:minilm"
    return CaptionTokenizer.of_encoder(load_tower(name, modality="text", device="cpu").encoder, name)


def _objectives(
    config: FinetuneConfig, samples: Samples, tower: Tower, captions: CaptionTokenizer | None
) -> dict[str, Objective]:
    settings = split_settings(config.set, config.objective)
    train = samples.data.rows("train")
    given: dict[str, Any] = {
        "task": samples.task,
        "dim": _dim_of(tower),
        "targets": samples.data.y[train] if len(train) else samples.data.y,
        "tower": tower,
        "tokenizer": captions,
        "token_dim": tower.encoder.levels[-1].dim,
    }
    return {name: make_objective(name, settings[name], **given) for name in config.objective}


def groups_of(config: FinetuneConfig, built: Built) -> list[dict[str, Any]]:
    """Return the parameter groups of everything that is ever trained, and leave the network as its first epoch is.

    Raises
    ------
    FinetuneError
        If nothing is trained.
    """
    model, policies = built.model, built.policies
    rates = {"tower": config.encoder_lr, "text_tower": config.text_lr or config.encoder_lr}
    parts: dict[str, tuple[nn.Module, float]] = {"objectives": (model.objectives, 1.0)}
    if model.aggregator is not None:
        parts["aggregator"] = (model.aggregator, 1.0)
    for name, policy in policies.items():
        tower: Tower = getattr(model, name)
        policy.apply(tower.network, config.epochs)
        parts[name] = (tower.network, rates[name])
        if tower.projection is not None:
            parts[f"{name} projection"] = (tower.projection, 1.0)
    decays = dict.fromkeys(policies, config.layer_decay) if config.layer_decay < 1 else {}
    groups = parameter_groups(parts, lr=config.lr, weight_decay=config.weight_decay, layer_decay=decays)
    for name, policy in policies.items():
        policy.apply(getattr(model, name).network, 0)
    if not groups:
        raise FinetuneError(
            f"--unfreeze {config.unfreeze} with --objective {','.join(config.objective)} leaves nothing to train; "
            f"unfreeze something, or give the pair a common space with --dim"
        )
    return groups


def _known(config: FinetuneConfig, samples: Samples, captions: CaptionTokenizer | None) -> Known:
    needed = needed_by(config)
    numbers = tokens = mask = None
    if samples.texts is not None and "text_ids" in needed:
        numbers = number_texts(samples.texts).numpy()
    if samples.texts is not None and captions is not None:
        ids, there = captions.encode(samples.texts)
        tokens, mask = ids.numpy(), there.numpy()
    targets = samples.data.y if "targets" in needed else None
    return Known(targets=targets, text_ids=numbers, captions=tokens, caption_mask=mask)
