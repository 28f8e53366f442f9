"""Bundle: a fitted head on disk, as JSON, safetensors and text; nothing in it is ever unpickled.

::

    head/
      head.json             what it is, how it was made, on which features; SHA-256 of the other files
      arrays.safetensors    learned arrays
      <name>                learned texts, such as a LightGBM model

A bundle is written aside and renamed, so it is whole or not there. It names the fingerprints of the
features the head was fitted on, and refuses any others.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from data.task import Kind
from heads.base import Head, HeadState
from heads.catalog import head_class
from heads.errors import BundleError, HeadError

FORMAT = 1
"""Version of the files' layout; this release reads it and older ones."""

DESCRIPTION = "head.json"
ARRAYS = "arrays.safetensors"
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Head(BaseModel):
    """Which head, with which parameters; `state` are its learned JSON values."""

    model_config = ConfigDict(extra="forbid")
    name: str
    version: int
    kind: Kind
    params: dict[str, Any]
    state: dict[str, Any]


class _Description(BaseModel):
    """The content of head.json."""

    model_config = ConfigDict(extra="forbid")
    format: Literal["frostline-head"] = "frostline-head"
    format_version: int = FORMAT
    head: _Head
    task: dict[str, Any]
    inputs: list[dict[str, Any]]
    extra: dict[str, Any]
    files: dict[str, str]


@dataclass(frozen=True)
class Bundle:
    """A fitted head and what it needs to be used rightly.

    Attributes
    ----------
    head
        The fitted head.
    task
        The task, as it was given to `save_bundle`.
    inputs
        One entry per block of features, in the order in which they are joined: at least `encoder`
        and `fingerprint`.
    extra
        Thresholds, normalisation and whatever else belongs to the predictions.
    """

    head: Head
    task: dict[str, Any]
    inputs: list[dict[str, Any]]
    extra: dict[str, Any]

    def check_inputs(self, fingerprints: Sequence[str]) -> None:
        """Refuse features of another encoder than the head was fitted on.

        Parameters
        ----------
        fingerprints
            Fingerprints of the features at hand, in the order in which they are joined.

        Raises
        ------
        BundleError
            If they are not the head's own.
        """
        own = [(str(entry["encoder"]), str(entry["fingerprint"])) for entry in self.inputs]
        if list(fingerprints) == [fingerprint for _, fingerprint in own]:
            return
        expected = " + ".join(f"{encoder} (fingerprint {fingerprint[:16]})" for encoder, fingerprint in own)
        found = " + ".join(fingerprint[:16] for fingerprint in fingerprints) or "none"
        raise BundleError(
            f"the head was fitted on features of {expected}; got features of fingerprint {found}; "
            "extract with the encoder and options of the run, or fit the head again"
        )


def save_bundle(
    folder: Path,
    head: Head,
    *,
    task: Mapping[str, Any],
    inputs: Sequence[Mapping[str, Any]],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write a fitted head; an older bundle at the same place is replaced, anything else is not.

    Parameters
    ----------
    folder
        Where to write.
    head
        A fitted head.
    task, inputs, extra
        JSON-ready values, see `Bundle`.

    Raises
    ------
    BundleError
        If a value is not JSON, the place is taken by something else, or it cannot be written.
    """
    if folder.exists() and not (folder / DESCRIPTION).is_file():
        raise BundleError(f"{folder}: exists and is not a bundle; choose another place")
    state = head.get_state()
    files = {ARRAYS: save_safetensors(state.arrays)} | {name: text.encode() for name, text in state.texts.items()}
    for name in files:
        _check_name(folder, name)
    description = _Description(
        head=_Head(
            name=head.name, version=head.version, kind=head.kind_, params=head.get_params(deep=False), state=state.meta
        ),
        task=dict(task),
        inputs=[dict(entry) for entry in inputs],
        extra=dict(extra or {}),
        files={name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
    )
    try:
        text = json.dumps(description.model_dump(), indent=2, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise BundleError(f"{folder}: task, inputs, extra and parameters must be JSON: {error}") from error
    try:
        _write_whole(folder, {**files, DESCRIPTION: text.encode() + b"\n"})
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written: {error.strerror}") from error


def load_bundle(folder: Path) -> Bundle:
    """Read a fitted head.

    Raises
    ------
    BundleError
        If a file is missing or damaged, or the head is unknown or of a newer version.
    """
    description = _read_description(folder)
    files = {name: _read_file(folder, name, digest) for name, digest in description.files.items()}
    saved = description.head
    made = _class_of(folder, saved)
    try:
        arrays = {name: np.array(array) for name, array in load_safetensors(files.pop(ARRAYS)).items()}
        texts = {name: content.decode() for name, content in files.items()}
        head = made.from_state(saved.params, HeadState(arrays=arrays, meta=saved.state, texts=texts))
    except (ValueError, TypeError, KeyError, SafetensorError) as error:
        raise BundleError(f"{folder}: the head cannot be restored: {error}") from error
    return Bundle(head=head, task=description.task, inputs=description.inputs, extra=description.extra)


def _class_of(folder: Path, saved: _Head) -> type[Head]:
    try:
        made = head_class(saved.name, saved.kind)
    except HeadError as error:
        raise BundleError(f"{folder}: {error}") from error
    if saved.version > made.version:
        raise BundleError(
            f"{folder}: head {saved.name!r} is of version {saved.version}, this release knows {made.version}; "
            "upgrade Frostline"
        )
    return made


def _read_description(folder: Path) -> _Description:
    path = folder / DESCRIPTION
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BundleError(
            f"{folder}: no bundle here ({DESCRIPTION} is missing); expected the head/ of a run"
        ) from error
    except OSError as error:
        raise BundleError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise BundleError(f"{path}: damaged, not JSON: {error}") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise BundleError(f"{path}: format version {version}, this release reads up to {FORMAT}; upgrade Frostline")
    try:
        return _Description.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BundleError(f"{path}: not a bundle's description: {where}: {first['msg']}") from error


def _read_file(folder: Path, name: str, digest: str) -> bytes:
    _check_name(folder, name)
    try:
        content = (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise BundleError(f"{folder / name}: missing; the bundle is incomplete") from error
    except OSError as error:
        raise BundleError(f"{folder / name}: cannot be read: {error.strerror}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise BundleError(f"{folder / name}: damaged; expected SHA-256 {digest[:16]}, found {found[:16]}")
    return content


def _check_name(folder: Path, name: str) -> None:
    if not FILE_NAME.fullmatch(name) or name == DESCRIPTION:
        raise BundleError(f"{folder}: {name!r} is no name of a file in a bundle")


def _write_whole(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files to a folder aside, flush them to disk, and put the folder in place."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as aside:
        fresh = Path(aside) / "new"
        fresh.mkdir()
        for name, content in files.items():
            with (fresh / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(Path(aside) / "old")
        fresh.rename(folder)


def _plain(value: Any) -> Any:
    """Return numpy's numbers and arrays as Python's."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON")
