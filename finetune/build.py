"""From a configuration to the network that is trained, and what of it trains at which rate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from data.errors import ConfigError
from data.manifest import Modality
from data.progress import Progress
from featurestore.errors import EncoderError
from featurestore.store import FeatureStore
from featurestore.text_encoder import TextEncoder
from featurestore.weights import seeded
from finetune.aggregator import Aggregate
from finetune.captions import DEFAULT_VOCABULARY, CaptionTokenizer
from finetune.config import FinetuneConfig
from finetune.consistency import Consistency
from finetune.errors import FinetuneError
from finetune.feed import Known
from finetune.frozen import FrozenTower
from finetune.groups import parameter_groups
from finetune.model import Model
from finetune.objectives.captioning import Captioning
from finetune.objectives.classification import Classification
from finetune.objectives.weighted import Weighted, parse_weight
from finetune.outputs import Objective
from finetune.pairs import number_targets, number_texts
from finetune.partial import PartialTower
from finetune.registry import make_objective, objective_class, split_settings
from finetune.samples import Samples, weights_of
from finetune.towers import Tower, learned_pooling, load_tower
from finetune.unfreeze import Policy
from finetune.warm_start import classifier_from_run
from heads.params import parse_params

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
    remarks
        What a reader should know of it.
    """

    model: Model
    policies: dict[str, Policy]
    known: Known
    captions: CaptionTokenizer | None = None
    remarks: tuple[str, ...] = ()


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
    for tower in (config.unfreeze, config.text_unfreeze or config.unfreeze):
        if (Policy.parse(tower).first_epoch or 0) >= config.epochs:
            raise ConfigError(
                f"--unfreeze {tower}: nothing would ever be unfrozen in --epochs {config.epochs}; give it more epochs"
            )
    needed = needed_by(config)
    wanting = {
        "--target": (bool(needed & {"targets", "target_ids"}), bool(config.target)),
        "--text": (bool(needed & {"texts", "captions"}), config.text is not None),
        "--text-encoder": ("texts" in needed, config.text_encoder is not None),
    }
    for option, (wanted, given) in wanting.items():
        if wanted and not given:
            raise ConfigError(f"--objective {','.join(config.objective)} needs {option}; name it")
        if option == "--target" and "texts" in needed:
            continue  # pairs are judged on it by prompts
        if given and not wanted and option != "--text-encoder":
            raise ConfigError(f"{option}: nothing of --objective {','.join(config.objective)} uses it; leave it out")
    if (config.template or config.prompts) and not ("texts" in needed and config.target):
        raise ConfigError("--template and --prompts: judge aligned pairs on --target; name one, or leave them out")
    if config.text_encoder is not None and not needed & {"texts", "captions"}:
        raise ConfigError(
            f"--text-encoder: nothing of --objective {','.join(config.objective)} reads texts; leave it out"
        )
    for option, pooling, read in (
        ("pooling", config.pooling, "vectors"),
        ("text-pooling", config.text_pooling, "texts"),
    ):
        if learned_pooling(pooling) and read not in needed:
            raise ConfigError(
                f"--{option} {pooling}: nothing of --objective {','.join(config.objective)} reads the vector that it "
                f"would make; leave it out"
            )
    Aggregate.parse(config.aggregate)
    if config.bag is not None and "captioning" in config.objective:
        raise ConfigError("--bag: a caption is written from the tokens of one input; leave --bag or captioning out")
    for option in ("aggregate", "max_views", "single_view", "view_dropout", "consistency"):
        if config.bag is None and getattr(config, option) != FinetuneConfig.model_fields[option].default:
            raise ConfigError(
                f"--{option.replace('_', '-')}: is for studies of several inputs; name their column with --bag"
            )
    if Consistency.name in config.weight:
        raise ConfigError("--weight consistency: its weight is what --consistency says; leave it out of --weight")
    if config.sample_weight is not None and not any(objective_class(name).weighted for name in config.objective):
        raise ConfigError(
            f"--sample-weight: nothing of --objective {','.join(config.objective)} weighs its samples; leave it out"
        )
    if config.warm_start is not None and "classification" not in config.objective:
        raise ConfigError("--warm-start: needs --objective classification, whose classifier begins with that head")
    if config.warm_start is not None and learned_pooling(config.pooling):
        raise ConfigError(
            f"--warm-start: that head was fitted on the encoder's own vectors, and --pooling {config.pooling} makes "
            f"others; leave one of them out"
        )
    if config.teacher is not None and "classification" not in config.objective:
        raise ConfigError("--teacher: needs --objective classification, whose classifier learns from it")
    idle = [key for key in config.set if key.startswith("classification.teacher_")] if config.teacher is None else []
    if idle:
        raise ConfigError(f"--set {idle[0]}: there is no teacher; name one with --teacher, or leave it out")


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
        seed=config.seed,
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
        seed=config.seed + 1,
    )
    return Towers(tower=tower, text_tower=text_tower)


def with_cached_depth(config: FinetuneConfig, towers: Towers, store: FeatureStore, progress: Progress) -> Towers:
    """Return towers that keep in a store what is frozen of them: everything, or what lies below the trained blocks.

    Raises
    ------
    EncoderError
        If nothing can be kept of any of them.
    """
    kept: dict[str, Tower] = {}
    reasons: list[str] = []
    for name, tower in towers.by_name.items():
        try:
            kept[name] = _with_kept_part(config, name, tower, store)
        except EncoderError as error:
            reasons.append(str(error))
    if not kept:
        raise EncoderError(f"--cache-depth: nothing can be kept: {'; '.join(reasons)}; leave it out")
    for tower in kept.values():
        progress.note(f"{tower.name}: its {tower.kept} are kept in {store.path}")
    for reason in reasons:
        progress.note(f"computed anew in every epoch: {reason}")
    return replace(towers, **kept)


def _with_kept_part(config: FinetuneConfig, name: str, tower: Tower, store: FeatureStore) -> Tower:
    """Return a tower that keeps what is frozen of it.

    Raises
    ------
    EncoderError
        If its inputs change, or nothing of it is frozen.
    """
    if name == "tower" and config.augment:
        raise EncoderError(f"{tower.name}: augmented samples are new in every epoch")
    settings = split_settings(config.set, config.objective)
    takers = [each for each in config.objective if "inputs" in objective_class(each).needed(settings[each])]
    if name == "tower" and takers:
        raise EncoderError(f"{tower.name}: {takers[0]} works on the input itself")
    policy = _policy(config, name)
    return FrozenTower(tower, store) if policy.first_epoch is None else PartialTower(tower, policy, store)


def _policy(config: FinetuneConfig, name: str) -> Policy:
    return Policy.parse(config.unfreeze if name == "tower" else config.text_unfreeze or config.unfreeze)


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
        policies[name] = _policy(config, name)
        policies[name].prepare(each.network, seed=config.seed + number)
    with seeded(config.seed):
        if text_tower is not None:
            _project(tower, text_tower, config.dim)
        remarks: list[str] = []
        if captions is None and "captions" in needed_by(config):
            captions, remarks = _caption_tokenizer(config, text_tower)
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
    if config.consistency:
        objectives[Consistency.name], weights[Consistency.name] = Consistency(), config.consistency
    made = Weighted(objectives, weights)
    known = _known(config, samples, objectives)
    model = Model(tower, text_tower, made, aggregator=aggregator, device=torch.device(device))
    return Built(
        model=model,
        policies=policies,
        known=known,
        captions=captions,
        remarks=(*remarks, *_cut(objectives, samples)),
    )


def needed_by(config: FinetuneConfig) -> frozenset[str]:
    """Return the fields of `Outputs` that the objectives of a run need."""
    settings = split_settings(config.set, config.objective)
    return frozenset[str]().union(*(objective_class(name).needed(settings[name]) for name in config.objective))


def _project(tower: Tower, text_tower: Tower, dim: int | None) -> None:
    """Give both towers linear layers into a common space; none where they have one already."""
    if dim is None and tower.dim == text_tower.dim:
        return
    for each in (tower, text_tower):
        each.projection = nn.Linear(each.dim, dim or DIM, bias=False)


def _dim_of(tower: Tower) -> int:
    """Return the length of a tower's vector behind its projection."""
    return tower.projection.out_features if isinstance(tower.projection, nn.Linear) else tower.dim


def _caption_tokenizer(config: FinetuneConfig, text_tower: Tower | None) -> tuple[CaptionTokenizer, list[str]]:
    """Return the captions' tokenizer, and a remark where it is not that of the text tower."""
    remarks = []
    named = parse_params(Captioning, split_settings(config.set, config.objective)["captioning"]).get("vocabulary")
    if named is None and text_tower is not None:
        assert isinstance(text_tower.encoder, TextEncoder)
        if text_tower.encoder.vocabulary is not None:
            return CaptionTokenizer.of_encoder(text_tower.encoder, text_tower.name), []
        named = DEFAULT_VOCABULARY
        remarks.append(
            f"captions are made of the words of {named}, since {text_tower.name} has no tokenizer of transformers; "
            f"--set captioning.vocabulary names another"
        )
    name = named or config.text_encoder or DEFAULT_VOCABULARY
    options: Any = {"device": "cpu", "trust_remote_code": config.trust_remote_code}
    return CaptionTokenizer.of_encoder(load_tower(name, modality="text", **options).encoder, name), remarks


def _cut(objectives: dict[str, Objective], samples: Samples) -> list[str]:
    """Return a remark where captions were too long."""
    captioning = objectives.get("captioning")
    if not isinstance(captioning, Captioning) or samples.texts is None or not captioning.tokenizer.truncated:
        return []
    cut, longest = captioning.tokenizer.truncated, captioning.max_length
    remark = (
        f"{cut} of {len(samples.texts)} captions are longer than {longest} tokens and were cut; --set "
        f"captioning.max_length allows longer ones"
    )
    return [remark]


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
        policy.apply(tower.network, config.epochs - 1)
        parts[name] = (tower.network, rates[name])
        if tower.pooling is not None:
            parts[f"{name} pooling"] = (tower.pooling, 1.0)
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


def _known(config: FinetuneConfig, samples: Samples, objectives: dict[str, Objective]) -> Known:
    needed = needed_by(config)
    numbers = alike = tokens = mask = None
    if samples.texts is not None and "text_ids" in needed:
        numbers = number_texts(samples.texts).numpy()
    if samples.task is not None and "target_ids" in needed:
        alike = number_targets(samples.data.y, samples.task.kind)
    captioning = objectives.get("captioning")
    if samples.texts is not None and isinstance(captioning, Captioning):
        ids, there = captioning.tokenizer.encode(samples.texts, max_length=captioning.max_length)
        tokens, mask = ids.numpy(), there.numpy()
    return Known(
        targets=samples.data.y if "targets" in needed else None,
        taught=samples.taught,
        text_ids=numbers,
        target_ids=alike,
        weights=weights_of(config, samples),
        captions=tokens,
        caption_mask=mask,
    )
