"""The table of objectives: a name is a module of `finetune/objectives`; listing them imports none.

What an objective's constructor gives a default is a setting, which a user may change; what it gives none is
what only the run knows, such as the task or the length of a vector.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import ConfigError, did_you_mean
from heads.errors import HeadError
from heads.params import describe_params, parse_params

if TYPE_CHECKING:
    from finetune.outputs import Objective

FOLDER = Path(__file__).parent / "objectives"
SUM = "weighted"
"""The module of the folder that is no objective of its own but the sum of several."""


@cache
def list_objectives() -> tuple[str, ...]:
    """Return the names of the objectives there are, in alphabetical order."""
    return tuple(
        sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_") and path.stem != SUM)
    )


def objective_class(name: str) -> type[Objective]:
    """Return the class of an objective.

    Raises
    ------
    ConfigError
        If there is no such objective.
    """
    if name not in list_objectives():
        raise ConfigError(f"no objective {name!r}; {did_you_mean(name, list_objectives())}")
    from finetune.outputs import Objective

    members = vars(import_module(f"finetune.objectives.{name}")).values()
    made: type[Objective] = next(
        member
        for member in members
        if isinstance(member, type) and issubclass(member, Objective) and getattr(member, "name", None) == name
    )
    return made


def settings_of(name: str) -> dict[str, str]:
    """Return what each setting of an objective may be and its default, as text.

    Raises
    ------
    ConfigError
        If there is no such objective.
    """
    made = objective_class(name)
    described = describe_params(made)
    return {key: described[key] for key in _settings(made)}


def make_objective(name: str, settings: Mapping[str, Any], **given: Any) -> Objective:
    """Return an objective.

    Parameters
    ----------
    name
        One of `list_objectives`.
    settings
        Those of its constructor, by name; text, as after ``--set contrastive.temperature=``, is read as the type
        that is asked for.
    given
        What the run knows; an objective takes the arguments that it has no default for, such as ``task``, ``dim``
        and ``targets``, and leaves the others.

    Raises
    ------
    ConfigError
        If there is no such objective or setting.
    HeadError
        If a value does not fit; as the other, one line that names the objective, the setting and what was expected.
    """
    made = objective_class(name)
    known = _settings(made)
    for key in settings:
        if key not in known:
            hint = did_you_mean(key, known) if known else "it has none."
            raise ConfigError(f"--set {name}.{key}: {name} has no setting {key!r}; {hint}")
    own = {key: value for key, value in given.items() if key in _parameters(made) and key not in known}
    try:
        parsed = parse_params(made, settings)
    except HeadError as error:
        raise HeadError(f"--set {str(error).replace(': ', '.', 1)}") from error
    return made(**own, **parsed)


def split_settings(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Return the settings of each objective from dotted ones, such as ``{"contrastive.temperature": "0.07"}``.

    Parameters
    ----------
    settings
        By ``objective.setting``.
    names
        The objectives of the run.

    Raises
    ------
    ConfigError
        If a key has no dot, or names an objective that the run does not have.
    """
    own: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in settings.items():
        name, dot, setting = key.partition(".")
        if not dot or name not in own:
            raise ConfigError(
                f"--set {key}: expected objective.setting=value with an objective of this run; "
                f"{did_you_mean(name, names)}"
            )
        own[name][setting] = value
    return own


def _parameters(made: type[Objective]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(made).parameters


def _settings(made: type[Objective]) -> tuple[str, ...]:
    return tuple(name for name, each in _parameters(made).items() if each.default is not inspect.Parameter.empty)
