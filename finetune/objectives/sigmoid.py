"""Sigmoid contrastive loss (SigLIP): every input with every text is a question of its own, same pair or not."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, logsigmoid

from data.errors import ConfigError
from finetune.outputs import Outputs
from finetune.pairs import LossOfPairs, Pairs, Positives, Similarity, full_precision
from heads.params import NotNegative, Positive


class Sigmoid(LossOfPairs):
    r"""Binary cross-entropy of all pairs of the joint batch [1]_, and where asked for a floor of entropy.

    .. math::
        L = -\frac1B \sum_{i,j} \frac{w_i + w_j}{2}\, a_{ij} \log \sigma(z_{ij} l_{ij})
            + \frac{\lambda}{B} \sum_i w_i \max(0,\ h - H_i), \qquad
        l_{ij} = \mathrm{clamp}(s\, u_i \cdot v_j + b,\ -c,\ c)

    with unit vectors u of the inputs and v of the texts; z is 1 where pairs i and j are alike (several per row, where
    captions repeat or `positives` is ``target``), else -1. w are the samples' weights divided by their mean over the
    joint batch. As it begins, w = a = 1, c is infinite and :math:`\lambda = 0`: the loss of the paper, of open_clip and
    of transformers. The sum is divided by B, not by its :math:`B^2` terms, which decides what a learning rate means. A
    term depends on its own two vectors, s and b only, whatever else is in the batch; not so with `balance`, samples'
    weights or an entropy.

    a is `positive_weight` where z is 1 and `negative_weight` where it is -1, or with ``balance=auto``, of
    :math:`n_+` and :math:`n_-` such terms in the joint batch, :math:`B^2 / (2 n_+)` and :math:`B^2 / (2 n_-)`: both
    weigh the same in sum, and all terms as much as without (1 where there is one sign only).

    :math:`H_i = -\sum_j p_{ij} \log p_{ij}` with :math:`p_i = \mathrm{softmax}(l_i)` is the entropy, in nats, of input
    i's choice among the texts. Below the floor h it costs, so that an input does not settle on one text alone. It is
    log B at most: a floor above that is out of reach and pulls towards an even choice.

    Parameters
    ----------
    temperature
        Initial 1/s; s is learned, as ``log s``.
    bias
        Initial b. B - 1 of B pairs are negatives; at -10 they begin nearly right.
    max_scale
        Bound of s.
    positives
        Which pairs are alike: those with the same ``text``, or with the same text or the same ``target``. Of several
        labels all have to be known and equal.
    positive_weight, negative_weight
        Of the terms with z = 1 and z = -1.
    balance
        ``auto`` weighs both alike; not together with weights.
    clamp
        c, such as 30; None for none. A term beyond it has no gradient, also where it is wrong.
    entropy_weight, entropy_floor
        :math:`\lambda` and h.

    Raises
    ------
    ConfigError
        If there are weights beside ``balance=auto``.

    References
    ----------
    .. [1] Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
    """

    name: ClassVar[str] = "sigmoid"

    def __init__(
        self,
        *,
        temperature: Positive = 0.1,
        bias: float = -10.0,
        max_scale: Positive = 100.0,
        positives: Positives = "text",
        positive_weight: Positive = 1.0,
        negative_weight: Positive = 1.0,
        balance: Literal["none", "auto"] = "none",
        clamp: Positive | None = None,
        entropy_weight: NotNegative = 0.0,
        entropy_floor: NotNegative = 2.0,
    ) -> None:
        super().__init__()
        if balance == "auto" and (positive_weight, negative_weight) != (1, 1):
            raise ConfigError(
                f"{self.name}: balance=auto makes the weights of positives and negatives itself; leave balance out, or "
                f"positive_weight and negative_weight"
            )
        self.similarity = Similarity(temperature=temperature, bias=bias, max_scale=max_scale)
        self.positives = positives
        self.positive_weight = positive_weight
        self.negative_weight = negative_weight
        self.balance = balance
        self.clamp = clamp
        self.entropy_weight = entropy_weight
        self.entropy_floor = entropy_floor

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of the joint batch."""
        pairs = Pairs.gather(outputs, self.positives)
        with full_precision(pairs.vectors):
            logits = self.similarity(pairs)
            if self.clamp is not None:
                logits = logits.clamp(-self.clamp, self.clamp)
            weights = self._weights(pairs.same, logits) * (pairs.weights[:, None] + pairs.weights) / 2
            terms = logsigmoid(torch.where(pairs.same, logits, -logits))
            loss = -(weights * terms).sum() / len(logits)
            if self.entropy_weight:
                loss = loss + self.entropy_weight * (pairs.weights * self._lack_of_entropy(logits)).mean()
            return loss

    def measures(self) -> dict[str, float]:
        """Return the temperature and the bias."""
        values = self.similarity.values()
        return {"temperature": 1 / values["scale"], "bias": values["bias"]}

    def _weights(self, same: Tensor, logits: Tensor) -> Tensor:
        """Return the weight of each term by its sign, shape (B, B)."""
        positive, negative = logits.new_tensor([self.positive_weight, self.negative_weight])
        if self.balance == "auto" and not bool(same.all()):
            positive, negative = (same.numel() / (2 * each.sum()) for each in (same, ~same))
        return torch.where(same, positive, negative)

    def _lack_of_entropy(self, logits: Tensor) -> Tensor:
        """Return by how much the entropy of each row's softmax is below the floor, in nats, shape (B,)."""
        log_p = log_softmax(logits, dim=1)
        return (self.entropy_floor + (log_p.exp() * log_p).sum(dim=1)).clamp(min=0)
