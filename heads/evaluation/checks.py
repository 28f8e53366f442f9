"""What metrics expect of the arrays they are given."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from heads.errors import HeadError


def expect_shape(name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Refuse an array of another shape.

    Raises
    ------
    HeadError
        That names it.
    """
    if array.shape != shape:
        raise HeadError(f"{name}: expected shape {shape}, got {array.shape}")
