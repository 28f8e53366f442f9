"""What a study searches: heads, their parameters, and the features they learn from, as one space.

Heads bring their own ranges (`Head.search_space`); a YAML file may give a head others::

    svm: {C: [0.1, 1, 10, 100], kernel: [linear, rbf], gamma: [scale, auto, 0.1, 0.01]}
    mlp: {lr: {low: 0.0001, high: 0.01, log: true}, hidden: ["256", "512,256"], dropout: 0.5}

A head in the file is searched over what the file says and nothing else; its other parameters keep
their defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product
from pathlib import Path
from typing import Any, Protocol

from data.config import read_yaml
from data.errors import ConfigError, did_you_mean
from data.task import Kind
from heads.catalog import head_class
from heads.errors import HeadError
from heads.params import parse_params
from heads.search_space import Choice, Range, SearchSpace

MOST_ENCODERS = 6
"""Encoders whose subsets are searched: 63 of them."""
MOST_POINTS = 100_000
"""Points of a grid; a larger space counts as one that cannot be tried exhaustively."""
DEFAULT, GRID = "default", "grid"
"""Attributes of trials that keep a head's defaults, and of those that are points of a grid."""
_RANGE_KEYS = ("low", "high", "log")


class Trial(Protocol):
    """What a space asks of an Optuna trial."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        """Marks on the trial."""
        ...

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return one of some values."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """Return a whole number."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Return a number."""
        ...


@dataclass(frozen=True)
class View:
    """The features that a head learns from: which encoders, pooled and scaled how."""

    encoders: tuple[str, ...]
    pooling: str | None
    normalize: str


@dataclass(frozen=True)
class Candidate:
    """One configuration: a head, the parameters that differ from its defaults, and its features."""

    head: str
    params: Mapping[str, Any]
    view: View

    @property
    def key(self) -> str:
        """Identity: equal configurations have equal keys."""
        return repr((self.head, sorted(self.params.items()), self.view))


@dataclass(frozen=True, kw_only=True)
class Space:
    """Everything that a study may choose.

    Attributes
    ----------
    heads
        Per head, the parameters that are searched.
    fixed
        Per head, parameters with one value throughout.
    narrowed
        The heads whose parameters come from a file.
    encoders, poolings, normalizations
        What to choose the features from; of the encoders, every subset that is not empty.
    """

    heads: Mapping[str, SearchSpace]
    fixed: Mapping[str, Mapping[str, Any]]
    narrowed: frozenset[str]
    encoders: tuple[str, ...]
    poolings: tuple[str | None, ...]
    normalizations: tuple[str, ...]

    def suggest(self, trial: Trial) -> Candidate:
        """Let a trial choose; one that is marked as `DEFAULT` keeps the defaults of its head."""
        head = trial.suggest_categorical("head", list(self.heads))
        subset = trial.suggest_categorical("encoders", list(self._subsets))
        pooling = trial.suggest_categorical("pooling", list(self.poolings))
        normalize = trial.suggest_categorical("normalize", list(self.normalizations))
        searched = {} if trial.user_attrs.get(DEFAULT) else self.heads[head]
        chosen = {name: _suggest(trial, f"{head}.{name}", allowed) for name, allowed in searched.items()}
        return Candidate(head, {**self.fixed[head], **chosen}, View(self._subsets[subset], pooling, normalize))

    def default(self, head: str) -> Candidate:
        """Return a head as it is without any search: on all encoders, nothing scaled where that is a choice."""
        return Candidate(head, self.fixed[head], View(self.encoders, self.poolings[0], self.normalizations[0]))

    def defaults(self) -> Iterator[dict[str, Any]]:
        """Yield, for every head that the file does not narrow, what a trial of its defaults chooses."""
        everything = " + ".join(self.encoders)
        for head in self.heads:
            if head not in self.narrowed:
                yield {
                    "head": head,
                    "encoders": everything,
                    "pooling": self.poolings[0],
                    "normalize": self.normalizations[0],
                }

    def grid(self) -> list[dict[str, Any]] | None:
        """Return what each trial of an exhaustive search chooses; None if the space is not finite, or too large.

        A head's points come in the order of `sklearn.model_selection.ParameterGrid`: the last parameter by
        name changes first.
        """
        if any(isinstance(allowed, Range) for space in self.heads.values() for allowed in space.values()):
            return None
        points: list[dict[str, Any]] = []
        for subset, pooling, normalize, head in product(self._subsets, self.poolings, self.normalizations, self.heads):
            view = {"head": head, "encoders": subset, "pooling": pooling, "normalize": normalize}
            names = sorted(self.heads[head])
            options = [_texts(self.heads[head][name]) for name in names]
            for values in product(*options):
                points.append({**view, **{f"{head}.{name}": value for name, value in zip(names, values, strict=True)}})
                if len(points) > MOST_POINTS:
                    return None
        return points

    def to_dict(self) -> dict[str, Any]:
        """Return the space as JSON-ready values."""
        return {
            "heads": {
                head: {name: _described(allowed) for name, allowed in space.items()}
                for head, space in self.heads.items()
            },
            "fixed": {head: {name: _plain(value) for name, value in each.items()} for head, each in self.fixed.items()},
            "encoders": list(self._subsets),
            "pooling": list(self.poolings),
            "normalize": list(self.normalizations),
        }

    @property
    def _subsets(self) -> dict[str, tuple[str, ...]]:
        """The subsets of the encoders by name, the largest first."""
        sizes = range(len(self.encoders), 0, -1)
        subsets = chain.from_iterable(combinations(self.encoders, size) for size in sizes)
        return {" + ".join(subset): subset for subset in subsets}


def read_space(
    heads: Sequence[str],
    kind: Kind,
    *,
    encoders: Sequence[str],
    poolings: Sequence[str | None],
    normalizations: Sequence[str],
    settings: Mapping[str, Any],
    file: Path | None = None,
) -> Space:
    """Return the space of some heads.

    Parameters
    ----------
    heads
        Their names.
    kind
        The task kind that they shall learn.
    encoders, poolings, normalizations
        What to choose the features from.
    settings
        Parameters that are not searched: ``head.name`` to value, or ``name`` to value for a single head.
    file
        A YAML file, see the module's text.

    Raises
    ------
    ConfigError
        If the file or the settings name what does not exist, or give it values that do not fit.
    HeadError
        If there is no such head, or it does not learn that kind.
    """
    if len(set(heads)) < len(heads):
        raise ConfigError(f"--head {' '.join(heads)}: a head is named twice")
    if len(encoders) > MOST_ENCODERS:
        raise ConfigError(f"{len(encoders)} encoders: expected at most {MOST_ENCODERS}, all subsets are searched")
    classes = {name: head_class(name, kind) for name in heads}
    fixed = _fixed(settings, classes)
    given = {} if file is None else _read_file(file, classes)
    spaces: dict[str, SearchSpace] = {}
    for name, made in classes.items():
        twice = given.get(name, {}).keys() & fixed[name].keys()
        if twice:
            raise ConfigError(f"{file}: {name}.{min(twice)} is searched, and --set gives it one value; choose either")
        own = given[name] if name in given else made.search_space()
        spaces[name] = {key: allowed for key, allowed in own.items() if key not in fixed[name]}
    return Space(
        heads=spaces,
        fixed=fixed,
        narrowed=frozenset(given),
        encoders=tuple(encoders),
        poolings=tuple(poolings),
        normalizations=tuple(normalizations),
    )


def _fixed(settings: Mapping[str, Any], classes: Mapping[str, type]) -> dict[str, dict[str, Any]]:
    """Return the settings of each head, parsed."""
    fixed: dict[str, dict[str, Any]] = {name: {} for name in classes}
    for key, value in settings.items():
        head, dot, name = key.partition(".")
        if not dot:
            if len(classes) > 1:
                raise ConfigError(
                    f"--set {key}: there are several heads, say which: {', '.join(_dotted(key, classes))}"
                )
            head, name = next(iter(classes)), key
        elif head not in classes:
            raise ConfigError(f"--set {key}: {head!r} is no --head; {did_you_mean(head, classes)}")
        try:
            fixed[head] |= parse_params(classes[head], {name: value})
        except HeadError as error:
            raise ConfigError(f"--set {key}: {error}") from error
    return fixed


def _dotted(key: str, heads: Mapping[str, type]) -> list[str]:
    return [f"{head}.{key}" for head in heads]


def _read_file(path: Path, classes: Mapping[str, type]) -> dict[str, SearchSpace]:
    spaces: dict[str, SearchSpace] = {}
    for head, params in read_yaml(path).items():
        if head not in classes:
            raise ConfigError(f"{path}: {head!r} is no --head; {did_you_mean(head, classes)}")
        if not isinstance(params, dict):
            raise ConfigError(f"{path}: {head}: expected parameters and their values, found {params!r}")
        spaces[head] = {str(name): _allowed(path, classes[head], str(name), value) for name, value in params.items()}
    return spaces


def _allowed(path: Path, head: type, name: str, value: Any) -> Range | Choice:
    """Return what a line of the file allows, each value parsed as the parameter it is for."""
    where = f"{path}: {getattr(head, 'name', head.__name__)}.{name}"
    try:
        if not isinstance(value, dict):
            options = value if isinstance(value, list) else [value]
            if not options:
                raise ConfigError(f"{where}: expected at least one value, found an empty list")
            # A list within the list is a tuple, such as widths.
            listed = [tuple(option) if isinstance(option, list) else option for option in options]
            return Choice(tuple(parse_params(head, {name: option})[name] for option in listed))
        unknown = [key for key in value if key not in _RANGE_KEYS]
        if unknown:
            raise ConfigError(f"{where}: unknown key {unknown[0]!r}; {did_you_mean(str(unknown[0]), _RANGE_KEYS)}")
        missing = [key for key in ("low", "high") if key not in value]
        if missing:
            raise ConfigError(f"{where}: {missing[0]!r} is missing; a range is {{low:, high:, log:}}")
        low, high = (parse_params(head, {name: value[key]})[name] for key in ("low", "high"))
    except HeadError as error:
        raise ConfigError(f"{path}: {error}") from error
    log = value.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}: log is true or false, found {log!r}")
    if any(isinstance(bound, bool) or not isinstance(bound, (int, float)) for bound in (low, high)):
        raise ConfigError(f"{where}: a range needs numbers, found {value['low']!r} and {value['high']!r}; use a list")
    if low > high or (log and low <= 0):
        expected = "0 < low <= high with log" if log else "low <= high"
        raise ConfigError(f"{where}: expected {expected}, found low {low!r} and high {high!r}")
    return Range(low, high, log)


def _suggest(trial: Trial, name: str, allowed: Range | Choice) -> Any:
    if isinstance(allowed, Choice):
        texts = _texts(allowed)
        return allowed.options[texts.index(trial.suggest_categorical(name, texts))]
    if isinstance(allowed.low, int) and isinstance(allowed.high, int):
        return trial.suggest_int(name, allowed.low, allowed.high, log=allowed.log)
    return trial.suggest_float(name, allowed.low, allowed.high, log=allowed.log)


def _texts(allowed: Range | Choice) -> list[Any]:
    """Return options as a storage keeps them: a tuple as text."""
    assert isinstance(allowed, Choice)  # a grid has no ranges
    return [_plain(option) for option in allowed.options]


def _plain(value: Any) -> Any:
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def _described(allowed: Range | Choice) -> Any:
    if isinstance(allowed, Choice):
        return _texts(allowed)
    return {"low": allowed.low, "high": allowed.high, "log": allowed.log}
