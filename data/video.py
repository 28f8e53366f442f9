"""Sample the frames of a video file, the same ones every time, as eight-bit RGB.

Every frame is decoded, since most need the ones before them; only the sampled ones are converted to RGB, which
costs as much as decoding does. The container is told by the content, never by the suffix: MP4 and MOV, AVI, MPEG,
Matroska and WebM, GIF, WMV, FLV, Ogg.

Pixels are those that FFmpeg decodes: no deinterlacing, no stretching of oblong pixels, no repair. A file in which the
decoder meets damage is refused as a whole, because later frames are predicted from the damaged ones. Damage that a
codec's own syntax does not show, and a Matroska or GIF file that ends early between two frames, cannot be seen.

Everything here may be called from many threads; FFmpeg releases the interpreter's lock. One file is decoded by one
thread, since files are many and a decoder of several threads conceals damage differently from run to run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.codec.context import ThreadType
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideDataContainer, Type
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from data.containers import open_container
from data.errors import SampleError
from data.manifest import Source
from data.pixels import Image8, decoding, one_line

Frames8 = NDArray[np.uint8]
"""Frames of eight bits per channel: (t, height, width, 3), RGB."""

MAX_FILE_BYTES = 4 * 2**30
"""Largest file whose compressed frames are held in memory."""
MAX_FRAME_PIXELS = 8192 * 4320
"""Largest frame that is decoded, in pixels: 8K of the cinema."""
MAX_FRAMES = 1_000_000
"""Longest video that is decoded, in frames: nine hours at 30 a second."""
MAX_SAMPLED_BYTES = 4 * 2**30
"""Most memory that the sampled frames of one video may take."""

_KINDS = {
    **dict.fromkeys(("mov", "mp4"), "MP4, MOV"),
    "avi": "AVI",
    **dict.fromkeys(("mpeg", "mpegvideo", "mpegts"), "MPEG"),
    **dict.fromkeys(("matroska", "webm"), "Matroska, WebM"),
    "gif": "GIF",
    "asf": "WMV",
    "flv": "FLV",
    "ogg": "Ogg",
}
"""The demuxers that may be tried, and what users call their files."""


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file holds.

    Attributes
    ----------
    frames
        Number of frames that are shown.
    seconds
        From the first frame to the end of the last; None where the file has no times.
    fps
        Frames per second, the mean over the whole file; None where the file has no times.
    height, width
        Size of an upright frame, in pixels.
    constant_rate
        Whether no frame is further from its place at a constant rate than half a frame.
    """

    frames: int
    seconds: float | None
    fps: float | None
    height: int
    width: int
    constant_rate: bool


def read_frames(source: Source, count: int = 16, *, clips: int = 1, pad: bool = False) -> Frames8:
    """Decode evenly spaced frames of a video, as `sample_frames` chooses them.

    Parameters
    ----------
    source
        A video file.
    count, clips, pad
        See `sample_frames`.

    Returns
    -------
    ndarray
        uint8, (t, height, width, 3), RGB, upright, C-contiguous; t is ``clips * count``, or fewer where the video
        is short and `pad` is off.

    Raises
    ------
    SampleError
        If the file is missing, empty, cut short, damaged, too large, no video, or has no frames.
    """
    with _opened(source) as video:
        wanted = sample_frames(video.times, count, clips=clips, pad=pad)
        kept, times = video.decode(wanted)
        if times != video.times:
            # The container announced other frames than there are; now they are known.
            wanted = sample_frames(times, count, clips=clips, pad=pad)
            if not kept.keys() >= set(wanted):
                kept, _ = video.decode(wanted)
        return _stacked([kept[number] for number in wanted], video.name)


def probe_video(source: Source) -> VideoInfo:
    """Return what a video file holds, decoding its first frame only.

    Raises
    ------
    SampleError
        As `read_frames`; damage beyond the first frame is not seen.
    """
    with _opened(source) as video:
        first = next(video.frames())
        height, width = _rgb(first, _display_matrix(first), video.name).shape[:2]
        times, frames = video.times, len(video.times)
        seconds = None
        if _increasing(times) and video.stream.time_base is not None:
            start, last = times[0], times[-1]
            assert start is not None
            assert last is not None
            # The last frame is shown as long as the others, on average; one alone as long as the stream says.
            ticks = Fraction(last - start, frames - 1) * frames if frames > 1 else Fraction(video.stream.duration or 0)
            seconds = float(ticks * video.stream.time_base)
        return VideoInfo(
            frames=frames,
            seconds=seconds or None,
            fps=frames / seconds if seconds else None,
            height=height,
            width=width,
            constant_rate=_places(times) is None,
        )


# Which frames -------------------------------------------------------------------------------------------------------


def sample_frames(times: Sequence[int | None], count: int, *, clips: int = 1, pad: bool = False) -> list[int]:
    """Choose evenly spaced frames.

    A video of T frames is cut into `clips` stretches; stretch c begins at frame ``floor(c T / clips)``. From a stretch
    of L frames, the k-th of `count` is number ``floor(k (L - 1) / (count - 1))``: the first, the last, and as even as
    can be between them; of one, the middle. With 16 of 17 frames these are 0..14 and 16; with 16 of 100 they are
    0, 6, 13, 19, 26, 33, 39, 46, 52, 59, 66, 72, 79, 85, 92, 99.

    A stretch of at most `count` frames gives every frame once, so that a mean over frames weighs them alike: 5 frames
    are 5. Where a network needs `count` of them, `pad` repeats the last.

    Where the frame rate varies, even means even in time: the frame that is on display at the place of the formula.

    Parameters
    ----------
    times
        When each frame is shown, in any unit, in order. Where one is not known, or they do not increase, or they are
        those of a constant rate (no frame further from its place than half a frame), only the number counts.
    count
        Frames of one clip, at least 1.
    clips
        Number of clips, at least 1; a video of fewer frames has as many clips as frames.
    pad
        Whether a clip with fewer than `count` frames repeats its last.

    Returns
    -------
    list of int
        Numbers of frames, clip after clip, each clip in order.
    """
    total = len(times)
    clips = min(clips, total)
    places = _places(times)
    chosen: list[int] = []
    for clip in range(clips):
        first, last = clip * total // clips, (clip + 1) * total // clips - 1
        length = last - first + 1
        if length <= count:
            chosen += range(first, last + 1)
            chosen += [last] * (count - length if pad else 0)
        elif count == 1:
            chosen.append(_shown(places, Fraction(first + last, 2)))
        else:
            spacing = Fraction(length - 1, count - 1)
            chosen += [_shown(places, first + k * spacing) for k in range(count)]
    return chosen


def _shown(places: Sequence[Fraction] | None, at: Fraction) -> int:
    """Return the frame on display at a place between 0 and T - 1."""
    return int(at) if places is None else bisect_right(places, at) - 1


def _places(times: Sequence[int | None]) -> list[Fraction] | None:
    """Return where frames lie in time, from 0 to T - 1; None at a constant rate, where frame i lies at i."""
    if len(times) < 3 or not _increasing(times):
        return None
    known = np.array(times, np.int64)
    span, last = int(known[-1] - known[0]), len(times) - 1
    # |place - i| <= 1/2, in whole numbers: times are rounded to the container's unit, which is no change of rate.
    drift = 2 * np.abs((known - known[0]).astype(object) * last - np.arange(len(times)).astype(object) * span)
    if int(drift.max()) <= span:
        return None
    return [Fraction(int(time - known[0]) * last, span) for time in known]


def _increasing(times: Sequence[int | None]) -> bool:
    if any(time is None for time in times):
        return False
    return bool(np.all(np.diff(np.array(times, np.int64)) > 0))


# Decoding -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Video:
    """An open file: its compressed frames in memory, and when each is shown by what the container says."""

    name: str
    stream: VideoStream
    packets: Sequence[Packet[VideoStream]]
    times: Sequence[int | None]

    def decode(self, wanted: Sequence[int]) -> tuple[dict[int, Image8], list[int | None]]:
        """Decode all frames; return the wanted ones in RGB, and when each of all is shown."""
        kept, times, chosen = dict[int, Image8](), list[int | None](), frozenset(wanted)
        turn, matrix = None, None
        for number, frame in enumerate(self.frames()):
            times.append(frame.pts)
            if number in chosen:
                _check_memory(len(wanted), frame, self.name)
                # Side data and its frame hold each other, so that the frame's memory is not free at once: a quarter of
                # the time of decoding small frames. Where the turn is the one before, so is the matrix.
                if frame.rotation != turn:
                    turn, matrix = frame.rotation, _display_matrix(frame)
                kept[number] = _rgb(frame, matrix, self.name)
        return kept, times

    def frames(self) -> Iterator[VideoFrame]:
        """Decode from the beginning, at least one frame, refusing damage."""
        self.stream.codec_context.flush_buffers()
        number = 0
        for packet in (*self.packets, None):
            try:
                frames = self.stream.decode(packet)
            except av.FFmpegError as error:
                raise self._damaged(number, one_line(error)) from error
            for frame in frames:
                if frame.is_corrupt:
                    raise self._damaged(number, "the decoder had to make up parts of it")
                yield frame
                number += 1
        if not number:
            raise SampleError("empty", f"{self.name}: expected a video, found one of 0 frames")

    def _damaged(self, number: int, reason: str) -> SampleError:
        found = f"damage at frame {number} of {len(self.times)} ({reason})"
        return SampleError("unreadable", f"{self.name}: expected a video, found {found}; make the file anew")


@contextmanager
def _opened(source: Source) -> Iterator[_Video]:
    """Open a video file and read its compressed frames."""
    name = str(source)
    if source.path is None:
        raise SampleError("missing", f"{name}: expected the path of a video file")
    _check_file(source.path, name)
    with decoding(name, "a video", av.FFmpegError), open_container(source.path, name, "a video", _KINDS) as container:
        stream = _video_stream(container, name)
        packets = _packets(container, stream, name)
        shown = [packet.pts for packet in packets if not packet.is_discard]
        known = [time for time in shown if time is not None]
        yield _Video(name, stream, packets, sorted(known) if len(known) == len(shown) else shown)


def _check_file(path: Path, name: str) -> None:
    try:
        size = path.stat().st_size
    except FileNotFoundError as error:
        raise SampleError("missing", f"{name}: expected a video file, found nothing there") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path.
        raise SampleError("unreadable", f"{name}: expected a video file, found {one_line(error)}") from error
    if size == 0:
        raise SampleError("empty", f"{name}: expected a video, found an empty file")
    if size > MAX_FILE_BYTES:
        raise SampleError("too_large", f"{name}: expected at most {MAX_FILE_BYTES:,} bytes, found {size:,}")


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """Return the file's video stream, ready to decode; the cover picture of a recording is none."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        others = ", ".join(stream.type for stream in container.streams) or "no stream at all"
        raise SampleError("unsupported", f"{name}: expected a video, found no video stream ({others})")
    stream = streams[0]
    height, width = stream.codec_context.height, stream.codec_context.width
    if height * width > MAX_FRAME_PIXELS:
        found = f"the header declares {width}x{height}"
        raise SampleError("too_large", f"{name}: expected at most {MAX_FRAME_PIXELS:,} pixels per frame, {found}")
    # The size may change in mid-stream; the decoder then refuses what is larger.
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    stream.thread_type = ThreadType.NONE
    stream.thread_count = 1
    return stream


def _packets(container: InputContainer, stream: VideoStream, name: str) -> list[Packet[VideoStream]]:
    """Return the compressed frames, in the order of decoding."""
    packets: list[Packet[VideoStream]] = []
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise SampleError("truncated", f"{name}: expected a video, found a file cut short at frame {len(packets)}")
        if packet.size:
            packets.append(packet)
        if len(packets) > MAX_FRAMES:
            raise SampleError("too_large", f"{name}: expected at most {MAX_FRAMES:,} frames, found more")
    promised = len(stream.index_entries) if container.format.name.startswith("mov") else 0
    if len(packets) < promised:
        found = f"{len(packets)} of {promised} frames: the file was cut short"
        raise SampleError("truncated", f"{name}: expected a video, found {found}")
    return packets


# Pixels -------------------------------------------------------------------------------------------------------------


def _check_memory(count: int, frame: VideoFrame, name: str) -> None:
    found = count * frame.height * frame.width * 3
    if found > MAX_SAMPLED_BYTES:
        raise SampleError(
            "too_large",
            f"{name}: {count} frames of {frame.width}x{frame.height} pixels take {found:,} bytes; expected at most "
            f"{MAX_SAMPLED_BYTES:,}: sample fewer frames",
        )


def _display_matrix(frame: VideoFrame) -> NDArray[np.int32] | None:
    """Return how a frame is turned, nine numbers; None if it is not."""
    matrix = cast("SideDataContainer", frame.side_data).get(Type.DISPLAYMATRIX)
    return None if matrix is None else np.frombuffer(bytes(matrix), np.int32)


def _rgb(frame: VideoFrame, matrix: NDArray[np.int32] | None, name: str) -> Image8:
    """Return a decoded frame as (height, width, 3), upright."""
    pixels = cast("Image8", frame.to_ndarray(format="rgb24", threads=1))
    return pixels if matrix is None else _upright(pixels, matrix, name)


def _upright(pixels: Image8, matrix: NDArray[np.int32], name: str) -> Image8:
    """Apply a display matrix, which maps column x and row y to column ``a x + c y`` and row ``b x + d y``."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if a == d == 0 and b and c:
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    elif b == c == 0 and a and d:
        across, down = a, d
    else:
        found = f"one by another angle (display matrix {a} {b} {c} {d})"
        raise SampleError("unsupported", f"{name}: expected a video turned by a multiple of 90 degrees, found {found}")
    return pixels[:: 1 if down > 0 else -1, :: 1 if across > 0 else -1]


def _stacked(frames: Sequence[Image8], name: str) -> Frames8:
    sizes = sorted({(frame.shape[1], frame.shape[0]) for frame in frames})
    if len(sizes) > 1:
        found = " and ".join(f"{width}x{height}" for width, height in sizes)
        raise SampleError("unsupported", f"{name}: expected frames of one size, found {found}")
    return np.stack(frames)
