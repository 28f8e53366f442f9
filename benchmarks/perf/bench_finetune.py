"""Fine-tuning and extraction of one image encoder in full and in mixed precision: speed, memory, utilisation.

``python benchmarks/perf/bench_finetune.py [--encoder ID] [--samples N] [--batch-size N] [--rounds N] [--json]``

train all, train last:1
    What a step of `frostline finetune` does, decoding left out: pictures are in memory, nothing is saved or judged.
extract
    `frostline extract` into a new store, decoding and writing included.
train last:1, what is below cached
    The same steps with ``--cache-depth``, the store filled before.

Each in fp32 and in mixed precision: fp16 on a GPU, bf16 on the CPU, where it need not be faster. Without ``--encoder``
a ViT-B/16 on a GPU and a tiny ViT on the CPU; weights are random and seeded. Peak memory is what torch took of the
GPU at most, utilisation the mean of what the driver says every tenth of a second (with nvidia-ml-py). Exit code 1
if a target is missed; the targets are of a GPU.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch
from _race import Lap, Result, lap, report
from bench_extract import with_new_store
from PIL import Image

from data.progress import Silent
from featurestore.config import ExtractConfig
from featurestore.extract import prepare, run
from featurestore.store import FeatureStore
from finetune.build import build, groups_of
from finetune.checkpoint import Checkpoints, Progressed
from finetune.config import FinetuneConfig
from finetune.feed import Feed
from finetune.items import Decoder
from finetune.loading import load_towers, with_cached_depth
from finetune.loop import Course, Loop
from finetune.runner import Runner, make_accelerator
from finetune.samples import load_samples, read_rows

LARGE, SMALL = "timm:vit_base_patch16_224/random:0", "timm:test_vit/random:0"
SIDE = 256
POLICIES = ("all", "last:1")
CACHED = "train last:1, fp32, what is below cached"
MEGA = 1e6


class Unsaved(Checkpoints):
    """Checkpoints that are not written: what is timed are steps."""

    def save(self, *_: Any, **__: Any) -> None:
        """Write nothing."""


@dataclass
class Measured:
    """What one contestant took, a value per round.

    Attributes
    ----------
    laps
        On the clock.
    memory
        Most bytes of the GPU; empty on the CPU.
    used
        Mean utilisation of the GPU, in percent; empty where the driver does not tell.
    """

    laps: list[Lap] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    used: list[float] = field(default_factory=list)


def write_pictures(folder: Path, count: int) -> Path:
    """Write pictures of noise and a manifest of them: id, path, label, split."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
        rows.append([f"s{i}", f"{i}.jpg", "ab"[i % 2], "train"])
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "path", "label", "split"], *rows])
    return manifest


class Contest:
    """The contestants, over the same pictures and the same weights."""

    def __init__(self, folder: Path, encoder: str, count: int, batch_size: int, device: str) -> None:
        self.folder, self.encoder, self.batch_size, self.device = folder, encoder, batch_size, device
        (folder / "pictures").mkdir()
        self.manifest = write_pictures(folder / "pictures", count)
        self.mixed = "bf16" if device == "cpu" else "fp16"
        self.stores = 0

    def contestants(self) -> dict[str, Callable[[], Callable[[], object]]]:
        """Return what makes each contestant ready: its turn is what that returns."""
        made: dict[str, Callable[[], Callable[[], object]]] = {}
        for policy in POLICIES:
            for amp in ("no", self.mixed):
                made[f"train {policy}, {_said(amp)}"] = lambda policy=policy, amp=amp: self.trains(policy, amp)
        made[CACHED] = lambda: self.trains(POLICIES[-1], "no", cached=True)
        for precision in ("fp32", self.mixed):
            made[f"extract, {precision}"] = lambda precision=precision: self.extracts(precision)
        return made

    def trains(self, policy: str, amp: str, *, cached: bool = False) -> Callable[[], object]:
        """Return an epoch of training."""
        options: dict[str, Any] = {"input": "path", "target": "label", "split": "split", "encoder": self.encoder}
        options |= {"objective": "classification", "unfreeze": policy, "amp": amp, "batch_size": self.batch_size}
        options |= {"cache_depth": cached}
        config = FinetuneConfig.build(
            {**options, "manifest": self.manifest, "out": self.folder / "run"}, where="the benchmark"
        )
        accelerator = make_accelerator(torch.device(self.device), amp)
        store = FeatureStore(self.folder / "store", create=True)
        manifest = read_rows(config)
        towers = load_towers(config, manifest.modality, device=self.device)
        if cached:
            towers = with_cached_depth(config, towers, store, Silent())
        decoder = Decoder(towers.tower, config.workers, Silent())
        samples, _ = load_samples(config, manifest, store, decoder, Silent())
        built = build(config, samples, towers, device=self.device)
        groups = groups_of(config, built)
        runner = Runner(
            model=built.model,
            feed=Feed(
                tower=towers.tower,
                items=decoder.items,
                items_of=samples.items_of,
                text_tower=None,
                texts=None,
                known=built.known,
            ),
            accelerator=accelerator,
            batch_size=self.batch_size,
            accumulate=1,
            last_step=0,
            seed=0,
        )
        course = Course(
            epochs=1,
            schedule="constant",
            by="step",
            warmup=0.0,
            floor=0.0,
            clip_norm=1.0,
            judge_every=None,
            patience=None,
        )
        loop = Loop(runner, policies=built.policies, groups=groups, course=course)
        unsaved = Unsaved(self.folder, loop.changing)
        rows = samples.data.rows("train")

        def epoch(some: Any) -> object:
            return loop.run(
                some,
                state=Progressed(run="benchmark"),
                checkpoints=unsaved,
                judge=lambda: ({"loss": 0.0}, 0.0),
                trackers=(),
                progress=Silent(),
            )

        epoch(rows[: self.batch_size])  # a first step that nobody is timed for
        return lambda: epoch(rows)

    def extracts(self, precision: str) -> Callable[[], object]:
        """Return an extraction of all pictures."""
        values = {"encoder": self.encoder, "input": "path", "batch_size": self.batch_size, "device": self.device}
        self.stores += 1
        folder = self.folder / f"features-{self.stores}"
        config = ExtractConfig.build(
            {**values, "manifest": self.manifest, "store": folder, "precision": precision}, where="the benchmark"
        )
        job = prepare(config, create=True)
        run(job, progress=Silent())  # a first pass that nobody is timed for
        timed = with_new_store(job, self.folder / f"timed-{self.stores}")
        return lambda: run(timed, progress=Silent())


def _said(amp: str) -> str:
    return "fp32" if amp == "no" else amp


@contextmanager
def watched(found: Measured, device: str) -> Iterator[None]:
    """Note memory and utilisation of a GPU while something runs."""
    if device == "cpu":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    over, seen = threading.Event(), list[int]()

    def watch() -> None:
        while not over.wait(0.1):
            try:
                seen.append(torch.cuda.utilization())
            except (ModuleNotFoundError, RuntimeError):  # no nvidia-ml-py, or a driver that does not tell
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
        torch.cuda.synchronize()
    finally:
        over.set()
        watcher.join()
    found.memory.append(torch.cuda.max_memory_allocated())
    if seen:
        found.used.append(statistics.mean(seen))


def measure(contest: Contest, rounds: int) -> dict[str, Measured]:
    """Let all take their turn, round after round; each is made ready anew, for one arithmetic at a time."""
    found: dict[str, Measured] = {}
    for _ in range(rounds):
        for name, ready in contest.contestants().items():
            turn = ready()
            own = found.setdefault(name, Measured())

            def whole(turn: Callable[[], object] = turn, own: Measured = own) -> None:
                with watched(own, contest.device):
                    turn()

            own.laps.append(lap(whole))
    return found


def results_of(found: dict[str, Measured], samples: int, mixed: str, device: str) -> list[Result]:
    """Return the lines of the table."""
    lines = []
    for name, own in found.items():
        seconds = statistics.median(each.wall for each in own.laps)
        lines.append(Result(name, samples / seconds, "samples/s"))
        if own.memory:
            lines.append(Result("  peak memory", max(own.memory) / MEGA, "MB"))
        if own.used:
            lines.append(Result("  utilisation", statistics.median(own.used), "%"))
    for what in (*(f"train {policy}" for policy in POLICIES), "extract"):
        plain, fast = found[f"{what}, fp32"], found[f"{what}, {mixed}"]
        ratio = statistics.median(a.wall / b.wall for a, b in zip(plain.laps, fast.laps, strict=True))
        target = 1.3 if device != "cpu" and what == "train all" else None
        lines.append(Result(f"{what}, {mixed} against fp32", ratio, "x faster", target, at_least=True))
        if plain.memory:
            lines.append(Result("  its memory", max(fast.memory) / max(plain.memory), "of fp32"))
    pairs = zip(found[f"train {POLICIES[-1]}, fp32"].laps, found[CACHED].laps, strict=True)
    lines.append(
        Result("train last:1, cached against whole", statistics.median(a.wall / b.wall for a, b in pairs), "x")
    )
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    on_cpu = options.device == "cpu"
    encoder = options.encoder or (SMALL if on_cpu else LARGE)
    samples, batch_size = options.samples or (128 if on_cpu else 2048), options.batch_size or (16 if on_cpu else 128)
    with tempfile.TemporaryDirectory(prefix="frostline-bench-") as name:
        contest = Contest(Path(name), encoder, samples, batch_size, options.device)
        found = measure(contest, options.rounds)
    results = results_of(found, samples, contest.mixed, options.device)
    where = "the CPU" if on_cpu else torch.cuda.get_device_name()
    title = f"{encoder} on {where}, {samples} pictures in batches of {batch_size}, {options.rounds} rounds"
    laps = {name: own.laps for name, own in found.items()}
    return report(title, laps, results, samples=samples, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
