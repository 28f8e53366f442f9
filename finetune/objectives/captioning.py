"""Captioning: the cross-entropy of each next token of a text, given what stands before it and the input's tokens."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cross_entropy

from data.errors import ConfigError
from finetune.gather import joint_mean
from finetune.decoder import CaptionDecoder
from finetune.outputs import Objective, Outputs

IGNORED = -100


class Captioning(Objective):
    """The cross-entropy of next tokens, mean over the real ones of all processes.

    ::

        loss = - 1/N sum over captions i, places j of [ (1 - e) log p(w_j) + e/V sum over w of log p(w) ]
        p = softmax(decoder(w_0 ... w_{j-1}; tokens of i))

    N counts the places that are no padding, beginnings apart, and V the vocabulary [1]_. Every token counts the same,
    so that a long caption weighs more than a short one, on whichever process it is. A sample without a caption, its
    mask all False, has no part in the loss.

    Parameters
    ----------
    decoder
        Learned with the objective.
    smoothing
        ``e`` of label smoothing, 0 to below 1.

    Raises
    ------
    ConfigError
        If `smoothing` is out of its range.

    References
    ----------
    .. [1] Wan et al., "LocCa: Visual Pretraining with Location-aware Captioners", NeurIPS 2024.
    """

    name: ClassVar[str] = "captioning"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens", "captions", "caption_mask"})

    def __init__(self, decoder: CaptionDecoder, *, smoothing: float = 0.1) -> None:
        super().__init__()
        if not 0 <= smoothing < 1:
            raise ConfigError(f"captioning: smoothing has to be in [0, 1), got {smoothing}")
        self.decoder = decoder
        self.smoothing = smoothing

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch."""
        assert outputs.tokens is not None
        assert outputs.captions is not None
        assert outputs.caption_mask is not None
        logits = self.decoder(outputs.captions[:, :-1], outputs.tokens)
        real = outputs.caption_mask[:, 1:]
        targets = outputs.captions[:, 1:].masked_fill(~real, IGNORED)
        total = cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten(),
            ignore_index=IGNORED,
            label_smoothing=self.smoothing,
            reduction="sum",
        )
        return joint_mean(total, real.sum())
