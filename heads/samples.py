"""From rows of a manifest to samples: each row is one, or with a bag column each bag of rows.

A bag is labelled, split and grouped as a whole. Where only some of its rows say how, the others follow
them; where they contradict each other there is no telling, and nothing is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys
from data.errors import ManifestError
from data.manifest import Manifest
from data.tables import MAX_EXAMPLES
from data.task import Targets, Task, encode_targets
from heads.bags import Bags, Offsets, offsets_of, ranges


@dataclass(frozen=True, kw_only=True, eq=False)
class Instances:
    """The rows of a manifest that samples are made of, sample after sample.

    Attributes
    ----------
    manifest
        The rows, m of them.
    keys
        Content keys of the first encoder's inputs, shape (m, 2).
    offsets
        Where each bag begins and the last one ends, shape (n + 1,); None where every row is a sample.
    view
        The column that says what each row shows, such as the angle of the camera; None for none.
    """

    manifest: Manifest
    keys: Keys
    offsets: Offsets | None = None
    view: str | None = None

    @property
    def views(self) -> NDArray[np.object_] | None:
        """The view of each row as text, empty where not known, shape (m,); None without a column of views."""
        if self.view is None:
            return None
        return np.array([name or "" for name in self.manifest.column(self.view)], dtype=object)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of rows of each sample, shape (n,)."""
        return np.ones(len(self.manifest), np.int64) if self.offsets is None else np.diff(self.offsets)

    @property
    def first(self) -> NDArray[np.int64]:
        """The first row of each sample, shape (n,)."""
        return np.arange(len(self.manifest)) if self.offsets is None else self.offsets[:-1]

    def at(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the positions of the rows of some samples."""
        if self.offsets is None:
            return samples
        return ranges(self.offsets[samples], self.lengths[samples])

    def of(self, samples: NDArray[np.int64]) -> Instances:
        """Return the rows of some samples, by position."""
        at = self.at(samples)
        return Instances(
            manifest=self.manifest.select(at.tolist()),
            keys=self.keys[at],
            offsets=None if self.offsets is None else offsets_of(self.lengths[samples]),
            view=self.view,
        )

    def packed(self, X: NDArray[np.float32] | Bags) -> NDArray[np.float32] | Bags:
        """Return the features of samples from those of rows; rows that are bags themselves become parts of theirs."""
        if self.offsets is None:
            return X
        views = self.views
        if not isinstance(X, Bags):
            return Bags(X, self.offsets, views=views)
        each = None if views is None else np.repeat(views, X.lengths)
        return Bags(X.values, X.offsets[self.offsets], np.unique(X.offsets), each)


def bags_of(manifest: Manifest) -> tuple[NDArray[np.int64], list[str]]:
    """Return the bag of each row, numbered as they occur, shape (m,), and the bags' names.

    Raises
    ------
    ManifestError
        If a row names no bag.
    """
    column = manifest.role("bag")
    assert column is not None  # asked of manifests with bags only
    empty = [i for i, name in enumerate(column) if name is None]
    if empty:
        raise ManifestError(
            f"{manifest.where(empty[0])}: no bag in column {manifest.roles['bag']!r} ({len(empty)} such rows); "
            f"name the bag of every row, or leave those rows out"
        )
    number: dict[str, int] = {}
    codes = [number.setdefault(str(name), len(number)) for name in column]
    return np.array(codes, dtype=np.int64), list(number)


def samples_of(
    manifest: Manifest, keys: Keys, kept: NDArray[np.int64], *, view: str | None = None
) -> tuple[NDArray[np.int64], Instances, Manifest]:
    """Put rows together to samples.

    Parameters
    ----------
    manifest, keys
        All rows, and the content keys of their inputs.
    kept
        The rows to use, by position.
    view
        The column of their views.

    Returns
    -------
    kept
        The same rows, in the order of their samples.
    instances
        What they are.
    samples
        A manifest of the samples; a bag has its own name as id, and the cells of its first row.
    """
    if manifest.role("bag") is None:
        rows = manifest.select(kept.tolist())
        return kept, Instances(manifest=rows, keys=keys[kept]), rows
    codes, names = bags_of(manifest.select(kept.tolist()))
    kept = kept[np.argsort(codes, kind="stable")]
    rows, offsets = manifest.select(kept.tolist()), offsets_of(np.bincount(codes, minlength=len(names)))
    samples = replace(rows.select(offsets[:-1].tolist()), ids=tuple(names), origin=rows.digest)
    return kept, Instances(manifest=rows, keys=keys[kept], offsets=offsets, view=view), samples


def encode_samples(task: Task, manifest: Manifest, kept: Manifest) -> Targets:
    """Return the targets of the rows of a manifest that were kept; a bag's label is that of all its rows.

    Raises
    ------
    TaskError
        If a value does not fit the task.
    ManifestError
        If the rows of a bag are labelled differently.
    """
    y = encode_targets(task, manifest)
    if manifest.role("bag") is not None:
        matrix = y.reshape(len(y), -1).copy()
        known = matrix >= 0 if np.issubdtype(y.dtype, np.integer) else ~np.isnan(matrix)
        columns = task.targets if len(task.targets) > 1 else task.targets * matrix.shape[1]
        for j, column in enumerate(columns):
            matrix[:, j] = agreed(manifest, column, matrix[:, j], known=known[:, j])
        y = matrix.reshape(y.shape)
    chosen: Targets = y[positions(manifest, kept)]
    return chosen


def positions(manifest: Manifest, kept: Manifest) -> NDArray[np.int64]:
    """Return where the rows that were kept are in the whole manifest, shape (len(kept),)."""
    at = {name: i for i, name in enumerate(manifest.ids)}
    return np.array([at[name] for name in kept.ids], dtype=np.int64)


def agreed(manifest: Manifest, column: str, values: NDArray[Any], *, known: NDArray[np.bool_]) -> NDArray[Any]:
    """Return one value per row, the same throughout a bag; rows without one take that of their bag.

    Parameters
    ----------
    manifest
        The rows.
    column
        Where the values were read from, for messages.
    values, known
        Values, and which rows have one, shape (m,).

    Raises
    ------
    ManifestError
        If a bag has several; the message names bags and rows.
    """
    bag, names = bags_of(manifest)
    rows = np.flatnonzero(known)
    first = np.full(len(names), -1)
    first[bag[rows[::-1]]] = rows[::-1]
    wrong = rows[values[rows] != values[first[bag[rows]]]]
    if len(wrong):
        cells = manifest.column(column)
        bags = list(dict.fromkeys(bag[wrong].tolist()))
        examples = []
        for each in bags[:MAX_EXAMPLES]:
            one, other = first[each], wrong[bag[wrong] == each][0]
            found = " but ".join(f"{cells[i]!r} in row {manifest.rows[i]}" for i in (one, other))
            examples.append(f"{names[each]!r} is {found}")
        raise ManifestError(
            f"{manifest.path}: {len(bags)} bags of column {manifest.roles['bag']!r} contradict themselves in column "
            f"{column!r}: {'; '.join(examples)}; a bag has one value: correct the rows, or choose another bag column"
        )
    source = first[bag]
    return np.where(known | (source < 0), values, values[source])
