"""The page of a fine-tuned run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import whole_text_file
from finetune.record import FinetuneRecord
from finetune.table import flat_estimates
from heads.evaluation.bootstrap import format_number
from heads.evaluation.seal import Openings
from heads.pages.page import Content, Html, definitions, document, element, join, picture, table
from heads.pages.plots import learning_curves
from heads.pages.sections import SPLIT_NAMES, cell, metric_name

FILE = "report.html"


def write_page(run: Path, record: FinetuneRecord) -> None:
    """Write ``report.html`` and its plots."""
    (run / "plots").mkdir(exist_ok=True)
    plot = run / "plots" / "losses.png"
    losses = {name: values for name, values in record.history.items() if name in ("train/loss", "val/loss")}
    if losses:
        learning_curves(plot, losses, steps=record.training["looks"] if record.config["judge_every"] else None)
    with whole_text_file(run / FILE) as file:
        file.write(page(record, plot if losses else None))


def page(record: FinetuneRecord, plot: Path | None) -> str:
    """Return the page.

    Parameters
    ----------
    record
        The run's record.
    plot
        A PNG of its learning curves.
    """
    names = " and ".join(each["encoder"] for each in record.inputs)
    title = f"{names}, fine-tuned: {', '.join(record.config['objective'])}"
    body = join(
        [
            element("h1", title),
            element("p", _lead(record), class_="lead"),
            _remarks(record),
            _metrics(record.metrics),
            _samples(record),
            element("h3", "Training"),
            definitions(_training(record)),
            element("figure", picture(plot, alt="Losses of each epoch")) if plot else Html(""),
            _losses(record),
            _parameters(record),
            element("h3", "The encoder"),
            element("p", "It is in encoder/ of the run directory, and is named by that path:"),
            element("pre", "frostline extract MANIFEST --encoder RUN/encoder --store DIR", class_="command"),
            _fingerprints(record),
            element("h3", "Reproduction"),
            element("pre", record.command or "(from Python)", class_="command"),
        ]
    )
    return document(title, body)


def _lead(record: FinetuneRecord) -> str:
    training, counts, every = record.training, record.counts, record.config["judge_every"]
    trained = sum(part["trained"] for part in record.parameters.values())
    epoch = training["best_epoch"] + 1
    best = f"Step {training['best_step']:,}, in epoch {epoch}," if every else f"Epoch {epoch}"
    looks = f", judged every {every:,} steps" if every else ""
    return (
        f"{trained:,} parameters were trained on {counts['trained']:,} of {counts['samples']:,} samples for "
        f"{training['epochs']} epochs ({training['steps']:,} steps). {best} was the best by {training['chosen_by']} on "
        f"{counts['choosing']:,} samples ({training['chosen_on']}{looks})."
    )


def _remarks(record: FinetuneRecord) -> Html:
    if not record.warnings:
        return Html("")
    items = element("ul", *(element("li", remark) for remark in record.warnings))
    return element("section", element("strong", "Read this first"), items, class_="warnings", aria_label="Warnings")


def _metrics(metrics: Mapping[str, Mapping[str, Any]]) -> Html:
    if not metrics:
        return Html("")
    flat = {split: flat_estimates(values) for split, values in metrics.items()}
    names = list(dict.fromkeys(name for values in flat.values() for name in values))
    if not names:
        losses = ", ".join(f"{_number(each['losses']['loss'])} ({split})" for split, each in metrics.items())
        text = f"Nothing but the loss, of {losses}, tells what this objective has reached."
        return join([element("h3", "Metrics"), element("p", text)])
    rows = [[_spoken(name), *(cell(values.get(name)) for values in flat.values())] for name in names]
    head: Sequence[Content] = ["", *(SPLIT_NAMES.get(split, split) for split in flat)]
    caption = "In brackets: 95 % intervals; whole groups are resampled."
    return join([element("h3", "Metrics"), table(head, rows, label="Metrics by split", caption=caption)])


def _spoken(name: str) -> str:
    *outer, last = name.split("/")
    where = "zero-shot" if outer == ["zero_shot"] else " ".join(outer[1:]).replace("_", " ")
    return f"{where[0].upper()}{where[1:]}: {metric_name(last)}" if where else metric_name(last)


def _samples(record: FinetuneRecord) -> Html:
    """Return how many samples and groups there are, and how often the test rows have been scored."""
    rows = [
        [SPLIT_NAMES.get(split, split.capitalize()), f"{each['samples']:,}", f"{each['groups']:,}"]
        for split, each in record.counts["splits"].items()
    ]
    opened = element("p", Openings(**record.openings).explain(), class_="note") if record.openings else Html("")
    return join([element("h3", "Samples"), table(["", "Samples", "Groups"], rows, label="Samples by split"), opened])


def _training(record: FinetuneRecord) -> list[tuple[str, Content]]:
    config, measures, chosen = record.config, record.training["measures"], record.training["chosen_by"]
    best = record.history[f"val/{chosen}"][record.training["looks"].index(record.training["best_step"])]
    learned = ", ".join(f"{name} {format_number(value)}" for name, value in measures.items())
    items: list[tuple[str, Content]] = [
        ("Unfrozen", _unfrozen(record)),
        (
            "Learning rate",
            f"{config['lr']:g}, of encoders {config['lr'] * config['encoder_lr']:g}, {config['schedule']}",
        ),
        ("Batch", f"{config['batch_size']} x {config['accumulate']} on {record.training['processes']} process(es)"),
        ("Augmentation", ", ".join(config["augment"]) or "none"),
        (f"{chosen} before training", _number(record.training["before"].get(chosen))),
        (f"{chosen} at best", _number(best)),
    ]
    return [*items, ("Learned", learned)] if learned else items


def _unfrozen(record: FinetuneRecord) -> str:
    images, texts = record.config["unfreeze"], record.config["text_unfreeze"]
    return f"{images}, of texts {texts or images}" if len(record.inputs) > 1 else images


def _number(value: float | None) -> str:
    return "unknown" if value is None else format_number(value)


def _losses(record: FinetuneRecord) -> Html:
    """Return what became of each loss where several were summed; else nothing, as the curves say it."""
    training, history = record.training, record.history
    names = [name.removeprefix("train/") for name in history if name != "train/loss" and name.startswith("train/")]
    if len(names) < 2:
        return Html("")
    best = training["looks"].index(training["best_step"])
    rows = []
    for name in names:
        # What only regularises training is no part of what is judged.
        train, held = history[f"train/{name}"], history.get(f"val/{name}")
        judged = [training["before"].get(name), held[best]] if held else [None, None]
        rows.append([name, *("–" if each is None else _number(each) for each in (train[0], train[-1], *judged))])
    head = ["", "Training, first", "Training, last", "Rows that choose, before", "Rows that choose, at best"]
    caption = (
        "Each loss before its weight: means over training rows up to the first look and up to the last, and held out."
    )
    return table(head, rows, label="Losses by objective", caption=caption)


def _parameters(record: FinetuneRecord) -> Html:
    rows = [[name, f"{part['trained']:,}", f"{part['all']:,}"] for name, part in record.parameters.items()]
    return join([element("h3", "Parameters"), table(["", "Trained", "All"], rows, label="Parameters by part")])


def _fingerprints(record: FinetuneRecord) -> Html:
    rows = [[each["encoder"], each["fingerprint"][:16], each["trained"][:16]] for each in record.inputs]
    return table(["", "Before", "After"], rows, label="Fingerprints", numeric=False)
