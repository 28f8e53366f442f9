"""PromptSet: encoded once, averaged as stated, in the order of the classes, known by its fingerprint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.progress import Silent
from data.task import Task
from featurestore import catalog
from featurestore import extract as extract_module
from featurestore.store import FeatureStore
from heads import prompts as prompts_module
from heads.config import PromptOptions
from heads.context import Context
from heads.errors import BundleError, HeadError
from heads.inputs import Block
from heads.prompts import PromptSet, average_prompts, load_prompts, refuse_other_classes, refuse_unaligned, shuffled

TOY = Path(__file__).resolve().parents[2] / "assets" / "toy.py"
DIM = 16
TEXT = f"py:{TOY}:text"
TASK = Task(kind="multiclass", targets=("label",), classes=("glioma", "none", "pituitary"))
LABELS = Task(kind="multilabel", targets=("a", "b"), classes=("a", "b"))


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore(tmp_path / "store", create=True)


def loaded(store: FeatureStore, task: Task = TASK, *, seed: int = 0, **options: object) -> PromptSet:
    made = load_prompts(
        PromptOptions.build({"prompt_encoder": TEXT, **options}, where="test"), task, store, Silent(), seed=seed
    )
    assert made is not None
    return made


def toy_vector(text: str) -> np.ndarray:
    """Return the toy encoder's embedding of a text, computed anew."""
    weight = np.random.default_rng(0).normal(size=(192, DIM)).astype(np.float32)
    codes = np.frombuffer(text.encode().ljust(192, b" "), np.uint8)
    return (codes.astype(np.float32) / 255) @ weight


def seed_form(texts: list[str]) -> np.ndarray:
    vectors = np.stack([toy_vector(text) for text in texts])
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(axis=0)


def test_the_default_is_the_mean_of_unit_vectors_in_class_order(store) -> None:
    prompts = loaded(store)
    words = ("signs of", "indication of", "evidence of", "presence of", "characteristic of")
    expected = np.stack([seed_form([f"{w} {name}" for w in words]) for name in TASK.classes])
    assert prompts.positive.shape == (3, DIM)
    assert prompts.positive.dtype == np.float32
    assert np.allclose(prompts.positive, expected, atol=1e-6)
    assert (np.linalg.norm(prompts.positive, axis=1) < 1).all()
    # The mega-vector of the seeds: classes one behind the other.
    assert np.allclose(prompts.added_to(Context()).prompts.ravel(), np.concatenate(expected), atol=1e-6)


def test_renormalized_is_of_unit_length_in_the_same_direction(store) -> None:
    plain, renormalized = loaded(store), loaded(store, prompt_average="renormalized")
    assert np.allclose(np.linalg.norm(renormalized.positive, axis=1), 1, atol=1e-6)
    lengths = np.linalg.norm(plain.positive, axis=1, keepdims=True)
    assert np.allclose(renormalized.positive, plain.positive / lengths, atol=1e-6)


def test_one_prompt_is_its_unit_vector() -> None:
    vector = np.array([[3.0, 4.0]])
    for average in ("mean", "renormalized"):
        assert np.allclose(average_prompts(vector, average), [0.6, 0.8])


def test_stored_prompts_need_no_encoder(store, monkeypatch) -> None:
    first = loaded(store)
    monkeypatch.setattr(catalog, "load_encoder", None)
    again = loaded(store)
    assert np.array_equal(again.positive, first.positive)
    assert again.fingerprint == first.fingerprint


def test_only_new_texts_are_encoded(store) -> None:
    loaded(store, template=["a {finding}"])
    first = store.find(TEXT)
    loaded(store, template=["a {finding}", "the {finding}"])
    after = store.find(TEXT)
    assert (len(first), len(after)) == (3, 6)
    # What was there is still served by the part it was written in.
    assert {part.name for part in first.parts} < {part.name for part in after.parts}


def test_the_fingerprint_tells_what_decides_the_vectors(store) -> None:
    plain = loaded(store)
    others = [
        loaded(store, template=["a {finding}"]),
        loaded(store, prompt_average="renormalized"),
        loaded(store, prompt_control="zero"),
        loaded(store, prompt_control="shuffled"),
        loaded(store, prompt_control="shuffled", seed=1),
        loaded(store, replace(TASK, classes=("none", "glioma", "pituitary"))),
    ]
    marks = {prompts.fingerprint for prompts in others}
    assert len(marks) == 6
    assert plain.fingerprint not in marks
    assert loaded(store).fingerprint == plain.fingerprint  # whatever was stored since


def test_only_labels_have_negative_prompts(store) -> None:
    assert loaded(store).negative is None
    labels = loaded(store, LABELS, template=["{finding} is seen"])
    assert labels.to_dict()["negative"] == [["no a is seen"], ["no b is seen"]]
    assert labels.negative is not None
    assert np.allclose(labels.negative[1], seed_form(["no b is seen"]), atol=1e-6)


def test_controls(store) -> None:
    plain, zero, other = (loaded(store, prompt_control=control) for control in ("none", "zero", "shuffled"))
    assert not zero.positive.any()
    order = [int(np.flatnonzero((plain.positive == row).all(axis=1))[0]) for row in other.positive]
    assert sorted(order) == [0, 1, 2]
    assert all(position != i for i, position in enumerate(order))
    assert np.array_equal(other.positive, loaded(store, prompt_control="shuffled").positive)


@pytest.mark.parametrize("n", [2, 3, 14])
def test_shuffling_leaves_nothing_in_place(n: int) -> None:
    for seed in range(20):
        order = shuffled(n, seed)
        assert sorted(order) == list(range(n))
        assert (order != np.arange(n)).all()


@pytest.mark.parametrize("option", [{"template": ["a {finding}"]}, {"prompt_control": "zero"}])
def test_prompt_options_without_an_encoder_are_refused(store, option) -> None:
    with pytest.raises(HeadError, match="without a text encoder; add --prompt-encoder"):
        load_prompts(PromptOptions.build(option, where="test"), TASK, store, Silent(), seed=0)


def test_no_encoder_no_prompts(store) -> None:
    assert load_prompts(PromptOptions(), TASK, store, Silent(), seed=0) is None


def test_a_regression_has_no_prompts(store) -> None:
    with pytest.raises(HeadError, match="a regression has none"):
        loaded(store, Task(kind="regression", targets=("age",)))


def test_an_encoder_of_images_is_refused(store) -> None:
    with pytest.raises(HeadError, match=r"--prompt-encoder .*toy.py:image: .*image"):
        loaded(store, prompt_encoder=f"py:{TOY}:image")


def block(encoder: str, **values: str) -> Block:
    made = {"fingerprint": "ab" * 32, "snapshot": "s", "modality": "image", "pooling": "native"}
    made |= {"precision": "fp32", "dtype": "float32"}
    return Block(encoder=encoder, dim=DIM, **{**made, **values})


def test_alignment(store) -> None:
    prompts = loaded(store)
    refuse_unaligned("zero_shot", [block(TEXT)], prompts)
    refuse_unaligned("zero_shot", [block(f"{TEXT}@abab")], prompts)  # narrowed by its fingerprint
    with pytest.raises(HeadError, match=r"offline:minilm and .* share no space; name one checkpoint .*clip-vit-b-32"):
        refuse_unaligned("zero_shot", [block("offline:minilm")], prompts)
    refuse_unaligned("zero_shot", [block(TEXT, pooling="native+chunks")], prompts)  # pieces lie in the same space
    with pytest.raises(HeadError, match="pooled by mean and prompts by native"):
        refuse_unaligned("zero_shot", [block(TEXT, pooling="mean")], prompts)
    with pytest.raises(HeadError, match="of one encoder, 2 were named"):
        refuse_unaligned("zero_shot", [block(TEXT), block(TEXT)], prompts)


def test_a_bundle_of_other_classes_is_refused(store) -> None:
    said = loaded(store).to_dict()
    refuse_other_classes(said, TASK.classes, where="head")
    refuse_other_classes({}, TASK.classes, where="head")  # a head without prompts
    with pytest.raises(BundleError, match="head: the prompts are of glioma, none, pituitary in this order"):
        refuse_other_classes(said, ("none", "glioma", "pituitary"), where="head")
    reordered = {**said, "classes": ["none", "glioma", "pituitary"]}
    with pytest.raises(BundleError, match="do not have the fingerprint"):
        refuse_other_classes(reordered, ("none", "glioma", "pituitary"), where="head")


def test_prompts_that_were_cut_are_counted(store, monkeypatch) -> None:
    real, heard = extract_module.extract, []
    monkeypatch.setattr(prompts_module, "extract", lambda *a, **k: replace(real(*a, **k), truncated=2))
    progress = Silent()
    monkeypatch.setattr(progress, "note", heard.append)
    options = PromptOptions.build({"prompt_encoder": TEXT, "template": ["a scan of {finding}"]}, where="test")
    load_prompts(options, TASK, store, progress, seed=0)
    said = f"--prompt-encoder {TEXT}: 2 of 3 prompts were cut at the encoder's limit; shorten them"
    assert heard == [said]
