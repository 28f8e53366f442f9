"""Columns: the feature sets that one extraction fills, one per level of each encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digest import Keys, id_key, key_bytes
from data.errors import SampleError
from data.manifest import Manifest
from featurestore import levels
from featurestore.encoder import Encoder
from featurestore.errors import FeaturesMissing
from featurestore.features import Features, Ragged
from featurestore.fidelity import Fidelity
from featurestore.ledger import Ledger
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore
from featurestore.writer import Writer


@dataclass(frozen=True, kw_only=True)
class Column:
    """One level of an encoder, and where it is stored.

    Attributes
    ----------
    name
        The encoder's id.
    spec
        What is stored.
    features
        What is stored already; None where the store has no group of it.
    similarity
        How the encoder's checkpoint makes logits of cosines, where it says so.
    """

    name: str
    spec: EncoderSpec
    features: Features | None
    similarity: Mapping[str, float] | None = None


@dataclass(frozen=True)
class InAll:
    """What is stored in every one of some columns."""

    columns: Sequence[Column]

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Return which samples every column holds, shape (n,)."""
        stored = np.ones(len(keys), bool)
        for column in self.columns:
            stored &= np.zeros(len(keys), bool) if column.features is None else column.features.contains(keys)
        return stored


@dataclass(kw_only=True)
class Filling:
    """A column while a run fills it.

    Attributes
    ----------
    column, features
        What is filled.
    ledger
        Where its failures are written down.
    manifest, keys, unreadable
        The samples, their content keys, and those that have none.
    written_by
        What is recorded with the rows.
    lacking
        Which samples the column does not hold as the run begins, shape (n,).
    encoded
        How many samples were added.
    fidelity
        How close they are to the library's own output.
    """

    column: Column
    features: Features
    ledger: Ledger
    manifest: Manifest
    keys: Keys
    unreadable: Mapping[int, SampleError]
    written_by: dict[str, Any]
    lacking: NDArray[np.bool_] = field(init=False)
    encoded: int = 0
    fidelity: Fidelity | None = None

    def __post_init__(self) -> None:
        self.lacking = ~self.features.contains(self.keys)

    def measured(self, found: Fidelity) -> None:
        """Note how close the embeddings are; it is recorded with every part that is committed from now on."""
        self.fidelity = found
        self.written_by["fidelity"] = found.to_dict()

    def store(self, writer: Writer, positions: Sequence[int], block: levels.Block) -> list[Mapping[str, str]]:
        """Store what the column lacks of a batch, if it is finite; return the failures of the others."""
        dtype = self.column.spec.dtype
        at, lacking = np.asarray(positions, np.int64), self.lacking[list(positions)]
        finite = levels.finite(block, dtype)
        what = f"{self.column.spec.parts} are" if self.column.spec.ragged else "embedding is"
        failures = [
            self.fail(
                position,
                SampleError("not_finite", f"{self.manifest.sources[position]}: the {what} not finite in {dtype}"),
            )
            for position in at[lacking & ~finite].tolist()
        ]
        kept = lacking & finite
        if kept.any():
            chosen, ids = levels.some(block, kept), [self.manifest.ids[i] for i in at[kept].tolist()]
            if isinstance(chosen, Ragged):
                writer.add(self.keys[at[kept]], chosen.values, ids, offsets=chosen.offsets)
            else:
                writer.add(self.keys[at[kept]], chosen, ids)
        self.encoded += int(kept.sum())
        return failures

    def fail(self, position: int, error: SampleError) -> Mapping[str, str]:
        """Write one failure to the ledger and return it."""
        source = self.manifest.sources[position]
        entry = {"id": self.manifest.ids[position], "source": str(source), "kind": error.kind, "message": str(error)}
        # What cannot be read has no content key; its place stands for it.
        key = id_key(str(source)) if position in self.unreadable else key_bytes(self.keys[position])
        self.ledger.add(key, id=entry["id"], source=entry["source"], kind=error.kind, message=entry["message"])
        return entry


def fail_all(fillings: Sequence[Filling], position: int, error: SampleError) -> Mapping[str, str]:
    """Write a sample that cannot be read to the ledger of every column that lacks it, and return its entry."""
    entries = [each.fail(position, error) for each in fillings if each.lacking[position]]
    return entries[0]


def looked_up(name: str, encoder: Encoder, store: FeatureStore | None, *, create: bool) -> tuple[Column, ...]:
    """Return the columns of an encoder, with what the store holds of them.

    Parameters
    ----------
    name
        The encoder's id.
    encoder
        The encoder.
    store
        The store, if it exists.
    create
        Whether to make the groups that there are not yet.
    """
    similarity = getattr(encoder, "similarity", None)

    def features_of(spec: EncoderSpec) -> Features | None:
        if store is None:
            return None
        with suppress(FeaturesMissing):  # a dry run makes no group
            return store.open(spec, name=name, ragged=spec.ragged, create=create)
        return None

    return tuple(
        Column(name=name, spec=spec, features=features_of(spec), similarity=similarity)
        for spec in levels.levels_of(encoder)
    )
