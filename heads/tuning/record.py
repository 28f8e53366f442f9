"""TuneRecord: what `tune` searched, what it found and what that is worth; ``record.json`` of a study's directory.

Like a run's record it is stable but for its ``volatile`` part. The best head has a run directory, and a
`heads.record.RunRecord`, of its own.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from data.digest import digest_json
from data.files import whole_text_file
from heads.errors import RunError
from heads.record import FILE, SCHEMA, describe_environment, read_commit

_VOLATILE = ("created", "timings", "environment")
_PLACES = ("out", "overwrite", "storage")


class TuneRecord(BaseModel):
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

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    config: dict[str, Any]
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
    warnings: tuple[str, ...] = ()
    seed: int
    commit: str | None = Field(default_factory=lambda: read_commit(Path(__file__).resolve().parents[2]))
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    timings: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=describe_environment)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, its volatile part apart."""
        values = self.model_dump(mode="json")
        volatile = {name: values.pop(name) for name in _VOLATILE}
        return {"schema": SCHEMA, "kind": "tune", **values, "volatile": volatile}

    def stable_digest(self) -> str:
        """Return the SHA-256 of what follows from input, configuration and seed; not of where it was written."""
        values = self.to_dict()
        del values["volatile"], values["command"]
        values["config"] = {key: value for key, value in values["config"].items() if key not in _PLACES}
        return digest_json(values)

    def write(self, folder: Path) -> None:
        """Write ``record.json``, whole or not at all.

        Raises
        ------
        RunError
            If it cannot be written.
        """
        try:
            with whole_text_file(folder / FILE) as file:
                json.dump(self.to_dict(), file, indent=1, ensure_ascii=False, allow_nan=False)
                file.write("\n")
        except OSError as error:
            raise RunError(f"{folder / FILE}: cannot be written: {error.strerror or error}") from error
