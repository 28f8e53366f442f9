"""The encoders of a run as towers, with what is frozen of them read from a store where that was asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from data.errors import ConfigError
from data.manifest import Modality
from data.progress import Progress
from featurestore.errors import EncoderError
from featurestore.store import FeatureStore
from finetune.config import FinetuneConfig
from finetune.frozen import FrozenTower
from finetune.options import needed_by, policy_of
from finetune.partial import PartialTower
from finetune.registry import objective_class, split_settings
from finetune.towers import Tower, load_tower


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


def load_towers(config: FinetuneConfig, modality: Modality, *, device: str) -> Towers:
    """Return the encoders of a run as they are before training.

    Raises
    ------
    FrostlineError
        If there is no such encoder, or it cannot be trained.
    """
    if config.augment and modality not in ("image", "video"):
        raise ConfigError(f"--augment: changes images and clips, and the samples are {modality}; leave it out")
    needed = needed_by(config)
    if "tokens" in needed and modality == "text":
        raise ConfigError("--objective captioning: describes images and clips, and the samples are text; leave it out")
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
    policy = policy_of(config, name)
    return FrozenTower(tower, store) if policy.first_epoch is None else PartialTower(tower, policy, store)
