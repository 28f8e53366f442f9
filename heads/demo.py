"""`demo`: the main job on real data, offline.

The 1,797 handwritten digits that ship with scikit-learn (UCI Optical Recognition of Handwritten
Digits, 8 x 8 grey levels) are written as PNG files, encoded with real ImageNet weights, and several
heads are fitted on the stored embeddings.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import ConfigError
from data.leakage import connected_groups, dhash, near_pairs
from data.progress import Progress, Silent
from data.split import holdout
from featurestore.config import ExtractConfig
from featurestore.extract import extract
from featurestore.summary import ExtractSummary
from heads.config import FitConfig
from heads.fit import fit
from heads.pages.report import write_report
from heads.pages.table import comparison_table
from heads.record import RunRecord

ENCODER = "offline:efficientnet-lite0"
HEADS: dict[str, dict[str, int]] = {"linear": {}, "knn": {}, "svm": {}, "mlp": {"members": 1}, "gbm": {"members": 1}}
"""The heads with their parameters; smaller ensembles than the defaults keep the demo short."""
SIDE = 64
"""Side of the written pictures, to which the 8 x 8 originals are enlarged."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo made."""

    table: str
    report: Path
    extraction: ExtractSummary


def run_demo(
    out: Path, *, heads: Mapping[str, Mapping[str, int]] = HEADS, progress: Progress | None = None
) -> DemoResult:
    """Write the digits, encode them, fit the heads and write one report.

    Parameters
    ----------
    out
        The directory to write; a second run in it encodes nothing.
    heads
        The heads to fit, with their parameters.
    progress
        Told how far the work is.

    Raises
    ------
    ConfigError
        If the directory cannot be written.
    """
    progress = progress or Silent()
    manifest = write_digits(out, progress)
    summary = extract(ExtractConfig(manifest=manifest, store=out / "store", encoder=(ENCODER,)), progress=progress)
    progress.note(
        f"{summary.encoded} images encoded ({summary.samples_per_second:.1f}/s), {summary.cached} taken from the store"
    )
    records: dict[str, RunRecord] = {}
    for name, settings in heads.items():
        config = FitConfig(
            manifest=manifest,
            store=out / "store",
            encoder=(ENCODER,),
            target=("digit",),
            head=name,
            set=dict(settings),
            split="split",
            out=out / "runs" / name,
            overwrite=True,
        )
        records[name] = fit(config, command=_command(config), progress=progress)
    report = write_report([out / "runs" / name for name in heads], out / "report.html")
    return DemoResult(comparison_table(records, "test"), report, summary)


def write_digits(out: Path, progress: Progress) -> Path:
    """Write scikit-learn's digits as PNG files with a manifest, once, and return the manifest's path."""
    from PIL import Image
    from sklearn.datasets import load_digits

    manifest = out / "digits" / "manifest.csv"
    if manifest.exists():
        return manifest
    digits = load_digits()
    small = np.round(digits.images * (255 / 16)).astype(np.uint8)
    pictures = [Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for each in small]
    # Some writers' digits look the same at this size: what looks the same stays on one side of the split.
    looks = near_pairs([dhash(np.asarray(picture.convert("RGB"))) for picture in pictures])
    groups = connected_groups(len(pictures), near=looks)
    test = holdout(digits.target.astype(np.int64), "multiclass", groups, 0.25, 0)
    progress.stage("writing digits", len(pictures))
    rows = []
    try:
        (manifest.parent / "images").mkdir(parents=True, exist_ok=True)
        for i, (picture, digit) in enumerate(zip(pictures, digits.target, strict=True)):
            name = f"images/digit{i:04d}.png"
            picture.save(manifest.parent / name)
            rows.append((f"digit{i:04d}", name, int(digit), "test" if test[i] else "train"))
            progress.advance()
        # Last, so that a manifest never names files that were not written.
        with manifest.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("id", "path", "digit", "split"), *rows])
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from error
    return manifest


def _command(config: FitConfig) -> str:
    """Return the command line that does the same fit."""
    settings = "".join(f" --set {name}={value}" for name, value in config.set.items())
    return (
        f"frostline fit-head {config.manifest} --store {config.store} --encoder {ENCODER} "
        f"--target digit --head {config.head}{settings} --split split --out {config.out}"
    )
