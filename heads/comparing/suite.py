"""Suite: data sets x encoders x heads, from flags or a YAML file, as one configuration of `fit-head` per cell.

::

    store: ${FROSTLINE_STORE}          # any option of `fit-head` holds for all cells,
    repeats: 3                         # and so do those of `compare`
    datasets:
      brain_mri:                       # options here hold for the data set,
        manifest: ${FROSTLINE_DATASETS}/brain_mri/manifest.csv
        target: label
    encoders:
      - offline:efficientnet-lite0     # one set of features,
      - offline:mobilenet+offline:sat  # or several joined,
      - {name: unit length, encoder: offline:efficientnet-lite0, normalize: l2}
    heads:
      - linear
      - {label: wide mlp, head: mlp, set: {hidden: [512]}}

A data set may name ``encoders`` and ``heads`` of its own, and an encoder ``heads``. ``${NAME}`` is a variable
of the environment; paths are relative to the file's folder. Prompt options reach the heads that learn from
prompts, and each of these gets controls beside it: prompts of zeros, and prompts of other classes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from data.config import read_yaml
from data.errors import ConfigError, did_you_mean
from featurestore.encoder_ids import split_joined
from heads.catalog import head_classes, list_heads, takes_views
from heads.config import CompareConfig, FitConfig, PromptOptions

LISTS = ("datasets", "encoders", "heads")
SUFFIXES = (".yaml", ".yml")
OWN = frozenset(CompareConfig.model_fields) - frozenset(FitConfig.model_fields)
"""Options of the comparison as a whole."""
_PLACED = frozenset({"manifest", "encoder", "head", "out", "overwrite"})
"""Options that the lists of a suite, or the comparison, decide."""
PROMPTS = frozenset(PromptOptions.model_fields)
COMMON = (
    "manifest", "target", "kind", "positive", "delimiter", "id", "split", "group", "bag", "folds", "seed",
    "bootstrap", "min_positives", "per_label",
)  # fmt: skip
"""Options that cells must share to be judged on the same rows and folds."""
PRIOR, BASELINE = "prior", "zero_shot"
CONTROLS = ("zero", "shuffled")
Heads = list[tuple[str, dict[str, Any]]]
"""Heads by label, with their options."""
VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One head on one set of features of one data set.

    Attributes
    ----------
    data, encoder, head
        Their labels.
    config
        How it is fitted, with the first repeat's seed; ``out`` is the comparison's directory.
    baseline
        Whether it was added to measure the others by.
    control
        Whether it was added to show what the prompts of another cell are worth.
    """

    data: str
    encoder: str
    head: str
    config: FitConfig
    baseline: bool = False
    control: bool = False

    @property
    def title(self) -> str:
        """Head and encoder, as a person names them."""
        return self.head if not self.encoder else f"{self.head} on {self.encoder}"

    @property
    def family(self) -> str:
        """What it has in common with its controls: everything but what the prompts say."""
        return repr({name: value for name, value in self.config.to_dict().items() if name != "prompt_control"})


@dataclass(frozen=True, kw_only=True)
class Omission:
    """A cell that is not in the table, and why."""

    data: str
    encoder: str
    head: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Suite:
    """All that is to be compared.

    Attributes
    ----------
    config
        The comparison's options, those of the file included.
    cells
        In the order of data sets, encoders and heads.
    omitted
        Baselines that cannot be had.
    """

    config: CompareConfig
    cells: tuple[Cell, ...]
    omitted: tuple[Omission, ...] = ()

    def by_data(self) -> dict[str, list[Cell]]:
        """Return the cells of each data set."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            found.setdefault(cell.data, []).append(cell)
        return found


def read_suite(config: CompareConfig) -> Suite:
    """Return the cells that a configuration asks for.

    Raises
    ------
    ConfigError
        If the suite's file is wrong, a variable is not set, labels clash, or cells of one data set
        differ in what they must share.
    HeadError
        If there is no such head.
    """
    lists: dict[str, Any] = {}
    where = "frostline compare"
    if config.manifest.suffix.lower() in SUFFIXES:
        where = str(config.manifest)
        content = _expanded(read_yaml(config.manifest), where)
        lists = {name: content.pop(name) for name in LISTS if name in content}
        if "datasets" not in lists:
            raise ConfigError(f"{where}: expected the key 'datasets', a mapping from names to their options")
        given = {name: getattr(config, name) for name in config.model_fields_set}
        config = CompareConfig.build({**_rooted(content, config.manifest.parent), **given}, where=where)
    flags = {name: tuple(getattr(config, name)) for name in ("encoder", "head") if getattr(config, name)}
    lists = {
        "datasets": {_name_of(config.manifest): {"manifest": config.manifest}},
        "heads": ["linear"],
        **lists,
        **{name + "s": list(values) for name, values in flags.items()},
    }
    if "encoder" in flags or "head" in flags:
        lists["datasets"] = {
            name: {key: value for key, value in _mapping(entry, f"{where}: {name}").items() if key[:-1] not in flags}
            for name, entry in _mapping(lists["datasets"], f"{where}: datasets").items()
        }
    for_all = {
        name: getattr(config, name) for name in config.model_fields_set if name not in _PLACED and name not in OWN
    }
    made = list(_cells(lists, for_all, config, where))
    cells = tuple(entry for entry in made if isinstance(entry, Cell))
    _check(cells, where)
    if config.view is not None and all(cell.config.view is None for cell in cells):
        able = ", ".join(name for name in list_heads() if takes_views(name))
        raise ConfigError(f"{where}: view {config.view!r}: no head to compare learns from views; add one of: {able}")
    if config.judge == "test" and any(cell.config.sealed for cell in cells):
        raise ConfigError(f"{where}: --judge test scores the rows that --sealed leaves alone; leave one of them out")
    return Suite(config=config, cells=cells, omitted=tuple(entry for entry in made if isinstance(entry, Omission)))


def _cells(
    lists: Mapping[str, Any], for_all: Mapping[str, Any], config: CompareConfig, where: str
) -> Iterator[Cell | Omission]:
    root = config.manifest.parent
    for data, of_data in _mapping(lists["datasets"], f"{where}: datasets").items():
        at = f"{where}: {data}"
        options = dict(_mapping(of_data, at))
        chosen = {name: options.pop(name, lists.get(name)) for name in ("encoders", "heads")}
        if not chosen["encoders"]:
            raise ConfigError(f"{at}: no encoder is named; add --encoder, or the key 'encoders'")
        shared = {**for_all, **_options(options, root, at)}
        heads = _heads(chosen["heads"], root, at)
        encoders = [
            (*_encoder(entry, root, at), heads if config.head else _own_heads(entry, root, at) or heads)
            for entry in _entries(chosen["encoders"], f"{at}: encoders")
        ]
        place = {"out": config.out}
        # What the prior says does not depend on features: it has one row, whoever names it.
        priors = {head: of_head for *_, own in encoders for head, of_head in own if of_head["head"] == PRIOR}
        added = {} if config.no_baselines else {PRIOR: {"head": PRIOR}}
        for head, of_head in (priors or added).items():
            yield _cell(data, "", head, {**shared, **encoders[0][1], **of_head, **place}, at, baseline=not priors)
        for encoder, of_encoder, own in encoders:
            for head, of_head in own:
                if of_head["head"] != PRIOR:
                    values = {**shared, **of_encoder, **of_head, **place}
                    cell = _cell(data, encoder, head, values, at, explicit=of_head)
                    yield cell
                    if not config.no_controls:
                        yield from _controls(cell)
            if not config.no_baselines and all(of_head["head"] != BASELINE for _, of_head in own):
                yield _zero_shot(data, encoder, {**shared, **of_encoder, **place}, at)


def _cell(
    data: str,
    encoder: str,
    head: str,
    values: Mapping[str, Any],
    where: str,
    *,
    explicit: Mapping[str, Any] | None = None,
    baseline: bool = False,
) -> Cell:
    """Return a cell, without the options of others.

    Options of prompts and views that were not given to the head itself are left out where it learns nothing
    from these, and so are parameters of heads where it is a baseline.
    """
    classes = head_classes(values["head"])
    dropped: set[str] = set()
    if not any(made.needs_prompts or made.uses_prompts for made in classes):
        dropped |= PROMPTS - set(explicit or ())
    if not any(made.accepts_views for made in classes):
        dropped |= {"view"} - set(explicit or ())
    if baseline:
        dropped.add("set")
    kept = {name: value for name, value in values.items() if name not in dropped}
    config = FitConfig.build(kept, where=f"{where}, {head}")
    return Cell(data=data, encoder=encoder, head=head, config=config, baseline=baseline)


def _controls(cell: Cell) -> Iterator[Cell]:
    """Yield a cell that learns from prompts with prompts that say nothing, and that say something wrong."""
    learns = any(made.learns_from_rows for made in head_classes(cell.config.head))
    if not learns or cell.config.prompt_encoder is None or cell.config.prompt_control != "none":
        return
    for control in CONTROLS:
        config = cell.config.model_copy(update={"prompt_control": control})
        yield replace(cell, head=f"{cell.head}, {control} prompts", config=config, control=True)


def _zero_shot(data: str, encoder: str, values: Mapping[str, Any], where: str) -> Cell | Omission:
    if BASELINE not in list_heads() or not values.get("prompt_encoder"):
        return Omission(
            data=data, encoder=encoder, head=BASELINE, reason="there are no prompts to compare with; add prompt_encoder"
        )
    values = {**values, "head": BASELINE, "prompt_control": "none"}
    return _cell(data, encoder, BASELINE, values, where, baseline=True)


def _encoder(entry: Any, root: Path, where: str) -> tuple[str, dict[str, Any]]:
    """Return the label and the options of an encoder, or of several joined."""
    if isinstance(entry, str):
        return entry, {"encoder": split_joined(entry)}
    options = {key: value for key, value in entry.items() if key != "heads"}
    name = options.pop("name", None)
    encoder = options.pop("encoder", None)
    if not encoder:
        raise ConfigError(f"{where}: an encoder of the suite has no key 'encoder': {dict(entry)}")
    ids = split_joined(encoder) if isinstance(encoder, str) else tuple(encoder)
    return str(name or "+".join(ids)), {**_options(options, root, where), "encoder": ids}


def _own_heads(encoder: Any, root: Path, where: str) -> Heads:
    """Return the heads that an encoder of the suite names for itself."""
    return [] if isinstance(encoder, str) or "heads" not in encoder else _heads(encoder["heads"], root, where)


def _heads(entries: Any, root: Path, where: str) -> Heads:
    return [_head(entry, root, where) for entry in _entries(entries, f"{where}: heads")]


def _head(entry: Any, root: Path, where: str) -> tuple[str, dict[str, Any]]:
    """Return the label and the options of a head."""
    if isinstance(entry, str):
        return entry, {"head": entry}
    options = dict(entry)
    label, head = options.pop("label", None), options.pop("head", None)
    if not head:
        raise ConfigError(f"{where}: a head of the suite has no key 'head': {dict(entry)}")
    return str(label or head), {**_options(options, root, where), "head": str(head)}


def _options(values: Mapping[str, Any], root: Path, where: str) -> dict[str, Any]:
    """Return options of `fit-head`, refused where there is no such option or the place is wrong."""
    named = {key.replace("-", "_"): value for key, value in values.items()}
    allowed = (frozenset(FitConfig.model_fields) - _PLACED) | {"manifest"}
    for key in named:
        if key not in allowed:
            raise ConfigError(f"{where}: unknown key {key!r}; {did_you_mean(key, allowed)}")
    return _rooted(named, root)


def _rooted(values: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Return options whose relative paths are taken from a folder."""
    return {
        name: root / value if isinstance(value, (str, Path)) and _is_path(name.replace("-", "_")) else value
        for name, value in values.items()
    }


def _is_path(name: str) -> bool:
    field = CompareConfig.model_fields.get(name)
    return field is not None and (field.annotation is Path or Path in get_args(field.annotation))


def _expanded(value: Any, where: str) -> Any:
    """Return YAML content with the environment's variables in the place of ``${NAME}``."""
    if isinstance(value, dict):
        return {key: _expanded(each, where) for key, each in value.items()}
    if isinstance(value, list):
        return [_expanded(each, where) for each in value]
    return VARIABLE.sub(lambda found: _variable(found[1], where), value) if isinstance(value, str) else value


def _variable(name: str, where: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigError(f"{where}: ${{{name}}} is not set in the environment; run with {name}=<folder>")
    return value


def _check(cells: Sequence[Cell], where: str) -> None:
    """Refuse labels that clash, and cells that could not be judged on the same rows and folds."""
    seen: dict[tuple[str, str, str], Cell] = {}
    first: dict[str, Cell] = {}
    for cell in cells:
        key = (cell.data, cell.encoder, cell.head)
        if key in seen:
            raise ConfigError(f"{where}: {cell.data} has {cell.title!r} twice; give each a label (name) of its own")
        seen[key] = cell
        other = first.setdefault(cell.data, cell)
        for name in COMMON:
            if getattr(cell.config, name) != getattr(other.config, name):
                raise ConfigError(
                    f"{where}: {cell.data}: {name} is {getattr(other.config, name)!r} for {other.title!r} but "
                    f"{getattr(cell.config, name)!r} for {cell.title!r}; cells are compared on the same rows "
                    f"and folds, so set it for the data set"
                )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping, found {value!r}")
    return {str(key): each for key, each in value.items()}


def _entries(value: Any, where: str) -> list[Any]:
    """Return a list of names and mappings."""
    entries = value if isinstance(value, list) else [value]
    for entry in entries:
        if not isinstance(entry, (str, Mapping)):
            raise ConfigError(f"{where}: expected names or mappings, found {entry!r}")
    return entries


def _name_of(manifest: Path) -> str:
    return manifest.resolve().parent.name if manifest.stem == "manifest" else manifest.stem
