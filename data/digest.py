"""The one way anything is hashed: canonical JSON for settings, BLAKE2b keys for samples.

A sample's key is made of its *content*, never of its name: a file that moves keeps its embeddings,
a file that changes loses them, and two names for the same bytes share one row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16
Keys = NDArray[np.uint64]
"""Sample keys, shape (n, 2), uint64: the big-endian halves of a 128-bit key, so order is byte order."""


def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, no NaN.

    Raises
    ------
    ValueError
        If the value holds NaN or an infinity.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value, as 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def content_key(content: bytes, *, selector: str = "") -> bytes:
    """Return the 16-byte key of a sample's content.

    Parameters
    ----------
    content
        The bytes of the file, or the UTF-8 bytes of the text.
    selector
        Which part of the content is meant, e.g. ``frame=12`` of a volume.
    """
    return selected_key(hashlib.blake2b(content, digest_size=KEY_BYTES).digest(), selector=selector)


def selected_key(content_digest: bytes, *, selector: str = "") -> bytes:
    """Return the key of one part of a content whose BLAKE2b-128 digest is known."""
    if not selector:
        return content_digest
    return hashlib.blake2b(content_digest + selector.encode(), digest_size=KEY_BYTES).digest()


def joined_key(content_digests: Sequence[bytes]) -> bytes:
    """Return the key of several contents in this order, whose BLAKE2b-128 digests are known."""
    return hashlib.blake2b(b"joined:" + b"".join(content_digests), digest_size=KEY_BYTES).digest()


def id_key(sample_id: str) -> bytes:
    """Return the 16-byte key of a sample that is known by its name only (imported features)."""
    return hashlib.blake2b(b"id:" + sample_id.encode(), digest_size=KEY_BYTES).digest()


def file_digest(path: Path) -> bytes:
    """Return the BLAKE2b-128 digest of a file's bytes, read in blocks.

    Raises
    ------
    OSError
        If the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=KEY_BYTES)).digest()


def as_keys(keys: Iterable[bytes]) -> Keys:
    """Return 16-byte keys as an array of shape (n, 2), uint64."""
    joined = b"".join(keys)
    return np.frombuffer(joined, dtype=">u8").astype(np.uint64).reshape(-1, 2)


def key_bytes(key: NDArray[np.uint64]) -> bytes:
    """Return one row of `Keys` as its 16 bytes."""
    return key.astype(">u8").tobytes()


def key_hex(key: NDArray[np.uint64]) -> str:
    """Return one row of `Keys` as 32 hexadecimal digits."""
    return key_bytes(key).hex()
