"""RunRecord: what was done, on what, with which result; the file ``record.json`` of a run.

The record has two parts. All that follows from input, configuration and seed is *stable*: two runs
of the same work agree on it. Date, timings and environment are ``volatile`` and kept apart.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic cannot use typing's before Python 3.12

from data.digest import digest_json
from data.errors import TaskError
from data.task import Task
from heads.errors import RunError

SCHEMA = 1
"""Version of the file's layout; a change that older readers would misread raises it."""
FILE = "record.json"
SPLITS = ("test", "val", "cv")
"""The judged splits, the most independent first."""

_VOLATILE = ("created", "timings", "environment", "openings")
_PLACES = ("out", "overwrite")
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "lightgbm", "zarr", "open_clip_torch", "transformers", "timm")


class _Split(TypedDict):
    samples: int
    groups: int
    classes: dict[str, int]


class _Dropped(TypedDict):
    count: int
    ids: list[str]


class _Counts(TypedDict):
    samples: int
    groups: int
    splits: dict[str, _Split]
    dropped: dict[str, _Dropped]


class _Input(TypedDict):
    encoder: str
    fingerprint: str
    snapshot: str
    dim: int
    modality: str
    pooling: str
    precision: str
    dtype: str


class _Head(TypedDict):
    name: str
    version: int
    params: dict[str, Any]


class _Threshold(TypedDict):
    value: float
    rule: str


def _has_shape(shape: Any) -> Callable[[Any], Any]:
    """Return a check that a mapping has at least these keys, of these types; it keeps the others."""
    adapter = TypeAdapter(shape)

    def check(value: Any) -> Any:
        adapter.validate_python(value)
        return value

    return check


class RunRecord(BaseModel):
    """What `fit-head` did.

    Attributes
    ----------
    command
        The command line.
    config
        The resolved configuration, which can be fed back.
    manifest_digest, split_digest
        Identity of the samples, and of who was in which split and fold.
    inputs
        Per encoder: ``encoder``, ``fingerprint``, ``snapshot``, ``dim``, ``modality``, ``pooling``,
        ``precision``, ``dtype``.
    head
        ``name``, ``version``, ``params``, what the head chose of them in its fit (``chosen``), and ``n_parameters``.
    task
        The task, as `data.task.Task.to_dict` writes it.
    counts
        ``samples``, ``groups``, ``splits`` (per split ``samples``, ``groups`` and ``classes``) and
        ``dropped`` (per reason ``count`` and ``ids``).
    metrics
        Per split (cv, val, test) what `heads.evaluation.metrics.evaluate` returned.
    seed
        Seed of folds, fits and intervals.
    thresholds
        Per class or label: ``value``, ``rule`` and how it did (`heads.evaluation.thresholds.Threshold`).
    calibration
        How scores were calibrated, and per split ``before`` and ``after``: Brier score, log loss and
        calibration error with intervals. Empty without.
    conformal
        How prediction sets are made, and per split how often they hold the truth and how large they
        are. Empty without.
    leakage
        The report of the leakage audit.
    prompts
        The prompts of the classes and what made their vectors (`heads.prompts.PromptSet.to_dict`); empty without any.
    warnings
        What a reader must know before believing the numbers, one line each.
    frostline, commit
        The version that ran, and the commit if it ran from a checkout.
    created, timings, environment, openings
        The volatile part: UTC time, seconds per stage, Python, platform and library versions, and how
        often the test split has been opened (`heads.evaluation.seal.Openings`). No host or user names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    config: dict[str, Any]
    manifest_digest: str
    split_digest: str
    inputs: tuple[Annotated[dict[str, Any], AfterValidator(_has_shape(_Input))], ...]
    head: Annotated[dict[str, Any], AfterValidator(_has_shape(_Head))]
    task: dict[str, Any]
    counts: Annotated[dict[str, Any], AfterValidator(_has_shape(_Counts))]
    metrics: dict[str, dict[str, Any]]
    seed: int
    thresholds: dict[str, Annotated[dict[str, Any], AfterValidator(_has_shape(_Threshold))]] = Field(
        default_factory=dict
    )
    calibration: dict[str, Any] = Field(default_factory=dict)
    conformal: dict[str, Any] = Field(default_factory=dict)
    leakage: dict[str, Any] = Field(default_factory=dict)
    prompts: dict[str, Any] = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    frostline: str = Field(default_factory=lambda: _version("frostline") or "not installed")
    commit: str | None = Field(default_factory=lambda: read_commit(Path(__file__).resolve().parent.parent))
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    timings: dict[str, float] = Field(default_factory=dict)
    environment: dict[str, str] = Field(default_factory=lambda: describe_environment())
    openings: dict[str, Any] = Field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values, its volatile part apart."""
        values = self.model_dump(mode="json")
        volatile = {name: values.pop(name) for name in _VOLATILE}
        return {"schema": SCHEMA, **values, "volatile": volatile}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Return the record that `to_dict` wrote.

        Parameters
        ----------
        values
            The values.
        where
            What they came from, for messages.

        Raises
        ------
        RunError
            If they are not a record, or one of a later version.
        """
        if isinstance(values, Mapping) and values.get("kind") == "tune":
            raise RunError(f"{where}: is the record of a study, not of a run; the run of its best head is in best/")
        if isinstance(values, Mapping) and values.get("kind") == "finetune":
            raise RunError(
                f"{where}: is the record of a fine-tuned run, not of a head's; its page is report.html beside it, and "
                f"evaluate and predict take the run itself"
            )
        if not isinstance(values, Mapping) or "schema" not in values:
            raise RunError(f"{where}: is not the record of a Frostline run (it has no schema version)")
        if values["schema"] != SCHEMA:
            raise RunError(f"{where}: has schema {values['schema']}, this release reads {SCHEMA}; update Frostline")
        flat = {name: value for name, value in values.items() if name not in ("schema", "volatile")}
        try:
            record = cls(**flat, **values.get("volatile", {}))
            Task.from_dict(record.task)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            at = ".".join(map(str, first["loc"])) or "the whole"
            raise RunError(f"{where}: damaged at {at}: {first['msg'].lower()}") from error
        except (TypeError, TaskError) as error:
            raise RunError(f"{where}: damaged: {error}") from error
        return record

    def write(self, run: Path) -> Path:
        """Write ``record.json`` into a run directory, whole or not at all.

        Raises
        ------
        RunError
            If it cannot be written.
        """
        path = run / FILE
        partial = run / f".{FILE}.partial-{os.getpid()}"
        try:
            with partial.open("w", encoding="utf-8") as file:
                json.dump(self.to_dict(), file, indent=1, ensure_ascii=False, allow_nan=False)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise RunError(f"{path}: cannot be written: {error.strerror or error}") from error
        return path

    @classmethod
    def read(cls, run: Path) -> Self:
        """Read the record of a run directory.

        Raises
        ------
        RunError
            If there is no such run, or its record is damaged.
        """
        return cls.from_dict(read_values(run), where=str(run / FILE))

    def stable_digest(self) -> str:
        """Return the SHA-256 of what follows from input, configuration and seed; not of where the run was written."""
        values = self.to_dict()
        del values["volatile"], values["command"]
        values["config"] = {key: value for key, value in values["config"].items() if key not in _PLACES}
        return digest_json(values)

    @property
    def headline_split(self) -> str:
        """The most independent split that was judged: test before val before cv."""
        return next(split for split in (*SPLITS, *self.metrics) if split in self.metrics)


def read_values(run: Path) -> dict[str, Any]:
    """Return what the ``record.json`` of a run holds, of whatever kind the run is.

    Raises
    ------
    RunError
        If there is no such run, or its record is not a JSON object.
    """
    path = run / FILE
    if not path.is_file():
        if (run / "checkpoints").is_dir():
            raise RunError(f"{run}: is not a finished run (no record.json); give the command that began it again")
        found = "is not a run directory (no record.json)" if run.is_dir() else "does not exist"
        raise RunError(f"{run}: {found}; expected the --out directory of fit-head or finetune")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise RunError(f"{path}: is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise RunError(f"{path}: is not the record of a Frostline run (no JSON object)")
    return values


def describe_environment() -> dict[str, str]:
    """Return Python, platform and library versions; no host or user names."""
    versions = {name: _version(name) for name in _LIBRARIES}
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        **{name: version for name, version in versions.items() if version},
    }


def read_commit(checkout: Path) -> str | None:
    """Return the commit that a checkout is at, read from its ``.git``; None if there is none to be read."""
    git = checkout / ".git"
    try:
        if git.is_file():  # a worktree: the file says where its directory is
            git = checkout / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return head
        reference = head.removeprefix("ref:").strip()
        common = git / "commondir"
        shared = git / common.read_text(encoding="utf-8").strip() if common.is_file() else git
        if (shared / reference).is_file():
            return (shared / reference).read_text(encoding="utf-8").strip()
        packed = (shared / "packed-refs").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {reference}")), None)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
