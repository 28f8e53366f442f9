from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data import filecache
from data.digest import as_keys, content_key
from data.filecache import FileCache
from data.manifest import Source

HOUR_NS = 3_600_000_000_000


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """Three files that count as settled, however new they are."""
    monkeypatch.setattr(filecache, "RACY_NS", -HOUR_NS)
    return [image(write(tmp_path / f"{name}.png", name.encode())) for name in "abc"]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose content was read."""
    names: list[str] = []

    def digest(path: Path) -> bytes:
        names.append(path.name)
        return original(path)

    original = filecache.file_digest
    monkeypatch.setattr(filecache, "file_digest", digest)
    return names


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FileCache]:
    with FileCache(tmp_path / "files.sqlite") as opened:
        yield opened


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def image(path: Path, selector: str = "") -> Source:
    return Source("image", path=path, selector=selector)


def test_keys_are_content_keys(cache: FileCache, files: list[Source], tmp_path: Path) -> None:
    sources = [*files, Source("text", text="ünï"), image(tmp_path / "a.png", "frame=2")]
    keys, failures = cache.keys(sources)
    expected = [content_key(b"a"), content_key(b"b"), content_key(b"c"), content_key("ünï".encode())]
    np.testing.assert_array_equal(keys, as_keys([*expected, content_key(b"a", selector="frame=2")]))
    assert failures == {}


def test_key_of_several_files_depends_on_all_of_them_in_order(
    cache: FileCache, files: list[Source], reads: list[str]
) -> None:
    a, b, c = (source.path for source in files)
    orders = [(a, (b,)), (b, (a,)), (a, (b, c)), (a, (a,)), (a, (b,))]
    samples = [Source("audio", path=first, rest=rest) for first, rest in orders]
    steps: list[int] = []
    keys, failures = cache.keys([*samples, files[0], None], progress=steps.append)
    assert sum(steps) == 7
    assert list(failures) == [6]
    assert len({row.tobytes() for row in keys[:4]}) == 4
    np.testing.assert_array_equal(keys[4], keys[0])
    np.testing.assert_array_equal(keys[5], as_keys([content_key(b"a")])[0])
    assert sorted(reads) == ["a.png", "b.png", "c.png"]


def test_several_files_of_which_one_is_missing(cache: FileCache, files: list[Source], tmp_path: Path) -> None:
    gone = Source("audio", path=files[0].path, rest=(tmp_path / "gone.wav",))
    _, failures = cache.keys([gone, files[0]])
    assert list(failures) == [0]
    assert "gone.wav: no such file" in str(failures[0])


def test_failures_are_typed_and_keep_their_place(cache: FileCache, files: list[Source], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    sources = [
        image(tmp_path / "gone.png"),
        files[0],
        image(write(tmp_path / "empty.png", b"")),
        image(tmp_path),
        image(tmp_path / "pipe.png"),
        image(tmp_path / "a.png" / "b.png"),
        Source("text", text=" \n"),
        None,
    ]
    keys, failures = cache.keys(sources)
    kinds = {position: failure.kind for position, failure in failures.items()}
    assert kinds == {0: "missing", 2: "empty", 3: "unreadable", 4: "unreadable", 5: "missing", 6: "empty", 7: "missing"}
    assert str(tmp_path / "gone.png") in str(failures[0])
    assert not keys[list(failures)].any()
    assert keys[1].any()


def test_file_that_cannot_be_read(cache: FileCache, files: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(filecache, "file_digest", refuse)
    _, failures = cache.keys(files)
    assert [failure.kind for failure in failures.values()] == ["unreadable"] * 3
    assert "Input/output error" in str(failures[0])


def test_unchanged_files_are_not_read_again(tmp_path: Path, files: list[Source], reads: list[str]) -> None:
    results = []
    for _ in range(2):
        with FileCache(tmp_path / "files.sqlite") as cache:
            results.append(cache.keys(files)[0])
    assert sorted(reads) == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("keep_times", [False, True])
def test_changed_file_is_read_again(cache: FileCache, files: list[Source], tmp_path: Path, keep_times: bool) -> None:
    cache.keys(files)
    before = (tmp_path / "b.png").stat()
    write(tmp_path / "b.png", b"B")  # the same size
    if keep_times:
        os.utime(tmp_path / "b.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    keys, _ = cache.keys(files)
    np.testing.assert_array_equal(keys, as_keys(map(content_key, (b"a", b"B", b"c"))))


def test_new_file_is_not_trusted(cache: FileCache, tmp_path: Path, reads: list[str]) -> None:
    source = image(write(tmp_path / "new.png", b"x"))
    cache.keys([source])
    cache.keys([source])
    assert reads == ["new.png", "new.png"]


def test_a_file_is_looked_at_once(cache: FileCache, files: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []
    original = filecache._look
    monkeypatch.setattr(filecache, "_look", lambda path: looks.append(path) or original(path))
    cache.keys([files[0], image(files[0].path or Path(), "frame=1"), files[0]])
    assert looks == [str(files[0].path)]


def test_progress_counts_every_sample(cache: FileCache, files: list[Source]) -> None:
    steps: list[int] = []
    cache.keys([*files, files[0], None, Source("text", text="x")], progress=steps.append)
    assert sum(steps) == 6


def test_more_files_than_one_query_holds(cache: FileCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filecache, "AT_ONCE", 7)
    sources = [image(write(tmp_path / f"{i}.png", b"%d" % i)) for i in range(30)]
    keys, _ = cache.keys(sources, workers=3)
    np.testing.assert_array_equal(keys, as_keys(content_key(b"%d" % i) for i in range(30)))


def test_hashes_are_remembered_by_method(tmp_path: Path) -> None:
    with FileCache(tmp_path / "files.sqlite") as cache:
        cache.add_hashes("one", {b"k" * 16: b"h" * 32, b"f" * 16: None})
    with FileCache(tmp_path / "files.sqlite") as cache:
        known = cache.hashes("one", [b"k" * 16, b"f" * 16, b"u" * 16])
        assert known == {b"k" * 16: b"h" * 32, b"f" * 16: None}
        assert cache.hashes("two", [b"k" * 16]) == {}


@pytest.mark.parametrize("kind", ["garbage", "truncated", "damaged page", "foreign", "other version"])
def test_unusable_file_is_set_aside(
    tmp_path: Path, files: list[Source], kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "files.sqlite"
    with FileCache(path) as cache:
        reference, _ = cache.keys(files)
    content = path.read_bytes()
    if kind == "garbage":
        path.write_bytes(b"no database" * 500)
    elif kind == "truncated":
        path.write_bytes(content[:5000])
    elif kind == "damaged page":
        path.write_bytes(content[:4096] + b"\x07" * (len(content) - 4096))
    elif kind == "foreign":
        path.unlink()
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE digests (x)")
        other.close()
    else:
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA user_version = 99")
        other.close()
    with caplog.at_level(logging.WARNING), FileCache(path) as cache:
        np.testing.assert_array_equal(cache.keys(files)[0], reference)
    assert "moved to files.sqlite.broken" in caplog.text
    assert (tmp_path / "files.sqlite.broken").exists()
    with FileCache(path) as cache:
        assert len(cache._known_digests([str(source.path) for source in files])) == 3


class _ReadOnly(sqlite3.Connection):
    def executemany(self, *_: object) -> sqlite3.Cursor:
        raise sqlite3.OperationalError("attempt to write a readonly database")


def test_cache_that_cannot_be_written_is_read(
    tmp_path: Path,
    files: list[Source],
    reads: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FileCache(tmp_path / "files.sqlite") as cache:
        cache.keys(files[:2])
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **options: connect(*args, factory=_ReadOnly, **options))
    with FileCache(tmp_path / "files.sqlite") as cache:
        keys, failures = cache.keys(files)
        cache.keys(files)
    assert reads.count("a.png") == 1
    assert reads.count("c.png") == 3 - 1
    assert failures == {}
    assert keys.all(axis=None)
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize("path", [None, Path("nowhere") / "files.sqlite"])
def test_without_a_folder_nothing_is_kept(path: Path | None, files: list[Source], reads: list[str]) -> None:
    with FileCache(path) as cache:
        cache.keys(files)
        keys, _ = cache.keys(files)
    assert len(reads) == 3
    np.testing.assert_array_equal(keys, as_keys(map(content_key, (b"a", b"b", b"c"))))
    assert not Path("nowhere").exists()


def test_place_that_is_a_folder_is_no_cache(tmp_path: Path, files: list[Source]) -> None:
    (tmp_path / "taken").mkdir()
    with FileCache(tmp_path / "taken") as cache:
        assert cache.keys(files)[1] == {}


def _fill(path: Path, folder: Path, first: int) -> None:
    sources = [image(folder / f"{i}.png") for i in range(first, first + 200)]
    filecache.RACY_NS = -HOUR_NS
    filecache.AT_ONCE = 10
    with FileCache(path) as cache:
        cache.keys(sources, workers=2)


def test_several_processes_fill_one_file(tmp_path: Path) -> None:
    for i in range(300):
        write(tmp_path / f"{i}.png", b"%d" % i)
    context = multiprocessing.get_context("spawn")
    path = tmp_path / "files.sqlite"
    processes = [context.Process(target=_fill, args=(path, tmp_path, first)) for first in (0, 50, 100)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with FileCache(path) as cache:
        assert len(cache._known_digests([str(tmp_path / f"{i}.png") for i in range(300)])) == 300
