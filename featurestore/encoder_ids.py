"""How encoder ids are put together: several joined by ``+``, and wrappers before the encoder they feed.

::

    offline:efficientnet-lite0+offline:minilm     the features of two encoders, side by side
    frames+offline:efficientnet-lite0             one encoder: the frames of a video, each through an image encoder
    frames:8,max+resnet50+minilm                  (frames:8,max+resnet50) joined with minilm
    augmented:8,flip+resnet50                     eight views of an image, each flipped or not, to train heads on

A wrapper is a word, which may have options after a colon, and belongs to the id that follows it. What neither is a
wrapper nor follows one begins a new encoder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from data.errors import did_you_mean
from data.manifest import Modality
from featurestore.errors import UnknownEncoder
from featurestore.spec import AUGMENTED


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """A word that turns an encoder of one modality into one of another, or of the same.

    Attributes
    ----------
    encodes, takes
        The modality of the whole, and that of the encoder inside.
    options
        By name, what may be chosen: a regular expression, which no two share a match of, and the default.
    """

    encodes: Modality
    takes: Modality
    options: Mapping[str, tuple[str, str]]


WRAPPERS: Mapping[str, Wrapper] = {
    AUGMENTED: Wrapper(
        encodes="image",
        takes="image",
        options={
            "count": (r"[1-9]\d{0,2}", "4"),
            "flip": ("flip", ""),
            "rotation": (r"rotation=[\d.]+", ""),
            "randaugment": (r"randaugment|randaugment=\d+", ""),
            "seed": (r"seed=\d+", "seed=0"),
        },
    ),
    "frames": Wrapper(
        encodes="video",
        takes="image",
        options={"count": (r"[1-9]\d{0,3}", "16"), "pool": ("mean|max", "mean")},
    ),
    "spectrogram": Wrapper(
        encodes="audio",
        takes="image",
        options={
            "framing": ("windows|squash", "windows"),
            "pool": ("mean|max", "mean"),
            "trim": (r"trim=[\d.]+", ""),
            "fmax": (r"fmax=[\d.]+", ""),
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class WrappedId:
    """A wrapper, its options and the id of the encoder inside.

    Attributes
    ----------
    word
        One of `WRAPPERS`.
    options
        Every option of the wrapper by name.
    inner
        The id after the wrapper, as it was written.
    """

    word: str
    options: Mapping[str, str]
    inner: str

    @property
    def wrapper(self) -> Wrapper:
        """Return what the word stands for."""
        return WRAPPERS[self.word]

    @property
    def prefix(self) -> str:
        """The wrapper in its shortest form: ``frames``, ``frames:8``, ``frames:8,max``."""
        defaults = {name: default for name, (_, default) in self.wrapper.options.items()}
        chosen = [value for name, value in self.options.items() if value != defaults[name]]
        return f"{self.word}:{','.join(chosen)}" if chosen else self.word

    @classmethod
    def parse(cls, encoder_id: str) -> Self | None:
        """Return the parts of an id that begins with a wrapper, None of any other.

        Raises
        ------
        UnknownEncoder
            If the wrapper has no such option, or nothing to wrap.
        """
        if not _begins_with_wrapper(encoder_id):
            return None
        head, _, inner = encoder_id.partition("+")
        word, _, options = head.partition(":")
        if not inner:
            raise UnknownEncoder(f"{encoder_id!r} wraps no encoder; expected {word}+ID, e.g. {word}+efficientnet-lite0")
        return cls(word=word, options=_options(encoder_id, word, options), inner=inner)


def without_views(encoder_id: str) -> str:
    """Return the id of the encoder inside ``augmented+ID``, which sees the image itself; any other id as it is."""
    wrapped = WrappedId.parse(encoder_id)
    return wrapped.inner if wrapped and wrapped.word == AUGMENTED else encoder_id


def split_joined(text: str) -> tuple[str, ...]:
    """Return the ids of encoders that are joined by ``+``; a wrapper stays with the id that follows it.

    Parameters
    ----------
    text
        One id, or several joined.
    """
    ids: list[str] = []
    for part in text.split("+"):
        if ids and _is_wrapper(ids[-1].rpartition("+")[2]):
            ids[-1] += f"+{part}"
        else:
            ids.append(part)
    return tuple(ids)


def _begins_with_wrapper(encoder_id: str) -> bool:
    return _is_wrapper(encoder_id.partition("+")[0])


def _is_wrapper(part: str) -> bool:
    return part.partition(":")[0] in WRAPPERS


def _options(encoder_id: str, word: str, text: str) -> dict[str, str]:
    """Return the value of every option, in the order of the wrapper; each is known by its form."""
    known = WRAPPERS[word].options
    chosen: dict[str, str] = {}
    for value in text.split(",") if text else ():
        name = next((name for name, (form, _) in known.items() if re.fullmatch(form, value)), None)
        if name is None:
            # What a regular expression looks like to a reader: "count" is a number, "trim=..." takes one.
            parts = [each for form, _ in known.values() for each in form.split("|")]
            words = [re.sub(r"\[\\d\.\]\+|\\d\+", "...", each) for each in parts]
            forms = ["a number" if each.startswith("[") else each for each in words]
            raise UnknownEncoder(f"{encoder_id!r}: {word} has no option {value!r}; {did_you_mean(value, forms)}")
        if name in chosen:
            raise UnknownEncoder(f"{encoder_id!r}: both {chosen[name]!r} and {value!r}; choose one {name}")
        chosen[name] = value
    return {name: chosen.get(name, default) for name, (_, default) in known.items()}
