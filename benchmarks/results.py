"""Run the main job on the small public data sets and write docs/results.md from the records.

::

    python benchmarks/results.py --datasets DIR --work DIR
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
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


def frostline(*arguments: str) -> str:
    """Run one command and return what it printed; stop at the first that fails."""
    done = subprocess.run([sys.executable, str(ROOT / "cli.py"), *arguments], capture_output=True, text=True, cwd=ROOT)
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
        place = ("--store", str(store), "--encoder", job.encoder, "--head", head, "--out", str(run), "--overwrite")
        frostline("fit-head", str(manifest), *place, *common)
        record = json.loads((run / "record.json").read_text())
        cells = [cell(record["metrics"][split].get(name)) for name in job.metrics for split in ("test", "cv")]
        lines.append(f"| {head} | {' | '.join(cells)} | {record['volatile']['timings']['fit_seconds']:.1f} |")
        print(lines[-1], flush=True)
    return [*lines, ""]


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
    for job in JOBS:
        page += section(job, options.datasets.resolve(), options.work.resolve())
    (ROOT / "docs" / "results.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
