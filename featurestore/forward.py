"""The forward pass of a frozen network: its arithmetic, its copies and its check for overflow, in one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from featurestore.spec import Precision

Inputs = TypeVar("Inputs")
Output = TypeVar("Output")
_Model = TypeVar("_Model", bound=nn.Module)
_MAX_PATCH_CONVOLUTIONS = 4
_AUTOCAST = {"fp16": torch.float16, "bf16": torch.bfloat16}


def freeze(model: _Model, device: str) -> _Model:
    """Return the model in eval mode, in float32, without gradients, on a device, laid out as it computes fastest."""
    frozen = model.float().eval().requires_grad_(requires_grad=False).to(device)
    return frozen.to(memory_format=torch.channels_last) if is_convolutional(frozen) else frozen


def is_convolutional(model: nn.Module) -> bool:
    """Return whether a network is mostly convolutions, and so faster with channels innermost; a ViT has one."""
    return sum(isinstance(part, nn.Conv2d) for part in model.modules()) > _MAX_PATCH_CONVOLUTIONS


class Forward(Generic[Inputs, Output]):
    """A frozen forward pass.

    ``fp32`` is the reference: no autocast, no TF32. ``fp16`` and ``bf16`` autocast; a batch whose result
    is not finite is computed again in ``fp32``, so that an overflow of half precision costs time and
    never values. What is still not finite afterwards is so in the network itself, and is returned as it is.

    Parameters
    ----------
    compute
        From inputs on the device to embeddings: shape (n, dim); of tokens (n, t, dim) or a list of (t, dim); of
        several levels a tuple of these.
    device, precision
        Where, and in which arithmetic.

    Attributes
    ----------
    compute
        As given: with gradients, wherever its inputs are.
    fallbacks
        Number of batches that were computed again in fp32.
    """

    def __init__(self, compute: Callable[[Inputs], Output], *, device: str, precision: Precision) -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.fallbacks = 0
        self.compute = compute
        self._lock = Lock()

    def __call__(self, inputs: Inputs) -> Output:
        """Return the embeddings of a batch, float32, on the CPU."""
        if self.precision == "fp32":
            return self.reference(inputs)
        with torch.inference_mode(), torch.autocast(self.device.type, _AUTOCAST[self.precision]):
            made = _float32_on_cpu(self.compute(inputs))
        if all(bool(torch.isfinite(tensor).all()) for tensor in _tensors(made)):
            return made
        with self._lock:
            self.fallbacks += 1
        return self.reference(inputs)

    def reference(self, inputs: Inputs) -> Output:
        """Return the embeddings of a batch in full float32, whatever the precision."""
        with torch.inference_mode(), _full_float32(self.device):
            return _float32_on_cpu(self.compute(inputs))


def _float32_on_cpu(made: Output) -> Output:
    """Return a tensor, or tensors in lists and tuples, in float32 on the CPU."""
    if isinstance(made, Tensor):
        return cast("Output", made.float().cpu())
    kind: Any = type(made)
    return cast("Output", kind(_float32_on_cpu(each) for each in cast("Any", made)))


def _tensors(made: Any) -> Iterator[Tensor]:
    if isinstance(made, Tensor):
        yield made
        return
    for each in made:
        yield from _tensors(each)


@contextmanager
def _full_float32(device: torch.device) -> Iterator[None]:
    """Keep matrix products and convolutions of a GPU in IEEE float32: TF32 has ten bits of mantissa."""
    if device.type == "cpu":  # where several threads compute at once, and the knobs are the process's
        yield
        return
    knobs = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]  # set at run time
    before = [knob.fp32_precision for knob in knobs]
    try:
        for knob in knobs:
            knob.fp32_precision = "ieee"
        yield
    finally:
        for knob, value in zip(knobs, before, strict=True):
            knob.fp32_precision = value


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor from which a copy to the device can run beside computation."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
