"""Zero-shot: an aligned pair judged by how well the prompts of classes tell samples apart, learned from no label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.manifest import Source
from data.prompts import PromptTexts, make_prompts
from data.task import Task
from finetune.config import FinetuneConfig
from finetune.pairs import Similarity
from finetune.runner import Runner
from heads.catalog import make_head
from heads.context import Context
from heads.estimators.zero_shot import CLIP_SCALE
from heads.evaluation.scoring import Scores, scores_of
from heads.prompts import average_prompts


def prompts_of(config: FinetuneConfig, task: Task | None) -> PromptTexts | None:
    """Return the prompts of a task's classes; None where there are no pairs, or no classes.

    Raises
    ------
    ConfigError
        If the prompts are wrong, see `data.prompts.make_prompts`.
    """
    if task is None or not task.classes or config.text_encoder is None:
        return None
    return make_prompts(task.classes, templates=config.template, file=config.prompts)


def zero_shot_scores(
    runner: Runner, task: Task, prompts: PromptTexts, vectors: NDArray[Any], y: NDArray[Any]
) -> Scores:
    """Return what the prompts say of some samples, as the head ``zero_shot`` does.

    Parameters
    ----------
    runner
        Its text tower encodes the prompts.
    task, prompts
        The classes, and what stands for them.
    vectors
        Of the samples, in the common space, shape (n, d).
    y
        The targets, which nothing is learned from.

    Returns
    -------
    numpy.ndarray
        As `heads.evaluation.scoring` defines scores.
    """
    vector_of = _encoded(runner, prompts.texts)
    positive, negative = (
        np.stack([average_prompts(np.stack([vector_of[text] for text in own]), "renormalized") for own in side])
        for side in (prompts.positive, prompts.negative)
    )
    context = Context(prompts=positive, negative_prompts=negative if task.kind == "multilabel" else None)
    head = make_head("zero_shot", task.kind, {"logit_scale": _scale(runner)}, runner.seed)
    X = vectors.astype(np.float32)
    head.fit(X, y, context=context)
    return scores_of(head, X, task)


def _encoded(runner: Runner, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Return the vector of each text; every process encodes all of them."""
    tower = runner.model.text_tower
    assert tower is not None  # there are pairs
    found: dict[str, NDArray[np.float32]] = {}
    runner.model.eval()
    for start in range(0, len(texts), runner.batch_size):
        some = texts[start : start + runner.batch_size]
        batch = tower.collate([tower.read(Source(modality="text", text=text)) for text in some])
        with torch.inference_mode(), runner.accelerator.autocast():
            vectors = tower(batch)[0].float().cpu().numpy()
        found |= dict(zip(some, vectors, strict=True))
    return found


def _scale(runner: Runner) -> float:
    """Return the scale of the cosines that an objective has learned; that of CLIP where none has."""
    scales = [each.values()["scale"] for each in runner.model.objectives.modules() if isinstance(each, Similarity)]
    return scales[0] if scales else CLIP_SCALE
