"""The identity of a network's weights, and the one place where checkpoint files are read.

The digest covers content only, so a checkpoint keeps its identity wherever it lies and whatever
container it came in (``.safetensors``, ``.pt``, a hub cache).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.digest import canonical_json
from featurestore.errors import WeightsUnavailable

_NESTED = ("state_dict", "model_state_dict", "model")


def weights_digest(*modules: nn.Module, **tensors: Tensor | None) -> str:
    """Return the SHA-256 of the weights that an embedding depends on.

    Every parameter and persistent buffer enters with its name, dtype, shape and bytes, in the order
    of the names; one tensor is in memory at a time beyond the model itself.

    Parameters
    ----------
    *modules
        The parts of the network that are used, e.g. the image tower and its projection.
    **tensors
        Loose parameters that belong to no module; None is left out.
    """
    state = {f"{i}.{name}": tensor for i, module in enumerate(modules) for name, tensor in module.state_dict().items()}
    state |= {name: tensor for name, tensor in tensors.items() if tensor is not None}
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(canonical_json([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def tensor_digests(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the SHA-256 of each tensor of a state dict, by name: of its dtype, shape and bytes."""
    return {name: weights_digest(tensor=tensor) for name, tensor in state.items()}


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint file, never running code that is in it.

    A training checkpoint is unwrapped (``state_dict``, ``model``) and the prefix ``module.`` of
    data-parallel training removed.

    Raises
    ------
    WeightsUnavailable
        If there is no such file, or it is not a checkpoint that can be read safely.
    """
    if not path.is_file():
        raise WeightsUnavailable(f"{path}: no such checkpoint file")
    try:
        state = _read_checkpoint(path)
    except Exception as error:  # torch and safetensors raise whatever the damage happens to hit
        raise WeightsUnavailable(
            f"{path}: cannot be read as .safetensors or as a torch state dict without running code in it: "
            f"{first_line(error)}"
        ) from error
    for key in _NESTED:
        if isinstance(state.get(key), Mapping):
            state = state[key]
    tensors = {name.removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsUnavailable(
            f"{path}: holds no state dict; found {', '.join(map(str, list(state)[:5])) or 'nothing'}"
        )
    return tensors


def assign_weights(
    model: nn.Module, state: Mapping[str, Tensor], *, path: object, ignored: tuple[str, ...] = ()
) -> None:
    """Load a state dict into a model, every key in its place.

    Parameters
    ----------
    model, state
        The model and the weights it is given.
    path
        Where the weights come from, for the message.
    ignored
        Prefixes of keys that the model does without, e.g. the classifier.

    Raises
    ------
    WeightsUnavailable
        If a key is missing, left over or of another shape.
    """
    wanted = {name: value for name, value in state.items() if not name.startswith(ignored)} if ignored else dict(state)
    try:
        model.load_state_dict(wanted, strict=True)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:400]
        raise WeightsUnavailable(f"{path}: the weights do not fit {type(model).__name__}: {detail}") from error


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random weights from a seed and leave the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _read_checkpoint(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
