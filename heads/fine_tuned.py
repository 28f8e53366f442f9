"""Rows that an encoder was fine-tuned on: whatever is made of its features looks better on them than it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.digest import key_bytes
from data.errors import LeakageError
from featurestore.catalog import HANDED_BACK
from heads.labelled import Labelled
from heads.run import TRAINED, read_trained

_FAMILY = "finetuned:"


def refuse_seen(
    data: Labelled, encoders: Iterable[str], judged: Mapping[str, NDArray[np.int64]], *, allow: bool
) -> list[str]:
    """Refuse rows to be judged that an encoder was fine-tuned on, or return the refusal as a warning.

    Parameters
    ----------
    data
        The samples.
    encoders
        Ids of encoders; those of ``RUN/encoder`` count, and theirs of runs that they began with.
    judged
        Positions of the samples that judge, by what they are called.
    allow
        Whether a refusal becomes a warning.

    Raises
    ------
    LeakageError
        If there are such rows and that was not allowed.
    RunError
        If a run's list of trained rows is damaged.
    """
    return _refused(data, _seen_by(data, encoders), judged, allow=allow)


def _refused(
    data: Labelled,
    seen_by: Mapping[Path, NDArray[np.bool_] | None],
    judged: Mapping[str, NDArray[np.int64]],
    *,
    allow: bool,
) -> list[str]:
    remarks: list[str] = []
    for run, seen in seen_by.items():
        if seen is None:
            remarks.append(f"{run / TRAINED} is not there, so nobody can tell which rows the encoder was trained on")
            continue
        shared = {name: rows for name, rows in judged.items() if seen[rows].any()}
        found = [f"{seen[rows].sum():,} of the {len(rows):,} {name} rows" for name, rows in shared.items()]
        if not found:
            continue
        message = (
            f"{run / 'encoder'} was fine-tuned on {' and '.join(found)}, which look better than they are; judge by "
            f"rows that took no part in it, such as the test rows of the split that it was fine-tuned with"
        )
        if not allow:
            raise LeakageError(f"{data.manifest.path}: {message}, or accept that with --allow-leakage")
        remarks.append(f"leakage allowed: {message}")
    return remarks


def audit(data: Labelled, encoders: Iterable[str], *, allow: bool) -> list[str]:
    """Refuse val and test rows that an encoder was fine-tuned on, and warn of training rows.

    These are cross-validated, which keeps an encoder from none of them. Where there are neither val nor test rows, it
    is the only judge, and refused as they are.

    Raises
    ------
    LeakageError
        If there are such rows and that was not allowed.
    """
    seen_by, train = _seen_by(data, encoders), data.rows("train")
    judged = {split: rows for split in ("val", "test") if len(rows := data.rows(split))}
    remarks = _refused(data, seen_by, judged or {"cross-validated": train}, allow=allow)
    for run, seen in seen_by.items():
        if judged and seen is not None and (count := seen[train].sum()):
            remarks.append(
                f"{run / 'encoder'} was fine-tuned on {count:,} of the {len(train):,} training rows, so what is "
                f"cross-validated on them flatters it; compare it with others by test rows"
            )
    return remarks


def _runs_behind(encoders: Iterable[str]) -> list[Path]:
    """Return the runs that fine-tuned encoders, and those that these began with, each once."""
    runs: list[Path] = []
    waiting = list(encoders)
    while waiting:
        _, is_one, folder = waiting.pop(0).partition(_FAMILY)
        if is_one and Path(folder).parent not in runs:
            runs.append(Path(folder).parent)
            waiting += _bases(Path(folder) / HANDED_BACK)
    return runs


def _bases(path: Path) -> list[str]:
    """Return the base encoders that a fine-tuned encoder names; none where it is gone: its features are still there."""
    try:
        towers = json.loads(path.read_text(encoding="utf-8"))["towers"].values()
        return [str(each["encoder"]) for each in towers]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []


def _seen_by(data: Labelled, encoders: Iterable[str]) -> dict[Path, NDArray[np.bool_] | None]:
    """Return which samples each run behind some encoders has seen; None of a run that has no list of them."""
    return {run: _seen(data, run) if (run / TRAINED).is_file() else None for run in _runs_behind(encoders)}


def _seen(data: Labelled, run: Path) -> NDArray[np.bool_]:
    """Return which samples have an input that a run was trained on."""
    trained = read_trained(run)
    known = np.array([key_bytes(key) in trained for key in data.instances.keys], dtype=bool)
    return np.array([known[data.instances.at(np.array([row]))].any() for row in range(len(data.y))], dtype=bool)
