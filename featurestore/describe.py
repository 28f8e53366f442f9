"""A store in words: what is in it, and what each fingerprint stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from featurestore.features import Features
from featurestore.store import FeatureStore

_MEANING = {
    "family": "library",
    "modality": "encodes",
    "architecture": "architecture",
    "weights": "weights (SHA-256 of the tensors)",
    "preprocess": "preprocessing",
    "layer": "taken at",
    "pooling": "pooling",
    "precision": "arithmetic",
    "dtype": "stored as",
    "dim": "dimensions",
    "version": "version of our code",
    "schema": "fingerprint schema",
}


def listing(store: FeatureStore) -> list[dict[str, Any]]:
    """Return one row per feature set of a store."""
    return [_row(store, features) for features in store.features()]


def listing_text(rows: list[dict[str, Any]]) -> str:
    """Return the rows of `listing` as a table."""
    if not rows:
        return "the store is empty"
    header = ("encoder", "fingerprint", "rows", "dim", "pooling", "precision", "stored", "size", "parts", "failed")
    table = [header] + [
        (
            ", ".join(row["names"]),
            row["fingerprint"][:12],
            str(row["rows"]),
            str(row["dim"]),
            row["pooling"],
            row["precision"],
            row["dtype"],
            size(row["bytes"]),
            str(row["parts"]),
            str(row["failed"]),
        )
        for row in rows
    ]
    widths = [max(len(line[j]) for line in table) for j in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in table)


def details(store: FeatureStore, encoder: str | None = None) -> list[dict[str, Any]]:
    """Return everything that is known of the feature sets of a store, or of one encoder."""
    chosen = [store.find(encoder)] if encoder else store.features()
    return [
        _row(store, features)
        | {
            "spec": features.spec.to_dict(),
            "snapshot": features.snapshot,
            "keyed_by": features.keyed_by,
            "written_by": [part.written_by for part in features.parts],
        }
        for features in chosen
    ]


def detail_text(row: Mapping[str, Any]) -> str:
    """Explain one row of `details` in words."""
    lines = [
        f"{', '.join(row['names'])}",
        f"  fingerprint {row['fingerprint']}",
        f"  {row['rows']} rows of {row['dim']}, {size(row['bytes'])} in {row['parts']} parts, {row['failed']} failed",
        "  A change to any of these makes another fingerprint:",
    ]
    for field, value in row["spec"].items():
        lines.append(f"    {_MEANING.get(field, field):<34} {_short(value)}")
    writers = {_short(written) for written in row["written_by"]}
    lines += ["  Recorded, not part of the identity:"] + [f"    {writer}" for writer in sorted(writers)]
    return "\n".join(lines)


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say in which fields two specifications differ, one phrase per field: ``name: stored -> wanted``."""
    return [f"{name}: {_short(a)} -> {_short(b)}" for name, a, b in _leaves(stored, wanted)]


def size(count: float) -> str:
    """Return a number of bytes in the unit that suits it, powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _row(store: FeatureStore, features: Features) -> dict[str, Any]:
    spec = features.spec
    return {
        "names": list(features.names),
        "group": features.group,
        "fingerprint": features.fingerprint,
        "rows": len(features),
        "dim": features.dim,
        "modality": spec.modality,
        "pooling": spec.pooling,
        "precision": spec.precision,
        "dtype": spec.dtype,
        "bytes": features.nbytes,
        "parts": len(features.parts),
        "failed": len(store.ledger(features.group).failed(features)),
    }


def _leaves(a: Any, b: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield where two nested values differ."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted(set(a) | set(b)):
            yield from _leaves(a.get(key), b.get(key), f"{name}.{key}" if name else str(key))
    elif a != b:
        yield name, a, b


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_short(part)}" for key, part in value.items())
    text = str(value)
    return f"{text[:16]}..." if len(text) == 64 and text.isalnum() else text
