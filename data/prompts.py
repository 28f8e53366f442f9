"""Prompts: the texts that stand for the classes of a task, made from templates or written one by one.

A template holds ``{finding}``, where the class goes: ``signs of {finding}`` makes *signs of pleural
effusion* of the class ``Pleural_Effusion``. A YAML or JSON file says more, for all classes or for some::

    templates: ["a chest X-ray of {finding}"]               # of every class; default: the five of `TEMPLATES`
    negative_templates: ["a chest X-ray without {finding}"]  # of the absence of a label
    names: {PTX: pneumothorax}                              # what {finding} is for a class; default: its cleaned name
    classes:                                                # a class's own prompts, instead of the templates
      Edema: ["fluid in the lungs", "{finding} on a chest X-ray"]
      Mass: {positive: ["a lung mass"], negative: ["clear lungs"]}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.config import read_yaml
from data.errors import ConfigError, did_you_mean

PLACEHOLDER = "{finding}"
TEMPLATES = tuple(
    f"{words} {PLACEHOLDER}"
    for words in ("signs of", "indication of", "evidence of", "presence of", "characteristic of")
)
NEGATIVE_TEMPLATES = tuple(f"no {template}" for template in TEMPLATES)


@dataclass(frozen=True, kw_only=True)
class PromptTexts:
    """The prompts of a task's classes.

    Attributes
    ----------
    classes
        The classes, in the task's order.
    positive
        Per class, the prompts that stand for it; at least one.
    negative
        Per class, the prompts that stand for its absence; at least one.
    """

    classes: tuple[str, ...]
    positive: tuple[tuple[str, ...], ...]
    negative: tuple[tuple[str, ...], ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Every prompt, each once."""
        return tuple(dict.fromkeys(text for side in (self.positive, self.negative) for own in side for text in own))


@dataclass(frozen=True)
class _File:
    """What a file of prompts says."""

    templates: tuple[str, ...] = ()
    negative_templates: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    classes: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)


def clean_name(name: str) -> str:
    """Return a class as words of a sentence: ``_`` is a space, spaces are single, letters small but in acronyms.

    A word of two or more characters without a small letter keeps its case (``COPD``, ``T2``); any other is
    written small, so that ``Pleural_Thickening`` is *pleural thickening*.
    """
    words = name.replace("_", " ").split()
    return " ".join(word if len(word) > 1 and word.upper() == word else word.lower() for word in words)


def make_prompts(classes: Sequence[str], *, templates: Sequence[str] = (), file: Path | None = None) -> PromptTexts:
    """Return the prompts of some classes.

    Parameters
    ----------
    classes
        The classes of the task, in its order.
    templates
        Templates of every class, instead of those of the file.
    file
        A YAML or JSON file, see the module's text.

    Returns
    -------
    PromptTexts
        What nobody states is the default: five templates, and for the absence of a class *no* before the finding
        of each template, or before the whole of a default template and of a class's own prompt.

    Raises
    ------
    ConfigError
        If a template has no placeholder, the file is wrong or names no class of the task, or a class has no prompt, or
        no word in its name to make one of.
    """
    told = _File() if file is None else _read(file, classes)
    positive = tuple(templates) or told.templates or TEMPLATES
    negative = told.negative_templates or _negated(positive)
    _require_placeholder(positive, "--template" if templates else f"{file}: templates")
    _require_placeholder(negative, f"{file}: negative_templates")
    both: dict[str, list[tuple[str, ...]]] = {"positive": [], "negative": []}
    for name in classes:
        own = told.classes.get(name)
        finding = told.names.get(name) or (_word(name) if own is None else clean_name(name))
        sides = {"positive": positive, "negative": negative} if own is None else own
        for side, texts in both.items():
            texts.append(tuple(_rendered(template, finding, name) for template in sides[side]))
    return PromptTexts(classes=tuple(classes), **{side: tuple(texts) for side, texts in both.items()})


def captions(labels: Sequence[str | None], texts: PromptTexts) -> tuple[str | None, ...]:
    """Return a caption for each sample: the first prompt of its class.

    Parameters
    ----------
    labels
        The class of each sample; None where it is not known.
    texts
        The prompts of the classes.

    Returns
    -------
    tuple of str or None
        None for a sample without a label: no words such as *no report* stand in for what is not known, because all
        samples of such a caption would be taken for matches of each other.

    Raises
    ------
    ConfigError
        If a label is no class.
    """
    first = {name: prompts[0] for name, prompts in zip(texts.classes, texts.positive, strict=True)}
    for label in labels:
        if label is not None and label not in first:
            raise ConfigError(f"no class {label!r} to caption; {did_you_mean(label, first)}")
    return tuple(None if label is None else first[label] for label in labels)


def _negated(templates: tuple[str, ...]) -> tuple[str, ...]:
    if templates == TEMPLATES:
        return NEGATIVE_TEMPLATES
    return tuple(template.replace(PLACEHOLDER, f"no {PLACEHOLDER}") for template in templates)


def _word(name: str) -> str:
    """Return what a template says of a class that nobody named: its name, unless that is a code such as ``0``."""
    if not any(character.isalpha() for character in name):
        raise ConfigError(
            f"class {name!r} is no word that a prompt could be made of; say what it means in a file: "
            f"--prompts FILE with names: {{{name!r}: ...}}"
        )
    return clean_name(name)


def _rendered(template: str, finding: str, name: str) -> str:
    text = " ".join(template.replace(PLACEHOLDER, finding).split())
    if not text:
        raise ConfigError(f"class {name!r}: a prompt is empty; expected a text")
    return text


def _require_placeholder(templates: Iterable[str], where: str) -> None:
    for template in templates:
        if PLACEHOLDER not in template:
            raise ConfigError(
                f"{where}: {template!r} does not say where the class goes; expected {PLACEHOLDER} in it, as in "
                f"'signs of {PLACEHOLDER}'"
            )


# Files --------------------------------------------------------------------------------------------------------------


def _read(file: Path, classes: Sequence[str]) -> _File:
    content = read_yaml(file)
    for key in content:
        if key not in _File.__dataclass_fields__:
            raise ConfigError(f"{file}: unknown key {key!r}; {did_you_mean(key, _File.__dataclass_fields__)}")
    names = _by_class(content.get("names", {}), f"{file}: names", classes)
    own = _by_class(content.get("classes", {}), f"{file}: classes", classes)
    return _File(
        templates=_texts(content.get("templates", ()), f"{file}: templates"),
        negative_templates=_texts(content.get("negative_templates", ()), f"{file}: negative_templates"),
        names={name: _text(text, f"{file}: names: {name}") for name, text in names.items()},
        classes={name: _own_prompts(texts, f"{file}: classes: {name}") for name, texts in own.items()},
    )


def _by_class(values: Any, where: str, classes: Sequence[str]) -> dict[str, Any]:
    """Return a mapping of classes; a class that YAML reads as a number, such as ``0``, is its text."""
    if not isinstance(values, dict):
        raise ConfigError(f"{where}: expected a mapping of classes, found {values!r}")
    named = {str(name): value for name, value in values.items()}
    for name in named:
        if name not in classes:
            raise ConfigError(f"{where}: the task has no class {name!r}; {did_you_mean(name, classes)}")
    return named


def _own_prompts(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    sides = value if isinstance(value, dict) else {"positive": value}
    for side in sides:
        if side not in ("positive", "negative"):
            raise ConfigError(f"{where}: expected positive and negative, found {side!r}")
    positive = _texts(sides.get("positive", ()), where)
    if not positive:
        raise ConfigError(f"{where}: has no prompt; expected at least one text")
    negative = _texts(sides.get("negative", ()), where)
    return {"positive": positive, "negative": negative or tuple(f"no {text}" for text in positive)}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: expected a text, found {value!r}")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        raise ConfigError(f"{where}: expected a text or a list of texts, found {value!r}")
    return tuple(_text(text, where) for text in texts)
