"""Errors of encoders and of the store.

::

    FrostlineError
    ├── EncoderError              exit code 2
    │   ├── UnknownEncoder        the id names nothing that exists
    │   ├── EncoderUnavailable    a package is missing or broken; carries the install line
    │   └── WeightsUnavailable    the weights are neither cached nor reachable, or were not asked for by name
    ├── FingerprintMismatch       features of another encoder than the one asked for
    ├── FeaturesMissing           samples that are not in the store
    ├── FeatureFileError          an HDF5 file of features that cannot be imported, or written
    ├── StoreUnwritable           read-only, full or foreign directory; exit code 2
    └── StoreCorrupt              damaged or incompatible store; exit code 4
"""

from __future__ import annotations

from typing import ClassVar

from data.errors import FrostlineError


class EncoderError(FrostlineError, ValueError):
    """An encoder cannot be made as asked."""


class UnknownEncoder(EncoderError):
    """The id names no encoder."""


class EncoderUnavailable(EncoderError):
    """A package the encoder needs is missing or broken."""


class WeightsUnavailable(EncoderError):
    """The weights are not here and cannot be fetched, or untrained weights were not asked for by name."""


class FingerprintMismatch(FrostlineError, ValueError):
    """The features were made by another encoder than the one asked for."""


class FeaturesMissing(FrostlineError, LookupError):
    """Samples that the store does not hold."""


class FeatureFileError(FrostlineError, ValueError):
    """A file of features cannot be imported, or would be overwritten."""


class StoreUnwritable(FrostlineError, OSError):
    """The store's directory cannot be written."""


class StoreCorrupt(FrostlineError, ValueError):
    """The store is damaged, incomplete or of a version this release cannot read.

    Parameters
    ----------
    message
        One line: the file, what belongs there, what was found; kept as `damage`.
    remedy
        What to do.
    """

    exit_code: ClassVar[int] = 4

    def __init__(self, message: str, *, remedy: str = "`frostline store verify` lists all damage") -> None:
        super().__init__(f"{message}; {remedy}")
        self.damage = message
