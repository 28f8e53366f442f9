"""Read recordings as one mono waveform at one rate: WAV, FLAC, Ogg, MP3, AIFF, M4A, WebM, of any depth and rate.

Decoded by libsndfile (soundfile), or by FFmpeg (`data.audio_av`) what that does not know, and resampled by soxr's HQ
filter, in blocks, so that memory is bounded by what is returned. The format is read from the bytes, never from the
suffix. Nothing is repaired in silence: a file that is cut short, silent or holds values that are no numbers is
refused with its reason.

Everything here may be called from many threads; the decoders release the interpreter's lock.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from data.errors import SampleError
from data.manifest import Source

Samples = NDArray[np.float32]
"""A mono waveform, shape (n,), float32, full scale at 1."""

RATE = 16_000
"""The rate that speech and everyday sounds are read at unless another one is wanted, in Hz."""

MAX_SECONDS = 2 * 3600
"""Longest sample that is read, all its recordings together."""
MIN_FILE_RATE, MAX_FILE_RATE = 1_000, 768_000
"""Rates a file may state, in Hz."""

_BLOCK_FRAMES = 2**20
_SMALL_BLOCK = 4096
_UNKNOWN_FORMAT = 1
"""libsndfile's number for it."""
_UNKNOWN_FRAMES = 2**63 - 1
_UNKNOWN_BYTES = 0x7FFF_0000
"""From here on a size is a placeholder of a program that could not go back and fill it in."""
_JOINABLE = ("MP3", "OGG", "FLAC")
_MAX_TAG_BYTES = 2048
"""What may follow the sound: tags at the end of an MP3."""
# What libsndfile notes about a file that ends before its header says.
_SHORT_CHUNK = re.compile(r"(?:data|SSND) : (\d+) \(should be (\d+)\)")
_UNENDED_OGG = "Last page lacks an end-of-stream bit"


@dataclass(frozen=True)
class Track:
    """An open recording: the rate it is stored at, in Hz, and its mono waveform at that rate, block by block."""

    rate: int
    blocks: Iterator[Samples]


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A sound.

    Attributes
    ----------
    samples
        The waveform, mono, float32, shape (n,), full scale at 1.
    rate
        Samples per second.
    bandwidth
        The highest frequency that it can hold, in Hz: half of `rate`, or half of its file's own rate where that is
        lower (the lowest of several files).
    """

    samples: Samples
    rate: int
    bandwidth: float

    @property
    def seconds(self) -> float:
        """Its length in seconds."""
        return len(self.samples) / self.rate


def load_audio(source: Source, *, rate: int = RATE) -> Recording:
    """Read the recordings that a source names, one after the other.

    Channels are averaged, then resampled.

    Parameters
    ----------
    source
        One file or, as `Source.rest`, several.
    rate
        Samples per second that are wanted.

    Raises
    ------
    SampleError
        If a file is missing, no audio file, cut short, empty, too long, or holds values that are not finite; or if
        all that is heard is silence.
    """
    if source.path is None:
        raise SampleError("missing", f"{source}: expected the path of an audio file")
    if source.selector:
        raise SampleError("unsupported", f"{source}: a recording has no part {source.selector!r}; name the whole file")
    parts, file_rates, seconds = [], [], 0.0
    for path in (source.path, *source.rest):
        samples, file_rate = _read(path, rate, MAX_SECONDS - seconds)
        parts.append(samples)
        file_rates.append(file_rate)
        seconds += len(samples) / rate
    joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
    if not joined.any():
        raise SampleError("empty", f"{source}: expected sound, found silence: all {len(joined):,} samples are zero")
    return Recording(samples=joined, rate=rate, bandwidth=min(rate, *file_rates) / 2)


def trim_silence(recording: Recording, top_db: float) -> Recording:
    """Cut off the quiet beginning and end of a recording.

    A frame of 2048 samples, every 512, is quiet if its power is at least `top_db` decibels below that of the loudest
    one. Equal to ``librosa.effects.trim``.

    Parameters
    ----------
    recording
        A recording with at least one sample.
    top_db
        Decibels, above 0.
    """
    frame, hop = 2048, 512
    padded = np.pad(recording.samples, frame // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, frame)[::hop]
    power = np.maximum(np.einsum("ij,ij->i", frames, frames, dtype=np.float64) / frame, 1e-10)
    loud = np.flatnonzero(10 * np.log10(power / power.max()) > -top_db)
    return replace(recording, samples=recording.samples[loud[0] * hop : (loud[-1] + 1) * hop])


def file_rate(source: Source) -> int:
    """Return the samples per second that a recording is stored at, of several files the lowest.

    Raises
    ------
    SampleError
        If a file cannot be read.
    """
    if source.path is None:
        raise SampleError("missing", f"{source}: expected the path of an audio file")
    rates = []
    for path in (source.path, *source.rest):
        with _opened(path, MAX_SECONDS, whole=False) as track:
            rates.append(track.rate)
    return min(rates)


def _read(path: Path, rate: int, max_seconds: float) -> tuple[Samples, int]:
    """Return one file's waveform at a rate, and the rate it is stored at."""
    with _opened(path, max_seconds) as track:
        stream = soxr.ResampleStream(track.rate, rate, 1, dtype="float32", quality="HQ")
        blocks = [stream.resample_chunk(block) for block in track.blocks]
        blocks.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
        samples = np.concatenate(blocks)
        if not np.isfinite(samples).all():
            raise SampleError("not_finite", f"{path}: expected numbers, found samples that are NaN or infinite")
        return samples, track.rate


@contextmanager
def _opened(path: Path, max_seconds: float, *, whole: bool = True) -> Iterator[Track]:
    """Open an audio file, which is read to its end if `whole`; whatever is wrong with it becomes a SampleError."""
    try:
        with path.open("rb") as handle:
            file = _sound_file(handle)
            if file is None:
                from data.audio_av import opened_track

                with opened_track(path, max_seconds) as track:
                    yield track
                return
            with file:
                _check_header(path, file, max_seconds)
                yield Track(file.samplerate, _mono_blocks(path, file))
                if whole:
                    _refuse_unread_sound(path, file, handle.fileno())
    except FileNotFoundError as error:
        raise SampleError("missing", f"{path}: expected an audio file, found nothing there") from error
    except soundfile.LibsndfileError as error:
        raise _refusal(path, error) from error
    except OSError as error:
        raise SampleError("unreadable", f"{path}: expected an audio file, found {error.strerror or error}") from error


def _sound_file(handle: BinaryIO) -> soundfile.SoundFile | None:
    """Open a file with libsndfile; None if it does not know the format."""
    try:
        # By its number: libsndfile would guess the format of an unknown file from its name.
        return soundfile.SoundFile(handle.fileno(), closefd=False)
    except soundfile.LibsndfileError as error:
        if error.code != _UNKNOWN_FORMAT:
            raise
        return None


def _refusal(path: Path, error: soundfile.LibsndfileError) -> SampleError:
    """Return what is wrong with a file of a known format that libsndfile stops at."""
    with path.open("rb") as handle:
        try:
            with soundfile.SoundFile(handle.fileno(), closefd=False) as file:
                return _broken_off(path, file, handle.fileno())
        except soundfile.LibsndfileError:
            reason = error.error_string.strip().rstrip(".").removeprefix("Error : ")
            return SampleError("unreadable", f"{path}: expected a sound file, found damage in its header ({reason})")


def _broken_off(path: Path, file: soundfile.SoundFile, descriptor: int) -> SampleError:
    """Return how far a file can be read whose decoder meets an error, as that of a FLAC does where it is cut."""
    done = 0
    try:
        while len(block := file.read(_SMALL_BLOCK, always_2d=True)):
            done += len(block)
    except soundfile.LibsndfileError:
        pass  # that is why we are here
    if os.lseek(descriptor, 0, os.SEEK_CUR) == os.fstat(descriptor).st_size:
        return cut_short(path, done / file.samplerate, file.frames / file.samplerate)
    found = f"damage after {done:,} of {file.frames:,} samples"
    return SampleError("unreadable", f"{path}: expected a sound file, found {found}; copy it again")


def cut_short(path: Path, seconds: float, stated: float | None) -> SampleError:
    """Return the refusal of a recording that ends early: how much there is, and what the header states if it does."""
    of = "" if stated is None else f" of the {stated:.4g} s that the header states"
    found = f"only the first {seconds:.4g} s{of}"
    return SampleError("truncated", f"{path}: expected a whole recording, found {found}; copy it again")


def check_length(path: Path, seconds: float, max_seconds: float) -> None:
    """Refuse a recording that is longer than what is left of `MAX_SECONDS`.

    Raises
    ------
    SampleError
        If it is.
    """
    if seconds > max_seconds:
        expected = f"at most {MAX_SECONDS / 3600:g} hours per sample"
        raise SampleError("too_large", f"{path}: expected {expected}, found {seconds:,.0f} s here; cut it into samples")


def check_rate(path: Path, rate: int) -> None:
    """Refuse a rate that no recording has.

    Raises
    ------
    SampleError
        If it is outside `MIN_FILE_RATE` to `MAX_FILE_RATE`.
    """
    if not MIN_FILE_RATE <= rate <= MAX_FILE_RATE:
        expected = f"{MIN_FILE_RATE:,} to {MAX_FILE_RATE:,} samples per second"
        raise SampleError("unsupported", f"{path}: expected {expected}, the header states {rate:,}")


def _check_header(path: Path, file: soundfile.SoundFile, max_seconds: float) -> None:
    check_rate(path, file.samplerate)
    if file.frames == _UNKNOWN_FRAMES:
        raise SampleError("unsupported", f"{path}: the header does not state the length; write the file anew")
    if file.frames == 0:
        raise SampleError("empty", f"{path}: expected a recording, found one of 0 samples")
    seconds = file.frames / file.samplerate
    check_length(path, seconds, max_seconds)
    notes = file.extra_info
    short = _SHORT_CHUNK.search(notes)
    if short and int(short[1]) < _UNKNOWN_BYTES:
        raise cut_short(path, seconds, seconds * int(short[1]) / max(int(short[2]), 1))
    if _UNENDED_OGG in notes:
        raise cut_short(path, seconds, None)


def _mono_blocks(path: Path, file: soundfile.SoundFile) -> Iterator[Samples]:
    """Yield the average of the channels, block by block."""
    done = 0
    while len(block := file.read(_BLOCK_FRAMES, dtype="float32", always_2d=True)):
        done += len(block)
        with np.errstate(invalid="ignore", over="ignore"):
            yield block.mean(axis=1)
    # Without a header of its own the length of an MP3 is an estimate.
    if done < file.frames * (0.99 if file.format == "MP3" else 1):
        raise cut_short(path, done / file.samplerate, file.frames / file.samplerate)


def _refuse_unread_sound(path: Path, file: soundfile.SoundFile, descriptor: int) -> None:
    """Refuse a file of which libsndfile has read a part only.

    It stops where it expects the end: at the estimated length of an MP3 of variable rate without a header that states
    it, and after the first of several files that were joined byte by byte.
    """
    size = os.fstat(descriptor).st_size
    unread = size - os.lseek(descriptor, 0, os.SEEK_CUR)
    if file.format in _JOINABLE and unread > max(_MAX_TAG_BYTES, size / 100):
        found = f"{unread:,} bytes behind it"
        raise SampleError("unsupported", f"{path}: expected one recording, found {found}; write the file anew")
