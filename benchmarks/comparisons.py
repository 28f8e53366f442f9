"""Run the suites on the small public data sets and write docs/comparisons.md from their tables.

::

    python benchmarks/comparisons.py --datasets DIR --work DIR [--only SUITE ...]

What is finished in the work directory is not run again.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


SUITES = {
    "brain_mri": "offline:efficientnet-lite0",
    "rt_polarity": "offline:minilm",
    "nih_cxr_multilabel": "offline:efficientnet-lite0",
}
"""Suites, and the encoder whose features they read."""
CONTROLS = ("zero", "shuffled")


def frostline(*arguments: str, datasets: Path) -> str:
    """Run one command and return what it printed; stop at the first that fails."""
    variables = {**os.environ, "FROSTLINE_DATASETS": str(datasets)}
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
    if done.returncode:
        raise SystemExit(f"{shlex.join(arguments)}: {done.stderr}")
    return done.stdout


def compared(suite: str, datasets: Path, work: Path) -> list[str]:
    """Run a suite and return its part of the page."""
    store, out, file = work / "store", work / f"compare-{suite}", f"benchmarks/suites/{suite}.yaml"
    manifest = datasets / suite / "manifest.csv"
    frostline("extract", str(manifest), "--store", str(store), "--encoder", SUITES[suite], datasets=datasets)
    frostline("compare", file, "--store", str(store), "--out", str(out), datasets=datasets)
    table, tests = rows_of(out / "table.csv"), rows_of(out / "tests.csv")
    metrics = list(dict.fromkeys(test["metric"] for test in tests if test["test"] == "bootstrap"))[:2]
    cells: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in table:
        cells.setdefault((row["encoder"], row["head"]), {})[row["metric"]] = row
    ordered = sorted(cells, key=lambda key: -float(cells[key][metrics[0]]["value"] or "nan"))
    best = next(key for key in ordered if key[1] != "prior" and not is_control(key[1]))
    lines = [
        f"## {suite}",
        "",
        "```",
        f"FROSTLINE_DATASETS=. frostline compare {file} --store store --out runs/{suite}",
        "```",
        "",
        f"| head | features | {' | '.join(metrics)} | p, best against it | parameters | all fits, s |",
        "|---|---|" + "---|" * (len(metrics) + 3),
    ]
    for key in ordered:
        rows = cells[key]
        values = " | ".join(cell(rows[name]) for name in metrics)
        p = "best" if key == best else p_of(find(tests, metrics[0], best, key))
        first = rows[metrics[0]]
        lines.append(
            f"| {key[1]} | {key[0] or 'none'} | {values} | {p} | {int(first['parameters']):,} "
            f"| {float(first['fit_seconds']):.1f} |"
        )
    lines += ["", *controls(tests, metrics[0], list(cells))]
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


def cell(row: Mapping[str, str]) -> str:
    """Return a value and its interval."""
    if not row["value"]:
        return "undefined"
    return f"{float(row['value']):.3f} [{float(row['low']):.3f}, {float(row['high']):.3f}]"


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def main() -> None:
    """Run all suites and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES))
    options = parser.parse_args()
    page = [
        "# Comparisons",
        "",
        "Written by `python benchmarks/comparisons.py`: the suites of `benchmarks/suites` on small public data sets,",
        "seed 0. All heads of a table have the same samples and folds. Values have 95 % intervals from 1,000 resamples",
        "of groups; p is of the paired bootstrap over groups, after Holm's adjustment. How to read them:",
        "[comparing.md](comparing.md).",
        "",
    ]
    for suite in options.only:
        page += compared(suite, options.datasets.resolve(), options.work.resolve())
    (ROOT / "docs" / "comparisons.md").write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
