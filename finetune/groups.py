"""Groups of parameters for an optimizer: a learning rate per part and depth, and weight decay where it belongs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from finetune.blocks import anatomy, is_norm

_POSITIONS = re.compile(
    r"(^|[._])(cls|class|dist|distillation|reg|register|mask|pos|position|positional)"
    r"_(token|tokens|emb|embed|embedding|embeddings)(\.weight)?$|_pos$|rel_pos|relative_position"
)
"""Learned tokens and embeddings of positions: nothing that should be drawn to zero."""


def parameter_groups(
    parts: Mapping[str, tuple[nn.Module, float]],
    *,
    lr: float,
    weight_decay: float,
    layer_decay: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Return groups of parameters, each trainable one in exactly one of them.

    A network that is unfrozen later (``gradual``) belongs in from the start: call ``policy.apply`` for the last epoch
    before this and for the first one after it. A parameter that has no gradient yet is neither moved nor decayed, and
    an optimizer keeps a count of steps for each, so that its first step later is bias-corrected as a first step; its
    learning rate is on schedule all the time.

    Parameters
    ----------
    parts
        By name, a module and the factor of its learning rate. No parameter may be in two parts.
    lr
        Learning rate of a part whose factor is 1.
    weight_decay
        Of all but biases, norms, scales, and learned tokens and positions: what has less than two dimensions, lies in
        a normalisation layer or is named as one of the latter. There it is 0.
    layer_decay
        By part, what the learning rate is multiplied with at each step down from the top: ``decay ** (n + 1 - depth)``
        with n blocks, the depth as of `finetune.blocks.Anatomy`; the top keeps its own, the stem has decay ** (n + 1).
        Parts that are not named have no decay. Bao et al. 2021, arXiv:2106.08254.

    Returns
    -------
    list of dict
        As `torch.optim` takes them: ``params``, ``lr``, ``weight_decay``; for logs ``name`` and ``names``, those of
        the parameters.

    Raises
    ------
    EncoderError
        If a part with layer decay has no known blocks.
    """
    decays = layer_decay or {}
    groups: dict[str, dict[str, Any]] = {}
    for part, (module, factor) in parts.items():
        scales = _scales(module, decays[part]) if part in decays else {}
        undecayed = _in_norms(module)
        for name, parameter in _trainable(module):
            plain = parameter.ndim < 2 or name in undecayed or _POSITIONS.search(name) is not None
            depth, scale = scales.get(name, (None, 1.0))
            key = part + (f"/depth {depth}" if depth is not None else "") + ("/no decay" if plain else "")
            group = groups.setdefault(
                key,
                {
                    "name": key,
                    "params": [],
                    "names": [],
                    "lr": lr * factor * scale,
                    "weight_decay": 0.0 if plain else weight_decay,
                },
            )
            group["params"].append(parameter)
            group["names"].append(f"{part}.{name}")
    made = list(groups.values())
    _assert_each_once(parts, made)
    return made


def _trainable(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad)


def _scales(network: nn.Module, decay: float) -> dict[str, tuple[int, float]]:
    """Return the depth of each parameter and what its learning rate is multiplied with."""
    parts = anatomy(network)
    top = len(parts.blocks) + 1
    return {name: (depth, decay ** (top - depth)) for name, depth in parts.depths.items()}


def _in_norms(module: nn.Module) -> set[str]:
    return {
        f"{name}.{own}".lstrip(".")
        for name, inner in module.named_modules()
        if is_norm(inner)
        for own, _ in inner.named_parameters(recurse=False)
    }


def _assert_each_once(parts: Mapping[str, tuple[nn.Module, float]], groups: list[dict[str, Any]]) -> None:
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = {id(parameter) for module, _ in parts.values() for _, parameter in _trainable(module)}
    assert len(grouped) == len(set(grouped)), "a parameter is in two parts"
    assert set(grouped) == wanted, "a trainable parameter is in no group"
