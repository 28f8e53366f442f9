"""Towers of which the frozen part is computed once per sample and kept in the store.

What is kept is an encoder's output like any other, and is made as `extract` makes it: with its batches, its checks
before anything is stored, and its ledger of samples that cannot be encoded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from data.digest import Keys, id_key, key_bytes
from data.errors import SampleError
from data.filecache import FileCache
from data.manifest import Manifest, Source
from data.progress import Progress, Silent
from featurestore.columns import Column, InAll, looked_up
from featurestore.config import ExtractConfig
from featurestore.encoder import Encoder
from featurestore.extract import Job, automatic_batch_size, encoding_streams, run
from featurestore.features import Features
from featurestore.plan import Shard, make_plan
from featurestore.store import FeatureStore
from finetune.errors import FinetuneError
from finetune.towers import Tower


class StoredTower(Tower):
    """A tower that reads from a store what is frozen of it; else it is like any other.

    Before anything is read, `fill` computes what the store lacks, in one process, and `look_up` finds it, in each.

    Parameters
    ----------
    tower
        Whose encoder, pooling and projection are used. Its network is as the encoder was loaded.
    store
        Where it is kept, by the content of the sample.
    """

    def __init__(self, tower: Tower, store: FeatureStore) -> None:
        super().__init__(tower.name, tower.encoder, tower.projection, tower.pooling, keeps_tokens=tower.keeps_tokens)
        self.network.eval()
        self._store = store
        self._known: dict[Source, Keys | SampleError] = {}

    def _keep(self, frozen: Encoder, *, name: str) -> None:
        """Say what is frozen of the tower, as an encoder, and what that is called in the store."""
        self._frozen = frozen
        self._columns = looked_up(name, frozen, self._store, create=True)

    def fill(self, rows: Manifest, *, workers: int = 4, progress: Progress | None = None) -> None:
        """Compute what the store lacks of some samples; those that cannot be encoded go to its ledger.

        Parameters
        ----------
        rows
            Samples that will be read, each with a source.
        workers
            Threads that decode.
        progress
            Told about encoding.
        """
        keys, unreadable = self._keys(rows.sources, workers)
        device = str(next(self.network.parameters()).device)
        batch_size = automatic_batch_size(rows.modality, device, getattr(self._frozen, "images_per_sample", 1))
        plan = make_plan(rows, keys, unreadable, InAll(self._columns), batch_size=batch_size, shard=Shard())
        job = Job(
            config=ExtractConfig(manifest=rows.path, store=self._store.path),
            manifest=rows,
            encoder=self._frozen,
            store=self._store,
            columns=self._columns,
            complete=(),
            keys=keys,
            plan=plan,
            unreadable=unreadable,
            rates={},
            batch_size=batch_size,
            workers=workers,
            streams=encoding_streams(self._frozen, device),
            device=device,
        )
        run(job, progress=progress or Silent())

    def look_up(self, rows: Manifest, *, workers: int = 4) -> dict[int, SampleError]:
        """Find samples in the store, and return what is wrong with those that are not there, by position.

        Raises
        ------
        FinetuneError
            If nobody has tried to encode a sample.
        """
        self._columns = tuple(replace(each, features=_features(each).refresh()) for each in self._columns)
        keys, unreadable = self._keys(rows.sources, workers)
        stored = InAll(self._columns).contains(keys)
        reasons = {} if stored.all() else self._reasons()
        failures = {}
        for i in np.flatnonzero(~stored).tolist():
            source = rows.sources[i]
            reason = reasons.get(id_key(str(source)) if i in unreadable else key_bytes(keys[i]))
            if reason is None:
                raise FinetuneError(
                    f"{self._store.path}: holds nothing of {rows.ids[i]} by {self.name}; the processes of a run share "
                    f"one --store"
                )
            failures[i] = reason
        found = zip(rows.sources, keys[:, None], strict=True)
        self._known |= {source: failures.get(i, key) for i, (source, key) in enumerate(found) if source is not None}
        return failures

    def read(self, source: Source) -> Any:
        """Return what is kept of a sample that was looked up: by level, float32, a vector (d,) or several (t, d).

        Raises
        ------
        SampleError
            If it cannot be encoded.
        """
        key = self._known[source]
        if isinstance(key, SampleError):
            raise key
        return tuple(_vectors(_features(each), key) for each in self._columns)

    def _keys(self, sources: Sequence[Source | None], workers: int) -> tuple[Keys, dict[int, SampleError]]:
        with FileCache(self._store.files_cache) as cache:
            return cache.keys(sources, workers=workers)

    def _reasons(self) -> Mapping[bytes, SampleError]:
        """Return why samples are not stored, as the ledgers have it."""
        failures = [self._store.ledger(_features(each).group).failures() for each in self._columns]
        return {key: SampleError(each.kind, each.message) for some in failures for key, each in some.items()}


def _features(column: Column) -> Features:
    assert column.features is not None  # the groups are made with the tower
    return column.features


def _vectors(features: Features, key: Keys) -> Tensor:
    """Return the vector of one sample, (d,), or its vectors, (t, d)."""
    made = features.take_bags(key).values if features.spec.ragged else features.take(key)[0]
    return from_numpy(np.array(made))
