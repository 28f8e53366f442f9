"""Captioning: the cross-entropy of each next token of a text, given what stands before it and the input's tokens."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from data.errors import ConfigError
from finetune.captions import DEFAULT_LENGTH, CaptionTokenizer
from finetune.decoder import CaptionDecoder
from finetune.gather import joint_mean
from finetune.generate import beam_search, greedy
from finetune.outputs import Objective, Outputs
from heads.params import Count, Fraction

_IGNORED = -100


class Captioning(Objective):
    r"""The cross-entropy of next tokens, mean over those of all processes that are no padding.

    .. math::
        L = -\frac{1}{N} \sum_{i,j} \Big[ (1 - e) \log p_{ij}(w_{ij}) + \frac{e}{V} \sum_w \log p_{ij}(w) \Big],
        \quad p_{ij} = \mathrm{softmax}\big(\mathrm{decoder}(w_{i0} \dots w_{i,j-1};\ \text{tokens of } i)\big)

    with e the label smoothing, V the vocabulary, and N the places (i, j) behind the beginnings [1]_. Every one of them
    counts the same, so that a long caption weighs more than a short one, on whichever process it is. A sample
    without a caption, its mask all False, has no part in the loss.

    Parameters
    ----------
    tokenizer
        Of the captions.
    token_dim
        Length of the encoder's tokens.
    vocabulary
        The text encoder that `tokenizer` is of; None for that of ``--text-encoder``, or offline:minilm where it has
        none of transformers or is not named.
    max_length
        The longest caption in tokens, beginning and end included; longer ones are cut, and none longer is written.
    layers, heads, dim, feedforward, positions, dropout, tied
        Of the decoder, see `finetune.decoder.CaptionDecoder`.
    label_smoothing
        Share of the target that is spread over the vocabulary.
    beams, length_penalty
        How captions are written, see `finetune.generate.beam_search`; one beam takes the likeliest token each time.

    Raises
    ------
    ConfigError
        If `heads` does not divide `dim`, or `max_length` is more than `positions`.

    References
    ----------
    .. [1] Wan et al., "LocCa: Visual Pretraining with Location-aware Captioners", NeurIPS 2024.
    """

    name: ClassVar[str] = "captioning"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "captions", "caption_mask"})

    def __init__(
        self,
        *,
        tokenizer: CaptionTokenizer,
        token_dim: int,
        vocabulary: str | None = None,
        max_length: Count = DEFAULT_LENGTH,
        layers: Count = 6,
        heads: Count = 8,
        dim: Count = 512,
        feedforward: Count = 2048,
        positions: Count = 512,
        dropout: Fraction = 0.1,
        tied: bool = True,
        label_smoothing: Fraction = 0.1,
        beams: Count = 1,
        length_penalty: float = 1.0,
    ) -> None:
        super().__init__()
        if positions < max_length:
            raise ConfigError(
                f"{self.name}: positions={positions} is too few for captions of max_length={max_length} tokens"
            )
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary
        self.max_length = max_length
        self.label_smoothing = label_smoothing
        self.beams = beams
        self.length_penalty = length_penalty
        self.decoder = CaptionDecoder(
            vocabulary=tokenizer.vocabulary,
            memory_dim=token_dim,
            layers=layers,
            heads=heads,
            dim=dim,
            feedforward=feedforward,
            positions=positions,
            dropout=dropout,
            tied=tied,
        )

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch; 0 if none of its samples has a caption."""
        assert outputs.tokens is not None
        assert outputs.captions is not None
        assert outputs.caption_mask is not None
        # Rows are as wide as the longest caption of all, and there is nothing to learn behind that of the batch.
        width = max(2, int(outputs.caption_mask.sum(dim=1).max()))
        captions, real = outputs.captions[:, :width], outputs.caption_mask[:, 1:width]
        logits = self.decoder(captions[:, :-1], outputs.tokens)
        total = cross_entropy(
            logits.float().flatten(0, 1),
            captions[:, 1:].masked_fill(~real, _IGNORED).flatten(),
            ignore_index=_IGNORED,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return joint_mean(total, real.sum())

    def count(self, known: Outputs, rows: int) -> float:  # noqa: ARG002 - the mean is over tokens
        """Return the number of tokens behind the beginnings."""
        assert known.caption_mask is not None
        return float(known.caption_mask[:, 1:].sum())

    def write(self, tokens: Tensor) -> list[str]:
        """Return a caption for each input, of the encoder's tokens, shape (b, t, c); in eval mode."""
        search = greedy
        if self.beams > 1:
            search = partial(beam_search, beams=self.beams, length_penalty=self.length_penalty)
        made = search(self.decoder, tokens, self.tokenizer.special, max_length=self.max_length)
        return self.tokenizer.decode(made.ids)
