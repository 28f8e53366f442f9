"""Similarity of each sample and the prompt of each class, in a learned space that both are brought to."""

from __future__ import annotations

from typing import Literal

from heads.base import Choice, ClassWeight, Count, Fraction, NotNegative, Positive, SearchSpace
from heads.batched import Architecture
from heads.estimators._fusion import FusionHead
from heads.estimators._network import Sampler
from heads.estimators.mlp import HiddenWidths, MLPHeadClassifier
from heads.training.course import Schedule
from heads.training.fusion import PromptSimilarity
from heads.training.optimizer import Optimizer
from heads.training.perceptron import Activation, Norm, Order
from heads.training.precision import Precision


class PromptSimilarityClassifier(FusionHead, MLPHeadClassifier):
    """The logit of a class is ``s cos(A x, B prompt) + b``, with A, B, s and a bias per class learned.

    Every set of features goes through hidden layers of its own; joined, they are brought to a space by
    A, and the prompts by B. Unlike prompts that are flattened and fused (heads ``concat_fusion`` and
    ``weighted_sum``), these are compared with each sample. Of a binary task the logit is the difference
    of the two classes', of a multilabel task each label has one prompt.

    Rows may lack whole sets of features: they count as 0, and the row's others for more in proportion.

    Parameters
    ----------
    branch_hidden
        Widths of the hidden layers of each set of features; empty to join them as they are.
    width
        Number of dimensions of the space.
    activation, norm, order
        What a hidden layer is made of, as for the head ``mlp``.
    dropout
        Share of hidden activations dropped in training.
    modality_dropout
        Share of the sets of features left out of the rows in training; each row keeps one at least.
    input_noise
        Standard deviation of Gaussian noise on the features in training, relative to that of each
        feature; the prompts get none.
    label_smoothing, focal_gamma, pos_weight
        The loss, as for the head ``mlp``.
    lr, weight_decay, optimizer, clip_norm, batch_size, max_epochs, patience, schedule, plateau_factor
        The optimiser and its learning rate, as for the head ``mlp``.
    validation_fraction, members, precision
        The training, as for the head ``mlp``.
    standardize
        Whether to centre and scale the features by the training rows that have them.
    class_weight, sampler
        As for the head ``mlp``.
    random_state, device
        As for the head ``mlp``.

    Attributes
    ----------
    blocks_, prompts_, masked_
        As for `heads.estimators._fusion.FusionHead`.
    weights_, best_epochs_, history_
        As for the head ``mlp``.
    """

    name = "prompt_similarity"
    needs_prompts = True

    def __init__(
        self,
        *,
        branch_hidden: HiddenWidths = (256,),
        width: Count = 128,
        activation: Activation = "relu",
        norm: Norm = "layer",
        order: Order = "linear-norm-activation",
        dropout: Fraction = 0.5,
        modality_dropout: Fraction = 0.0,
        input_noise: NotNegative = 0.0,
        label_smoothing: Fraction = 0.0,
        focal_gamma: NotNegative = 0.0,
        pos_weight: Positive | Literal["balanced"] | None = None,
        sampler: Sampler = "shuffle",
        lr: Positive = 1e-3,
        weight_decay: NotNegative = 1e-2,
        optimizer: Optimizer = "adamw",
        clip_norm: Positive | None = None,
        batch_size: Count = 128,
        max_epochs: Count = 60,
        patience: Count = 8,
        schedule: Schedule = "cosine",
        plateau_factor: Fraction = 0.1,
        validation_fraction: Fraction = 0.1,
        members: Count = 5,
        standardize: bool = True,
        class_weight: ClassWeight = None,
        precision: Precision = "fp32",
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            activation=activation,
            norm=norm,
            order=order,
            dropout=dropout,
            input_noise=input_noise,
            label_smoothing=label_smoothing,
            focal_gamma=focal_gamma,
            pos_weight=pos_weight,
            sampler=sampler,
            lr=lr,
            weight_decay=weight_decay,
            optimizer=optimizer,
            clip_norm=clip_norm,
            batch_size=batch_size,
            max_epochs=max_epochs,
            patience=patience,
            schedule=schedule,
            plateau_factor=plateau_factor,
            validation_fraction=validation_fraction,
            members=members,
            standardize=standardize,
            class_weight=class_weight,
            precision=precision,
            random_state=random_state,
            device=device,
        )
        self.branch_hidden = branch_hidden
        self.width = width
        self.modality_dropout = modality_dropout

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {
            "branch_hidden": Choice(((), (256,), (512,))),
            "width": Choice((64, 128, 256)),
            **super().search_space(),
        }

    def _architecture(self, outputs: int) -> Architecture:
        return PromptSimilarity(branches=self._branches(), prompts=self.prompts_, width=self.width, outputs=outputs)

    def _note_on_prompts(self) -> None:
        """Say nothing: these prompts are compared with every sample."""


HEADS = (PromptSimilarityClassifier,)
