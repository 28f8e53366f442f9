"""Towers: an encoder as a part of a network that is trained, with the same pixels and tokens that `extract` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from data.manifest import Modality, Source
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.errors import EncoderError
from featurestore.image_encoder import ImageEncoder
from featurestore.pooling_text import TOKENS
from featurestore.text_encoder import TextEncoder
from featurestore.video_encoder import VideoEncoder
from featurestore.weights import tensor_digests


class Tower(nn.Module):
    """An encoder's network, and a linear layer into a common space where there is one.

    Parameters
    ----------
    name
        The encoder's id.
    encoder
        Reads samples, and knows the forward pass; its first level is a vector, a second one tokens.
    projection
        From the encoder's vector to the common space; None leaves it as it is.

    Attributes
    ----------
    base
        Digests of the network's tensors when the tower was made, by name.
    """

    def __init__(
        self, name: str, encoder: ImageEncoder | TextEncoder | VideoEncoder, projection: nn.Module | None = None
    ) -> None:
        super().__init__()
        if encoder.network is None:
            raise EncoderError(f"{name}: shows no network that could be trained")
        self.name = name
        self.encoder = encoder
        self.network = encoder.network
        self.projection = projection
        # Of the encoder as it was, before LoRA or anything else changes it: what differs is handed back.
        self.base = tensor_digests(encoder.network.state_dict())

    @property
    def dim(self) -> int:
        """Length of the encoder's own vector."""
        return self.encoder.spec.dim

    def read(self, source: Source) -> Any:
        """Return one sample as the encoder reads it; from several threads at once."""
        return self.encoder.read(source)

    def collate(self, items: Sequence[Any]) -> Any:
        """Return a batch of what `read` gave."""
        return self.encoder.collate(items)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Return vectors of shape (b, d) and, where the encoder gives them, tokens of shape (b, t, c)."""
        vectors, *tokens = self.encoder.differentiable(batch)
        assert isinstance(vectors, Tensor)
        if self.projection is not None:
            vectors = self.projection(vectors)
        return vectors, tokens[0] if tokens and isinstance(tokens[0], Tensor) else None


def load_tower(
    encoder_id: str,
    *,
    modality: Modality,
    device: str,
    pooling: str = "auto",
    tokens: bool = False,
    trust_remote_code: bool = False,
) -> Tower:
    """Return a tower without a projection, its network frozen and in eval mode, in float32.

    Parameters
    ----------
    encoder_id
        As of `extract`.
    modality
        What it reads.
    device
        A torch device.
    pooling
        The level that becomes the vector.
    tokens
        Whether `forward` returns the tokens as well.
    trust_remote_code
        Whether code that comes with a checkpoint may run.

    Raises
    ------
    EncoderError
        If it cannot be trained: it pools several images of a sample, or shows no network.
    """
    options = EncoderOptions(
        modality=modality,
        pooling=pooling,
        also=(TOKENS,) if tokens else (),
        # As `extract` stores what it computes in fp32, so that a tower has the fingerprint of those features.
        dtype="float32",
        device=device,
        trust_remote_code=trust_remote_code,
    )
    encoder = load_encoder(encoder_id, options)
    if not isinstance(encoder, ImageEncoder | TextEncoder | VideoEncoder):
        raise EncoderError(f"{encoder_id}: cannot be fine-tuned; expected one network of images, texts or clips")
    if encoder.spec.ragged:
        raise EncoderError(
            f"{encoder_id}: --pooling {pooling} gives several vectors of a sample; choose one that is one"
        )
    return Tower(encoder_id, encoder)
