from __future__ import annotations

import pytest

from data.chat import Transcript, clean, parse_chat, parse_plain
from data.errors import SampleError

# Written by hand after the public description of the format; • stands for the control character of time marks.
COOKIE = """\
@UTF8
@PID:	none
@Begin
@Languages:	eng
@Participants:	PAR Participant, INV Ada Investigator
@ID:	eng|handmade|PAR|67;03.15|female|Control||Participant|12||
@ID:	eng|handmade|INV|||||Investigator|||
@Media:	cookie, audio
*INV:	just tell me everything that you see . •0_1500•
%mor:	adv|just v|tell .
*PAR:	well there's &-uh a mother <standing there> [//] &-uh &=laughs
	washing the &+d dishes and the sink is overflowin(g) . •2000_6500•
%mor:	co|well pro:exist|there~cop|be
	v|wash det|the .
%gra:	1|2|COM
%wor:	well •2000_2300• there's •2300_2700•
*PAR:	the (.) boy [* s:r] is on_top of a stool [: chair] ‡ (..) 0is fallin(g) [+ gram] +... •6900_9000•
*INV:	mhm . •9000_9400•
*PAR:	xxx . •10000_10400•
*PAR:	and um the the [/] girl's laughing +/?
@End
""".replace("•", "\x15")


@pytest.fixture(scope="module")
def cookie() -> Transcript:
    return parse_chat(COOKIE, "cookie.cha")


class TestTranscript:
    def test_golden_text_of_the_participant(self, cookie: Transcript) -> None:
        assert cookie.text(["PAR"]) == (
            "well there's uh a mother standing there uh uh washing the uh dishes and the sink is overflowing. "
            "the boy is on top of a stool falling. and um the the girl's laughing?"
        )

    def test_another_speaker_and_both(self, cookie: Transcript) -> None:
        assert cookie.text(["INV"]) == "just tell me everything that you see. mhm."
        assert cookie.text(["PAR", "INV"]).startswith("just tell me everything that you see. well there's")
        assert cookie.speakers == ("INV", "PAR")

    def test_continuation_lines_and_times_belong_to_their_utterance(self, cookie: Transcript) -> None:
        second = cookie.utterances[1]
        assert (second.speaker, second.start_ms, second.end_ms) == ("PAR", 2000, 6500)
        assert second.spoken == (
            "well there's &-uh a mother <standing there> [//] &-uh &=laughs washing the &+d dishes and the sink is "
            "overflowin(g) ."
        )
        assert [(u.start_ms, u.end_ms) for u in cookie.utterances] == [
            (0, 1500), (2000, 6500), (6900, 9000), (9000, 9400), (10000, 10400), (None, None),
        ]  # fmt: skip

    def test_words_hesitations_and_repairs_are_told_apart(self, cookie: Transcript) -> None:
        par = [u for u in cookie.utterances if u.speaker == "PAR"]
        assert " ".join(par[0].words) == (
            "well there's a mother standing there washing the dishes and the sink is overflowing"
        )
        assert " ".join(par[1].words) == "the boy is on top of a stool falling"
        assert par[2].words == ()
        assert par[3].words == ("and", "the", "the", "girl's", "laughing")
        assert [u.hesitations for u in par] == [3, 0, 0, 1]  # two fillers and a fragment, no event; a bare "um"
        assert [u.repairs for u in par] == [1, 0, 0, 1]

    def test_headers(self, cookie: Transcript) -> None:
        par, inv = cookie.participants["PAR"], cookie.participants["INV"]
        assert (par.role, par.sex, par.group) == ("Participant", "female", "Control")
        assert par.age == pytest.approx(67 + 3 / 12 + 15 / 365.25)
        assert (inv.role, inv.age, inv.sex) == ("Investigator", None, "")

    def test_participants_without_an_id_line(self) -> None:
        found = parse_chat("@Begin\n@Participants:\tCHI Ross Target_Child,\n\tMOT Mother\n*CHI:\tmore .\n@End\n", "a")
        assert {code: each.role for code, each in found.participants.items()} == {
            "CHI": "Target_Child",
            "MOT": "Mother",
        }

    @pytest.mark.parametrize("ending", ["\r\n", "\r"])
    def test_other_line_ends(self, cookie: Transcript, ending: str) -> None:
        assert parse_chat(COOKIE.replace("\n", ending), "cookie.cha") == cookie


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("&-uh the &+wi window .", "uh the uh window."),
        ("&uh the &fr boy .", "uh the uh boy."),  # the older way to write both
        ("&=clears:throat well &*INV:mhm yes .", "uh well yes."),
        ("&{l=singing la la &}l=singing .", "la la."),
        ("<&-um the>[//] a dog", "uh the a dog"),
        ("&-uh[/] a dog", "uh a dog"),
        ("(be)cause the windo(w) (.) is (..) open (...) (2.5) now (1:05.3) .", "because the window is open now."),
        ("pronoun [: noun] [* p:w] [=! whispers] [% odd] [x 3] [?] [>1] [+ exc] .", "pronoun."),
        ("[- spa] sí .", "sí."),
        ("xxx saw yyy and www . ", "saw and."),
        ("xxxl is a word", "xxxl is a word"),
        ("0is he 0 [=! nods] coming ?", "he coming?"),
        ("Red_Cross ice+cream bumblebee@c b@l dog@s:eng .", "Red Cross ice cream bumblebee b dog."),
        ("no:: rhi^noceros ↑what↑ ⌈now⌉ .", "no rhinoceros what now."),
        ("and then +...", "and then."),
        ("he said +/?", "he said?"),
        ('she said +"/.', "she said."),
        ('+" come here +".', "come here."),
        ("+< but +^ no +//.", "but no."),
        ("++ well , you know ‡ dear !", "well, you know dear!"),
        ("the boy . \x15120_450\x15", "the boy."),
        ('the \x15%snd:"a b"_1_2\x15 boy \x15%pic:"x.jpg"_3_4\x15', "the boy"),
        ("mother's self-made well-being", "mother's self-made well-being"),
        ("", ""),
    ],
)
def test_clean(line: str, text: str) -> None:
    assert clean(line) == text


@pytest.mark.parametrize(
    "line", ["&-uh the &+wi window", "&=laughs (be)cause <I I> [/] xxx went +...", "a@l Red_Cross ."]
)
def test_cleaning_a_clean_line_changes_nothing(line: str) -> None:
    assert clean(clean(line)) == clean(line)


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ("\x1510_40\x15", (10, 40)),
        ("one \x1510_40\x15 two \x1540_90\x15", (10, 90)),
        ('\x15%snd:"tape_1"_5_9\x15', (5, 9)),
        ("\x1540_40\x15", (None, None)),
        ("\x1590_40\x15", (None, None)),
        ("", (None, None)),
    ],
)
def test_times(times: str, found: tuple[int | None, int | None]) -> None:
    (utterance,) = parse_chat(f"*PAR:\twell . {times}\n", "a").utterances
    assert (utterance.start_ms, utterance.end_ms) == found
    assert utterance.spoken == " ".join(["well .", *[word for word in ("one", "two") if word in times]])


@pytest.mark.parametrize(
    ("age", "years"),
    [("57;", 57.0), ("57;06.", 57.5), ("1;06", 1.5), ("57", 57.0), ("", None), ("old", None), ("0;00.10", 10 / 365.25)],
)
def test_age(age: str, years: float | None) -> None:
    transcript = parse_chat(f"@ID:\teng|c|PAR|{age}|male|||Participant|||\n*PAR:\tyes .\n", "a")
    assert transcript.participants["PAR"].age == (None if years is None else pytest.approx(years))


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (
            "The boy is on a stool.\nHe falls.",
            "unsupported",
            r"x\.cha, line 1: 'The boy is on a stool\.' begins neither",
        ),
        ("*PAR:\tyes .\nand no tab\n", "unsupported", "line 2: 'and no tab'"),
        ("\tno line before\n", "unsupported", "line 1"),
        ("@Begin\n*PAR:\tyes .\n", "truncated", "no @End"),
        ("*PAR\n", "unreadable", r"line 1: .*expected \*SPEAKER:"),
        ("", "unsupported", "neither a header nor a speaker"),
        ("%com:\tnothing\n", "unsupported", "neither a header nor a speaker"),
    ],
)
def test_what_is_no_transcript(content: str, kind: str, message: str) -> None:
    with pytest.raises(SampleError, match=message) as raised:
        parse_chat(content, "x.cha")
    assert raised.value.kind == kind


def test_plain_text_has_one_speaker_and_a_sentence_is_an_utterance() -> None:
    transcript = parse_plain("Well, um, the boy falls. He is on a stool!\nThe end")
    assert not transcript.coded
    assert [u.text for u in transcript.utterances] == ["Well, um, the boy falls.", "He is on a stool!", "The end"]
    assert transcript.utterances[0].words == ("well", "the", "boy", "falls")
    assert [u.hesitations for u in transcript.utterances] == [1, 0, 0]
    assert transcript.speakers == ("",)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "bomb",
    ["[", "(", "(1", "1", "<", "&", "&-", "+", "+.", "\x15", '\x15%snd:"', "a@", "a:", "0", " ", "a'", "[/", "&*a:"],
)
def test_cleaning_takes_time_in_proportion_to_the_line(bomb: str) -> None:
    line = bomb * 100_000
    (utterance,) = parse_chat(f"*PAR:\t{line} end .\n", "bomb").utterances
    assert utterance.text.rstrip(".").endswith("end")
