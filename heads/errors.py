"""Errors of heads, bundles and runs; all are `FrostlineError` with exit code 2."""

from __future__ import annotations

from data.errors import FrostlineError


class HeadError(FrostlineError, ValueError):
    """A head, one of its parameters or the data it was given is wrong."""


class BundleError(FrostlineError, ValueError):
    """A saved head cannot be read, or does not fit what it is used on."""


class RunError(FrostlineError, ValueError):
    """A run directory is incomplete, foreign or would be overwritten."""
