"""The store's directory, format version 1: names, attributes, parts and the commit.

::

    DIR/
      features.zarr/                    zarr v3 group; attributes: {"feature_store": {"version": 1, ...}}
        <slug>-<fingerprint 12>/        one group per encoder; attributes: its specification
          probe                         canary: the encoder's output on synthetic inputs
          <time>-<random>/              one immutable part; attributes `rows`, ... are written last
            key  x  [offsets]  id_bytes  id_offsets
      ledger/<group>.jsonl              samples that failed
      openings.jsonl                    test splits that were scored, and by which runs
      files.sqlite                      cache of file digests

A part is committed by replacing its ``zarr.json`` with one that has `rows`: a single atomic rename
after everything else has reached the disk. What has no `rows` does not exist. `docs/format.md`
states the rules for other readers and writers.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.digest import KEY_BYTES, Keys, digest_json
from featurestore.errors import StoreCorrupt, StoreUnwritable
from featurestore.spec import EncoderSpec

VERSION = 1
FEATURES = "features.zarr"
LEDGER = "ledger"
FILES = "files.sqlite"
OPENINGS = "openings.jsonl"

KeyedBy = Literal["content", "id"]

_GROUP = re.compile(r".+-[0-9a-f]{12}")
_REMEDY = "free space or choose another --store (what was committed before is intact)"
_CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOTDIR}


@contextmanager
def writing(path: Path, *, remedy: str = _REMEDY) -> Iterator[None]:
    """Turn the system's refusal to write into one line of `StoreUnwritable`.

    Inside a store it names the store: what is written there has names that no user gave.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        reason = os.strerror(error.errno or 0)
        raise StoreUnwritable(f"{_store_around(path)}: {reason}; {remedy}") from error


def _store_around(path: Path) -> Path:
    """Return the store that a path is in, or the path itself where it is in none."""
    return next((each.parent for each in (path, *path.parents) if each.name == FEATURES), path)


def write_group(directory: Path, attributes: Mapping[str, Any], *, durable: bool = True) -> None:
    """Create or replace the ``zarr.json`` of a group in one atomic step.

    Raises
    ------
    StoreUnwritable
        If the disk is full or may not be written.
    """
    content = json.dumps({"attributes": attributes, "zarr_format": 3, "node_type": "group"}, indent=2)
    aside = directory / f"zarr.json.{secrets.token_hex(4)}.partial"
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("w", encoding="utf-8") as file:
                file.write(content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            aside.replace(directory / "zarr.json")
        finally:
            aside.unlink(missing_ok=True)
        if durable:
            fsync(directory)


def read_group(directory: Path) -> dict[str, Any] | None:
    """Return a group's attributes, or None where there is no ``zarr.json``.

    Raises
    ------
    StoreCorrupt
        If ``zarr.json`` is not the metadata of a zarr v3 group.
    """
    path = directory / "zarr.json"
    try:
        state = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise StoreCorrupt(f"{path}: not JSON ({error})") from error
    if not isinstance(state, dict) or state.get("zarr_format") != 3 or state.get("node_type") != "group":
        raise StoreCorrupt(f"{path}: not the metadata of a zarr v3 group")
    return dict(state.get("attributes", {}))


@dataclass(frozen=True, kw_only=True)
class GroupInfo:
    """What an encoder group states about itself.

    Attributes
    ----------
    spec, fingerprint
        The encoder.
    names
        Every id the encoder was asked for by, oldest first.
    keyed_by
        Whether keys are digests of contents or of ids.
    ragged
        Whether a sample has a varying number of vectors.
    """

    spec: EncoderSpec
    fingerprint: str
    names: tuple[str, ...]
    keyed_by: KeyedBy
    ragged: bool

    @classmethod
    def read(cls, directory: Path) -> GroupInfo | None:
        """Read a group's attributes; None if the group was never completed.

        Raises
        ------
        StoreCorrupt
            If they are incomplete, or the fingerprint is not that of the specification.
        """
        state = read_group(directory)
        if not state:
            return None
        try:
            info = cls(
                spec=EncoderSpec.from_dict(state["encoder"]),
                fingerprint=str(state["fingerprint"]),
                names=tuple(state["names"]),
                keyed_by=state["keyed_by"],
                ragged=bool(state["ragged"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise StoreCorrupt(
                f"{directory / 'zarr.json'}: not an encoder group that this release can read ({error})"
            ) from error
        if digest_json(state["encoder"]) != info.fingerprint:
            raise StoreCorrupt(f"{directory / 'zarr.json'}: the specification does not have the fingerprint it states")
        return info

    def write(self, directory: Path) -> None:
        """Write the group's attributes."""
        write_group(
            directory,
            {
                "encoder": self.spec.to_dict(),
                "fingerprint": self.fingerprint,
                "names": list(self.names),
                "keyed_by": self.keyed_by,
                "ragged": self.ragged,
            },
        )


def group_name(name: str, fingerprint: str) -> str:
    """Return the directory name of an encoder group: a readable slug and the start of the fingerprint."""
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-.")[:60] or "encoder"
    return f"{slug}-{fingerprint[:12]}"


def group_names(features: Path) -> list[str]:
    """Return the directory names of all encoder groups, sorted."""
    return [name for name in list_directories(features) if _GROUP.fullmatch(name)]


def list_directories(directory: Path) -> list[str]:
    """Return the names of the directories in a directory, sorted."""
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def fsync(path: Path) -> None:
    """Wait until a file or directory has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(directory: Path) -> None:
    """Wait until a directory and everything in it has reached the disk."""
    for folder, _, files in os.walk(directory, topdown=False):
        for file in files:
            fsync(Path(folder, file))
        fsync(Path(folder))


def check_keys(keys: Keys) -> Keys:
    """Return keys as an array of shape (n, 2), uint64.

    Raises
    ------
    ValueError
        If they have another shape.
    """
    array = np.asarray(keys, dtype=np.uint64)
    if array.ndim != 2 or array.shape[1] != KEY_BYTES // 8:
        raise ValueError(f"keys must have shape (n, 2), not {array.shape}")
    return array
