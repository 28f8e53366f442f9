"""The sections of a run's page, each from its record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from data.task import Task
from heads.evaluation.bootstrap import Estimate, format_estimate
from heads.evaluation.metrics import HEADLINE, estimates
from heads.pages.gallery import Picture
from heads.pages.page import Content, Html, definitions, element, join, picture, table
from heads.record import SPLITS, RunRecord

SPLIT_NAMES = {"cv": "Cross-validation", "val": "Validation", "test": "Test"}
_ABBREVIATIONS = {
    "roc": "ROC", "auc": "AUC", "f1": "F1", "ppv": "PPV", "npv": "NPV", "mcc": "MCC", "ece": "ECE", "mae": "MAE",
    "mse": "MSE", "rmse": "RMSE", "r2": "R²", "r": "r", "cohen": "Cohen's", "mrr": "MRR",
    "map": "MAP", "bleu4": "BLEU-4", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L",
    "ndcg@1": "NDCG@1", "ndcg@5": "NDCG@5", "ndcg@10": "NDCG@10",
}  # fmt: skip
_KINDS = {
    "binary": "to tell {negative} from {positive}",
    "multiclass": "to tell {n} classes apart",
    "multilabel": "to find {n} labels",
    "regression": "to predict {targets}",
    "mixed": "{n} targets",
}
_FINDINGS = {
    "groups": "Groups in several splits",
    "identical": "Identical contents in several splits",
    "near": "Near-duplicates across splits",
    "conflicting": "Contents with conflicting labels",
}


def run_name(record: RunRecord) -> str:
    """Return head and encoders, such as ``linear on offline:minilm``."""
    return f"{record.head['name']} on {encoders_of(record)}"


def encoders_of(record: RunRecord) -> str:
    """Return the encoders, such as ``offline:minilm``."""
    return " + ".join(block["encoder"] for block in record.inputs)


def metric_name(metric: str) -> str:
    """Return a metric's name as a person writes it: ``macro_roc_auc`` is ``Macro ROC AUC``."""
    words = " ".join(_ABBREVIATIONS.get(word, word) for word in metric.split("_"))
    return words if metric in ("r2",) else words[0].upper() + words[1:]


def sentence(record: RunRecord) -> str:
    """Return what was done, in one sentence or two."""
    task, counts = Task.from_dict(record.task), record.counts
    negative, positive = (task.classes[0], task.classes[-1]) if task.classes else ("", "")
    aim = _KINDS[task.kind].format(
        negative=negative, positive=positive, n=len(task.classes) or len(task.targets), targets=", ".join(task.targets)
    )
    dims = sum(block["dim"] for block in record.inputs)
    if "folds" not in record.config and record.prompts:
        return _sentence_without_training(record, aim, dims)
    train = counts["splits"].get("train", counts)
    judged = [
        f"{counts['splits'][split]['samples']:,} {SPLIT_NAMES[split].lower()} samples"
        for split in ("val", "test")
        if split in record.metrics and split in counts["splits"]
    ]
    folds = record.config.get("folds")
    how = f"{folds}-fold cross-validation" if folds else "cross-validation"
    judged_on = f"{how} and {' and '.join(judged)} it never saw" if judged else how
    refit = ""
    if "val" in record.metrics and record.config.get("refit") == "train+val":
        refit = (
            " The kept head was fitted on the validation samples as well and judged the test samples only; "
            "the validation samples were judged by a head that had not seen them."
        )
    return (
        f"A {record.head['name']} head learned {aim} from {dims:,} frozen features of "
        f"{' and '.join(block['encoder'] for block in record.inputs)}, on {train['samples']:,} samples"
        f" of {train['groups']:,} groups. It was judged by {judged_on}.{refit}"
    )


def _sentence_without_training(record: RunRecord, aim: str, dims: int) -> str:
    """Return what was done where no sample was learned from."""
    judged = " and ".join(
        f"{record.counts['splits'][split]['samples']:,} {SPLIT_NAMES[split].lower()} samples"
        for split in SPLITS
        if split in record.metrics
    )
    return (
        f"A {record.head['name']} head was asked {aim} by the prompts of the classes in {dims:,} frozen features of "
        f"{' and '.join(block['encoder'] for block in record.inputs)}. It learned from no sample and was judged by "
        f"{judged}."
    )


def warnings_of(record: RunRecord) -> Html:
    """Return a box with all that a reader must know before believing the numbers; nothing if there is nothing."""
    remarks = list(record.warnings)
    dropped = record.counts["dropped"]
    if dropped:
        reasons = "; ".join(f"{reason}: {entry['count']:,}" for reason, entry in dropped.items())
        total = sum(entry["count"] for entry in dropped.values())
        remarks.append(f"{total:,} samples were left out ({reasons}).")
    if set(record.metrics) == {"cv"} and "test" not in record.counts["splits"]:
        remarks.append(
            "There is no test split: cross-validation is the only judge, so choose nothing by it and report it."
        )
    for split, metrics in record.metrics.items():
        remarks += _undefined(split, metrics)
        left_out = metrics.get("left_out", {})
        if left_out:
            names = ", ".join(f"{label} ({reason})" for label, reason in left_out.items())
            remarks.append(f"{SPLIT_NAMES.get(split, split)}: macro averages leave out {names}.")
    remarks += [
        f"Threshold of {name}: {threshold['reason']}."
        for name, threshold in record.thresholds.items()
        if threshold.get("reason")
    ]
    if not remarks:
        return Html("")
    return element(
        "section",
        element("strong", "Read this first"),
        element("ul", *(element("li", remark) for remark in remarks)),
        class_="warnings",
        aria_label="Warnings",
    )


def _undefined(split: str, metrics: Mapping[str, Any]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for name, estimate in estimates(metrics).items():
        if "reason" in estimate:
            by_reason.setdefault(estimate["reason"], []).append(metric_name(name))
    where = SPLIT_NAMES.get(split, split)
    return [f"{where}: {', '.join(names)} – {reason}." for reason, names in by_reason.items()]


def metrics_section(record: RunRecord) -> Html:
    """Return the headline metrics of every split, and all metrics folded away."""
    splits = [split for split in SPLITS if split in record.metrics]
    found = {split: estimates(record.metrics[split]) for split in splits}
    every = list(dict.fromkeys(name for split in splits for name in found[split]))
    headline = [name for name in HEADLINE[Task.from_dict(record.task).kind] if name in every]
    head = ["", *(SPLIT_NAMES[split] for split in splits)]

    def rows(names: Sequence[str]) -> list[list[Content]]:
        return [[metric_name(name), *(cell(found[split].get(name)) for split in splits)] for name in names]

    drawn = record.metrics[record.headline_split]["bootstrap"]
    unit = "groups" if drawn["unit"] == "group" else "samples"
    caption = f"In brackets: {drawn['level']:.0%} percentile interval, {drawn['n_boot']:,} resamples of {unit}."
    return join(
        [
            element("h3", "Results"),
            table(head, rows(headline), label="Headline metrics per split", caption=caption),
            element(
                "details",
                element("summary", f"All {len(every)} metrics"),
                table(head, rows(every), label="All metrics per split"),
            ),
        ]
    )


def cell(estimate: Estimate | None) -> Content:
    """Return an estimate for a table: the value and, softer, its interval."""
    if estimate is None or estimate["value"] is None:
        return "–"
    value, _, interval = format_estimate(estimate).partition(" ")
    return join([value, element("span", f" {interval}", class_="ci")]) if interval else value


def plots_section(record: RunRecord, pictures: Mapping[str, Sequence[tuple[Picture, Path]]]) -> Html:
    """Return the plots of the headline split and the learning curves; those of other splits folded away."""
    parts: list[Html] = []
    for split, found in pictures.items():
        figures = [element("figure", picture(path, alt=_alt(record, split, shown))) for shown, path in found]
        if not figures:
            continue
        grid = element("div", *figures, class_="plots")
        if split in (record.headline_split, ""):
            parts.append(grid)
        else:
            parts.append(element("details", element("summary", f"Plots of {SPLIT_NAMES[split].lower()}"), grid))
    if not parts:
        return Html("")
    return join([element("h3", f"Plots: {SPLIT_NAMES.get(record.headline_split, '').lower()}"), *parts])


def _alt(record: RunRecord, split: str, shown: Picture) -> str:
    where = f", {SPLIT_NAMES[split].lower()}" if split else ""
    number = record.metrics.get(split, {}).get(
        {"roc": "roc_auc", "precision-recall": "average_precision"}.get(shown.stem, "")
    )
    value = f"; {format_estimate(number)}" if number else ""
    return f"{shown.title}{where}: {shown.shows}{value}."


def per_class_section(record: RunRecord) -> Html:
    """Return the metrics of each class, label or target on the headline split."""
    metrics = record.metrics[record.headline_split]
    if "per_head" in metrics:
        return _per_head(record, metrics["per_head"])
    for key, noun in (("per_class", "class"), ("per_label", "label"), ("per_target", "target")):
        if key in metrics:
            each = metrics[key]
            names = list(estimates(next(iter(each.values()))))
            counts = [count for count in ("support", "n_observed") if count in next(iter(each.values()))]
            head = [noun.capitalize(), *(_COUNT_NAMES[count] for count in counts), *map(metric_name, names)]
            rows = [
                [name, *(f"{found[count]:,}" for count in counts), *(cell(found[metric]) for metric in names)]
                for name, found in each.items()
            ]
            where = SPLIT_NAMES.get(record.headline_split, record.headline_split).lower()
            return join([element("h3", f"Per {noun}: {where}"), table(head, rows, label=f"Metrics per {noun}")])
    return Html("")


def _per_head(record: RunRecord, each: Mapping[str, Any]) -> Html:
    """Return the headline metrics of each target of a mixed task, a table per kind."""
    where = SPLIT_NAMES.get(record.headline_split, record.headline_split).lower()
    parts = [element("h3", f"Per target: {where}")]
    for kind in dict.fromkeys(found["kind"] for found in each.values()):
        names = HEADLINE[kind]
        rows: list[list[Content]] = [
            [name, f"{found['n']:,}", *(cell(found.get(metric)) for metric in names)]
            for name, found in each.items()
            if found["kind"] == kind
        ]
        parts.append(
            table([kind.capitalize(), "Known", *map(metric_name, names)], rows, label=f"Metrics per {kind} target")
        )
    return join(parts)


_COUNT_NAMES = {"support": "Support", "n_observed": "Known"}


def data_section(record: RunRecord) -> Html:
    """Return samples, groups and class balance per split, and what the leakage audit found."""
    splits, task = record.counts["splits"], Task.from_dict(record.task)
    names = list(splits)
    rows: list[list[Content]] = [
        ["Samples", *(f"{splits[name]['samples']:,}" for name in names)],
        ["Groups", *(f"{splits[name]['groups']:,}" for name in names)],
    ]
    classes = next(iter(splits.values()))["classes"] if splits else ()
    rows += [[_class_row(task, name), *(_share(splits[split], name) for split in names)] for name in classes]
    parts = [
        element("h3", "Data"),
        table(["", *(SPLIT_NAMES.get(name, name.capitalize()) for name in names)], rows, label="Samples per split"),
    ]
    if bags := record.counts.get("bags"):
        sizes = f"{bags['fewest']:,}" if bags["fewest"] == bags["most"] else f"{bags['fewest']:,} to {bags['most']:,}"
        items: list[tuple[str, Content]] = [
            ("A sample is", f"a bag of {sizes} rows, named by column {bags['column']}; {bags['rows']:,} rows in all")
        ]
        if views := record.counts.get("views"):
            shown = ", ".join(f"{name}: {count:,}" for name, count in views["rows"].items())
            items.append(("Views", f"column {views['column']}: {shown}"))
        parts.append(definitions(items))
    findings = [(title, record.leakage[key]) for key, title in _FINDINGS.items() if key in record.leakage]
    shared = [(title, _finding(found)) for title, found in findings if found["count"]]
    if shared:
        parts.append(definitions(shared))
    elif record.leakage.get("clean"):
        parts.append(element("p", "No group, content or near-duplicate is shared between splits.", class_="note"))
    return join(parts)


def _class_row(task: Task, name: str) -> str:
    return f"with {name}" if task.kind in ("regression", "mixed") else name


def _share(split: Mapping[str, Any], name: str) -> Html:
    n = split["classes"].get(name, 0)
    return join([f"{n:,} ", element("span", f"{n / max(split['samples'], 1):.0%}", class_="ci")])


def _finding(found: Mapping[str, Any]) -> str:
    examples = ", ".join(map(str, found.get("examples", ())[:3]))
    return f"{found['count']:,}" + (f" (e.g. {examples})" if examples else "")


def head_section(record: RunRecord) -> Html:
    """Return the features and the head."""
    items: list[tuple[str, Content]] = []
    for block in record.inputs:
        described = (
            f"{block['dim']:,} features, {block['pooling']} pooling, {block['precision']}, stored as {block['dtype']}"
        )
        mark = element("code", block["fingerprint"][:12], title=block["fingerprint"])
        items.append((block["encoder"], join([f"{block['modality']}: {described}; fingerprint ", mark])))
    if record.prompts:
        items.append(("Prompts", _prompts(record.prompts)))
    params = ", ".join(f"{name} = {value}" for name, value in record.head["params"].items()) or "none"
    items += [("Head", f"{record.head['name']}, version {record.head['version']}"), ("Parameters", params)]
    if chosen := record.head.get("chosen"):
        items.append(("Chosen in the fit", ", ".join(f"{name} = {value}" for name, value in chosen.items())))
    return join([element("h3", "Features and head"), definitions(items)])


def _prompts(prompts: Mapping[str, Any]) -> Html:
    """Return what the classes' prompts are and how their vectors were made."""
    shown = [f"{name}: {'; '.join(texts)}" for name, texts in zip(prompts["classes"], prompts["positive"], strict=True)]
    count = sum(len(texts) for side in ("positive", "negative") for texts in prompts[side] or ())
    control = "" if prompts["control"] == "none" else f", as a control: {prompts['control']}"
    mark = element("code", prompts["fingerprint"][:12], title=prompts["fingerprint"])
    return join(
        [
            f"{count} texts by {prompts['encoder']['encoder']}, averaged: {prompts['average']}{control}; fingerprint ",
            mark,
            element("details", element("summary", "Texts"), element("ul", *(element("li", text) for text in shown))),
        ]
    )


def reproduction_section(record: RunRecord) -> Html:
    """Return how to run it again, and what it ran on."""
    config = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
    facts: list[tuple[str, Content]] = [
        ("Manifest", element("code", record.manifest_digest[:16], title=record.manifest_digest)),
        ("Split and folds", element("code", record.split_digest[:16], title=record.split_digest)),
        ("Seed", str(record.seed)),
        ("Frostline", record.frostline + (f", commit {record.commit[:12]}" if record.commit else "")),
        ("Run", record.created),
        ("Time", ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in record.timings.items()) or "–"),
        ("Environment", ", ".join(f"{name} {version}" for name, version in record.environment.items())),
    ]
    return join(
        [
            element("h3", "How to reproduce"),
            element("pre", record.command, class_="command"),
            element("details", element("summary", "Configuration"), element("pre", config)),
            definitions(facts),
        ]
    )
