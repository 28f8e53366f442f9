from __future__ import annotations

from pathlib import Path

import pytest

from data.files import whole_text_file


def test_a_file_is_replaced_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.csv"
    for text in ("first", "second"):
        with whole_text_file(path) as file:
            file.write(text)
    assert path.read_text() == "second"
    assert list(path.parent.iterdir()) == [path]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("before")

    def fail() -> None:
        with whole_text_file(path) as file:
            file.write("half of it")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_plain_file_is_written_as_it_is(tmp_path: Path) -> None:
    with whole_text_file(Path("/dev/null")) as file:
        file.write("nothing")
    assert not Path("/dev/null").is_file()
