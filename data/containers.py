"""Open a file of sound or pictures that FFmpeg reads, and nothing else that it might name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import av
from av.container import InputContainer

from data.errors import SampleError


def open_container(
    path: Path, name: str, what: str, kinds: Mapping[str, str], *, others: Sequence[str] = ()
) -> InputContainer:
    """Open a file by its content, whatever its suffix.

    Parameters
    ----------
    path
        The file.
    name
        How messages call it.
    what
        What is expected, such as ``a video``.
    kinds
        FFmpeg's names of the demuxers that may be tried, and what users call their files. Named, because playlists
        would open other files and the network.
    others
        What users call the files that were tried before, for messages.

    Raises
    ------
    SampleError
        If the file is none of these, or an MP4 without its index.
    """
    # "file:" keeps a path from being read as an address, the lists keep a file from naming others.
    options = {"protocol_whitelist": "file", "format_whitelist": ",".join(kinds)}
    try:
        return av.open(f"file:{path}", options=options)
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        with path.open("rb") as file:
            beginning = file.read(12)
        if not beginning:
            raise SampleError("empty", f"{name}: expected {what}, found an empty file") from error
        if beginning[4:8] == b"ftyp":
            message = f"{name}: expected {what}, found an MP4 file cut short or never finished: it has no index (moov)"
            raise SampleError("truncated", message) from error
        known = ", ".join(dict.fromkeys((*others, *kinds.values())))
        message = f"{name}: expected {what} ({known}), found bytes that begin {beginning!r}"
        raise SampleError("unreadable", message) from error
