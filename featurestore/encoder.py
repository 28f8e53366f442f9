"""The encoder seam: read and collate on the CPU in threads, encode on the device.

::

    Source --read--> item --collate--> batch --encode--> float32 (n, dim)
           threads          threads           one thread, or one per core

`read` and `collate` must be safe to call from several threads at once and must not depend on what
else is in the batch. `encode` is called from one thread; an encoder that has ``thread_safe = True``
is called from one thread per core on a CPU, where that is faster. An encoder is frozen: eval mode,
no gradients, no randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from data.manifest import Modality, Source
from featurestore.spec import EncoderSpec, Precision, StoredType

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class EncoderOptions:
    """What a user may choose about an encoder, besides its id.

    Attributes
    ----------
    modality
        Which tower of a two-tower model to use; None takes the only one there is.
    pooling
        ``auto`` takes the encoder's own; else one of its `poolings`. For texts, ``+chunks`` behind it encodes long ones
        in pieces instead of cutting them.
    precision
        Arithmetic of the forward pass.
    dtype
        Stored type.
    device
        A torch device: ``cpu``, ``cuda``, ``cuda:1``.
    trust_remote_code
        Whether code that comes with a checkpoint may run. Off unless the user asks.
    """

    modality: Modality | None = None
    pooling: str = "auto"
    precision: Precision = "fp32"
    dtype: StoredType = "float16"
    device: str = "cpu"
    trust_remote_code: bool = False


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

    def encode(self, batch: Any) -> Tensor:
        """Return the embeddings of a batch: float32, shape (n, dim), on the CPU, row i for item i."""
        ...

    def encode_reference(self, sources: Sequence[Source]) -> Tensor:
        """Return the embeddings by the library's own transform in fp32, one by one: the yardstick of fidelity."""
        ...
