"""The one torch training loop: many models of one architecture at once, on features that stay in memory.

::

    folds x configurations = recipes --same number of steps and slots--> cohorts, one part per core
    step: gather, noise and dropout bits once per fold -> block by block: forward of g stacked models,
          one backward, AdamW
    epoch: monitor loss, best weights, plateau, early stopping; who has stopped leaves

Everything random is drawn per (seed, fold, epoch), step after step: configurations of one fold see the
same batches, noise and dropout masks, and a model's result does not depend on who trains beside it. On
a CPU the weights are bit-identical however the recipes are grouped; across devices they agree in law.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heads.errors import HeadError
from heads.folds import cores, side_by_side
from heads.training.cohort import Architecture, Cohort, ScaledArchitecture
from heads.training.corpus import Corpus, Targets, as_tensor
from heads.training.plan import Fold, Recipe, Regime, TrainedModel

__all__ = ["Architecture", "ScaledArchitecture", "logits_of", "torch_device", "train_many", "train_one"]

Floats = NDArray[np.floating[Any]]

_WEIGHTS_AT_ONCE = 2**27  # of all models of a cohort: 2.5 GiB with gradients, Adam's moments and the best ones
_SCORE_CHUNK = 4096


def train_many(
    architecture: Architecture,
    X: Floats,
    y: NDArray[Any] | None,
    *,
    folds: Sequence[Fold],
    recipes: Sequence[Recipe],
    regime: Regime,
    device: str = "cpu",
    at_once: int | None = None,
    workers: int | None = None,
) -> list[TrainedModel | HeadError]:
    """Train one model per recipe.

    Parameters
    ----------
    architecture
        The models' shape.
    X
        Features, shape (n, d); float16 is read as such and computed in float32.
    y
        Targets, see `Regime.loss`; None if every fold has its own.
    folds, recipes, regime
        What each model is trained on, and how.
    device
        ``cpu``, ``cuda`` or ``cuda:i``.
    at_once
        Models in memory per worker at most; by default as many as have 2^27 weights together.
    workers
        Threads of one core each, on a CPU; by default one per core. Results depend on neither.

    Returns
    -------
    models
        In the order of `recipes`; a HeadError stands where a model's loss was never finite.

    Raises
    ------
    HeadError
        If the device is not there or a fold has no training rows.
    """
    place = torch_device(device)
    features, targets = as_tensor(X, place), Targets(y, place)
    corpora = [Corpus(fold, features, targets, regime.batch_size) for fold in folds]
    cohorts: dict[tuple[int, int, int], list[int]] = {}
    # Models of one stream side by side: what they share is drawn once.
    for position in sorted(range(len(recipes)), key=lambda i: (recipes[i].fold, recipes[i].seed)):
        cohorts.setdefault(corpora[recipes[position].fold].layout, []).append(position)
    workers = (workers or cores()) if place.type == "cpu" else 1
    size = at_once or _room(architecture, len(recipes))
    parts = [part for positions in cohorts.values() for part in _parts(positions, workers, size)]

    def train(part: list[int]) -> list[TrainedModel | HeadError]:
        return Cohort(architecture, corpora, [recipes[i] for i in part], regime).train()

    trained: dict[int, TrainedModel | HeadError] = {}
    for part, models in zip(parts, side_by_side(train, parts, torch_threads=True, workers=workers), strict=True):
        trained.update(zip(part, models, strict=True))
    return [trained[position] for position in range(len(recipes))]


def train_one(
    architecture: Architecture,
    X: Floats,
    y: NDArray[Any],
    *,
    fold: Fold,
    recipe: Recipe,
    regime: Regime,
    device: str = "cpu",
) -> TrainedModel:
    """Train one model; see `train_many`.

    Raises
    ------
    HeadError
        If its loss was never finite, the device is not there or the fold has no training rows.
    """
    (model,) = train_many(architecture, X, y, folds=[fold], recipes=[recipe], regime=regime, device=device)
    if isinstance(model, HeadError):
        raise model
    return model


def logits_of(
    architecture: Architecture, state: Mapping[str, NDArray[Any]], X: Floats, *, device: str = "cpu"
) -> NDArray[np.float32]:
    """Return the logits of trained models whose states are stacked along a first axis, shape (G, n, k)."""
    place = torch_device(device)
    stacked = {name: as_tensor(value, place) for name, value in state.items()}
    models = len(next(iter(stacked.values())))
    with torch.inference_mode():
        chunks = [
            architecture.forward(stacked, rows.expand(models, *rows.shape), None).cpu()
            for rows in (as_tensor(part, place).float() for part in _chunks(X))
        ]
    logits: NDArray[np.float32] = torch.cat(chunks, dim=1).numpy()
    return logits


def torch_device(name: str) -> torch.device:
    """Return a device by name.

    Raises
    ------
    HeadError
        If there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise HeadError(f"device={name!r} is wrong; expected 'cpu', 'cuda' or 'cuda:i'") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HeadError(
            f"device={name!r}: {torch.cuda.device_count()} CUDA devices found; use device=cpu or a machine that has one"
        )
    return device


def _room(architecture: Architecture, models: int) -> int:
    """Return how many of so many models may be in memory, one at least."""
    if models == 1:
        return 1  # a large model takes longer to draw than a step does
    weights = sum(value.numel() for value in architecture.initial(torch.Generator()).values())
    return max(1, _WEIGHTS_AT_ONCE // weights)


def _parts(positions: list[int], workers: int, size: int) -> list[list[int]]:
    """Cut positions into as many equal parts as there are workers, or more, none longer than `size`."""
    count = min(len(positions), max(workers, -(-len(positions) // size)))
    ends = [len(positions) * k // count for k in range(count + 1)]
    return [positions[a:b] for a, b in itertools.pairwise(ends)]


def _chunks(X: Floats) -> Iterator[Floats]:
    """Yield the rows in chunks, at least one."""
    return (X[start : start + _SCORE_CHUNK] for start in range(0, max(len(X), 1), _SCORE_CHUNK))
