"""Classification and regression: a linear layer or a perceptron on the vectors, and the losses of the heads."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from annotated_types import Interval
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import kl_div, logsigmoid

from data.errors import TaskError
from data.task import Targets, Task
from finetune.gather import joint_mean
from finetune.outputs import Objective, Outputs
from finetune.pairs import full_precision, in_full
from finetune.warm_start import UnitLength
from heads.losses import LossName, entry_losses, weighted_sum
from heads.params import ClassWeight, Count, Fraction, NotNegative, Positive

Share = Annotated[float, Interval(ge=0, le=1)]
SURE = 1e-6
"""How near to 0 and 1 a teacher's probabilities are taken."""
RegressionLoss = Literal["huber", "mse", "mae"]

_REGRESSION_LOSSES: dict[RegressionLoss, LossName] = {
    "huber": "huber",
    "mse": "squared_error",
    "mae": "absolute_error",
}


class Classification(Objective):
    r"""Mean loss over the known targets of the joint batch.

    .. math:: L = \frac{\sum_{i,t} w_{it}\, \ell(z_{it}, y_{it})}{\sum_{i,t} w_{it}}

    with logits z = f(vectors), w = 0 where a target is missing, else the weight of its sample times that of its class,
    and by the kind of task

    ==============  ======  ================================================================================
    kind            logits  :math:`\ell`, see `heads.losses`
    ==============  ======  ================================================================================
    ``binary``      1       sigmoid cross-entropy
    ``multiclass``  C       softmax cross-entropy
    ``multilabel``  T       sigmoid cross-entropy of each label
    ``regression``  T       Huber, squared or absolute error, in standard deviations of the training targets
    ==============  ======  ================================================================================

    f is a linear layer, or with `hidden` layers of linear, ReLU, drop-out and a linear one at the end.
    ``hidden=d dropout=0.2``, d the length of the vector, is DistilBERT's head for sequences.

    With a teacher the classifier learns its probabilities as well [1]_, in training only:

    .. math:: (1 - \alpha)\, L + \alpha\, T^2\, \frac{\sum_i w_i\, D\big(q_i(T) \,\|\, p_i(T)\big)}{\sum_i w_i}

    D is the Kullback-Leibler divergence, q and p what the teacher and the classifier give at the temperature T:
    softmax(z / T) of classes, or :math:`\sigma(z / T)` of two classes and of labels, whose divergences are averaged
    over the labels, unknown ones as well. :math:`w_i = \sum_t w_{it}` is what the sample weighs in L. A teacher's
    logits are those of its probabilities, held off 0 and 1 by 1e-6. T² keeps the size of the gradients. What judges
    and what chooses the epoch is L, the loss of the targets.

    Parameters
    ----------
    task
        What is predicted: binary, multiclass, multilabel or regression.
    dim
        Length of the vectors.
    targets
        Those of the training samples, as `data.task` encodes them: what is balanced, and the scale of a regression,
        follow from them.
    hidden
        Widths of the hidden layers.
    dropout
        Share of the last linear layer's inputs, and of each hidden layer's outputs, dropped in training.
    label_smoothing, focal_gamma
        See `heads.losses`; of classes and labels.
    class_weight
        ``balanced`` weights each class by the inverse of its share of the known training targets, per target.
    pos_weight
        Of two classes or labels: factor of the loss of positives; ``balanced`` is negatives / positives.
    loss
        Of a regression.
    huber_delta
        Where the Huber loss turns from square to linear, in standard deviations of the target.
    teacher_weight
        :math:`\alpha`; at 1 the teacher is all that is learned.
    teacher_temperature
        T; 1 compares the probabilities as they are, more brings out how the teacher ranks what it finds unlikely.

    Raises
    ------
    TaskError
        If the task is of another kind, or a setting does not fit it.

    References
    ----------
    .. [1] Hinton et al., "Distilling the Knowledge in a Neural Network", NIPS 2014 workshop, section 2.
    """

    name: ClassVar[str] = "classification"
    needs: ClassVar[frozenset[str]] = frozenset({"vectors", "targets"})
    weighted: ClassVar[bool] = True

    center: Tensor
    spread: Tensor
    unit_length: Tensor
    class_weights: Tensor
    pos_weights: Tensor

    def __init__(
        self,
        *,
        task: Task,
        dim: int,
        targets: Targets,
        hidden: tuple[Count, ...] = (),
        dropout: Fraction = 0.0,
        label_smoothing: Fraction = 0.0,
        focal_gamma: NotNegative = 0.0,
        class_weight: ClassWeight = None,
        pos_weight: Positive | Literal["balanced"] | None = None,
        loss: RegressionLoss = "huber",
        huber_delta: Positive = 1.0,
        teacher_weight: Share = 0.5,
        teacher_temperature: Positive = 2.0,
    ) -> None:
        super().__init__()
        if task.kind == "mixed":
            raise TaskError(f"{self.name}: a mixed task cannot be fine-tuned; name the targets of one kind only")
        if pos_weight is not None and task.kind not in ("binary", "multilabel"):
            raise TaskError(
                f"{self.name}: pos_weight={pos_weight} needs positives, and the task is {task.kind}; "
                "use class_weight=balanced for classes"
            )
        self.kind = task.kind
        self.loss: LossName = _loss_of(task, loss)
        self.label_smoothing = label_smoothing
        self.focal_gamma = focal_gamma
        self.huber_delta = huber_delta
        self.teacher_weight = teacher_weight
        self.teacher_temperature = teacher_temperature
        self.flat = np.ndim(targets) == 1
        columns = np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
        known = _known(torch.from_numpy(columns), self.kind).numpy()
        outputs = len(task.classes) if self.kind == "multiclass" else columns.shape[1]
        center, spread = _scale(columns, known, self.kind)
        # Part of the state, so that a run is read back as it was.
        self.register_buffer("unit_length", torch.zeros((), dtype=torch.bool))
        self.register_buffer("center", torch.tensor(center, dtype=torch.float32))
        self.register_buffer("spread", torch.tensor(spread, dtype=torch.float32))
        weights = _class_weights(columns, known, task) if class_weight else np.ones((2, 1))
        self.register_buffer("class_weights", torch.tensor(weights, dtype=torch.float32))
        positives = _pos_weights(columns, known) if pos_weight == "balanced" else np.array([pos_weight or 1.0])
        self.register_buffer("pos_weights", torch.tensor(positives, dtype=torch.float32))
        self.balanced = class_weight is not None
        self.classifier: nn.Module = _perceptron(dim, hidden, outputs, dropout)

    def forward(self, outputs: Outputs) -> Tensor:
        """Return the loss of the joint batch; 0 if no target of it is known."""
        assert outputs.vectors is not None
        assert outputs.targets is not None
        logits = self._logits(outputs.vectors)
        targets = outputs.targets if outputs.targets.ndim == 2 else outputs.targets[:, None]
        known = _known(targets, self.kind)
        with full_precision(logits):
            values = torch.where(known, targets, 0).to(logits.dtype)
            losses = entry_losses(
                self.loss,
                logits,
                (values - self.center) / self.spread,
                smoothing=self.label_smoothing,
                gamma=self.focal_gamma,
                delta=self.huber_delta,
                pos_weight=self.pos_weights,
            )
            weights = known * self._weights(values)
            if outputs.weights is not None:
                weights = weights * outputs.weights[:, None]
            loss = joint_mean(*weighted_sum(losses, weights))
            if outputs.taught is None or not self.training:
                return loss
            return (1 - self.teacher_weight) * loss + self.teacher_weight * self._distance(
                logits, outputs.taught, weights.sum(dim=1)
            )

    def count(self, known: Outputs, rows: int) -> float:  # noqa: ARG002 - the mean is over known targets
        """Return the sum of the weights of the known targets."""
        assert known.targets is not None
        targets = known.targets.to(self.class_weights.device)
        columns = targets if targets.ndim == 2 else targets[:, None]
        there = _known(columns, self.kind)
        weights = there * self._weights(torch.where(there, columns, 0).float())
        return float((weights if known.weights is None else weights * known.weights[:, None]).sum())

    def scores(self, vectors: Tensor) -> Tensor:
        """Return scores in the order of the task, as `heads.evaluation.scoring` defines them.

        Parameters
        ----------
        vectors
            Shape (b, d).

        Returns
        -------
        Tensor
            Probability of the positive class (b,) for binary, of each class (b, C) for multiclass, of each label
            (b, T) for multilabel; values (b,) or (b, T) for regression, as the targets were. float32.
        """
        logits = self._logits(vectors)
        if self.kind == "multiclass":
            return logits.softmax(dim=1)
        values = logits * self.spread + self.center if self.kind == "regression" else logits.sigmoid()
        return values[:, 0] if self.flat else values

    def start_from(self, classifier: nn.Module) -> None:
        """Give the classifier the weights of one that was fitted on frozen features first; drop-out stays as it is.

        Parameters
        ----------
        classifier
            From vectors (b, d) to logits, or to values of a regression in the targets' own units, shape (b, outputs):
            a linear layer, or `UnitLength` and one.

        Raises
        ------
        TaskError
            If it is another, or this classifier has hidden layers.
        """
        *before, last = [module for module in classifier.modules() if not isinstance(module, nn.Sequential)]
        own = [module for module in self.classifier.modules() if isinstance(module, nn.Linear)]
        if len(own) > 1:
            raise TaskError(f"{self.name}: the classifier to begin with has no hidden layers; leave out hidden")
        if not isinstance(last, nn.Linear) or last.weight.shape != own[0].weight.shape:
            raise TaskError(
                f"{self.name}: expected a classifier that ends in a linear layer of {own[0].out_features} outputs, "
                f"found {last}"
            )
        with torch.no_grad():
            # The loss sees targets of mean 0 and deviation 1.
            own[0].weight.copy_(last.weight / self.spread[:, None].to(last.weight))
            own[0].bias.copy_((0 if last.bias is None else last.bias) - self.center)
            own[0].bias.div_(self.spread)
        self.unit_length.fill_(any(isinstance(module, UnitLength) for module in before))

    def _logits(self, vectors: Tensor) -> Tensor:
        return in_full(self.classifier(torch.where(self.unit_length, UnitLength()(vectors), vectors)))

    def _distance(self, logits: Tensor, taught: Tensor, weights: Tensor) -> Tensor:
        """Return the mean divergence from the teacher over the joint batch, times the squared temperature."""
        taught = taught.to(logits.dtype).clamp(SURE, 1 - SURE)
        T = self.teacher_temperature
        if self.kind == "multiclass":
            theirs, ours = ((each / T).log_softmax(dim=1) for each in (taught.log(), logits))
            divergences = kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
        else:
            theirs, ours = (torch.stack([each, -each]) / T for each in (taught.logit(), logits))
            each_way = kl_div(logsigmoid(ours), logsigmoid(theirs), reduction="none", log_target=True)
            divergences = each_way.sum(dim=0).mean(dim=1)
        return T**2 * joint_mean((weights * divergences).sum(), weights.sum())

    def _weights(self, values: Tensor) -> Tensor:
        """Return the class weight of each target, shape (b, T); 1 where nothing is balanced."""
        if not self.balanced:
            return torch.ones_like(values)
        # By class and target; a multiclass task has one target.
        return self.class_weights.gather(0, values.long())


def _loss_of(task: Task, loss: RegressionLoss) -> LossName:
    if task.kind == "regression":
        return _REGRESSION_LOSSES[loss]
    return "cross_entropy" if task.kind == "multiclass" else "binary_cross_entropy"


def _known(targets: Tensor, kind: str) -> Tensor:
    """Return which targets are known; of classes and labels neither -1 nor NaN is."""
    return ~targets.isnan() if kind == "regression" else targets >= 0


def _scale(
    columns: NDArray[np.float64], known: NDArray[np.bool_], kind: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each target of a regression, shape (T,); 0 and 1 for classes."""
    if kind != "regression":
        return np.zeros(1), np.ones(1)
    count = np.maximum(known.sum(axis=0), 1)
    center = np.where(known, columns, 0.0).sum(axis=0) / count
    spread = np.sqrt(np.where(known, np.square(columns - center), 0.0).sum(axis=0) / count)
    return center, np.where(spread > 0, spread, 1.0)


def _class_weights(columns: NDArray[np.float64], known: NDArray[np.bool_], task: Task) -> NDArray[np.float64]:
    """Return known targets / (classes present x those of the class), by class and target; 1 for an absent class."""
    if task.kind == "regression":
        raise TaskError("classification: class_weight=balanced needs classes, and the task is regression")
    classes = len(task.classes) if task.kind == "multiclass" else 2
    counts = np.stack([((columns == code) & known).sum(axis=0) for code in range(classes)])
    present = np.maximum((counts > 0).sum(axis=0), 1)
    return np.where(counts > 0, counts.sum(axis=0) / (present * np.maximum(counts, 1)), 1.0)


def _pos_weights(columns: NDArray[np.float64], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return negatives / positives of each target, shape (T,); 1 where there is no positive."""
    positive = ((columns == 1) & known).sum(axis=0)
    return np.where(positive > 0, (known.sum(axis=0) - positive) / np.maximum(positive, 1), 1.0)


def _perceptron(dim: int, hidden: tuple[int, ...], outputs: int, dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    widths = (dim, *hidden)
    for inputs, width in zip(widths, hidden, strict=False):
        layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout)]
    if dropout and not hidden:
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(widths[-1], outputs))
