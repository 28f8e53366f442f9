"""Consistency of views: what one view of a study says alone is drawn to what its views say together."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.nn.functional import normalize

from finetune.gather import joint_mean
from finetune.outputs import Objective, Outputs


class Consistency(Objective):
    r"""The cosine distance of a study's vector by one view from that by all views in use, mean over all processes.

    .. math:: L = \frac{1}{B} \sum_i \big(1 - \cos(\mathrm{sg}(s_i), u_i)\big)

    s_i is what the aggregator makes of the views of study i that are in use, u_i what it makes of one of them, drawn
    anew in every epoch. sg stops the gradient: a single view is drawn to the study, never the study to a single view.
    A study with one view in use has the distance 0, and counts.

    It regularises the aggregator and what lies below it in training, and says nothing of how good a network is:
    ``--consistency`` gives its weight in the sum, and evaluation leaves it out.
    """

    name: ClassVar[str] = "consistency"
    needs: ClassVar[frozenset[str]] = frozenset({"vectors", "single"})
    in_evaluation: ClassVar[bool] = False

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch."""
        assert outputs.vectors is not None
        assert outputs.single is not None
        whole, alone = normalize(outputs.vectors.detach(), dim=1), normalize(outputs.single, dim=1)
        # 1 - cos of unit vectors; in this form, it and its gradient are exactly 0 where both are the same.
        distances = (whole - alone).square().sum(dim=1) / 2
        return joint_mean(distances.sum(), distances.new_tensor(len(distances)))
