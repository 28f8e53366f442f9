"""The blocks of a network: what is stacked in it, what lies below the stack and what above.

::

    input -> stem (patches, embeddings) -> block 1 -> ... -> block n -> top (last norm, pooling, projection) -> vector
    depth         0                           1               n          n + 1
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from featurestore.errors import EncoderError

_OUTSIDE = frozenset({"logit_scale", "logit_bias", "mask_token"})
"""Parameters that no embedding depends on, although checkpoints keep them among a tower's."""


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How a kind of network names its parts.

    Attributes
    ----------
    stacks
        Modules whose children are the blocks, or, where there are several, the blocks themselves.
    stem, top
        Names of what lies below and above; a network with parts that are in neither is of another kind.
    """

    stacks: tuple[str, ...]
    stem: tuple[str, ...]
    top: tuple[str, ...]


_LAYOUTS = (
    # Vision transformers of timm
    _Layout(
        stacks=("blocks",),
        stem=("patch_embed", "cls_token", "dist_token", "reg_token", "pos_embed", "norm_pre"),
        top=("norm", "fc_norm", "attn_pool", "head", "head_dist"),
    ),
    # EfficientNet, MobileNetV3 and their kin of timm: a block is a stage
    _Layout(stacks=("blocks",), stem=("conv_stem", "bn1"), top=("conv_head", "bn2", "norm_head", "classifier")),
    # ConvNeXt of timm: a block is a stage
    _Layout(stacks=("stages",), stem=("stem",), top=("norm_pre", "head")),
    # ResNets of torchvision (images and clips), timm and open_clip: a block is a stage
    _Layout(
        stacks=("layer1", "layer2", "layer3", "layer4"),
        stem=("stem", "conv1", "bn1", "conv2", "bn2", "conv3", "bn3"),
        top=("fc", "attnpool"),
    ),
    # Vision transformers of torchvision
    _Layout(
        stacks=("encoder.layers",),
        stem=("conv_proj", "class_token", "encoder.pos_embedding"),
        top=("encoder.ln", "heads"),
    ),
    # MViT of torchvision
    _Layout(stacks=("blocks",), stem=("conv_proj", "pos_encoding"), top=("norm", "head")),
    # Image and text transformers of open_clip
    _Layout(
        stacks=("transformer.resblocks",),
        stem=("conv1", "class_embedding", "positional_embedding", "ln_pre", "token_embedding", "cls_emb"),
        top=("ln_post", "attn_pool", "proj", "ln_final", "text_projection"),
    ),
    # Transformers of Hugging Face: BERT, RoBERTa, ELECTRA, DINOv2; CLIP, SigLIP; DistilBERT; ViT, ModernBERT; DINOv3
    *(
        _Layout(
            stacks=(stack,),
            stem=("embeddings", "embeddings_project", "pre_layrnorm", "rope_embeddings"),
            top=("layernorm", "norm", "post_layernorm", "final_layer_norm", "final_norm", "head", "pooler"),
        )
        for stack in ("encoder.layer", "encoder.layers", "transformer.layer", "layers", "model.layer")
    ),
)
_WRAPPERS = ("", "vision_model.", "text_model.", "trunk.", "text.", "text.transformer.")
"""Where a network may keep the one that has the blocks."""

_ABOVE_WRAPPED = ("visual_projection", "text_projection", "head", "proj", "text.proj")
"""What lies above a network that is kept inside another."""

_STAGED = ("EfficientNet", "MobileNetV2", "MobileNetV3")
"""Networks of torchvision whose ``features`` are a stem, blocks, and a last convolution."""


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """Where everything in a network lies.

    Attributes
    ----------
    blocks
        Bottom to top.
    top
        The modules above them.
    depths
        Of each parameter by name: 0 of the stem, 1 to n of the blocks, n + 1 of the top.
    """

    blocks: list[nn.Module]
    top: list[nn.Module]
    depths: dict[str, int]


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the blocks of a network, bottom to top.

    Raises
    ------
    EncoderError
        If it is of no known kind.
    """
    return anatomy(network).blocks


def norms(network: nn.Module) -> list[nn.Module]:
    """Return the normalisation layers of a network: batch, layer, group and root-mean-square norms."""
    return [module for module in network.modules() if is_norm(module)]


def is_norm(module: nn.Module) -> bool:
    """Return whether a module is a normalisation layer; libraries have classes of their own, named after it."""
    return "norm" in type(module).__name__.lower() and next(module.parameters(recurse=False), None) is not None


def is_outside(name: str) -> bool:
    """Return whether no embedding depends on a parameter of this name."""
    return name.rpartition(".")[2] in _OUTSIDE


def anatomy(network: nn.Module) -> Anatomy:
    """Return where everything in a network lies.

    Parameters
    ----------
    network
        As encoders show it, with or without LoRA inside.

    Raises
    ------
    EncoderError
        If it is of no known kind.
    """
    for layout in _layouts_of(network):
        found = _anatomy(network, layout)
        if found is not None:
            return found
    raise EncoderError(
        f"{type(network).__name__}: its blocks are not known; known are ViT, DINO, CLIP, SigLIP, BERT, DistilBERT, "
        f"ResNet, EfficientNet, MobileNet, ConvNeXt (timm) and MViT; --unfreeze all needs no blocks"
    )


def _layouts_of(network: nn.Module) -> list[_Layout]:
    """Return every layout, as it would be inside each wrapper that the network may be."""
    if type(network).__name__ in _STAGED and isinstance(getattr(network, "features", None), nn.Sequential):
        names = [f"features.{name}" for name, _ in network.get_submodule("features").named_children()]
        return [_Layout(stacks=tuple(names[1:-1]), stem=(names[0],), top=(names[-1], "classifier"))]

    def inside(wrapper: str, layout: _Layout) -> _Layout:
        stacks, stem, top = (
            tuple(f"{wrapper}{name}" for name in names) for names in (layout.stacks, layout.stem, layout.top)
        )
        return _Layout(stacks=stacks, stem=stem, top=(*top, *(_ABOVE_WRAPPED if wrapper else ())))

    return [inside(wrapper, layout) for wrapper in _WRAPPERS for layout in _LAYOUTS]


def _anatomy(network: nn.Module, layout: _Layout) -> Anatomy | None:
    """Return where everything lies if the network has this layout."""
    modules = dict(network.named_modules())
    if not all(name in modules for name in layout.stacks):
        return None
    names = list(layout.stacks)
    if len(names) == 1:
        names = [f"{names[0]}.{child}" for child, _ in modules[names[0]].named_children()]
    places = dict.fromkeys(layout.stem, 0) | {name: i + 1 for i, name in enumerate(names)}
    places |= dict.fromkeys(layout.top, len(names) + 1)
    depths = {name: _place(name, places) for name, _ in network.named_parameters() if not is_outside(name)}
    known = {name: depth for name, depth in depths.items() if depth is not None}
    if not names or len(known) < len(depths):
        return None
    top = [modules[name] for name in layout.top if name in modules]
    return Anatomy(blocks=[modules[name] for name in names], top=top, depths=known)


def _place(name: str, places: dict[str, int]) -> int | None:
    """Return the depth of the nearest enclosing part that is known."""
    while name:
        if name in places:
            return places[name]
        name = name.rpartition(".")[0]
    return None
