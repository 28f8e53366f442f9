"""Write the manifests that some suites need: public data sets with a column that their own tables lack.

::

    python benchmarks/manifests.py --datasets DIR --manifests MANIFESTS
    FROSTLINE_MANIFESTS=MANIFESTS frostline compare benchmarks/suites/covid_cxr_notes.yaml ...

========================  ====================================================================================
``covid_cxr_notes.csv``   only films whose finding is known, with a column ``covid19``: COVID-19 or other
``lus_video.csv``         all clips, with a column ``study``: the clips of one patient with one diagnosis
========================  ====================================================================================
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable
from pathlib import Path

Rows = list[dict[str, str]]


def covid_cxr_notes(rows: Rows) -> Rows:
    """Return the films whose finding is known, COVID-19 or another (an empty cell is also what nobody looked for)."""
    known = (row for row in rows if row["label_known"] == "1")
    return [{**row, "covid19": "COVID-19" if "COVID-19" in row["labels"].split("|") else "other"} for row in known]


def lus_video(rows: Rows) -> Rows:
    """Return the clips with their study; one patient was filmed ill and well, which is two studies of one group."""
    return [{**row, "study": f"{row['group_id']}-{row['label']}"} for row in rows]


PREPARED = {"covid_cxr_notes": covid_cxr_notes, "lus_video": lus_video}
"""Data sets, and what is made of their rows."""


def write_all(datasets: Path, manifests: Path, names: Iterable[str] = tuple(PREPARED)) -> None:
    """Write the manifests of some data sets; the files they name stay where they are."""
    manifests.mkdir(parents=True, exist_ok=True)
    for name in names:
        with (datasets / name / "manifest.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        placed = [{**row, "path": str((datasets / name / row["path"]).resolve())} for row in PREPARED[name](rows)]
        with (manifests / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(placed[0]))
            table.writeheader()
            table.writerows(placed)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--manifests", type=Path, required=True)
    options = parser.parse_args()
    write_all(options.datasets, options.manifests)
