"""Read a table of text: CSV, TSV, Parquet or JSON Lines, nothing dropped and nothing guessed.

Every cell becomes text; an empty cell becomes None. What cannot be read whole is refused with its row.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import ManifestError
from data.manifest import Column

MAX_EXAMPLES = 5
MAX_CELL = 1 << 24
"""Longest cell of a CSV file in characters; the standard library's own limit is shorter than some clinical notes."""


@dataclass(frozen=True, slots=True)
class Table:
    """The cells of a table.

    Attributes
    ----------
    columns
        Every column in the order of the file, one cell per sample.
    rows
        The 1-based row of each sample in its file.
    """

    columns: dict[str, Column]
    rows: tuple[int, ...]


def read_table(path: Path) -> Table:
    """Read a table; the suffix decides the format.

    Raises
    ------
    ManifestError
        If the file cannot be read, is no table, has no rows, or has a row that does not fit its header.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ManifestError(f"{path}: no known table; expected one of {', '.join(READERS)}")
    table = reader(path)
    if not table.rows:
        raise ManifestError(f"{path}: the table has no rows; expected a header and at least one sample")
    return table


def shorten(examples: Iterable[object], total: int) -> str:
    """Return the first few examples as text, and how many more there are."""
    shown = [str(example) for example, _ in zip(examples, range(MAX_EXAMPLES), strict=False)]
    more = total - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def read_text(path: Path) -> str:
    """Return a file's text, which must be UTF-8 (a byte order mark is allowed).

    Raises
    ------
    ManifestError
        If the file cannot be read or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error


def _read_csv(path: Path) -> Table:
    text = read_text(path)
    delimiter = _delimiter(path, text)
    with _long_cells():
        # `strict` refuses an unclosed quote, which would otherwise swallow the rest of the file.
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            # A blank line holds no sample; it still counts as a row, as it does in a spreadsheet.
            records = [(row, cells) for row, cells in enumerate(reader, start=1) if cells]
        except csv.Error as error:
            raise ManifestError(
                f"{path}, line {reader.line_num}: not a valid table: {error}; check its quotes"
            ) from error
    if not records:
        raise ManifestError(f"{path}: the file is empty; expected a header and at least one sample")
    header_row, header = records.pop(0)
    names = _column_names(path, header)
    ragged = [(row, len(cells)) for row, cells in records if len(cells) != len(names)]
    if ragged:
        examples = shorten((f"row {row} has {found}" for row, found in ragged), len(ragged))
        raise ManifestError(
            f"{path}: {len(ragged)} rows do not fit the header of {len(names)} columns (row {header_row}): {examples}; "
            "quote cells that hold the separator"
        )
    return _table(names, [(row, [_cell(cell) for cell in cells]) for row, cells in records])


def _delimiter(path: Path, text: str) -> str:
    """Return the separator: tab for TSV; else the comma, unless the header has only semicolons or tabs."""
    if path.suffix.lower() in {".tsv", ".tab"}:
        return "\t"
    header = next((line for line in text.splitlines() if line.strip()), "")
    return next((separator for separator in (",", ";", "\t") if separator in header), ",")


@contextmanager
def _long_cells() -> Iterator[None]:
    limit = csv.field_size_limit(MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _column_names(path: Path, header: Sequence[str]) -> list[str]:
    """Return the names of the columns; a column without a name (a saved index) is called by its position."""
    names = [name.strip() or f"column_{position}" for position, name in enumerate(header, start=1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ManifestError(f"{path}: the header names {shorten(map(repr, twice), len(twice))} more than once")
    return names


def _cell(text: str) -> str | None:
    return text if text.strip() else None


def _table(names: Sequence[str], records: Sequence[tuple[int, Sequence[str | None]]]) -> Table:
    cells = zip(*(cells for _, cells in records), strict=True) if records else ((),) * len(names)
    return Table(dict(zip(names, cells, strict=True)), tuple(row for row, _ in records))


def _read_jsonl(path: Path) -> Table:
    lines = [(row, line) for row, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    samples = [(row, _json_object(path, row, line)) for row, line in lines]
    names = list(dict.fromkeys(name for _, sample in samples for name in sample))
    records = [(row, [_scalar(path, row, name, sample.get(name)) for name in names]) for row, sample in samples]
    return _table(names, records)


def _json_object(path: Path, row: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line, object_pairs_hook=_unique_names)
    except ValueError as error:
        raise ManifestError(f"{path}, row {row}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ManifestError(f"{path}, row {row}: expected a JSON object, found {type(value).__name__}")
    return value


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name occurs more than once in one object")
    return members


def _scalar(path: Path, row: int, name: str, value: Any) -> str | None:
    """Return a typed cell as text; booleans become 1 and 0, so that they can be targets."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, list | dict | tuple | bytes):
        raise ManifestError(
            f"{path}, row {row}: column {name!r} holds a {type(value).__name__}; expected text, a number or a boolean"
        )
    text = str(value)
    if not text.isprintable() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ManifestError(f"{path}, row {row}: column {name!r} holds half a surrogate pair, which is no text")
    return _cell(text)


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (OSError, pyarrow.ArrowException) as error:
        raise ManifestError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error
    names = _column_names(path, table.column_names)
    rows = range(1, table.num_rows + 1)
    columns = {
        name: tuple(_scalar(path, row, name, value) for row, value in zip(rows, cells.to_pylist(), strict=True))
        for name, cells in zip(names, table.columns, strict=True)
    }
    return Table(columns, tuple(rows))


READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".tab": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".parquet": _read_parquet,
    ".pq": _read_parquet,
}
"""The suffixes that are read as a table, and how. Rows of Parquet and JSON Lines count from the first sample."""
