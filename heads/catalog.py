"""The table of heads is the folder `heads/estimators`: listing it imports nothing, making a head imports its module."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import did_you_mean
from heads.errors import HeadError

if TYPE_CHECKING:
    from data.task import Kind
    from heads.base import Head

FOLDER = Path(__file__).parent / "estimators"


@cache
def list_heads() -> dict[str, str]:
    """Return the heads there are: the first line of each module's text, by name. Imports none of them."""
    return {
        path.stem: (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]
        for path in sorted(FOLDER.glob("*.py"))
        if not path.stem.startswith("_")
    }


def head_classes(name: str) -> tuple[type[Head], ...]:
    """Return the classes of a head, one per family of task kinds.

    Raises
    ------
    HeadError
        If there is no such head.
    """
    if name not in list_heads():
        raise HeadError(f"no head {name!r}; {did_you_mean(name, list_heads())}")
    classes: tuple[type[Head], ...] = import_module(f"heads.estimators.{name}").HEADS
    return classes


def takes_bags(name: str) -> bool:
    """Return whether a head learns from bags of embeddings as they are."""
    return any(made.accepts_bags for made in head_classes(name))


def takes_views(name: str) -> bool:
    """Return whether a head learns from the views of bags."""
    return any(made.accepts_views for made in head_classes(name))


def head_class(name: str, kind: Kind) -> type[Head]:
    """Return the class of a head that learns a kind of task.

    Raises
    ------
    HeadError
        If there is no such head, or it does not learn that kind.
    """
    classes = head_classes(name)
    for candidate in classes:
        if kind in candidate.kinds:
            return candidate
    known = sorted(set().union(*(candidate.kinds for candidate in classes)))
    raise HeadError(f"head {name!r} does not learn {kind} tasks; it learns {', '.join(known)}")


def make_head(name: str, kind: Kind, params: Mapping[str, Any], seed: int) -> Head:
    """Return an unfitted head.

    Parameters
    ----------
    name
        A name of `list_heads`.
    kind
        The task kind it shall learn.
    params
        Constructor arguments; text (``--set C=0.1``) is parsed by the constructor's type hints.
    seed
        Used as `random_state` by heads that draw random numbers, unless `params` names one.

    Raises
    ------
    HeadError
        If the head, a parameter or a value does not exist or fit; the message says what does.
    """
    from heads.params import parse_params

    made = head_class(name, kind)
    parsed = parse_params(made, params)
    if "random_state" in made._get_param_names():
        parsed.setdefault("random_state", seed)
    return made(**parsed)


def with_contents(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters of a head as text that needs no file: see `heads.params.with_contents`."""
    from heads.params import with_contents

    contents = dict(params)
    for made in head_classes(name):
        contents = with_contents(made, contents)
    return contents


def to_dict() -> list[dict[str, Any]]:
    """Return every head with its task kinds and parameters as JSON-ready values."""
    return [
        {
            "head": name,
            "summary": summary,
            "kinds": sorted(set().union(*(made.kinds for made in head_classes(name)))),
            "parameters": _parameters(name),
        }
        for name, summary in list_heads().items()
    ]


def explain() -> str:
    """Return every head with its task kinds and parameters as text to read."""
    lines = []
    for row in to_dict():
        lines += [f"{row['head']:<9} {row['summary']}", f"{'':<9} learns {', '.join(row['kinds'])}"]
        lines += [f"{'':<11} --set {name}={text}" for name, text in row["parameters"].items()]
    return "\n".join(lines)


def _parameters(name: str) -> dict[str, str]:
    """Return the default and the allowed values of a head's parameters, as text."""
    from heads.params import describe_params

    described: dict[str, str] = {}
    for made in head_classes(name):
        described |= describe_params(made)
    return described
