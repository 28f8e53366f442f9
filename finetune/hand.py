"""Handing back: what a run leaves on disk of its network, and how it is put together again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from data.manifest import Modality
from finetune.build import Built
from finetune.handback import save_encoder
from finetune.towers import Tower, load_tower
from heads.errors import RunError

ENCODER = "encoder"
OBJECTIVES = "objectives.safetensors"
CAPTIONS = "captions"


def hand_back(run: Path, built: Built) -> None:
    """Write the towers as an encoder, and the objectives' own weights beside it."""
    model = built.model
    towers: dict[Modality, Tower] = {model.tower.encoder.spec.modality: model.tower}
    if model.text_tower is not None:
        towers["text"] = model.text_tower
    save_encoder(run / ENCODER, towers, similarity=_similarity(built))
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _beside(built).state_dict().items()}
    # Not `save_file`, whose files only their owner can read.
    (run / OBJECTIVES).write_bytes(save(state))
    if built.captions is not None:
        built.captions.save(run / CAPTIONS)


def load_objectives(run: Path, built: Built) -> None:
    """Give the objectives the weights that `hand_back` wrote.

    Raises
    ------
    RunError
        If they are missing or do not fit.
    """
    try:
        beside = _beside(built)
        # A part that is not used, such as the temperature of pairs in a prediction, may be in the file.
        state = {name: each for name, each in load_file(run / OBJECTIVES).items() if name in beside.state_dict()}
        beside.load_state_dict(state)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RunError(f"{run / OBJECTIVES}: missing or damaged; fine-tune again") from error


def towers_of(run: Path, built: Built, *, trust_remote_code: bool) -> Iterator[dict[str, Any]]:
    """Yield what a record says of each tower: the encoder before training and after it."""
    model = built.model
    for tower in (model.tower, model.text_tower):
        if tower is None:
            continue
        spec = tower.encoder.spec
        handed = load_tower(
            str(run / ENCODER), modality=spec.modality, device="cpu", trust_remote_code=trust_remote_code
        ).encoder.spec
        yield {
            "encoder": tower.name,
            "fingerprint": spec.fingerprint,
            "trained": handed.fingerprint,
            "dim": handed.dim,
            "modality": spec.modality,
            "pooling": spec.pooling,
            "kept": tower.kept,
        }


def _beside(built: Built) -> nn.ModuleDict:
    """Return what a network has beside its towers."""
    model = built.model
    parts: dict[str, nn.Module] = {"objectives": model.objectives}
    return nn.ModuleDict(parts if model.aggregator is None else {**parts, "aggregator": model.aggregator})


def _similarity(built: Built) -> dict[str, float] | None:
    """Return how a pair's logits are made of cosines, where an objective has learned it."""
    for objective in built.model.objectives.values():
        similarity = getattr(objective, "similarity", None)
        if similarity is not None:
            values: dict[str, float] = similarity.values()
            return values
    return None
