"""Handing a trained encoder back: a folder that `extract --encoder` takes like any other encoder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from data.manifest import Modality
from featurestore.catalog import HANDED_BACK, from_anywhere
from featurestore.encoders._projection import describe_projection
from featurestore.encoders._token_pooling import describe_token_pooling
from featurestore.encoders.finetuned import NETWORK, POOLING, PROJECTION, Trained, TrainedTower, identity
from featurestore.errors import EncoderError
from featurestore.weights import tensor_digests, weights_digest
from finetune.towers import Tower
from finetune.unfreeze import merged_state


def save_encoder(folder: Path, towers: Mapping[Modality, Tower], *, similarity: Mapping[str, float] | None) -> None:
    """Write towers as an encoder; an older one at the same place is replaced, anything else is not.

    Only what differs from the base encoder is written, LoRA added to the weights that it is for; training can go on
    afterwards. Towers that training has left as they are remain the base encoder, with its fingerprint.

    Parameters
    ----------
    folder
        Where to write, such as ``RUN/encoder``.
    towers
        One or two, each with the pooling and the projection that belong to its vectors.
    similarity
        How logits are made of cosines, ``scale`` and, where there is one, ``bias``, for zero-shot classification; None
        where training had no such thing.

    Raises
    ------
    EncoderError
        If a projection cannot be described, the place is taken by something else, or it cannot be written.
    """
    if folder.exists() and not (folder / HANDED_BACK).is_file():
        raise EncoderError(f"{folder}: exists and is no encoder of a run; choose another place")
    files: dict[str, bytes] = {}
    described: dict[Modality, TrainedTower] = {}
    for modality, tower in towers.items():
        described[modality], state = _describe(tower)
        if state:
            files[f"{modality}.safetensors"] = save(state)
    trained = Trained(towers=described, similarity=None if similarity is None else dict(similarity))
    files[HANDED_BACK] = trained.model_dump_json(indent=2).encode() + b"\n"
    try:
        _write_whole(folder, files)
    except OSError as error:
        raise EncoderError(f"{folder}: cannot be written: {error.strerror}") from error


def _describe(tower: Tower) -> tuple[TrainedTower, dict[str, Tensor]]:
    """Return what is said of a tower, and the tensors that are its own."""
    state = merged_state(tower.network)
    now = tensor_digests(state)
    assert now.keys() == tower.base.keys(), "training changes values of tensors, never their names"
    token_pooling, pooling = describe_token_pooling(tower.pooling)
    layers, projection = describe_projection(tower.projection)
    changed = {f"{NETWORK}{name}": tensor for name, tensor in state.items() if now[name] != tower.base[name]}
    changed |= {f"{POOLING}{name}": tensor for name, tensor in pooling.items()}
    changed |= {f"{PROJECTION}{name}": tensor for name, tensor in projection.items()}
    described = TrainedTower(
        encoder=from_anywhere(tower.name),
        pooling=tower.encoder.spec.pooling,
        base=identity(tower.encoder.spec),
        weights=weights_digest(**{f"0.{name}": tensor for name, tensor in state.items()}),
        token_pooling=token_pooling,
        projection=layers,
        changed=bool(changed),
    )
    # Of their own memory: a file holds no tensor that is a view of another.
    return described, {name: tensor.contiguous().clone() for name, tensor in changed.items()}


def _write_whole(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder aside, flush it to the disk and put it in place, so that it is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        made, replaced = Path(aside) / "made", Path(aside) / "replaced"
        made.mkdir()
        for name, content in files.items():
            with (made / name).open("wb") as file:
                file.write(content)
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(replaced)
        made.rename(folder)
