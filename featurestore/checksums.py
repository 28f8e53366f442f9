"""Check rows before they are believed: the CRC-32C of every chunk that holds them."""

from __future__ import annotations

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from featurestore.errors import StoreCorrupt
from featurestore.shards import Rows, Shard


def check_rows(values: Rows, rows: NDArray[np.int64]) -> None:
    """Check the chunks that hold some rows; files of other writers are checked by zarr-python as it reads them.

    Parameters
    ----------
    values
        The rows' files.
    rows
        Row numbers, shape (n,), in any order.

    Raises
    ------
    StoreCorrupt
        If a checksum is wrong; the message names the file.
    """
    ordered = np.unique(rows)
    first = 0
    for piece in values.pieces:
        here = ordered[np.searchsorted(ordered, first) : np.searchsorted(ordered, first + piece.rows)] - first
        first += piece.rows
        if not isinstance(piece, Shard):
            continue
        for number in np.unique(here // piece.chunk_rows).tolist():
            content, crc, _ = piece.chunk(number)
            if google_crc32c.value(content) != crc:
                raise StoreCorrupt(f"{piece.path}: the checksum of chunk {number} is wrong: damaged")
