"""Where downloaded weights come from: the cache first, the hub only for what the cache lacks.

A machine without a network therefore starts at once, and a cached encoder does not change because its
repository did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import RepositoryNotFoundError
from safetensors import SafetensorError

from featurestore.errors import WeightsUnavailable
from featurestore.weights import first_line

T = TypeVar("T")
_TIMEOUT_S = 10.0
UNLOADABLE = (OSError, RuntimeError, ValueError, KeyError, SafetensorError)
"""What transformers, timm and open_clip raise where a file is missing, or damaged."""


def from_cache_or_hub(load: Callable[[], T], *, encoder: str, repo: str) -> T:
    """Run a loader without a network, and once more with one if something is missing.

    Parameters
    ----------
    load
        Loads everything that is needed through huggingface_hub.
    encoder
        The encoder's id, for messages.
    repo
        The repository that must exist, ``org/name``.

    Raises
    ------
    WeightsUnavailable
        If it can be had from neither; the message says where it was looked for and what to do.
    """
    try:
        with _offline():
            return load()
    except UNLOADABLE:
        gated = _require_reachable(encoder, repo)
    try:
        return load()
    except UNLOADABLE as error:
        terms = f" Accept the terms at https://huggingface.co/{repo} and run `hf auth login`." if gated else ""
        raise WeightsUnavailable(f"{encoder}: cannot be loaded from the hub: {first_line(error)}{terms}") from error


@contextmanager
def _offline() -> Iterator[None]:
    """Keep every client of huggingface_hub to its cache; it reads this constant at each request."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _require_reachable(encoder: str, repo: str) -> bool:
    """Return whether a repository is gated; one request, where a download would retry for half a minute."""
    try:
        return bool(HfApi().model_info(repo, timeout=_TIMEOUT_S).gated)
    except RepositoryNotFoundError as error:
        raise WeightsUnavailable(
            f"{encoder}: the hub has no public repository {repo!r}; check the spelling, or run `hf auth login` for a "
            f"private one"
        ) from error
    except Exception as error:  # the hub's client changes its HTTP library, and with it its errors
        raise WeightsUnavailable(
            f"{encoder}: {repo}, or a file it refers to, is not in the cache {constants.HF_HUB_CACHE}; the hub cannot "
            f"be reached ({first_line(error)}). Run once with a network, set HF_HOME to a cache that has it, or name a "
            f"local copy of the repository by its path."
        ) from error
