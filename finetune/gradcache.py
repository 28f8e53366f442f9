"""Exact gradients of a loss over a large batch, with the activations of a small part of it in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import TypeVar

import torch
from torch import Tensor

from finetune.outputs import Outputs

Part = TypeVar("Part")
EMBEDDED = ("vectors", "single", "texts", "tokens")
"""The fields of `Outputs` that come out of networks."""


def cached_backward(
    embed: Callable[[Part], Outputs],
    parts: Sequence[Part],
    loss: Callable[[Outputs], Tensor],
    *,
    backward: Callable[[Tensor], None] = torch.autograd.backward,
) -> Tensor:
    r"""Add the gradients of the loss of several parts as one batch [1]_.

    Accumulated gradients of parts are those of the whole where a loss is a mean over samples. One of pairs is not:
    each part has only its own negatives. Here

    1. every part is embedded without gradients, and the loss of all embeddings z is differentiated,
       :math:`g = \partial L / \partial z`, which reaches the loss's own parameters as well;
    2. every part is embedded once more, and :math:`g^\top \, \partial z / \partial \theta` added up.

    The networks run forward twice, in memory for one part. Random numbers, those of drop-out, are the same in both
    passes; what moves with every forward pass, such as running statistics of batch norms, moves twice, and batch
    norms in training mode normalise by parts.

    Parameters
    ----------
    embed
        From a part to its embeddings.
    parts
        Of the batch, in order.
    loss
        Of the whole batch.
    backward
        How the loss is differentiated, such as by a method that scales it for 16 bits.

    Returns
    -------
    Tensor
        The loss, detached.

    References
    ----------
    .. [1] Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021.
    """
    states, cached = [], []
    with torch.no_grad():
        for part in parts:
            states.append(_random_state())
            cached.append(embed(part))
    whole = _joined(cached)
    leaves = {name: each.requires_grad_() for name in EMBEDDED if (each := getattr(whole, name)) is not None}
    value = loss(whole)
    backward(value)
    after = _random_state()
    gradients = {
        name: leaf.grad.split([len(getattr(part, name)) for part in cached])
        for name, leaf in leaves.items()
        if leaf.grad is not None
    }
    for number, (part, state) in enumerate(zip(parts, states, strict=True)):
        _restore(state)
        outputs = embed(part)
        reached = {name: each for name in gradients if (each := getattr(outputs, name)).requires_grad}
        if reached:
            torch.autograd.backward(list(reached.values()), [gradients[name][number] for name in reached])
    _restore(after)
    return value.detach()


def _joined(parts: Sequence[Outputs]) -> Outputs:
    joined = {}
    for field in fields(Outputs):
        values = [getattr(part, field.name) for part in parts]
        if values[0] is not None:
            joined[field.name] = torch.cat(values)
    return replace(Outputs(), **joined)


def _random_state() -> tuple[Tensor, list[Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


def _restore(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
