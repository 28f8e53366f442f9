"""Which parts of a network train, and from when on: one meaning for every kind of network.

==============  ====================================================================================================
``none``        nothing
``last:K``      the K uppermost blocks and all above them
``all``         everything
``gradual:E:K`` nothing for E epochs, then ``last:K`` and the weights of every normalisation layer below
``lora:R``      additions of rank R to the linear layers of all blocks (Hu et al. 2021, arXiv:2106.09685)
==============  ====================================================================================================

What does not train is in eval mode, so that nothing drops out of it. Batch norms are always: their weights train, their
statistics stay those of the base. A classifier that begins with a head of frozen features sees these features in
training too, and a step does not depend on how a batch is split into passes or shared by processes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from data.errors import ConfigError
from featurestore.errors import EncoderError, EncoderUnavailable
from featurestore.weights import seeded
from finetune.blocks import anatomy, is_outside, norms

_FORMS = (
    (re.compile(r"(none|all)"), ()),
    (re.compile(r"(last):([1-9]\d*)"), ("blocks",)),
    (re.compile(r"(gradual):(\d+):([1-9]\d*)"), ("frozen_epochs", "blocks")),
    (re.compile(r"(lora):([1-9]\d*)"), ("rank",)),
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
        ``none``, ``last``, ``all``, ``gradual`` or ``lora``.
    blocks
        Number of uppermost blocks that train, of ``last`` and ``gradual``.
    frozen_epochs
        Epochs before anything trains, of ``gradual``.
    rank
        Of the additions, of ``lora``.
    """

    kind: Literal["none", "last", "all", "gradual", "lora"]
    blocks: int = 0
    frozen_epochs: int = 0
    rank: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the policy that ``--unfreeze`` names.

        Raises
        ------
        ConfigError
            If it names none.
        """
        for form, fields in _FORMS:
            if match := form.fullmatch(text.strip()):
                kind, *numbers = match.groups()
                values: Any = dict(zip(fields, map(int, numbers), strict=True))
                return cls(kind=cast("Any", kind), **values)
        raise ConfigError(
            f"--unfreeze {text}: expected none, last:K, all, gradual:E:K or lora:R, with whole numbers: K blocks and "
            f"rank R from 1, E epochs from 0"
        )

    def __str__(self) -> str:
        """Return the policy as `parse` takes it."""
        numbers = {"last": [self.blocks], "gradual": [self.frozen_epochs, self.blocks], "lora": [self.rank]}
        return ":".join([self.kind, *map(str, numbers.get(self.kind, []))])

    @property
    def first_epoch(self) -> int | None:
        """The epoch in which a part of the network first trains; None: never."""
        return None if self.kind == "none" else self.frozen_epochs

    def changes_at(self, epoch: int) -> bool:
        """Return whether other parameters train in an epoch than in the one before it."""
        return self.kind == "gradual" and epoch == self.frozen_epochs > 0

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
            _add_lora(network, self.rank, seed)
        elif self.kind in ("last", "gradual"):
            count = len(anatomy(network).blocks)
            if self.blocks > count:
                raise EncoderError(
                    f"--unfreeze {self}: {type(network).__name__} has {count} blocks, fewer than {self.blocks}; "
                    f"choose at most {count}, or all"
                )

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
        for name, parameter in network.named_parameters():
            parameter.requires_grad_((self.kind == "all" and not is_outside(name)) or self._is_added(name))
        if self.kind == "all":
            network.train()
        elif self.blocks:
            self._open_upper_part(network)
        _keep_statistics(network)

    def _is_added(self, name: str) -> bool:
        return self.kind == "lora" and _LORA.search(name) is not None

    def _open_upper_part(self, network: nn.Module) -> None:
        parts = anatomy(network)
        lowest = len(parts.blocks) - self.blocks + 1
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(parts.depths.get(name, -1) >= lowest)
        for module in (*parts.blocks[-self.blocks :], *parts.top):
            module.train()
        if self.kind == "gradual":
            for norm in norms(network):
                norm.requires_grad_(requires_grad=True)


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


def _add_lora(network: nn.Module, rank: int, seed: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise EncoderUnavailable(
            f"--unfreeze lora:{rank} needs a package that is missing ({error}): pip install peft"
        ) from error
    targets = _linear_layers(network)
    if not targets:
        raise EncoderError(
            f"--unfreeze lora:{rank}: the blocks of {type(network).__name__} have no linear layers; choose last:K"
        )
    # Added to zero at first, with a scale that does not depend on the rank.
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets)
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
