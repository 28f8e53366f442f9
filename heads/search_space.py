"""Search spaces as values: what a head says of its parameters, for any search to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Range:
    """A parameter between two bounds, both included; integers when the bounds are."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """A parameter that is one of a few values."""

    options: tuple[Any, ...]


SearchSpace = Mapping[str, Range | Choice]
