"""The sound of containers that libsndfile does not read: what is heard, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import librosa
import numpy as np
import pytest
from numpy.typing import NDArray

import data.audio
from data.audio import Recording, file_rate, load_audio
from data.errors import SampleError
from data.manifest import Source

Waveform = NDArray[np.float32]


def melody(seconds: float = 2.0, rate: int = 16_000, channels: int = 1) -> Waveform:
    """Tones of falling loudness over some noise, shape (channels, n)."""
    t = np.arange(round(seconds * rate)) / rate
    tones = [np.sin(2 * np.pi * hz * t) * np.exp(-t) for hz in (330, 550, 880, 1210)[: 2 + channels]]
    noise = np.random.default_rng(0).normal(size=(channels, len(t))) / 200
    shares = np.random.default_rng(1).dirichlet(np.ones(len(tones)), channels)
    return (shares @ np.array(tones) / 2 + noise).astype(np.float32)


def record(path: Path, sound: Waveform, rate: int = 16_000, **options: Any) -> Path:
    """Encode a sound; `codec`, `coded_rate`, `muxer`, `format`, `picture` (adds a video stream)."""
    codec, coded_rate = options.pop("codec", "aac"), options.pop("coded_rate", rate)
    layout = "mono" if len(sound) == 1 else "stereo"
    with av.open(str(path), "w", format=options.pop("format", None), options=options.pop("muxer", {})) as container:
        film = container.add_stream("mpeg4", rate=25) if options.pop("picture", False) else None
        stream = container.add_stream(codec, rate=coded_rate, layout=layout)
        stream.bit_rate = 64_000 * len(sound)
        if film is not None:
            film.width, film.height, film.pix_fmt = 64, 48, "yuv420p"
            for _ in range(75):
                container.mux(film.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
            container.mux(film.encode(None))
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=coded_rate)
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=layout)
        # With the time of the first sample the encoder's delay is stated in the file.
        frame.sample_rate, frame.pts = rate, 0
        for each in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(each))
        container.mux(stream.encode(None))
    return path


def plainly(path: Path) -> tuple[Waveform, int]:
    """Decode with a plain loop, shape (channels, n), and the rate."""
    with av.open(str(path)) as container:
        frames = list(container.decode(audio=0))
    integers = np.iinfo(frames[0].to_ndarray().dtype) if frames[0].format.name.startswith("s") else None
    scale = 1.0 if integers is None else float(integers.max) + 1
    sound = np.concatenate([frame.to_ndarray() for frame in frames], axis=1) / scale
    if not frames[0].format.is_planar:
        sound = sound.reshape(-1, len(frames[0].layout.channels)).T
    return sound.astype(np.float32), frames[0].sample_rate


def load(path: Path, **options: int) -> Recording:
    return load_audio(Source("audio", path=path), **options)


def refused(path: Path) -> SampleError:
    with pytest.raises(SampleError) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


CONTAINERS = [
    ("a.m4a", {}),
    ("a.m4a", {"codec": "alac"}),
    ("fragments.m4a", {"muxer": {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}}),
    ("a.aac", {"format": "adts"}),
    ("a.webm", {"codec": "libopus", "coded_rate": 48_000}),
    ("a.mka", {"codec": "pcm_s24le", "format": "matroska"}),
    ("a.wma", {"codec": "wmav2", "coded_rate": 22_050, "format": "asf"}),
    ("film.mp4", {"picture": True}),
]


@pytest.mark.parametrize(("name", "options"), CONTAINERS)
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_of_a_plain_loop(name: str, options: dict[str, Any], channels: int, tmp_path: Path) -> None:
    path = record(tmp_path / name, melody(channels=channels), **options)
    decoded, rate = plainly(path)
    assert len(decoded) == channels
    recording = load(path, rate=rate)
    np.testing.assert_allclose(recording.samples, decoded.mean(axis=0), atol=1e-6)
    assert file_rate(Source("audio", path=path)) == rate
    assert recording.bandwidth == rate / 2


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("a.m4a", {}, 0.02),
        ("a.m4a", {"codec": "alac"}, 4e-5),
        ("a.webm", {"codec": "libopus", "coded_rate": 48_000}, 0.03),
        ("a.mkv", {"codec": "flac", "format": "matroska"}, 4e-5),
        ("film.mp4", {"picture": True}, 0.02),
    ],
)
def test_the_sound_is_the_one_that_was_recorded(
    name: str, options: dict[str, Any], error: float, tmp_path: Path
) -> None:
    """Within the codec's error, and at its place: a delay that the file states is cut off."""
    sound = melody()[0]
    recording = load(record(tmp_path / name, sound[None], **options))
    assert recording.rate == 16_000
    assert len(sound) <= len(recording.samples) <= len(sound) + 2048, "encoders fill up their last frame"
    np.testing.assert_allclose(recording.samples[1000:30_000], sound[1000:30_000], atol=error)


def test_other_rates_are_resampled_as_by_librosa(tmp_path: Path) -> None:
    path = record(tmp_path / "a.m4a", melody(rate=44_100, channels=2), 44_100)
    decoded, rate = plainly(path)
    expected = librosa.resample(decoded.mean(axis=0), orig_sr=rate, target_sr=16_000, res_type="soxr_hq")
    recording = load(path)
    length = len(recording.samples)
    assert len(expected) - length in (0, 1), "librosa rounds the length up"
    np.testing.assert_allclose(recording.samples, expected[:length], atol=1e-6)
    assert recording.bandwidth == 8000
    narrow = load(record(tmp_path / "telephone.m4a", melody(rate=8000), 8000))
    assert (narrow.rate, narrow.bandwidth) == (16_000, 4000)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.m4a", {}),
        ("first.m4a", {"muxer": {"movflags": "faststart"}}),
        ("fragments.m4a", {"muxer": {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}}),
        ("a.aac", {"format": "adts"}),
        ("a.webm", {"codec": "libopus", "coded_rate": 48_000}),
        ("a.mka", {"codec": "pcm_s16le", "format": "matroska"}),
        ("a.wma", {"codec": "wmav2", "coded_rate": 22_050, "format": "asf"}),
        ("film.mp4", {"picture": True, "muxer": {"movflags": "faststart"}}),
    ],
)
@pytest.mark.parametrize("share", [0.55, 0.9])
def test_cut_short(name: str, options: dict[str, Any], share: float, tmp_path: Path) -> None:
    path = record(tmp_path / name, melody(), **options)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    error = refused(path)
    assert error.kind == "truncated"
    assert "cut short" in str(error) if name == "a.m4a" else "found only the first" in str(error)


def test_sound_that_begins_late_is_not_called_cut_short(tmp_path: Path) -> None:
    """What Matroska states is when a sound ends, not how long it is."""
    path = tmp_path / "late.mka"
    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray((melody() * 30_000).astype(np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 3 * 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.audio[0].metadata["DURATION"].startswith("00:00:05")
    assert load(path).seconds == pytest.approx(2)


def test_how_much_is_left_is_told(tmp_path: Path) -> None:
    path = record(tmp_path / "a.m4a", melody(), muxer={"movflags": "faststart"})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "s of the 2" in str(refused(path))


def test_damage_is_told(tmp_path: Path) -> None:
    path = record(tmp_path / "a.m4a", melody())
    content = bytearray(path.read_bytes())
    at = content.index(b"mdat") + 3000
    content[at : at + 100] = bytes(byte ^ 0x5A for byte in content[at : at + 100])
    path.write_bytes(content)
    error = refused(path)
    assert error.kind == "unreadable"
    assert "damage after" in str(error)


def test_silence_and_no_sound_at_all(make_film: Any, make_scenes: Any, tmp_path: Path) -> None:
    assert refused(record(tmp_path / "quiet.m4a", np.zeros((1, 16_000), np.float32), codec="alac")).kind == "empty"
    error = refused(make_film(tmp_path / "silent.mp4", make_scenes(3)))
    assert error.kind == "unsupported"
    assert "no sound in the file (video)" in str(error)


def test_too_long_by_its_header_or_in_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated, unstated = record(tmp_path / "a.m4a", melody()), record(tmp_path / "a.aac", melody(), format="adts")
    monkeypatch.setattr(data.audio, "MAX_SECONDS", 1.5)
    for path in (stated, unstated):
        assert refused(path).kind == "too_large"
    joined = Source("audio", path=record(tmp_path / "1.m4a", melody(0.9)), rest=(tmp_path / "1.m4a",))
    with pytest.raises(SampleError, match="at most"):
        load_audio(joined)
