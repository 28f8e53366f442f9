"""What a pooling is called: ``mean``, ``cls@6``, ``tokens@-2``, ``mean@6+chunks``; read and written in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

TOKENS = "tokens"
"""The pooling that pools nothing."""

CHUNKS = "+chunks"
"""What follows the pooling of a text encoder that encodes long texts in pieces, see `featurestore.chunks`."""

_FORM = re.compile(r"(?P<how>.*?)(?:@(?P<block>-?[1-9]\d*))?(?P<chunks>\+chunks)?", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """A pooling, taken apart; `str` puts it together.

    Attributes
    ----------
    how
        ``native``, ``cls``, ``mean``, ``max``, ``tokens``, or a word of an encoder's own.
    block
        The block of the network whose output is read, from 1, or from the end, -1 the last; None: what the whole
        network gives.
    chunks
        Whether long texts are encoded in pieces.
    """

    how: str
    block: int | None = None
    chunks: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the parts of any text; what follows an ``@`` and is no number of a block is part of the word."""
        found = _FORM.fullmatch(text)
        assert found is not None  # the form takes any text
        block = found["block"]
        return cls(how=found["how"], block=int(block) if block else None, chunks=found["chunks"] is not None)

    def __str__(self) -> str:
        """Return the pooling as it is written."""
        at = "" if self.block is None else f"@{self.block}"
        return f"{self.how}{at}{CHUNKS if self.chunks else ''}"

    @property
    def is_tokens(self) -> bool:
        """Whether nothing is pooled."""
        return self.how == TOKENS
