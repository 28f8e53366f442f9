"""Long texts in pieces: a text that is longer than its encoder's limit is encoded whole, not cut.

::

    tokens of a text  ->  pieces of as many tokens as fit, each with the special tokens of a text of its own
                      ->  one vector per piece  ->  their mean, weighted by the number of tokens of each

The pieces follow each other without overlap; special tokens and padding do not count. A text that fits is one
piece, and its vector is the one that it has without this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from data.manifest import Source
from featurestore.encoder import Embeddings
from featurestore.forward import pinned
from featurestore.levels import as_levels, joined
from featurestore.pooling_text import CHUNKS
from featurestore.spec import EncoderSpec
from featurestore.text_encoder import TextEncoder, Tokens
from featurestore.together import Together


class Chunks(NamedTuple):
    """Tokenised pieces of texts.

    Attributes
    ----------
    inputs
        The network's keyword arguments, each of shape (m, t), one row per piece.
    owners
        The text that each piece is of, shape (m,), int64, from 0 to `texts` - 1, in order.
    weights
        Number of tokens of each piece, at least 1, shape (m,), float32.
    texts
        Number of texts.
    """

    inputs: Mapping[str, Tensor]
    owners: Tensor
    weights: Tensor
    texts: int


class Tokenizer(Protocol):
    """From texts to tokens: cut at the limit, or whole and in pieces."""

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Return one row per text, cut at the limit."""
        ...

    def chunks(self, texts: Sequence[str]) -> Chunks:
        """Return one row per piece, nothing cut."""
        ...


class ChunkedTextEncoder(TextEncoder):
    """A text encoder of which the vector of a long text is the mean over its pieces.

    Parameters
    ----------
    tokenizer
        From texts to tokens, both ways; called by one thread at a time.
    spec, compute, device, similarity, lock, network
        As of `TextEncoder`.

    Attributes
    ----------
    chunked
        Number of texts that were encoded in more than one piece so far.
    """

    def __init__(
        self,
        *,
        spec: EncoderSpec | tuple[EncoderSpec, ...],
        tokenizer: Tokenizer,
        compute: Callable[[Mapping[str, Tensor]], Any],
        device: str,
        similarity: Mapping[str, float] | None = None,
        lock: Lock | None = None,
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(
            spec=spec,
            tokenize=tokenizer,
            compute=compute,
            device=device,
            similarity=similarity,
            lock=lock,
            network=network,
        )
        self.chunked = 0
        self._split = tokenizer.chunks

    def shortened(self, text: str) -> str:
        """Return the text, of which every piece is read."""
        return text

    def collate(self, items: Sequence[str]) -> Chunks:  # type: ignore[override]  # pieces of texts instead of texts
        """Return the pieces of a batch of texts, padded to the longest."""
        with self._lock:
            chunks = self._split(items)
            self.chunked += int((torch.bincount(chunks.owners, minlength=chunks.texts) > 1).sum())
        inputs = {name: pinned(tensor, self._forward.device) for name, tensor in chunks.inputs.items()}
        return chunks._replace(inputs=inputs)

    def encode(self, batch: Chunks) -> Embeddings:  # type: ignore[override]
        """Return the embeddings of a batch: float32, shape (n, dim), on the CPU."""
        return self.encode_levels(batch)[0]

    def encode_levels(self, batch: Chunks) -> tuple[Tensor, ...]:  # type: ignore[override]
        """Return the embeddings of a batch, level by level."""
        # As many pieces at once as there are texts: however long these are, the memory is that of one batch.
        parts = zip(*(torch.split(tensor, batch.texts) for tensor in batch.inputs.values()), strict=True)
        rows = (self._on_device(dict(zip(batch.inputs, part, strict=True))) for part in parts)
        return _averages([as_levels(self._forward(row)) for row in rows], batch)

    def encode_reference_levels(self, sources: Sequence[Source]) -> tuple[Embeddings, ...]:
        """Return the embeddings in fp32, one piece at a time, level by level."""
        return joined([self._reference(self.read(source)) for source in sources])

    def _reference(self, text: str) -> tuple[Tensor, ...]:
        with self._lock:
            chunks = self._split([text])
        rows = ({name: tensor[i : i + 1] for name, tensor in chunks.inputs.items()} for i in range(len(chunks.owners)))
        return _averages([as_levels(self._forward.reference(self._on_device(row))) for row in rows], chunks)


def average(vectors: Tensor, chunks: Chunks) -> Tensor:
    """Return the mean of each text's pieces, weighted by their tokens: from shape (m, d) to (n, d)."""
    totals = torch.zeros(chunks.texts).index_add_(0, chunks.owners, chunks.weights)
    # The share of an only piece is exactly 1: a short text keeps its vector to the last bit.
    shares = chunks.weights / totals[chunks.owners]
    return vectors.new_zeros(chunks.texts, vectors.shape[1]).index_add_(0, chunks.owners, vectors * shares[:, None])


def _averages(parts: Sequence[tuple[Embeddings, ...]], chunks: Chunks) -> tuple[Tensor, ...]:
    """Return the mean of each text's pieces, level by level; the pieces come in several batches."""
    return tuple(average(cast("Tensor", level), chunks) for level in joined(parts))


def make_text_encoder(
    *,
    levels: tuple[EncoderSpec, ...],
    tokenizer: Tokenizer,
    compute: Callable[[Mapping[str, Tensor], Sequence[str]], tuple[Embeddings, ...]],
    network: nn.Module,
    device: str,
    similarity: Mapping[str, float] | None = None,
) -> TextEncoder | Together:
    """Return a text encoder that cuts long texts, one that encodes them in pieces, or both, as its poolings say.

    Parameters
    ----------
    levels
        The identity of each pooling; those of both kinds take a pass per kind, since they see other tokens.
    tokenizer
        From texts to tokens, both ways.
    compute
        From the token tensors, on the device, and poolings without `CHUNKS` to the embeddings of each.
    network, device, similarity
        As of `TextEncoder`.
    """
    lock = Lock()

    def make(spec: tuple[EncoderSpec, ...]) -> TextEncoder:
        poolings = [each.pooling.removesuffix(CHUNKS) for each in spec]

        def read(inputs: Mapping[str, Tensor]) -> tuple[Embeddings, ...]:
            return compute(inputs, poolings)

        shared: Any = {"compute": read, "network": network, "device": device, "similarity": similarity, "lock": lock}
        if _in_pieces(spec[0]):
            return ChunkedTextEncoder(spec=spec, tokenizer=tokenizer, **shared)
        return TextEncoder(spec=spec, tokenize=tokenizer, **shared)

    # What was asked for first stays first.
    kinds = dict.fromkeys(map(_in_pieces, levels))
    made = [make(tuple(each for each in levels if _in_pieces(each) == kind)) for kind in kinds]
    return made[0] if len(made) == 1 else Together(made)


def _in_pieces(spec: EncoderSpec) -> bool:
    return spec.pooling.endswith(CHUNKS)
