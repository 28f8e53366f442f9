from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.chat import parse_chat, parse_plain
from data.errors import SampleError
from data.manifest import Source
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.encoders.speech import FEATURES, FUNCTION_WORDS, PRONOUNS, speech_features
from featurestore.errors import EncoderError, UnknownEncoder

# 17 words; pauses of 0.4 and 1.1 s, a silence of 0.1 s, and one of 2 s in which the other speaks.
TALK = """\
@Begin
*INV:	what do you see ? •0_900•
*PAR:	the boy is &-uh taking &+c <the cookie> [//] the cookies . •1000_4000•
*PAR:	he's on a stool . •4400_6000•
*PAR:	&=laughs . •6100_6500•
*INV:	mhm . •7000_7500•
*PAR:	um the [/] the stool don't hold . •8500_10000•
*PAR:	xxx . •11100_11500•
@End
""".replace("•", "\x15")


def features(content: str, *speakers: str) -> dict[str, float]:
    values = speech_features(parse_chat(content, "talk.cha"), speakers or ("PAR",), "talk.cha")
    assert values.dtype == np.float32
    return dict(zip(FEATURES, values.tolist(), strict=True))


def test_features_by_hand() -> None:
    # the boy is taking the cookie the cookies | he's on a stool | the the stool don't hold
    words, different, seconds = 17, 12, 3.0 + 1.6 + 0.4 + 1.5 + 0.4 + 0.4 + 0.1 + 1.1
    expected = {
        "pause_count": 2,
        "total_pause_duration": 0.4 + 1.1,
        "avg_pause_duration": (0.4 + 1.1) / 2,
        "speech_rate_wps": words / seconds,
        "type_token_ratio": different / words,
        "mlu_words": words / 3,
        "pronoun_ratio": 1 / words,  # he's
        "content_ratio": 7 / words,  # boy taking cookie cookies stool stool hold
        "disfluency_rate": 3 / words,  # &-uh &+c um
        "repair_rate": 2 / words,
        "total_words": words,
        "utterances": 3,
        "timed": 1,
        "coded": 1,
    }
    assert list(expected) == list(FEATURES)
    assert features(TALK) == pytest.approx(expected, rel=1e-6)


def test_another_speaker_and_both() -> None:
    assert features(TALK, "INV")["total_words"] == 5
    assert features(TALK, "INV")["pause_count"] == 0
    # Between the two sides the silences of 0.5 and 1 s count as well.
    assert features(TALK, "PAR", "INV")["pause_count"] == 4


@pytest.mark.parametrize(("gap", "pauses"), [(249, 0), (250, 1), (-500, 0)])
def test_the_shortest_pause(gap: int, pauses: int) -> None:
    talk = f"*PAR:\tyes . \x151000_2000\x15\n*PAR:\tno . \x15{2000 + gap}_4000\x15\n"
    assert features(talk)["pause_count"] == pauses


def test_unknown_times_are_told_from_no_pause() -> None:
    untimed = features("*PAR:\tthe boy falls .\n*PAR:\the falls .\n")
    without_pause = features("*PAR:\tthe boy falls . \x150_1000\x15\n*PAR:\the falls . \x151000_2000\x15\n")
    of_time = ("pause_count", "total_pause_duration", "avg_pause_duration", "speech_rate_wps", "timed")
    assert [untimed[name] for name in of_time] == [0, 0, 0, 0, 0]
    assert [without_pause[name] for name in of_time] == [0, 0, 0, 2.5, 1]
    assert {name: untimed[name] for name in FEATURES if name not in of_time} == {
        name: without_pause[name] for name in FEATURES if name not in of_time
    }


def test_some_times_are_used_for_what_they_time() -> None:
    talk = "*PAR:\tone two . \x150_1000\x15\n*PAR:\tthree four five .\n*PAR:\tsix . \x155000_6000\x15\n"
    found = features(talk)
    assert (found["speech_rate_wps"], found["pause_count"], found["timed"]) == (1.5, 0, 1)


def test_plain_text_says_that_its_repairs_are_not_marked() -> None:
    values = speech_features(parse_plain("Um, she falls. She didn't see it!"), ("",), "note")
    found = dict(zip(FEATURES, values.tolist(), strict=True))
    assert (found["coded"], found["timed"], found["total_words"], found["utterances"]) == (0, 0, 6, 2)
    assert found["pronoun_ratio"] == pytest.approx(3 / 6)
    assert found["disfluency_rate"] == pytest.approx(1 / 6)


@pytest.mark.parametrize("talk", ["*PAR:\txxx .\n", "*PAR:\t&-uh .\n*INV:\tyes .\n", "*INV:\tyes .\n"])
def test_without_a_word_no_ratio_is_defined(talk: str) -> None:
    with pytest.raises(SampleError, match=r"talk\.cha: expected words to describe, found none"):
        features(talk)


def test_word_lists_are_clean() -> None:
    assert PRONOUNS < FUNCTION_WORDS
    assert all(word == word.lower().strip() and word.isalpha() for word in FUNCTION_WORDS)


class TestEncoder:
    def test_reads_files_cells_and_the_named_speaker(self, tmp_path: Path) -> None:
        (tmp_path / "talk.cha").write_text(TALK)
        encoder = load_encoder("speech:features", EncoderOptions(modality="text", dtype="float32"))
        sources = [
            Source("text", path=tmp_path / "talk.cha", selector="speaker=PAR"),
            Source("text", path=tmp_path / "talk.cha", selector="speaker=INV"),
            Source("text", text="The boy falls."),
        ]
        vectors = encoder.encode(encoder.collate([encoder.read(source) for source in sources]))
        total = list(FEATURES).index("total_words")
        assert vectors[:, total].tolist() == [17, 5, 3]
        assert encoder.encode_reference(sources).equal(vectors)

    def test_the_specification_names_features_and_units(self) -> None:
        spec = load_encoder("speech:features", EncoderOptions()).spec
        assert spec.architecture["features"][:2] == ["pause_count: pauses", "total_pause_duration: seconds"]
        assert spec.dim == len(spec.architecture["features"]) == 14

    @pytest.mark.parametrize(
        ("name", "options", "error"),
        [
            ("speech:pauses", EncoderOptions(), UnknownEncoder),
            ("speech:features", EncoderOptions(modality="audio"), EncoderError),
            ("speech:features", EncoderOptions(pooling="mean"), EncoderError),
        ],
    )
    def test_what_it_does_not_do(self, name: str, options: EncoderOptions, error: type[Exception]) -> None:
        with pytest.raises(error, match="speech:"):
            load_encoder(name, options)
