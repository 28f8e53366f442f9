"""How somebody speaks, in a few named numbers of a transcript: pauses, rate, vocabulary, hesitations; no weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.chat import Transcript, Utterance
from data.digest import digest_json
from data.errors import SampleError, did_you_mean
from data.manifest import Source
from data.text import load_transcript, speakers_of
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.errors import EncoderError, UnknownEncoder
from featurestore.pooling import choose_pooling
from featurestore.spec import EncoderSpec

PAUSE_MS = 250
"""Shortest silence between two utterances that counts as a pause, in milliseconds."""

FEATURES = {
    "pause_count": "pauses",
    "total_pause_duration": "seconds",
    "avg_pause_duration": "seconds",
    "speech_rate_wps": "words per second",
    "type_token_ratio": "different words per word",
    "mlu_words": "words per utterance",
    "pronoun_ratio": "pronouns per word",
    "content_ratio": "content words per word",
    "disfluency_rate": "hesitations per word",
    "repair_rate": "repairs per word",
    "total_words": "words",
    "utterances": "utterances",
    "timed": "1 if times are known, else 0",
    "coded": "1 if repairs and fragments are marked, else 0",
}
"""The features in their order, and their units."""

# Our own lists of the English words of closed classes.
_PRONOUNS = """
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves someone somebody something anyone anybody anything
    everyone everybody everything nobody nothing who whom whose
"""
_OTHERS = """
    a an the this that these those some any each every no all both either neither much many more most few several such
    own same other another and or but nor so yet if because although though while when where why how than as whether
    since until unless what which about above across after against along among around at before behind below beside
    between by down during for from in into of off on onto out over past through to toward towards under up upon with
    within without am is are was were be been being do does did doing done have has had having can ca could will wo
    would shall should may might must not just very too also then there here now again ever never only even still
    already yes yeah no oh ah well okay ok mhm uhhuh
"""
PRONOUNS = frozenset(_PRONOUNS.split())
"""Personal, possessive, reflexive, indefinite and interrogative pronouns."""
FUNCTION_WORDS = PRONOUNS | frozenset(_OTHERS.split())
"""With them articles, conjunctions, prepositions, auxiliaries, particles, interjections; other words are of content."""


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return the encoder ``speech:features``.

    Parameters
    ----------
    name
        ``features``.
    options
        Stored type; nothing else changes a value.

    Raises
    ------
    UnknownEncoder
        If another name was given.
    EncoderError
        If another modality or pooling was asked for.
    """
    if name != "features":
        raise UnknownEncoder(f"no encoder 'speech:{name}'; {did_you_mean(name, ['features'])}")
    if options.modality not in (None, "text"):
        raise EncoderError(f"speech:features encodes text, not {options.modality}")
    spec = EncoderSpec(
        family="speech",
        modality="text",
        architecture={"class": "SpeechFeatures", "features": [f"{name}: {unit}" for name, unit in FEATURES.items()]},
        weights=digest_json({"pronouns": sorted(PRONOUNS), "function_words": sorted(FUNCTION_WORDS)}),
        preprocess={"pause_ms": PAUSE_MS, "language": "eng"},
        layer="features",
        pooling=choose_pooling(options.pooling, ("native",), encoder="speech:features"),
        precision=options.precision,
        dtype=options.dtype,
        dim=len(FEATURES),
    )
    return SpeechFeatures(spec)


class SpeechFeatures:
    """Named numbers of a transcript, as they are: heads standardise inside each training fold.

    Parameters
    ----------
    spec
        The encoder's identity.
    """

    thread_safe = True

    def __init__(self, spec: EncoderSpec) -> None:
        self.spec = spec

    def read(self, source: Source) -> NDArray[np.float32]:
        """Return the features of one transcript, float32, shape (dim,).

        Raises
        ------
        SampleError
            If there is no transcript, or not a word in it.
        """
        return speech_features(load_transcript(source), speakers_of(source), str(source))

    def collate(self, items: Sequence[NDArray[np.float32]]) -> Tensor:
        """Join the features of transcripts, shape (n, dim)."""
        return torch.from_numpy(np.stack(items))

    def encode(self, batch: Tensor) -> Tensor:
        """Return the features as they are."""
        return batch

    def encode_reference(self, sources: Sequence[Source]) -> Tensor:
        """Return the features, one transcript at a time: there is no library to compare with."""
        return self.collate([self.read(source) for source in sources])


def speech_features(transcript: Transcript, speakers: Sequence[str], name: str) -> NDArray[np.float32]:
    """Return the features of what some speakers say.

    Parameters
    ----------
    transcript
        The transcript.
    speakers
        The codes of those whose speech is described.
    name
        The transcript's name, for messages.

    Returns
    -------
    ndarray
        Float32, shape (len(FEATURES),), in that order.

    Raises
    ------
    SampleError
        If they say not a single word: no ratio is defined.

    Notes
    -----
    Words are counted as they were said, repeated and corrected ones among them; hesitations (filled pauses and
    fragments) and what was not understood are no words. An utterance counts if it has a word.

    A *pause* is a silence of at least `PAUSE_MS` between two utterances in a row of these speakers: where somebody
    else speaks in between, nobody pauses. The *rate* is that of the timed utterances and the silences between them.

    Where no times are known, the four features of time are 0 and ``timed`` is 0 too; where repairs are not marked,
    as in plain text, ``coded`` is 0. So a 0 that is not known differs from one that was counted, and a transcript
    without times keeps its other features, which leaving it out would lose.
    """
    own = [utterance for utterance in transcript.utterances if utterance.speaker in speakers]
    words = [word for utterance in own for word in utterance.words]
    if not words:
        raise SampleError("empty", f"{name}: expected words to describe, found none")
    stems = [_stem(word) for word in words]
    spoken = sum(bool(utterance.words) for utterance in own)
    timed = [utterance for utterance in own if _duration(utterance)]
    silences = list(_silences(transcript.utterances, speakers))
    pauses = [silence for silence in silences if silence >= PAUSE_MS]
    held = sum(map(_duration, timed)) + sum(silences)
    values = {
        "pause_count": len(pauses),
        "total_pause_duration": sum(pauses) / 1000,
        "avg_pause_duration": sum(pauses) / 1000 / max(len(pauses), 1),
        "speech_rate_wps": sum(len(utterance.words) for utterance in timed) / (held / 1000) if held else 0,
        "type_token_ratio": len(set(words)) / len(words),
        "mlu_words": len(words) / spoken,
        "pronoun_ratio": sum(stem in PRONOUNS for stem in stems) / len(words),
        "content_ratio": sum(stem not in FUNCTION_WORDS for stem in stems) / len(words),
        "disfluency_rate": sum(utterance.hesitations for utterance in own) / len(words),
        "repair_rate": sum(utterance.repairs for utterance in own) / len(words),
        "total_words": len(words),
        "utterances": spoken,
        "timed": bool(timed),
        "coded": transcript.coded,
    }
    return np.array([values[feature] for feature in FEATURES], np.float32)


def _duration(utterance: Utterance) -> int:
    """Return how long an utterance took, in milliseconds; 0 where that is not known."""
    return 0 if utterance.start_ms is None or utterance.end_ms is None else utterance.end_ms - utterance.start_ms


def _silences(utterances: Sequence[Utterance], speakers: Sequence[str]) -> Iterator[int]:
    """Yield the silences between two utterances in a row of the same side, in milliseconds; overlaps are none."""
    for before, after in pairwise(utterances):
        if before.speaker in speakers and after.speaker in speakers and before.end_ms and after.start_ms is not None:
            yield max(after.start_ms - before.end_ms, 0)


def _stem(word: str) -> str:
    """Return the word in front of a contraction: *he's* is a pronoun, and *don't* an auxiliary."""
    plain = word.replace("’", "'")
    return plain.removesuffix("n't") if plain.endswith("n't") else plain.partition("'")[0]
