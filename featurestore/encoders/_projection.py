"""A projection that training put above an encoder: a stack of plain layers, described in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from featurestore.errors import EncoderError
from featurestore.forward import freeze
from featurestore.weights import assign_weights, weights_digest


class Layer(BaseModel):
    """A layer of a projection; `inputs` and `outputs` are the lengths of vectors where the layer has weights."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["linear", "layer_norm", "gelu", "relu"]
    inputs: int = 0
    outputs: int = 0
    bias: bool = True

    def make(self) -> nn.Module:
        """Return the layer with new weights."""
        if self.kind == "linear":
            return nn.Linear(self.inputs, self.outputs, bias=self.bias)
        if self.kind == "layer_norm":
            return nn.LayerNorm(self.inputs)
        return nn.GELU() if self.kind == "gelu" else nn.ReLU()


def describe_projection(module: nn.Module | None) -> tuple[list[Layer], dict[str, Tensor]]:
    """Return the layers of a projection and their weights, as `make_projection` takes them.

    Parameters
    ----------
    module
        Linear layers, layer norms, GELU and ReLU, alone or in `torch.nn.Sequential`; dropout is left out, since it does
        nothing after training. None is no layer.

    Raises
    ------
    EncoderError
        If it has a layer of another kind.
    """
    parts = [part for part in _leaves(module) if not isinstance(part, nn.Dropout | nn.Identity)]
    layers = [_describe(part) for part in parts]
    return layers, {
        f"{i}.{name}": tensor.detach().cpu()
        for i, part in enumerate(parts)
        for name, tensor in part.state_dict().items()
    }


def make_projection(
    layers: Sequence[Layer], state: Mapping[str, Tensor], *, path: object, device: str
) -> tuple[nn.Module, dict[str, Any]] | None:
    """Return a frozen projection and what identifies it, or None of no layers.

    Parameters
    ----------
    layers, state
        What `describe_projection` returned.
    path
        Where they are from, for the message.
    device
        A torch device.

    Raises
    ------
    WeightsUnavailable
        If the weights do not fit the layers.
    """
    module = nn.Sequential(*(layer.make() for layer in layers))
    assign_weights(module, state, path=path)
    if not layers:
        return None
    described = {
        "layers": [layer.model_dump() for layer in layers],
        "dim": next(layer.outputs for layer in reversed(layers) if layer.outputs),
        "weights": weights_digest(module),
    }
    return freeze(module, device), described


def _leaves(module: nn.Module | None) -> list[nn.Module]:
    if module is None:
        return []
    return [leaf for part in module for leaf in _leaves(part)] if isinstance(module, nn.Sequential) else [module]


def _describe(part: nn.Module) -> Layer:
    if type(part) is nn.Linear:
        return Layer(kind="linear", inputs=part.in_features, outputs=part.out_features, bias=part.bias is not None)
    if type(part) is nn.LayerNorm and len(part.normalized_shape) == 1 and part.elementwise_affine and part.eps == 1e-5:
        return Layer(kind="layer_norm", inputs=part.normalized_shape[0], outputs=part.normalized_shape[0])
    if type(part) is nn.GELU and part.approximate == "none":
        return Layer(kind="gelu")
    if type(part) is nn.ReLU:
        return Layer(kind="relu")
    raise EncoderError(
        f"a projection with {part} cannot be handed back; expected Linear, LayerNorm, GELU, ReLU and Dropout layers"
    )
