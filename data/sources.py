"""Read the samples: a table, a folder of files or one file -> `Manifest`."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from data.errors import ManifestError, did_you_mean
from data.manifest import Column, Manifest, Modality, Source
from data.split import SPLIT_NAMES
from data.tables import MAX_EXAMPLES, READERS, Table, read_table, read_text, shorten
from data.text import CHAT_SUFFIX, chat_selector, with_speaker

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif"),
    *(".dcm", ".dicom", ".nii", ".nii.gz"),
)
AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus", ".aif", ".aiff"),
    *(".m4a", ".aac", ".wma", ".mka", ".weba"),
)
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
TEXT_SUFFIXES = (".txt", ".text")
MEDIA: tuple[Modality, ...] = ("image", "audio", "video")
INPUT_COLUMNS = ("image", "audio", "video", "text", "path")
"""The columns that are encoded without being named, where there is only one of them."""

_MODALITY_OF_SUFFIX: dict[str, Modality] = {
    **dict.fromkeys(IMAGE_SUFFIXES, "image"),
    **dict.fromkeys(AUDIO_SUFFIXES, "audio"),
    **dict.fromkeys(VIDEO_SUFFIXES, "video"),
    **dict.fromkeys((CHAT_SUFFIX, *TEXT_SUFFIXES), "text"),
}
_MODALITY_OF_COLUMN: dict[str, Modality] = {**{kind: kind for kind in MEDIA}, "text": "text"}
_NOTE = re.compile(r"\d*(?:readme|licen[cs]e)\b", re.IGNORECASE)
_SELECTOR = re.compile(
    r"#(?:frame=(?P<frame>\d+)|(?:axis=(?P<axis>[012]),)?slice=(?P<slice>\d+)|speaker=(?P<speaker>\w+(?:\+\w+)*))$"
)


def modality_of(path: str | PurePath) -> Modality | None:
    """Return what kind of content a file name promises, or None if its suffix is not known."""
    name = str(path).lower()
    return next((modality for suffix, modality in _MODALITY_OF_SUFFIX.items() if name.endswith(suffix)), None)


def read_manifest(
    path: str | Path,
    *,
    input: str | None = None,  # noqa: A002  the option's name
    id: str | None = None,  # noqa: A002
    split: str | None = None,
    group: str | None = None,
    bag: str | None = None,
) -> Manifest:
    """Read a table, a folder of files or one file.

    Parameters
    ----------
    path
        A table (CSV, TSV, Parquet, JSON Lines); a folder ``class/`` or ``split/class/`` (``class/`` may be left out)
        of images, of recordings, of videos or of texts; or one image, audio, video or text file.
    input
        The column to encode. By default the only one of image, audio, video, text and path.
    id
        The column of unique names. By default ``id``, else the path as written, else ``row<N>``.
    split, group, bag
        The columns that play these roles; none by default.

    Returns
    -------
    Manifest
        All samples in the order of the table; of a folder, in the order of their paths.

    Raises
    ------
    ManifestError
        If anything about the table or folder is wrong; the message names the row.

    Notes
    -----
    Relative paths are relative to the manifest's folder and may not leave it; absolute paths are taken as written.
    ``file.dcm#frame=12``, ``volume.nii.gz#slice=40`` and ``volume.nii.gz#axis=0,slice=40`` select a part of a file;
    ``visit.cha#speaker=CHI`` the words of another speaker of a transcript than ``PAR``.
    A column of text in which every cell ends in ``.cha`` or ``.txt`` names files; else its cells are the texts.
    ``first.wav|second.wav`` in an audio column names several recordings that are one sample, in this order.
    """
    path = Path(path)
    roles = {"split": split, "group": group, "bag": bag}
    if path.is_dir():
        return _Reading(path, path, *_read_folder(path)).manifest(input, id, roles)
    if not path.exists():
        raise ManifestError(f"{path}: no such file or folder")
    if path.suffix.lower() in READERS:
        return _Reading(path, path.parent, read_table(path)).manifest(input, id, roles)
    return _Reading(path, path.parent, _read_one(path)).manifest(input, id, roles)


def _read_one(path: Path) -> Table:
    """Return one media or text file as a table of one row."""
    if path.suffix.lower() in TEXT_SUFFIXES:
        return Table({"id": (path.name,), "text": (read_text(path).strip() or None,)}, rows=(1,))
    if modality_of(path) is None:
        known = ", ".join((*READERS, *IMAGE_SUFFIXES, *TEXT_SUFFIXES))
        raise ManifestError(f"{path}: neither a table nor a known media file; expected a folder or one of {known}")
    return Table({"id": (path.name,), "path": (path.name,)}, rows=(1,))


# Folders ------------------------------------------------------------------------------------------------------------


def _read_folder(folder: Path) -> tuple[Table, tuple[str, ...]]:
    """Return a folder's samples as a table, and remarks on what was left out."""
    files = sorted(_visible_files(folder))
    found = _by_modality(files)
    if not found:
        raise ManifestError(
            f"{folder}: no sample in this folder ({len(files)} other files); expected images, recordings, videos, "
            f"{CHAT_SUFFIX} or .txt files in class/ or split/class/"
        )
    if len(found) > 1:
        mixed = "; ".join(f"{len(names)} {kind} files such as {names[0]}" for kind, names in found.items())
        raise ManifestError(f"{folder}: holds {mixed}; expected one kind, make a folder or a table for each")
    ((modality, samples),) = found.items()
    chosen = set(samples)
    left_out = [file for file in files if file not in chosen]
    remark = (
        f"{folder}: left out {len(left_out)} files that are no {modality} files: {shorten(left_out, len(left_out))}"
    )
    columns: dict[str, Column] = {"id": tuple(samples), "path": tuple(samples)}
    places = [sample.split("/")[:-1] for sample in samples]
    if _first_level_is_split(folder, places):
        columns["split"] = tuple(place[0] if place else None for place in places)
        places = [place[1:] for place in places]
    if any(places):
        columns["label"] = tuple(place[0] if place else None for place in places)
    return Table(columns, rows=tuple(range(1, len(samples) + 1))), (remark,) if left_out else ()


def _by_modality(files: Sequence[str]) -> dict[Modality, list[str]]:
    """Return the samples among the files of a folder.

    A plain text is a sample where there is nothing else; beside other samples it is a note on them, and a file
    called README or LICENSE is one anywhere.
    """
    found: defaultdict[Modality, list[str]] = defaultdict(list)
    texts = []
    for file in files:
        modality = modality_of(file)
        if file.lower().endswith(TEXT_SUFFIXES):
            texts += [] if _NOTE.match(PurePath(file).name) else [file]
        elif modality is not None:
            found[modality].append(file)
    return dict(found) or ({"text": texts} if texts else {})


def _visible_files(folder: Path, prefix: str = "", above: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield the files below a folder as POSIX paths; hidden ones are passed over, links followed but not in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ManifestError(f"{folder}: the folder cannot be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _visible_files(Path(entry), f"{prefix}{entry.name}/", above | {real})
        elif not entry.name.isascii() and any("\udc80" <= character <= "\udcff" for character in entry.name):
            raise ManifestError(f"{folder}: the file name {os.fsencode(entry.name)!r} is not UTF-8; rename it")
        else:
            yield prefix + entry.name


def _first_level_is_split(folder: Path, places: Sequence[Sequence[str]]) -> bool:
    first = {place[0] for place in places if place}
    splits = {name for name in first if name.strip().casefold() in SPLIT_NAMES}
    if splits and splits != first:
        raise ManifestError(
            f"{folder}: {shorten(sorted(splits), len(splits))} are names of splits and "
            f"{shorten(sorted(first - splits), len(first - splits))} are not; expected only splits or only classes"
        )
    return bool(splits)


# Columns -> samples -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """A table on its way to a manifest: where it lies, and what it holds."""

    path: Path
    folder: Path
    table: Table
    remarks: tuple[str, ...] = ()

    @property
    def columns(self) -> Mapping[str, Column]:
        return self.table.columns

    def row(self, position: int) -> str:
        return f"row {self.table.rows[position]}"

    def fail(self, message: str) -> ManifestError:
        return ManifestError(f"{self.path}: {message}")

    def manifest(self, input_column: str | None, id_column: str | None, roles: Mapping[str, str | None]) -> Manifest:
        asked = {"input": input_column, "id": id_column, **roles}
        for option, name in asked.items():
            if name is not None and name not in self.columns:
                raise self.fail(f"no column {name!r} (--{option}); {did_you_mean(name, self.columns)}")
        name = input_column or self.only_input()
        modality = self.modality(name)
        id_column = id_column or ("id" if "id" in self.columns else None)
        named = {"id": id_column, **roles}
        manifest = Manifest(
            path=self.path,
            columns=self.columns,
            ids=self.ids(id_column, name, modality),
            sources=self.sources(name, modality),
            input=name,
            modality=modality,
            roles={role: column for role, column in named.items() if column is not None},
            rows=self.table.rows,
            remarks=self.remarks,
        )
        self.refuse_wrong_folder(manifest)
        return manifest

    def only_input(self) -> str:
        candidates = [name for name in INPUT_COLUMNS if name in self.columns]
        if len(candidates) == 1:
            return candidates[0]
        if candidates:
            raise self.fail(f"the columns {', '.join(candidates)} can all be encoded; name one with --input")
        near = [name for name in self.columns if any(known in name.casefold() for known in (*INPUT_COLUMNS, "file"))]
        hint = f"perhaps {near[0]!r}? " if near else ""
        raise self.fail(
            f"no column named {', '.join(INPUT_COLUMNS)}; name the one to encode with --input: {hint}"
            f"Columns: {', '.join(self.columns)}."
        )

    def modality(self, name: str) -> Modality:
        """Return what the input column holds: by its name, else by the suffixes of its values."""
        if name in _MODALITY_OF_COLUMN:
            return _MODALITY_OF_COLUMN[name]
        found: defaultdict[Modality | None, list[int]] = defaultdict(list)
        for position, value in enumerate(self.columns[name]):
            if value is not None:
                found[modality_of(_SELECTOR.sub("", value.strip()))].append(position)
        if not found:
            raise self.fail(f"column {name!r} is empty in every row; nothing to encode")
        # A column of text may mention a file here and there; mostly files means that the others are mistakes.
        if name != "path" and len(found[None]) * 2 >= sum(map(len, found.values())):
            return "text"
        unknown = found.pop(None, [])
        if unknown:
            raise self.fail(
                f"column {name!r}: {len(unknown)} files have no known suffix: {self.quote(name, unknown)}; "
                "rename them, or call the column image, audio or video"
            )
        if len(found) > 1:
            kinds = "; ".join(f"{kind}: {self.quote(name, rows[:1])}" for kind, rows in sorted(found.items(), key=str))
            raise self.fail(f"column {name!r} mixes {kinds}; expected one kind of file, make one manifest for each")
        (modality,) = found
        assert modality is not None
        return modality

    def names_files(self, name: str, modality: Modality) -> bool:
        """Return whether the cells of the input column are files; those of text are if all of them look it."""
        if modality != "text":
            return True
        cells = [(position, value) for position, value in enumerate(self.columns[name]) if value is not None]
        texts = [position for position, value in cells if modality_of(_SELECTOR.sub("", value.strip())) != "text"]
        # As above: a text may end like a file's name here and there.
        if texts and len(texts) * 2 < len(cells):
            raise self.fail(
                f"column {name!r}: {len(texts)} cells name no text file and the others do: "
                f"{self.quote(name, texts)}; expected only names of {CHAT_SUFFIX} and .txt files, or only texts"
            )
        return not texts

    def quote(self, name: str, positions: Sequence[int]) -> str:
        column = self.columns[name]
        return shorten((f"{self.row(at)} {column[at]!r}" for at in positions), len(positions))

    def ids(self, id_column: str | None, input_column: str, modality: Modality) -> tuple[str, ...]:
        column = self.columns[id_column or input_column]
        if id_column is not None:
            nameless = [position for position, value in enumerate(column) if value is None]
            if nameless:
                rows = shorten(map(self.row, nameless), len(nameless))
                raise self.fail(f"column {id_column!r} is empty in {rows}; every sample needs an id")
        by_row = id_column is None and not self.names_files(input_column, modality)
        ids = tuple(
            value if value is not None and not by_row else f"row{row}"
            for value, row in zip(column, self.table.rows, strict=True)
        )
        self.refuse_duplicates(ids, id_column or input_column, stated=id_column is not None)
        return ids

    def refuse_duplicates(self, ids: Sequence[str], name: str, *, stated: bool) -> None:
        repeated = {value for value, count in Counter(ids).items() if count > 1}
        if not repeated:
            return
        positions: defaultdict[str, list[int]] = defaultdict(list)
        for position, value in enumerate(ids):
            if value in repeated:
                positions[value].append(position)
        examples = shorten((self.describe_duplicate(value, at) for value, at in positions.items()), len(positions))
        advice = (
            "remove the repeated rows"
            if stated
            else "remove the repeated rows, or name a column of unique ids with --id"
        )
        raise self.fail(f"{len(repeated)} values of {name!r} name more than one row: {examples}; {advice}")

    def describe_duplicate(self, value: str, positions: Sequence[int]) -> str:
        differing = [name for name, cells in self.columns.items() if len({cells[at] for at in positions}) > 1]
        rows = ", ".join(str(self.table.rows[at]) for at in positions[:MAX_EXAMPLES])
        found = f"conflicting in {', '.join(differing[:MAX_EXAMPLES])}" if differing else "identical"
        return f"{value!r} (rows {rows}, {found})"

    # Values -> sources

    def sources(self, name: str, modality: Modality) -> tuple[Source | None, ...]:
        values = self.columns[name]
        if all(value is None for value in values):
            raise self.fail(f"column {name!r} is empty in every row; nothing to encode")
        if not self.names_files(name, modality):
            return tuple(None if value is None else Source(modality, text=value) for value in values)
        return tuple(self.source(position, value, modality) for position, value in enumerate(values))

    def source(self, position: int, value: str | None, modality: Modality) -> Source | None:
        if value is None:
            return None
        value = value.strip()
        if modality == "audio" and "|" in value and not (self.folder / value).exists():
            first, *rest = (self.file(position, part.strip()) for part in value.split("|"))
            return Source(modality, path=first, rest=tuple(rest))
        source = Source(modality, path=self.file(position, value))
        return with_speaker(_selected(source, value) if "#" in value else source)

    def file(self, position: int, value: str) -> Path:
        if not value:
            raise self.fail(f"{self.row(position)}: expected the name of a file beside every |, found none")
        if "://" in value:
            raise self.fail(f"{self.row(position)}: {value!r} is a remote address; expected a file, download it first")
        if "\0" in value:
            raise self.fail(f"{self.row(position)}: {value!r} holds a NUL character, which no path can")
        # The cheap test first: only a path that climbs at all can climb out.
        if ".." in value and Path(os.path.normpath(value)).parts[0] == "..":
            raise self.fail(
                f"{self.row(position)}: {value!r} leaves the manifest's folder; expected one below it, or absolute"
            )
        return self.folder / value

    def refuse_wrong_folder(self, manifest: Manifest) -> None:
        """Refuse a table none of whose files exists: its folder is wrong, not its files."""
        files = [source.path for source in manifest.sources if source is not None and source.path is not None]
        if files and not any(map(os.path.exists, files)):
            backslash = "; use / instead of \\ in paths" if "\\" in str(files[0]) and os.sep == "/" else ""
            raise self.fail(
                f"none of the {len(files)} files of column {manifest.input!r} exists, the first is {files[0]}; "
                f"paths are relative to {self.folder.absolute()}{backslash}"
            )


def _selected(source: Source, value: str) -> Source:
    """Return the source with the part that a fragment selects, unless a file of that very name exists."""
    match = _SELECTOR.search(value)
    assert source.path is not None
    if match is None or source.path.exists():
        return source
    parts = ((name, match[name]) for name in ("frame", "axis", "slice"))
    # `frame=012` and `frame=12` are one part, so they must be one key.
    selector = ",".join(f"{name}={int(number)}" for name, number in parts if number is not None)
    if match["speaker"]:
        selector = chat_selector(match["speaker"])
    whole = source.path.name[: -len(match[0])]
    return replace(source, path=source.path.with_name(whole), selector=selector)
