"""A classifier that begins with a head that was fitted on frozen features: LP-FT, Kumar et al. 2022, arXiv:2202.10054.

A random classifier distorts good features in the first steps; one that fits them already does not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from data.task import Task
from featurestore.spec import EncoderSpec
from heads.errors import BundleError
from heads.saved import load_head

DEAD = 1e-3
"""A unit is dead whose deviation is below this share of the median; MiniLM has three of 384, with 1e-32 to 2e-9."""


class UnitLength(nn.Module):
    """Scales each vector to unit length, as ``fit-head --normalize l2`` does."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Return vectors of shape (b, d), each divided by its length."""
        return functional.normalize(vectors, dim=-1, eps=1e-12)


def classifier_from_run(run: Path, spec: EncoderSpec, task: Task) -> nn.Module:
    """Return the linear head of a run as a module that gives its logits.

    Parameters
    ----------
    run
        What ``fit-head --head linear`` wrote.
    spec
        Of the encoder to be trained, as it is before training. Stored type and precision may differ from the run's.
    task
        What is to be predicted.

    Returns
    -------
    Module
        From vectors (b, d) to log odds (b, 1) for two classes, to logits (b, C) for more, to log odds (b, T) for labels
        and to values (b, T) of a regression; float32. Standardisation is part of the weights, which leave out dead
        units; where the run normalised
        the features, `UnitLength` comes before the `torch.nn.Linear`, which is the last module.

    Raises
    ------
    RunError
        If there is no run.
    BundleError
        If it has another head than ``linear``, learned another task, saw features of another encoder or of several,
        or never saw both sides of a class or label.
    """
    bundle = load_head(run)
    if bundle.head.name != "linear":
        raise BundleError(f"{run}: has a head {bundle.head.name}; a warm start needs `fit-head --head linear`")
    _require_encoder(run, bundle.inputs, spec)
    require_task(run, Task.from_dict(bundle.task), task)
    _require_all_classes(run, bundle.head, task)
    weight, bias = _without_scaling(bundle.head)
    linear = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(weight))
        linear.bias.copy_(torch.from_numpy(bias))
    return nn.Sequential(UnitLength(), linear) if bundle.extra.get("normalize") == "l2" else linear


def _require_encoder(run: Path, inputs: list[dict[str, Any]], spec: EncoderSpec) -> None:
    """Refuse a head of other features than this encoder gives."""
    names = " + ".join(str(block["encoder"]) for block in inputs)
    if len(inputs) > 1:
        raise BundleError(f"{run}: the head was fitted on features of {names}; a warm start needs those of one encoder")
    block = inputs[0]
    # How vectors were computed and stored is not what the network is.
    own = replace(spec, precision=block["precision"], dtype=block["dtype"]).fingerprint
    if own != block["fingerprint"]:
        raise BundleError(
            f"{run}: the head was fitted on features {block['fingerprint'][:12]} of {names} ({block['pooling']}), the "
            f"encoder to be trained gives {own[:12]} ({spec.pooling}); name the same encoder and pooling, or fit the "
            f"head on its features"
        )


def require_task(run: Path, own: Task, task: Task) -> None:
    """Refuse a run whose head learned another task than the one to be learned.

    Raises
    ------
    BundleError
        If it did.
    """
    expected, found = ((each.kind, each.classes or each.targets) for each in (task, own))
    if expected != found:
        raise BundleError(
            f"{run}: the head learned {_named(own)}, and to be learned is {_named(task)}; fit it on this target"
        )


def _named(task: Task) -> str:
    classes = f" ({', '.join(task.classes)})" if task.classes else ""
    return f"{task.kind} of {', '.join(task.targets)}{classes}"


def _require_all_classes(run: Path, head: Any, task: Task) -> None:
    """Refuse a head that has no weights for some class or label."""
    if task.kind == "multilabel":
        unseen = [name for name, value in zip(task.classes, head.constant_, strict=True) if not np.isnan(value)]
    elif task.kind == "regression":
        unseen = []
    else:
        unseen = [name for code, name in enumerate(task.classes) if code not in head.classes_]
    if unseen:
        raise BundleError(
            f"{run}: the head saw no two sides of {', '.join(unseen)} in its training rows; fit it on rows that have "
            f"them"
        )


def _without_scaling(head: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (o, d) and bias (o,) for features as they are, where the head saw (x - mean) / scale.

    Dead units have no weight: what the head made of 1e-9 by a weight of 1e9, one step of an optimizer would make 1e4.
    """
    weight = np.asarray(head.coef_, np.float64)
    bias = np.asarray(head.intercept_, np.float64)
    if not head.standardize:
        return weight, bias
    scaled = weight / head.scale_ * (head.scale_ > DEAD * np.median(head.scale_))
    return scaled, bias - scaled @ head.mean_
