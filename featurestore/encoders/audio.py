"""Classic features of sound, without weights: mfcc, logmel; settings follow, as in audio:mfcc/trim=25/fmax=4000."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.audio import RATE, Recording, load_audio, trim_silence
from data.errors import SampleError, did_you_mean
from data.manifest import Source
from data.spectrogram import DELTA_WIDTH, MelSettings, Spectrogram, cmvn, deltas, log_mel, mfcc, min_max
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.errors import EncoderError, UnknownEncoder
from featurestore.pooling import choose_pooling
from featurestore.spec import EncoderSpec

N_MFCC = 20
"""Cepstral coefficients of a frame, before their deltas and the deltas of those."""

_POOLING = "mean_std"
_NORMALISE: dict[str, Callable[[Spectrogram], Spectrogram]] = {"cmvn": cmvn, "minmax": min_max}
_SETTINGS = ("trim", "fmax", "norm")


@dataclass(frozen=True, kw_only=True)
class Framing:
    """From a file to a spectrogram: what an id may set.

    Attributes
    ----------
    trim
        Cut off beginning and end where they are this many decibels below the loudest frame; None keeps all.
    norm
        ``cmvn`` or ``minmax`` of each file's spectrogram by itself; None keeps decibels below the file's loudest
        value.
    mel
        The spectrogram.
    """

    trim: float | None = None
    norm: str | None = None
    mel: MelSettings

    @classmethod
    def parse(cls, encoder: str, settings: Sequence[str]) -> Framing:
        """Return the framing that the parts of an id say, such as ``trim=25``.

        Raises
        ------
        UnknownEncoder
            If a part is no setting, is repeated, or has a value that makes no sense.
        """
        values: dict[str, str] = {}
        for part in settings:
            name, _, value = part.partition("=")
            if name not in _SETTINGS:
                raise UnknownEncoder(f"{encoder}: no setting {name!r}; {did_you_mean(name, _SETTINGS)}")
            if name in values:
                raise UnknownEncoder(f"{encoder}: the setting {name!r} is given twice")
            values[name] = value
        norm = values.get("norm")
        if norm is not None and norm not in _NORMALISE:
            raise UnknownEncoder(f"{encoder}: no normalisation {norm!r}; {did_you_mean(norm, _NORMALISE)}")
        trim = _number(encoder, values, "trim", 1, 120)
        fmax = _number(encoder, values, "fmax", 500, RATE / 2)
        return cls(trim=trim, norm=norm, mel=MelSettings() if fmax is None else MelSettings(fmax=fmax))

    def to_dict(self) -> dict[str, Any]:
        """Return everything that determines the spectrogram's values, JSON-ready."""
        return {
            "rate": RATE,
            "channels": "mean",
            "resampling": "soxr HQ",
            "trim_db": self.trim,
            **asdict(self.mel),
            "fmax_bound": "half of the file's own rate",
            "window": "hann",
            "padding": "zeros",
            "power": 2,
            "mel": "slaney",
            "reference": "max",
            "normalise": self.norm,
        }

    def spectrogram(self, source: Source) -> Spectrogram:
        """Return the log-mel spectrogram of one sample, shape (n_mels, frames).

        Raises
        ------
        SampleError
            If the sample cannot be read.
        """
        spectrogram = log_mel(self.recording(source), self.mel)
        return spectrogram if self.norm is None else _NORMALISE[self.norm](spectrogram)

    def recording(self, source: Source) -> Recording:
        """Return the sound of one sample, trimmed where that was asked for.

        Raises
        ------
        SampleError
            If the sample cannot be read.
        """
        recording = load_audio(source, rate=RATE)
        return recording if self.trim is None else trim_silence(recording, self.trim)


class AudioEncoder:
    """Features of sound, averaged over time; fulfils `featurestore.encoder.Encoder`.

    The vectors are made in `read`, in threads on the CPU, so that no waveform waits in memory; `encode` only hands them
    over.

    Parameters
    ----------
    spec
        The encoder's identity.
    framing
        From a file to a spectrogram.
    describe
        From a sample and its spectrogram to one row per feature, shape (rows, frames).
    """

    thread_safe = True

    def __init__(
        self, *, spec: EncoderSpec, framing: Framing, describe: Callable[[Source, Spectrogram], Spectrogram]
    ) -> None:
        self.spec = spec
        self._framing = framing
        self._describe = describe

    @property
    def decoding(self) -> Hashable:
        """What `decode` depends on besides the sample: encoders that agree on it may share the spectrogram."""
        return "log-mel", self._framing

    def read(self, source: Source) -> NDArray[np.float32]:
        """Return the mean of every row over time, then the standard deviations: float32, shape (dim,).

        Raises
        ------
        SampleError
            If the sample cannot be read, is silent, or is too short.
        """
        return self.prepare(self.decode(source))

    def decode(self, source: Source) -> tuple[Source, Spectrogram]:
        """Return the spectrogram of one sample, and which it is.

        Raises
        ------
        SampleError
            If the sample cannot be read, or is silent.
        """
        return source, self._framing.spectrogram(source)

    def prepare(self, decoded: tuple[Source, Spectrogram]) -> NDArray[np.float32]:
        """Return what `read` does, of a sample that was decoded.

        Raises
        ------
        SampleError
            If it is too short.
        """
        rows = self._describe(*decoded).astype(np.float64)
        return np.concatenate([rows.mean(axis=1), rows.std(axis=1)]).astype(np.float32)

    def collate(self, items: Sequence[NDArray[np.float32]]) -> Tensor:
        """Return the vectors of a batch: float32, shape (n, dim)."""
        return torch.from_numpy(np.stack(list(items)))

    def encode(self, batch: Tensor) -> Tensor:
        """Return the batch as it is."""
        return batch

    def encode_reference(self, sources: Sequence[Source]) -> Tensor:
        """Return the vectors one by one."""
        return torch.cat([self.collate([self.read(source)]) for source in sources])


def load(name: str, options: EncoderOptions) -> Encoder:
    """Return an encoder of sound.

    Parameters
    ----------
    name
        ``mfcc``: 20 coefficients of an 80-band log-mel spectrogram with their deltas and delta-deltas, 120-d.
        ``logmel``: the 80 bands themselves, 160-d. Either is the mean and the standard deviation over all frames.
        Settings follow after slashes: ``trim=DB`` cuts off what is that much quieter than the loudest frame at
        either end, ``fmax=HZ`` is the highest frequency, ``norm=cmvn`` or ``norm=minmax`` normalises each file's
        spectrogram by itself.
    options
        Stored type; the arithmetic is float64 at any precision, on the CPU.

    Raises
    ------
    UnknownEncoder
        If there are no such features or settings.
    EncoderError
        If another modality or pooling was asked for.
    """
    encoder = f"audio:{name}"
    if options.modality not in (None, "audio"):
        raise EncoderError(f"{encoder} encodes audio, not {options.modality}")
    kind, *settings = name.split("/")
    if kind not in ("mfcc", "logmel"):
        raise UnknownEncoder(f"no features of sound {kind!r}; {did_you_mean(kind, ['mfcc', 'logmel'])}")
    framing = Framing.parse(encoder, settings)
    spec = partial(
        EncoderSpec,
        family="audio",
        modality="audio",
        weights="none",
        preprocess=framing.to_dict(),
        layer="frames",
        pooling=choose_pooling(options.pooling, (_POOLING,), encoder=encoder),
        precision=options.precision,
        dtype=options.dtype,
    )
    if kind == "mfcc":
        architecture = {"class": "mfcc", "n_mfcc": N_MFCC, "dct": "II, orthonormal", "deltas": [1, 2]}
        made = spec(architecture={**architecture, "delta_width": DELTA_WIDTH}, dim=2 * 3 * N_MFCC)
        return AudioEncoder(spec=made, framing=framing, describe=_mfcc_with_deltas)
    made = spec(architecture={"class": "logmel"}, dim=2 * framing.mel.n_mels)
    return AudioEncoder(spec=made, framing=framing, describe=lambda _, spectrogram: spectrogram)


def _mfcc_with_deltas(source: Source, spectrogram: Spectrogram) -> Spectrogram:
    frames = spectrogram.shape[1]
    if frames < DELTA_WIDTH:
        least = (DELTA_WIDTH - 1) * MelSettings().hop / RATE
        raise SampleError("unsupported", f"{source}: expected at least {least:g} s of sound, found {frames} frames")
    coefficients = mfcc(spectrogram, N_MFCC)
    return np.concatenate([coefficients, deltas(coefficients, 1), deltas(coefficients, 2)])


def _number(encoder: str, values: dict[str, str], name: str, low: float, high: float) -> float | None:
    if name not in values:
        return None
    try:
        number = float(values[name])
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise UnknownEncoder(f"{encoder}: expected {name} from {low:g} to {high:g}, found {values[name]!r}")
    return number
