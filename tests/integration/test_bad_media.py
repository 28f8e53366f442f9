"""Odd and bad media through `extract`: what is legal is read as it is meant, what is not is a ledger entry."""

from __future__ import annotations

import csv
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from PIL import Image

from data.filecache import FileCache
from data.sources import read_manifest
from data.video import sample_frames
from featurestore.store import FeatureStore

RATE = 16_000
ENCODERS = {
    "audio": "audio:logmel",
    "video": "frames:4+timm:test_vit/random:0",
    "image": "timm:test_vit/random:0",
    "text": "speech:features",
}

Make = Callable[[Path], object]


def sound(seconds: float = 0.5, rate: int = RATE, seed: int = 0) -> NDArray[np.float64]:
    """Noise under a falling line: no two stretches of it are alike."""
    noise = np.random.default_rng(seed).normal(size=round(seconds * rate)) / 20
    return noise * np.linspace(2, 0.2, len(noise))


def manifest(folder: Path, column: str, names: Sequence[str], **more: Sequence[str]) -> Path:
    path = folder / "manifest.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", column, *more])
        rows.writerows(
            [name.partition("#")[0], name, *(more[each][i] for each in more)] for i, name in enumerate(names)
        )
    return path


def vectors(store: Path, manifest: Path) -> dict[str, NDArray[np.float32]]:
    """Return what is stored of each sample, by id."""
    (features,) = FeatureStore(store).features()
    samples = read_manifest(manifest)
    keys, _ = FileCache().keys(samples.sources)
    return dict(zip(samples.ids, features.take(keys), strict=True))


# What is refused ----------------------------------------------------------------------------------------------------


def write_wav(*, rate: int = RATE, samples: NDArray[np.float64] | None = None) -> Make:
    return lambda path: soundfile.write(path, sound() if samples is None else samples, rate)


def with_header_rate(rate: int) -> Make:
    def make(path: Path) -> None:
        soundfile.write(path, sound(), RATE)
        content = bytearray(path.read_bytes())
        content[24:28] = struct.pack("<I", rate)
        path.write_bytes(content)

    return make


def picture(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)).save(path, format="PNG")


def halved(make: Make) -> Make:
    def cut(path: Path) -> None:
        make(path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])

    return cut


def m4a(path: Path) -> None:
    with av.open(str(path), "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(sound(2).astype(np.float32)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = RATE, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def no_frames(path: Path) -> None:
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def transcript(*lines: str) -> Make:
    return lambda path: path.write_text("\n".join(["@UTF8", "@Begin", *lines, "@End", ""]))


def words(path: Path) -> None:
    path.write_text("The heart is of normal size.\n" * 50)


@pytest.fixture
def makers(make_film: Any, make_scenes: Any) -> dict[str, Make]:
    """What writes each sort of bad file."""

    def film(path: Path) -> None:
        make_film(path, make_scenes(40), g="5")

    return {
        "silent": write_wav(samples=np.zeros(8000)),
        "0 samples": write_wav(samples=np.zeros(0)),
        "not finite": lambda path: soundfile.write(path, np.full(8000, np.nan), RATE, subtype="FLOAT"),
        "10 Hz": with_header_rate(10),
        "1 GHz": with_header_rate(10**9),
        "picture": picture,
        "words": words,
        "nothing": Path.touch,
        "half a wav": halved(write_wav()),
        "half a flac": halved(lambda path: soundfile.write(path, sound(2), RATE, format="FLAC")),
        "half an m4a": halved(m4a),
        "film": film,
        "half a film": halved(film),
        "0 frames": no_frames,
        "wav": lambda path: soundfile.write(path, sound(), RATE, format="WAV"),
        "other speaker": transcript("*INV:\twhat do you see ?"),
        "no speaker": transcript("@Comment:\tnothing was said"),
        "not a word": transcript("*PAR:\txxx ."),
    }


REFUSED = [
    ("audio", "silent", "a.wav", "empty", "found silence"),
    ("audio", "0 samples", "a.wav", "empty", "0 samples"),
    ("audio", "nothing", "a.wav", "empty", "0 bytes"),
    ("audio", "not finite", "a.wav", "not_finite", "NaN or infinite"),
    ("audio", "10 Hz", "a.wav", "unsupported", "samples per second, the header states 10"),
    ("audio", "1 GHz", "a.wav", "unsupported", "samples per second, the header states 1,000,000,000"),
    ("audio", "picture", "a.png", "unreadable", "found bytes that begin b'\\x89PNG"),
    ("audio", "words", "a.wav", "unreadable", "found bytes that begin b'The heart is'"),
    ("audio", "film", "a.mp4", "unsupported", "no sound in the file (video)"),
    ("audio", "half a wav", "a.wav", "truncated", "only the first 0.2493 s of the 0.5 s that the header states"),
    ("audio", "half a flac", "a.flac", "truncated", "s of the 2 s that the header states"),
    ("audio", "half an m4a", "a.m4a", "truncated", "s that the header states"),
    ("video", "half a film", "a.mp4", "truncated", "cut short"),
    ("video", "0 frames", "a.avi", "empty", "0 frames"),
    ("video", "nothing", "a.mp4", "empty", "0 bytes"),
    ("video", "picture", "a.png", "unreadable", "expected a video"),
    ("video", "wav", "a.wav", "unreadable", "expected a video"),
    ("image", "wav", "a.wav", "unreadable", "expected an image"),
    ("image", "film", "a.mp4", "unreadable", "expected an image"),
    ("text", "other speaker", "a.cha", "empty", "expected lines that begin with *PAR:, found only those of INV"),
    ("text", "no speaker", "a.cha", "empty", "expected lines that begin with *PAR:, found no speaker at all"),
    ("text", "not a word", "a.cha", "empty", "expected words to describe, found none"),
    ("text", "words", "a.cha", "unsupported", "expected a CHAT transcript"),
    ("text", "wav", "a.cha", "unreadable", "is not UTF-8"),
]


@pytest.mark.parametrize(("column", "what", "name", "kind", "says"), REFUSED)
def test_a_bad_file_is_a_ledger_entry_and_never_a_vector(
    column: str, what: str, name: str, kind: str, says: str, makers: dict[str, Make], frostline: Any, tmp_path: Path
) -> None:
    makers[what](tmp_path / name)
    store = tmp_path / "store"
    table = manifest(tmp_path, column, [name])
    result = frostline("extract", table, "--store", store, "--encoder", ENCODERS[column], "--json")
    assert result.code == 3, result.err
    assert "Traceback" not in result.err
    assert (result.json["encoded"], result.json["stored"]) == (0, 0)
    (failure,) = result.json["failures"]
    assert (failure["id"], failure["kind"]) == (name, kind)
    assert str(tmp_path / name) in failure["message"]
    assert says in failure["message"]
    assert "\n" not in failure["message"]
    (features,) = FeatureStore(store).features()
    (entry,) = FeatureStore(store).ledger(features.group).failures().values()
    assert (entry.id, entry.kind, entry.message) == (name, kind, failure["message"])


# What is legal ------------------------------------------------------------------------------------------------------


def test_odd_recordings_are_read_as_the_sound_that_they_hold(frostline: Any, tmp_path: Path) -> None:
    """Stereo, any depth and container: the vector is that of the plain file, within what the depth rounds off."""
    plain, left = sound(), sound(seed=1) / 4
    soundfile.write(tmp_path / "plain.wav", plain, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.wav", np.column_stack([plain + left, plain - left]), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "24.wav", plain, RATE, subtype="PCM_24")
    soundfile.write(tmp_path / "stereo24.flac", np.column_stack([plain, plain]), RATE, subtype="PCM_24")
    soundfile.write(tmp_path / "32.aiff", plain, RATE, subtype="PCM_32")
    soundfile.write(tmp_path / "other.wav", sound(seed=2), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "narrow.wav", sound(rate=8000), 8000)
    same = ["stereo.wav", "24.wav", "stereo24.flac", "32.aiff"]
    table = manifest(tmp_path, "audio", ["plain.wav", *same, "other.wav", "narrow.wav"])
    result = frostline("extract", table, "--store", tmp_path / "s", "--encoder", ENCODERS["audio"], "--json")
    assert result.code == 0, result.err
    assert result.json["bandwidths"] == {"4000": 1, "8000": 6}
    found = vectors(tmp_path / "s", table)
    for name in same:
        np.testing.assert_allclose(found[name], found["plain.wav"], atol=1e-3, err_msg=name)
    assert np.abs(found["other.wav"] - found["plain.wav"]).max() > 0.1
    bands = found["narrow.wav"][:80]
    assert bands.min() > -60, "no band of an 8 kHz file is empty"


def test_odd_videos_are_read_as_they_are_shown(
    frostline: Any, make_film: Any, make_scenes: Any, tmp_path: Path
) -> None:
    """A turned video is that of its upright frames; at a varying rate frames are even in time."""
    lossless = {"codec": "ffv1", "pix_fmt": "bgr0"}
    frames = make_scenes(19)
    for degrees in (90, -90, 180):
        make_film(tmp_path / f"turned{degrees}.mp4", frames, rotation=degrees)
        upright = [np.ascontiguousarray(np.rot90(frame, degrees // 90)) for frame in frames]
        make_film(tmp_path / f"upright{degrees}.mkv", upright, **lossless)
    make_film(tmp_path / "plain.mkv", frames, **lossless)
    times = [*range(0, 1000, 100), *range(1000, 10_000, 1000)]
    make_film(tmp_path / "varying.mkv", frames, times=times, **lossless)
    shown = sample_frames(times, 4)
    make_film(tmp_path / "shown.mkv", [frames[i] for i in shown], **lossless)
    assert shown != sample_frames(range(19), 4)
    pairs = [(f"turned{degrees}.mp4", f"upright{degrees}.mkv") for degrees in (90, -90, 180)]
    pairs.append(("varying.mkv", "shown.mkv"))
    table = manifest(tmp_path, "video", ["plain.mkv", *(name for pair in pairs for name in pair)])
    result = frostline("extract", table, "--store", tmp_path / "s", "--encoder", ENCODERS["video"], "--json")
    assert result.code == 0, result.err
    found = vectors(tmp_path / "s", table)
    for odd, plain in pairs:
        np.testing.assert_allclose(found[odd], found[plain], atol=1e-5, err_msg=odd)
        assert np.abs(found[odd] - found["plain.mkv"]).max() > 1e-3


def test_a_study_of_one_view_goes_on_and_one_of_none_is_listed(frostline: Any, tmp_path: Path) -> None:
    """Ten studies of two recordings, but one has a single view, one a damaged second and one nothing but damage."""
    names, studies, labels = [], [], []
    for study in range(12):
        for view in range(1 if study == 0 else 2):
            name = f"{study}-{view}.wav"
            samples = sound(seed=2 * study + view)
            soundfile.write(tmp_path / name, samples * np.linspace(1, 1 + study % 2, len(samples)), RATE)
            if study == 3 or (study, view) == (2, 1):
                content = (tmp_path / name).read_bytes()
                (tmp_path / name).write_bytes(content[: len(content) // 2])
            names.append(name)
            studies.append(f"study{study}")
            labels.append("ab"[study % 2])
    table = manifest(tmp_path, "audio", names, study=studies, label=labels)
    store = tmp_path / "store"
    extracted = frostline("extract", table, "--store", store, "--encoder", ENCODERS["audio"], "--json")
    assert extracted.code == 3
    kinds = {failure["id"]: failure["kind"] for failure in extracted.json["failures"]}
    assert kinds == dict.fromkeys(("2-1.wav", "3-0.wav", "3-1.wav"), "truncated")
    fitted = frostline(
        *("fit-head", table, "--store", store, "--encoder", ENCODERS["audio"], "--target", "label"),
        *("--bag", "study", "--folds", 3, "--bootstrap", 50, "--out", tmp_path / "run", "--json"),
    )
    assert fitted.code == 0, fitted.err
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        predicted = {row["id"] for row in csv.DictReader(file)}
    assert predicted == {f"study{i}" for i in range(12) if i != 3}
    dropped = {reason: set(each["ids"]) for reason, each in fitted.json["counts"]["dropped"].items()}
    assert dropped["bags without a row"] == {"study3"}
    assert {"2-1.wav"} < set().union(*dropped.values())
