"""One typed object per command: its fields are the flags, the YAML keys and the entries of the record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from data.errors import ConfigError, did_you_mean


def positional(order: int) -> dict[str, Any]:
    """Mark a field that the command line takes by position instead of as a flag."""
    return {"positional": order}


def _as_tuple(value: Any) -> Any:
    """Let one value stand for a list of one."""
    return (value,) if isinstance(value, str) else value


def _split_at_commas(value: Any) -> Any:
    """Return the parts of comma-separated texts."""
    texts = _as_tuple(value)
    if not isinstance(texts, (list, tuple)):
        return value
    return tuple(part.strip() for text in texts for part in str(text).split(",") if part.strip())


def _as_settings(value: Any) -> Any:
    """Read ``key=value`` texts as a mapping."""
    if not isinstance(value, (list, tuple)):
        return value
    settings: dict[str, Any] = {}
    for text in value:
        key, equals, setting = str(text).partition("=")
        if not equals or not key.strip():
            raise ValueError(f"expected key=value, such as C=0.1, found {text!r}")
        settings[key.strip()] = setting.strip()
    return settings


Many = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""A list of texts, or one."""

Names = Annotated[tuple[str, ...], BeforeValidator(_split_at_commas)]
"""Column names: a list, one name, or names joined by commas."""

Settings = Annotated[dict[str, Any], BeforeValidator(_as_settings)]
"""A mapping, or ``key=value`` texts."""


class Config(BaseModel):
    """Base of every command's configuration: frozen, strict about names, explained in one line when wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @classmethod
    def build(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Validate values.

        Parameters
        ----------
        values
            Field name to value; names may be written with dashes.
        where
            What the values came from, for messages: a file or ``command line``.

        Raises
        ------
        ConfigError
            If a key is unknown or a value does not fit.
        """
        named = {key.replace("-", "_"): value for key, value in values.items()}
        for key in named:
            if key not in cls.model_fields:
                raise ConfigError(f"{where}: unknown key {key!r}; {did_you_mean(key, cls.model_fields)}")
        try:
            return cls(**named)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_explain(error, cls)}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON-ready values that `build` accepts again."""
        return self.model_dump(mode="json")


def _explain(error: ValidationError, config: type[Config]) -> str:
    """Say in one line what the first wrong field expected and found; a union's alternatives are joined."""
    first = error.errors()[0]
    field = str(first["loc"][0])
    extra = config.model_fields[field].json_schema_extra
    option = field if isinstance(extra, dict) and "positional" in extra else "--" + field.replace("_", "-")
    if first["type"] == "missing":
        return f"{option} is required"
    if first["type"] == "value_error":
        return f"{option}: {first['ctx']['error']}"
    expected = [_expected(each["type"], each["msg"]) for each in error.errors() if each["loc"][:1] == first["loc"][:1]]
    return f"{option}: expected {' or '.join(dict.fromkeys(expected))}, found {first['input']!r}"


def _expected(kind: str, message: str) -> str:
    """Return what pydantic expected, in a user's words."""
    if kind in ("int_parsing", "int_type", "int_from_float"):
        return "a whole number"
    if kind in ("float_parsing", "float_type"):
        return "a number"
    if kind == "string_too_short":
        return "a text that is not empty"
    if kind == "too_short":
        return "at least one"
    return message.removeprefix("Input should be ").removeprefix("Value error, ")


class ManifestConfig(Config):
    """The options of every command that takes a manifest."""

    manifest: Path = Field(
        description="a CSV, TSV, Parquet or JSONL table, or an image folder", json_schema_extra=positional(1)
    )
    input: str | None = Field(
        default=None, description="column to encode; default: the only one of image, audio, video, text, path"
    )
    id: str | None = Field(
        default=None, description="column of unique sample names; default: id, else the input itself"
    )
    split: str | None = Field(default=None, description="column of train / val / test")
    group: str | None = Field(default=None, description="column of what must not straddle splits, such as the patient")
    bag: str | None = Field(default=None, description="column of what is labelled as a whole, such as the study")


class _UniqueKeys(yaml.SafeLoader):
    """A YAML loader that refuses a key written twice instead of taking the last one."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]
    twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
    if twice is not None:
        raise ConfigError(f"line {node.start_mark.line + 1}: key {twice!r} is written twice")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def parse_yaml(text: str) -> dict[str, Any]:
    """Return a mapping written as one line of YAML, such as ``{a: 1, b: {c: 2}}``.

    Raises
    ------
    ConfigError
        If the text is no such mapping, or writes a key twice.
    """
    try:
        content = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader underneath
    except yaml.YAMLError as error:
        raise ConfigError(f"{text!r} is no mapping such as {{a: 1}}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{text!r}: expected a mapping such as {{a: 1}}, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises
    ------
    ConfigError
        If the file is missing, is no YAML mapping, or writes a key twice.
    """
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader underneath
    except OSError as error:
        raise ConfigError(f"{path}: the configuration file cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a mapping of options to values, found {type(content).__name__}")
    return {str(key): value for key, value in content.items()}
