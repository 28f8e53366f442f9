"""Run every benchmark of this folder, one after another, and write their results as one table.

::

    python benchmarks/perf/summary.py --work DIR [--out benchmarks/RESULTS.md] [--only NAME ...]

What a benchmark printed is kept in the work directory, and one that is there is not run again. Run it on
an idle machine: the load at the start of each is in the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent


def measure(script: Path, work: Path) -> dict[str, Any]:
    """Run a benchmark, or read what it printed before; stop at one that fails for another reason than a target."""
    kept = work / f"{script.stem}.json"
    if not kept.exists():
        load = os.getloadavg()[0]
        done = subprocess.run([sys.executable, str(script), "--json"], capture_output=True, text=True)
        if done.returncode not in (0, 1) or not done.stdout.strip():
            raise SystemExit(f"{script.name}: {done.stderr}")
        kept.write_text(json.dumps({**json.loads(done.stdout), "load": load}, indent=1), encoding="utf-8")
    measured: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return measured


def lines_of(name: str, measured: dict[str, Any]) -> list[str]:
    """Return a benchmark's part of the page."""
    lines = [
        f"## {name}",
        "",
        f"{measured['title']}. Load at the start {measured['load']:.1f}.",
        "",
        "| | measured | target | |",
        "|---|---:|---:|---|",
    ]
    for result in measured["results"]:
        limit, verdict = "", ""
        if result["limit"] is not None:
            limit = f"{'≥' if result['at_least'] else '≤'} {result['limit']:g}"
            verdict = (
                "met" if result["passed"] else "**missed**" + (f": {result['reason']}" if result["reason"] else "")
            )
        lines.append(f"| {result['name'].strip()} | {result['value']:.4g} {result['unit']} | {limit} | {verdict} |")
    return [*lines, ""]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=FOLDER.parent / "RESULTS.md")
    parser.add_argument("--only", nargs="+", help="names of benchmarks, such as linear for bench_linear.py")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    names = options.only or [path.stem.removeprefix("bench_") for path in sorted(FOLDER.glob("bench_*.py"))]
    measured = {}
    for name in names:
        print(name, flush=True)
        measured[name] = measure(FOLDER / f"bench_{name}.py", options.work)
    targets = [result for each in measured.values() for result in each["results"] if result["limit"] is not None]
    met = sum(result["passed"] for result in targets)
    page = [
        "# Benchmarks",
        "",
        "Written by `python benchmarks/perf/summary.py`; do not edit. Both sides of every ratio ran in turns in one",
        f"process, on {os.cpu_count()} cores ({platform.machine()}). {met} of {len(targets)} targets are met.",
        "",
    ]
    for name, each in measured.items():
        page += lines_of(name, each)
    options.out.write_text("\n".join(page), encoding="utf-8")
    print(f"{met} of {len(targets)} targets met; {options.out}")
    return 0 if met == len(targets) else 1


if __name__ == "__main__":
    sys.exit(main())
