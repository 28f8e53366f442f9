"""Lung ultrasound clips: frames are FFmpeg's, what is probed is what the table says, a head is fitted by patient.

What is asked of a score is a floor well below the recorded one, because the last digits differ between
machines.
"""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import pytest

from data.manifest import Source
from data.video import probe_video, read_frames, sample_frames

pytestmark = [pytest.mark.real_data]


@pytest.fixture(scope="module")
def clips(datasets: Path) -> list[dict[str, str]]:
    with (datasets / "lus_video" / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_probed_is_what_the_table_says(clips: list[dict[str, str]], datasets: Path) -> None:
    for row in clips:
        info = probe_video(Source("video", path=datasets / "lus_video" / row["path"]))
        assert (info.frames, info.height, info.width) == (int(row["frames"]), int(row["height"]), int(row["width"]))
        assert info.fps == pytest.approx(float(row["fps"]), abs=0.05)


def test_frames_are_those_of_a_plain_loop(clips: list[dict[str, str]], datasets: Path) -> None:
    suffixes = set()
    for row in clips[::6]:
        path = datasets / "lus_video" / row["path"]
        with av.open(str(path)) as container:
            frames = list(container.decode(video=0))
        expected = [frames[i].to_ndarray(format="rgb24") for i in sample_frames(range(len(frames)), 16)]
        assert np.array_equal(read_frames(Source("video", path=path)), np.stack(expected))
        suffixes.add(path.suffix)
    assert suffixes >= {".mp4", ".avi"}


@pytest.mark.slow
def test_a_head_tells_clips_apart_across_patients(datasets, extracted, frostline, tmp_path) -> None:
    manifest, encoder = datasets / "lus_video" / "manifest.csv", "frames:8+offline:efficientnet-lite0"
    store, summary = extracted(manifest, encoder, "--input", "path")
    assert (summary["encoded"] + summary["duplicates"], summary["failures"]) == (88, [])
    result = frostline(
        *("fit-head", manifest, "--input", "path", "--store", store, "--encoder", encoder, "--target", "label"),
        *("--group", "group_id", "--head", "linear", "--bootstrap", 200, "--out", tmp_path / "run", "--json"),
    )
    assert result.code == 0, result.err
    assert result.json["metrics"]["cv"]["accuracy"]["value"] > 0.5
