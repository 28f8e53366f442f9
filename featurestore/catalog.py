"""The table of encoders: families are the modules of `featurestore/encoders`, aliases are rows.

An encoder's id is ``family:name``, or ``wrapper+ID`` (`featurestore.encoder_ids`). Listing and resolving ids
imports no family, so the command line can do both at once; `load_encoder` imports the one family that it needs.
"""

from __future__ import annotations

import ast
import re
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from data.errors import did_you_mean
from data.manifest import Modality
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.encoder_ids import WRAPPERS, WrappedId
from featurestore.errors import EncoderError, EncoderUnavailable, UnknownEncoder
from featurestore.levels import levels_of
from featurestore.pooling_text import CHUNKS, Pooling

_FOLDER = Path(__file__).parent / "encoders"
_PREFIXES = {"huggingface": "hf", "python": "py"}
"""Families whose ids begin with something shorter than the module's name."""

_OPEN_CLIP_SCHEMES = ("hf-hub", "local-dir")
_IMAGE_FAMILIES = ("timm", "torchvision")
_VIDEO_MODELS = ("mc3_", "mvit_", "r2plus1d_", "r3d_", "s3d", "swin3d_")
"""How the names of torchvision's video models begin."""
_AUDIO_FAMILIES = ("audio",)
_LOCAL = re.compile(
    r"(?P<before>hf:|py:|open_clip:local-dir:|[^@]+@)(?P<path>.+?)(?P<after>/random:\d+|(?<=\.py):[\w.]+)?"
)
"""Where a path is in an id: a folder, a file of Python or, behind an architecture, a checkpoint."""

HANDED_BACK = "encoder.json"
"""What the folder of a fine-tuned encoder holds; its path alone is an id."""

_DEFAULTS: dict[Modality, str] = {
    "image": "offline:efficientnet-lite0",
    "text": "offline:minilm",
    "audio": "audio:mfcc",
    "video": "frames+offline:efficientnet-lite0",
}
_DISTRIBUTIONS = {"open_clip": "open_clip_torch", "PIL": "pillow", "sklearn": "scikit-learn"}
_PUBMEDBERT = "microsoft/BiomedNLP-PubMedBERT-"
_RENAMED = {
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "bert-base-cased": "google-bert/bert-base-cased",
    "distilbert-base-uncased": "distilbert/distilbert-base-uncased",
    "distilbert-base-cased": "distilbert/distilbert-base-cased",
    "roberta-base": "FacebookAI/roberta-base",
}
"""Hub repositories under their old names: the hub redirects them, a cache without a network does not."""


@dataclass(frozen=True, kw_only=True)
class Alias:
    """A short name of a well-known encoder.

    Attributes
    ----------
    alias, id
        The short name and what it stands for.
    modality
        What it encodes; None where it has an image and a text tower.
    dim
        Length of one embedding with the encoder's own pooling.
    licence
        Licence of the weights.
    gated
        Whether the hub asks for an account and for consent to terms.
    note
        What a user should know before choosing it.
    """

    alias: str
    id: str
    modality: Modality | None
    dim: int
    licence: str
    gated: bool = False
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family of encoders: its prefix, its module and the first line of the module's text."""

    prefix: str
    module: str
    summary: str

    @property
    def form(self) -> str:
        """How its ids begin: ``family:``, or ``wrapper+ID``."""
        return f"{self.prefix}+ID" if self.prefix in WRAPPERS else f"{self.prefix}:"


ALIASES = (
    Alias(
        alias="efficientnet-lite0",
        id="offline:efficientnet-lite0",
        modality="image",
        dim=1280,
        licence="Apache-2.0",
        note="ImageNet; the weights are a Python package, no network needed",
    ),
    Alias(
        alias="minilm",
        id="offline:minilm",
        modality="text",
        dim=384,
        licence="Apache-2.0",
        note="sentences, 256 tokens; the weights are a Python package, no network needed",
    ),
    Alias(
        alias="openclip-vit-b-16",
        id="open_clip:ViT-B-16/laion2b_s34b_b88k",
        modality=None,
        dim=512,
        licence="MIT",
        note="LAION-2B",
    ),
    Alias(alias="clip-vit-b-32", id="hf:openai/clip-vit-base-patch32", modality=None, dim=512, licence="MIT"),
    Alias(
        alias="biomedclip",
        id="open_clip:hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        modality=None,
        dim=512,
        licence="MIT",
        note="figures and captions of PubMed Central; without a network its text tower needs "
        "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract in the cache too",
    ),
    Alias(
        alias="xraysiglip-b",
        id="hf:StanfordAIMI/XraySigLIP__vit-b-16-siglip-512__webli",
        modality=None,
        dim=768,
        licence="CC-BY-NC-4.0",
        note="chest X-rays, 512 px",
    ),
    Alias(
        alias="xraysiglip-l",
        id="hf:StanfordAIMI/XraySigLIP__vit-l-16-siglip-384__webli",
        modality=None,
        dim=1024,
        licence="CC-BY-NC-4.0",
        note="chest X-rays; 512 px, whatever its name says",
    ),
    Alias(
        alias="medsiglip",
        id="hf:google/medsiglip-448",
        modality=None,
        dim=1152,
        licence="HAI-DEF terms",
        gated=True,
        note="medical images, 448 px",
    ),
    Alias(
        alias="rad-dino",
        id="hf:microsoft/rad-dino",
        modality="image",
        dim=768,
        licence="MSRLA",
        note="chest X-rays, 518 px; for research only",
    ),
    Alias(alias="dinov2", id="hf:facebook/dinov2-base", modality="image", dim=768, licence="Apache-2.0"),
    Alias(
        alias="resnet50",
        id="torchvision:resnet50/IMAGENET1K_V2",
        modality="image",
        dim=2048,
        licence="BSD-3-Clause",
        note="IMAGENET1K_V1 is often the better linear probe: try both",
    ),
    Alias(
        alias="distilbert",
        id="hf:distilbert/distilbert-base-uncased",
        modality="text",
        dim=768,
        licence="Apache-2.0",
    ),
    Alias(
        alias="biobert",
        id="hf:dmis-lab/biobert-base-cased-v1.2",
        modality="text",
        dim=768,
        licence="Apache-2.0",
        note="PubMed abstracts, cased",
    ),
    Alias(
        alias="biomedbert",
        id="hf:microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
        modality="text",
        dim=768,
        licence="MIT",
        note="PubMed abstracts and full texts; known as PubMedBERT before",
    ),
    Alias(
        alias="pubmedbert",
        id="hf:microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext",
        modality="text",
        dim=768,
        licence="MIT",
        note="the former name of biomedbert",
    ),
)


@cache
def families() -> tuple[Family, ...]:
    """Return the families there are. Imports none of them."""
    return tuple(
        Family(prefix=_PREFIXES.get(path.stem, path.stem), module=path.stem, summary=_summary(path))
        for path in sorted(_FOLDER.glob("*.py"))
        if not path.stem.startswith("_")
    )


def default_encoder(modality: Modality) -> str:
    """Return the encoder that a modality gets when none is named; it needs no network."""
    return _DEFAULTS[modality]


def canonical(encoder_id: str) -> str:
    """Return the full id behind an alias, a shorthand or another spelling.

    Parameters
    ----------
    encoder_id
        ``family:name``, an alias, one of open_clip's own ``hf-hub:`` and ``local-dir:``, the folder of a fine-tuned
        encoder, or a wrapper before any.

    Raises
    ------
    UnknownEncoder
        If there is no such alias, family or option of a wrapper.
    """
    text = encoder_id.strip()
    if wrapped := WrappedId.parse(text):
        return f"{wrapped.prefix}+{canonical(wrapped.inner)}"
    for row in ALIASES:
        if row.alias == text.lower():
            return row.id
    if (Path(text).expanduser() / HANDED_BACK).is_file():
        text = f"finetuned:{text}"
    prefix, colon, name = text.partition(":")
    if colon and prefix in _OPEN_CLIP_SCHEMES:
        return canonical(f"open_clip:{text}")
    known = {family.prefix for family in families()} - set(WRAPPERS)
    if not colon or prefix not in known:
        raise UnknownEncoder(f"no encoder {encoder_id!r}; {_suggestion(text, known)}")
    if not name:
        raise UnknownEncoder(f"{encoder_id!r} names a family but no model; see `frostline encoders`")
    if prefix == "open_clip":
        # The papers write ViT-B/16, open_clip ViT-B-16; what follows the next slash is the tag.
        name = re.sub(r"^(ViT-\w+)/(\d+)", r"\1-\2", name)
    if prefix == "finetuned":
        name = str(Path(name).expanduser().resolve())
    if prefix == "hf":
        name = _RENAMED.get(name, name).replace(_PUBMEDBERT, _PUBMEDBERT.replace("PubMed", "Biomed"))
    return f"{prefix}:{name}"


def from_anywhere(encoder_id: str) -> str:
    """Return the full id, which means the same in every working directory: a path in it is absolute.

    Raises
    ------
    UnknownEncoder
        As `canonical`.
    """
    full = canonical(encoder_id)
    if wrapped := WrappedId.parse(full):
        return f"{wrapped.prefix}+{from_anywhere(wrapped.inner)}"
    parts = _LOCAL.fullmatch(full)
    if parts is None or not (path := Path(parts["path"]).expanduser()).exists():
        return full
    return f"{parts['before']}{path.absolute()}{parts['after'] or ''}"


def modality_of(encoder_id: str) -> Modality | None:
    """Return what an encoder encodes, or None where only loading it would tell or it has two towers.

    Raises
    ------
    UnknownEncoder
        If there is no such alias or family.
    """
    full = canonical(encoder_id)
    if wrapped := WrappedId.parse(full):
        return wrapped.wrapper.encodes
    for row in ALIASES:
        if row.id == full:
            return row.modality
    family, _, name = full.partition(":")
    if family == "torchvision" and name.startswith(_VIDEO_MODELS):
        return "video"
    if family in _AUDIO_FAMILIES:
        return "audio"
    return "image" if family in _IMAGE_FAMILIES else None


def load_encoder(encoder_id: str, options: EncoderOptions) -> Encoder:
    """Return an encoder that is ready to encode.

    Parameters
    ----------
    encoder_id
        An alias or a full id.
    options
        Tower, pooling, precision, stored type and device.

    Raises
    ------
    UnknownEncoder
        If the id names nothing.
    EncoderUnavailable
        If a package it needs is missing or broken.
    WeightsUnavailable
        If the weights are neither here nor reachable, or untrained ones were not asked for by name.
    EncoderError
        If an option does not fit the encoder.
    """
    full = canonical(encoder_id)
    if wrapped := WrappedId.parse(full):
        encoder: Encoder = _import_family(wrapped.word).load(full, options)
    else:
        prefix, _, name = full.partition(":")
        module = next(family.module for family in families() if family.prefix == prefix)
        encoder = _import_family(module).load(name, options)
    if options.modality not in (None, encoder.spec.modality):
        raise EncoderError(f"{encoder_id} encodes {encoder.spec.modality}, not {options.modality}")
    made = [spec.pooling for spec in levels_of(encoder)]
    given = {"auto", *made, *(f"auto{CHUNKS}" for pooling in made if pooling.endswith(CHUNKS))}
    behind_blocks = {replace(each, block=None) for each in map(Pooling.parse, made) if each.block is not None}
    for asked in options.poolings:
        pooling = Pooling.parse(asked)
        from_the_end = pooling.block is not None and pooling.block < 0  # it is counted from the beginning by now
        if asked not in given and not (from_the_end and replace(pooling, block=None) in behind_blocks):
            raise EncoderError(f"{encoder_id}: no pooling {asked!r}; it gives {', '.join(made)}")
    return encoder


def to_dict() -> dict[str, list[dict[str, Any]]]:
    """Return families and aliases as JSON-ready values."""
    return {"families": [asdict(family) for family in families()], "aliases": [asdict(row) for row in ALIASES]}


def explain() -> str:
    """Return families and aliases as text to read."""
    lines = ["Families: an encoder's id is family:name, or wrapper+ID before any of them"]
    lines += [f"  {family.form:<14} {family.summary}" for family in families()]
    lines += ["", "Short names"]
    for row in ALIASES:
        notes = [row.modality or "image, text", f"{row.dim}-d", row.licence, "gated" if row.gated else "", row.note]
        lines += [f"  {row.alias:<19} {row.id}", f"  {'':<19} {'; '.join(note for note in notes if note)}"]
    return "\n".join(lines)


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return (docstring or "").partition("\n")[0]


def _suggestion(text: str, prefixes: set[str]) -> str:
    if (Path(text) / "encoder" / HANDED_BACK).is_file():
        return f"that is a run; its encoder is {Path(text) / 'encoder'}."
    if Path(text).exists():
        return f"a local checkpoint needs its family in front, e.g. hf:{text} or open_clip:local-dir:{text}."
    prefix, colon, _ = text.partition(":")
    if colon:
        return did_you_mean(f"{prefix}:", [f"{known}:" for known in prefixes])
    return did_you_mean(text, [row.alias for row in ALIASES] + [f"{known}:..." for known in prefixes])


def _import_family(module: str) -> ModuleType:
    try:
        return import_module(f"featurestore.encoders.{module}")
    except (ImportError, OSError, RuntimeError) as error:
        missing = (getattr(error, "name", None) or module).partition(".")[0]
        raise EncoderUnavailable(
            f"encoders of the family {module} need a package that is missing or broken ({error}): "
            f"pip install {_DISTRIBUTIONS.get(missing, missing)}"
        ) from error
