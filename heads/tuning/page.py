"""The page of a study: what was found, what it is worth beside the defaults, and how the search went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.task import Task
from heads.evaluation.bootstrap import Estimate, format_estimate, format_number
from heads.pages.page import Content, Html, definitions, document, element, join, picture, table
from heads.pages.sections import SPLIT_NAMES, cell, metric_name
from heads.tuning.record import TuneRecord
from heads.tuning.verdict import VERDICTS

SHOWN = 15
"""Trials in the table, the best first."""


def verdict_sentence(record: TuneRecord) -> str:
    """Return what the final judgement says of the best head, in one sentence per default."""
    metric = metric_name(record.study["metric"])
    split = SPLIT_NAMES[record.judged].lower()
    head = record.best["head"]
    own = record.defaults[head]
    if "reason" in own:
        return f"The default {head} could not be fitted, so there is nothing to compare the best {head} with."
    if own["verdict"] == "same":
        return f"The study found nothing better than the default {head} on the inner folds, so the best is the default."
    sentence = (
        f"On the untouched {split} rows the tuned {head} {VERDICTS[own['verdict']]}: difference in {metric} "
        f"{_signed(own['difference'])}."
    )
    others = [name for name, found in record.defaults.items() if name != head and found.get("verdict") == "better"]
    if others:
        sentence += f" It beats the default {', '.join(others)}."
    return sentence


def page(record: TuneRecord, trials: Mapping[str, Sequence[str]], folder: Path) -> str:
    """Return the page.

    Parameters
    ----------
    record
        The study's record.
    trials
        Its trials, as `heads.tuning.trials.table_of` returns them.
    folder
        The directory that holds the plots.
    """
    title = f"{', '.join(Task.from_dict(record.task).targets)}: a study of {len(record.defaults)} heads"
    body = join(
        [
            element("h1", title),
            element("p", _lead(record), class_="lead"),
            element("p", element("strong", verdict_sentence(record))),
            _remarks(record),
            _judgement(record),
            _best(record),
            _plots(folder),
            _trials(record, trials),
            _failures(record),
            _reproduction(record),
        ]
    )
    return document(title, body)


def _lead(record: TuneRecord) -> str:
    study = record.study
    members = ""
    if study["averaging"]:
        members = (
            f" In trials, {' and '.join(study['averaging'])} had {study['members']} member; "
            f"the heads of the final judgement have all of theirs."
        )
    return (
        f"{study['trials']} configurations were tried ({study['complete']} on all {study['folds']} inner folds, "
        f"{study['pruned']} dropped on the way, {study['failed']} failed), chosen by {study['sampler']} for "
        f"{metric_name(study['metric'])}. The {SPLIT_NAMES[record.judged].lower()} rows took no part in it.{members}"
    )


def _remarks(record: TuneRecord) -> Html:
    if not record.warnings:
        return Html("")
    items = element("ul", *(element("li", remark) for remark in record.warnings))
    return element("section", element("strong", "Read this first"), items, class_="warnings", aria_label="Warnings")


def _judgement(record: TuneRecord) -> Html:
    metric, split = metric_name(record.study["metric"]), SPLIT_NAMES[record.judged].lower()
    rows: list[Sequence[Content]] = [
        [
            element("a", f"best: {record.best['head']}", href="best/report.html"),
            cell(record.best["estimate"]),
            format_number(record.best["value"]),
            "",
            "",
            "",
        ]
    ]
    for head, found in record.defaults.items():
        if "reason" in found:
            rows.append([f"default {head}", found["reason"], "", "", "", ""])
            continue
        p = found["difference"]["p"]
        rows.append(
            [
                f"default {head}",
                cell(found["estimate"]),
                "–" if found["value"] is None else format_number(found["value"]),
                _difference(found["difference"]),
                "–" if p is None else format_number(p),
                {"same": "the same", "unknown": "unknown"}.get(found["verdict"], found["verdict"]),
            ]
        )
    head_row = ["", f"{metric}, {split}", f"{metric}, inner folds", "Best minus default", "p", "Best is"]
    caption = (
        "In brackets: 95 % intervals; whole groups are resampled, for differences in pairs. The best was chosen by the "
        "inner folds, whose value flatters it. p-values are not corrected for the number of defaults."
    )
    return join(
        [element("h3", "Beside the defaults"), table(head_row, rows, label="Best and defaults", caption=caption)]
    )


def _best(record: TuneRecord) -> Html:
    best = record.best
    params = ", ".join(f"{name} = {_short(value)}" for name, value in best["params"].items()) or "the defaults"
    items: list[tuple[str, Content]] = [
        ("Head", best["head"]),
        ("Parameters", params),
        ("Encoders", " + ".join(best["encoders"])),
        ("Normalisation", best["normalize"]),
        ("Trial", str(best["trial"])),
        ("Inner folds", ", ".join(format_number(score) for score in best["scores"])),
    ]
    if best["pooling"] is not None:
        items.insert(3, ("Pooling", best["pooling"]))
    fed_back = element("pre", "frostline fit-head --config best.yaml --out RUN", class_="command")
    return join([element("h3", "Best configuration"), definitions(items), fed_back])


def _plots(folder: Path) -> Html:
    shown = {
        "history.png": "Optimisation history: the value of each trial, and the best so far",
        "importance.png": "Importance of each parameter: its share of the variance of the trials' values",
    }
    figures = [
        element("figure", picture(folder / name, alt=alt)) for name, alt in shown.items() if (folder / name).is_file()
    ]
    note = "Importances count a dropped trial with the mean of the folds it reached; few trials make them rough."
    return join(
        [element("h3", "The search"), element("div", *figures, class_="plots"), element("p", note, class_="note")]
    )


def _trials(record: TuneRecord, trials: Mapping[str, Sequence[str]]) -> Html:
    sign = 1 if record.study["direction"] == "maximize" else -1
    whole = [i for i, state in enumerate(trials["state"]) if state == "complete"]
    order = sorted(whole, key=lambda i: -sign * float(trials["value"][i]))[:SHOWN]
    apart = {"trial", "state", "value", "folds", "default", "head", "reason", "notes"}
    rows = []
    for i in order:
        head = trials["head"][i]
        own = [name for name in trials if name not in apart and trials[name][i]]
        chosen = ", ".join(f"{name.removeprefix(f'{head}.')} = {_short(trials[name][i])}" for name in own)
        default = "default; " if trials["default"][i] == "true" else ""
        rows.append([f"{trials['trial'][i]}: {head}", format_number(float(trials["value"][i])), f"{default}{chosen}"])
    label = f"The best {len(rows)} trials"
    return join(
        [
            element("h3", label),
            table(["Trial", metric_name(record.study["metric"]), ""], rows, label=label, numeric=False),
        ]
    )


def _short(value: Any) -> Any:
    """Return a number with the digits that a person reads; best.yaml and trials.csv have all of them."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    return value if len(str(value)) < 7 else f"{number:.4g}"


def _failures(record: TuneRecord) -> Html:
    failures = record.study["failures"]
    if not failures:
        return Html("")
    rows = [[f"{each['trial']}: {each['head']}", each["reason"]] for each in failures]
    return join([element("h3", "Failed trials"), table(["Trial", "Reason"], rows, label="Failures", numeric=False)])


def _reproduction(record: TuneRecord) -> Html:
    space = yaml.safe_dump(record.space, sort_keys=False, allow_unicode=True)
    return join(
        [
            element("h3", "How to reproduce"),
            element("pre", record.command, class_="command"),
            element("details", element("summary", "Space"), element("pre", space)),
            definitions([("Seed", str(record.seed)), ("Run", record.created)]),
        ]
    )


def _difference(found: Mapping[str, Any]) -> Content:
    if found["low"] is None:
        return _sign(found["value"])
    return join(
        [_sign(found["value"]), element("span", f" [{_sign(found['low'])}, {_sign(found['high'])}]", class_="ci")]
    )


def _signed(found: Mapping[str, Any]) -> str:
    interval = "" if found["low"] is None else f" [{_sign(found['low'])}, {_sign(found['high'])}]"
    return f"{_sign(found['value'])}{interval}"


def _sign(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def text(record: TuneRecord) -> str:
    """Return the outcome for the terminal."""
    best: Estimate = record.best["estimate"]
    metric, split = metric_name(record.study["metric"]), SPLIT_NAMES[record.judged].lower()
    lines = [
        f"best of {record.study['trials']} trials ({record.study['failed']} failed): {record.best['head']} "
        f"{', '.join(f'{name}={value}' for name, value in record.best['params'].items())}".rstrip(),
        f"inner folds: {metric} {format_number(record.best['value'])}; {split}: {format_estimate(best)}",
        *(
            f"default {head}: " + (found["reason"] if "reason" in found else format_estimate(found["estimate"]))
            for head, found in record.defaults.items()
        ),
        verdict_sentence(record),
    ]
    return "\n".join(lines)
