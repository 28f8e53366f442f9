"""Errors of fine-tuning; all are `FrostlineError` with exit code 2."""

from __future__ import annotations

from data.errors import FrostlineError


class FinetuneError(FrostlineError, ValueError):
    """An option of `finetune` does not fit the encoder, the samples or another option; or training went wrong."""
