"""FeatureStore: a directory of embeddings, one group per encoder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.errors import ConfigError, did_you_mean
from data.manifest import Modality
from featurestore.errors import FeaturesMissing, StoreCorrupt, StoreUnwritable
from featurestore.features import Features
from featurestore.layout import (
    FEATURES,
    FILES,
    LEDGER,
    OPENINGS,
    VERSION,
    GroupInfo,
    KeyedBy,
    group_name,
    group_names,
    read_group,
    write_group,
    writing,
)
from featurestore.ledger import Ledger
from featurestore.spec import EncoderSpec


class FeatureStore:
    """A directory of embeddings. Any number of processes may read and write it at once.

    Parameters
    ----------
    path
        The directory.
    create
        Whether to make a store where there is none.

    Raises
    ------
    ConfigError
        If there is no store at `path` and `create` is off.
    StoreUnwritable
        If the directory cannot be made, or holds something else.
    StoreCorrupt
        If the store was written by a newer release or is damaged.
    """

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self.path = Path(path)
        self._features = self.path / FEATURES
        state = read_group(self._features)
        if state is None:
            self._refuse_unless_new(create=create)
            state = {"feature_store": {"version": VERSION, "key": "blake2b-128"}}
            write_group(self._features, state)
        version = state.get("feature_store", {}).get("version")
        if not isinstance(version, int):
            raise StoreCorrupt(f"{self._features}: a zarr group, but not a feature store (no format version)")
        if version > VERSION:
            raise StoreCorrupt(
                f"{self._features}: format version {version}, this release reads up to {VERSION}",
                remedy="upgrade Frostline",
            )

    def _refuse_unless_new(self, *, create: bool) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise StoreUnwritable(f"{self.path}: a file, where the directory of a store belongs")
        if (self.path / "zarr.json").exists():
            inside = self.path.name == FEATURES
            hint = f"; its store is {self.path.parent}" if inside else "; --store takes the directory above it"
            raise ConfigError(f"{self.path}: a zarr group, not a store{hint}")
        if not create:
            raise ConfigError(
                f"{self.path}: no feature store here; make one with `frostline extract --store {self.path}`"
            )
        if self.path.exists():
            foreign = sorted({entry.name for entry in self.path.iterdir()} - {FEATURES, LEDGER, FILES, OPENINGS})
            if foreign:
                raise StoreUnwritable(
                    f"{self.path}: neither empty nor a store (it holds {foreign[0]!r}); choose another --store"
                )

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.path)!r})"

    @property
    def files_cache(self) -> Path:
        """Where digests of files are remembered."""
        return self.path / FILES

    @property
    def openings(self) -> Path:
        """Where it is noted which test splits were scored by which runs."""
        return self.path / OPENINGS

    def ledger(self, group: str) -> Ledger:
        """Return the ledger of an encoder group."""
        return Ledger(self.path / LEDGER / f"{group}.jsonl")

    def group_directory(self, group: str) -> Path:
        """Return the directory of an encoder group."""
        return self._features / group

    def groups(self) -> list[str]:
        """Return the directory names of all encoder groups, sorted; opens none."""
        return group_names(self._features)

    def features(self) -> list[Features]:
        """Return every encoder's features.

        Raises
        ------
        StoreCorrupt
            If the attributes of a group or a part are damaged.
        """
        infos = ((group, GroupInfo.read(self._features / group)) for group in self.groups())
        return [Features(self._features / group, info) for group, info in infos if info is not None]

    def open(
        self,
        spec: EncoderSpec,
        *,
        name: str,
        keyed_by: KeyedBy = "content",
        ragged: bool = False,
        create: bool = True,
    ) -> Features:
        """Return the features of an encoder, known by its fingerprint; make its group where there is none.

        Parameters
        ----------
        spec
            The encoder.
        name
            What the user called it; recorded, so that `find` knows it by this name.
        keyed_by
            What the keys are digests of.
        ragged
            Whether a sample has a varying number of vectors.
        create
            Whether to make the group, and to record the name.

        Raises
        ------
        FeaturesMissing
            If there is no such group and `create` is off.
        ConfigError
            If the group exists with another `keyed_by` or `ragged`.
        StoreUnwritable
            If the group cannot be made.
        """
        found = self._by_fingerprint(spec.fingerprint)
        if create and (found is None or name not in found.names):
            found = self._record(spec, name, keyed_by, ragged=ragged)
        if found is None:
            raise FeaturesMissing(self._no_features_of(name))
        if (found.info.keyed_by, found.info.ragged) != (keyed_by, ragged):
            raise ConfigError(
                f"{found.directory}: keyed by {found.info.keyed_by}, ragged {found.info.ragged}; "
                f"keyed by {keyed_by}, ragged {ragged} was asked for"
            )
        return found

    def find(
        self,
        name: str,
        *,
        pooling: str | None = None,
        precision: str | None = None,
        dtype: str | None = None,
        modality: Modality | None = None,
    ) -> Features:
        """Return the features of an encoder by a name it was extracted under, without loading the encoder.

        Parameters
        ----------
        name
            The id given to ``extract``, or ``id@FINGERPRINT`` with the start of a fingerprint.
        pooling, precision, dtype, modality
            Narrow the choice where one name has several specifications.

        Raises
        ------
        FeaturesMissing
            If nothing in the store has this name and these options.
        ConfigError
            If several do.
        """
        everything = self.features()
        named = [features for features in everything if name in features.names]
        if not named:
            base, _, prefix = name.rpartition("@")
            named = [f for f in everything if prefix and base in f.names and f.fingerprint.startswith(prefix)]
        if not named:
            raise FeaturesMissing(self._no_features_of(name, everything))
        options = {"pooling": pooling, "precision": precision, "dtype": dtype, "modality": modality}
        wanted = {option: value for option, value in options.items() if value is not None}
        fitting = [f for f in named if all(getattr(f.spec, option) == value for option, value in wanted.items())]
        if not fitting:
            asked = ", ".join(f"{option} {value}" for option, value in wanted.items())
            raise FeaturesMissing(
                f"{self.path}: {name!r} is stored with {_describe(named, list(wanted))}, not with {asked}; "
                f"run `frostline extract` with these options first"
            )
        if len(fitting) > 1:
            raise ConfigError(
                f"{self.path}: {len(fitting)} feature groups of {name!r}; they differ in {_differences(fitting)}; "
                f"{'choose with --pooling, or ' if len({f.spec.pooling for f in fitting}) > 1 else ''}"
                f"name one as {' or '.join(f'{name}@{f.fingerprint[:12]}' for f in fitting)}"
            )
        return fitting[0]

    def _by_fingerprint(self, fingerprint: str) -> Features | None:
        for group in self.groups():
            if group.endswith(fingerprint[:12]):
                directory = self._features / group
                info = GroupInfo.read(directory)
                if info is not None and info.fingerprint == fingerprint:
                    return Features(directory, info)
        return None

    def _record(self, spec: EncoderSpec, name: str, keyed_by: KeyedBy, *, ragged: bool) -> Features:
        """Make the group, or add a name to it, while no other process does."""
        with _locked(self._features):
            found = self._by_fingerprint(spec.fingerprint)
            if found is None:
                directory = self._features / group_name(name, spec.fingerprint)
                names: tuple[str, ...] = (name,)
            else:
                directory, keyed_by, ragged = found.directory, found.info.keyed_by, found.info.ragged
                names = tuple(dict.fromkeys((*found.names, name)))
            info = GroupInfo(spec=spec, fingerprint=spec.fingerprint, names=names, keyed_by=keyed_by, ragged=ragged)
            info.write(directory)
            return Features(directory, info)

    def _no_features_of(self, name: str, everything: list[Features] | None = None) -> str:
        known = {known for features in everything or self.features() for known in features.names}
        what = did_you_mean(name, known) if known else "The store is empty."
        return (
            f"{self.path}: no features of {name!r}; {what} "
            f"To make them: frostline extract MANIFEST --store {self.path} --encoder {name}"
        )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the advisory lock of a directory; the system releases it if the process dies."""
    with writing(directory):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _describe(candidates: list[Features], options: list[str]) -> str:
    stored = [", ".join(f"{option} {getattr(f.spec, option)}" for option in options) for f in candidates]
    return " / ".join(sorted(set(stored)))


def _differences(candidates: list[Features]) -> str:
    """Name the fields of the specifications that differ, with their values."""
    specs = [features.spec.to_dict() for features in candidates]
    fields = [field for field in specs[0] if len({str(spec[field]) for spec in specs}) > 1]
    plain = [
        f"{field} ({', '.join(str(spec[field]) for spec in specs)})"
        if isinstance(specs[0][field], str | int)
        else field
        for field in fields
    ]
    return ", ".join(plain)
