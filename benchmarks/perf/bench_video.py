"""Frames of videos, against PyAV decoding and converting the same ones in a plain loop.

``python benchmarks/perf/bench_video.py [--rounds 5] [--datasets DIR] [--json]``

data.video
    `read_frames`: which frames are even in time, damage told, frames upright.
PyAV
    A loop over ``container.decode`` that converts the frames of the same numbers to RGB, and checks nothing.

Both decode with one thread, as extraction does (one file per thread), and take turns in one process; the ratio is that
of CPU time. The clips are synthetic, and those of lung ultrasound where the public data sets are. Exit code 1 if a
target is missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import av
import numpy as np
from _race import Lap, Result, race, report, times_faster
from av.codec.context import ThreadType
from numpy.typing import NDArray
from PIL import Image

from data.manifest import Source
from data.video import read_frames, sample_frames

TARGET = 0.8
SIZE = 320, 240
SHORT, LONG = 48, 900
"""Frames of the synthetic clips."""
LUNG_CLIPS = 8


def write_clip(path: Path, frames: int) -> Path:
    """Write a clip of moving smooth blobs with some grain, as H.264 of the encoder's usual settings."""
    rng = np.random.default_rng(frames)
    width, height = SIZE
    coarse = rng.integers(0, 256, (height // 16, width // 8, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            left = number * 3 % width
            grain = rng.integers(0, 8, (height, width, 1), dtype=np.uint8)
            pixels = np.clip(scene[:, left : left + width].astype(np.int16) + grain, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


class Contest:
    """Both contestants on some clips."""

    def __init__(self, paths: Sequence[Path], count: int, passes: int) -> None:
        self.count = count
        # Several times over, since clocks of cpu time may tick only every few milliseconds.
        self.paths = list(paths) * passes
        self.numbers = [sample_frames(range(_length(path)), count) for path in paths] * passes

    def ours(self) -> None:
        """Read the frames of every clip."""
        for path in self.paths:
            read_frames(Source("video", path=path), self.count)

    def plainly(self) -> None:
        """Decode every clip and convert the same frames."""
        for path, numbers in zip(self.paths, self.numbers, strict=True):
            _plain(path, numbers)

    def differ(self) -> int:
        """Return in how many clips the two have different frames."""
        chosen = dict(zip(self.paths, self.numbers, strict=True))
        return sum(
            not np.array_equal(read_frames(Source("video", path=path), self.count), _plain(path, numbers))
            for path, numbers in chosen.items()
        )


def _length(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def _plain(path: Path, numbers: Sequence[int]) -> NDArray[np.uint8]:
    chosen, kept = frozenset(numbers), []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = ThreadType.NONE, 1
        for number, frame in enumerate(container.decode(stream)):
            if number in chosen:
                kept.append(frame.to_ndarray(format="rgb24", threads=1))
    return np.stack(kept)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--datasets", type=Path, default=os.environ.get("FROSTLINE_DATASETS"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="frostline-bench-") as name:
        short = [write_clip(Path(name) / f"short{i}.mp4", SHORT + i) for i in range(4)]
        long = [write_clip(Path(name) / "long.mp4", LONG)]
        contests = {
            f"16 of {SHORT} frames": Contest(short, 16, 12),
            f"all {SHORT} frames": Contest(short, SHORT + 4, 8),
            f"16 of {LONG} frames": Contest(long, 16, 5),
            f"2 of {LONG} frames": Contest(long, 2, 5),
        }
        folder = Path(options.datasets) / "lus_video" / "videos" if options.datasets else None
        if folder is not None and folder.is_dir():
            contests["16 of each lung clip"] = Contest(sorted(folder.glob("*.mp4"))[:LUNG_CLIPS], 16, 3)
        laps: dict[str, list[Lap]] = {}
        results: list[Result] = []
        for what, contest in contests.items():
            wrong = contest.differ()  # a first pass that nobody is timed for
            turns = race({"data.video": contest.ours, "PyAV": contest.plainly}, options.rounds)
            ours, plain = turns.values()
            laps |= {f"{what}, {who}": each for who, each in turns.items()}
            results += [
                Result(what, times_faster(ours, plain, "cpu"), "x PyAV's speed, cpu time", TARGET, at_least=True),
                Result(f"{what}: clips with other frames", wrong, "", 0),
            ]
    title = (
        f"Videos of {SIZE[0]}x{SIZE[1]} in H.264, {len(short)} short ones and a long one, "
        f"{'and' if len(contests) > 4 else 'without'} {LUNG_CLIPS} of lung ultrasound; {options.rounds} rounds"
    )
    return report(title, laps, results, samples=1, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
