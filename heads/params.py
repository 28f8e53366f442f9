"""Parameters of heads: parsed and checked against the type hints of the constructor, in one place.

The signature is the documentation: ``C: Positive | Literal["auto"] = "auto"`` is at once the hint,
the parser of ``--set C=0.1``, the check at fit time and the text of the error.
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Interval
from pydantic import ConfigDict, TypeAdapter, ValidationError

from data.config import parse_yaml, read_yaml
from data.errors import did_you_mean
from heads.errors import HeadError

Positive = Annotated[float, Gt(0)]
NotNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Count = Annotated[int, Ge(1)]
ClassWeight = Literal["balanced"] | None
"""``balanced`` weights each class by the inverse of its share of the training weight, per target."""


def parse_params(head: type, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of a head, with text read as the type the constructor asks for.

    Parameters
    ----------
    head
        The class whose constructor is meant.
    params
        Values by name. Text is parsed: ``none`` is None where that is allowed, and ``512,256`` is a tuple
        where one is asked for, as is ``[[512],[]]`` of tuples; a mapping is ``{name: {key: value}}``, or a
        YAML file of it.

    Raises
    ------
    HeadError
        If a name is unknown or a value does not fit.
    """
    hints = _hints(head)
    parsed = {}
    for name, value in params.items():
        if name not in hints:
            raise HeadError(f"{_name(head)}: no parameter {name!r}; {did_you_mean(name, hints)}")
        parsed[name] = _validated(head, name, _from_text(value, hints[name]), strict=False)
    return parsed


def with_contents(head: type, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of a head with the mappings that YAML files hold in the place of their paths.

    Raises
    ------
    ConfigError
        If a file cannot be read.
    """
    hints = _hints(head)
    return {
        name: read if not _is_inline(value) and isinstance(read := _from_text(value, hints.get(name)), dict) else value
        for name, value in params.items()
    }


def _is_inline(value: Any) -> bool:
    return not isinstance(value, str) or value.startswith("{")


def check_params(head: Any) -> None:
    """Raise HeadError if a parameter of a head does not fit the type hints of its constructor."""
    for name, value in head.get_params(deep=False).items():
        _validated(type(head), name, value.item() if hasattr(value, "item") else value, strict=True)


def describe_params(head: type) -> dict[str, str]:
    """Return what each parameter of a head may be and its default, as text."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(head).parameters.items()}
    return {name: f"{describe(hint)} [default: {_plain(defaults[name])}]" for name, hint in _hints(head).items()}


def describe(hint: Any) -> str:
    """Return a type hint in words: ``a number > 0 or 'auto'``."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe(part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(repr(option) for option in get_args(hint))
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        return " and ".join(filter(None, [describe(base) + " " + " and ".join(map(_describe_limit, limits))])).strip()
    if get_origin(hint) is dict:
        return "a YAML file, or {name: {key: value}}"
    if get_origin(hint) is tuple and get_origin(get_args(hint)[0]) is tuple:
        return "a list of such lists, as [[64],[]]"
    if get_origin(hint) is tuple:
        return f"a comma-separated list of {describe(get_args(hint)[0])}"
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "none"}
    return words.get(hint, str(hint))


def _describe_limit(limit: Any) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    bounds = limit if isinstance(limit, GroupedMetadata) else (limit,)
    return " and ".join(
        f"{sign} {getattr(bound, key)}" for bound in bounds for key, sign in signs.items() if hasattr(bound, key)
    )


@cache
def _hints(head: type) -> dict[str, Any]:
    hints = get_type_hints(head.__init__, include_extras=True)  # type: ignore[misc]
    return {name: hints[name] for name in inspect.signature(head).parameters}


@cache
def _adapter(head: type, name: str) -> TypeAdapter[Any]:
    return TypeAdapter(_hints(head)[name], config=ConfigDict(allow_inf_nan=False))


def _validated(head: type, name: str, value: Any, *, strict: bool) -> Any:
    try:
        return _adapter(head, name).validate_python(value, strict=strict)
    except ValidationError as error:
        expected = describe(_hints(head)[name])
        raise HeadError(f"{_name(head)}: {name}={value!r} is wrong; expected {expected}") from error


def _from_text(value: Any, hint: Any) -> Any:
    """Return text in the form that pydantic parses; anything else as it is."""
    if not isinstance(value, str):
        return value
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    if type(None) in options and value.lower() in ("none", "null"):
        return None
    lists = [get_origin(option) is tuple for option in options]
    if any(lists) and value.startswith("["):
        return _json(value)
    if all(lists) or (any(lists) and "," in value):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if any(get_origin(option) is dict for option in options):
        return parse_yaml(value) if value.startswith("{") else read_yaml(Path(value))
    return value


def _json(text: str) -> Any:
    """Return what JSON says, or the text itself if it is none, for the check that follows to refuse."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> str:
    """Write a default as it would be written after ``--set name=``."""
    return (
        ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower() if value is None else str(value)
    )


def _name(head: type) -> str:
    return str(getattr(head, "name", head.__name__))
