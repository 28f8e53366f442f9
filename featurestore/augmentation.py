"""Augmentation: seeded, augmented views of an image by torchvision's v2 transforms.

A view depends on the policy, its number and the image's pixels alone. Whoever encodes it, in whichever order, batch
or thread, sees the same view.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from data.pixels import Image8, as_rgb

VERSION = 1
"""Version of how views are drawn; raised whenever a change moves pixels."""

FLIP_CHANCE = 0.5
ROTATION = 10.0
"""Degrees either way of the policy that is used where none is named: a flip and a rotation."""
OPERATIONS, MAGNITUDE, MAGNITUDES = 2, 9, 31
"""RandAugment's operations in a row, its default magnitude, and how many magnitudes there are."""

_DRAWING = Lock()
"""Held by RandAugment, which draws from torch's one global generator while it works, and images are read in threads."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to an image, as often as there are views; in the order of the fields.

    Attributes
    ----------
    count
        Views of an image, at least 1.
    flip
        Whether an image is mirrored left to right, with probability 0.5.
    rotation
        Largest rotation either way in degrees, above 0 and up to 180; uniform, nearest pixel, black corners.
    randaugment
        Magnitude of RandAugment, 0 to 30: two operations in a row [1]_.
    seed
        Other seeds give other views.

    References
    ----------
    .. [1] Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", 2020.
    """

    count: int
    flip: bool
    rotation: float | None
    randaugment: int | None
    seed: int

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Self:
        """Return what the options of the wrapper ``augmented`` say; a flip and a rotation where they name nothing.

        Raises
        ------
        ValueError
            If a number is out of its range; the message says which.
        """
        number = {name: value.partition("=")[2] for name, value in options.items()}
        flip, rotation, magnitude = bool(options["flip"]), None, None
        if options["rotation"]:
            rotation = _number(number["rotation"])
            if not 0 < rotation <= 180:
                raise ValueError(f"expected a rotation above 0 and up to 180 degrees, found {number['rotation']}")
        if options["randaugment"]:
            magnitude = int(number["randaugment"] or MAGNITUDE)
            if magnitude >= MAGNITUDES:
                raise ValueError(f"expected a magnitude of randaugment from 0 to {MAGNITUDES - 1}, found {magnitude}")
        if not flip and rotation is None and magnitude is None:
            flip, rotation = True, ROTATION
        return cls(
            count=int(options["count"]),
            flip=flip,
            rotation=rotation,
            randaugment=magnitude,
            seed=int(number["seed"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all that decides a view as JSON-ready values; it is part of an encoder's identity."""
        policy: list[dict[str, Any]] = []
        if self.flip:
            policy.append({"transform": "RandomHorizontalFlip", "p": FLIP_CHANCE})
        if self.rotation is not None:
            policy.append({"transform": "RandomRotation", "degrees": self.rotation, "interpolation": "nearest"})
        if self.randaugment is not None:
            policy.append({"transform": "RandAugment", "num_ops": OPERATIONS, "magnitude": self.randaugment})
        return {
            "views": self.count,
            "policy": policy,
            "transforms": "torchvision.transforms.v2",
            "seed": self.seed,
            "version": VERSION,
        }

    def views(self, image: Image8) -> list[Image8]:
        """Return the augmented views of an image: uint8, (h, w, 3) each. Safe to call from several threads.

        Parameters
        ----------
        image
            uint8, (h, w, 3), or (h, w) for grey, which is augmented as the colour image that it stands for.
        """
        rgb = as_rgb(image)
        pixels = torch.from_numpy(rgb).permute(2, 0, 1)
        content = hashlib.sha256(repr(rgb.shape).encode() + rgb.tobytes()).digest()
        views = (self._view(pixels, self._seed(number, content)) for number in range(self.count))
        return [np.ascontiguousarray(view.permute(1, 2, 0).numpy()) for view in views]

    def _view(self, pixels: Tensor, seed: int) -> Tensor:
        """Return what the policy makes of pixels (3, h, w); draw by draw what torchvision's classes do by this seed."""
        generator = torch.Generator().manual_seed(seed)
        if self.flip and torch.rand(1, generator=generator) < FLIP_CHANCE:
            pixels = tv.horizontal_flip(pixels)
        if self.rotation is not None:
            angle = torch.empty(1).uniform_(-self.rotation, self.rotation, generator=generator).item()
            pixels = tv.rotate(pixels, angle, interpolation=v2.InterpolationMode.NEAREST)
        return pixels if self.randaugment is None else _randaugmented(pixels, self.randaugment, generator)

    def _seed(self, number: int, content: bytes) -> int:
        digest = hashlib.sha256(f"view {VERSION} {self.seed} {number} ".encode() + content)
        return int.from_bytes(digest.digest()[:8]) >> 1


def _randaugmented(pixels: Tensor, magnitude: int, generator: torch.Generator) -> Tensor:
    """Return what RandAugment makes of pixels by the draws of a generator; torch's own goes on as if nothing was."""
    transform = v2.RandAugment(OPERATIONS, magnitude, MAGNITUDES, interpolation=v2.InterpolationMode.NEAREST)
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator.get_state())
        view: Tensor = transform(pixels)
    return view


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, found {text!r}") from None
