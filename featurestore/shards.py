"""One array on disk: written by zarr-python, read through a memory map.

An uncompressed, sharded zarr v3 array whose chunks span whole rows is laid out linearly: chunk i of
a shard starts at byte ``i * (chunk_bytes + 4)``, the 4 being its CRC-32C. Every row therefore has a
known address, and reading needs neither decoding nor whole chunks. Arrays laid out otherwise by
another writer are read through zarr-python.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from featurestore.errors import StoreCorrupt

CHUNK_BYTES = 1 << 20
"""Largest checksummed unit; also what a reader of an object store fetches at once."""
SHARD_BYTES = 128 << 20
"""Largest file."""

_CRC_BYTES = 4

Array = NDArray[Any]


def write_array(
    directory: Path,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    rows: Callable[[int, int], Array],
    *,
    dimension: str,
) -> None:
    """Write the zarr v3 array at `directory`, whose parent is a zarr group, one file in memory at a time.

    Parameters
    ----------
    directory
        A path that does not exist yet.
    shape, dtype
        Of the whole array; the first axis counts rows.
    rows
        Returns the rows from a start to a stop.
    dimension
        Name of the first axis, for readers such as xarray.
    """
    # zarr takes a quarter of a second to import, and only writing needs it.
    import zarr
    from zarr.codecs import Crc32cCodec

    stored = np.dtype(dtype)
    chunk_rows, shard_rows = _grid(shape, stored.itemsize)
    array = zarr.create_array(
        store=str(directory.parent),
        name=directory.name,
        shape=shape,
        dtype=stored,
        chunks=(chunk_rows, *shape[1:]),
        shards=(shard_rows, *shape[1:]),
        compressors=[Crc32cCodec()],
        fill_value=float("nan") if stored.kind == "f" else 0,
        dimension_names=(dimension, *(f"{directory.name}_{axis}" for axis in range(1, len(shape)))),
        # A chunk that equals the fill value must be written too, or the shard is no longer linear.
        config={"write_empty_chunks": True},
    )
    for start in range(0, shape[0], shard_rows):
        stop = min(start + shard_rows, shape[0])
        array[start:stop] = rows(start, stop)


def _grid(shape: tuple[int, ...], itemsize: int) -> tuple[int, int]:
    """Return rows per chunk (a power of two) and rows per shard (whole chunks)."""
    row_bytes = max(1, itemsize * int(np.prod(shape[1:], dtype=np.int64)))
    rows = max(1, shape[0])
    chunk = min(_power_of_two_at_most(CHUNK_BYTES // row_bytes), 1 << (rows - 1).bit_length())
    shard = chunk * max(1, SHARD_BYTES // (chunk * row_bytes))
    return chunk, min(shard, -(-rows // chunk) * chunk)


def _power_of_two_at_most(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


@dataclass(frozen=True)
class Layout:
    """What ``zarr.json`` says of an array.

    Attributes
    ----------
    shape, dtype
        Of the whole array.
    chunk_rows, shard_rows
        Rows per checksummed chunk and per file.
    linear
        Whether the rows' addresses are known, so that the files can be mapped.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_rows: int
    shard_rows: int
    linear: bool

    @classmethod
    def read(cls, directory: Path) -> Layout:
        """Read ``zarr.json``.

        Raises
        ------
        StoreCorrupt
            If it is missing or is not the metadata of a zarr v3 array.
        """
        path = directory / "zarr.json"
        try:
            state = json.loads(path.read_bytes())
            grid = tuple(int(size) for size in state["chunk_grid"]["configuration"]["chunk_shape"])
            shape = tuple(int(size) for size in state["shape"])
            dtype = np.dtype(state["data_type"]).newbyteorder("<")
            inner = _linear_chunks(state["codecs"])
        except FileNotFoundError:
            raise StoreCorrupt(f"{path}: missing") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise StoreCorrupt(f"{path}: not the metadata of a zarr v3 array ({error})") from error
        if not shape or len(grid) != len(shape) or min(grid) < 1 or min(shape) < 0:
            raise StoreCorrupt(f"{path}: chunk grid {grid} does not fit shape {shape}")
        spans_rows = inner is not None and grid[1:] == shape[1:] == inner[1:] and grid[0] % inner[0] == 0
        return cls(shape, dtype, inner[0] if inner else grid[0], grid[0], linear=spans_rows)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))


def _linear_chunks(codecs: Any) -> tuple[int, ...] | None:
    """Return the inner chunk shape if the codecs are the ones this module can map, else None."""
    if len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed":
        return None
    settings = codecs[0]["configuration"]
    if settings.get("index_location", "end") != "end":
        return None
    for chain in (settings["codecs"], settings["index_codecs"]):
        if [codec["name"] for codec in chain] != ["bytes", "crc32c"]:
            return None
        if chain[0].get("configuration", {}).get("endian", "little") != "little":
            return None
    return tuple(int(size) for size in settings["chunk_shape"])


def shard_files(directory: Path, layout: Layout) -> Iterator[tuple[Path, int]]:
    """Yield the path of every file of an array, and how many of its rows are live."""
    tail = ("0",) * (len(layout.shape) - 1)
    for start in range(0, layout.shape[0], layout.shard_rows):
        path = directory.joinpath("c", str(start // layout.shard_rows), *tail)
        yield path, min(layout.shard_rows, layout.shape[0] - start)


class Shard:
    """One mapped file: `rows` rows at known addresses.

    Raises
    ------
    StoreCorrupt
        If the file is missing, cut short or not laid out linearly.
    """

    def __init__(self, path: Path, layout: Layout, rows: int) -> None:
        self.path = path
        self.rows = rows
        self.row_bytes = layout.row_bytes
        self.chunk_rows = layout.chunk_rows
        self.chunk_bytes = layout.chunk_rows * layout.row_bytes
        slots = layout.shard_rows // layout.chunk_rows
        chunks = -(-rows // layout.chunk_rows)
        expected = chunks * (self.chunk_bytes + _CRC_BYTES) + 16 * slots + _CRC_BYTES
        try:
            size = path.stat().st_size
            if size != expected:
                raise StoreCorrupt(f"{path}: {size} bytes where {expected} belong: cut short or damaged")
            self.bytes = np.memmap(path, mode="r", dtype=np.uint8)
            self.address = self.bytes.ctypes.data
        except FileNotFoundError:
            raise StoreCorrupt(f"{path}: missing") from None
        self.index = self.bytes[-(16 * slots + _CRC_BYTES) : -_CRC_BYTES]
        index = np.frombuffer(self.index.tobytes(), "<u8").reshape(slots, 2)[:chunks]
        stride = self.chunk_bytes + _CRC_BYTES
        if (index[:, 0] != np.arange(chunks, dtype=np.uint64) * np.uint64(stride)).any() or (
            index[:, 1] != stride
        ).any():
            raise StoreCorrupt(f"{path}: the shard's index does not fit its layout: damaged")
        whole_row = np.dtype((np.void, layout.row_bytes))
        self._chunks = np.ndarray(
            (chunks, layout.chunk_rows),
            whole_row,
            self.bytes,
            strides=(self.chunk_bytes + _CRC_BYTES, layout.row_bytes),
        )

    @property
    def index_crc(self) -> int:
        """The CRC-32C stored behind the table of chunk addresses, which is `index`."""
        return int.from_bytes(self.bytes[-_CRC_BYTES:].tobytes(), "little")

    def chunk(self, number: int) -> tuple[NDArray[np.uint8], int, int]:
        """Return the bytes of a chunk, the CRC-32C stored behind them and the number of live rows."""
        start = number * (self.chunk_bytes + _CRC_BYTES)
        end = start + self.chunk_bytes
        stored = int.from_bytes(self.bytes[end : end + _CRC_BYTES].tobytes(), "little")
        return self.bytes[start:end], stored, min(self.chunk_rows, self.rows - number * self.chunk_rows)

    def chunks(self) -> Iterator[tuple[NDArray[np.uint8], int, int]]:
        """Yield `chunk` of every chunk."""
        return map(self.chunk, range(len(self._chunks)))

    def read(self, start: int, out: Array) -> None:
        """Copy the rows from `start` on into `out`, an array of whole-row voids."""
        chunk, within = divmod(start, self.chunk_rows)
        done = 0
        if within:
            done = min(self.chunk_rows - within, len(out))
            out[:done] = self._chunks[chunk, within : within + done]
            chunk += 1
        whole = (len(out) - done) // self.chunk_rows
        if whole:
            end = done + whole * self.chunk_rows
            out[done:end].reshape(whole, self.chunk_rows)[...] = self._chunks[chunk : chunk + whole]
            done, chunk = end, chunk + whole
        if done < len(out):
            out[done:] = self._chunks[chunk, : len(out) - done]


class ForeignArray:
    """An array that another writer laid out in its own way, read through zarr-python; offers what `Shard` offers."""

    def __init__(self, directory: Path, layout: Layout) -> None:
        import zarr

        self.path = directory
        self.rows = layout.shape[0]
        self._dtype = layout.dtype
        self._array: Any = zarr.open_array(str(directory), mode="r")

    def read(self, start: int, out: Array) -> None:
        """Copy the rows from `start` on into `out`, an array of whole-row voids."""
        out[...] = _as_voids(np.ascontiguousarray(self._array[start : start + len(out)], self._dtype))

    def take(self, rows: NDArray[np.int64]) -> Array:
        """Return rows in the order given, as whole-row voids."""
        return _as_voids(np.ascontiguousarray(self._array.oindex[rows], self._dtype))


class _Span:
    """The addresses from the first mapped file to the last, offered to numpy as one row starting at every byte.

    It holds the maps, so they outlive every view. What lies between the files is never touched:
    `_AddressSpace` computes addresses within them only.
    """

    def __init__(self, shards: Sequence[Shard], row_bytes: int) -> None:
        self._shards = shards
        self.first = min(shard.address for shard in shards)
        last = max(shard.address + shard.bytes.size for shard in shards)
        self.__array_interface__ = {
            "version": 3,
            "data": (self.first, True),
            "typestr": f"|V{row_bytes}",
            "shape": (last - self.first - row_bytes + 1,),
            "strides": (1,),
        }


class _AddressSpace:
    """Gathers rows from any number of mapped files with one index operation.

    All files lie in the address space of this process, so a row is an address whichever file it is
    in. A loop over files would copy every row twice, and with a thousand parts it would be the loop
    that one waits for.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._row_bytes = row_bytes = shards[0].row_bytes
        self._starts = starts = np.cumsum([0, *(shard.rows for shard in shards)])
        self.rows = int(starts[-1])
        span = _Span(shards, row_bytes)
        self._window = np.asarray(span)
        # What to add to `row * row_bytes` to come to the file that the row is in.
        self._shifts = np.array([shard.address - span.first for shard in shards]) - starts[:-1] * row_bytes
        self._chunk_rows = np.array([shard.chunk_rows for shard in shards])

    def take(self, rows: NDArray[np.int64]) -> Array:
        """Return rows in the order given, as whole-row voids."""
        if len(rows) and (rows.min() < 0 or rows.max() >= self.rows):
            raise IndexError(f"rows 0 to {self.rows - 1} exist, not {rows.min()} to {rows.max()}")
        owner = np.searchsorted(self._starts, rows, side="right") - 1 if len(self._shifts) > 1 else np.array([0])
        checksums = (rows - self._starts[owner]) // self._chunk_rows[owner]
        picked: Array = self._window[rows * self._row_bytes + self._shifts[owner] + checksums * _CRC_BYTES]
        return picked


class Rows:
    """Rows in one or more files, numbered through from the first file to the last.

    Parameters
    ----------
    pieces
        The files.
    item_shape
        Shape of one row.
    dtype
        Type of the values.
    """

    def __init__(
        self, pieces: Sequence[Shard | ForeignArray], item_shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.pieces = tuple(pieces)
        self.item_shape = item_shape
        self.dtype = dtype
        self._starts = np.cumsum([0, *(piece.rows for piece in pieces)])

    @classmethod
    def open(cls, directory: Path) -> Rows:
        """Open one array on disk.

        Raises
        ------
        StoreCorrupt
            If a file is missing, cut short or does not fit the metadata.
        """
        layout = Layout.read(directory)
        rows, item_shape = layout.shape[0], layout.shape[1:]
        if not rows or not layout.row_bytes:
            return cls((), item_shape, layout.dtype)
        if not layout.linear:
            return cls((ForeignArray(directory, layout),), item_shape, layout.dtype)
        pieces = [Shard(path, layout, rows) for path, rows in shard_files(directory, layout)]
        return cls(pieces, item_shape, layout.dtype)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return len(self) * self.dtype.itemsize * int(np.prod(self.item_shape, dtype=np.int64))

    def read(self, start: int = 0, stop: int | None = None, *, out: Array | None = None) -> Array:
        """Return (or copy into the contiguous array `out`) a range of rows."""
        stop = len(self) if stop is None else stop
        values: Array = np.empty((stop - start, *self.item_shape), self.dtype) if out is None else out
        if not values.size:
            return values
        target = _as_voids(values)
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        at = start
        while at < stop:
            end = min(stop, int(self._starts[first + 1]))
            self.pieces[first].read(at - int(self._starts[first]), target[at - start : end - start])
            at, first = end, first + 1
        return values

    def take(self, rows: NDArray[np.int64]) -> Array:
        """Return rows in the order given, shape (len(rows), *item_shape)."""
        if not len(rows):
            return np.empty((0, *self.item_shape), self.dtype)
        if isinstance(self._mapped, _AddressSpace):
            return self._mapped.take(rows).view(self.dtype).reshape(len(rows), *self.item_shape)
        out: Array = np.empty((len(rows), *self.item_shape), self.dtype)
        target = _as_voids(out)
        for piece, start in zip(self._mapped, self._starts[:-1].tolist(), strict=True):
            places = np.flatnonzero((rows >= start) & (rows < start + piece.rows))
            target[places] = piece.take(rows[places] - start)
        return out

    @cached_property
    def _mapped(self) -> _AddressSpace | list[_AddressSpace | ForeignArray]:
        """All pieces as one, or piece by piece where any must be read through zarr-python."""
        shards = [piece for piece in self.pieces if isinstance(piece, Shard)]
        if len(shards) == len(self.pieces):
            return _AddressSpace(shards)
        return [_AddressSpace([piece]) if isinstance(piece, Shard) else piece for piece in self.pieces]


def join(arrays: Sequence[Rows], item_shape: tuple[int, ...], dtype: np.dtype[Any]) -> Rows:
    """Return the rows of several arrays of one item shape, numbered through."""
    return Rows([piece for array in arrays for piece in array.pieces], item_shape, dtype)


def _as_voids(values: Array) -> Array:
    """View a contiguous, non-empty array of shape (n, ...) as n whole-row voids."""
    return values.reshape(len(values), -1).view(np.dtype((np.void, values.nbytes // len(values)))).reshape(-1)
