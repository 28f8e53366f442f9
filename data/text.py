"""Texts of samples: from a cell of the table, a text file, or a CHAT transcript."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from data.chat import Transcript, parse_chat, parse_plain
from data.errors import SampleError
from data.manifest import Source

CHAT_SUFFIX = ".cha"
PARTICIPANT = "PAR"
"""Whose words are the text of a transcript, unless another speaker is named: ``visit.cha#speaker=CHI``."""
MAX_BYTES = 1 << 24
"""Longest text file in bytes: some three million words; what is longer is no text of one sample."""


def chat_selector(speakers: str = PARTICIPANT) -> str:
    """Return which part of a transcript is meant, as `Source.selector`; ``PAR+INV`` are two speakers.

    It is part of the sample's key, so that embeddings of a transcript and of its uncleaned text, or of two
    speakers, are never mixed up.
    """
    return f"speaker={speakers}"


def with_speaker(source: Source) -> Source:
    """Return a transcript with the speaker who is meant where none is named; anything else as it is."""
    return replace(source, selector=chat_selector()) if _is_chat(source) and not source.selector else source


def load_text(source: Source) -> str:
    """Return a sample's text.

    Parameters
    ----------
    source
        A text, a file of UTF-8 text, or a CHAT transcript, of which it is what the selected speakers said, cleaned
        of codes (`data.chat.clean`).

    Raises
    ------
    SampleError
        If there is no text, the file cannot be read or is no UTF-8, or the transcript has no such speaker.
    """
    text = load_transcript(source).text(_speakers(source)) if _is_chat(source) else _plain(source)
    if not text.strip():
        raise SampleError("empty", f"{source}: expected a text, found none")
    return text


def load_transcript(source: Source) -> Transcript:
    """Return a sample as a transcript, with all its speakers; a text without codes has one, who has no name.

    Raises
    ------
    SampleError
        As `load_text`.
    """
    if not _is_chat(source):
        return parse_plain(_plain(source))
    transcript = parse_chat(_plain(source), str(source))
    lacking = [name for name in _speakers(source) if name not in transcript.speakers]
    if lacking and transcript.speakers:
        raise SampleError(
            "empty",
            f"{source}: expected lines that begin with *{lacking[0]}:, found only those of "
            f"{', '.join(transcript.speakers)}; name the speaker as in {source.path}#speaker={transcript.speakers[0]}",
        )
    if lacking:
        raise SampleError("empty", f"{source}: expected lines that begin with *{lacking[0]}:, found no speaker at all")
    return transcript


def speakers_of(source: Source) -> tuple[str, ...]:
    """Return the codes of the speakers whose words are the sample; of a text without codes, the empty name."""
    return _speakers(source) if _is_chat(source) else ("",)


def _speakers(source: Source) -> tuple[str, ...]:
    return tuple((source.selector or chat_selector()).removeprefix("speaker=").split("+"))


def _is_chat(source: Source) -> bool:
    return source.path is not None and source.path.suffix.lower() == CHAT_SUFFIX


def _plain(source: Source) -> str:
    """Return the text as it stands in the cell or the file, to the letter: it is what the sample's key was made of."""
    if source.path is None:
        return source.text or ""
    if source.selector and not (_is_chat(source) and source.selector.startswith("speaker=")):
        raise SampleError("unsupported", f"{source}: expected a whole file, or #speaker=CODE of a {CHAT_SUFFIX} file")
    content = _read(source.path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SampleError(
            "unreadable",
            f"{source.path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8",
        ) from error


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        content = path.read_bytes() if size <= MAX_BYTES else None
    except FileNotFoundError as error:
        raise SampleError("missing", f"{path}: expected a text file, found nothing there") from error
    except OSError as error:
        raise SampleError("unreadable", f"{path}: expected a text file, found {error.strerror or error}") from error
    if content is None:
        raise SampleError("too_large", f"{path}: expected at most {MAX_BYTES:,} bytes, found {size:,}")
    return content
