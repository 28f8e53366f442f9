"""TextEncoder: any frozen text tower, with the work shared by all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, equal, nn

from data.manifest import Source
from data.text import load_text
from featurestore.encoder import Embeddings
from featurestore.forward import Forward, pinned
from featurestore.levels import as_levels, joined
from featurestore.spec import EncoderSpec

LONG = 8192
"""Characters of a text, above which it is tried whether its beginning has the same tokens."""


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts.

    Attributes
    ----------
    inputs
        The network's keyword arguments, each of shape (n, t).
    truncated
        Number of texts that were cut at the encoder's limit.
    """

    inputs: Mapping[str, Tensor]
    truncated: int


def similarity_of(logit_scale: Tensor, logit_bias: Tensor | None) -> dict[str, float]:
    """Return scale and bias of a checkpoint's logits, ``scale * cosine + bias``; its `logit_scale` is a logarithm."""
    similarity = {"scale": float(logit_scale.detach().double().exp())}
    return similarity if logit_bias is None else {**similarity, "bias": float(logit_bias.detach())}


class TextEncoder:
    """A frozen text encoder; fulfils `featurestore.encoder.Encoder`.

    Parameters
    ----------
    spec
        The encoder's identity; or, of several levels of one pass, that of each.
    tokenize
        From texts to `Tokens`; called by one thread at a time.
    compute
        From the token tensors, on the device, to embeddings of shape (n, dim); of tokens to a list of (t, dim), of
        several levels to a tuple.
    device
        A torch device.
    similarity
        How the checkpoint makes logits of the cosines between images and texts: ``scale``, and ``bias`` where it has
        one. None where it does not say.
    lock
        Shared by encoders that share a tokenizer; None makes one.
    network
        What `compute` computes with; without it the encoder cannot be fine-tuned.

    Attributes
    ----------
    truncated
        Number of texts that were cut at the encoder's limit so far.
    """

    thread_safe = True

    def __init__(
        self,
        *,
        spec: EncoderSpec | tuple[EncoderSpec, ...],
        tokenize: Callable[[Sequence[str]], Tokens],
        compute: Callable[[Mapping[str, Tensor]], Any],
        device: str,
        similarity: Mapping[str, float] | None = None,
        lock: threading.Lock | None = None,
        network: nn.Module | None = None,
    ) -> None:
        self.levels = spec if isinstance(spec, tuple) else (spec,)
        self.spec = self.levels[0]
        self.similarity = similarity
        self.network = network
        self.truncated = 0
        self._tokenize = tokenize
        self._forward = Forward(compute, device=device, precision=self.spec.precision)
        # Tokenizers keep their truncation and padding as state, and count as they go.
        self._lock = lock or threading.Lock()

    @property
    def vocabulary(self) -> Any:
        """The tokenizer of transformers behind the texts; None where it is another library's."""
        return getattr(self._tokenize, "vocabulary", None)

    @property
    def fallbacks(self) -> int:
        """Number of batches that overflowed half precision and were computed again in fp32."""
        return self._forward.fallbacks

    def read(self, source: Source) -> str:
        """Return the text: a cell's, a file's, or what a participant says in a transcript.

        Raises
        ------
        SampleError
            If there is no text, or only white space, or the file cannot be read.
        """
        return load_text(source)

    def shortened(self, text: str) -> str:
        """Return the beginning of a very long text if it has the same tokens, which are then found faster; else all."""
        if len(text) <= LONG:
            return text
        begun = text[:LONG]
        with self._lock:
            whole, found = self._tokenize([text]), self._tokenize([begun])
        is_same = whole.truncated == found.truncated and all(
            equal(tokens, found.inputs[name]) for name, tokens in whole.inputs.items()
        )
        return begun if is_same else text

    def collate(self, items: Sequence[str]) -> dict[str, Tensor]:
        """Return the tokens of a batch of texts, padded to the longest."""
        with self._lock:
            tokens = self._tokenize(items)
            self.truncated += tokens.truncated
        return {name: pinned(tensor, self._forward.device) for name, tensor in tokens.inputs.items()}

    def encode(self, batch: Mapping[str, Tensor]) -> Embeddings:
        """Return the embeddings of a batch: float32, shape (n, dim) or of tokens n times (t, dim), on the CPU."""
        return self.encode_levels(batch)[0]

    def encode_levels(self, batch: Mapping[str, Tensor]) -> tuple[Embeddings, ...]:
        """Return the embeddings of a batch, level by level."""
        return as_levels(self._forward(self._on_device(batch)))

    def differentiable(self, batch: Mapping[str, Tensor]) -> tuple[Embeddings, ...]:
        """Return what `encode_levels` does with its gradients, on the device, in the arithmetic around the call."""
        return as_levels(self._forward.compute(self._on_device(batch)))

    def followed_by(
        self, after: Callable[[tuple[Embeddings, ...]], tuple[Embeddings, ...]], levels: tuple[EncoderSpec, ...]
    ) -> None:
        """Let something follow the forward pass, from all levels to all levels, which then have other identities."""
        self.levels, self.spec = levels, levels[0]
        self._forward.then(lambda made: after(as_levels(made)))

    def encode_reference(self, sources: Sequence[Source]) -> Embeddings:
        """Return the embeddings in fp32, one text at a time."""
        return self.encode_reference_levels(sources)[0]

    def encode_reference_levels(self, sources: Sequence[Source]) -> tuple[Embeddings, ...]:
        """Return the embeddings in fp32, one text at a time, level by level."""
        return joined([as_levels(self._forward.reference(self._reference_input(source))) for source in sources])

    def _on_device(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self._forward.device, non_blocking=True) for name, tensor in inputs.items()}

    def _reference_input(self, source: Source) -> dict[str, Tensor]:
        text = self.read(source)
        with self._lock:
            return self._on_device(self._tokenize([text]).inputs)
