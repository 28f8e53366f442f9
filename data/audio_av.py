"""The sound of files that libsndfile does not read: MP4 and M4A, AAC, WebM and Matroska, WMA, MOV, AVI, FLV, MPEG.

Decoded by FFmpeg (PyAV), the first sound track of a file that has several. What FFmpeg decodes is taken as it is: a
delay of the encoder is cut off where the file states it, and only there. A file in which the decoder meets damage is
refused as a whole. Only MP4, MOV and most Matroska files state how long their sound is: another one that ends between
two packets cannot be told from a whole one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.container import InputContainer

from data.audio import Samples, Track, check_length, check_rate, cut_short
from data.containers import open_container
from data.errors import SampleError
from data.pixels import decoding, one_line

_KINDS = {
    **dict.fromkeys(("mov", "mp4"), "M4A, MP4, MOV"),
    "aac": "AAC",
    "asf": "WMA",
    "avi": "AVI",
    "flv": "FLV",
    **dict.fromkeys(("matroska", "webm"), "WebM, Matroska"),
    **dict.fromkeys(("mpeg", "mpegts"), "MPEG"),
}
"""The demuxers that may be tried, and what users call their files."""
_BY_LIBSNDFILE = ("WAV", "FLAC", "Ogg", "MP3", "AIFF")

_SLACK_S = 0.1
"""Stated lengths count the delay of the encoder, or do not."""
_DURATION_TAG = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)$")


@contextmanager
def opened_track(path: Path, max_seconds: float) -> Iterator[Track]:
    """Open the sound of a file.

    Parameters
    ----------
    path
        The file.
    max_seconds
        The longest sound that is read.

    Raises
    ------
    SampleError
        If there is none, it is too long, or the file is damaged or cut short.
    """
    name, what = str(path), "a recording"
    with (
        decoding(name, what, av.FFmpegError),
        open_container(path, name, what, _KINDS, others=_BY_LIBSNDFILE) as container,
    ):
        if not container.streams.audio:
            others = ", ".join(stream.type for stream in container.streams) or "no stream at all"
            raise SampleError("unsupported", f"{name}: expected {what}, found no sound in the file ({others})")
        stream = container.streams.audio[0]
        stated = _stated_end(container, stream)
        check_length(path, stated or 0, max_seconds)
        frames = _frames(path, container, stream, stated)
        # Of a stream in two layers (HE-AAC) the header may state half the rate: that of a frame is the true one.
        first = next(frames, None)
        if first is None:
            raise SampleError("empty", f"{path}: expected a recording, found one of 0 samples")
        check_rate(path, first.sample_rate)
        yield Track(first.sample_rate, _mono_blocks(path, chain([first], frames), first.sample_rate, max_seconds))


def _mono_blocks(path: Path, frames: Iterable[AudioFrame], rate: int, max_seconds: float) -> Iterator[Samples]:
    """Yield the average of the channels, frame by frame."""
    # Only the type of the numbers changes: rate and layout stay those of the first frame.
    as_floats, done = AudioResampler(format="fltp"), 0
    for frame in frames:
        if frame.sample_rate != rate:
            found = f"{frame.sample_rate:,} after {rate:,} samples per second"
            raise SampleError("unsupported", f"{path}: expected one rate, found {found}; write the file anew")
        done += frame.samples
        check_length(path, done / rate, max_seconds)
        for converted in as_floats.resample(frame):
            yield converted.to_ndarray().mean(axis=0, dtype=np.float32)


def _frames(path: Path, container: InputContainer, stream: AudioStream, stated: float | None) -> Iterator[AudioFrame]:
    """Decode to the end, refusing what is damaged or cut short."""
    packets, read, seconds, end = container.demux(stream), 0, 0.0, 0.0
    for packet in packets:
        if packet.is_corrupt:
            raise cut_short(path, seconds, stated)
        try:
            frames = stream.decode(packet)
        except av.FFmpegError as error:
            # The last packet is damaged where the file ends within it.
            if all(not later.size for later in packets):
                raise cut_short(path, seconds, stated) from error
            found = f"damage after {seconds:.4g} s ({one_line(error)})"
            raise SampleError("unreadable", f"{path}: expected a recording, found {found}; copy it again") from error
        read += bool(packet.size)
        if packet.pts is not None and packet.duration is not None and packet.time_base is not None:
            end = max(end, float((packet.pts + packet.duration) * packet.time_base))
        for frame in frames:
            seconds += frame.samples / frame.sample_rate
            yield frame
    promised = len(stream.index_entries) if container.format.name.startswith("mov") else 0
    # By its packets an MP4 is counted; its length may be that before an edit.
    ends_early = not promised and stated is not None and end < stated - _SLACK_S
    if read < promised or ends_early:
        raise cut_short(path, seconds, stated)


def _stated_end(container: InputContainer, stream: AudioStream) -> float | None:
    """Return when the sound ends by what the file says, in seconds; None if it says nothing, or FFmpeg would guess."""
    if container.format.name.startswith("mov") and stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.format.name.startswith("matroska"):
        tag = _DURATION_TAG.match(stream.metadata.get("DURATION", ""))
        if tag is not None:
            hours, minutes, seconds = tag.groups()
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        # The length of the whole file is that of its longest stream.
        if len(container.streams) == 1 and container.duration is not None:
            return container.duration / av.time_base
    return None
