"""Transcripts from files to a fitted head: speech features and sentence embeddings, joined."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from featurestore.encoders.speech import FEATURES
from featurestore.store import FeatureStore

PICTURE = ("mother", "dishes", "sink", "water", "boy", "stool", "cookie", "jar", "girl", "window", "curtain", "plates")


def utterance(rng: np.random.Generator, halting: bool) -> str:
    """Return one line of a description of a picture; a halting speaker searches for words."""
    things = rng.choice(PICTURE, 2, replace=False)
    if not halting:
        return f"the {things[0]} is next to the {things[1]} and it looks quite ordinary ."
    return f"&-uh the [/] the &+{things[0][:2]} <that thing> [//] &-um it is the {things[0]} (.) ."


def transcript(rng: np.random.Generator, halting: bool) -> str:
    """Return a CHAT transcript of eight utterances; a halting speaker pauses between them."""
    lines, now = ["@UTF8", "@Begin", "@Languages:\teng", "@Participants:\tPAR Participant, INV Investigator"], 2000
    lines += ["@ID:\teng|handmade|PAR|70;|female|||Participant|||", "*INV:\ttell me what you see . \x150_1500\x15"]
    for _ in range(8):
        text, until = utterance(rng, halting), now + int(rng.integers(2000, 4000))
        first, rest = text.split(" ", 3)[:3], text.split(" ", 3)[3]
        lines += [f"*PAR:\t{' '.join(first)}", f"\t{rest} \x15{now}_{until}\x15", "%mor:\tdet|the n|boy"]
        now = until + (int(rng.integers(600, 2000)) if halting else int(rng.integers(20, 200)))
    return "\n".join([*lines, "@End", ""])


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of 24 hand-made transcripts of 12 people, half of them halting."""
    folder, rng = tmp_path_factory.mktemp("talks"), np.random.default_rng(0)
    rows = []
    for i in range(24):
        halting = i % 2 == 1
        name = f"{'halting' if halting else 'fluent'}/visit {i}.cha"
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(transcript(rng, halting), encoding="utf-8")
        rows.append({"id": f"t{i:02d}", "text": name, "label": name.partition("/")[0], "person": f"p{i % 12}"})
    with (folder / "manifest.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return folder / "manifest.csv"


def test_from_transcripts_to_a_head_on_joined_features(frostline, talks: Path, tmp_path: Path) -> None:
    store, encoders = tmp_path / "store", ("speech:features", "offline:minilm")
    for encoder in encoders:
        result = frostline("extract", talks, "--store", store, "--encoder", encoder, "--json")
        assert result.code == 0, result.err
        assert (result.json["encoded"], result.json["truncated"], result.json["failures"]) == (24, 0, [])

    named = [part for encoder in encoders for part in ("--encoder", encoder)]
    fit = ("fit-head", talks, "--store", store, "--target", "label", "--group", "person", "--folds", 3)
    fitted = frostline(*fit, *named, "--head", "linear", "--bootstrap", 50, "--out", tmp_path / "run", "--json")
    assert fitted.code == 0, fitted.err
    assert [block["dim"] for block in fitted.json["inputs"]] == [len(FEATURES), 384]
    assert fitted.json["metrics"]["cv"]["roc_auc"]["value"] > 0.95

    out = tmp_path / "predictions.csv"
    predicted = frostline("predict", tmp_path / "run", talks, "--store", store, "--out", out, "--json")
    assert predicted.code == 0, predicted.err
    with out.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 24


def test_the_stored_features_are_those_of_the_files(frostline, talks: Path, tmp_path: Path) -> None:
    result = frostline("extract", talks, "--store", tmp_path / "s", "--encoder", "speech:features", "--json")
    assert result.code == 0, result.err
    _, X = FeatureStore(tmp_path / "s").find("speech:features").load()
    column = {name: X[:, i] for i, name in enumerate(FEATURES)}
    halting = column["disfluency_rate"] > 0
    assert halting.sum() == 12
    assert column["repair_rate"][halting].min() > 0 == column["repair_rate"][~halting].max()
    assert (column["pause_count"] == np.where(halting, 7, 0)).all()
    assert (column["timed"] == 1).all()
    assert (column["utterances"] == 8).all()


def test_a_folder_of_transcripts_is_a_manifest(frostline, talks: Path, tmp_path: Path) -> None:
    talks_only = tmp_path / "talks"
    for path in talks.parent.rglob("*.cha"):
        copy = talks_only / path.relative_to(talks.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    by_table = frostline("extract", talks, "--store", tmp_path / "s", "--encoder", "speech:features", "--json")
    by_folder = frostline("extract", talks_only, "--store", tmp_path / "s", "--encoder", "speech:features", "--json")
    assert by_table.json["encoded"] == 24
    assert (by_folder.json["samples"], by_folder.json["cached"]) == (24, 24)


def test_a_folder_of_plain_texts_is_a_manifest(frostline, tmp_path: Path) -> None:
    for i in range(4):
        path = tmp_path / "notes" / ("normal", "pneumonia")[i % 2] / f"{i}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"report number {i} of the chest")
    (tmp_path / "notes" / "README.txt").write_text("What this folder holds")
    result = frostline("extract", tmp_path / "notes", "--store", tmp_path / "s", "--encoder", "minilm", "--json")
    assert result.code == 0, result.err
    assert (result.json["samples"], result.json["encoded"]) == (4, 4)
    assert "left out 1 files that are no text files: README.txt" in result.err


def test_bad_transcripts_are_listed_and_the_others_encoded(frostline, tmp_path: Path) -> None:
    good = "@Begin\n*PAR:\tthe boy falls .\n@End\n"
    files: dict[str, bytes] = {
        "good": good.encode(),
        "nobody": b"@Begin\n*INV:\tgood .\n@End\n",
        "prose": b"The boy falls.\n",
        "latin": "@Begin\n*PAR:\tun café .\n@End\n".encode("latin-1"),
        "cut": b"@Begin\n*PAR:\tthe boy",
        "silent": b"@Begin\n*PAR:\txxx .\n@End\n",
        "blank": b"",
    }
    for name, content in files.items():
        (tmp_path / f"{name}.cha").write_bytes(content)
    rows = [f"{name},{name}.cha" for name in (*files, "gone")]
    (tmp_path / "m.csv").write_text("\n".join(["id,text", *rows, "none,", ""]))
    for encoder in ("speech:features", "minilm"):
        store = tmp_path / encoder.replace(":", "-")
        result = frostline("extract", tmp_path / "m.csv", "--store", store, "--encoder", encoder, "--json")
        assert result.code == 3
        assert {failure["id"]: failure["kind"] for failure in result.json["failures"]} == {
            "nobody": "empty",
            "prose": "unsupported",
            "latin": "unreadable",
            "cut": "truncated",
            "silent": "empty",
            "blank": "empty",
            "gone": "missing",
        }
        assert (result.json["encoded"], result.json["absent"]) == (1, 1)
        assert "Traceback" not in result.err


def test_an_empty_report_is_absent_and_never_a_text(frostline, toy_text, tmp_path: Path) -> None:
    """An empty cell is a missing modality: no words stand in for it, and two of them are no pair of duplicates."""
    (tmp_path / "m.csv").write_text("id,text,label\na,,x\nb,clear lungs,y\nc,,y\nd,  ,x\n")
    result = frostline("extract", tmp_path / "m.csv", "--store", tmp_path / "s", "--encoder", toy_text, "--json")
    assert result.code == 0, result.err
    counts = {name: result.json[name] for name in ("samples", "encoded", "absent", "duplicates", "stored")}
    assert counts == {"samples": 4, "encoded": 1, "absent": 3, "duplicates": 0, "stored": 1}


def test_the_share_of_cut_texts_is_told_and_pieces_cut_none(frostline, tmp_path: Path) -> None:
    texts = ["the lungs are clear", "no acute finding", "heart size normal", "the lungs are clear and wide " * 80]
    rows = (json.dumps({"id": i, "text": text}) for i, text in enumerate(texts))
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    extract = ("extract", tmp_path / "m.jsonl", "--store", tmp_path / "s", "--encoder", "minilm")
    cut = frostline(*extract)
    assert "1 texts (25.0% of those encoded) were cut at the encoder's limit; --pooling auto+chunks" in cut.out
    whole = frostline(*extract, "--pooling", "auto+chunks", "--json")
    assert whole.code == 0, whole.err
    assert (whole.json["truncated"], whole.json["truncation_rate"], whole.json["chunked"]) == (0, 0.0, 1)
    assert whole.json["fidelity"]["min_cosine"] > 0.99999
    store = FeatureStore(tmp_path / "s")
    first, second = (store.find("offline:minilm", pooling=pooling).load() for pooling in ("mean", "mean+chunks"))
    same = [np.abs(a - second[1][(second[0] == key).all(1)]).max() < 1e-5 for key, a in zip(*first, strict=True)]
    assert sum(same) == 3, "only the long text has another vector"


def test_cut_texts_whole_ones_and_tokens_are_stored_in_one_run(frostline, tmp_path: Path) -> None:
    texts = ["the lungs are clear", "no acute finding", "the lungs are clear and wide " * 80]
    rows = (json.dumps({"id": i, "text": text}) for i, text in enumerate(texts))
    (tmp_path / "m.jsonl").write_text("\n".join(rows))
    extract = ("extract", tmp_path / "m.jsonl", "--encoder", "minilm", "--json", "--store")
    result = frostline(*extract, tmp_path / "s", "--pooling", "mean,auto+chunks,tokens")
    assert result.code == 0, result.err
    levels = {each["pooling"]: each for each in (result.json, *result.json["also"])}
    assert [(name, levels[name]["truncated"], levels[name]["chunked"]) for name in sorted(levels)] == [
        ("mean", 1, 0),
        ("mean+chunks", 0, 1),
        ("tokens", 1, 0),
    ]
    assert levels["tokens"]["truncation_rate"] == pytest.approx(1 / 3)
    for pooling in ("mean", "mean+chunks"):
        alone = frostline(*extract, tmp_path / "alone", "--pooling", pooling)
        assert alone.json["fingerprint"] == levels[pooling]["fingerprint"]
        stored, expected = (FeatureStore(tmp_path / s).find("offline:minilm", pooling=pooling) for s in ("s", "alone"))
        np.testing.assert_allclose(stored.take(expected.keys()), expected.load()[1], atol=1e-5)
    assert frostline(*extract, tmp_path / "s", "--pooling", "tokens,mean+chunks,mean").json["encoded"] == 0
    refused = frostline(*extract, tmp_path / "s", "--pooling", "tokens+chunks")
    assert "offline:minilm: pieces of a text are averaged, which tokens cannot be" in refused.err
