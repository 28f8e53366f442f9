"""Run the suites on the small public data sets and write docs/comparisons.md from their tables.

::

    python benchmarks/comparisons.py --datasets DIR --work DIR [--only SUITE ...]

What is finished in the work directory is not run again. With --only, the other suites keep their parts of the page.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from manifests import PREPARED, write_all

ROOT = Path(__file__).resolve().parents[1]


IMAGES, TEXTS, MVIT = "offline:efficientnet-lite0", "offline:minilm", "torchvision:mvit_v2_s/random:0"
SUITES: dict[str, list[tuple[str, ...]]] = {
    "brain_mri": [("--encoder", IMAGES)],
    "rt_polarity": [("--encoder", TEXTS)],
    "nih_cxr_multilabel": [("--encoder", IMAGES)],
    "fsdd": [("--encoder", "audio:mfcc", "--encoder", "audio:logmel", "--encoder", f"spectrogram+{IMAGES}")],
    "lus_video": [("--input", "path", "--encoder", encoder) for encoder in (f"frames+{IMAGES}", MVIT)],
    "covid_cxr_notes": [
        ("--input", "path", "--encoder", IMAGES),
        ("--input", "text", "--encoder", TEXTS),
        ("--input", "text", "--encoder", "speech:features"),
    ],
}
"""Suites, and how the features they read are extracted."""
CONTROLS = ("zero", "shuffled")


def frostline(*arguments: str, datasets: Path, manifests: Path) -> str:
    """Run one command and return what it printed; stop at the first that fails."""
    variables = {**os.environ, "FROSTLINE_DATASETS": str(datasets), "FROSTLINE_MANIFESTS": str(manifests)}
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables)
    if done.returncode:
        raise SystemExit(f"{shlex.join(arguments)}: {done.stderr}")
    return done.stdout


def compared(suite: str, datasets: Path, work: Path) -> list[str]:
    """Run a suite and return its part of the page."""
    store, out, file = work / "store", work / f"compare-{suite}", f"benchmarks/suites/{suite}.yaml"
    places = {"datasets": datasets, "manifests": work / "manifests"}
    prepared = suite in PREPARED
    if prepared:
        write_all(**places, names=[suite])
    manifest = work / "manifests" / f"{suite}.csv" if prepared else datasets / suite / "manifest.csv"
    for options in SUITES[suite]:
        frostline("extract", str(manifest), "--store", str(store), *options, **places)
    frostline("compare", file, "--store", str(store), "--out", str(out), **places)
    variables = "FROSTLINE_MANIFESTS=manifests" if prepared else "FROSTLINE_DATASETS=."
    lines = [
        f"## {suite}",
        "",
        *prose_of(ROOT / file),
        "",
        "```",
        *(["python benchmarks/manifests.py --datasets . --manifests manifests"] if prepared else []),
        f"{variables} frostline compare {file} --store store --out runs/{suite}",
        "```",
        "",
    ]
    table, tests = rows_of(out / "table.csv"), rows_of(out / "tests.csv")
    names = list(dict.fromkeys(row.get("dataset", suite) for row in table))
    for name in names:
        of_name = ([row for row in rows if row.get("dataset", suite) == name] for rows in (table, tests))
        lines += ([f"### {name}", ""] if len(names) > 1 else []) + standing(*of_name)
    return lines


def prose_of(suite: Path) -> list[str]:
    """Return what the comment at the top of a suite says, less the commands, which are indented."""
    comment = takewhile(lambda line: line.startswith("#"), suite.read_text(encoding="utf-8").splitlines())
    lines = [line[2:] for line in comment if not line.startswith("#   ")]
    joined = "\n".join(line for line, above in zip(lines, ["", *lines], strict=False) if line or above)
    return joined.strip().splitlines()


def standing(table: Sequence[Mapping[str, str]], tests: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the tables of one data set."""
    metrics = list(dict.fromkeys(test["metric"] for test in tests if test["test"] == "bootstrap"))[:2]
    cells: dict[tuple[str, str], dict[str, Mapping[str, str]]] = {}
    for row in table:
        cells.setdefault((row["encoder"], row["head"]), {})[row["metric"]] = row
    ordered = sorted(cells, key=lambda key: -float(cells[key][metrics[0]]["value"] or "nan"))
    best = next(key for key in ordered if key[1] != "prior" and not is_control(key[1]))
    lines = [
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


def parts_of(page: str) -> dict[str, str]:
    """Return the parts of a page by suite."""
    _, *parts = page.split("\n## ")
    return {part.partition("\n")[0]: f"## {part}" for part in parts}


def main() -> None:
    """Run all suites and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=SUITES, default=list(SUITES))
    options = parser.parse_args()
    page = ROOT / "docs" / "comparisons.md"
    parts = parts_of(page.read_text(encoding="utf-8")) if options.only != list(SUITES) else {}
    head = [
        "# Comparisons",
        "",
        "Written by `python benchmarks/comparisons.py`: the suites of `benchmarks/suites` on small public data sets,",
        "seed 0. All heads of a table have the same samples and folds. Values have 95 % intervals from 1,000 resamples",
        "of groups; p is of the paired bootstrap over groups, after Holm's adjustment. How to read them:",
        "[comparing.md](comparing.md).",
        "",
    ]
    for suite in options.only:
        parts[suite] = "\n".join(compared(suite, options.datasets.resolve(), options.work.resolve()))
    ordered = [parts[suite] for suite in SUITES if suite in parts]
    page.write_text("\n".join([*head, *ordered]), encoding="utf-8")


if __name__ == "__main__":
    main()
