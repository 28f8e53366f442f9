r"""CHAT transcripts (``.cha``): who said what and when, with and without the transcriber's codes.

::

    @UTF8
    @Begin
    @Participants:   PAR Participant, INV Investigator
    @ID:   eng|corpus|PAR|67;03.|female|Control||Participant|||
    *PAR:   the &-uh boy is <on the> [//] falling off
            the stool . •1204_5210•
    %mor:   det|the n|boy ...
    @End

A line begins with ``@`` (a header), ``*`` (what a speaker said) or ``%`` (what others noted of the line above);
a line that begins with a tab goes on with the one before it. Labels end in a tab too, and • stands for ``\x15``.

Source: B. MacWhinney, *Tools for Analyzing Talk, Part 1: The CHAT Transcription Format*, https://doi.org/10.21415/3mhn-0z89
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from data.errors import SampleError

HESITATION = "uh"
"""What a filled pause, a fragment or an event is in the cleaned text: that speech halted stays, how it sounded goes."""
FILLERS = frozenset({"uh", "um", "uhm", "er", "erm", "hm", "hmm"})
"""Filled pauses that a transcriber wrote as words; they count as hesitations and not as words."""

_TIME = re.compile(r'\x15(?:%\w+:"[^"\x15]*"_)?(\d+)_(\d+)-?\x15')
_MARKED_HESITATION = re.compile(r"(?<!\w)&(?:[-+~](?=\S)|(?=[^\W\d_]))")
_REPAIR = re.compile(r"\[/+[-?]?\]")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_AGE = re.compile(r"(\d+)(?:;(\d+)?(?:\.(\d+)?)?)?$")

_INTERPOSED = (re.compile(r"&\*\w+:\S+|&[{}]\S+"), " ")
_CODE = re.compile(r"(?<!\w)&[-=+~]?[^\s<>\[\],.?!]+")
_CLEANING = (
    (re.compile(r"\[[^\[\]]*\]"), " "),  # [//], [: replacement], [* error], [+ postcode]: notes on what was said
    (re.compile(r"(?<!\S)\+[<^,+≈≋](?=\s)|(?<!\S)\+\"(?=\s)"), " "),  # how an utterance follows the one before
    (re.compile(r"(?<!\S)\+[/.\"!?]*([.?!])"), r"\1"),  # +... +/? +//. : how it ends
    (re.compile(r"[<>]"), " "),  # the scope of a note
    (re.compile(r"\((?:\.+|(?:\d+:)?\d+(?:\.\d*)?)\)"), " "),  # (.) (...) (2.5): silent pauses
    (re.compile(r"[()]"), ""),  # windo(w): the part that was not heard
    (re.compile(r"(?<!\S)0(?:[^\W\d]\S*)?(?!\S)"), " "),  # 0is: a word that was left out; 0: nothing was said
    (re.compile(r"(?<!\w)(?:xxx|yyy|www)(?!\w)"), " "),  # not understood, not transcribed
    (re.compile(r"(?<=\w)@[\w:$&*-]+"), ""),  # bumblebee@c: what kind of word it is
    (re.compile(r"(?<=\w)[_+](?=\w)"), " "),  # Red_Cross, ice+cream
    (re.compile(r"(?<=[^\W\d]):+|(?<=\w)\^(?=\w)|[↑↓↗↘⇗⇘→ˈˌ≠∆∇°⌈⌉⌊⌋„‡“”\x00-\x08\x0e-\x1b]"), ""),  # lengths and tones
    (re.compile(r"\s+"), " "),
    (re.compile(r" +(?=[.,?!;])"), ""),
)
"""What is taken out of a line, in this order. A change of it must change `data.text.chat_selector` too."""


@dataclass(frozen=True, kw_only=True)
class Participant:
    """What the headers say of a speaker.

    Attributes
    ----------
    code
        The speaker's name in the transcript, ``PAR``.
    role
        ``Participant``, ``Investigator``, ``Target_Child``; empty if unknown.
    age
        Age in years, None if unknown.
    sex, group
        As written; empty if unknown.
    """

    code: str
    role: str = ""
    age: float | None = None
    sex: str = ""
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One utterance of one speaker.

    Attributes
    ----------
    speaker
        The speaker's code.
    spoken
        The line as it was transcribed, with its codes and without its time marks.
    text
        The cleaned text: words and punctuation, `HESITATION` for each code of a filled pause, fragment or event.
    words
        The words in small letters, repeated and corrected ones among them, without hesitations.
    hesitations
        Number of filled pauses and fragments.
    repairs
        Number of marks of repetition, correction, reformulation and false start.
    start_ms, end_ms
        When it was said, in milliseconds of the recording; None if that is not stated or makes no sense.
    """

    speaker: str
    spoken: str
    text: str
    words: tuple[str, ...]
    hesitations: int
    repairs: int
    start_ms: int | None = None
    end_ms: int | None = None


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """Who said what.

    Attributes
    ----------
    utterances
        All utterances of all speakers, in order.
    participants
        What the headers say of each speaker, by code.
    coded
        Whether the transcript has codes for fragments and repairs, as plain text has not.
    """

    utterances: tuple[Utterance, ...]
    participants: Mapping[str, Participant]
    coded: bool = True

    @property
    def speakers(self) -> tuple[str, ...]:
        """The codes of those who said something, in the order of their first utterance."""
        return tuple(dict.fromkeys(utterance.speaker for utterance in self.utterances))

    def text(self, speakers: Collection[str]) -> str:
        """Return the cleaned text of some speakers; utterances without a word are left out."""
        chosen = (utterance.text for utterance in self.utterances if utterance.speaker in speakers)
        return " ".join(text for text in chosen if any(map(str.isalnum, text)))


def parse_chat(content: str, name: str) -> Transcript:
    """Read a transcript.

    Parameters
    ----------
    content
        The text of a ``.cha`` file.
    name
        The file's name, for messages.

    Raises
    ------
    SampleError
        If it is not CHAT, or ends before its ``@End``.
    """
    utterances, headers = [], []
    for number, line in _logical_lines(content, name):
        label, _, value = line.partition(":")
        if line.startswith("@"):
            headers.append((label.strip(), value.strip()))
        elif line.startswith("*"):
            if not value and ":" not in line:
                raise SampleError("unreadable", f"{name}, line {number}: {line[:40]!r}: expected *SPEAKER: and a text")
            utterances.append(_utterance(label[1:].strip(), value))
    labels = {label for label, _ in headers}
    if "@Begin" in labels and "@End" not in labels:
        raise SampleError("truncated", f"{name}: the transcript has no @End; expected it as the last line")
    if not labels and not utterances:
        raise SampleError("unsupported", f"{name}: expected a CHAT transcript, found neither a header nor a speaker")
    return Transcript(utterances=tuple(utterances), participants=_participants(headers))


def parse_plain(content: str) -> Transcript:
    """Return a text without codes as a transcript of one speaker without a name; a sentence is an utterance."""
    sentences = (part.strip() for part in re.split(r"(?<=[.?!])\s+|\n+", content))
    return Transcript(
        utterances=tuple(_of_words("", text, text, text, marked=0, repairs=0) for text in sentences if text),
        participants={},
        coded=False,
    )


def clean(line: str, hesitation: str = HESITATION) -> str:
    """Return a speaker's line as text: without codes, time marks and notes.

    Parameters
    ----------
    line
        What follows ``*PAR:``.
    hesitation
        What stands for filled pauses (``&-uh``), fragments (``&+fr``) and events (``&=laughs``).
    """
    text = _TIME.sub(" ", line)
    # Before the brackets: a code may touch one, as in &-uh[/].
    for pattern, by in (_INTERPOSED, (_CODE, f" {hesitation} "), *_CLEANING):
        text = pattern.sub(by, text)
    return text.strip()


def _logical_lines(content: str, name: str) -> Iterator[tuple[int, str]]:
    """Yield the lines with those that go on with them, and the number of the first."""
    first, parts = 0, list[str]()
    for number, line in enumerate(re.split(r"\r\n?|\n", content), start=1):
        if not line.strip():
            continue
        if line[0] in "@*%":
            if parts:
                yield first, " ".join(parts)
            first, parts = number, [line.rstrip()]
        elif line[0] in "\t " and parts:
            parts.append(line.strip())
        else:
            raise SampleError(
                "unsupported",
                f"{name}, line {number}: {line[:40]!r} begins neither with @, * or % nor with a tab; expected a CHAT "
                f"transcript",
            )
    if parts:
        yield first, " ".join(parts)


def _utterance(speaker: str, line: str) -> Utterance:
    spoken = " ".join(_TIME.sub(" ", line).split())
    marked, repairs = len(_MARKED_HESITATION.findall(spoken)), len(_REPAIR.findall(spoken))
    times = [(int(start), int(end)) for start, end in _TIME.findall(line)]
    start, end = (times[0][0], times[-1][1]) if times else (0, 0)
    timed = {"start_ms": start, "end_ms": end} if start < end else {}
    return _of_words(speaker, spoken, clean(spoken), clean(spoken, ""), marked=marked, repairs=repairs, **timed)


def _of_words(
    speaker: str, spoken: str, text: str, words: str, *, marked: int, repairs: int, **timed: int
) -> Utterance:
    said = _WORD.findall(words.lower())
    kept = tuple(word for word in said if word not in FILLERS)
    hesitations = marked + len(said) - len(kept)
    return Utterance(
        speaker=speaker, spoken=spoken, text=text, words=kept, hesitations=hesitations, repairs=repairs, **timed
    )


def _participants(headers: list[tuple[str, str]]) -> dict[str, Participant]:
    """Return the speakers of ``@Participants``, and what ``@ID`` says of each.

    An ``@ID`` is language|corpus|code|age|sex|group|status|role|education|other.
    """
    found: dict[str, Participant] = {}
    for label, value in headers:
        if label == "@Participants":
            listed = [entry.split() for entry in value.split(",")]
            found |= {words[0]: Participant(code=words[0], role=words[-1]) for words in listed if len(words) > 1}
    for label, value in headers:
        fields = [field.strip() for field in value.split("|")]
        if label == "@ID" and len(fields) > 7:
            code, age, sex, group, role = (fields[i] for i in (2, 3, 4, 5, 7))
            found[code] = Participant(code=code, role=role, age=_age(age), sex=sex, group=group)
    return found


def _age(text: str) -> float | None:
    """Return an age in years from ``years;months.days``, of which months and days may lack."""
    match = _AGE.match(text)
    if match is None:
        return None
    years, months, days = (int(part or 0) for part in match.groups())
    return years + months / 12 + days / 365.25
