"""How the part of an id after its family is read: a model, and where its weights come from."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from featurestore.encoder import EncoderOptions
from featurestore.errors import EncoderError, UnknownEncoder

_RANDOM = re.compile(r"^(?P<model>.+)/random:(?P<seed>\d+)$")


@dataclass(frozen=True, kw_only=True)
class ModelName:
    """A model and its weights: ``MODEL[/TAG][@CHECKPOINT]`` or ``MODEL/random:SEED``.

    Attributes
    ----------
    model
        The architecture's name.
    tag
        The name of published weights; None if none is named.
    path
        A checkpoint file; None if none is named.
    seed
        Seed of random weights; None if they were not asked for.
    """

    model: str
    tag: str | None = None
    path: Path | None = None
    seed: int | None = None

    @classmethod
    def parse(cls, name: str) -> ModelName:
        """Return the parts of a name."""
        if match := _RANDOM.match(name):
            return cls(model=match["model"], seed=int(match["seed"]))
        head, at, path = name.partition("@")
        model, _, tag = head.partition("/")
        return cls(model=model, tag=tag or None, path=Path(path).expanduser() if at else None)


def split_seed(name: str) -> tuple[str, int | None]:
    """Return a name without its ``/random:SEED``, and the seed."""
    match = _RANDOM.match(name)
    return (match["model"], int(match["seed"])) if match else (name, None)


def unknown(kind: str, name: str, known: Iterable[str], *, example: str) -> UnknownEncoder:
    """Return the error for a name that a library does not know; `known` may hold a thousand names."""
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"an id looks like {example}"
    return UnknownEncoder(f"no {kind} {name!r}; {hint}")


def require_images(encoder: str, options: EncoderOptions) -> None:
    """Refuse another modality than images.

    Raises
    ------
    EncoderError
        If text or anything else was asked for.
    """
    if options.modality not in (None, "image"):
        raise EncoderError(f"{encoder} encodes images, not {options.modality}")
