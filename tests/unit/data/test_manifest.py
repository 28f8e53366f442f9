from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from data.errors import ManifestError
from data.manifest import Manifest, Source


@pytest.fixture
def manifest() -> Manifest:
    return Manifest(
        path=Path("m.csv"),
        columns={"id": ("a", "b", "c"), "text": ("x", None, "z"), "patient": ("p", "p", "q")},
        ids=("a", "b", "c"),
        sources=(Source("text", text="x"), None, Source("text", text="z")),
        input="text",
        modality="text",
        roles={"id": "id", "group": "patient"},
        rows=(2, 3, 5),
    )


def test_select_keeps_rows_aligned(manifest: Manifest) -> None:
    some = manifest.select([2, 0])
    assert (some.ids, some.rows, some.columns["text"]) == (("c", "a"), (5, 2), ("z", "x"))
    assert some.sources == (Source("text", text="z"), Source("text", text="x"))
    assert some.role("group") == ("q", "p")


def test_roles_and_columns(manifest: Manifest) -> None:
    assert manifest.role("group") == ("p", "p", "q")
    assert manifest.role("split") is None
    with pytest.raises(ManifestError, match="no column 'patiet'; did you mean 'patient'"):
        manifest.column("patiet")


def test_where_names_file_row_and_id(manifest: Manifest) -> None:
    assert manifest.where(2) == "m.csv, row 5 (id 'c')"


def test_digest_depends_on_content_and_not_on_place(manifest: Manifest) -> None:
    assert replace(manifest, path=Path("elsewhere.csv"), rows=(1, 2, 3), remarks=("x",)).digest == manifest.digest
    assert manifest.select([1, 0, 2]).digest != manifest.digest
    assert replace(manifest, roles={}).digest != manifest.digest


def test_rows_count_from_one_by_default() -> None:
    manifest = Manifest(path=Path("m"), columns={}, ids=("a", "b"), sources=(None, None), input="x", modality="text")
    assert manifest.rows == (1, 2)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (Source("image", path=Path("a.dcm"), selector="frame=2"), "a.dcm#frame=2"),
        (Source("image", path=Path("a.png")), "a.png"),
        (Source("text", text="w" * 100), repr("w" * 60)),
    ],
)
def test_sources_name_themselves(source: Source, text: str) -> None:
    assert str(source) == text
