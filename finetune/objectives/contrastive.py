"""Softmax contrastive loss (CLIP): of all texts of the batch an input's own, and of all inputs a text's own."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from finetune.outputs import Outputs
from finetune.pairs import LossOfPairs, Pairs, Positives, Similarity, full_precision
from heads.params import Fraction, Positive

Duplicates = Literal["masked", "shared", "negatives"]


class Contrastive(LossOfPairs):
    r"""Symmetric cross-entropy of the pairs among all pairs of the joint batch [1]_.

    With unit vectors :math:`u_i` of the inputs and :math:`v_i` of the texts, :math:`S = U V^\top` and
    :math:`s = 1 / \tau`,

    .. math:: L = \tfrac12 (H(sS) + H(sS^\top)), \qquad
              H(Z) = -\frac1B \sum_i w_i \sum_j t_{ij} \log \frac{e^{Z_{ij}}}{\sum_{k \in A_i} e^{Z_{ik}}}

    where all captions differ, t is the identity, A_i is everything, w is 1, and this is CLIP's loss. Where pairs i
    and j have the same caption, calling j a wrong answer for i is false, and so it may be where they have the same
    target. `positives` says which pairs are copies of one another in this sense, and `duplicates` what happens then:

    ==============  ================================  =======================================================
    ``masked``      A_i is i and all that differ      copies are no negatives; the least value is 0
    ``shared``      t_ij = 1 / (copies of i)          copies are positives of one another (SupCon [2]_); the least
                                                      value is mean log(copies), as equal texts have equal scores
    ``negatives``   as in the original                the least value is mean log(copies) as well
    ==============  ================================  =======================================================

    ``masked`` is the default for captions: of equal ones only the inputs' side could ever tell ``shared`` from
    ``negatives``, and as their embeddings are equal too, the two have the same value and the same gradient (up
    to drop-out). With 4 captions in a batch of 8 their least value is about 0.91 where chance is 2.08, and its
    fluctuation from batch to batch hides what is learned. ``shared`` is the default for targets: captions of the same
    finding in other words are all right answers, each with its share (UniCL [3]_).

    w are the samples' weights divided by their mean over the joint batch, such as the severity of a finding; a pair of
    weight 0 stays among the negatives of the others. Every row has a positive, its own pair.

    Parameters
    ----------
    temperature
        Initial :math:`\tau`; 1/s is learned, as ``log s``.
    max_scale
        Bound of s.
    label_smoothing
        ``e``: t becomes ``(1 - e) t + e / |A_i|`` on A_i.
    positives
        Which pairs are copies of one another: those with the same ``text``, or with the same text or the same
        ``target``. Of several labels all have to be known and equal.
    duplicates
        See above; None is ``masked`` for texts and ``shared`` for targets.

    Notes
    -----
    The negatives are those of the joint batch of all processes and of all forward passes of a step.

    References
    ----------
    .. [1] Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
    .. [2] Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020, equation 2.
    .. [3] Yang et al., "Unified Contrastive Learning in Image-Text-Label Space", CVPR 2022, equations 3 to 5.
    """

    name: ClassVar[str] = "contrastive"

    def __init__(
        self,
        *,
        temperature: Positive = 0.07,
        max_scale: Positive = 100.0,
        label_smoothing: Fraction = 0.0,
        positives: Positives = "text",
        duplicates: Duplicates | None = None,
    ) -> None:
        super().__init__()
        self.similarity = Similarity(temperature=temperature, max_scale=max_scale)
        self.label_smoothing = label_smoothing
        self.positives = positives
        self.duplicates = duplicates or ("masked" if positives == "text" else "shared")

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of the joint batch."""
        pairs = Pairs.gather(outputs, self.positives)
        with full_precision(pairs.vectors):
            logits = self.similarity(pairs)
            rows, columns = (self._cross_entropies(each, pairs.same) for each in (logits, logits.T))
            return ((pairs.weights * rows).mean() + (pairs.weights * columns).mean()) / 2

    def measures(self) -> dict[str, float]:
        """Return the temperature."""
        return {"temperature": 1 / self.similarity.values()["scale"]}

    def _cross_entropies(self, logits: Tensor, same: Tensor) -> Tensor:
        """Return that of each row, shape (B,)."""
        own = torch.eye(len(same), dtype=torch.bool, device=same.device)
        allowed = own | ~same if self.duplicates == "masked" else torch.ones_like(same)
        right = same if self.duplicates == "shared" else own
        target = (1 - self.label_smoothing) * _uniform(right) + self.label_smoothing * _uniform(allowed)
        log_p = log_softmax(logits.masked_fill(~allowed, -torch.inf), dim=1)
        return -(target * log_p.masked_fill(~allowed, 0.0)).sum(dim=1)


def _uniform(chosen: Tensor) -> Tensor:
    """Return the distribution over the chosen columns of each row."""
    return chosen / chosen.sum(dim=1, keepdim=True)
