"""Videos: which frames are taken, that they are FFmpeg's own, upright, and that damage is told."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

import data.video
from data.errors import SampleError
from data.manifest import Source
from data.video import probe_video, read_frames, sample_frames

Make = Callable[..., Any]


def video(path: Path) -> Source:
    return Source("video", path=path)


def all_frames(path: Path) -> list[np.ndarray]:
    """Decode with a plain loop."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def failure(path: Path, **options: Any) -> SampleError:
    with pytest.raises(SampleError) as caught:
        read_frames(video(path), **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


# Which frames -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (1, [0]),
        (5, [0, 1, 2, 3, 4]),
        (16, list(range(16))),
        (17, [*range(15), 16]),
        (100, [0, 6, 13, 19, 26, 33, 39, 46, 52, 59, 66, 72, 79, 85, 92, 99]),
    ],
)
def test_sixteen_frames_are_evenly_spaced_from_the_first_to_the_last(total: int, expected: list[int]) -> None:
    assert sample_frames(range(total), 16) == expected


@pytest.mark.parametrize("total", [17, 31, 100, 151, 997])
def test_numbers_are_those_of_a_rounded_down_linspace(total: int) -> None:
    exact = np.linspace(0, total - 1, 16, dtype=np.longdouble) + 1e-12
    assert sample_frames(range(total), 16) == np.floor(exact).astype(int).tolist()


def test_a_short_clip_is_kept_short_or_repeats_its_last_frame() -> None:
    assert sample_frames(range(3), 5) == [0, 1, 2]
    assert sample_frames(range(3), 5, pad=True) == [0, 1, 2, 2, 2]


def test_one_frame_is_the_middle_one() -> None:
    assert sample_frames(range(9), 1) == [4]
    assert sample_frames(range(9), 1, clips=3) == [1, 4, 7]


def test_clips_are_stretches_of_the_video() -> None:
    assert sample_frames(range(20), 3, clips=2) == [0, 4, 9, 10, 14, 19]


def test_a_short_video_has_as_many_clips_as_it_has_frames_for() -> None:
    # 7 frames are 2 clips of 3, not 4; 2 frames are one, and only there is a frame repeated.
    assert sample_frames(range(7), 3, clips=4, pad=True) == [0, 1, 2, 3, 4, 6]
    assert sample_frames(range(2), 3, clips=4, pad=True) == [0, 1, 1]
    for total in range(1, 40):
        chosen = sample_frames(range(total), 4, clips=5, pad=True)
        assert len(chosen) == 4 * min(5, max(1, total // 4))
        assert len(set(chosen)) == min(len(chosen), total), "no frame is in two clips"


def test_at_a_varying_rate_frames_are_even_in_time() -> None:
    # Ten frames in the first second, then one a second for nine seconds.
    times = [*range(0, 1000, 100), *range(1000, 10_000, 1000)]
    assert sample_frames(times, 4) == [0, 12, 15, 18]
    assert sample_frames(range(len(times)), 4) == [0, 6, 12, 18]


@pytest.mark.parametrize("unknown", [None, 0])
def test_times_that_say_nothing_leave_the_numbers(unknown: int | None) -> None:
    times = [*range(0, 1000, 100), *range(1000, 10_000, 1000)]
    assert sample_frames([*times[:-1], unknown], 4) == [0, 6, 12, 18]


def test_rounded_times_are_no_change_of_rate() -> None:
    milliseconds = [round(1000 * i / 30) for i in range(16)]
    assert sample_frames(milliseconds, 6) == sample_frames(range(16), 6) == [0, 3, 6, 9, 12, 15]


# Which pixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mkv", {"codec": "ffv1", "pix_fmt": "bgr0"}),
        ("a.mp4", {}),
        ("a.mov", {"bf": "3", "g": "7"}),
        ("a.avi", {"codec": "huffyuv"}),
    ],
)
def test_lossless_frames_come_back(
    name: str, options: dict[str, str], make_film: Make, make_scenes: Make, tmp_path: Path
) -> None:
    frames = make_scenes(37)
    path = make_film(tmp_path / name, frames, **options)
    read = read_frames(video(path))
    assert read.dtype == np.uint8
    assert read.flags.c_contiguous
    assert np.array_equal(read, np.stack([frames[i] for i in sample_frames(range(37), 16)]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.mp4", {"codec": "libx264", "pix_fmt": "yuv420p", "bf": "2"}),
        ("a.avi", {"codec": "mpeg4", "pix_fmt": "yuv420p"}),
        ("a.mpeg", {"codec": "mpeg1video", "pix_fmt": "yuv420p"}),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("a.webm", {"codec": "libvpx-vp9", "pix_fmt": "yuv420p", "lossless": "1", "deadline": "realtime"}),
        ("a.mkv", {"codec": "ffv1", "pix_fmt": "yuv422p10le"}),
    ],
)
def test_frames_are_those_of_a_plain_loop(
    name: str, options: dict[str, str], make_film: Make, make_scenes: Make, tmp_path: Path
) -> None:
    path = make_film(tmp_path / name, make_scenes(21), **options)
    everything = all_frames(path)
    assert len(everything) == 21
    assert np.array_equal(read_frames(video(path)), np.stack([everything[i] for i in sample_frames(range(21), 16)]))
    assert np.array_equal(read_frames(video(path), 50), np.stack(everything))


@pytest.mark.parametrize(("degrees", "transpose"), [(90, "cclock"), (-90, "clock"), (180, None)])
def test_the_rotation_flag_is_honoured(
    degrees: int, transpose: str | None, make_film: Make, make_scenes: Make, tmp_path: Path
) -> None:
    path = make_film(tmp_path / "turned.mp4", make_scenes(3), rotation=degrees)
    read = read_frames(video(path))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        steps = [("transpose", transpose)] if transpose else [("hflip", None), ("vflip", None)]
        graph.link_nodes(
            graph.add_buffer(template=stream), *(graph.add(*step) for step in steps), graph.add("buffersink")
        ).configure()
        graph.push(next(container.decode(stream)))
        expected = graph.pull().to_ndarray(format="rgb24")
    assert np.array_equal(read[0], expected)
    assert read.shape[1:3] == ((48, 64) if transpose is None else (64, 48))
    assert (probe_video(video(path)).height, probe_video(video(path)).width) == read.shape[1:3]


def test_a_flip_without_a_turn_is_honoured() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    one = 65536
    mirrored = data.video._upright(pixels, np.array([-one, 0, 0, 0, one, 0, 0, 0, one], np.int32), "x")
    assert np.array_equal(mirrored, pixels[:, ::-1])
    transposed = data.video._upright(pixels, np.array([0, one, 0, one, 0, 0, 0, 0, one], np.int32), "x")
    assert np.array_equal(transposed, pixels.swapaxes(0, 1))
    with pytest.raises(SampleError, match="multiple of 90 degrees"):
        data.video._upright(pixels, np.array([one, one, 0, -one, one, 0, 0, 0, one], np.int32), "x")


def test_a_varying_frame_rate_is_sampled_in_time(make_film: Make, make_scenes: Make, tmp_path: Path) -> None:
    frames, times = make_scenes(19), [*range(0, 1000, 100), *range(1000, 10_000, 1000)]
    path = make_film(tmp_path / "vfr.mkv", frames, codec="ffv1", pix_fmt="bgr0", times=times)
    assert np.array_equal(read_frames(video(path), 4), np.stack([frames[i] for i in (0, 12, 15, 18)]))
    info = probe_video(video(path))
    assert not info.constant_rate
    assert info.frames == 19
    assert info.seconds == pytest.approx(9 + 9 / 18)


def test_a_video_is_probed(make_film: Make, make_scenes: Make, tmp_path: Path) -> None:
    info = probe_video(video(make_film(tmp_path / "a.mp4", make_scenes(30), rate=15)))
    assert (info.frames, info.height, info.width, info.constant_rate) == (30, 48, 64, True)
    assert info.seconds == pytest.approx(2)
    assert info.fps == pytest.approx(15)


def test_reading_is_the_same_every_time_and_in_threads(make_film: Make, make_scenes: Make, tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mp4", make_scenes(40), bf="2")
    expected = read_frames(video(path))
    with ThreadPoolExecutor(4) as threads:
        assert all(np.array_equal(read, expected) for read in threads.map(read_frames, [video(path)] * 8))


def test_frames_that_the_container_did_not_announce_are_counted(
    make_film: Make, make_scenes: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = make_scenes(40)
    path = make_film(tmp_path / "a.mp4", frames)
    whole = data.video._packets

    def announced(*arguments: Any) -> list[Any]:
        monkeypatch.setattr(data.video, "sorted", lambda times: sorted(times)[:25], raising=False)
        return whole(*arguments)

    monkeypatch.setattr(data.video, "_packets", announced)
    assert np.array_equal(read_frames(video(path)), np.stack([frames[i] for i in sample_frames(range(40), 16)]))


# Bad files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("muxer", [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}])
def test_a_truncated_mp4_is_told(muxer: dict[str, str], make_film: Make, make_scenes: Make, tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mp4", make_scenes(40), muxer=muxer, g="5")
    content = path.read_bytes()
    for share in (0.6, 0.9):
        path.write_bytes(content[: int(len(content) * share)])
        error = failure(path)
        assert error.kind == "truncated"
        assert "cut short" in str(error)


@pytest.mark.parametrize(
    ("name", "codec", "kind"), [("a.avi", "mpeg4", "truncated"), ("a.mpeg", "mpeg1video", "unreadable")]
)
def test_a_truncated_file_without_an_index_is_told(
    name: str, codec: str, kind: str, make_film: Make, make_scenes: Make, tmp_path: Path
) -> None:
    path = make_film(tmp_path / name, make_scenes(40), codec=codec, pix_fmt="yuv420p")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    assert failure(path).kind == kind


def test_damage_that_the_decoder_sees_is_told(make_film: Make, make_scenes: Make, tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.avi", make_scenes(40), codec="mpeg4", pix_fmt="yuv420p")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = bytes(byte ^ 0x5A for byte in content[middle : middle + 400])
    path.write_bytes(content)
    error = failure(path)
    assert error.kind == "unreadable"
    assert "damage at frame" in str(error)


def test_what_is_no_video_is_told(tmp_path: Path) -> None:
    picture, text, empty = tmp_path / "picture.mp4", tmp_path / "text.mp4", tmp_path / "empty.mp4"
    Image.new("RGB", (64, 48)).save(picture, format="PNG")
    text.write_text("hello world, " * 100)
    empty.touch()
    assert failure(picture).kind == "unreadable"
    assert "PNG" in str(failure(picture))
    assert failure(text).kind == "unreadable"
    assert failure(empty).kind == "empty"
    assert failure(tmp_path / "nothing.mp4").kind == "missing"
    assert failure(tmp_path).kind == "unreadable"


def test_a_playlist_opens_nothing(make_film: Make, make_scenes: Make, tmp_path: Path) -> None:
    make_film(tmp_path / "a.mp4", make_scenes(5))
    playlist = tmp_path / "list.mp4"
    playlist.write_text("ffconcat version 1.0\nfile a.mp4\n")
    assert failure(playlist).kind == "unreadable"


def test_a_recording_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    error = failure(path)
    assert error.kind == "unsupported"
    assert "no video stream (audio)" in str(error)


def test_a_file_without_frames_is_told(tmp_path: Path) -> None:
    path = tmp_path / "none.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    error = failure(path)
    assert error.kind == "empty"
    assert "0 frames" in str(error)
    with pytest.raises(SampleError, match="0 frames"):
        probe_video(video(path))


@pytest.mark.parametrize(
    ("limit", "value"),
    [("MAX_FRAME_PIXELS", 64 * 48 - 1), ("MAX_FRAMES", 9), ("MAX_SAMPLED_BYTES", 1000), ("MAX_FILE_BYTES", 100)],
)
def test_what_is_too_large_is_refused(
    limit: str, value: int, make_film: Make, make_scenes: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_film(tmp_path / "a.mp4", make_scenes(10))
    monkeypatch.setattr(data.video, limit, value)
    error = failure(path)
    assert error.kind == "too_large"
    assert "expected at most" in str(error)
