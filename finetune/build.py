"""From a configuration to the network that is trained, and what of it trains at which rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from featurestore.text_encoder import TextEncoder
from featurestore.weights import seeded
from finetune.aggregator import Aggregate
from finetune.captions import DEFAULT_VOCABULARY, CaptionTokenizer
from finetune.config import FinetuneConfig
from finetune.consistency import Consistency
from finetune.errors import FinetuneError
from finetune.feed import Known
from finetune.groups import parameter_groups
from finetune.loading import Towers
from finetune.model import Model
from finetune.objectives.captioning import Captioning
from finetune.objectives.classification import Classification
from finetune.objectives.weighted import Weighted, parse_weight
from finetune.options import needed_by, policy_of
from finetune.outputs import Objective
from finetune.pairs import number_targets, number_texts
from finetune.registry import make_objective, split_settings
from finetune.samples import Samples, weights_of
from finetune.towers import Tower, load_tower
from finetune.unfreeze import Policy
from finetune.warm_start import classifier_from_run
from heads.params import parse_params

DIM = 512
"""Length of the common space where none is given and the towers' own lengths differ."""


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
        policies[name] = policy_of(config, name)
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
    weights = {name: parse_weight(name, weight) for name, weight in config.weight.items()}
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
