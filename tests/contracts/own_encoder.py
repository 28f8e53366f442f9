"""Encoders as a user may write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from featurestore.encoder import EncoderOptions
from featurestore.spec import EncoderSpec
from featurestore.text_encoder import TextEncoder, Tokens


def _spec(options: EncoderOptions, name: str, dim: int) -> EncoderSpec:
    return EncoderSpec(
        family="python",
        modality="text",
        architecture={"class": name},
        weights="none",
        preprocess={},
        layer="output",
        pooling="native",
        precision=options.precision,
        dtype=options.dtype,
        dim=dim,
    )


def _counts(texts: Sequence[str]) -> Tokens:
    return Tokens({"counts": torch.tensor([[float(len(text)), float(text.count("a"))] for text in texts])}, 0)


def letters(options: EncoderOptions) -> TextEncoder:
    """Return an encoder of the number of letters."""

    def compute(inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["counts"]

    return TextEncoder(spec=_spec(options, "Letters", 2), tokenize=_counts, compute=compute, device=options.device)


def overflowing(options: EncoderOptions) -> TextEncoder:
    """Return an encoder whose products leave the range of fp16."""

    def compute(inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["counts"] @ torch.full((2, 3), 200.0)

    return TextEncoder(spec=_spec(options, "Overflowing", 3), tokenize=_counts, compute=compute, device=options.device)
