"""Run the main job and the suites on the small public data sets and write docs/results.md from what they leave.

::

    python benchmarks/results.py --datasets DIR --work DIR

What is finished in the work directory is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEADS = ("linear", "knn", "svm", "mlp", "gbm")


@dataclass(frozen=True)
class Job:
    """One data set, its encoder and how a head is fitted on it."""

    dataset: str
    encoder: str
    target: str
    split: str
    metrics: tuple[str, ...]
    heads: tuple[str, ...] = HEADS
    options: tuple[str, ...] = ()


JOBS = (
    Job("brain_mri", "offline:efficientnet-lite0", "label", "split_clean", ("accuracy", "macro_roc_auc")),
    Job("rt_polarity", "offline:minilm", "label", "split", ("accuracy", "roc_auc"), ("linear", "mlp")),
    Job(
        "nih_cxr_multilabel", "offline:efficientnet-lite0", "labels", "split",
        ("macro_roc_auc", "macro_average_precision"), ("linear", "mlp", "gbm"), ("--min-positives", "20"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Suite:
    """A suite of `benchmarks/suites`, and what it reads: pairs of an encoder and the column that it encodes."""

    name: str
    features: tuple[tuple[str, str], ...]


SUITES = (
    Suite("brain_mri", (("offline:efficientnet-lite0", "path"),)),
    Suite("rt_polarity", (("offline:minilm", "text"),)),
    Suite("nih_cxr_multilabel", (("offline:efficientnet-lite0", "path"),)),
)
CONTROLS = ("zero", "shuffled")


def frostline(*arguments: str, datasets: Path | None = None) -> str:
    """Run one command and return what it printed; stop at the first that fails."""
    variables = {**os.environ, "FROSTLINE_DATASETS": str(datasets)} if datasets else None
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
    if done.returncode:
        raise SystemExit(f"{shlex.join(arguments)}: {done.stderr}")
    return done.stdout


def cell(metric: dict[str, Any] | None) -> str:
    """Return a value and its interval."""
    if metric is None or metric["value"] is None:
        return "undefined"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"


def section(job: Job, datasets: Path, work: Path) -> list[str]:
    """Run a job and return its part of the page."""
    manifest, store = datasets / job.dataset / "manifest.csv", work / "store"
    frostline("extract", str(manifest), "--store", str(store), "--encoder", job.encoder)
    common = ("--target", job.target, "--split", job.split, "--group", "group_id", *job.options)
    shown = f"fit-head {job.dataset}/manifest.csv --store store --encoder {job.encoder} {shlex.join(common)}"
    names = " | ".join(f"{split} {name}" for name in job.metrics for split in ("test", "cv"))
    lines = [
        f"## {job.dataset}",
        "",
        "```",
        f"frostline extract {job.dataset}/manifest.csv --store store --encoder {job.encoder}",
        f"frostline {shown} --head HEAD --out runs/HEAD",
        "```",
        "",
        f"| head | {names} | all fits, s |",
        "|---|" + "---|" * (2 * len(job.metrics) + 1),
    ]
    for head in job.heads:
        run = work / f"{job.dataset}-{head}"
        place = ("--store", str(store), "--encoder", job.encoder, "--head", head, "--out", str(run))
        if not (run / "record.json").is_file():
            frostline("fit-head", str(manifest), *place, *common)
        record = json.loads((run / "record.json").read_text())
        cells = [cell(record["metrics"][split].get(name)) for name in job.metrics for split in ("test", "cv")]
        lines.append(f"| {head} | {' | '.join(cells)} | {record['volatile']['timings']['fit_seconds']:.1f} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


def compared(suite: Suite, datasets: Path, work: Path) -> list[str]:
    """Run a suite and return its part of the page."""
    store, out = work / "store", work / f"compare-{suite.name}"
    for encoder, column in suite.features:
        manifest = datasets / suite.name / "manifest.csv"
        frostline("extract", str(manifest), "--input", column, "--store", str(store), "--encoder", encoder)
    file = f"benchmarks/suites/{suite.name}.yaml"
    frostline("compare", file, "--store", str(store), "--out", str(out), datasets=datasets)
    table, tests = rows_of(out / "table.csv"), rows_of(out / "tests.csv")
    metrics = list(dict.fromkeys(test["metric"] for test in tests if test["test"] == "bootstrap"))[:2]
    cells: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in table:
        cells.setdefault((row["encoder"], row["head"]), {})[row["metric"]] = row
    ordered = sorted(cells, key=lambda key: -float(cells[key][metrics[0]]["value"] or "nan"))
    best = next(key for key in ordered if key[1] != "prior" and not is_control(key[1]))
    lines = [
        f"## {suite.name}, compared",
        "",
        "```",
        f"FROSTLINE_DATASETS=. frostline compare {file} --store store --out runs/{suite.name}",
        "```",
        "",
        f"| head | features | {' | '.join(metrics)} | p, best against it | parameters | all fits, s |",
        "|---|---|" + "---|" * (len(metrics) + 3),
    ]
    for key in ordered:
        rows = cells[key]
        values = " | ".join(cell(estimate(rows[name])) for name in metrics)
        p = "best" if key == best else p_of(find(tests, metrics[0], best, key))
        first = rows[metrics[0]]
        lines.append(
            f"| {key[1]} | {key[0] or 'none'} | {values} | {p} | {int(first['parameters']):,} "
            f"| {float(first['fit_seconds']):.1f} |"
        )
    lines += ["", *controls(tests, metrics[0], list(cells))]
    print("\n".join(lines), flush=True)
    return lines


def controls(tests: Sequence[Mapping[str, str]], metric: str, cells: Sequence[tuple[str, str]]) -> list[str]:
    """Return the table of what prompts are worth, if any head learned from them."""
    real = [key for key in cells if (key[0], f"{key[1]}, zero prompts") in cells]
    if not real:
        return []
    lines = [
        f"{metric} with prompts less that of the same head with prompts of zeros, and of other classes:",
        "",
        "| head | less zeros | p | less shuffled | p |",
        "|---|---|---|---|---|",
    ]
    for encoder, head in real:
        found = [find(tests, metric, (encoder, head), (encoder, f"{head}, {control} prompts")) for control in CONTROLS]
        differences = (
            f"{float(test['difference']):+.3f} [{float(test['low']):+.3f}, {float(test['high']):+.3f}] | {p_of(test)}"
            for test in found
            if test
        )
        lines.append(f"| {head} | {' | '.join(differences)} |")
    return [*lines, ""]


def is_control(head: str) -> bool:
    """Return whether a head is a control of another's prompts."""
    return head.endswith(tuple(f", {control} prompts" for control in CONTROLS))


def find(
    tests: Sequence[Mapping[str, str]], metric: str, a: tuple[str, str], b: tuple[str, str]
) -> Mapping[str, str] | None:
    """Return the paired bootstrap of two cells, in either order."""
    for test in tests:
        pair = ((test["encoder_a"], test["head_a"]), (test["encoder_b"], test["head_b"]))
        if (test["test"], test["metric"]) == ("bootstrap", metric) and pair in ((a, b), (b, a)):
            return test
    return None


def p_of(test: Mapping[str, str] | None) -> str:
    """Return a p-value after Holm's adjustment."""
    if test is None or not test["p_holm"]:
        return "–"
    return "< 0.001" if float(test["p_holm"]) < 0.001 else f"{float(test['p_holm']):.3f}"


def estimate(row: Mapping[str, str]) -> dict[str, Any]:
    """Return a row of a comparison's table as a record has it."""
    return {end: float(row[end]) if row[end] else None for end in ("value", "low", "high")}


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Run all jobs and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    page = [
        "# Results",
        "",
        "Written by `python benchmarks/results.py`: small public data sets, offline encoders, default parameters,",
        "seed 0; values with 95 % intervals from 1,000 resamples of groups.",
        "",
    ]
    datasets, work = options.datasets.resolve(), options.work.resolve()
    for job in JOBS:
        page += section(job, datasets, work)
    page += [
        "# Comparisons",
        "",
        "The suites of `benchmarks/suites`: every head of a table on the same samples and folds (rt_polarity: the same",
        "test rows); p-values of the paired bootstrap over groups, after Holm's adjustment for all pairs of a table.",
        "",
    ]
    for suite in SUITES:
        page += compared(suite, datasets, work)
    (ROOT / "docs" / "results.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
