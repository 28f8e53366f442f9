"""A teacher: what a head that was fitted on stored features says of the training samples, for a classifier to learn."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import TaskError
from data.progress import Progress
from data.task import Task
from featurestore.store import FeatureStore
from finetune.hand import ENCODER
from finetune.record import is_finetuned
from finetune.samples import Samples
from finetune.warm_start import require_task
from heads.artifact import DESCRIPTION
from heads.errors import BundleError
from heads.evaluation.decisions import Answering
from heads.evaluation.scoring import scores_of
from heads.saved import join_inputs, load_head, view_of


def taught_by(run: Path, samples: Samples, store: FeatureStore, progress: Progress) -> NDArray[np.float32]:
    """Return the probabilities that a run of `fit-head` gives the training samples, as its `predict` would.

    Parameters
    ----------
    run
        What ``fit-head`` wrote, with any head and on features of any encoders.
    samples
        Of the run that is taught.
    store
        Holds the features that the head reads, of all training samples.
    progress
        Told about reading.

    Returns
    -------
    ndarray of float32
        Of the positive class (n, 1), each class (n, C) or each label (n, T); NaN but for training samples.

    Raises
    ------
    RunError
        If there is no run.
    BundleError
        If its head learned another task, or features of training samples are missing.
    TaskError
        If the task is a regression.
    """
    task = samples.task
    assert task is not None  # it is what the classifier learns
    if task.kind == "regression":
        raise TaskError(f"--teacher {run}: teaches probabilities, and the task is regression; leave it out")
    bundle = load_head(run)
    require_task(run, Task.from_dict(bundle.task), task)
    train = samples.data.rows("train")
    instances = samples.data.instances.of(train)
    inputs = join_inputs(instances.manifest, bundle, store, progress)
    without = len(instances.manifest) - len(inputs.manifest)
    if without:
        names = " + ".join(str(block["encoder"]) for block in bundle.inputs)
        raise BundleError(
            f"--teacher {run}: {without} of the {len(instances.manifest)} training inputs have no features of {names} "
            f"in {store.path}; `frostline extract` them there, or name their store with --store"
        )
    X = replace(instances, view=view_of(None, bundle, where=str(run))).packed(inputs.X)
    scores = Answering.of(bundle, task).calibrated(scores_of(bundle.head, X, task))
    columns = scores.reshape(len(train), -1)
    taught = np.full((len(samples.data.y), columns.shape[1]), np.nan, np.float32)
    taught[train] = columns
    return taught


def head_digest(run: Path) -> str:
    """Return what changes with a run's head: the SHA-256 of its description, which holds those of its arrays.

    Raises
    ------
    RunError
        If there is none.
    BundleError
        If it is a fine-tuned run.
    """
    if is_finetuned(run):
        raise BundleError(
            f"{run}: is a fine-tuned run, and has no head; extract with --encoder {run / ENCODER} and fit one on these "
            f"features"
        )
    load_head(run)  # which checks those of the arrays, and says what is missing
    return hashlib.sha256((run / "head" / DESCRIPTION).read_bytes()).hexdigest()
