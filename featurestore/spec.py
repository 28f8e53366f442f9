"""EncoderSpec: everything that determines the value of an embedding, and its fingerprint.

Two things are the same encoder when, and only when, their fingerprints are equal. Names are not in
it (a hub id, a mirror and a local copy of the same weights are one encoder); contents are. What
cannot change a value beyond rounding (device, batch size, library versions) is recorded beside the
embeddings instead, and a canary guards it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from data.digest import digest_json
from data.manifest import Modality

SCHEMA = 1
"""Version of what a fingerprint covers; a change to the meaning of any field raises it."""

Precision = Literal["fp32", "fp16", "bf16"]
"""``fp32`` runs the reference path to the letter; the others may decode and resize faster within a measured error."""

StoredType = Literal["float16", "float32"]

TOKENS = "tokens"
"""The pooling that pools nothing."""

AUGMENTED = "augmented"
"""The family, and the wrapper, whose samples are several augmented views (`featurestore.augmentation`)."""


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """The identity of an encoder.

    Attributes
    ----------
    family
        The module in `featurestore.encoders` that made it.
    modality
        What it encodes.
    architecture
        The model class and its configuration, as the checkpoint states them.
    weights
        SHA-256 over the sorted state dict: name, dtype, shape and bytes of every tensor.
    preprocess
        Image geometry and statistics, or tokenizer and its settings, read from the checkpoint.
    layer
        Where in the network the embedding is taken, e.g. ``projection`` or ``last_hidden_state``.
    pooling
        How tokens become one vector: ``native``, ``cls``, ``mean`` or ``max``, and ``+chunks`` behind it where long
        texts are encoded in pieces; or ``tokens``, all of them as they are.
    precision
        The arithmetic of the forward pass.
    dtype
        The stored type: ``float32`` or ``float16``.
    dim
        Length of one embedding.
    version
        Version of the family's code; raised whenever a change moves values.
    """

    family: str
    modality: Modality
    architecture: Mapping[str, Any]
    weights: str
    preprocess: Mapping[str, Any]
    layer: str
    pooling: str
    precision: Precision
    dtype: StoredType
    dim: int
    version: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Return the specification as JSON-ready values."""
        return {"schema": SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> EncoderSpec:
        """Return the specification that `to_dict` wrote."""
        return cls(**{name: value for name, value in state.items() if name != "schema"})

    @property
    def ragged(self) -> bool:
        """Whether a sample has several vectors, one per token or augmented view, instead of one."""
        return self.pooling == TOKENS or self.family == AUGMENTED

    @property
    def parts(self) -> str:
        """What the vectors of a ragged sample are, in words."""
        return "views" if self.family == AUGMENTED else "tokens"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical JSON of the specification, 64 hexadecimal digits."""
        return digest_json(self.to_dict())
