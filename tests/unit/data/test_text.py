from __future__ import annotations

from pathlib import Path

import pytest

from data import text as module
from data.errors import ManifestError, SampleError
from data.filecache import FileCache
from data.manifest import Source
from data.sources import read_manifest
from data.text import load_text, load_transcript, speakers_of

CHAT = "@Begin\n*PAR:\tthe &-uh boy .\n*INV:\tgood .\n@End\n"


def write(path: Path, content: str | bytes = CHAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def only(path: Path, **options: str) -> Source:
    (source,) = read_manifest(path, **options).sources
    assert source is not None
    return source


class TestLoading:
    def test_a_cell_and_a_text_file_are_taken_to_the_letter(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.txt", " two\r\nlines ü\n")
        assert load_text(Source("text", text=" as it is\n")) == " as it is\n"
        assert load_text(Source("text", path=path)) == " two\r\nlines ü\n"

    def test_a_byte_order_mark_is_no_text(self, tmp_path: Path) -> None:
        assert load_text(Source("text", path=write(tmp_path / "a.txt", b"\xef\xbb\xbfwell"))) == "well"

    def test_a_transcript_is_what_its_participant_says(self, tmp_path: Path) -> None:
        source = only(write(tmp_path / "a.CHA"))
        assert (load_text(source), speakers_of(source)) == ("the uh boy.", ("PAR",))
        assert load_transcript(source).speakers == ("PAR", "INV")

    def test_a_text_is_a_transcript_of_a_nameless_speaker(self) -> None:
        source = Source("text", text="One. Two.")
        assert (load_transcript(source).speakers, speakers_of(source)) == (("",), ("",))

    @pytest.mark.parametrize(
        ("name", "content", "kind", "message"),
        [
            (
                "a.cha",
                "@Begin\n*INV:\tgood .\n@End\n",
                "empty",
                r"lines that begin with \*PAR:, found only those of INV",
            ),
            ("a.cha", "@Begin\n@End\n", "empty", "found no speaker at all"),
            ("a.cha", "@Begin\n*PAR:\txxx .\n@End\n", "empty", "expected a text, found none"),
            ("a.cha", "only words", "unsupported", "begins neither"),
            (
                "a.cha",
                "@Begin\n*PAR:\tcaf\xe9 .\n@End\n".encode("latin-1"),
                "unreadable",
                "line 2: byte 0xe9 is not UTF-8",
            ),
            ("a.cha", "@Begin\n*PAR:\tyes .\n@End\n".encode("utf-16"), "unreadable", "line 1: byte 0xff is not UTF-8"),
            ("a.txt", " \n", "empty", "expected a text, found none"),
            ("a.txt", b"", "empty", "expected a text, found none"),
        ],
    )
    def test_a_bad_file_is_a_sample_error(
        self, tmp_path: Path, name: str, content: str | bytes, kind: str, message: str
    ) -> None:
        path = write(tmp_path / name, content)
        with pytest.raises(SampleError, match=message) as raised:
            load_text(Source("text", path=path, selector="speaker=PAR" if name == "a.cha" else ""))
        assert raised.value.kind == kind
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(("name", "selector"), [("a.txt", "speaker=PAR"), ("a.cha", "frame=2")])
    def test_a_part_that_such_a_file_does_not_have(self, tmp_path: Path, name: str, selector: str) -> None:
        with pytest.raises(SampleError, match=f"{selector}: expected a whole file, or #speaker=CODE") as raised:
            load_text(Source("text", path=write(tmp_path / name), selector=selector))
        assert raised.value.kind == "unsupported"

    def test_a_transcript_without_a_named_speaker_is_that_of_its_participant(self, tmp_path: Path) -> None:
        assert load_text(Source("text", path=write(tmp_path / "a.cha"))) == "the uh boy."

    def test_a_file_that_is_not_there_or_too_long(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(SampleError, match="found nothing there"):
            load_text(Source("text", path=tmp_path / "none.txt"))
        with pytest.raises(SampleError, match="expected a text file"):
            load_text(Source("text", path=tmp_path))
        monkeypatch.setattr(module, "MAX_BYTES", 5)
        with pytest.raises(SampleError, match="at most 5 bytes, found 6"):
            load_text(Source("text", path=write(tmp_path / "a.txt", "123456")))


class TestManifest:
    def test_a_column_of_text_whose_cells_are_all_file_names(self, tmp_path: Path) -> None:
        write(tmp_path / "talk" / "a.cha")
        write(tmp_path / "b.TXT", "plain")
        table = write(tmp_path / "m.csv", "text,label\ntalk/a.cha,1\nb.TXT,0\ntalk/a.cha#speaker=INV,1\n,0\n")
        manifest = read_manifest(write(tmp_path / "m.csv", table.read_text().replace("\n,0\n", "\n")))
        assert manifest.ids == ("talk/a.cha", "b.TXT", "talk/a.cha#speaker=INV")
        assert [load_text(source) for source in manifest.sources if source] == ["the uh boy.", "plain", "good."]

    @pytest.mark.parametrize("column", ["path", "text", "transcript"])
    def test_any_input_column_may_hold_them(self, tmp_path: Path, column: str) -> None:
        write(tmp_path / "a.cha")
        write(tmp_path / "b.txt", "plain")
        manifest = read_manifest(write(tmp_path / "m.csv", f"id,{column}\n1,a.cha\n2,b.txt\n3,\n"), input=column)
        assert manifest.modality == "text"
        assert [None if source is None else source.path for source in manifest.sources] == [
            tmp_path / "a.cha",
            tmp_path / "b.txt",
            None,
        ]

    def test_a_text_that_ends_like_a_file_is_a_text(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", "not me")
        manifest = read_manifest(write(tmp_path / "m.csv", "text\na.txt\nsee report.txt\nno finding\nclear lungs\n"))
        assert manifest.ids == ("row2", "row3", "row4", "row5")
        assert [source.text for source in manifest.sources if source] == [
            "a.txt", "see report.txt", "no finding", "clear lungs",
        ]  # fmt: skip

    def test_a_text_among_file_names_is_refused(self, tmp_path: Path) -> None:
        table = write(tmp_path / "m.csv", "id,text\n1,a.cha\n2,b.cha\n3,no finding\n")
        with pytest.raises(ManifestError, match="1 cells name no text file and the others do: row 4 'no finding'"):
            read_manifest(table)

    def test_texts_that_all_look_like_files_are_refused_rather_than_guessed(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="none of the 1 files of column 'text' exists"):
            read_manifest(write(tmp_path / "m.csv", "id,text\n1,open the readme.txt\n"))

    def test_one_transcript(self, tmp_path: Path) -> None:
        manifest = read_manifest(write(tmp_path / "visit.cha"))
        assert (manifest.ids, manifest.modality) == (("visit.cha",), "text")
        assert str(manifest.sources[0]) == f"{tmp_path / 'visit.cha'}#speaker=PAR"

    def test_a_folder_of_transcripts(self, tmp_path: Path) -> None:
        for name in ("control/a.cha", "dementia/b.cha", "dementia/notes.txt"):
            write(tmp_path / "talks" / name)
        manifest = read_manifest(tmp_path / "talks")
        assert (manifest.ids, manifest.modality) == (("control/a.cha", "dementia/b.cha"), "text")
        assert manifest.columns["label"] == ("control", "dementia")
        assert manifest.remarks == (
            f"{tmp_path / 'talks'}: left out 1 files that are no text files: dementia/notes.txt",
        )

    def test_the_key_is_the_content_and_the_speaker(self, tmp_path: Path) -> None:
        for name in ("a.cha", "moved/b.cha", "c.txt"):
            write(tmp_path / name)
        cells = ("a.cha", "moved/b.cha", "a.cha#speaker=PAR", "a.cha#speaker=INV", "c.txt")
        manifest = read_manifest(write(tmp_path / "m.csv", "\n".join(["text", *cells, ""])))
        cell = Source("text", text=CHAT)
        keys, problems = FileCache().keys([*manifest.sources, cell])
        assert problems == {}
        names = [tuple(key) for key in keys.tolist()]
        assert names[0] == names[1] == names[2], "one content under three names"
        assert names[4] == names[5], "the same text in a file and in a cell"
        assert len(set(names)) == 3, "a speaker's words, another's, and the uncleaned text"
