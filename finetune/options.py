"""Options of `finetune` that depend on each other: what they need, and what does not fit."""

from __future__ import annotations

from data.errors import ConfigError
from finetune.aggregator import Aggregate
from finetune.config import FinetuneConfig
from finetune.consistency import Consistency
from finetune.registry import objective_class, split_settings
from finetune.towers import learned_pooling
from finetune.unfreeze import Policy


def check_options(config: FinetuneConfig) -> None:
    """Refuse options that do not fit each other, before anything is read.

    Raises
    ------
    ConfigError
        If an objective is unknown, or lacks or does not use an option.
    """
    _check_pairs(config)
    _check_policies(config)
    _check_columns(config)
    _check_poolings(config)
    _check_studies(config)
    _check_heads(config)


def needed_by(config: FinetuneConfig) -> frozenset[str]:
    """Return the fields of `Outputs` that the objectives of a run need."""
    settings = split_settings(config.set, config.objective)
    return frozenset[str]().union(*(objective_class(name).needed(settings[name]) for name in config.objective))


def policy_of(config: FinetuneConfig, tower: str) -> Policy:
    """Return what of a tower trains: of ``tower`` or ``text_tower``.

    Raises
    ------
    ConfigError
        If the option names no policy.
    """
    if tower == "tower" or config.text_unfreeze is None:
        return Policy.parse(config.unfreeze)
    return Policy.parse(config.text_unfreeze, option="--text-unfreeze")


def _check_pairs(config: FinetuneConfig) -> None:
    if config.text_encoder is not None:
        return
    for option in ("text_unfreeze", "text_lr", "text_pooling", "dim"):
        if getattr(config, option) != FinetuneConfig.model_fields[option].default:
            raise ConfigError(f"{_flag(option)}: is of pairs, and no --text-encoder was named; leave it out")


def _check_policies(config: FinetuneConfig) -> None:
    for tower in ("tower", "text_tower"):
        policy = policy_of(config, tower)
        if (policy.first_epoch or 0) >= config.epochs:
            raise ConfigError(
                f"{policy.option} {policy}: nothing would ever be unfrozen in --epochs {config.epochs}; give it more "
                f"epochs"
            )


def _check_columns(config: FinetuneConfig) -> None:
    """Refuse columns and texts that objectives lack, or do not use."""
    needed, objectives = needed_by(config), ",".join(config.objective)
    pairs, texts = "texts" in needed, bool(needed & {"texts", "captions"})
    targets = bool(needed & {"targets", "target_ids"})
    for option, given, wanted, usable in (
        # Pairs are judged on a target by prompts.
        ("target", bool(config.target), targets, targets or pairs),
        ("text", config.text is not None, texts, texts),
        # Captions may be made of its words.
        ("text_encoder", config.text_encoder is not None, pairs, texts),
        ("sample_weight", config.sample_weight is not None, False, _weighs(config)),
    ):
        if wanted and not given:
            raise ConfigError(f"--objective {objectives} needs {_flag(option)}; name it")
        if given and not usable:
            raise ConfigError(f"{_flag(option)}: nothing of --objective {objectives} uses it; leave it out")
    if (config.template or config.prompts) and not (pairs and config.target):
        raise ConfigError("--template and --prompts: judge aligned pairs on --target; name one, or leave them out")
    if Consistency.name in config.weight:
        raise ConfigError("--weight consistency: its weight is what --consistency says; leave it out of --weight")


def _check_poolings(config: FinetuneConfig) -> None:
    for option, pooling, read in (
        ("pooling", config.pooling, "vectors"),
        ("text_pooling", config.text_pooling, "texts"),
    ):
        if learned_pooling(pooling) and read not in needed_by(config):
            raise ConfigError(
                f"{_flag(option)} {pooling}: nothing of --objective {','.join(config.objective)} reads the vector that "
                f"it would make; leave it out"
            )


def _check_studies(config: FinetuneConfig) -> None:
    Aggregate.parse(config.aggregate)
    if config.bag is not None and "captioning" in config.objective:
        raise ConfigError("--bag: a caption is written from the tokens of one input; leave --bag or captioning out")
    for option in ("aggregate", "max_views", "single_view", "view_dropout", "consistency"):
        if config.bag is None and getattr(config, option) != FinetuneConfig.model_fields[option].default:
            raise ConfigError(f"{_flag(option)}: is for studies of several inputs; name their column with --bag")


def _check_heads(config: FinetuneConfig) -> None:
    """Refuse heads to begin with or to learn from where nothing classifies."""
    for option, what in (("warm_start", "begins with that head"), ("teacher", "learns from it")):
        if getattr(config, option) is not None and "classification" not in config.objective:
            raise ConfigError(f"{_flag(option)}: needs --objective classification, whose classifier {what}")
    if config.warm_start is not None and learned_pooling(config.pooling):
        raise ConfigError(
            f"--warm-start: that head was fitted on the encoder's own vectors, and --pooling {config.pooling} makes "
            f"others; leave one of them out"
        )
    idle = [key for key in config.set if key.startswith("classification.teacher_")] if config.teacher is None else []
    if idle:
        raise ConfigError(f"--set {idle[0]}: there is no teacher; name one with --teacher, or leave it out")


def _weighs(config: FinetuneConfig) -> bool:
    return any(objective_class(name).weighted for name in config.objective)


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"
