"""Concatenation of several sets of features, and of the prompts of the classes, each through layers of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heads.base import Choice, ClassWeight, Count, Floats, Fraction, NotNegative, Positive, SearchSpace
from heads.batched import Architecture
from heads.errors import HeadError
from heads.estimators._fusion import FusionHead
from heads.estimators._network import Sampler
from heads.estimators.mlp import HiddenWidths, MLPHeadClassifier, MLPHeadRegressor
from heads.training.course import Schedule
from heads.training.fusion import ConcatFusion
from heads.training.optimizer import Optimizer
from heads.training.perceptron import Activation, HiddenLayers, InputNorm, Norm, Order, Perceptron
from heads.training.precision import Precision

BranchWidths = HiddenWidths | tuple[HiddenWidths, ...]
BranchNorm = Norm | Literal["same"]
Rates = Fraction | tuple[Fraction, ...]
Scaled = bool | tuple[bool, ...]


class _ConcatFusion(FusionHead):
    """What the two heads share: the architecture."""

    branch_norm: BranchNorm
    joined_norm: InputNorm
    prompt_hidden: tuple[int, ...]
    prompt_norm: Norm
    prompt_branch: Literal["collapsed", "full"]

    name = "concat_fusion"
    preparing = FusionHead.preparing | {"prompt_norm"}  # there is a remark on it

    @classmethod
    def search_space(cls) -> SearchSpace:
        """Return the parameters worth searching, with their bounds."""
        return {"branch_hidden": Choice(((128,), (256,), (512,))), **super().search_space()}

    def _architecture(self, outputs: int) -> Architecture:
        branches = self._branches()
        prompts = self._prompt_branch(
            tuple(self.prompt_hidden), self.prompt_norm, collapsed=self.prompt_branch == "collapsed"
        )
        if prompts is not None and not self.prompt_hidden:
            raise HeadError(f"{self.name}: prompt_hidden=() is wrong; expected the width of one layer or more")
        joined = branches.outputs + (0 if prompts is None else prompts.layers.outputs)
        return ConcatFusion(branches=branches, prompts=prompts, trunk=self._trunk(joined, outputs))

    def _branch(self, block: int) -> HiddenLayers:
        widths: Any = self.branch_hidden
        if _is_nested(widths):
            widths = self._one_of_each("branch_hidden", len(self.blocks_), "sets of features")[block]
        layers = replace(
            super()._branch(block),
            widths=tuple(widths),
            norm=self.norm if self.branch_norm == "same" else self.branch_norm,
        )
        return layers if self._rates is None else replace(layers, dropout=(0.0,) * len(widths))

    def _trunk(self, inputs: int, outputs: int) -> Perceptron:
        return replace(super()._trunk(inputs, outputs), input_norm=self.joined_norm, dropout=self._rates)

    @property
    def _rates(self) -> tuple[float, ...] | None:
        """The rate of each hidden layer after the join; None if one is that of all layers."""
        if isinstance(self.dropout, tuple):
            return self._one_of_each("dropout", len(self.hidden), "hidden layers after the join")
        return None

    def _fit_scaling(self, X: Floats, weight: NDArray[np.float64]) -> Floats:
        X = super()._fit_scaling(X, weight)
        if isinstance(self.standardize, tuple):
            scaled = self._one_of_each("standardize", len(self.blocks_), "sets of features")
            plain = ~np.repeat(scaled, self.blocks_)
            self.mean_[plain], self.scale_[plain] = 0.0, 1.0
        return X

    def _one_of_each(self, name: str, count: int, what: str) -> tuple[Any, ...]:
        """Return a parameter that has one entry for each of so many things.

        Raises
        ------
        HeadError
            If it has more or fewer.
        """
        values: tuple[Any, ...] = getattr(self, name)
        if len(values) != count:
            raise HeadError(f"{self.name}: {name}={values} is for {len(values)} {what}, and there are {count}")
        return values

    def _note_on_prompts(self) -> None:
        if self.prompt_norm != "batch":
            super()._note_on_prompts()
            return
        self._note(
            "prompt_norm=batch takes the prompts away: they are the same for every sample, so their normalised branch "
            "is constant and its weights get no gradient; prompt_norm=layer keeps them"
        )


class ConcatFusionClassifier(_ConcatFusion, MLPHeadClassifier):
    """Every set of features goes through hidden layers of its own, as do the prompts if there are any; all are joined.

    Rows may lack whole sets of features: they count as 0, and the row's others for more in proportion.

    The flattened prompts (in the order of the classes) are the same for every sample, so whatever their
    branch learns is a bias. In the published form (parameters below) batch norm takes even that away;
    it is there for comparison::

        branch_hidden=256 prompt_hidden=512,256 prompt_branch=full norm=batch prompt_norm=batch
        order=linear-activation-norm dropout=0.3 logit_shifts=true standardize=false members=1 batch_size=32
        optimizer=adam lr=3e-4 weight_decay=1e-4 max_epochs=60 patience=60 schedule=plateau plateau_factor=0.2

    A published classifier of a few clinical numbers and two embeddings, in this order, is reached by::

        branch_hidden=[[64],[],[]] branch_norm=layer order=linear-activation-norm joined_norm=layer
        hidden=512,128 norm=none dropout=0.35,0.25 standardize=true,false,false members=1

    Parameters
    ----------
    branch_hidden
        Widths of the hidden layers of each set of features; empty to join them as they are. A list of
        lists, ``[[64],[]]``, has those of the first set of features, of the second, and so on.
    prompt_hidden
        Widths of the hidden layers of the flattened prompts, one at least.
    hidden
        Widths of the hidden layers after the join; empty for none.
    activation, norm, order
        What a hidden layer is made of, as for the head ``mlp``.
    branch_norm
        The norm in the hidden layers of the sets of features; ``same`` for that of the others.
    joined_norm
        ``layer`` brings each joined vector to mean 0 and variance 1, then scales and shifts it by learned vectors.
    prompt_norm
        The norm in the hidden layers of the prompts; ``batch`` erases the prompts, as published.
    prompt_branch
        ``collapsed`` trains the product of the first prompt layer's weights and the prompts, which is all
        of them that training can move, with the same losses at a fraction of the work; ``full`` trains
        the weights. See `heads.training.fusion`. With ``sgd`` or the decay of ``adam`` the collapsed
        form would not be exact, and is refused.
    dropout
        Share of hidden activations dropped in training. A list, ``0.35,0.25``, has one for each hidden layer
        after the join, and layers before it drop nothing.
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
        Whether to centre and scale the features by the training rows that have them; a list, ``true,false``,
        says so of each set of features.
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
        (members, 1, width) stands for the weights of its first layer.
    """

    def __init__(
        self,
        *,
        branch_hidden: BranchWidths = (256,),
        prompt_hidden: HiddenWidths = (512, 256),
        hidden: HiddenWidths = (),
        activation: Activation = "relu",
        norm: Norm = "layer",
        branch_norm: BranchNorm = "same",
        joined_norm: InputNorm = "none",
        order: Order = "linear-norm-activation",
        prompt_norm: Norm = "layer",
        prompt_branch: Literal["collapsed", "full"] = "collapsed",
        dropout: Rates = 0.5,
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
        standardize: Scaled = True,
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
            class_weight=class_weight,
            precision=precision,
            random_state=random_state,
            device=device,
        )
        self.branch_hidden = branch_hidden
        self.branch_norm = branch_norm
        self.joined_norm = joined_norm
        self.dropout = dropout
        self.standardize = standardize
        self.prompt_hidden = prompt_hidden
        self.prompt_norm = prompt_norm
        self.prompt_branch = prompt_branch
        self.modality_dropout = modality_dropout


class ConcatFusionRegressor(_ConcatFusion, MLPHeadRegressor):
    """The same network with one output per target; missing values are masked, per target.

    Parameters
    ----------
    branch_hidden, prompt_hidden, hidden, activation, norm, order, branch_norm, joined_norm, prompt_norm, prompt_branch
        The network, as for `ConcatFusionClassifier`.
    dropout, modality_dropout, input_noise
        What is varied in training, as for `ConcatFusionClassifier`.
    loss, huber_delta
        As for the head ``mlp``.
    lr, weight_decay, optimizer, clip_norm, batch_size, max_epochs, patience, schedule, plateau_factor
        The optimiser and its learning rate, as for the head ``mlp``.
    validation_fraction, members, precision
        The training, as for the head ``mlp``.
    standardize, random_state, device
        As for `ConcatFusionClassifier`.

    Attributes
    ----------
    center_, spread_
        Mean and standard deviation of each target over the training rows, shape (T,).
    blocks_, prompts_, masked_, weights_, best_epochs_, history_
        As for `ConcatFusionClassifier`.
    """

    def __init__(
        self,
        *,
        branch_hidden: BranchWidths = (256,),
        prompt_hidden: HiddenWidths = (512, 256),
        hidden: HiddenWidths = (),
        activation: Activation = "relu",
        norm: Norm = "layer",
        branch_norm: BranchNorm = "same",
        joined_norm: InputNorm = "none",
        order: Order = "linear-norm-activation",
        prompt_norm: Norm = "layer",
        prompt_branch: Literal["collapsed", "full"] = "collapsed",
        dropout: Rates = 0.5,
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
        standardize: Scaled = True,
        precision: Precision = "fp32",
        random_state: int = 0,
        device: str = "cpu",
    ) -> None:
        super().__init__(
            hidden=hidden,
            activation=activation,
            norm=norm,
            order=order,
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
            precision=precision,
            random_state=random_state,
            device=device,
        )
        self.branch_hidden = branch_hidden
        self.branch_norm = branch_norm
        self.joined_norm = joined_norm
        self.dropout = dropout
        self.standardize = standardize
        self.prompt_hidden = prompt_hidden
        self.prompt_norm = prompt_norm
        self.prompt_branch = prompt_branch
        self.modality_dropout = modality_dropout


def _is_nested(widths: tuple[Any, ...]) -> bool:
    return any(isinstance(width, tuple) for width in widths)


HEADS = (ConcatFusionClassifier, ConcatFusionRegressor)
