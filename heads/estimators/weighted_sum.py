"""Sum of several sets of features, and of the prompts of the classes, each scaled by a learned vector."""

from __future__ import annotations

from typing import Literal

from heads.base import Choice, ClassWeight, Count, Fraction, NotNegative, Positive, SearchSpace
from heads.batched import Architecture
from heads.estimators._fusion import FusionHead
from heads.estimators._network import Sampler
from heads.estimators.mlp import HiddenWidths, MLPHeadClassifier, MLPHeadRegressor
from heads.training.course import Schedule
from heads.training.fusion import WeightedSum
from heads.training.optimizer import Optimizer
from heads.training.perceptron import Activation, Norm, Order
from heads.training.precision import Precision


class _WeightedSum(FusionHead):
    """What the two heads share: the architecture."""

    prompt_branch: Literal["collapsed", "full"]

    name = "weighted_sum"

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"hidden": Choice(((128,), (256,), (512, 256))), **super().search_space()}

    def _architecture(self, outputs: int) -> Architecture:
        width = self.blocks_[0]
        return WeightedSum(
            blocks=self._blocks(),
            prompts=self._prompt_branch((width,), "none", collapsed=self.prompt_branch == "collapsed"),
            trunk=self._trunk(width, outputs),
        )


class WeightedSumClassifier(_WeightedSum, MLPHeadClassifier):
    """``w_0 x_0 + w_1 relu(linear(x_1)) + ... + w_p relu(linear(prompts))``, and a perceptron of it.

    x_0 is the first set of features, as it is; the others are brought to its width. The vectors w are
    learned, begin with ones, and are the same for all samples. Rows may lack whole sets of features:
    they count as 0, and the row's others for more in proportion.

    The flattened prompts (in the order of the classes) are the same for every sample too, so that their
    term is a learned bias. The published form is::

        hidden=512,256 prompt_branch=full norm=batch order=linear-activation-norm dropout=0.3 logit_shifts=true
        standardize=false members=1 batch_size=32 optimizer=adam lr=3e-4 weight_decay=1e-4 max_epochs=60
        patience=60 schedule=plateau plateau_factor=0.2

    Parameters
    ----------
    hidden
        Widths of the hidden layers of the sum; empty for none.
    activation, norm, order
        What a hidden layer is made of, as for the head ``mlp``; before the sum it is always a ReLU.
    prompt_branch
        ``collapsed`` trains the product of the prompts' weights and the prompts, which is all of them that
        training can move, with the same losses at a fraction of the work; ``full`` trains the weights.
        See `heads.training.fusion`. With ``sgd`` or the decay of ``adam`` the collapsed form
        would not be exact, and is refused.
    dropout
        Share of hidden activations dropped in training.
    modality_dropout
        Share of the sets of features left out of the rows in training; each row keeps one at least.
    input_noise
        Standard deviation of Gaussian noise on the features in training, relative to that of each
        feature; the prompts get none.
    logit_shifts
        Whether a learned vector is subtracted from the logits, as for the head ``mlp``.
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
        As for the head ``mlp``. With a collapsed prompt branch, ``prompt.0.product`` of shape
        (members, 1, width) stands for its weights.
    """

    def __init__(
        self,
        *,
        hidden: HiddenWidths = (512, 256),
        activation: Activation = "relu",
        norm: Norm = "layer",
        order: Order = "linear-norm-activation",
        prompt_branch: Literal["collapsed", "full"] = "collapsed",
        dropout: Fraction = 0.5,
        modality_dropout: Fraction = 0.0,
        input_noise: NotNegative = 0.0,
        logit_shifts: bool = False,
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
            hidden=hidden,
            activation=activation,
            norm=norm,
            order=order,
            dropout=dropout,
            input_noise=input_noise,
            logit_shifts=logit_shifts,
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
        self.prompt_branch = prompt_branch
        self.modality_dropout = modality_dropout


class WeightedSumRegressor(_WeightedSum, MLPHeadRegressor):
    """The same network with one output per target; missing values are masked, per target.

    Parameters
    ----------
    hidden, activation, norm, order, prompt_branch
        The network, as for `WeightedSumClassifier`.
    dropout, modality_dropout, input_noise
        What is varied in training, as for `WeightedSumClassifier`.
    loss, huber_delta
        As for the head ``mlp``.
    lr, weight_decay, optimizer, clip_norm, batch_size, max_epochs, patience, schedule, plateau_factor
        The optimiser and its learning rate, as for the head ``mlp``.
    validation_fraction, members, precision
        The training, as for the head ``mlp``.
    standardize, random_state, device
        As for `WeightedSumClassifier`.

    Attributes
    ----------
    center_, spread_
        Mean and standard deviation of each target over the training rows, shape (T,).
    blocks_, prompts_, masked_, weights_, best_epochs_, history_
        As for `WeightedSumClassifier`.
    """

    def __init__(
        self,
        *,
        hidden: HiddenWidths = (512, 256),
        activation: Activation = "relu",
        norm: Norm = "layer",
        order: Order = "linear-norm-activation",
        prompt_branch: Literal["collapsed", "full"] = "collapsed",
        dropout: Fraction = 0.5,
        modality_dropout: Fraction = 0.0,
        input_noise: NotNegative = 0.0,
        loss: Literal["huber", "mse", "mae"] = "huber",
        huber_delta: Positive = 1.0,
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
        precision: Precision = "fp32",
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            hidden=hidden,
            activation=activation,
            norm=norm,
            order=order,
            dropout=dropout,
            input_noise=input_noise,
            loss=loss,
            huber_delta=huber_delta,
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
            precision=precision,
            random_state=random_state,
            device=device,
        )
        self.prompt_branch = prompt_branch
        self.modality_dropout = modality_dropout


HEADS = (WeightedSumClassifier, WeightedSumRegressor)
