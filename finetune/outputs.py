"""What passes between the networks and the objectives: one step's forward pass, and what a loss is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """A batch after its forward pass; rows are the samples of this process, b of them. None: not asked for.

    Attributes
    ----------
    vectors
        Embeddings of the input, in the common space where there is one, not normalised, shape (b, d).
    single
        What `vectors` would be if each study had one of its views only, which was drawn, shape (b, d).
    texts
        Those of the samples' texts, shape (b, d).
    tokens
        Unpooled embeddings of the input, shape (b, t, c).
    targets
        As `data.task` encodes them, shape (b,) or (b, k); NaN or -1 where missing.
    taught
        A teacher's probabilities of the positive class (b, 1), each class (b, C) or each label (b, T).
    text_ids
        Numbers that are equal where texts are, int64, shape (b,).
    target_ids
        Numbers that are equal where targets are known and equal, int64, shape (b,).
    weights
        How much each sample counts, not negative, float32, shape (b,); None where all count the same.
    captions
        Token numbers of the texts, from the beginning of a text to its end, then padding: int64, shape (b, l).
    caption_mask
        True where `captions` are no padding, shape (b, l).
    inputs
        What the tower of the input collated: objectives that hide a part of it compute the tower again.
    """

    vectors: Tensor | None = None
    single: Tensor | None = None
    texts: Tensor | None = None
    tokens: Tensor | None = None
    targets: Tensor | None = None
    taught: Tensor | None = None
    text_ids: Tensor | None = None
    target_ids: Tensor | None = None
    weights: Tensor | None = None
    captions: Tensor | None = None
    caption_mask: Tensor | None = None
    inputs: Any = None


class Objective(nn.Module, ABC):
    """A loss, with the parameters it learns: a temperature, a classifier, a decoder.

    ``forward(outputs)`` returns a scalar. With several processes the gradients of the loss, averaged over the
    processes, are those of one process with the joint batch.

    Attributes
    ----------
    name
        As in ``--objective``.
    needs
        The fields of `Outputs` that have to be there, whatever the settings.
    weighted
        Whether it heeds `Outputs.weights`.
    joint
        Whether the loss is one of all samples of a batch together, such as one of pairs, and no mean over samples. It
        then needs tensors alone, one row per sample.
    in_evaluation
        Whether it is a part of the loss of rows that are judged; False of what only regularises training.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]]
    weighted: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    in_evaluation: ClassVar[bool] = True

    @classmethod
    def needed(cls, settings: Mapping[str, Any]) -> frozenset[str]:  # noqa: ARG003 -- some needs follow from settings
        """Return the fields of `Outputs` that have to be there with some settings, not yet parsed."""
        return cls.needs

    @abstractmethod
    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of a batch."""

    def count(self, known: Outputs, rows: int) -> float:  # noqa: ARG002 - of some the mean is over other things
        """Return how much some samples weigh in a mean over more: their number, where they all weigh the same.

        Parameters
        ----------
        known
            What is known of them without a network.
        rows
            How many they are.
        """
        return rows

    def measures(self) -> dict[str, float]:
        """Return values that are worth following beside the loss, such as a temperature."""
        return {}
