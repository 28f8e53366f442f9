"""Sigmoid contrastive loss (SigLIP): every input with every text is a question of its own, same pair or not."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from finetune.outputs import Objective, Outputs
from finetune.pairs import PAIRED, Pairs, Similarity, full_precision
from heads.params import Positive


class Sigmoid(Objective):
    r"""Binary cross-entropy of all pairs of the joint batch [1]_.

    .. math:: L = -\frac1B \sum_{i,j} \log \sigma\big(z_{ij} (s\, u_i \cdot v_j + b)\big)

    with unit vectors u of the inputs and v of the texts; z is 1 where text j equals the text of input i (several
    per row, where captions repeat), else -1. The sum is divided by B, not by its :math:`B^2` terms: that is the
    loss of the paper, of open_clip and of transformers, and decides what a learning rate means. A term depends on
    its own two vectors, s and b only, whatever else is in the batch.

    Parameters
    ----------
    temperature
        Initial 1/s; s is learned, as ``log s``.
    bias
        Initial b. B - 1 of B pairs are negatives; at -10 they begin nearly right.
    max_scale
        Bound of s.

    References
    ----------
    .. [1] Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
    """

    name: ClassVar[str] = "sigmoid"
    needs: ClassVar[frozenset[str]] = PAIRED
    joint: ClassVar[bool] = True

    def __init__(self, *, temperature: Positive = 0.1, bias: float = -10.0, max_scale: Positive = 100.0) -> None:
        super().__init__()
        self.similarity = Similarity(temperature=temperature, bias=bias, max_scale=max_scale)

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of the joint batch."""
        pairs = Pairs.gather(outputs)
        with full_precision(pairs.vectors):
            logits = self.similarity(pairs)
            return -logsigmoid(torch.where(pairs.same, logits, -logits)).sum() / len(logits)

    def measures(self) -> dict[str, float]:
        """Return the temperature and the bias."""
        values = self.similarity.values()
        return {"temperature": 1 / values["scale"], "bias": values["bias"]}
