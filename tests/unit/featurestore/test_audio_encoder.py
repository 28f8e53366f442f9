"""The classic features of sound: ids, specification, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from data.errors import SampleError
from data.manifest import Source
from featurestore.catalog import default_encoder, load_encoder, modality_of
from featurestore.encoder import Encoder, EncoderOptions
from featurestore.errors import EncoderError, UnknownEncoder
from featurestore.fidelity import canary_vectors

OPTIONS = EncoderOptions(dtype="float32")


def load(encoder_id: str) -> Encoder:
    return load_encoder(encoder_id, OPTIONS)


def sound(folder: Path, *, seconds: float = 0.5, rate: int = 16_000, seed: int = 0) -> Source:
    path = folder / f"{seed}-{rate}-{seconds}.wav"
    soundfile.write(path, np.random.default_rng(seed).normal(size=round(seconds * rate)) / 10, rate)
    return Source("audio", path=path)


def test_the_default_of_sound() -> None:
    assert default_encoder("audio") == "audio:mfcc"
    assert modality_of("audio:logmel") == "audio"


@pytest.mark.parametrize(("encoder_id", "dim"), [("audio:mfcc", 120), ("audio:logmel", 160)])
def test_dimensions(encoder_id: str, dim: int, tmp_path: Path) -> None:
    encoder = load(encoder_id)
    assert encoder.spec.dim == dim
    assert encoder.read(sound(tmp_path)).shape == (dim,)


def test_every_setting_is_in_the_fingerprint() -> None:
    ids = ["audio:mfcc", "audio:logmel"]
    ids += [f"audio:mfcc/{setting}" for setting in ("trim=25", "trim=30", "fmax=4000", "norm=cmvn", "norm=minmax")]
    ids += ["audio:mfcc/trim=25/fmax=4000"]
    assert len({load(encoder_id).spec.fingerprint for encoder_id in ids}) == len(ids)
    assert load("audio:mfcc/fmax=4000/trim=25.0").spec.fingerprint == load(ids[-1]).spec.fingerprint
    assert load("audio:mfcc/fmax=8000").spec.fingerprint == load("audio:mfcc").spec.fingerprint
    preprocess = load("audio:mfcc/trim=25").spec.preprocess
    assert {name: preprocess[name] for name in ("rate", "n_fft", "hop", "n_mels", "fmin", "fmax", "top_db")} == {
        "rate": 16_000,
        "n_fft": 400,
        "hop": 160,
        "n_mels": 80,
        "fmin": 50.0,
        "fmax": 8000.0,
        "top_db": 80.0,
    }
    assert (preprocess["trim_db"], preprocess["fmax_bound"]) == (25.0, "half of the file's own rate")


@pytest.mark.parametrize(
    ("encoder_id", "message"),
    [
        ("audio:mfc", "did you mean 'mfcc'"),
        ("audio:mfcc/trm=25", "did you mean 'trim'"),
        ("audio:mfcc/trim=25/trim=30", "given twice"),
        ("audio:mfcc/trim=0", "expected trim from 1 to 120, found '0'"),
        ("audio:mfcc/trim=loud", "expected trim from 1 to 120, found 'loud'"),
        ("audio:mfcc/fmax=9000", "expected fmax from 500 to 8000, found '9000'"),
        ("audio:logmel/norm=cmv", "did you mean 'cmvn'"),
    ],
)
def test_an_unknown_id_says_what_is_known(encoder_id: str, message: str) -> None:
    with pytest.raises(UnknownEncoder) as caught:
        load(encoder_id)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_modalities_and_poolings_are_refused() -> None:
    with pytest.raises(EncoderError, match="encodes audio, not image"):
        load_encoder("audio:mfcc", EncoderOptions(modality="image"))
    with pytest.raises(EncoderError, match="no pooling 'cls'"):
        load_encoder("audio:mfcc", EncoderOptions(pooling="cls"))


def test_too_short_for_slopes(tmp_path: Path) -> None:
    short = sound(tmp_path, seconds=0.079)
    with pytest.raises(SampleError, match=r"expected at least 0\.08 s of sound"):
        load("audio:mfcc").read(short)
    assert np.isfinite(load("audio:logmel").read(short)).all()
    assert np.isfinite(load("audio:mfcc").read(sound(tmp_path, seconds=0.08))).all()


def test_recordings_of_one_sample_are_one_sound(tmp_path: Path) -> None:
    first, second = sound(tmp_path, seed=1), sound(tmp_path, seed=2)
    joined = Source("audio", path=first.path, rest=(second.path,))
    halves = [soundfile.read(source.path)[0] for source in (first, second)]
    soundfile.write(tmp_path / "whole.wav", np.concatenate(halves), 16_000)
    encoder = load("audio:mfcc")
    np.testing.assert_allclose(
        encoder.read(joined), encoder.read(Source("audio", path=tmp_path / "whole.wav")), rtol=1e-6
    )
    swapped = Source("audio", path=second.path, rest=(first.path,))
    assert np.abs(encoder.read(swapped) - encoder.read(joined)).max() > 1e-3


def test_resampling_adds_no_bands_to_a_narrow_file(tmp_path: Path) -> None:
    """All 80 bands lie below half of the file's own rate: above it a resampled file is empty."""
    narrow = sound(tmp_path, rate=8000, seconds=2)
    vector = load("audio:logmel").read(narrow)
    assert vector[:80].min() > -40


@pytest.mark.parametrize("encoder_id", ["audio:mfcc", "audio:logmel"])
def test_the_canary_is_heard(encoder_id: str) -> None:
    (vectors,) = canary_vectors(load(encoder_id))
    assert vectors.shape == (2, load(encoder_id).spec.dim)
    np.testing.assert_array_equal(vectors, canary_vectors(load(encoder_id))[0])
    cosine = torch.cosine_similarity(torch.from_numpy(vectors[:1]), torch.from_numpy(vectors[1:]))
    assert float(cosine) < 0.99999
    assert vectors.std(axis=1).min() > 1
