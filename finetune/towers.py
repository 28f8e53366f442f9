"""Towers: an encoder as a part of a network that is trained, with the same pixels and tokens that `extract` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from data.errors import ConfigError, did_you_mean
from data.manifest import Modality, Source
from featurestore.catalog import load_encoder
from featurestore.encoder import Embeddings, EncoderOptions
from featurestore.encoders._token_pooling import TokenPooling
from featurestore.errors import EncoderError
from featurestore.image_encoder import ImageEncoder
from featurestore.pooling_text import TOKENS, Pooling
from featurestore.text_encoder import TextEncoder
from featurestore.video_encoder import VideoEncoder
from featurestore.weights import seeded, tensor_digests

_LEARNED = "learned:"
"""What a pooling begins with that is no level of the encoder but is trained on its tokens."""


class Tower(nn.Module):
    """An encoder's network; above it a learned pooling and a linear layer into a common space, where there are any.

    Parameters
    ----------
    name
        The encoder's id.
    encoder
        Reads samples, and knows the forward pass; its first level is a vector, a second one tokens. With `pooling` its
        only level is tokens.
    projection
        From the vector to the common space; None leaves it as it is.
    pooling
        From the encoder's tokens to the vector; None where the encoder pools.
    keeps_tokens
        Whether the tokens that `pooling` reads are returned beside the vector.

    Attributes
    ----------
    base
        Digests of the network's tensors when the tower was made, by name.
    kept
        What of it is read from a store, in words; None where everything is computed whenever it is asked for.
    """

    kept: str | None = None

    def __init__(
        self,
        name: str,
        encoder: ImageEncoder | TextEncoder | VideoEncoder,
        projection: nn.Module | None = None,
        pooling: nn.Module | None = None,
        *,
        keeps_tokens: bool = False,
    ) -> None:
        super().__init__()
        if encoder.network is None:
            raise EncoderError(f"{name}: shows no network that could be trained")
        self.name = name
        self.encoder = encoder
        self.network = encoder.network
        self.projection = projection
        self.pooling = pooling
        self.keeps_tokens = keeps_tokens
        # Of the encoder as it was, before LoRA or anything else changes it: what differs is handed back.
        self.base = tensor_digests(encoder.network.state_dict())

    @property
    def dim(self) -> int:
        """Length of the vector before any projection."""
        return self.encoder.spec.dim

    def read(self, source: Source) -> Any:
        """Return one sample as the encoder reads it; from several threads at once."""
        item = self.encoder.read(source)
        if isinstance(self.encoder, TextEncoder) and isinstance(item, str):
            return self.encoder.shortened(item)  # it is tokenised in every pass
        return item

    def collate(self, items: Sequence[Any]) -> Any:
        """Return a batch of what `read` gave."""
        return self.encoder.collate(items)

    def embed(self, batch: Any) -> tuple[Embeddings, ...]:
        """Return what the encoder makes of a batch, level by level."""
        return self.encoder.differentiable(batch)

    def forward(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Return vectors of shape (b, d) and, where the encoder gives them, tokens of shape (b, t, c)."""
        vectors, *tokens = self.embed(batch)
        if self.pooling is not None:
            tokens = [vectors] if self.keeps_tokens else []
            vectors = self.pooling(vectors)
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
    seed: int = 0,
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
        The level that becomes the vector, or ``learned:attention`` or ``learned:cls_token`` of its tokens.
    tokens
        Whether `forward` returns the tokens as well.
    trust_remote_code
        Whether code that comes with a checkpoint may run.
    seed
        Of the first weights of a learned pooling.

    Raises
    ------
    EncoderError
        If it cannot be trained: it pools several images of a sample, shows no network, or has no tokens where the
        pooling is to be learned.
    ConfigError
        If there is no such learned pooling, or the pooling makes no vector.
    """
    learned = learned_pooling(pooling)
    if Pooling.parse(pooling).is_tokens:
        raise ConfigError(f"pooling {pooling}: makes no vector of a sample; choose another, or {_LEARNED}attention")
    options = EncoderOptions(
        modality=modality,
        pooling=TOKENS if learned else pooling,
        also=(TOKENS,) if tokens else (),
        # As `extract` stores what it computes in fp32, so that a tower has the fingerprint of those features.
        dtype="float32",
        ragged_dtype="float32",
        device=device,
        trust_remote_code=trust_remote_code,
    )
    try:
        encoder = load_encoder(encoder_id, options)
    except EncoderError as error:
        if learned is None:
            raise
        raise type(error)(f"pooling {pooling} reads the tokens of an encoder: {error}") from error
    if not isinstance(encoder, ImageEncoder | TextEncoder | VideoEncoder):
        raise EncoderError(f"{encoder_id}: cannot be fine-tuned; expected one network of images, texts or clips")
    if learned is None:
        return Tower(encoder_id, encoder)
    with seeded(seed):
        module = TokenPooling(kind=learned, dim=encoder.spec.dim).make().eval().to(device)
    return Tower(encoder_id, encoder, pooling=module, keeps_tokens=tokens)


def learned_pooling(pooling: str) -> Literal["attention", "cls_token"] | None:
    """Return what ``--pooling learned:...`` names, None of a level of the encoder's own.

    Raises
    ------
    ConfigError
        If there is no such learned pooling.
    """
    if not pooling.startswith(_LEARNED):
        return None
    kinds = [f"{_LEARNED}{kind}" for kind in ("attention", "cls_token")]
    if pooling not in kinds:
        raise ConfigError(f"pooling {pooling}: {did_you_mean(pooling, kinds)}")
    return "attention" if pooling == kinds[0] else "cls_token"
