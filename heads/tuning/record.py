"""TuneRecord: what `tune` searched, what it found and what that is worth; ``record.json`` of a study's directory.

Like a run's record it is stable but for its ``volatile`` part. The best head has a run directory, and a
`heads.record.RunRecord`, of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

from heads.stable_record import StableRecord


class TuneRecord(StableRecord):
    """What `tune` did.

    Attributes
    ----------
    command, config
        The command line, and the resolved configuration.
    manifest_digest, split_digest
        Identity of the samples, and of the inner folds and the rows of the final judgement.
    inputs
        The features of the best head, as in a run's record.
    task, counts
        As in a run's record.
    study
        ``name``, ``metric``, ``direction``, ``sampler``, ``pruner``, ``folds``, ``averaging`` (heads that average
        several members) and ``members`` (how many these had in trials), how many ``trials`` there are,
        ``complete``, ``pruned`` and ``failed``, of the ``failures`` number, head and reason, and the
        ``importance`` of each parameter.
    space
        What was searched.
    best
        The best trial: ``trial`` (its number), ``head``, ``params``, ``encoders``, ``pooling``, ``normalize``,
        ``value`` (mean over the inner folds), ``scores`` (of each), ``default`` (whether it is a head's default)
        and ``estimate`` (the study's metric on the judged split).
    judged
        The split of the final judgement.
    metrics
        Of the best head, per split (cv, val, test): what `heads.evaluation.metrics.evaluate` returned.
    defaults
        Per head its default: inner ``value`` (None where it was not scored on every fold), ``estimate`` of the
        study's metric on the judged split, ``difference`` of the best head from it, with interval and p-value,
        ``verdict`` and ``notes``; or the ``reason`` why it could not be fitted.
    warnings
        What a reader must know before believing the numbers, one line each.
    seed
        Seed of sampling, folds, fits and intervals.
    created, timings, environment
        The volatile part.
    """

    kind: ClassVar[str] = "tune"
    places: ClassVar[tuple[str, ...]] = ("out", "overwrite", "storage")

    manifest_digest: str
    split_digest: str
    inputs: tuple[dict[str, Any], ...]
    task: dict[str, Any]
    counts: dict[str, Any]
    study: dict[str, Any]
    space: dict[str, Any]
    best: dict[str, Any]
    judged: str
    metrics: dict[str, dict[str, Any]]
    defaults: dict[str, dict[str, Any]]
