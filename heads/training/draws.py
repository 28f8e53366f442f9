"""Random streams that are named by what they are for, so that no draw depends on the draws before it."""

from __future__ import annotations

import hashlib

import torch


def generator_of(
    seed: int, fold: int, purpose: str, *place: int, device: torch.device | None = None
) -> torch.Generator:
    """Return a generator that depends on a seed, a fold's number, a purpose and a place, such as an epoch, only."""
    key = repr((seed, fold, purpose, *place)).encode()
    number = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) >> 1
    return torch.Generator(device or "cpu").manual_seed(number)
