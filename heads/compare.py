"""`compare`: many cells on the same rows and folds, in one table with intervals, tests and ranks.

::

    RUN/
      table.csv       one row per cell and metric
      tests.csv       paired tests, with Holm's adjustment
      ranks.csv       mean ranks over data sets and encoders
      few_shot.csv    curves, if asked for
      left_out.csv    cells that failed, and baselines that cannot be had, if any, with the reason
      report.html     the page; every number links to its run
      config.yaml     resolved; `compare --config` takes it back
      cells/          one run directory of `fit-head` per cell and repeat

Cells are run one by one and kept: the same command goes on where it was stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from data.errors import SplitError
from data.progress import Progress, Silent
from heads.comparing.cells import FOLDER, Rows, load_cells, run_cell
from heads.comparing.compared import Comparison, few_shot_of, left_out_of, ranks_of, table_of, tests_of
from heads.comparing.few_shot import Point, few_shot_curve, lay_course
from heads.comparing.page import write_page
from heads.comparing.standings import Entry, Standing, choose_metrics, enter, plan_of, run_tests
from heads.comparing.suite import Cell, Omission, Suite, read_suite
from heads.config import CompareConfig
from heads.errors import HeadError, RunError
from heads.run import write_config, write_table


def compare(config: CompareConfig, *, command: str = "", progress: Progress | None = None) -> Comparison:
    """Fit and judge all cells of a suite, and write the comparison's directory.

    Parameters
    ----------
    config
        What to compare.
    command
        The command line, for the records.
    progress
        Told how far the work is.

    Raises
    ------
    FrostlineError
        If the suite, a manifest, the features or the splits are wrong, or no cell could be fitted. A
        cell that alone cannot be fitted is listed, and the others go on.
    """
    progress = progress or Silent()
    suite = read_suite(config)
    config = suite.config
    _refuse_foreign(config.out)
    by_data = suite.by_data()
    if len(by_data) > 1:
        # What is wrong with the last data set is said before the first is fitted on.
        for cells in by_data.values():
            _rows(cells, config, progress)
    standings: list[Standing] = []
    curves: dict[Entry, Sequence[Point]] = {}
    courses: dict[str, str] = {}
    for i, (name, cells) in enumerate(by_data.items()):
        rows = _rows(cells, config, progress)
        if i == 0:
            _open(config)
        standing = _stand(name, cells, rows, suite, command, progress)
        standings.append(standing)
        if config.few_shot:
            drawn, courses[name] = _few_shot(standing, rows, config, progress)
            curves |= drawn
    result = Comparison(suite=suite, standings=tuple(standings), curves=curves, courses=courses, out=config.out)
    write_results(result, command)
    return result


def write_results(result: Comparison, command: str) -> None:
    """Write the tables and the page."""
    out = result.out
    try:
        write_table(out / "table.csv", table_of(result.standings, out))
        write_table(out / "tests.csv", tests_of(result.standings))
        write_table(out / "ranks.csv", ranks_of(result.ranks))
        for name, table in (("few_shot.csv", few_shot_of(result)), ("left_out.csv", left_out_of(result))):
            if next(iter(table.values())):
                write_table(out / name, table)
            else:
                (out / name).unlink(missing_ok=True)
        write_page(result, command)
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written: {error.strerror or error}") from error


def _stand(name: str, cells: Sequence[Cell], rows: Rows, suite: Suite, command: str, progress: Progress) -> Standing:
    """Fit the cells of one data set and judge them."""
    config, data = suite.config, rows.any
    failed = dict(rows.failed)
    runs: dict[Cell, list[Path]] = {}
    for number, (cell, learns) in enumerate(rows.data.items(), start=1):
        progress.note(f"{name}: cell {number} of {len(rows.data)}: {cell.title}")
        try:
            runs[cell] = [
                run_cell(cell, learns, repeat, judge=config.judge, out=config.out, command=command, progress=progress)
                for repeat in range(config.repeats)
            ]
        except HeadError as error:
            failed[cell] = str(error)
    if not any(not cell.baseline for cell in runs):
        first = next(reason for cell, reason in failed.items() if not cell.baseline)
        raise HeadError(f"{name}: none of {len(failed)} cells could be fitted; the first: {first}")
    judged = data.rows(config.judge if config.judge != "cv" else "train")
    plan = plan_of(data, judged, cells)
    progress.stage(f"{name}: intervals and tests", len(runs) + 1)
    entries = []
    for cell, of_cell in runs.items():
        entries.append(enter(cell, of_cell, data, judged, config.judge, plan))
        progress.advance()
    names = choose_metrics(data.task.kind, config.metric, list(entries[0].metrics))
    tests = run_tests(data.task, entries, names)
    progress.advance()
    omissions = {
        cell: Omission(data=name, encoder=cell.encoder, head=cell.head, reason=reason)
        for cell, reason in failed.items()
    }
    return Standing(
        name=name,
        data=data,
        rows=judged,
        judge=config.judge,
        names=names,
        entries=tuple(entries),
        tests=tests,
        failed=tuple(each for cell, each in omissions.items() if not cell.baseline),
        omitted=(
            *(each for cell, each in omissions.items() if cell.baseline),
            *(each for each in suite.omitted if each.data == name),
        ),
        remarks=rows.remarks,
    )


def _rows(cells: Sequence[Cell], config: CompareConfig, progress: Progress) -> Rows:
    """Load the cells of one data set, refused where it has no rows of the judged split."""
    rows = load_cells(cells, progress)
    if config.judge != "cv" and not len(rows.any.rows(config.judge)):
        raise SplitError(
            f"--judge {config.judge}: {rows.any.manifest.path} has no {config.judge} rows; "
            f"name the column of splits with --split, or judge by cv"
        )
    return rows


def _few_shot(
    standing: Standing, rows: Rows, config: CompareConfig, progress: Progress
) -> tuple[dict[Entry, Sequence[Point]], str]:
    """Return the curve of each entry, and where they were judged."""
    entries = [entry for entry in standing.entries if entry.contends]
    first = standing.entries[0].cell.config
    try:
        course = lay_course(standing.data, config.judge, folds=first.folds, seed=first.seed, draws=config.few_shot)
    except HeadError as error:
        return {}, f"There is no curve: {error}."
    progress.stage(f"{standing.name}: few-shot curves", len(entries))
    curves: dict[Entry, Sequence[Point]] = {}
    for entry in entries:
        curves[entry] = few_shot_curve(entry.cell, rows.data[entry.cell], course, config.out)
        progress.advance()
    return curves, f"Judged on {course.described}; mean over {config.few_shot} draws."


def _refuse_foreign(out: Path) -> None:
    """Refuse a directory that holds something else than a comparison."""
    if out.exists() and not (out / FOLDER).is_dir() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"--out {out}: exists and is no comparison (no {FOLDER} folder); choose another directory")


def _open(config: CompareConfig) -> None:
    """Make the comparison's directory, or take up the one that is there; ``--overwrite`` begins anew."""
    out = config.out
    try:
        if config.overwrite and out.exists():
            shutil.rmtree(out)
        (out / FOLDER).mkdir(parents=True, exist_ok=True)
        write_config(out, config)
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written: {error.strerror or error}") from error
