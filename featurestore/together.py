"""Several encoders of one modality on one decode: each sample is read from the disk once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from data.manifest import Source
from featurestore.encoder import Embeddings, Encoder
from featurestore.levels import embed, embed_reference, levels_of


class Together:
    """Several encoders as one, with the levels of all of them; fulfils `featurestore.encoder.Leveled`.

    Encoders that decode alike share what was decoded; the others read for themselves. A sample that one of them
    cannot take is a failure for all.

    Parameters
    ----------
    encoders
        Encoders of one modality and one precision.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self.encoders = tuple(encoders)
        self.levels = tuple(chain.from_iterable(map(levels_of, encoders)))
        self.spec = self.levels[0]
        self.thread_safe = all(getattr(each, "thread_safe", False) for each in encoders)

    @property
    def truncated(self) -> int:
        """Number of texts that were cut, counted for each encoder that cut them."""
        return sum(getattr(each, "truncated", 0) for each in self.encoders)

    @property
    def fallbacks(self) -> int:
        """Number of batches that overflowed half precision, counted for each encoder."""
        return sum(getattr(each, "fallbacks", 0) for each in self.encoders)

    def read(self, source: Source) -> tuple[Any, ...]:
        """Return one sample as each encoder takes it, decoded as seldom as they allow.

        Raises
        ------
        SampleError
            If the sample cannot be decoded, or one of the encoders cannot take it.
        """
        decoded: dict[Any, Any] = {}

        def read_by(encoder: Any) -> Any:
            if not hasattr(encoder, "decoding"):
                return encoder.read(source)
            if encoder.decoding not in decoded:
                decoded[encoder.decoding] = encoder.decode(source)
            return encoder.prepare(decoded[encoder.decoding])

        return tuple(map(read_by, self.encoders))

    def collate(self, items: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        """Return a batch for each encoder."""
        columns = zip(*items, strict=True)
        return tuple(each.collate(column) for each, column in zip(self.encoders, columns, strict=True))

    def encode(self, batch: tuple[Any, ...]) -> Embeddings:
        """Return the embeddings of the first encoder's first level."""
        return self.encode_levels(batch)[0]

    def encode_levels(self, batch: tuple[Any, ...]) -> tuple[Embeddings, ...]:
        """Return the embeddings of a batch, encoder by encoder and level by level."""
        return tuple(chain.from_iterable(map(embed, self.encoders, batch)))

    def encode_reference(self, sources: Sequence[Source]) -> Embeddings:
        """Return the reference of the first encoder's first level."""
        return self.encode_reference_levels(sources)[0]

    def encode_reference_levels(self, sources: Sequence[Source]) -> tuple[Embeddings, ...]:
        """Return the embeddings by the libraries' own transforms in fp32, encoder by encoder and level by level."""
        return tuple(chain.from_iterable(embed_reference(each, sources) for each in self.encoders))
