from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from data.errors import ManifestError
from data.manifest import Manifest
from data.sources import IMAGE_SUFFIXES, modality_of, read_manifest

Write = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Write:
    """Write a table, and an empty file for each name in `files`."""

    def write(content: str | bytes, name: str = "manifest.csv", files: tuple[str, ...] = ("a.png", "b.png")) -> Path:
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    def make(*files: str) -> Path:
        root = tmp_path / "images"
        root.mkdir()
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).touch()
        return root

    return make


def paths(manifest: Manifest) -> list[str]:
    return [source.path.name for source in manifest.sources if source is not None and source.path is not None]


class TestTable:
    def test_reads_every_column_and_keeps_the_order(self, table: Write) -> None:
        manifest = read_manifest(table("id,path,label\ns2,b.png,cat\ns1,a.png,\n"))
        assert manifest.ids == ("s2", "s1")
        assert manifest.columns == {"id": ("s2", "s1"), "path": ("b.png", "a.png"), "label": ("cat", None)}
        assert paths(manifest) == ["b.png", "a.png"]
        assert (manifest.input, manifest.modality, manifest.rows) == ("path", "image", (2, 3))
        assert manifest.roles == {"id": "id"}

    def test_byte_order_mark_windows_lines_and_quoted_newlines(self, table: Write) -> None:
        manifest = read_manifest(table(b'\xef\xbb\xbfid,text\r\n1,"two\r\nlines, one cell"\r\n\r\n2,x\r\n'))
        assert manifest.columns["text"] == ("two\r\nlines, one cell", "x")
        assert manifest.rows == (2, 4)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("m.tsv", "id\tpath\n1\ta.png\n2\tb.png\n"),
            ("m.csv", "id;path\n1;a.png\n2;b.png\n"),
            ("M.CSV", "id\tpath\n1\ta.png\n2\tb.png\n"),
            ("m.jsonl", '{"id": 1, "path": "a.png"}\n\n{"path": "b.png", "id": 2}\n'),
        ],
    )
    def test_other_text_formats_give_the_same_manifest(self, table: Write, name: str, content: str) -> None:
        manifest = read_manifest(table(content, name))
        reference = read_manifest(table("id,path\n1,a.png\n2,b.png\n"))
        assert manifest.columns == reference.columns
        assert manifest.digest == reference.digest

    def test_parquet_types_become_text_and_nulls_none(self, tmp_path: Path) -> None:
        columns = {"id": [1, 2], "text": ["x", None], "flag": [True, False], "score": [0.5, float("nan")]}
        pa.parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
        manifest = read_manifest(tmp_path / "m.parquet")
        assert manifest.columns == {"id": ("1", "2"), "text": ("x", None), "flag": ("1", "0"), "score": ("0.5", None)}
        assert manifest.sources[1] is None

    def test_unnamed_index_column_is_kept(self, table: Write) -> None:
        assert read_manifest(table(",path\n0,a.png\n1,b.png\n")).columns["column_1"] == ("0", "1")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("m.csv", "", "empty"),
            ("m.csv", "id,path\n", "no rows"),
            ("m.csv", "id,path\n1,a.png,x\n2\n", r"2 rows do not fit .*row 2 has 3, row 3 has 1"),
            ("m.csv", "id,id,path\n1,1,a.png\n", "'id' more than once"),
            ("m.csv", b"id,path\n1,caf\xe9.png\n", "line 2: byte 0xe9 is not UTF-8"),
            ("m.csv", 'id,path\n1,"a.png\n2,b.png\n', "line 3: not a valid table"),
            ("m.jsonl", '{"id": 1}\n[2]\n', "row 2: expected a JSON object, found list"),
            ("m.jsonl", '{"id": 1}\n{"id": \n', "row 2: not valid JSON"),
            ("m.jsonl", '{"id": 1, "id": 2}\n', "more than once"),
            ("m.jsonl", '{"id": 1, "path": ["a.png"]}\n', "row 1: column 'path' holds a list"),
            ("m.jsonl", '{"id": 1, "text": "\\ud800"}\n', "surrogate"),
            ("m.parquet", "no parquet", "not a readable Parquet file"),
            ("m.xlsx", "x", "neither a table nor"),
        ],
    )
    def test_refuses_what_is_no_table(self, table: Write, name: str, content: str | bytes, message: str) -> None:
        with pytest.raises(ManifestError, match=message):
            read_manifest(table(content, name))

    def test_missing_table(self, tmp_path: Path) -> None:
        with pytest.raises(ManifestError, match="no such file or folder"):
            read_manifest(tmp_path / "manifest.csv")

    def test_cells_longer_than_the_standard_limit(self, table: Write) -> None:
        note = "word " * 60_000
        assert read_manifest(table(f'text\n"{note}"\n')).columns["text"] == (note,)


class TestInput:
    def test_several_candidates_must_be_named(self, table: Write) -> None:
        path = table("id,path,text\n1,a.png,hello\n")
        with pytest.raises(ManifestError, match="text, path can all be encoded; name one with --input"):
            read_manifest(path)
        assert read_manifest(path, input="text").modality == "text"
        assert read_manifest(path, input="path").modality == "image"

    def test_no_candidate_names_a_near_one(self, table: Write) -> None:
        with pytest.raises(ManifestError, match=r"perhaps 'Image Path'\? Columns: id, Image Path"):
            read_manifest(table("id,Image Path\n1,a.png\n"))

    @pytest.mark.parametrize("option", ["input", "id", "split", "group", "bag"])
    def test_wrong_column_has_a_suggestion(self, table: Write, option: str) -> None:
        with pytest.raises(ManifestError, match=rf"'pth' \(--{option}\); did you mean 'path'"):
            read_manifest(table("id,path\n1,a.png\n"), **{option: "pth"})  # type: ignore[arg-type]

    def test_named_column_of_files_and_of_text(self, table: Write) -> None:
        path = table("id,scan,note\n1,a.PNG,see a.png\n2,,fine\n", files=("a.PNG",))
        assert read_manifest(path, input="scan").modality == "image"
        assert read_manifest(path, input="note").modality == "text"

    def test_mostly_files_is_a_mistake_not_text(self, table: Write) -> None:
        with pytest.raises(ManifestError, match=r"column 'scan': 1 files have no known suffix: row 4 'c'"):
            read_manifest(table("id,scan\n1,a.png\n2,b.png\n3,c\n"), input="scan")

    def test_mixed_modalities_name_rows(self, table: Write) -> None:
        with pytest.raises(ManifestError, match=r"mixes audio: row 3 'b.wav'; image: row 2 'a.png'"):
            read_manifest(table("path\na.png\nb.wav\n"))

    def test_column_name_decides_over_suffix(self, table: Write) -> None:
        assert read_manifest(table("image\nscan1\n", files=("scan1",))).modality == "image"

    @pytest.mark.parametrize("column", ["path", "text", "image"])
    def test_empty_column(self, table: Write, column: str) -> None:
        with pytest.raises(ManifestError, match="empty in every row"):
            read_manifest(table(f"id,{column}\n1,\n2,\n"))

    def test_empty_cell_is_a_missing_modality(self, table: Write) -> None:
        assert read_manifest(table("id,path\n1,\n2,b.png\n")).sources[0] is None

    def test_roles_have_no_default(self, table: Write) -> None:
        path = table("id,path,split,group\n1,a.png,train,g\n")
        assert read_manifest(path).role("split") is None
        manifest = read_manifest(path, split="split", group="group", bag="id")
        assert manifest.roles == {"id": "id", "split": "split", "group": "group", "bag": "id"}


class TestPaths:
    def test_relative_to_the_manifest_or_absolute(self, table: Write, tmp_path: Path) -> None:
        manifest = read_manifest(table(f"path\nsub/../a.png\n{tmp_path / 'b.png'}\n"))
        assert [source.path for source in manifest.sources if source] == [tmp_path / "sub/../a.png", tmp_path / "b.png"]

    @pytest.mark.parametrize("value", ["../a.png", "x/../../a.png", "./../a.png"])
    def test_may_not_leave_the_folder(self, table: Write, value: str) -> None:
        with pytest.raises(ManifestError, match=r"row 3: .* leaves the manifest's folder"):
            read_manifest(table(f"path\na.png\n{value}\n"))

    def test_remote_addresses_are_refused(self, table: Write) -> None:
        with pytest.raises(ManifestError, match=r"row 2: 's3://bucket/a\.png' is a remote address"):
            read_manifest(table("path\ns3://bucket/a.png\n"))

    def test_one_missing_file_is_left_for_the_ledger(self, table: Write) -> None:
        assert paths(read_manifest(table("path\na.png\ngone.png\n"))) == ["a.png", "gone.png"]

    def test_all_files_missing_is_a_wrong_folder(self, table: Write) -> None:
        with pytest.raises(ManifestError, match=r"none of the 2 files .* exists, the first is .*use / instead"):
            read_manifest(table("path\nx\\gone.png\ny\\gone.png\n"))

    @pytest.mark.parametrize(
        ("value", "selector"),
        [
            ("f.dcm#frame=12", "frame=12"),
            ("f.dcm#frame=012", "frame=12"),
            ("v.nii.gz#slice=4", "slice=4"),
            ("v.nii.gz#axis=0,slice=40", "axis=0,slice=40"),
        ],
    )
    def test_selectors(self, table: Write, value: str, selector: str) -> None:
        (source,) = read_manifest(table(f'path\n"{value}"\n', files=("f.dcm", "v.nii.gz"))).sources
        assert source is not None
        assert source.path is not None
        assert (source.path.name, source.selector) == (value.split("#")[0], selector)

    def test_a_file_whose_name_looks_like_a_selector(self, table: Write) -> None:
        (source,) = read_manifest(table("path\nf.dcm#frame=1\n", files=("f.dcm#frame=1",))).sources
        assert source is not None
        assert source.path is not None
        assert (source.path.name, source.selector) == ("f.dcm#frame=1", "")

    def test_unknown_selector_is_part_of_the_name(self, table: Write) -> None:
        with pytest.raises(ManifestError, match=r"row 2 'f.dcm#page=1'"):
            read_manifest(table("path\nf.dcm#page=1\n", files=("f.dcm",)))


class TestIds:
    def test_default_ids(self, table: Write) -> None:
        assert read_manifest(table("path\na.png\nb.png\n")).ids == ("a.png", "b.png")
        assert read_manifest(table("text\nsame\nsame\n")).ids == ("row2", "row3")
        assert read_manifest(table("path,name\na.png,x\nb.png,y\n"), id="name").ids == ("x", "y")

    def test_duplicates_are_refused_with_rows(self, table: Write) -> None:
        with pytest.raises(ManifestError, match=r"'a' \(rows 2, 4, conflicting in path, label\)"):
            read_manifest(table("id,path,label\na,a.png,cat\nb,b.png,cat\na,b.png,dog\n"))
        with pytest.raises(ManifestError, match=r"'a' \(rows 2, 3, identical\)"):
            read_manifest(table("id,path\na,a.png\na,a.png\n"))

    def test_one_path_twice_asks_for_an_id(self, table: Write) -> None:
        with pytest.raises(ManifestError, match="unique ids with --id"):
            read_manifest(table("path,label\na.png,x\na.png,y\n"))

    def test_only_some_duplicates_are_shown(self, table: Write) -> None:
        rows = "".join(f"{i % 9},word\n" for i in range(18))
        with pytest.raises(ManifestError, match=r"^.*9 values of 'id' .* and 4 more"):
            read_manifest(table("id,text\n" + rows))

    def test_empty_id_names_the_row(self, table: Write) -> None:
        with pytest.raises(ManifestError, match="'id' is empty in row 3"):
            read_manifest(table("id,path\n1,a.png\n,b.png\n"))


class TestFolder:
    def test_classes_any_suffix_any_case_sorted_by_path(self, folder: Write) -> None:
        root = folder("cat/b.JPG", "cat/a.jpeg", "Dog/deep/c.Nii.GZ", "cat/notes.txt", "cat/.hidden.png", ".git/x.png")
        manifest = read_manifest(root)
        assert manifest.ids == ("Dog/deep/c.Nii.GZ", "cat/a.jpeg", "cat/b.JPG")
        assert manifest.columns["label"] == ("Dog", "cat", "cat")
        assert "split" not in manifest.columns
        assert manifest.remarks == (f"{root}: left out 1 files that are no image files: cat/notes.txt",)

    def test_splits_over_classes(self, folder: Write) -> None:
        manifest = read_manifest(folder("Training/cat/a.png", "Testing/dog/b.png", "val/cat/c.png"), split="split")
        assert manifest.columns["split"] == ("Testing", "Training", "val")
        assert manifest.columns["label"] == ("dog", "cat", "cat")
        assert manifest.role("split") == manifest.columns["split"]

    def test_half_splits_are_refused(self, folder: Write) -> None:
        with pytest.raises(ManifestError, match="train are names of splits and cats are not"):
            read_manifest(folder("train/cat/a.png", "cats/b.png"))

    def test_images_without_classes(self, folder: Write) -> None:
        manifest = read_manifest(folder("b.png", "a.tif"))
        assert manifest.ids == ("a.tif", "b.png")
        assert "label" not in manifest.columns

    def test_stray_image_beside_classes_has_no_label(self, folder: Write) -> None:
        assert read_manifest(folder("cat/a.png", "z.png")).columns["label"] == ("cat", None)

    @pytest.mark.parametrize("files", [(), ("readme.txt",)])
    def test_no_image(self, folder: Write, files: tuple[str, ...]) -> None:
        with pytest.raises(ManifestError, match=rf"no sample in this folder \({len(files)} other files\)"):
            read_manifest(folder(*files))

    @pytest.mark.parametrize(
        ("modality", "first", "second"),
        [
            ("image", "a.png", "b.JPG"),
            ("audio", "a.wav", "b.M4A"),
            ("video", "a.mp4", "b.WEBM"),
            ("text", "a.cha", "b.CHA"),
            ("text", "a.txt", "b.TXT"),
        ],
    )
    def test_one_rule_for_every_modality(self, folder: Write, modality: str, first: str, second: str) -> None:
        root = folder(f"train/cough/{first}", f"test/speech/{second}", "train/ReadMe.txt", "LICENSE.txt", "notes.pdf")
        manifest = read_manifest(root, split="split")
        assert (manifest.modality, manifest.input) == (modality, "path")
        assert manifest.columns["label"] == ("speech", "cough")
        assert manifest.role("split") == ("test", "train")
        assert paths(manifest) == [second, first]
        (remark,) = manifest.remarks
        assert f"left out 3 files that are no {modality} files: LICENSE.txt, notes.pdf" in remark

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            (("x/a.png", "y/b.wav"), "1 image files such as x/a.png; 1 audio files such as y/b.wav"),
            (("x/a.wav", "x/a.cha"), "1 text files such as x/a.cha; 1 audio files such as x/a.wav"),
            (("a.mp4", "b.mp4", "c.gif"), "2 video files such as a.mp4; 1 image files such as c.gif"),
        ],
    )
    def test_mixed_modalities_are_refused(self, folder: Write, files: tuple[str, ...], message: str) -> None:
        with pytest.raises(ManifestError, match=f"holds {message}; expected one kind"):
            read_manifest(folder(*files))

    def test_plain_texts_beside_other_samples_are_notes(self, folder: Write) -> None:
        manifest = read_manifest(folder("x/a.cha", "x/a.txt", "y/b.cha"))
        assert paths(manifest) == ["a.cha", "b.cha"]
        assert "left out 1 files that are no text files: x/a.txt" in manifest.remarks[0]

    def test_name_that_is_no_text(self, folder: Write) -> None:
        root = folder("a.png")
        with open(os.fsencode(root) + b"/caf\xe9.png", "wb"):  # noqa: PTH123  a name that Path cannot hold
            pass
        with pytest.raises(ManifestError, match="not UTF-8"):
            read_manifest(root)

    def test_links_are_followed_but_not_in_circles(self, folder: Write) -> None:
        root = folder("pool/a.png")
        (root / "alias").symlink_to(root / "pool")
        (root / "pool" / "back").symlink_to(root)
        assert read_manifest(root).ids == ("alias/a.png", "pool/a.png")


class TestOneFile:
    def test_image(self, folder: Write) -> None:
        manifest = read_manifest(folder("x/scan.PNG") / "x" / "scan.PNG")
        assert (manifest.ids, manifest.modality) == (("scan.PNG",), "image")
        assert paths(manifest) == ["scan.PNG"]

    def test_text(self, tmp_path: Path) -> None:
        (tmp_path / "note.txt").write_text("no acute finding\n")
        (source,) = read_manifest(tmp_path / "note.txt").sources
        assert source is not None
        assert (source.modality, source.text, source.path) == ("text", "no acute finding", None)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_modality_of_ignores_case(suffix: str) -> None:
    assert modality_of(f"x/y{suffix.upper()}") == "image"


def test_modality_of_others() -> None:
    assert (modality_of("a.wav"), modality_of("a.mp4"), modality_of("a.csv"), modality_of("png")) == (
        "audio",
        "video",
        None,
        None,
    )


@pytest.mark.real_data
def test_public_data_sets(datasets: Path) -> None:
    brain = read_manifest(datasets / "brain_mri" / "manifest.csv", split="split_clean", group="group_id")
    assert (len(brain), brain.modality) == (1799, "image")
    with pytest.raises(ManifestError, match="name one with --input"):
        read_manifest(datasets / "covid_cxr_notes" / "manifest.csv")
    notes = read_manifest(datasets / "covid_cxr_notes" / "manifest.csv", input="text")
    assert sum(source is not None for source in notes.sources) == 176


def test_json_lines_round_trip_of_text(tmp_path: Path) -> None:
    texts = ["ünïcode \u2028 line separator", 'quotes " and , commas', "tab\tand\nnewline"]
    (tmp_path / "m.jsonl").write_text("\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts))
    assert read_manifest(tmp_path / "m.jsonl").columns["text"] == tuple(texts)


class TestSeveralRecordings:
    def test_a_bar_joins_files_in_order(self, table: Write, tmp_path: Path) -> None:
        manifest = read_manifest(table("id,path\n1,b.wav | a.wav\n2,c.mp3\n", files=("a.wav", "b.wav", "c.mp3")))
        first, second = manifest.sources
        assert manifest.modality == "audio"
        assert (first.path, first.rest) == (tmp_path / "b.wav", (tmp_path / "a.wav",))
        assert str(first) == f"{tmp_path / 'b.wav'}|{tmp_path / 'a.wav'}"
        assert (second.path, second.rest) == (tmp_path / "c.mp3", ())

    def test_a_file_of_that_very_name_is_one_file(self, table: Write) -> None:
        (source,) = read_manifest(table("path\na|b.wav\n", files=("a|b.wav",))).sources
        assert (source.path.name, source.rest) == ("a|b.wav", ())

    def test_pictures_are_not_joined(self, table: Write) -> None:
        (source, _) = read_manifest(table("image\na.png|b.png\na.png\n")).sources
        assert (source.path.name, source.rest) == ("a.png|b.png", ())

    @pytest.mark.parametrize(
        ("cell", "message"),
        [
            ("a.wav||b.wav", "row 2: expected the name of a file beside every |, found none"),
            ("a.wav|", "row 2: expected the name of a file beside every |, found none"),
            ("a.wav|../b.wav", "leaves the manifest's folder"),
            ("a.wav|https://x.org/b.wav", "is a remote address"),
        ],
    )
    def test_every_file_is_checked(self, table: Write, cell: str, message: str) -> None:
        with pytest.raises(ManifestError, match=re.escape(message)):
            read_manifest(table(f"audio\n{cell}\na.wav\n", files=("a.wav",)))
