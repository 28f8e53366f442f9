"""Two guards on the values that are about to be stored.

The *fidelity contract* compares the first samples of a run with the library's own transform and an
fp32 forward pass, one sample at a time. The *canary* compares the encoder with the one that wrote
the rows already stored, on fixed synthetic inputs, so that an upgrade of a library cannot mix two
kinds of vectors under one fingerprint.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import SampleError
from data.manifest import Modality, Source
from featurestore import levels
from featurestore.encoder import Encoder
from featurestore.errors import EncoderError
from featurestore.features import Ragged
from featurestore.spec import EncoderSpec, Precision

REFERENCE_SAMPLES: dict[Precision, int] = {"fp32": 2, "fp16": 8, "bf16": 8}
"""How many samples are compared: fp32 takes the library's own path, the others shortcuts that vary with the picture."""
MIN_COSINE: dict[Precision, float] = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.999}
"""The lowest cosine with the reference at which vectors may be stored."""

CANARY_COSINE = 0.999
_CANARY_TEXTS = (
    "The heart is of normal size and the lungs are clear.",
    "A brown dog runs across the wet sand with a stick in its mouth.",
)


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How close the stored vectors are to the library's own.

    Attributes
    ----------
    samples
        Number of samples compared.
    min_cosine
        The lowest cosine between a stored vector and its reference.
    max_abs
        The largest absolute difference of one value.
    max_relative
        The largest difference in L2 norm, relative to the reference.
    """

    samples: int
    min_cosine: float
    max_abs: float
    max_relative: float

    def to_dict(self) -> dict[str, float]:
        """Return the figures as JSON-ready values."""
        return asdict(self)


def compare(x: NDArray[np.float32], reference: NDArray[np.float32]) -> Fidelity:
    """Compare vectors with their reference, both of shape (n, d), row by row."""
    a, b = x.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = np.where(norms > 0, (a * b).sum(1) / np.maximum(norms, 1e-300), (norms == 0) * 1.0)
    relative = np.linalg.norm(a - b, axis=1) / np.maximum(np.linalg.norm(b, axis=1), 1e-12)
    return Fidelity(
        samples=len(a),
        min_cosine=float(cosine.min()),
        max_abs=float(np.abs(a - b).max()),
        max_relative=float(relative.max()),
    )


def compare_samples(block: levels.Block, reference: levels.Block) -> Fidelity:
    """Compare the first samples of a block with the reference of as many.

    Of several vectors per sample, all are compared at once: a token of hardly any length has no direction to speak of.
    """
    figures = [
        compare(mine.reshape(1, -1), theirs.reshape(1, -1))
        for mine, theirs in zip(levels.samples(block), levels.samples(reference), strict=False)
    ]
    return Fidelity(
        samples=len(figures),
        min_cosine=min(each.min_cosine for each in figures),
        max_abs=max(each.max_abs for each in figures),
        max_relative=max(each.max_relative for each in figures),
    )


def check_fidelity(
    encoder: Encoder, sources: Sequence[Source], blocks: Sequence[levels.Block], *, names: Sequence[str]
) -> tuple[Fidelity, ...]:
    """Compare the first embeddings of a run with the reference path, level by level.

    Parameters
    ----------
    encoder
        The encoder that made them.
    sources, blocks
        The samples and their embeddings, level by level; the first `REFERENCE_SAMPLES` are compared.
    names
        The encoder's id at each level, for the message.

    Raises
    ------
    EncoderError
        If the embeddings are further from the reference than their precision allows.
    """
    n = min(REFERENCE_SAMPLES[encoder.spec.precision], len(sources))
    references = levels.encode_reference(encoder, sources[:n])
    return tuple(
        _checked(spec, block, reference, name=name)
        for spec, block, reference, name in zip(levels.levels_of(encoder), blocks, references, names, strict=True)
    )


def _checked(spec: EncoderSpec, block: levels.Block, reference: levels.Block, *, name: str) -> Fidelity:
    counts = levels.lengths(block)[: len(levels.lengths(reference))], levels.lengths(reference)
    if (counts[0] != counts[1]).any():
        raise EncoderError(
            f"{name}: {counts[0].tolist()} tokens of the first samples where the library's own output has "
            f"{counts[1].tolist()}; nothing was stored"
        )
    fidelity = compare_samples(block, reference)
    budget = MIN_COSINE[spec.precision]
    if fidelity.min_cosine < budget:
        raise EncoderError(
            f"{name}: the {spec.precision} vectors reach a cosine of {fidelity.min_cosine:.6f} with the "
            f"library's own fp32 output where {budget} is required; nothing was stored. Use --precision fp32."
        )
    return fidelity


def canary_vectors(encoder: Encoder) -> tuple[NDArray[np.float32], ...]:
    """Return what the encoder makes of two fixed synthetic samples, level by level, float32.

    One vector per sample, shape (2, d). Of tokens, their mean and their mean weighted by place, which sees their
    order: shape (4, d), however many there are.
    """
    with tempfile.TemporaryDirectory(prefix="frostline-canary-") as folder:
        items = [encoder.read(source) for source in _canary_sources(encoder.spec.modality, Path(folder))]
        blocks = levels.encode(encoder, encoder.collate(items))
    return tuple(_summary(block) for block in blocks)


def _summary(block: levels.Block) -> NDArray[np.float32]:
    if not isinstance(block, Ragged):
        return block
    places = [np.arange(1, len(tokens) + 1)[:, None] / len(tokens) for tokens in levels.samples(block)]
    means = [(tokens.mean(0), (tokens * at).mean(0)) for tokens, at in zip(levels.samples(block), places, strict=True)]
    return np.concatenate(means).astype(np.float32)


def refuse_drift(cosine: float, *, name: str) -> None:
    """Refuse an encoder that no longer gives what the stored rows were made with.

    Parameters
    ----------
    cosine
        The lowest cosine between its canary vectors now and those recorded when the first row was stored.
    name
        The encoder's id, for the message.

    Raises
    ------
    EncoderError
        If the vectors have moved.
    """
    if cosine < CANARY_COSINE:
        raise EncoderError(
            f"{name}: this installation gives other vectors than the one that wrote the stored rows "
            f"(cosine {cosine:.6f} on the canary inputs, {CANARY_COSINE} required), so new rows would not match "
            f"them. Use the library versions that `frostline store info` lists, or another --store."
        )


def _canary_sources(modality: Modality, folder: Path) -> list[Source]:
    """Return the synthetic samples of one modality; files are written into `folder`."""
    if modality == "text":
        return [Source("text", text=text) for text in _CANARY_TEXTS]
    if modality == "image":
        return [Source("image", path=_write_canary_image(folder, seed)) for seed in range(2)]
    if modality == "video":
        return [Source("video", path=_write_canary_video(folder, seed)) for seed in range(2)]
    if modality == "audio":
        return [Source("audio", path=_write_canary_sound(folder, seed)) for seed in range(2)]
    raise SampleError("unsupported", f"no canary inputs for modality {modality!r}")


def _write_canary_image(folder: Path, seed: int) -> Path:
    """Write one smooth random picture, 320 x 256, as PNG; the same bytes for the same seed."""
    from PIL import Image

    path = folder / f"canary-{seed}.png"
    Image.fromarray(_blocks(np.random.default_rng(seed))).save(path)
    return path


def _write_canary_video(folder: Path, seed: int) -> Path:
    """Write 24 such pictures as a video of FFV1, which keeps every bit; the same pixels for the same seed."""
    import av

    rng, path = np.random.default_rng(seed), folder / f"canary-{seed}.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 256, "bgr0"
        for _ in range(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(_blocks(rng), format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _blocks(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a picture of even blocks: no resampling filter of a library decides the pixels of the canary itself."""
    coarse = rng.integers(0, 256, size=(8, 10, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(32, axis=0).repeat(32, axis=1))


def _write_canary_sound(folder: Path, seed: int) -> Path:
    """Write 1.5 s of random steps, 16-bit mono at 16 kHz, as WAV; the same bytes for the same seed."""
    import wave

    levels = np.random.default_rng(seed).integers(-9000, 9000, size=300, dtype=np.int16)
    path = folder / f"canary-{seed}.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(levels.repeat(80).astype("<i2").tobytes())
    return path
