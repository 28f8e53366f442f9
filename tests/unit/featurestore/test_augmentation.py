"""Augmented views: torchvision's own transforms, and the same pixels whoever asks, whenever and from wherever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from data.pixels import as_rgb
from featurestore.augmentation import Augmentation
from featurestore.encoder_ids import WrappedId


def augmentation(options: str) -> Augmentation:
    wrapped = WrappedId.parse(f"augmented:{options}+x:y" if options else "augmented+x:y")
    assert wrapped is not None
    return Augmentation.of(wrapped.options)


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)


def test_the_default_is_four_views_flipped_and_rotated() -> None:
    assert augmentation("") == Augmentation(count=4, flip=True, rotation=10.0, randaugment=None, seed=0)
    assert augmentation("flip,rotation=10") == augmentation("")
    assert augmentation("8,randaugment,seed=3") == Augmentation(
        count=8, flip=False, rotation=None, randaugment=9, seed=3
    )


def test_a_flip_mirrors_about_half_of_the_views(image: np.ndarray) -> None:
    views = augmentation("200,flip").views(image)
    mirrored = [np.array_equal(view, image[:, ::-1]) for view in views]
    kept = [np.array_equal(view, image) for view in views]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 70 <= sum(mirrored) <= 130  # four standard deviations either way


def test_a_rotation_stays_within_its_degrees() -> None:
    yy, xx = np.mgrid[-50:51, -50:51]
    line = np.where((np.abs(yy) <= 1) & (np.abs(xx) <= 35), 255, 0).astype(np.uint8)
    angles = []
    for view in augmentation("60,rotation=20").views(line):
        y, x = np.nonzero(view[..., 0])
        angles.append(np.degrees(np.arctan(np.polyfit(x, y, 1)[0])))
    assert np.abs(angles).max() <= 20.5  # the fit of a line of pixels
    assert min(angles) < -12 < 12 < max(angles)


@pytest.mark.parametrize(
    ("options", "reference"),
    [
        ("randaugment", v2.RandAugment()),
        ("randaugment=20", v2.RandAugment(2, 20)),
        ("rotation=30", v2.RandomRotation(30)),
        (
            "randaugment,rotation=30,flip",
            v2.Compose([v2.RandomHorizontalFlip(), v2.RandomRotation(30), v2.RandAugment()]),
        ),
    ],
)
def test_a_view_is_what_torchvision_makes_by_its_seed(
    options: str, reference: Any, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    seed_of = Augmentation._seed

    def noted(self: Augmentation, number: int, content: bytes) -> int:
        seeds.append(seed_of(self, number, content))
        return seeds[-1]

    monkeypatch.setattr(Augmentation, "_seed", noted)
    views = augmentation(f"12,{options}").views(image)
    assert len(set(seeds)) == 12
    for seed, view in zip(seeds, views, strict=True):
        torch.manual_seed(seed)
        expected = reference(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(view, expected)


def test_views_differ_by_number_seed_and_image(image: np.ndarray) -> None:
    views = augmentation("6,rotation=40").views(image)
    others = augmentation("6,rotation=40,seed=1").views(image)
    assert len({view.tobytes() for view in (*views, *others)}) == 12
    marked = image.copy()
    marked[0, 0, 0] ^= 1
    assert not np.array_equal(augmentation("1,rotation=40").views(marked)[0][5:-5, 5:-5], views[0][5:-5, 5:-5])


def test_more_views_begin_with_the_same(image: np.ndarray) -> None:
    few, many = augmentation("3,randaugment").views(image), augmentation("9,randaugment").views(image)
    for one, other in zip(few, many, strict=False):
        np.testing.assert_array_equal(one, other)


def test_threads_and_order_change_nothing() -> None:
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (20, 20 + i % 5, 3), dtype=np.uint8) for i in range(40)]
    policy = augmentation("4,flip,rotation=25,randaugment")
    alone = [[view.tobytes() for view in policy.views(image)] for image in images]
    order = rng.permutation(np.repeat(np.arange(40), 3)).tolist()
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: [view.tobytes() for view in policy.views(images[i])], order))
    assert together == [alone[i] for i in order]


def test_the_draws_of_others_go_on_as_if_nothing_was(image: np.ndarray) -> None:
    torch.manual_seed(7)
    expected = torch.rand(5)
    torch.manual_seed(7)
    first = torch.rand(2)
    augmentation("3,randaugment").views(image)
    torch.testing.assert_close(torch.cat([first, torch.rand(3)]), expected, rtol=0, atol=0)


def test_grey_is_augmented_as_the_colour_it_stands_for(image: np.ndarray) -> None:
    grey = np.ascontiguousarray(image[..., 0])
    policy = augmentation("4,flip,rotation=10,randaugment")
    for one, other in zip(policy.views(grey), policy.views(as_rgb(grey)), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.shape == image.shape
        assert one.flags.c_contiguous


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rotation=181", "up to 180 degrees, found 181"),
        ("rotation=0", "above 0"),
        ("rotation=1.2.3", "expected a number, found '1.2.3'"),
        ("randaugment=31", "from 0 to 30, found 31"),
    ],
)
def test_numbers_out_of_range_are_refused(options: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augmentation(options)
