from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data import duplicates
from data.digest import Keys, as_keys, content_key
from data.duplicates import NearPairs, dhash, near_pairs, near_pairs_by_embedding, near_pairs_by_text, perceptual_hashes
from data.errors import LeakageError, SampleError
from data.filecache import FileCache
from data.manifest import Source


def picture(seed: int, height: int = 120, width: int = 160) -> NDArray[np.uint8]:
    """A smooth random picture."""
    small = np.random.default_rng(seed).integers(0, 255, (9, 12, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def distance(a: bytes | None, b: bytes | None) -> int:
    assert a is not None
    assert b is not None
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count()


class TestDhash:
    def test_follows_its_definition(self) -> None:
        rgb = picture(0)
        grid = np.asarray(Image.fromarray(rgb).convert("L").resize((17, 16), Image.Resampling.BOX))
        bits = [int(grid[y, x + 1] > grid[y, x]) for y in range(16) for x in range(16)]
        assert dhash(rgb) == int("".join(map(str, bits)), 2).to_bytes(32, "big")

    @pytest.mark.parametrize(
        "change",
        [
            lambda image: image.resize((80, 60), Image.Resampling.LANCZOS),
            lambda image: image.point(lambda value: value * 0.8 + 10),
            lambda image: image.resize((320, 240), Image.Resampling.BICUBIC),
        ],
        ids=["smaller", "darker", "larger"],
    )
    def test_is_robust_and_yet_tells_pictures_apart(self, change: Callable[[Image.Image], Image.Image]) -> None:
        changed = dhash(np.asarray(change(Image.fromarray(picture(1)))))
        assert distance(dhash(picture(1)), changed) <= 8
        assert distance(dhash(picture(2)), changed) > 60

    def test_flat_picture_has_none(self) -> None:
        noise = np.random.default_rng(0).integers(118, 122, (64, 64, 3)).astype(np.uint8)
        assert dhash(noise) is None
        assert dhash(np.zeros((1, 1, 3), np.uint8)) is None

    def test_grey_equals_rgb(self) -> None:
        grey = picture(3)[:, :, 0]
        assert dhash(grey) == dhash(np.stack([grey] * 3, axis=2))


class TestPerceptualHashes:
    @pytest.fixture
    def sources(self) -> list[Source]:
        return [Source("image", path=Path(f"{i}.png")) for i in range(6)]

    @pytest.fixture
    def keys(self) -> Keys:
        return as_keys(content_key(b"%d" % (i % 5)) for i in range(6))  # the last equals the first

    def test_each_content_is_decoded_once_and_remembered(
        self, sources: list[Source], keys: Keys, tmp_path: Path
    ) -> None:
        decoded: list[Source] = []
        steps: list[int] = []

        def load(source: Source) -> NDArray[np.uint8]:
            decoded.append(source)
            return picture(int(source.path.stem) % 5 if source.path else 0)

        with FileCache(tmp_path / "files.sqlite") as cache:
            hashes = perceptual_hashes(sources, keys, cache, load, workers=2, progress=steps.append)
        assert hashes == [dhash(picture(i % 5)) for i in range(6)]
        assert (len(decoded), sum(steps)) == (5, 6)
        with FileCache(tmp_path / "files.sqlite") as cache:
            assert perceptual_hashes(sources, keys, cache, load, progress=steps.append) == hashes
        assert (len(decoded), sum(steps)) == (5, 12)

    def test_refused_samples_have_none_and_are_tried_again(self, sources: list[Source], keys: Keys) -> None:
        calls: list[Source] = []

        def load(source: Source) -> NDArray[np.uint8]:
            calls.append(source)
            if source.path == Path("1.png"):
                raise SampleError("truncated", "1.png")
            return np.zeros((8, 8, 3), np.uint8) if source.path == Path("2.png") else picture(0)

        cache = FileCache()
        hashes = perceptual_hashes(sources, keys, cache, load)
        assert [value is None for value in hashes] == [False, True, True, False, False, False]
        calls.clear()
        perceptual_hashes(sources, keys, cache, load)
        assert calls == [sources[1]]

    def test_missing_sample_has_none(self, sources: list[Source], keys: Keys) -> None:
        assert perceptual_hashes([None, *sources[1:]], keys, FileCache(), lambda _: picture(0))[3] is not None
        assert perceptual_hashes([None], keys[:1], FileCache(), lambda _: picture(0)) == [None]


class TestNearPairs:
    def test_counts_bits(self) -> None:
        zero = bytes(32)
        near, far = b"\xff" + bytes(31), b"\xff\x80" + bytes(30)
        found = near_pairs([zero, far, None, near, zero], max_distance=8)
        assert found.looks.tolist() == [0, 1, -1, 2, 0]
        assert found.pairs.tolist() == [[0, 2], [1, 2]]

    @pytest.mark.parametrize("hashes", [[], [None, None], [bytes(32)], [bytes(32)] * 5])
    def test_nothing_to_compare(self, hashes: list[bytes | None]) -> None:
        assert near_pairs(hashes).pairs.shape == (0, 2)

    def test_many_with_one_background(self) -> None:
        """Half of the bits are equal in all samples, as those of a black border are."""
        rng = np.random.default_rng(0)
        bits = np.zeros((20_000, 256), np.uint8)
        bits[:, 128:] = rng.random((20_000, 128)) < 0.5
        bits[7] = bits[11_000]
        bits[7, [3, 200, 255]] ^= 1
        bits[500:10_000] = bits[500]  # thousands of copies
        found = near_pairs([row.tobytes() for row in np.packbits(bits, axis=1)])
        assert len(np.unique(found.looks[500:10_000])) == 1
        assert found.pairs.tolist() == [sorted((found.looks[7], found.looks[11_000]))]

    def test_indistinct_samples_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(duplicates, "MAX_PAIRS", 1000)
        codes = [index.to_bytes(32, "big") for index in range(60)]
        with pytest.raises(LeakageError, match="more than 1,000 near-duplicate pairs among 60"):
            near_pairs(codes)


def test_texts_are_near_but_for_case_and_punctuation() -> None:
    texts = ["No acute finding.", "no  acute\nFINDING", "Ｎo acute finding", "acute finding", None, "...", "?!"]
    found = near_pairs_by_text(texts)
    assert found.looks.tolist() == [0, 0, 0, 1, -1, -1, -1]
    assert found.pairs.shape == (0, 2)


def test_embeddings_are_near_by_direction(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", 4)
    X = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
    X[10], X[3], X[5], X[6] = 2 * X[1], X[9] + 1e-4, 0, np.nan
    X[11] = X[0]
    found = near_pairs_by_embedding(X)
    assert set(np.flatnonzero(found.looks < 0)) == {5, 6}
    assert found.looks[10] == found.looks[1]
    assert found.looks[11] == found.looks[0]
    assert found.pairs.tolist() == [sorted((found.looks[3], found.looks[9]))]


def test_brute_force_agrees_on_embeddings() -> None:
    X = np.random.default_rng(1).normal(size=(60, 3)).astype(np.float32)
    found: NearPairs = near_pairs_by_embedding(X, min_cosine=0.95)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    expected = np.argwhere(np.triu(unit @ unit.T >= 0.95, k=1))
    np.testing.assert_array_equal(found.pairs, expected)
