"""A network cut between two blocks: its own code runs below the cut and, on what was made there, above it.

Below, the forward pass ends where the last lower block has made its output. Above, the lower blocks stand aside: each
returns what it is given, and the last of them the activations. The stem sees inputs that do not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from featurestore.errors import EncoderError
from featurestore.forward import Forward, is_convolutional


class _Reached(Exception):
    """The last lower block has made its output; this is how its forward pass ends, and no error."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Cut:
    """A network and its lower blocks, which are frozen and in eval mode.

    Parameters
    ----------
    name
        The encoder's id, for messages.
    network
        The network.
    lower
        Its lower blocks, bottom to top; at least one.
    run
        The forward pass, from collated inputs.

    Attributes
    ----------
    shape
        Of the last lower block's feature maps, without samples and channels; None where it gives tokens, or nothing
        yet.
    """

    def __init__(self, name: str, network: nn.Module, lower: Sequence[nn.Module], run: Callable[[Any], Any]) -> None:
        self.shape: tuple[int, ...] | None = None
        self._name = name
        self._network = network
        self._lower = lower
        self._run = run
        # What blocks return besides activations, such as the size of a grid: the same for all inputs of one size.
        self._besides: dict[nn.Module, tuple[Any, ...] | None] = {}
        self._forward = Forward(self._run_below, device=str(self.device), precision="fp32")

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self._network.parameters()).device

    def below(self, inputs: Any) -> Tensor:
        """Return what the last lower block gives, float32, on the CPU: tokens or places of a feature map, (b, t, c).

        Raises
        ------
        EncoderError
            If the network does not work block by block.
        """
        return self._forward(inputs)

    @contextmanager
    def above(self, activations: Tensor) -> Iterator[None]:
        """Let the network continue from activations, (b, t, c), whatever its inputs are."""
        given = self._as_maps(activations.to(self.device, non_blocking=True))
        try:
            for block in self._lower:
                block.forward = self._aside(block, given if block is self._lower[-1] else None)
            yield
        finally:
            for block in self._lower:
                vars(block).pop("forward", None)

    def _run_below(self, inputs: Any) -> Tensor:
        hooks = [block.register_forward_hook(self._note) for block in self._lower[:-1]]
        hooks.append(self._lower[-1].register_forward_hook(self._stop))
        try:
            self._run(inputs)
        except _Reached as reached:
            output = reached.output
        else:
            raise EncoderError(f"{self._name}: its forward pass does not call the blocks of its network")
        finally:
            for hook in hooks:
                hook.remove()
        made = output[0] if isinstance(output, tuple) else output
        if not isinstance(made, Tensor) or made.ndim < 3:
            raise EncoderError(f"{self._name}: its blocks give neither tokens nor feature maps")
        self.shape = tuple(made.shape[2:]) if made.ndim > 3 else None
        return made if self.shape is None else made.flatten(2).transpose(1, 2)

    def _note(self, block: nn.Module, _: Any, output: Any) -> None:
        besides = tuple(output[1:]) if isinstance(output, tuple) else None
        if besides is not None and any(isinstance(each, Tensor) for each in besides):
            raise EncoderError(f"{self._name}: its blocks give several tensors")
        self._besides[block] = besides

    def _stop(self, block: nn.Module, inputs: Any, output: Any) -> None:
        self._note(block, inputs, output)
        raise _Reached(output)

    def _aside(self, block: nn.Module, given: Tensor | None) -> Callable[..., Any]:
        besides = self._besides[block]

        def forward(hidden: Tensor, *_: Any, **__: Any) -> Any:
            made = hidden if given is None else given
            return made if besides is None else (made, *besides)

        return forward

    def _as_maps(self, activations: Tensor) -> Tensor:
        if self.shape is None:
            return activations
        maps = activations.transpose(1, 2).reshape(len(activations), -1, *self.shape)
        innermost = len(self.shape) == 2 and is_convolutional(self._network)
        return maps.contiguous(memory_format=torch.channels_last if innermost else torch.contiguous_format)
