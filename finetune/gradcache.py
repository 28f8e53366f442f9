"""Exact gradients of a loss over a large batch, with the activations of a small part of it in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.outputs import Objective, Outputs

EMBEDDED = ("vectors", "texts")
"""The fields of `Outputs` that joint losses read and that come out of networks."""

READ = (*EMBEDDED, "text_ids", "target_ids", "weights")
"""All fields that joint losses read, as far as they are there."""


@dataclass(frozen=True)
class StandIn:
    """A linear form that has the gradient of a joint loss, in one part of its batch; its value means nothing.

    Attributes
    ----------
    outputs
        Gradients of the loss by the part's `Outputs`, under their fields' names.
    own
        The objective's parameters, and this part's share of the gradient of each.
    """

    outputs: Mapping[str, Tensor]
    own: Sequence[tuple[Tensor, Tensor]]

    def __call__(self, outputs: Outputs) -> Tensor:
        """Return the form's value, a scalar: to be differentiated in the place of the loss."""
        terms = [(getattr(outputs, name), gradient) for name, gradient in self.outputs.items()]
        return torch.stack([(value * gradient).sum() for value, gradient in (*terms, *self.own)]).sum()


def stand_ins(objective: Objective, parts: Sequence[Outputs]) -> tuple[Tensor, list[StandIn]]:
    r"""Return the loss of several parts as one batch, and what stands in for it in each of them [1]_.

    Accumulated gradients of parts are those of the whole where a loss is a mean over samples. One of pairs is not:
    each part has only its own negatives. So the networks' outputs z of all parts are computed without activations
    first, and the loss L of all is differentiated by them. When a part i is computed once more, with activations,

    .. math:: \sum_i \Big\langle z_i(\theta),\ \frac{\partial L}{\partial z_i} \Big\rangle
              + \Big\langle \varphi,\ \frac{\partial L}{\partial \varphi} \Big\rangle

    has the gradient of L by the parameters :math:`\theta` of the networks and :math:`\varphi` of the objective, and
    its terms may be differentiated one after the other.

    Parameters
    ----------
    objective
        The loss. It may gather the rows of several processes; each then has the stand-ins of its own rows.
    parts
        What the networks made of each part, in order, without gradients.

    Returns
    -------
    Tensor
        The loss, detached.
    list
        A stand-in for each part. The random numbers behind z, those of drop-out, have to be the same again.

    References
    ----------
    .. [1] Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021.
    """
    whole = joined(parts)
    leaves = {name: each.requires_grad_() for name in EMBEDDED if (each := getattr(whole, name)) is not None}
    own = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    value = objective(whole)
    found = torch.autograd.grad(value, [*leaves.values(), *own], allow_unused=True)
    of_leaves = {name: each for name, each in zip(leaves, found, strict=False) if each is not None}
    # Every part has as much of it, so that each is differentiable where the networks are frozen.
    of_own = [
        (parameter, each / len(parts))
        for parameter, each in zip(own, found[len(leaves) :], strict=True)
        if each is not None
    ]
    lengths = {name: [len(getattr(part, name)) for part in parts] for name in of_leaves}
    split = {name: torch.split(each, lengths[name]) for name, each in of_leaves.items()}
    forms = [StandIn({name: each[i] for name, each in split.items()}, of_own) for i in range(len(parts))]
    return value.detach(), forms


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Return what joint losses read of several parts as that of one batch."""
    there = [name for name in READ if getattr(parts[0], name) is not None]
    return Outputs(**{name: torch.cat([getattr(part, name) for part in parts]) for name in there})


def only(outputs: Outputs) -> Outputs:
    """Return what joint losses read of outputs, and nothing else that would take memory."""
    return Outputs(**{name: getattr(outputs, name) for name in READ})
