"""Extraction of JPEGs through an open_clip ViT-B-32 on the CPU, against what one would write by hand.

``python benchmarks/perf/bench_extract.py [--samples 512] [--rounds 3] [--json]``

plain loop
    Pillow, the model's own transform, `encode_image` of one image at a time; fp32, no_grad.
bare model
    `encode_image` of batches that lie ready in memory; fp32, inference_mode.
bare model, a thread per core
    The same, with a batch per core instead of all cores on one batch, as extract does it: what is left is the
    price of decoding, checking and writing. No target: few would write it.
extract
    Decoding, encoding, the check against the library's own output, and writing to a new store.

All use all cores, load no model while they are timed, and take turns in one process. The weights are
random and seeded. Exit code 1 if a target is missed.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import open_clip
import torch
from _race import Result, race, report, times_faster
from PIL import Image
from torch import Tensor

from data.progress import Silent
from featurestore.config import ExtractConfig
from featurestore.extract import Job, prepare, run
from featurestore.store import FeatureStore

ARCHITECTURE = "ViT-B-32"
WIDTH, HEIGHT = 1024, 768
COARSE, GRAIN, QUALITY = 32, 5.0, 90
BOUND = "ours is bound by the model, at nine tenths of its bare speed: there is no more to gain on the loop"


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Write smooth pictures with some grain, whose JPEGs are as large as a camera's."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = rng.integers(0, 256, (HEIGHT // COARSE, WIDTH // COARSE, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
        grainy = smooth + rng.normal(0, GRAIN, (HEIGHT, WIDTH, 1)).astype(np.float32)
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(grainy.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        paths.append(path)
    return paths


class Contest:
    """The contestants, over the same pictures and the same weights."""

    def __init__(self, folder: Path, count: int, batch_size: int | None) -> None:
        (folder / "pictures").mkdir()
        self.folder = folder
        self.paths = write_pictures(folder / "pictures", count)
        config = ExtractConfig(
            manifest=folder / "pictures",
            store=folder / "first",
            encoder=f"open_clip:{ARCHITECTURE}/random:0",
            batch_size=batch_size or "auto",
            device="cpu",
            precision="fp32",
        )
        self.job = prepare(config, create=True)
        torch.manual_seed(0)
        self.model, _, self.transform = open_clip.create_model_and_transforms(ARCHITECTURE)
        self.model.eval()
        self.ready = torch.stack([self._pixels(path) for path in self.paths]).split(self.job.batch_size)
        self.vectors: dict[str, Tensor] = {}
        self.stores = 0

    def plain_loop(self) -> None:
        """Encode one picture after another."""
        with torch.no_grad():
            vectors = [self.model.encode_image(self._pixels(path)[None]) for path in self.paths]
        self.vectors["plain loop"] = torch.cat(vectors)

    def bare_model(self) -> None:
        """Encode ready batches, one after another, each with all cores."""
        torch.cat([self._encode(batch) for batch in self.ready])

    def bare_model_in_threads(self) -> None:
        """Encode ready batches, one per core at a time."""
        cores = torch.get_num_threads()
        torch.set_num_threads(1)
        with ThreadPoolExecutor(cores) as pool:
            torch.cat(list(pool.map(self._encode, self.ready)))
        torch.set_num_threads(cores)

    def extract(self) -> None:
        """Extract into a new store."""
        self.stores += 1
        job = with_new_store(self.job, self.folder / f"store-{self.stores}")
        run(job, progress=Silent())
        assert job.features is not None
        self.vectors["extract"] = torch.from_numpy(job.features.refresh().take(job.keys))

    def largest_difference(self) -> float:
        """Return the largest absolute difference between the vectors of the two."""
        return float((self.vectors["extract"] - self.vectors["plain loop"]).abs().max())

    @torch.inference_mode()
    def _encode(self, batch: Tensor) -> Tensor:
        vectors: Tensor = self.model.encode_image(batch)
        return vectors

    def _pixels(self, path: Path) -> Tensor:
        with Image.open(path) as image:
            pixels: Tensor = self.transform(image.convert("RGB"))
        return pixels


def with_new_store(job: Job, folder: Path) -> Job:
    store = FeatureStore(folder, create=True)
    column = dataclasses.replace(job.columns[0], features=store.open(job.encoder.spec, name=job.name))
    return dataclasses.replace(job, store=store, columns=(column,))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, help="of the bare model and of extract; that of extract by default")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip's remark that the weights are random
    with tempfile.TemporaryDirectory(prefix="frostline-bench-") as name:
        contest = Contest(Path(name), options.samples, options.batch_size)
        contest.bare_model()  # a first pass that nobody is timed for
        laps = race(
            {
                "plain loop": contest.plain_loop,
                "bare model": contest.bare_model,
                "bare model, a thread per core": contest.bare_model_in_threads,
                "extract": contest.extract,
            },
            options.rounds,
        )
        difference = contest.largest_difference()
        batch_size, size = contest.job.batch_size, sum(path.stat().st_size for path in contest.paths)
    plain, bare, threads, ours = laps.values()
    results = [
        Result(
            "extract against the plain loop", times_faster(ours, plain), "x faster", 2.0, at_least=True, reason=BOUND
        ),
        Result("  the same in cpu time", times_faster(ours, plain, "cpu"), "x faster"),
        Result("extract against the bare model", times_faster(ours, bare), "x faster", 0.9, at_least=True),
        Result("  the same in cpu time", times_faster(ours, bare, "cpu"), "x faster"),
        Result("extract against a thread per core", times_faster(ours, threads), "x faster"),
        Result("largest difference from the plain loop", difference, "", 1e-5),
    ]
    title = (
        f"{options.samples} JPEGs of {WIDTH}x{HEIGHT}, {size / options.samples / 1024:.0f} KiB each; "
        f"{ARCHITECTURE}, batches of {batch_size}, {options.rounds} rounds"
    )
    return report(title, laps, results, samples=options.samples, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
