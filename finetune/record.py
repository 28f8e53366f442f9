"""FinetuneRecord: what was trained, on what, and what it is worth; ``record.json`` of a fine-tuned run.

Like the record of a head it is stable but for its ``volatile`` part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.digest import digest_json
from data.files import whole_text_file
from heads.errors import RunError
from heads.record import FILE, SCHEMA, describe_environment, read_commit

KIND = "finetune"
_VOLATILE = ("created", "timings", "environment", "openings")
_PLACES = ("out", "overwrite", "store", "workers", "track")


class FinetuneRecord(BaseModel):
    """What `finetune` did.

    Attributes
    ----------
    command, config
        The command line, and the resolved configuration.
    manifest_digest, split_digest
        Identity of the samples, and of who trained, who chose the epoch and who was judged.
    inputs
        Per tower: ``encoder`` and ``fingerprint`` before training, ``trained`` after it (the fingerprint of
        ``RUN/encoder``), ``dim`` and ``modality``.
    task
        As in the record of a head; None of pairs without a target.
    counts
        As in the record of a head, with ``trained`` and ``choosing``: rows that trained and that chose the epoch.
    parameters
        Per part of the network how many parameters it has (``all``) and how many were ever trained (``trained``).
    training
        ``epochs`` that were made, ``steps``, the ``last_step`` there could have been, what the rows that chose the
        epoch were worth ``before`` any training,
        ``best_epoch``, ``best_value`` and what it was ``chosen_by`` and ``chosen_on``,
        ``processes``, and the objectives' ``measures`` at the best epoch, such as a temperature.
    history
        Per epoch the mean ``train/...`` and ``val/...`` values.
    metrics
        Per judged split: of a task what `heads.evaluation.metrics.evaluate` returned, of pairs ``retrieval``, of
        captions ``captions``.
    thresholds
        As in the record of a head; chosen on the rows that chose the epoch.
    leakage, warnings, seed
        As in the record of a head.
    created, timings, environment, openings
        The volatile part.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    config: dict[str, Any]
    manifest_digest: str
    split_digest: str
    inputs: tuple[dict[str, Any], ...]
    task: dict[str, Any] | None
    counts: dict[str, Any]
    parameters: dict[str, dict[str, int]]
    training: dict[str, Any]
    history: dict[str, list[float | None]]
    metrics: dict[str, dict[str, Any]]
    thresholds: dict[str, dict[str, Any]] = Field(default_factory=dict)
    leakage: dict[str, Any] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seed: int
    commit: str | None = Field(default_factory=lambda: read_commit(Path(__file__).resolve().parents[1]))
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    timings: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=describe_environment)
    openings: dict[str, Any] = Field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, its volatile part apart."""
        values = self.model_dump(mode="json")
        volatile = {name: values.pop(name) for name in _VOLATILE}
        return {"schema": SCHEMA, "kind": KIND, **values, "volatile": volatile}

    def stable_digest(self) -> str:
        """Return the SHA-256 of what follows from input, configuration and seed; not of where it was written."""
        values = self.to_dict()
        del values["volatile"], values["command"]
        values["config"] = {key: value for key, value in values["config"].items() if key not in _PLACES}
        return digest_json(values)

    def write(self, run: Path) -> None:
        """Write ``record.json``, whole or not at all.

        Raises
        ------
        RunError
            If it cannot be written.
        """
        try:
            with whole_text_file(run / FILE) as file:
                json.dump(self.to_dict(), file, indent=1, ensure_ascii=False, allow_nan=False)
                file.write("\n")
        except OSError as error:
            raise RunError(f"{run / FILE}: cannot be written: {error.strerror or error}") from error

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read the record of a run directory.

        Raises
        ------
        RunError
            If there is none, or it is damaged.
        """
        values = read_record(run)
        try:
            flat = {name: value for name, value in values.items() if name not in ("schema", "kind", "volatile")}
            return cls(**flat, **values["volatile"])
        except (ValidationError, TypeError, KeyError) as error:
            raise RunError(f"{run / FILE}: damaged: {' '.join(str(error).split())[:200]}") from error


def read_record(run: Path) -> dict[str, Any]:
    """Return what a run's ``record.json`` holds, of whatever kind it is.

    Raises
    ------
    RunError
        If it cannot be read as JSON.
    """
    try:
        values = json.loads((run / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        found = "is not a run directory (no record.json)" if run.is_dir() else "does not exist"
        raise RunError(f"{run}: {found if isinstance(error, OSError) else 'record.json is damaged'}") from error
    if not isinstance(values, Mapping):
        raise RunError(f"{run / FILE}: damaged, not the record of a run")
    return dict(values)


def is_finetuned(run: Path) -> bool:
    """Return whether a directory holds a fine-tuned run."""
    path = run / FILE
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return False
