"""Fixtures of all tests: the public data sets, a small labelled picture set, and a weightless encoder."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

# A process of tests per core: each keeps to one thread, as do the commands that it starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TOY = f"py:{ROOT / 'tests' / 'assets' / 'toy.py'}:image"


@pytest.fixture(scope="session")
def datasets() -> Path:
    """The folder of small public data sets; the test is skipped where it is missing."""
    folder = Path(os.environ.get("FROSTLINE_DATASETS", ROOT.parent / "shared" / "datasets"))
    if not (folder / "README.md").is_file():
        pytest.skip(f"the public data sets are not in {folder}; set FROSTLINE_DATASETS to their folder")
    return folder


def write_csv(path: Path, rows: Sequence[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def paint(path: Path, rng: np.random.Generator, bright: int) -> None:
    """Write a noisy picture whose left (0), right (1) or lower (2) part is bright."""
    pixels = rng.integers(0, 110, size=(40, 48, 3))
    region = [np.s_[:, :24], np.s_[:, 24:], np.s_[20:, :]][bright]
    pixels[region] += 90
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def paint_set(folder: Path, n: int, classes: int, seed: int = 0) -> Path:
    """Write n pictures of some classes with a manifest: id, path, label, split, patient, score, note."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for i in range(n):
        label = i % classes
        paint(folder / "images" / f"{i}.png", rng, label)
        patient = i // (2 * classes)
        split = ("train", "train", "val", "test")[patient % 4]
        rows.append(
            {
                "id": f"s{i:03d}",
                "path": f"images/{i}.png",
                "label": ("left", "right", "lower")[label],
                "split": split,
                "patient": f"p{patient}",
                "score": round(label + 0.1 * rng.normal(), 3),
                "note": f"note number {i} of patient {patient}",
            }
        )
    return write_csv(folder / "manifest.csv", rows)


def film(path: Path, frames: Sequence[np.ndarray], **options: Any) -> Path:
    """Encode RGB frames to a video; `codec`, `pix_fmt`, `rate`, `times` (ms), `rotation`, `muxer`, encoder options."""
    import av

    codec, pix_fmt = options.pop("codec", "libx264rgb"), options.pop("pix_fmt", "rgb24")
    rate, times, rotation = options.pop("rate", 25), options.pop("times", None), options.pop("rotation", None)
    with av.open(str(path), "w", options=options.pop("muxer", {})) as container:
        stream = container.add_stream(codec, rate=rate, options={"qp": "0", **options} if "264" in codec else options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def scenes(n: int, *, height: int = 48, width: int = 64, seed: int = 0) -> list[np.ndarray]:
    """Return n RGB frames of coloured blocks, each unlike the others."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(n, height // 8, width // 8, 3), dtype=np.uint8)
    return list(coarse.repeat(8, axis=1).repeat(8, axis=2))


@pytest.fixture(scope="session")
def make_scenes() -> Callable[..., list[np.ndarray]]:
    return scenes


@pytest.fixture(scope="session")
def make_film() -> Callable[..., Path]:
    return film


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Write a picture set for one test."""

    def write(n: int = 48, classes: int = 2, seed: int = 0) -> Path:
        return paint_set(tmp_path / f"pictures{n}-{classes}-{seed}", n, classes, seed)

    return write


@pytest.fixture(scope="session")
def shared_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 96 pictures of three classes that no test changes."""
    return paint_set(tmp_path_factory.mktemp("shared") / "pictures", 96, 3)
