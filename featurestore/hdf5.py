"""HDF5 files of features: export a store's groups to one file, import them and what other tools wrote.

Three kinds of input are understood:

* a file that `export_hdf5` wrote: specifications, fingerprints and keys are kept;
* CLAM or TRIDENT output: a directory of ``<id>.h5``, or one such file, with `features` of shape
  (n, d), (1, n, d) or (d,); the id is the file's stem; coordinates are not read;
* any other file with the datasets `features` (n, d) and `ids` (n,).

Features of unknown origin are keyed by id and identified by a digest of their contents. Nothing is
ever unpickled, and links that lead out of a file are refused.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from data.digest import as_keys, digest_json, file_digest, id_key
from data.errors import FrostlineError, SampleError
from data.manifest import Modality
from featurestore.errors import FeatureFileError
from featurestore.features import Features
from featurestore.layout import writing
from featurestore.shards import Array
from featurestore.spec import EncoderSpec
from featurestore.store import FeatureStore
from featurestore.writer import Writer

FORMAT = "frostline-features"
VERSION = 1
_ROWS = 16_384
_SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class Imported:
    """What an import did to one encoder group.

    Attributes
    ----------
    features
        The group as it is now.
    added
        Samples stored.
    known
        Samples that were there before and were left as they are.
    """

    features: Features
    added: int
    known: int

    def explain(self) -> str:
        """Return the result in words."""
        name = self.features.names[-1]
        return f"{self.features.group}: {self.added} samples added, {self.known} were there; --encoder {name}"


# Export -------------------------------------------------------------------------------------------


def export_hdf5(groups: Sequence[Features], path: Path) -> Path:
    """Write encoder groups to one HDF5 file: contiguous, so that others can map it.

    Parameters
    ----------
    groups
        Features of different encoders.
    path
        A file that does not exist yet; it appears when it is complete.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    FeatureFileError
        If the file exists.
    StoreUnwritable
        If the disk is full or may not be written.
    """
    if path.exists():
        raise FeatureFileError(f"{path}: exists already and is not overwritten; name another file")
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with writing(path, remedy="free space or choose another --out"):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with h5py.File(aside, "x") as file:
                file.attrs.update({"format": FORMAT, "version": VERSION})
                for features in groups:
                    _export_group(features, file.create_group(features.group))
            aside.rename(path)
        finally:
            aside.unlink(missing_ok=True)
    return path


def _export_group(features: Features, group: Any) -> None:
    group.attrs.update(
        {
            "encoder": json.dumps(features.spec.to_dict()),
            "fingerprint": features.fingerprint,
            "names": json.dumps(features.names),
            "keyed_by": features.keyed_by,
            "snapshot": features.snapshot,
            "provenance": json.dumps(features.provenance),
        }
    )
    keys = features.keys()
    lengths = features.bag_lengths(keys)
    vectors = group.create_dataset("features", (int(lengths.sum()), features.dim), features.dtype)
    group.create_dataset("key", data=keys)
    names = group.create_dataset("ids", (len(keys),), h5py.string_dtype())
    if features.info.ragged:
        group.create_dataset("offsets", data=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    done = 0
    for start in range(0, len(keys), _ROWS):
        some = keys[start : start + _ROWS]
        values = features.take_bags(some).values if features.info.ragged else features.take(some)
        vectors[done : done + len(values)] = values
        names[start : start + len(some)] = features.ids(some)
        done += len(values)


# Import -------------------------------------------------------------------------------------------


def import_hdf5(
    path: Path, store: FeatureStore, *, name: str | None = None, modality: Modality = "image"
) -> list[Imported]:
    """Store the features of an HDF5 file, or of a directory of them; what is stored already stays as it is.

    Parameters
    ----------
    path
        An exported file, a CLAM/TRIDENT directory or file, or a file with `features` and `ids`.
    store
        Where to.
    name
        What to call an encoder of unknown origin; by default ``imported:<stem of the path>``.
    modality
        What an encoder of unknown origin encoded.

    Returns
    -------
    list of Imported
        One per encoder group.

    Raises
    ------
    FeatureFileError
        If a file cannot be read or its contents do not fit; the message names file and dataset.
    StoreUnwritable
        If the store may not be written.
    """
    if not path.exists():
        raise FeatureFileError(f"{path}: no such file or directory")
    label = name or f"imported:{path.stem}"
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
        if not files:
            raise FeatureFileError(f"{path}: no .h5 files in it")
        return [_import_bags(store, files, label, modality)]
    with _open(path) as file:
        if file.attrs.get("format") == FORMAT:
            return [_import_group(store, path, file[group]) for group in file]
        has_ids = "ids" in file
    return [_import_table(store, path, label, modality) if has_ids else _import_bags(store, [path], label, modality)]


def _import_group(store: FeatureStore, path: Path, group: Any) -> Imported:
    """Import one group of an exported file."""
    where = f"{path}{group.name}"
    try:
        state = json.loads(group.attrs["encoder"])
        spec = EncoderSpec.from_dict(state)
        names = [str(name) for name in json.loads(group.attrs["names"])]
        keyed_by, fingerprint = str(group.attrs["keyed_by"]), str(group.attrs["fingerprint"])
        provenance = json.loads(group.attrs.get("provenance", "[]"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FeatureFileError(f"{where}: attributes of an encoder group are missing or damaged ({error})") from error
    if digest_json(state) != fingerprint or spec.fingerprint != fingerprint or not names:
        raise FeatureFileError(f"{where}: the specification does not have the fingerprint it states")
    if keyed_by not in ("content", "id"):
        raise FeatureFileError(f"{where}: keyed by {keyed_by!r}; content or id was expected")
    vectors = _dataset(path, group, "features", "f", 2)
    keys = _dataset(path, group, "key", "u", 2)[:]
    ids = _strings(path, group, "ids")
    ragged = "offsets" in group
    offsets = _dataset(path, group, "offsets", "i", 1)[:] if ragged else np.arange(len(vectors) + 1)
    _check_offsets(f"{where}/offsets", offsets, len(vectors))
    if vectors.shape[1] != spec.dim or not len(keys) == len(ids) == len(offsets) - 1 or keys.shape[1] != 2:
        raise FeatureFileError(
            f"{where}: features {vectors.shape}, key {keys.shape} and {len(ids)} ids do not fit together"
        )
    for extra in names:
        features = store.open(spec, name=extra, keyed_by=keyed_by, ragged=ragged)  # type: ignore[arg-type]
    written_by = {"compacted": provenance} if provenance else {"encoder": names[0], "imported": "hdf5"}
    return _store(features, _Source(where, vectors, keys, ids, offsets), written_by)


def _import_table(store: FeatureStore, path: Path, name: str, modality: Modality) -> Imported:
    """Import a file with `features` (n, d) and `ids` (n,)."""
    with _open(path) as file:
        vectors = _dataset(path, file, "features", "f", 2)
        ids = _strings(path, file, "ids")
        if len(ids) != len(vectors):
            raise FeatureFileError(f"{path}/ids: {len(ids)} ids for the {len(vectors)} rows of features")
        repeated = len(ids) - len(set(ids))
        if repeated:
            raise FeatureFileError(f"{path}/ids: {repeated} ids occur twice; every row needs its own")
        spec = _unknown_encoder([path], "table", vectors, modality, pooling="native")
        features = store.open(spec, name=name, keyed_by="id")
        keys = as_keys(map(id_key, ids))
        source = _Source(str(path), vectors, keys, ids, np.arange(len(ids) + 1))
        return _store(features, source, {"encoder": name, "imported": "hdf5"})


def _import_bags(store: FeatureStore, files: Sequence[Path], name: str, modality: Modality) -> Imported:
    """Import one file per sample: a vector each, or bags if any file holds more than one vector."""
    counts, dims = zip(*(_bag_shape(file) for file in files), strict=True)
    odd = next((file for file, dim in zip(files, dims, strict=True) if dim != dims[0]), None)
    if odd is not None:
        raise FeatureFileError(f"{odd}/features: {dims[files.index(odd)]} columns, {files[0].name} has {dims[0]}")
    ragged = set(counts) != {1}
    with _open(files[0]) as file:
        pooling = "tokens" if ragged else "native"
        spec = _unknown_encoder(files, "clam", _dataset(files[0], file, "features", "f"), modality, pooling=pooling)
    features = store.open(spec, name=name, keyed_by="id", ragged=ragged)
    keys = as_keys(id_key(file.stem) for file in files)
    absent = features.missing(keys)
    with features.writer(written_by={"encoder": name, "imported": "hdf5"}) as writer:
        for position in absent.tolist():
            with _open(files[position]) as file:
                bag = _dataset(files[position], file, "features", "f")[()].reshape(-1, dims[0])
            offsets = np.array([0, len(bag)]) if ragged else None
            with _named(f"{files[position]}/features"):
                writer.add(keys[position : position + 1], bag, [files[position].stem], offsets=offsets)
    return Imported(features.refresh(), len(absent), len(files) - len(absent))


@dataclass(frozen=True)
class _Source:
    """Samples in one open file."""

    where: str
    vectors: Any
    keys: NDArray[np.uint64]
    ids: list[str]
    offsets: NDArray[np.int64]


def _store(features: Features, source: _Source, written_by: dict[str, Any]) -> Imported:
    """Add the samples that are not stored yet, some thousand vectors at a time."""
    absent = np.zeros(len(source.keys), bool)
    absent[features.missing(source.keys)] = True
    with features.writer(written_by=written_by) as writer:
        start = 0
        while start < len(source.keys):
            reach = int(np.searchsorted(source.offsets, source.offsets[start] + _ROWS, side="right")) - 1
            stop = max(start + 1, reach)
            _add_run(writer, source, start, stop, absent[start:stop], ragged=features.info.ragged)
            start = stop
    added = int(absent.sum())
    return Imported(features.refresh(), added, len(absent) - added)


def _add_run(
    writer: Writer, source: _Source, start: int, stop: int, wanted: NDArray[np.bool_], *, ragged: bool
) -> None:
    """Read the vectors of a run of samples at once, and add the samples that are wanted."""
    if not wanted.any():
        return
    bounds = source.offsets[start : stop + 1]
    vectors: Array = source.vectors[int(bounds[0]) : int(bounds[-1])]
    lengths = np.diff(bounds)
    picked = np.flatnonzero(wanted)
    with _named(f"{source.where}/features"):
        writer.add(
            source.keys[start:stop][picked],
            vectors[np.repeat(wanted, lengths)],
            [source.ids[start + position] for position in picked.tolist()],
            offsets=np.concatenate([[0], np.cumsum(lengths[picked])]) if ragged else None,
        )


def _unknown_encoder(
    files: Sequence[Path], kind: str, vectors: Any, modality: Modality, *, pooling: str
) -> EncoderSpec:
    """Return the specification of features of unknown origin: their contents are their identity."""
    stated = {key: str(vectors.attrs[key]) for key in ("encoder", "name") if key in vectors.attrs}
    return EncoderSpec(
        family="imported",
        modality=modality,
        architecture={"format": kind, **stated},
        weights=digest_json({file.stem: file_digest(file).hex() for file in files}),
        preprocess={},
        layer="unknown",
        pooling=pooling,
        precision="fp16" if vectors.dtype == np.float16 else "fp32",
        dtype="float16" if vectors.dtype == np.float16 else "float32",
        dim=int(vectors.shape[-1]),
    )


# Reading files that may hold anything -------------------------------------------------------------


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    """Open an HDF5 file; what goes wrong in it becomes one line about this file."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except FrostlineError:
        raise
    except (OSError, RuntimeError) as error:
        raise FeatureFileError(f"{path}: not a readable HDF5 file ({error})") from error


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Say which dataset held embeddings that cannot be stored."""
    try:
        yield
    except SampleError as error:
        raise FeatureFileError(f"{where}: {error}") from error


def _dataset(path: Path, group: Any, name: str, kinds: str, ndim: int | None = None) -> Any:
    """Return a dataset of a group, open, after checking what it is.

    Raises
    ------
    FeatureFileError
        If it is missing, leads out of the file, or has another type or number of axes.
    """
    where = f"{path}{group.name.rstrip('/')}/{name}"
    if name not in group:
        raise FeatureFileError(f"{where}: no such dataset; the file has {', '.join(map(repr, group)) or 'none'}")
    found = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise FeatureFileError(f"{where}: a dataset within the file was expected; groups and links are not followed")
    if found.dtype.kind not in kinds:
        raise FeatureFileError(f"{where}: values of type {found.dtype}, {_KINDS[kinds]} expected")
    if ndim is not None and found.ndim != ndim:
        raise FeatureFileError(f"{where}: shape {found.shape}, {ndim} axes expected")
    return found


_KINDS = {"f": "float16, float32 or float64", "u": "unsigned integers", "i": "integers", "SOiu": "text or integers"}


def _strings(path: Path, group: Any, name: str) -> list[str]:
    """Return a dataset of names."""
    found = _dataset(path, group, name, "SOiu", 1)
    try:
        return [str(value) for value in (found[:] if found.dtype.kind in "iu" else found.asstr()[:])]
    except (TypeError, UnicodeDecodeError) as error:
        raise FeatureFileError(f"{path}{group.name.rstrip('/')}/{name}: not UTF-8 text ({error})") from error


def _check_offsets(where: str, offsets: NDArray[np.int64], count: int) -> None:
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != count or (np.diff(offsets) < 0).any():
        raise FeatureFileError(f"{where}: offsets must ascend from 0 to {count}, the number of vectors")


def _bag_shape(path: Path) -> tuple[int, int]:
    """Return the number of vectors in a file of one sample, and their length."""
    with _open(path) as file:
        shape = _dataset(path, file, "features", "f").shape
    if len(shape) == 3 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) not in (1, 2) or not shape[-1]:
        raise FeatureFileError(f"{path}/features: shape {shape}; (n, d), (1, n, d) or (d,) expected")
    return (1 if len(shape) == 1 else int(shape[0])), int(shape[-1])
