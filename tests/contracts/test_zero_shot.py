"""Zero-shot through the command's own path equals the libraries': tiny checkpoints, real towers, real logits."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import expit, softmax

from data.manifest import Source
from data.progress import Silent
from featurestore.catalog import load_encoder
from featurestore.config import ExtractConfig
from featurestore.encoder import EncoderOptions
from featurestore.extract import extract
from finetune.handback import save_encoder
from finetune.towers import load_tower
from heads.config import FitConfig, PredictConfig, ZeroShotConfig
from heads.errors import HeadError
from heads.loading import load
from heads.predict import predict
from heads.record import RunRecord
from heads.zero_shot import zero_shot

TEMPLATES = ("a small {finding}", "{finding} in the left lobe")
CLASSES = ("heart", "lungs", "nodule")
SCALE, BIAS = 31.5, -4.25


@pytest.fixture(scope="module")
def checkpoint(zoo, tmp_path_factory) -> Callable[[str], Path]:
    """Return a checkpoint of a kind whose scale and bias are no defaults."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            folder = shutil.copytree(zoo(kind), tmp_path_factory.mktemp("scaled") / kind)
            if kind == "open_clip":
                _rescale(folder / "open_clip_model.safetensors")
            else:
                _rescale(folder / "model.safetensors")
            made[kind] = folder
        return made[kind]

    return make


def _rescale(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(file)
    state["logit_scale"].fill_(float(np.log(SCALE)))
    if "logit_bias" in state:
        state["logit_bias"].fill_(BIAS)
    save_file(state, file, metadata={"format": "pt"})


def encoder_of(kind: str, folder: Path) -> str:
    return f"open_clip:local-dir:{folder}" if kind == "open_clip" else f"hf:{folder}"


@pytest.fixture
def data(images, tmp_path) -> Path:
    """Write a manifest of the pictures, with a class and two labels each."""
    path = tmp_path / "manifest.csv"
    rows = [
        {"id": i, "image": str(source.path), "label": CLASSES[i % 3], "nodule": i % 2, "lungs": int(i > 1)}
        for i, source in enumerate(images)
    ]
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, fieldnames=list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


@pytest.fixture
def run(data, tmp_path) -> Callable[..., tuple[RunRecord, Path, np.ndarray]]:
    """Extract the pictures and run zero-shot; return the record, the run and the probabilities."""

    def go(encoder: str, target: str = "label", **options: Any) -> tuple[RunRecord, Path, np.ndarray]:
        store, out = tmp_path / "store", tmp_path / "run"
        extract(ExtractConfig(manifest=data, store=store, encoder=encoder, device="cpu"))
        asked = {"manifest": data, "store": store, "encoder": encoder, "target": target, "out": out, "overwrite": True}
        asked |= {"template": TEMPLATES, "bootstrap": 20}
        record = zero_shot(ZeroShotConfig.build({**asked, **options}, where="test"))
        with (out / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        columns = [name for name in rows[0] if name.startswith("prob[")]
        return record, out, np.array([[float(row[name]) for name in columns] for row in rows])

    return go


def reference(kind: str, folder: Path, images: list[Source], texts: list[str]) -> np.ndarray:
    """Return the library's own logits of pictures and texts, shape (n, t)."""
    pictures = [Image.open(source.path).convert("RGB") for source in images]
    with torch.inference_mode():
        if kind == "open_clip":
            import open_clip

            model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
            model.eval()
            image = torch.stack([transform(picture) for picture in pictures])
            towers = model(image, open_clip.get_tokenizer(f"local-dir:{folder}")(texts))
            return (towers[2] * towers[0] @ towers[1].T).numpy()
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        model = AutoModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        padding = "max_length" if kind == "siglip" else True
        tokens = tokenizer(texts, padding=padding, truncation=True, return_tensors="pt")
        wanted = ("input_ids",) if kind == "siglip" else ("input_ids", "attention_mask")
        processor = AutoImageProcessor.from_pretrained(folder)
        pixels = torch.cat([processor(images=p, return_tensors="pt")["pixel_values"] for p in pictures])
        return model(pixel_values=pixels, **{name: tokens[name] for name in wanted}).logits_per_image.numpy()


@pytest.mark.parametrize("kind", ["open_clip", "clip", "siglip"])
def test_one_template_equals_the_library(kind: str, checkpoint, run, images) -> None:
    folder = checkpoint(kind)
    record, _, probability = run(encoder_of(kind, folder), template=("a small {finding}",))
    logits = reference(kind, folder, images, [f"a small {name}" for name in CLASSES])
    # In terms of logits: the bias of SigLIP is the same for all classes and falls out of the softmax.
    ours = np.log(probability)
    assert np.allclose(ours - ours[:, :1], logits - logits[:, :1], atol=1e-5 * SCALE)
    assert np.allclose(probability, softmax(logits.astype(np.float64), axis=1), atol=1e-5)
    assert record.prompts["logit_scale"] == pytest.approx(SCALE, rel=1e-6)
    assert record.prompts["logit_bias"] == (pytest.approx(BIAS) if kind == "siglip" else None)


def test_labels_by_siglips_sigmoid_equal_the_library(checkpoint, run, images) -> None:
    folder = checkpoint("siglip")
    options = {"template": ("a small {finding}",), "set": {"scoring": "sigmoid"}}
    record, _, probability = run(f"hf:{folder}", "nodule,lungs", **options)
    logits = reference("siglip", folder, images, ["a small nodule", "a small lungs"])
    assert np.allclose(probability, expit(logits.astype(np.float64)), atol=1e-5)
    assert record.warnings == ()


def test_labels_by_pairs_equal_the_library(checkpoint, run, images) -> None:
    folder = checkpoint("clip")
    _, _, probability = run(f"hf:{folder}", "nodule,lungs", template=("a small {finding}",))
    names = ["nodule", "lungs"]
    present = reference("clip", folder, images, [f"a small {name}" for name in names])
    absent = reference("clip", folder, images, [f"a small no {name}" for name in names])
    expected = softmax(np.stack([absent, present], axis=2).astype(np.float64), axis=2)[:, :, 1]
    assert np.allclose(probability, expected, atol=1e-5)


def test_several_templates_are_averaged_as_clip_does(checkpoint, run, images) -> None:
    import open_clip

    folder = checkpoint("open_clip")
    record, _, probability = run(encoder_of("open_clip", folder))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    templates = [lambda name, t=template: t.replace("{finding}", name) for template in TEMPLATES]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    weights = open_clip.build_zero_shot_classifier(model, tokenizer, CLASSES, templates, num_classes_per_batch=None)
    with torch.inference_mode():
        pictures = torch.stack([transform(Image.open(source.path).convert("RGB")) for source in images])
        logits = SCALE * (model.encode_image(pictures, normalize=True) @ weights)
    assert np.allclose(probability, softmax(logits.double().numpy(), axis=1), atol=1e-5)
    assert record.prompts["average"] == "renormalized"


def test_a_pair_that_was_fine_tuned_uses_its_own_space_and_scale(zoo, run, images, tmp_path) -> None:
    """A BERT and a ViT, with linear layers into a common space, as one folder."""
    towers = {}
    for kind, modality in (("vit", "image"), ("bert", "text")):
        towers[modality] = load_tower(f"hf:{zoo(kind)}", modality=modality, device="cpu")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            towers[modality].projection = torch.nn.Linear(32, 6, bias=False)
    save_encoder(tmp_path / "encoder", towers, similarity={"scale": 7.5})
    record, _, probability = run(str(tmp_path / "encoder"), template=("a small {finding}",))

    texts = [Source("text", text=f"a small {name}") for name in CLASSES]
    with torch.no_grad():
        vectors = [
            torch.nn.functional.normalize(tower(tower.collate([tower.read(source) for source in sources]))[0])
            for tower, sources in ((towers["image"], images), (towers["text"], texts))
        ]
    logits = 7.5 * vectors[0] @ vectors[1].T
    assert np.allclose(probability, softmax(logits.double().numpy(), axis=1), atol=1e-5)
    assert (record.prompts["logit_scale"], record.prompts["logit_bias"]) == (7.5, None)


def test_the_second_run_loads_no_encoder_and_says_the_same(checkpoint, run, monkeypatch) -> None:
    encoder = f"hf:{checkpoint('clip')}"
    first, _, _ = run(encoder)
    monkeypatch.setattr("heads.prompts.extract", None)
    again, _, _ = run(encoder)
    assert again.stable_digest() == first.stable_digest()


def test_the_run_is_whole_and_predicts_new_pictures(checkpoint, run, images, tmp_path) -> None:
    record, out, probability = run(f"hf:{checkpoint('clip')}")
    assert {path.name for path in out.iterdir()} >= {"config.yaml", "record.json", "head", "plots", "report.html"}
    assert set(record.metrics) == {"test"}
    assert record.counts["splits"]["test"]["samples"] == 4
    assert "learned from no sample" in (out / "report.html").read_text()
    bundle = json.loads((out / "head" / "head.json").read_text())
    assert bundle["extra"]["prompts"] == record.prompts
    result = predict(PredictConfig(run=out, manifest=images[0].path, out=tmp_path / "new.csv", device="cpu"))
    assert result.rows == 1
    with (tmp_path / "new.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert [float(row[f"prob[{name}]"]) for name in CLASSES] == pytest.approx(probability[0].tolist(), abs=1e-5)


def test_fit_head_finds_the_images_where_one_name_is_two_towers(checkpoint, run, data, tmp_path) -> None:
    encoder = f"hf:{checkpoint('clip')}"
    run(encoder)
    asked = {"manifest": data, "store": tmp_path / "store", "encoder": encoder, "target": "label"}
    asked |= {"head": "zero_shot", "prompt_encoder": encoder, "out": tmp_path / "unused"}
    loaded = load(FitConfig.build(asked, where="test"), Silent())
    assert loaded.blocks[0].modality == "image"
    assert loaded.context.prompts is not None
    assert loaded.context.prompts.shape == (3, 24)
    with pytest.raises(HeadError, match="needs the prompts of the classes; add --prompt-encoder"):
        load(FitConfig.build({**asked, "prompt_encoder": None}, where="test"), Silent())
    with pytest.raises(HeadError, match="head knn learns nothing from prompts"):
        load(FitConfig.build({**asked, "head": "knn"}, where="test"), Silent())


@pytest.mark.parametrize("kind", ["open_clip", "clip"])
def test_random_weights_state_what_they_can(kind: str, zoo) -> None:
    encoder: Any = load_encoder(f"{encoder_of(kind, zoo(kind))}/random:0", EncoderOptions(modality="text"))
    assert (encoder.similarity is None) == (kind == "clip")
