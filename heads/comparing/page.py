"""The page of a comparison: one HTML file beside the runs it links to."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from data.files import whole_text_file
from heads.comparing.compared import Comparison
from heads.comparing.plots import few_shot, forest
from heads.comparing.ranks import MeanRank, common_blocks, ranks_of
from heads.comparing.standings import ALPHA, FEW_GROUPS, Contrast, Entry, Standing
from heads.comparing.suite import CONTROLS, PRIOR
from heads.evaluation.bootstrap import format_estimate
from heads.evaluation.metrics import LOWER_IS_BETTER
from heads.pages.page import Content, Html, document, element, join, picture, table
from heads.pages.sections import SPLIT_NAMES, cell, metric_name
from heads.record import RunRecord

TESTS = {"bootstrap": "Bootstrap", "delong": "DeLong", "mcnemar": "McNemar"}
PLOTS = "plots"


def write_page(result: Comparison, command: str) -> Path:
    """Write ``report.html`` and its plots into the comparison's directory.

    Raises
    ------
    OSError
        If they cannot be written.
    """
    folder = result.out / PLOTS
    folder.mkdir(exist_ok=True)
    n = sum(len(standing.entries) for standing in result.standings)
    title = f"{n} cells compared on {', '.join(standing.name for standing in result.standings)}"
    body = [element("h1", title), element("p", _lead(result), class_="lead"), _ranks_section(result.ranks)]
    for number, standing in enumerate(result.standings, start=1):
        body += _data_section(result, standing, f"data-{number}", folder)
    body.append(_reproduction(result, command))
    with whole_text_file(result.out / "report.html") as file:
        file.write(document(title, join(body)))
    return result.out / "report.html"


def _lead(result: Comparison) -> str:
    config = result.suite.config
    folds = {standing.entries[0].cell.config.folds for standing in result.standings}
    how = f"{'/'.join(map(str, sorted(folds)))}-fold cross-validation in groups"
    times = f", {config.repeats} times on other folds" if config.repeats > 1 else ""
    where = {"cv": "out-of-fold predictions", "val": "the validation split", "test": "the test split"}[config.judge]
    return (
        f"Every cell of a data set was fitted and judged on the same samples and folds: {how}{times}. "
        f"Numbers are of {where}; each links to the run it comes from."
    )


def _data_section(result: Comparison, standing: Standing, anchor: str, folder: Path) -> list[Html]:
    counted = len(standing.rows)
    groups = len({*standing.data.groups[standing.rows].tolist()})
    where = SPLIT_NAMES[standing.judge].lower()
    encoders = sorted({entry.cell.encoder for entry in standing.entries if entry.cell.encoder})
    lead = (
        f"{', '.join(standing.task.targets)}: {standing.task.kind}, judged by {where} on {counted:,} samples of "
        f"{groups:,} groups; features of {', '.join(encoders)}."
    )
    return [
        element("h2", standing.name, id=anchor),
        element("p", lead, class_="lead"),
        _warnings(standing, groups),
        _table(result, standing),
        _forest(standing, folder / f"{anchor}-forest.png"),
        _controls(standing),
        _tests(standing),
        _few_shot(result, standing, folder / f"{anchor}-few-shot.png"),
    ]


def _warnings(standing: Standing, groups: int) -> Html:
    remarks: list[Content] = [
        f"{_title(each.head, each.encoder)} could not be fitted: {each.reason}" for each in standing.failed
    ]
    reasons: dict[str, list[str]] = {}
    for each in standing.omitted:
        reasons.setdefault(each.reason, []).append(_title(each.head, each.encoder))
    remarks += [f"Not in the table: {', '.join(titles)}: {reason}." for reason, titles in reasons.items()]
    remarks += standing.remarks
    if groups < len(standing.rows):
        remarks.append(
            f"{len(standing.rows):,} samples are of {groups:,} groups. DeLong's and McNemar's tests take samples as "
            "independent, so their p-values are too small where many share a group; the paired bootstrap over groups "
            "is the one to trust."
        )
    if groups < FEW_GROUPS:
        remarks.append(f"There are only {groups} groups to resample: intervals are likely too narrow.")
    # The same remark in every run is said once.
    runs = [set(entry.records[0].warnings) for entry in standing.entries if entry.contends]
    known = {str(remark) for remark in remarks}
    remarks += sorted(set.intersection(*runs) - known) if runs else []
    if not remarks:
        return Html("")
    items = element("ul", *(element("li", remark) for remark in remarks))
    return element("section", element("strong", "Read this first"), items, class_="warnings", aria_label="Warnings")


def _table(result: Comparison, standing: Standing) -> Html:
    ordered, first, name_of = standing.ordered(), standing.names[0], _namer(standing)
    marks = {name: (standing.best(name), standing.level(name)) for name in standing.names}
    contenders = [entry for entry in ordered if entry.contends]
    values = [entry.metrics[first]["value"] for entry in contenders]
    found = ranks_of(
        [float("nan") if value is None else value for value in values], lower_is_better=first in LOWER_IS_BETTER
    )
    ranks = {entry: f"{rank:g}" for entry, rank in zip(contenders, found, strict=True)}
    rows: list[list[Content]] = [
        [
            name_of(entry) + (" (baseline)" if entry.cell.baseline else ""),
            ranks.get(entry, "–"),
            *(_marked(result, entry, name, *marks[name]) for name in standing.names),
            f"{entry.n_parameters:,}",
            f"{entry.fit_seconds:.2f}",
            *([_links(result, entry)] if len(entry.runs) > 1 else []),
        ]
        for entry in ordered
    ]
    head = ["", "Rank", *map(metric_name, standing.names), "Parameters", "Fits, s"]
    head += ["Runs"] if len(ordered[0].runs) > 1 else []
    drawn = ordered[0].cell.config
    caption = (
        f"Best {metric_name(first)} first. In brackets: 95 % percentile interval over {drawn.bootstrap:,} resamples of "
        f"groups. Bold: the best of a column; ≈: not told from the best at 5 % by the paired bootstrap, after "
        f"Holm's adjustment for all pairs. Fits, s: wall time of all fits of one run. The prior answers the class "
        f"shares of each fold's training rows, which differ a little by fold: its out-of-fold ROC AUC is 0.5 or less."
    )
    return table(head, rows, label=f"Cells compared on {standing.name}", caption=caption)


def _marked(result: Comparison, entry: Entry, metric: str, best: Entry | None, level: set[Entry]) -> Content:
    """Return a number that links to its run, bold where it is the best, marked where it may be."""
    value, _, interval = format_estimate(entry.metrics[metric]).partition(" ")
    shown = join([_link(result, entry.runs[0], value), element("span", f" {interval}", class_="ci")])
    if entry is best:
        return element("span", shown, class_="best")
    return join(["≈ ", shown]) if entry in level else shown


def _forest(standing: Standing, path: Path) -> Html:
    first, ordered, name_of = standing.names[0], standing.ordered(), _namer(standing)
    prior = next((entry for entry in ordered if entry.cell.config.head == PRIOR), None)
    best = standing.best(first)
    level = {name_of(entry) for entry in standing.level(first) | ({best} if best else set())}
    names = {name_of(entry): entry.metrics[first] for entry in ordered if entry.contends}
    chance = prior.metrics[first]["value"] if prior else None
    forest(path, names, metric_name(first), level=level, chance=chance)
    alt = f"{metric_name(first)} of every cell with its 95 % interval"
    note = "Blue: the best, and what cannot be told from it."
    return join(
        [element("div", element("figure", picture(path, alt=alt)), class_="plots"), element("p", note, class_="note")]
    )


def _controls(standing: Standing) -> Html:
    """Return cells that differ in nothing but what their prompts say, side by side."""
    families: dict[str, dict[str, Entry]] = {}
    for entry in standing.entries:
        if entry.cell.config.prompt_encoder is not None:
            families.setdefault(entry.cell.family, {})[entry.cell.config.prompt_control] = entry
    first, name_of = standing.names[0], _namer(standing)
    rows: list[list[Content]] = []
    for family in families.values():
        for control in CONTROLS:
            if "none" not in family or control not in family:
                continue
            real, other = family["none"], family[control]
            difference, p = _difference(standing, real, other, first)
            rows.append([name_of(real), control, cell(real.metrics[first]), cell(other.metrics[first]), difference, p])
    if not rows:
        return Html("")
    head = ["", "Control", "Score", "Control's score", "Difference", "p, Holm"]
    caption = (
        f"{metric_name(first)}. Prompts carry something only where they are clearly better than both controls: prompts "
        f"of zeros, and prompts of other classes. p: paired bootstrap, after Holm's adjustment for all controls."
    )
    return join([element("h3", "Controls"), table(head, rows, label="Controls of the prompts", caption=caption)])


def _difference(standing: Standing, real: Entry, control: Entry, metric: str) -> tuple[Content, Content]:
    """Return the difference of a head and its control with its interval, and the adjusted p-value."""
    test = next(
        test
        for test in standing.tests
        if (test.test, test.metric) == ("bootstrap", metric) and {test.a, test.b} == {real, control}
    )
    ends = (test.low, test.high) if test.a is real else (-test.high, -test.low)
    return _signed(test.difference if test.a is real else -test.difference, *ends), _significant(test)


def _tests(standing: Standing) -> Html:
    """Return the tests against the best, and all tests folded away."""
    if not standing.tests:
        return Html("")
    first = standing.names[0]
    best, name_of = standing.best(first), _namer(standing)
    against = [
        test for test in standing.tests if best in (test.a, test.b) and (test.metric == first or test.test == "mcnemar")
    ]
    head = ["", "Test", "Metric", "Difference", "p", "p, Holm"]
    caption = (
        "Differences are first less second, with 95 % intervals. p, Holm: adjusted for all pairs of this data set with "
        "the same test and metric; heads with their controls are a family of their own. The bootstrap is paired, and "
        "resamples groups for all repeats at once. DeLong and McNemar (mid-p) are of the first repeat and take samples "
        "as independent."
    )
    parts = [
        element("h3", "Tests against the best"),
        table(head, (_test_row(test, name_of) for test in against), label="Tests against the best", caption=caption),
    ]
    if len(standing.tests) > len(against):
        every = table(head, (_test_row(test, name_of) for test in standing.tests), label="All tests")
        parts.append(element("details", element("summary", f"All {len(standing.tests)} tests"), every))
    return join(parts)


def _test_row(test: Contrast, name_of: Callable[[Entry], str]) -> list[Content]:
    metric, label = (test.metric.split("[")[0], test.metric.partition("[")[2].rstrip("]"))
    return [
        f"{name_of(test.a)} − {name_of(test.b)}",
        TESTS[test.test],
        metric_name(metric) + (f", {label}" if label else ""),
        _signed(test.difference, test.low, test.high),
        _p(test.p),
        _significant(test),
    ]


def _signed(difference: float, low: float, high: float) -> Content:
    """Return a difference with its interval, as far as they are defined."""
    if np.isnan(difference):
        return "–"
    interval = "" if np.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
    return join([f"{difference:+.3f}", element("span", interval, class_="ci")])


def _significant(test: Contrast) -> Content:
    """Return the adjusted p-value, bold where it is small."""
    p = _p(test.p_holm)
    return element("span", p, class_="best") if test.p_holm < ALPHA else p


def _few_shot(result: Comparison, standing: Standing, path: Path) -> Html:
    if standing.name not in result.courses:
        return Html("")
    name_of = _namer(standing)
    curves = {name_of(entry): result.curves[entry] for entry in standing.ordered() if entry in result.curves}
    parts = [element("h3", "Few samples")]
    if any(point.value is not None for points in curves.values() for point in points):
        metric = metric_name(next(iter(curves.values()))[0].metric)
        few_shot(path, curves, metric)
        alt = f"{metric} over samples per class, one curve per cell"
        parts.append(element("div", element("figure", picture(path, alt=alt)), class_="plots"))
    parts.append(element("p", result.courses[standing.name], class_="note"))
    failed = {f"{name}: {point.reason}" for name, points in curves.items() for point in points if point.value is None}
    if failed:
        items = element("ul", *(element("li", reason) for reason in sorted(failed)))
        parts.append(element("details", element("summary", "Points without a value"), items))
    return join(parts)


def _ranks_section(ranks: Mapping[str, Sequence[MeanRank]]) -> Html:
    parts: list[Html] = []
    for who, found in ranks.items():
        if len(found) < 2 or len({block for each in found for block in each.ranks}) < 2:
            continue
        rows: list[list[Content]] = [[each.name, f"{each.mean:.2f}", str(len(each.ranks))] for each in found]
        caption = "" if common_blocks(found) else "Not all were ranked in the same blocks: their means do not compare."
        other = "encoder" if who == "head" else "head"
        title = f"Mean rank of each {who} over blocks of one data set and {other}"
        parts.append(table([who.capitalize(), "Mean rank", "Blocks"], rows, label=title, caption=f"{title}. {caption}"))
    return join([element("h3", "Ranks"), *parts]) if parts else Html("")


def _reproduction(result: Comparison, command: str) -> Html:
    config = yaml.safe_dump(result.suite.config.to_dict(), sort_keys=False, allow_unicode=True)
    record: RunRecord = result.standings[0].entries[0].records[0]
    return join(
        [
            element("h2", "How to reproduce"),
            element("pre", command, class_="command"),
            element("details", element("summary", "Configuration"), element("pre", config)),
            element("p", f"Frostline {record.frostline}, seed {result.suite.config.seed}.", class_="note"),
        ]
    )


def _link(result: Comparison, run: Path, content: Content) -> Html:
    return element("a", content, href=f"{Path(os.path.relpath(run, result.out)).as_posix()}/report.html")


def _links(result: Comparison, entry: Entry) -> Html:
    """Return links to the runs of all repeats."""
    return join(join([" ", _link(result, run, str(i))]) for i, run in enumerate(entry.runs, start=1))


def _namer(standing: Standing) -> Callable[[Entry], str]:
    """Return what names an entry: its head, and its encoder where there are several."""
    several = len({entry.cell.encoder for entry in standing.entries if entry.cell.encoder}) > 1
    return lambda entry: _title(entry.cell.head, entry.cell.encoder if several else "")


def _title(head: str, encoder: str) -> str:
    return f"{head} on {encoder}" if encoder else head


def _p(p: float) -> str:
    return "–" if p != p else "< 0.001" if p < 0.001 else f"{p:.3f}"
