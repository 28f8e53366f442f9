"""The page of a run, or of several side by side: one HTML file that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.files import whole_text_file
from data.task import Task
from heads.errors import RunError
from heads.pages.comparison import comparison
from heads.pages.decision_sections import calibration_section, operating_points_section, seal_note, sets_section
from heads.pages.gallery import find_plots, write_plots
from heads.pages.page import Html, document, element, join
from heads.pages.sections import (
    data_section,
    encoders_of,
    head_section,
    metrics_section,
    per_class_section,
    plots_section,
    reproduction_section,
    run_name,
    sentence,
    warnings_of,
)
from heads.record import RunRecord

__all__ = ["write_plots", "write_report"]


@dataclass(frozen=True)
class _Run:
    folder: Path
    record: RunRecord
    anchor: str


def write_report(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write the report of one run, or of several with a comparison first.

    Parameters
    ----------
    run_dirs
        Run directories; their plots are embedded where they were drawn (`write_plots`).
    out
        The HTML file to write.

    Returns
    -------
    Path
        `out`.

    Raises
    ------
    RunError
        If there is no run, one of the directories is none, or the file cannot be written.
    """
    if not run_dirs:
        raise RunError("a report needs at least one run directory")
    runs = [_Run(folder, RunRecord.read(folder), f"run-{i}") for i, folder in enumerate(run_dirs, start=1)]
    title, body = _single(runs[0]) if len(runs) == 1 else _several(runs)
    try:
        with whole_text_file(out) as file:
            file.write(document(title, body))
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    return out


def _single(run: _Run) -> tuple[str, Html]:
    title = _title(run.record)
    return title, join(
        [
            element("h1", title),
            element("p", sentence(run.record), class_="lead"),
            warnings_of(run.record),
            *_sections(run, every_split=True),
        ]
    )


def _several(runs: Sequence[_Run]) -> tuple[str, Html]:
    title = f"{len(runs)} runs compared"
    names = _names(runs)
    parts = [element("h1", title), comparison([(names[run.anchor], run.anchor, run.record) for run in runs])]
    for run in runs:
        parts += [
            element("h2", names[run.anchor], id=run.anchor),
            element("p", sentence(run.record), class_="lead"),
            warnings_of(run.record),
            *_sections(run, every_split=False),
        ]
    return title, join(parts)


def _sections(run: _Run, *, every_split: bool) -> list[Html]:
    record = run.record
    found = find_plots(run.folder)
    shown = [record.headline_split, *(found if every_split else ())]
    pictures = {split: found.get(split, []) for split in dict.fromkeys([*shown, ""])}
    try:
        plots = plots_section(record, pictures)
    except OSError as error:
        raise RunError(f"{run.folder}: a plot cannot be read: {error.strerror or error}") from error
    return [
        metrics_section(record),
        seal_note(record),
        plots,
        per_class_section(record),
        data_section(record),
        head_section(record),
        operating_points_section(record),
        calibration_section(record),
        sets_section(record),
        reproduction_section(record),
    ]


def _title(record: RunRecord) -> str:
    return f"{', '.join(Task.from_dict(record.task).targets)}: {run_name(record)}"


def _names(runs: Sequence[_Run]) -> dict[str, str]:
    """Return a name per anchor, of what differs: heads, encoders or both, and the folder where even that is equal."""
    heads = [run.record.head["name"] for run in runs]
    encoders = [encoders_of(run.record) for run in runs]
    names = [run_name(run.record) for run in runs]
    if len(set(encoders)) == 1:
        names = heads
    elif len(set(heads)) == 1:
        names = encoders
    return {
        run.anchor: name if names.count(name) == 1 else f"{name} ({run.folder.name})"
        for run, name in zip(runs, names, strict=True)
    }
