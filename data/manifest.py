"""Manifest: an ordered, immutable table of samples, and the digest that identifies it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from data.digest import digest_json
from data.errors import ManifestError, did_you_mean

Modality = Literal["image", "text", "audio", "video"]
Column = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """Where the content of one sample is.

    Attributes
    ----------
    modality
        What kind of content it is.
    text
        The content itself, of a text that stands in the table.
    path
        The file, of everything else.
    selector
        Which part of the file is meant: empty, ``frame=12`` of a multi-frame image or volume, or ``speaker=PAR`` of a
        transcript.
    rest
        The files that follow `path`, where several recordings in this order are one sample.
    """

    modality: Modality
    text: str | None = None
    path: Path | None = None
    selector: str = ""
    rest: tuple[Path, ...] = ()

    def __str__(self) -> str:
        if self.path is None:
            return repr((self.text or "")[:60])
        if self.rest:
            return "|".join(map(str, (self.path, *self.rest)))
        return f"{self.path}#{self.selector}" if self.selector else str(self.path)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """An ordered, immutable table of samples.

    Attributes
    ----------
    path
        The table or folder it was read from; relative sample paths are relative to the table's folder.
    columns
        Every column as text, one value per sample; a missing value is None.
    ids
        One unique, stable name per sample.
    sources
        Where each sample's content is; None where the cell is empty (a missing modality).
    input
        The column that `sources` were read from.
    modality
        What kind of content the input column holds.
    roles
        The columns that play a role: any of ``id``, ``split``, ``group``, ``bag``.
    rows
        The 1-based row of each sample in its file (a header is row 1), for messages.
    remarks
        What a user should know about the reading, one line each, e.g. which files of a folder were left out.
    origin
        Digest of the manifest whose rows were put together to these samples; empty where none were.
    """

    path: Path
    columns: Mapping[str, Column]
    ids: tuple[str, ...]
    sources: tuple[Source | None, ...]
    input: str
    modality: Modality
    roles: Mapping[str, str] = field(default_factory=dict)
    rows: tuple[int, ...] = ()
    remarks: tuple[str, ...] = ()
    origin: str = ""

    def __post_init__(self) -> None:
        if not self.rows:
            object.__setattr__(self, "rows", tuple(range(1, len(self.ids) + 1)))

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> Column:
        """Return one column.

        Raises
        ------
        ManifestError
            If the manifest has no such column.
        """
        if name not in self.columns:
            raise ManifestError(f"{self.path}: no column {name!r}; {did_you_mean(name, self.columns)}")
        return self.columns[name]

    def where(self, position: int) -> str:
        """Return the file, row and id of a sample, for messages."""
        return f"{self.path}, row {self.rows[position]} (id {self.ids[position]!r})"

    def role(self, role: str) -> Column | None:
        """Return the column that plays a role (``split``, ``group``, ``bag``), or None."""
        name = self.roles.get(role)
        return None if name is None else self.column(name)

    def select(self, positions: Sequence[int]) -> Manifest:
        """Return the manifest of some of the samples, in the order given."""
        return Manifest(
            path=self.path,
            columns={name: tuple(values[i] for i in positions) for name, values in self.columns.items()},
            ids=tuple(self.ids[i] for i in positions),
            sources=tuple(self.sources[i] for i in positions),
            input=self.input,
            modality=self.modality,
            roles=self.roles,
            rows=tuple(self.rows[i] for i in positions),
            remarks=self.remarks,
            origin=self.origin,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids, columns and roles: equal manifests have equal digests wherever they lie."""
        content = {
            "ids": self.ids,
            "columns": {name: list(values) for name, values in self.columns.items()},
            "input": self.input,
            "roles": dict(self.roles),
        }
        return digest_json({**content, "origin": self.origin} if self.origin else content)
