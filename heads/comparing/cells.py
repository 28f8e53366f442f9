"""Cells of one data set: the same rows and groups for all, and one run directory per cell and repeat.

A run's directory is named after the digest of all that decides its numbers. A finished run is found by
that name and not fitted again; a changed option, feature, row or head makes another name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from data.digest import digest_json
from data.errors import SplitError
from data.progress import Progress
from heads.bag_views import refuse_bag_views
from heads.catalog import head_class, make_head
from heads.comparing.suite import Cell
from heads.config import FitConfig
from heads.errors import HeadError
from heads.fit import fit_labelled
from heads.labelled import Labelled
from heads.loading import few_per_label, few_remarks, gate, load, refuse_masked, refuse_mixed, unused_split
from heads.record import FILE
from heads.run import new_run

FOLDER = "cells"
ELSEWHERE = "not in every cell of the comparison"
_PLACES = frozenset({"manifest", "store", "prompts", "out", "overwrite"})
"""Options that decide no number: contents have digests and fingerprints of their own."""
_FITTING = frozenset(
    {"head", "set", "folds", "threshold", "min_positives", "bootstrap", "refit", "out", "overwrite", "allow_leakage"}
    | {"sealed", "calibration", "coverage", "per_label"}
)
"""Options that do not decide what is loaded."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The cells of one data set with their data, which are the same samples in the same order.

    Attributes
    ----------
    data
        What each cell learns from, by cell.
    failed
        Cells that cannot be fitted at all, with the reason.
    remarks
        What a reader must know of the rows.
    """

    data: Mapping[Cell, Labelled]
    failed: Mapping[Cell, str]
    remarks: tuple[str, ...]

    @property
    def any(self) -> Labelled:
        """The data of one of the cells: samples, labels, splits and groups are those of all."""
        return next(iter(self.data.values()))


def load_cells(cells: Sequence[Cell], progress: Progress) -> Rows:
    """Load what the cells of one data set learn from, and keep the rows that all of them have.

    Raises
    ------
    FrostlineError
        If the manifest, the features or the splits are wrong. What is wrong with one head only makes
        its cell fail.
    """
    views: dict[str, Labelled] = {}
    view_of: dict[Cell, str] = {}
    failed: dict[Cell, str] = {}
    for cell in cells:
        key = _view_key(cell.config)
        try:
            if key not in views:
                views[key] = load(cell.config, progress)
            refuse_mixed("compare", views[key].task)
            head = make_head(cell.config.head, views[key].task.kind, cell.config.set, cell.config.seed)
            refuse_masked(cell.config, head)
            refuse_bag_views(cell.config, head.name)
        except HeadError as error:
            failed[cell] = str(error)
            continue
        view_of[cell] = key
    if not view_of:
        raise HeadError(f"{cells[0].data}: no cell can be fitted; {next(iter(failed.values()))}")
    same = dict(zip(views, _same_rows(list(views.values())), strict=True))
    used = [same[key] for key in dict.fromkeys(view_of.values())]
    remarks = list(dict.fromkeys(remark for view in used for remark in view.manifest.remarks))
    remarks += list(
        dict.fromkeys(remark for view in used for remark in gate(view, allow=next(iter(view_of)).config.allow_leakage))
    )
    remarks += unused_split(next(iter(view_of)).config, used[0])
    few = {key: few_per_label(cells[0].config, view) for key, view in same.items()}
    first, key = next(iter(view_of.items()))
    remarks += few_remarks(first.config, few[key])
    return Rows(
        data={cell: few[key] for cell, key in view_of.items()}, failed=failed, remarks=(*remarks, *_left_out(used))
    )


def run_cell(
    cell: Cell, data: Labelled, repeat: int, *, judge: str, out: Path, command: str, progress: Progress
) -> Path:
    """Fit one repeat of a cell, unless that has been done, and return its run directory.

    Parameters
    ----------
    cell, data
        What to fit, and on what.
    repeat
        Which repeat it is, from 0; folds and fits have the seed of the cell plus it.
    judge
        The split that cells are compared on; unless it is ``test``, test rows stay sealed.
    out
        The comparison's directory.
    command, progress
        See `heads.fit.fit`.

    Raises
    ------
    HeadError
        If the head cannot be fitted on these data.
    """
    sealed = judge != "test" and bool(len(data.rows("test")))
    config = cell.config.model_copy(update={"seed": cell.config.seed + repeat, "sealed": sealed})
    run = out / FOLDER / f"{_slug(cell, config.seed)}-{identity(config, data)[:12]}"
    if (run / FILE).is_file():
        return run
    config = config.model_copy(update={"out": run, "overwrite": False})
    remarks = [*data.manifest.remarks, *unused_split(config, data), *gate(data, allow=config.allow_leakage)]
    try:
        with new_run(run, overwrite=False) as folder:
            fit_labelled(config, data, folder, remarks=remarks, command=command, progress=progress)
    except SplitError as error:
        raise HeadError(str(error)) from error
    return run


def identity(config: FitConfig, data: Labelled) -> str:
    """Return the digest of all that decides a run's numbers: options, features, prompts, samples, groups, version."""
    settings = {name: value for name, value in config.to_dict().items() if name not in _PLACES}
    return digest_json(
        [
            settings,
            data.fingerprints,
            data.prompts.fingerprint if data.prompts else None,
            data.manifest.digest,
            data.groups.tolist(),
            head_class(config.head, data.task.kind).version,
        ]
    )


def joint_groups(groupings: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Return the finest groups in which whatever any grouping keeps together is together, shape (n,).

    Parameters
    ----------
    groupings
        The group of each sample as each view has it, shape (n,) each.
    """
    n = len(groupings[0])
    rows, nodes, used = [], [], n
    for grouping in groupings:
        names, codes = np.unique(grouping, return_inverse=True)
        rows.append(np.arange(n))
        nodes.append(used + codes)
        used += len(names)
    edges = (np.ones(n * len(groupings), np.int8), (np.concatenate(rows), np.concatenate(nodes)))
    labels = connected_components(coo_array(edges, shape=(used, used)), directed=False)[1][:n]
    _, occurs, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(occurs))[inverse].astype(np.int64)


def _same_rows(views: Sequence[Labelled]) -> list[Labelled]:
    """Return views on the samples that all of them have, in the order of the manifest, in common groups."""
    common = set(views[0].manifest.ids).intersection(*(view.manifest.ids for view in views[1:]))
    if not common:
        raise HeadError(f"{views[0].manifest.path}: no sample has the features of every encoder")
    kept = [np.array([i for i, name in enumerate(view.manifest.ids) if name in common]) for view in views]
    taken = [view.take(rows, ELSEWHERE) for view, rows in zip(views, kept, strict=True)]
    groups = joint_groups([view.groups for view in taken])
    return [replace(view, groups=groups) for view in taken]


def _left_out(views: Sequence[Labelled]) -> list[str]:
    """Say which samples no cell was fitted on."""
    reasons: dict[str, set[str]] = {}
    for view in views:
        for reason, ids in view.dropped.items():
            if reason != ELSEWHERE:
                reasons.setdefault(reason, set()).update(ids)
    if not reasons:
        return []
    total = len(set().union(*reasons.values()))
    each = "; ".join(f"{reason}: {len(ids):,}" for reason, ids in reasons.items())
    return [f"{total:,} samples were left out of every cell, so that all have the same rows ({each})."]


def _view_key(config: FitConfig) -> str:
    """Return what decides the rows, features and prompts that a configuration loads."""
    values = {name: value for name, value in config.to_dict().items() if name not in _FITTING}
    if config.prompt_control != "shuffled":
        del values["seed"]
    # Heads that compare images with prompts are refused where those do not lie in one space.
    return digest_json([values, config.head if config.prompt_encoder else ""])


def _slug(cell: Cell, seed: int) -> str:
    parts = [cell.data, cell.encoder, cell.head, f"seed{seed}"]
    return ".".join(re.sub(r"[^A-Za-z0-9]+", "-", part).strip("-")[:40] for part in parts if part)
