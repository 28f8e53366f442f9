"""FinetuneRecord: what was trained, on what, and what it is worth; ``record.json`` of a fine-tuned run.

Like the record of a head it is stable but for its ``volatile`` part.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, ValidationError

from heads.errors import RunError
from heads.record import FILE, read_values
from heads.stable_record import StableRecord

KIND = "finetune"


class FinetuneRecord(StableRecord):
    """What `finetune` did.

    Attributes
    ----------
    command, config
        The command line, and the resolved configuration.
    manifest_digest, split_digest
        Identity of the samples, and of who trained, who chose the epoch and who was judged.
    inputs
        Per tower: ``encoder`` and ``fingerprint`` before training, ``trained`` after it (the fingerprint of
        ``RUN/encoder``), ``dim``, ``modality``, ``pooling``, and what of it was ``kept`` in the store (None: nothing).
    task
        As in the record of a head; None of pairs without a target.
    counts
        As in the record of a head, with ``trained`` and ``choosing``: rows that trained and that chose the epoch.
    parameters
        Per part of the network how many parameters it has (``all``) and how many were ever trained (``trained``).
    training
        Whole ``epochs`` that were made, ``steps``, the ``last_step`` there could have been, what the rows that chose
        were worth ``before`` any training, the ``looks`` at them, as steps that had been made,
        ``best_epoch``, ``best_step``, ``best_value`` and what it was ``chosen_by`` and ``chosen_on``,
        ``processes``, and the objectives' ``measures`` at the best step, such as a temperature.
    history
        Per look the mean ``train/...`` since the one before, and the ``val/...`` values.
    metrics
        Per judged split: of a task what `heads.evaluation.metrics.evaluate` returned, of pairs ``retrieval``, of
        captions ``captions``.
    thresholds
        As in the record of a head; chosen on the rows that chose the epoch.
    prompts
        What stood for the classes where pairs were judged by that (`data.prompts.PromptTexts`); else empty.
    leakage, warnings, seed
        As in the record of a head.
    created, timings, environment, openings
        The volatile part.
    """

    kind: ClassVar[str] = KIND
    volatile: ClassVar[tuple[str, ...]] = (*StableRecord.volatile, "openings")
    places: ClassVar[tuple[str, ...]] = ("out", "overwrite", "store", "workers", "track", "device")

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
    prompts: dict[str, Any] = Field(default_factory=dict)
    leakage: dict[str, Any] = Field(default_factory=dict)
    openings: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read the record of a run directory.

        Raises
        ------
        RunError
            If there is none, or it is damaged.
        """
        values = read_values(run)
        try:
            flat = {name: value for name, value in values.items() if name not in ("schema", "kind", "volatile")}
            found = cls(**flat, **values["volatile"])
        except ValidationError as error:
            first = error.errors()[0]
            raise RunError(f"{run / FILE}: damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        except (TypeError, KeyError) as error:
            raise RunError(f"{run / FILE}: damaged: {error}") from error
        if missing := found._missing():
            raise RunError(f"{run / FILE}: damaged: {missing} is missing or no such value")
        return found

    def _missing(self) -> str | None:
        """Name a part without which a run cannot be put together again; None where it is whole."""
        whole = {
            "inputs": self.inputs and all("modality" in each for each in self.inputs),
            "task": bool(self.task) or "classification" not in self.config.get("objective", ()),
            "training.last_step": isinstance(self.training.get("last_step"), int),
            "thresholds": all(isinstance(each.get("value"), float) for each in self.thresholds.values()),
        }
        return next((name for name, is_there in whole.items() if not is_there), None)


def is_finetuned(run: Path) -> bool:
    """Return whether a directory holds a fine-tuned run, be it a stopped or damaged one."""
    path = run / FILE
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")).get("kind") == KIND)
    except (OSError, ValueError, AttributeError):
        return (run / "checkpoints").is_dir()
