"""The seal of a test split: every scoring of its rows is noted beside the features and counted.

A test split judges honestly once. Who scores it, changes something and scores it again has begun to
choose by it, so each opening is appended to ``openings.jsonl`` in the store *before* a row is scored,
and records and reports say how many there were.

A test split is its rows: the digest of their content keys and of the target. The same rows under
another manifest, split column or encoder of the same contents are the same test split; one row more
or less is another. One run is one opening: repeating the same configuration on the same data tells
nothing new, and neither does judging a saved head again on the rows that its run has judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from data.digest import Keys, digest_json, key_hex
from featurestore.errors import StoreUnwritable
from featurestore.lines import append_line, read_lines
from featurestore.store import FeatureStore

_PLACES = frozenset({"manifest", "store", "out", "overwrite", "sealed", "bootstrap"})
"""Settings that change neither a head nor a score; contents have digests and fingerprints."""


@dataclass(frozen=True, kw_only=True)
class Openings:
    """How often a test split has been scored.

    Attributes
    ----------
    test
        The identity of the test split.
    run
        The identity of the run that opened it now.
    number
        Which opening this is: 1 for the first run that scored the split.
    count
        How many different runs have scored it, this one included.
    recorded
        Whether this opening could be noted; not in a store that may not be written.
    """

    test: str
    run: str
    number: int
    count: int
    recorded: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the count as JSON-ready values."""
        return asdict(self)

    def explain(self) -> str:
        """Return the count in one sentence."""
        if self.count == 1:
            text = "This test split has been opened once, by this run."
        else:
            text = f"This test split has been opened {self.count} times; this is opening number {self.number}."
        return text if self.recorded else f"{text} It could not be noted: the store may not be written."


def run_digest(config: Mapping[str, Any], manifest_digest: str, inputs: Sequence[Mapping[str, Any]]) -> str:
    """Return the identity of a run, known before it has scored anything.

    Parameters
    ----------
    config
        The resolved configuration, JSON-ready.
    manifest_digest
        Identity of the samples.
    inputs
        The features: one mapping per encoder with its ``fingerprint``.
    """
    settings = {name: value for name, value in config.items() if name not in _PLACES}
    return digest_json([settings, manifest_digest, [block["fingerprint"] for block in inputs]])


def open_test(
    store: FeatureStore, keys: Keys, target: Sequence[str], run_digest: str, *, command: str = ""
) -> Openings:
    """Note that a run is about to score the rows of a test split, and count who did.

    Call it before the rows are scored: what crashes afterwards may have been seen.

    Parameters
    ----------
    store
        Where the features are; the note stays with them.
    keys
        Content keys of the test rows, shape (n, 2), in any order.
    target
        The target columns.
    run_digest
        The identity of the run, see `run_digest`; runs of one digest count once.
    command
        What opened it, for whoever reads the file.

    Returns
    -------
    Openings
        The count, this opening included.
    """
    test = digest_of_test(keys, target)
    opening = {
        "test": test,
        "rows": len(keys),
        "target": list(target),
        "run": run_digest,
        "command": command,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    recorded = True
    try:
        append_line(store.openings, opening, durable=True)
    except StoreUnwritable:
        recorded = False
    entries = [*read_lines(store.openings), opening]
    runs = list(dict.fromkeys(entry.get("run") for entry in entries if entry.get("test") == test))
    return Openings(test=test, run=run_digest, number=runs.index(run_digest) + 1, count=len(runs), recorded=recorded)


def digest_of_test(keys: Keys, target: Sequence[str]) -> str:
    """Return the identity of a test split: of its contents, whatever their order, and its target."""
    return digest_json([sorted(key_hex(key) for key in np.asarray(keys)), list(target)])
