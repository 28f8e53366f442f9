"""The state of a fitted head: its learned attributes, as arrays and JSON that need no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HeadState:
    """What a fitted head has learned, in forms that need no pickle.

    Attributes
    ----------
    arrays
        Numeric arrays by name.
    meta
        JSON values by name.
    texts
        Whole text files by name, such as a LightGBM model.
    """

    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def is_learned(name: str) -> bool:
    """Return whether an attribute of this name is learned: it ends in ``_`` and does not begin so."""
    return name.endswith("_") and not name.startswith("_")


def state_of(learned: Mapping[str, Any]) -> HeadState:
    """Return learned attributes as a state.

    Raises
    ------
    TypeError
        If an attribute is neither a numeric array, nor a dict of them, nor JSON.
    """
    state = HeadState()
    for name, value in learned.items():
        if isinstance(value, dict) and value and all(_is_numeric(part) for part in value.values()):
            state.arrays.update({f"{name}/{key}": np.ascontiguousarray(part) for key, part in value.items()})
        elif _is_numeric(value):
            state.arrays[name] = np.ascontiguousarray(value)
        else:
            state.meta[name] = _to_json(name, value)
    return state


def learned_from(state: HeadState) -> dict[str, Any]:
    """Return the learned attributes that `state_of` was given."""
    learned = {name: _from_json(value) for name, value in state.meta.items()}
    for name, value in state.arrays.items():
        attribute, _, key = name.partition("/")
        if key:
            learned.setdefault(attribute, {})[key] = value
        else:
            learned[attribute] = value
    return learned


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _to_json(name: str, value: Any) -> Any:
    """Return a value as JSON; an array of text keeps its dtype."""
    if isinstance(value, np.ndarray):
        value = {"dtype": value.dtype.str, "values": value.tolist()}
    elif isinstance(value, np.generic):
        value = value.item()
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} cannot be saved: {error}") from error
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"dtype", "values"}:
        return np.array(value["values"], dtype=np.dtype(value["dtype"]))
    return value
