"""StableRecord: what follows from input, configuration and seed, with a volatile part kept apart."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from data.digest import digest_json
from data.files import whole_text_file
from heads.errors import RunError
from heads.record import FILE, SCHEMA, describe_environment, read_commit


class StableRecord(BaseModel):
    """What the records of studies and of fine-tuned runs share; ``record.json`` of their directories.

    Attributes
    ----------
    kind
        What ``record.json`` says it is the record of.
    volatile
        Fields that differ between two runs of the same work.
    places
        Options that say where something is, or how it is computed, and not what.
    command, config
        The command line, and the resolved configuration.
    warnings
        What a reader must know before believing the numbers, one line each.
    seed
        Seed of everything random.
    commit, created, timings, environment
        As in the record of a head; all but the first are volatile.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: ClassVar[str]
    volatile: ClassVar[tuple[str, ...]] = ("created", "timings", "environment")
    places: ClassVar[tuple[str, ...]] = ("out", "overwrite")

    command: str
    config: dict[str, Any]
    warnings: tuple[str, ...] = ()
    seed: int
    commit: str | None = Field(default_factory=lambda: read_commit(Path(__file__).resolve().parents[1]))
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    timings: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=describe_environment)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, its volatile part apart."""
        values = self.model_dump(mode="json")
        volatile = {name: values.pop(name) for name in self.volatile}
        return {"schema": SCHEMA, "kind": self.kind, **values, "volatile": volatile}

    def stable_digest(self) -> str:
        """Return the SHA-256 of what follows from input, configuration and seed; not of where it was written."""
        values = self.to_dict()
        del values["volatile"], values["command"]
        values["config"] = {key: value for key, value in values["config"].items() if key not in self.places}
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
