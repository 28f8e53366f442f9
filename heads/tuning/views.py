"""The features of a study's samples in every form it may choose: read from the store, never encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from data.progress import Silent
from featurestore.spec import TOKENS
from featurestore.store import FeatureStore
from heads.augmented import plain_encoders, read_views
from heads.errors import HeadError
from heads.inputs import Normalize
from heads.labelled import Labelled, join_features
from heads.tuning.space import View

KEPT = 8
"""Views that stay in memory."""


class Views:
    """One set of samples, seen through different features.

    Parameters
    ----------
    data
        The samples, with the features of any one view.
    store
        Where the features are.
    precision
        Which stored precision to use.
    """

    def __init__(self, data: Labelled, store: FeatureStore, precision: str | None) -> None:
        self._data, self._store, self._precision = data, store, precision
        self._kept: dict[View, Labelled] = {}

    def of(self, view: View) -> Labelled:
        """Return the samples with the features of a view.

        Raises
        ------
        HeadError
            If some of the samples lack them.
        FeaturesMissing
            If the store does.
        """
        if view not in self._kept:
            if len(self._kept) >= KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[view] = self._read(view)
        return self._kept[view]

    def _read(self, view: View) -> Labelled:
        rows, normalize = self._data.instances.manifest, cast("Normalize", view.normalize)
        inputs = join_features(
            rows,
            self._store,
            plain_encoders(view.encoders),
            pooling=view.pooling,
            precision=self._precision,
            normalize=normalize,
            progress=Silent(),
        )
        missing = len(rows) - len(inputs.manifest)
        if missing:
            raise HeadError(
                f"{' + '.join(view.encoders)} with pooling {view.pooling}: {missing} of {len(rows)} "
                f"samples have no such features; extract them, or choose one --pooling"
            )
        blocks = tuple(block.dim for block in inputs.blocks)
        context = replace(self._data.context, blocks=blocks)
        X = self._data.instances.packed(inputs.X)
        data = replace(self._data, X=X, blocks=inputs.blocks, context=context, views=None)
        views = read_views(
            data,
            self._store,
            view.encoders,
            pooling=view.pooling,
            precision=self._precision,
            normalize=normalize,
            progress=Silent(),
        )
        return replace(data, views=views)


def stored_poolings(store: FeatureStore, encoders: Sequence[str], precision: str | None) -> tuple[str | None, ...]:
    """Return the poolings to choose from: those that all encoders are stored with, or None where there is no choice.

    Tokens are chosen only where there is nothing else: reading them takes as much as they do, and most heads see
    their mean.
    """
    everything = store.features()
    found = [
        {each.spec.pooling for each in everything if name in each.names and precision in (None, each.spec.precision)}
        for name in encoders
    ]
    if all(len(poolings) == 1 for poolings in found):
        return (None,)
    # Without a common one the store explains what differs when the features are looked up.
    common = set.intersection(*found)
    return tuple(sorted(common - {TOKENS} or common)) or (None,)
