"""A run directory: written aside and renamed into place, so that it is whole or not there at all.

::

    RUN/
      config.yaml        resolved; `fit-head --config` takes it back
      record.json        what was done, on what, with which result
      predictions.csv    one row per judged sample
      trained.csv        ids and content keys of the rows the head was fitted on
      history.json       learning curves of the final fit, if the head has any
      head/              the bundle
      plots/*.png
      report.html
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from data.config import Config
from data.files import whole_text_file
from data.task import Task
from heads.errors import RunError
from heads.evaluation.scoring import score_columns

TRAINED = "trained.csv"


@contextmanager
def new_run(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a directory to write a run into; it takes its name when the block ends without an error.

    Parameters
    ----------
    out
        The run directory.
    overwrite
        Whether an existing run may be replaced.

    Raises
    ------
    RunError
        If `out` exists and may not be replaced, is no run, or cannot be written.
    """
    if out.exists():
        if not overwrite:
            raise RunError(f"--out {out}: exists already; choose another directory, or replace it with --overwrite")
        if not (out / "record.json").is_file():
            raise RunError(f"--out {out}: is not a run directory (no record.json), so it is not replaced")
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise RunError(f"--out {out}: cannot be written: {error.strerror}") from error
    try:
        yield partial
        replaced = out.with_name(f".{out.name}.replaced-{os.getpid()}")
        if out.exists():
            out.rename(replaced)
        partial.rename(out)
        shutil.rmtree(replaced, ignore_errors=True)
    except (OSError, RunError) as error:
        # Whoever writes a file inside names it by its place aside, which the user never chose.
        refused = error.__cause__ if isinstance(error, RunError) else error
        if not isinstance(refused, OSError):
            raise
        raise RunError(f"--out {out}: cannot be written: {refused.strerror or refused}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_config(run: Path, config: Config) -> None:
    """Write the resolved configuration of a run."""
    (run / "config.yaml").write_text(resolved_yaml(config), encoding="utf-8")


def resolved_yaml(config: Config, *, without: Collection[str] = ()) -> str:
    """Return a configuration as YAML; paths are absolute, so that it means the same from anywhere.

    Parameters
    ----------
    config
        The configuration.
    without
        Fields to leave out.
    """
    values = {
        name: str(Path(value).absolute()) if isinstance(getattr(config, name), Path) else value
        for name, value in config.to_dict().items()
        if name not in without
    }
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def write_history(run: Path, history: Mapping[str, Sequence[float | None]]) -> None:
    """Write learning curves: the name of a quantity to its value per epoch."""
    (run / "history.json").write_text(json.dumps(history, indent=1, allow_nan=False), encoding="utf-8")


def prediction_columns(task: Task, scores: NDArray[np.float64], predicted: NDArray[Any]) -> dict[str, list[str]]:
    """Return predictions as named text columns.

    Parameters
    ----------
    task
        The task.
    scores
        Probabilities (n, C) or (n, T), or values (n,) or (n, T) for regression; those of all targets of a mixed task.
    predicted
        Codes (n,), 0 and 1 of shape (n, T), or the values again; codes and values (n, T) for a mixed task.

    Returns
    -------
    dict
        ``pred`` and ``prob[<class>]``, or ``pred[<target>]`` and ``prob[<target>]`` where there are several targets;
        ``pred[<target>]`` and ``prob[<target>=<class>]`` of a mixed task.
    """
    if task.kind == "mixed":
        columns: dict[str, list[str]] = {}
        for j, (part, own) in enumerate(zip(task.parts, score_columns(task), strict=True)):
            single = part.kind == "regression"
            said = predicted[:, j] if single else predicted[:, j].astype(np.int64)
            columns |= _of_part(
                part, prediction_columns(part, scores[:, own.start] if single else scores[:, own], said)
            )
        return columns
    if task.kind == "regression":
        return _per_target("pred", task, predicted)
    if task.kind == "multilabel":
        return _per_target("pred", task, predicted.astype(np.int64)) | _named("prob", task.classes, scores)
    return {"pred": [task.classes[code] for code in predicted]} | _named("prob", task.classes, scores)


def region_columns(task: Task, regions: NDArray[Any]) -> dict[str, list[str]]:
    """Return prediction sets or intervals as named text columns.

    Parameters
    ----------
    task
        The task.
    regions
        Classes inside, bool (n, C); no and yes to each label, bool (n, T, 2); ends of intervals (n, T, 2).

    Returns
    -------
    dict
        ``set``, its classes joined by ``|``; ``set[<label>]``, ``0``, ``1`` or ``0|1``; or ``low`` and ``high`` of
        a value, ``low[<target>]`` and so on where there are several.
    """
    if task.kind == "regression":
        ends = regions[:, 0] if len(task.targets) == 1 else regions
        return _per_target("low", task, ends[..., 0]) | _per_target("high", task, ends[..., 1])
    if task.kind == "multilabel":
        return {f"set[{name}]": _joined(("0", "1"), regions[:, j]) for j, name in enumerate(task.classes)}
    return {"set": _joined(task.classes, regions)}


def raw_columns(task: Task, scores: NDArray[np.float64]) -> dict[str, list[str]]:
    """Return scores before their calibration as text columns, ``raw[<class>]``."""
    return _named("raw", task.classes, scores)


def truth_columns(task: Task, y: NDArray[Any]) -> dict[str, list[str]]:
    """Return the labels as named text columns; a missing label is empty."""
    if task.kind == "mixed":
        codes = np.nan_to_num(y, nan=-1).astype(np.int64)
        each = enumerate(task.parts)
        texts = [truth_columns(part, y[:, j] if part.kind == "regression" else codes[:, j]) for j, part in each]
        return {
            name: cells
            for part, own in zip(task.parts, texts, strict=True)
            for name, cells in _of_part(part, own).items()
        }
    if task.kind in ("regression", "multilabel"):
        return _per_target("true", task, y)
    return {"true": [task.classes[code] if code >= 0 else "" for code in y]}


def read_trained(run: Path) -> frozenset[bytes]:
    """Return the content keys of the rows that a run's head was fitted on.

    Raises
    ------
    RunError
        If the run lacks the list, or it is damaged.
    """
    try:
        with (run / TRAINED).open(newline="", encoding="utf-8") as file:
            trained = frozenset(bytes.fromhex(row["key"]) for row in csv.DictReader(file))
    except OSError as error:
        raise RunError(f"{run / TRAINED}: cannot be read: {error.strerror or error}; run its command again") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise RunError(f"{run / TRAINED}: damaged, not a list of trained rows; run its command again") from error
    # Without it no row would count as trained on, and the check for leakage would pass whatever is evaluated.
    if not trained:
        raise RunError(f"{run / TRAINED}: damaged, it lists no row; run its command again")
    return trained


def write_table(path: Path, columns: Mapping[str, Sequence[str]]) -> None:
    """Write named columns as a CSV file, whole or not at all."""
    with whole_text_file(path) as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(zip(*columns.values(), strict=True))


def _of_part(part: Task, columns: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Return the columns of a target of a mixed task under its name: ``pred[age]``, ``prob[grade=II]``."""
    (name,) = part.targets
    return {
        f"{column}[{name}]" if "[" not in column else column.replace("[", f"[{name}=", 1): cells
        for column, cells in columns.items()
    }


def _joined(names: Sequence[str], inside: NDArray[np.bool_]) -> list[str]:
    return ["|".join(name for name, there in zip(names, row, strict=True) if there) for row in inside]


def _per_target(prefix: str, task: Task, values: NDArray[Any]) -> dict[str, list[str]]:
    if values.ndim == 1:
        return {prefix: [_text(value) for value in values]}
    names = task.classes if task.kind == "multilabel" else task.targets
    return _named(prefix, names, values)


def _named(prefix: str, names: Sequence[str], values: NDArray[Any]) -> dict[str, list[str]]:
    return {f"{prefix}[{name}]": [_text(value) for value in values[:, j]] for j, name in enumerate(names)}


def _text(value: Any) -> str:
    """Write a number so that it reads back exactly; a missing one as nothing."""
    number = float(value)
    if np.isnan(number):
        return ""
    return str(int(number)) if number.is_integer() and isinstance(value, np.integer) else repr(number)
