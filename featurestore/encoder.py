"""The encoder seam: read and collate on the CPU in threads, encode on the device.

::

    Source --read--> item --collate--> batch --encode--> float32 (n, dim), or of tokens n times (t, dim)
           threads          threads           one thread, or one per core

`read` and `collate` must be safe to call from several threads at once and must not depend on what
else is in the batch. `encode` is called from one thread; an encoder that has ``thread_safe = True``
is called from one thread per core on a CPU, where that is faster. An encoder is frozen: eval mode,
no gradients, no randomness.

One forward pass may be read at several levels: its class token, the mean of its tokens, the tokens
themselves. An encoder that can do so is `Leveled`, and each level has a specification of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from data.manifest import Modality, Source
from featurestore.pooling_text import Pooling
from featurestore.spec import EncoderSpec, Precision, StoredType

if TYPE_CHECKING:
    from torch import Tensor

Embeddings: TypeAlias = "Tensor | Sequence[Tensor]"
"""One vector per sample, (n, dim); or of tokens, (n, t, dim) or n tensors of shape (t, dim)."""


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What a user may choose about an encoder, besides its id.

    Attributes
    ----------
    modality
        Which tower of a two-tower model to use; None takes the only one there is.
    pooling
        ``auto`` takes the encoder's own; else one of those it has. ``@6`` behind it takes the tokens behind the sixth
        block, ``@-1`` behind the last. For texts, ``+chunks`` behind it encodes long ones in pieces instead of cutting
        them.
    also
        Further poolings of the same forward pass.
    precision
        Arithmetic of the forward pass.
    dtype, ragged_dtype
        Stored type where a sample is one vector, and where it is its tokens.
    device
        A torch device: ``cpu``, ``cuda``, ``cuda:1``.
    trust_remote_code
        Whether code that comes with a checkpoint may run. Off unless the user asks.
    """

    modality: Modality | None = None
    pooling: str = "auto"
    also: tuple[str, ...] = ()
    precision: Precision = "fp32"
    dtype: StoredType = "float16"
    ragged_dtype: StoredType = "float16"
    device: str = "cpu"
    trust_remote_code: bool = False

    @property
    def poolings(self) -> tuple[str, ...]:
        """Return every pooling that was asked for, each once."""
        return tuple(dict.fromkeys((self.pooling, *self.also)))

    def dtype_of(self, pooling: str) -> StoredType:
        """Return the stored type of a pooling's embeddings."""
        return self.ragged_dtype if Pooling.parse(pooling).is_tokens else self.dtype


class Encoder(Protocol):
    """A frozen encoder of one modality."""

    spec: EncoderSpec

    def read(self, source: Source) -> Any:
        """Decode one sample on the CPU.

        Raises
        ------
        SampleError
            If the sample cannot be decoded.
        """
        ...

    def collate(self, items: Sequence[Any]) -> Any:
        """Join decoded samples into one batch on the CPU."""
        ...

    def encode(self, batch: Any) -> Embeddings:
        """Return the embeddings of a batch: float32, shape (n, dim), on the CPU, row i for item i.

        Where the specification is `ragged`, the tokens of item i are row i of (n, t, dim), or tensor i of a list.
        """
        ...

    def encode_reference(self, sources: Sequence[Source]) -> Embeddings:
        """Return the embeddings by the library's own transform in fp32, one by one: the yardstick of fidelity."""
        ...


class Leveled(Encoder, Protocol):
    """An encoder of one or several levels of one forward pass; `Encoder`'s own methods are about the first."""

    levels: tuple[EncoderSpec, ...]

    def encode_levels(self, batch: Any) -> tuple[Embeddings, ...]:
        """Return what `encode` does, of every level."""
        ...

    def encode_reference_levels(self, sources: Sequence[Source]) -> tuple[Embeddings, ...]:
        """Return what `encode_reference` does, of every level."""
        ...
