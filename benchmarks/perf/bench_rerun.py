"""Running a complete extraction again: nothing is encoded, and it takes next to no time.

``python benchmarks/perf/bench_rerun.py [--samples 10000] [--encoder ID] [--json]``

Small pictures are extracted twice in one process. Loading the encoder is left out of the comparison and
reported by itself: it is the same in both. What counts of the second run is the rest: reading the
manifest, looking at every file, asking the store. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from _race import Lap, Result, lap, report
from PIL import Image

from featurestore import catalog
from featurestore.config import ExtractConfig
from featurestore.extract import extract

SIDE = 64


def write_pictures(folder: Path, count: int) -> None:
    """Write small random pictures, no two alike."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{number:06d}.png")


@dataclass
class Watch:
    """What is seen of the encoder: how long it took to load, and how often it was asked."""

    loading: float = 0.0
    calls: int = 0


@contextmanager
def watched() -> Iterator[Watch]:
    """Count the calls of every encoder that is loaded meanwhile."""
    watch = Watch()
    load = catalog.load_encoder

    def load_watched(*args: Any) -> Any:
        loaded: list[Any] = []
        watch.loading += lap(lambda: loaded.append(load(*args))).wall
        (encoder,) = loaded
        encode = encoder.encode

        def counted(batch: Any) -> Any:
            watch.calls += 1
            return encode(batch)

        encoder.encode = counted
        return encoder

    with mock.patch.object(catalog, "load_encoder", load_watched):
        yield watch


def timed(config: ExtractConfig) -> tuple[Lap, Watch]:
    """Extract, and return what it took with the encoder's share."""
    with watched() as watch:
        return lap(lambda: extract(config)), watch


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--encoder", default="offline:efficientnet-lite0")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="frostline-bench-") as name:
        folder = Path(name)
        write_pictures(folder / "pictures", options.samples)
        config = ExtractConfig(
            manifest=folder / "pictures", store=folder / "store", encoder=options.encoder, device="cpu"
        )
        (first, first_watch), (second, second_watch) = timed(config), timed(config)
    work, again = first.wall - first_watch.loading, second.wall - second_watch.loading
    results = [
        Result("batches encoded by the first run", first_watch.calls, "", 1, at_least=True),
        Result("batches encoded by the second run", second_watch.calls, "", 0),
        Result("second run, of the first", 100 * again / work, "%", 2.0),
        Result("  with loading the encoder", 100 * second.wall / first.wall, "%"),
        Result("  seconds without, with loading", again, f"s, {second.wall:.2f} s"),
    ]
    title = f"{options.samples} pictures of {SIDE}x{SIDE}; {options.encoder}, the command twice in one process"
    laps = {"first run": [first], "second run": [second]}
    return report(title, laps, results, samples=options.samples, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
