"""Which parts of a network train, and from when on: one meaning for every kind of network.

=====================  =============================================================================================
``none``               nothing
``last:K``             the K uppermost blocks and all above them
``all``                everything
``frozen:S``           all but the share S of the blocks, counted from the bottom: 0 is ``all``, 1 is ``none``
``frozen:S:FORM:E``    the same with a share that goes down from 1 in epoch 0 to S in epoch E
``gradual:E:K``        nothing for E epochs, then ``last:K`` and the weights of every normalisation layer below
``lora:R``             additions of rank R to the linear layers of all blocks (Hu et al. 2021, arXiv:2106.09685)
=====================  =============================================================================================

A share between 0 and 1 of n blocks is ``last:K`` with K = (1 - share) n, rounded, a half up, and at least 1: the stem
trains at 0 alone, and below 1 something does. The share in epoch e, with p = min(1, e / E):

=============== =======================================
``constant``    S, from epoch 0 on; E has no part in it
``linear``      1 - (1 - S) p
``cosine``      1 - (1 - S) (1 - cos(pi p)) / 2
``step``        1 before epoch E, then S
=============== =======================================

It never goes up, so that what once trains goes on training.

What does not train is in eval mode, so that nothing drops out of it. Batch norms are always: their weights train, their
statistics stay those of the base. A classifier that begins with a head of frozen features sees these features in
training too, and a step does not depend on how a batch is split into passes or shared by processes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.errors import ConfigError
from featurestore.errors import EncoderError, EncoderUnavailable
from featurestore.weights import seeded
from finetune.blocks import anatomy, is_outside, norms
from finetune.schedules import Ramp, weight_factor

_FORMS: tuple[tuple[re.Pattern[str], dict[str, Callable[[str], Any]]], ...] = (
    (re.compile(r"(none|all)"), {}),
    (re.compile(r"(last):([1-9]\d*)"), {"blocks": int}),
    (re.compile(r"(frozen):([01]|[01]?\.\d+)"), {"share": float}),
    (
        re.compile(r"(frozen):([01]|[01]?\.\d+):(constant|linear|cosine|step):([1-9]\d*)"),
        {"share": float, "form": str, "ramp_epochs": int},
    ),
    (re.compile(r"(gradual):(\d+):([1-9]\d*)"), {"frozen_epochs": int, "blocks": int}),
    (re.compile(r"(lora):([1-9]\d*)"), {"rank": int}),
)
_LORA = re.compile(r"(^|\.)lora_[A-Za-z_]+\.")
_ADAPTER = "default"
"""The name under which peft keeps the one addition there is."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What of a network trains in which epoch.

    Attributes
    ----------
    kind
        ``none``, ``last``, ``all``, ``frozen``, ``gradual`` or ``lora``.
    blocks
        Number of uppermost blocks that train, of ``last`` and ``gradual``.
    share, form, ramp_epochs
        Share of the blocks that is frozen in the end, 0 to 1, how it gets there, and in how many epochs; of ``frozen``.
    frozen_epochs
        Epochs before anything trains, of ``gradual``.
    rank
        Of the additions, of ``lora``.
    option
        What it was given with, for messages.
    """

    kind: Literal["none", "last", "all", "frozen", "gradual", "lora"]
    blocks: int = 0
    share: float = 0.0
    form: Ramp | Literal["constant"] = "constant"
    ramp_epochs: int = 0
    frozen_epochs: int = 0
    rank: int = 0
    option: str = field(default="--unfreeze", compare=False)

    @classmethod
    def parse(cls, text: str, *, option: str = "--unfreeze") -> Self:
        """Return the policy that ``--unfreeze``, or another option, names.

        Raises
        ------
        ConfigError
            If it names none.
        """
        for form, fields in _FORMS:
            if match := form.fullmatch(text.strip()):
                kind, *given = match.groups()
                values: Any = {name: read(each) for (name, read), each in zip(fields.items(), given, strict=True)}
                if values.get("share", 0) <= 1:
                    return cls(kind=cast("Any", kind), option=option, **values)
        raise ConfigError(
            f"{option} {text}: expected none, last:K, all, frozen:S, frozen:S:FORM:E, gradual:E:K or lora:R: whole "
            f"numbers of K blocks and rank R from 1, of E epochs from 0 (of a FORM from 1), a share S of the blocks "
            f"from 0 to 1, and the FORM constant, linear, cosine or step"
        )

    def __str__(self) -> str:
        """Return the policy as `parse` takes it."""
        ramp: list[Any] = [self.form, self.ramp_epochs] if self.ramp_epochs else []
        values: dict[str, list[Any]] = {
            "last": [self.blocks],
            "frozen": [repr(self.share).removesuffix(".0"), *ramp],
            "gradual": [self.frozen_epochs, self.blocks],
            "lora": [self.rank],
        }
        return ":".join([self.kind, *map(str, values.get(self.kind, []))])

    @property
    def first_epoch(self) -> int | None:
        """The epoch in which a part of the network first trains; None: never."""
        if self.kind == "none" or self.share == 1:
            return None
        if self.kind == "frozen":
            return next(epoch for epoch in range(self.ramp_epochs + 1) if self.frozen_share(epoch) < 1)
        return self.frozen_epochs

    def changes_at(self, epoch: int) -> bool:
        """Return whether other parameters may train in an epoch than in the one before it."""
        if self.kind == "frozen":
            return epoch > 0 and self.frozen_share(epoch) != self.frozen_share(epoch - 1)
        return self.kind == "gradual" and epoch == self.frozen_epochs > 0

    def frozen_share(self, epoch: int) -> float:
        """Return which share of the blocks is frozen in an epoch, of ``frozen``."""
        if self.form == "constant":
            return self.share
        return weight_factor(self.form, epoch, begin=0, end=self.ramp_epochs, start=1.0, stop=self.share)

    def as_last(self, count: int) -> int | None:
        """Return the K of the ``last:K`` that this is in every epoch, for a network of `count` blocks; None if of none.

        ``frozen`` is if its share is constant and neither 0 nor 1.
        """
        if self.kind == "frozen" and self.form == "constant" and 0 < self.share < 1:
            return _blocks_of(self.share, count)
        return self.blocks if self.kind == "last" else None

    def prepare(self, network: nn.Module, *, seed: int = 0) -> None:
        """Check that the policy fits a network, and put in what ``lora`` adds; once, before an optimizer is made.

        Parameters
        ----------
        network
            A tower's network; its output stays what it is.
        seed
            Of the additions' first weights.

        Raises
        ------
        EncoderError
            If its blocks are not known, are fewer than should train, or have no linear layer to add to.
        EncoderUnavailable
            If LoRA is asked for and peft is not installed.
        """
        if self.kind == "lora":
            _add_lora(network, self, seed)
        elif self._counts_blocks:
            count = len(anatomy(network).blocks)
            if self.blocks > count:
                raise EncoderError(
                    f"{self.option} {self}: {type(network).__name__} has {count} blocks, fewer than {self.blocks}; "
                    f"choose at most {count}, or all"
                )

    @property
    def _counts_blocks(self) -> bool:
        between = 0 < self.share < 1 or self.form in ("linear", "cosine")
        return self.kind in ("last", "gradual") or (self.kind == "frozen" and between)

    def apply(self, network: nn.Module, epoch: int) -> None:
        """Let train what trains in an epoch, and put all else in eval mode without gradients.

        At the beginning of every epoch, and again after anything has called ``network.train()``.

        Parameters
        ----------
        network
            The network that was prepared.
        epoch
            From 0.
        """
        network.requires_grad_(requires_grad=False)
        network.eval()
        if self.first_epoch is None or epoch < self.first_epoch:
            return
        if self.kind == "lora":
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(_LORA.search(name) is not None)
        elif self.kind == "all" or (self.kind == "frozen" and self.frozen_share(epoch) == 0):
            for name, parameter in network.named_parameters():
                parameter.requires_grad_(not is_outside(name))
            network.train()
        else:
            self._open_upper_part(network, epoch)
        _keep_statistics(network)

    def _open_upper_part(self, network: nn.Module, epoch: int) -> None:
        parts = anatomy(network)
        count = len(parts.blocks)
        trained = _blocks_of(self.frozen_share(epoch), count) if self.kind == "frozen" else self.blocks
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(parts.depths.get(name, -1) > count - trained)
        for module in (*parts.blocks[-trained:], *parts.top):
            module.train()
        if self.kind == "gradual":
            for norm in norms(network):
                norm.requires_grad_(requires_grad=True)


def _blocks_of(share: float, count: int) -> int:
    """Return how many of the blocks train where a share of them, less than 1, is frozen."""
    # What a decimal number lacks to a half in binary, as 0.9 of 5 does, must not decide.
    return max(1, math.floor(round((1 - share) * count, 9) + 0.5))


def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """Return the state of a network as it was before LoRA, with what was learned added to its weights.

    ``W + s B A``, s the scale of the additions. Without LoRA this is the state as it is. The network is not changed.

    Returns
    -------
    dict
        Name to tensor, on the CPU, detached; names are those of the encoder's own network.
    """
    layers: dict[str, Any] = {name: module for name, module in network.named_modules() if hasattr(module, "lora_A")}
    state = {
        name.replace(".base_layer.", "."): tensor.detach().cpu()
        for name, tensor in network.state_dict().items()
        if _LORA.search(name) is None
    }
    for name, layer in layers.items():
        state[f"{name}.weight"] = state[f"{name}.weight"] + layer.get_delta_weight(_ADAPTER).detach().cpu()
    return state


def _keep_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.training = False  # itself: a norm may hold other layers


def _add_lora(network: nn.Module, policy: Policy, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise EncoderUnavailable(
            f"{policy.option} {policy} needs a package that is missing ({error}): pip install peft"
        ) from error
    targets = _linear_layers(network)
    if not targets:
        raise EncoderError(
            f"{policy.option} {policy}: the blocks of {type(network).__name__} have no linear layers; choose last:K"
        )
    # Added to zero at first, with a scale that does not depend on the rank.
    config = LoraConfig(r=policy.rank, lora_alpha=2 * policy.rank, lora_dropout=0.0, target_modules=targets)
    with seeded(seed):
        inject_adapter_in_model(config, network, adapter_name=_ADAPTER)


def _linear_layers(network: nn.Module) -> list[str]:
    """Return the names of the linear layers in the blocks.

    Those inside `torch.nn.MultiheadAttention` are left out: it takes their weights without calling them, so that
    nothing added to them would have an effect.
    """
    inside = {id(module) for block in anatomy(network).blocks for module in block.modules()}
    closed = [f"{name}." for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)]
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside and not name.startswith(tuple(closed))
    ]
