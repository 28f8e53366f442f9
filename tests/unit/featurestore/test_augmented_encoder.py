"""`augmented+ID`: several vectors of an image, whose identity follows every option and the encoder inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import featurestore.encoders.augmented as family
from data.images import load_image
from data.manifest import Source
from featurestore import fidelity, levels
from featurestore.augmentation import Augmentation
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.errors import EncoderError, UnknownEncoder
from featurestore.extract import automatic_batch_size
from featurestore.features import Ragged
from featurestore.many_images import ManyImages
from featurestore.together import Together

ID = "timm:test_vit/random:0"


def load(encoder_id: str, **options: Any) -> ManyImages:
    encoder = load_encoder(encoder_id, EncoderOptions(**options))
    assert isinstance(encoder, ManyImages)
    return encoder


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (40 + i, 48, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    return [Source("image", path=tmp_path / f"{i}.png") for i in range(3)]


def test_the_fingerprint_follows_every_option_and_the_encoder() -> None:
    options = (":8", ":flip", ":rotation=5", ":rotation=10", ":flip,rotation=5", ":randaugment", ":randaugment=5")
    ids = [f"augmented{each}+{ID}" for each in ("", *options, ":seed=1")] + ["augmented+timm:test_vit/random:1", ID]
    prints = [load_encoder(each, EncoderOptions()).spec.fingerprint for each in ids]
    prints += [
        load(f"augmented+{ID}", **change).spec.fingerprint for change in ({"pooling": "cls"}, {"precision": "bf16"})
    ]
    assert len(set(prints)) == len(prints)
    same = (":4", ":rotation=10,flip", ":flip,rotation=10.0,seed=0")
    assert {load(f"augmented{each}+{ID}").spec.fingerprint for each in same} == {prints[0]}


def test_the_specification_holds_the_policy_and_the_image_encoder() -> None:
    inner, spec = load_encoder(ID, EncoderOptions()).spec, load(f"augmented:3,rotation=5,seed=2+{ID}").spec
    assert (spec.family, spec.modality, spec.dim, spec.pooling) == ("augmented", "image", inner.dim, inner.pooling)
    assert spec.architecture == {"encoder": inner.to_dict()}
    assert (spec.ragged, spec.parts, inner.ragged) == (True, "views", False)
    assert spec.preprocess == {
        "views": 3,
        "policy": [{"transform": "RandomRotation", "degrees": 5.0, "interpolation": "nearest"}],
        "transforms": "torchvision.transforms.v2",
        "seed": 2,
        "version": 1,
    }


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_sample_has_the_vectors_of_its_views(precision: Any, sources: list[Source], tmp_path: Path) -> None:
    encoder = load(f"augmented:3,flip,randaugment+{ID}", precision=precision)
    (block,) = levels.encode(encoder, encoder.collate([encoder.read(source) for source in sources]))
    assert isinstance(block, Ragged)
    assert block.offsets.tolist() == [0, 3, 6, 9]
    plain = load_encoder(ID, EncoderOptions(precision=precision))
    policy = Augmentation(count=3, flip=True, rotation=None, randaugment=9, seed=0)
    items = []
    for i, source in enumerate(sources):
        for j, view in enumerate(policy.views(load_image(source))):
            Image.fromarray(view).save(tmp_path / f"{i}-{j}.png")
            items.append(plain.read(Source("image", path=tmp_path / f"{i}-{j}.png")))
    tolerance = {"fp32": 1e-5, "bf16": 0.05}[precision]
    np.testing.assert_allclose(block.values, plain.encode(plain.collate(items)).numpy(), rtol=0, atol=tolerance)  # type: ignore[union-attr]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_fidelity_check_and_the_canary_know_views(precision: Any, sources: list[Source]) -> None:
    encoder = load(f"augmented:2+{ID}", precision=precision)
    blocks = levels.encode(encoder, encoder.collate([encoder.read(source) for source in sources]))
    (measured,) = fidelity.check_fidelity(encoder, sources, blocks, names=["augmented"])
    assert measured.samples == (2 if precision == "fp32" else 3)
    (canary,) = fidelity.canary_vectors(encoder)
    assert canary.shape == (4, encoder.spec.dim)
    assert np.array_equal(canary, fidelity.canary_vectors(encoder)[0])


def test_encoders_of_one_policy_share_the_views(sources: list[Source], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = load(f"augmented:2+{ID}"), load("augmented:2+timm:test_vit/random:1")
    alone = [encoder.read(sources[0]) for encoder in (one, other)]
    decoded: list[Source] = []

    def counted(source: Source, **options: Any) -> Any:
        decoded.append(source)
        return load_image(source, **options)

    monkeypatch.setattr(family, "load_image", counted)
    together = Together([one, other]).read(sources[0])
    assert decoded == [sources[0]]
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), rtol=0, atol=0)
    Together([one, load(f"augmented:2,seed=1+{ID}")]).read(sources[0])
    assert len(decoded) == 3


def test_several_poolings_are_levels_of_views(sources: list[Source]) -> None:
    encoder = load(f"augmented:2+{ID}", pooling="cls", also=("mean",))
    assert [(level.pooling, level.ragged) for level in encoder.levels] == [("cls", True), ("mean", True)]
    found = encoder.encode_levels(encoder.collate([encoder.read(source) for source in sources]))
    assert [level.shape for level in found] == [(3, 2, encoder.spec.dim)] * 2


def test_a_batch_holds_as_many_samples_fewer_as_there_are_views() -> None:
    assert automatic_batch_size("image", "cpu", load(f"augmented:4+{ID}").images_per_sample) == 2


@pytest.mark.parametrize(
    ("encoder_id", "error", "message"),
    [
        ("augmented+minilm", EncoderError, "encodes text, not image"),
        ("augmented+frames+efficientnet-lite0", EncoderError, "encodes video, not image"),
        (f"frames+augmented+{ID}", EncoderError, "needs an encoder made as `ImageEncoder`"),
        (f"augmented+augmented+{ID}", EncoderError, "needs an encoder made as `ImageEncoder`"),
        (f"augmented:randaugment=31+{ID}", UnknownEncoder, "from 0 to 30, found 31"),
        (f"augmented:flp+{ID}", UnknownEncoder, "did you mean 'flip'"),
        (f"augmented:rotation+{ID}", UnknownEncoder, "did you mean 'rotation=...'"),
        (f"augmented:4,8+{ID}", UnknownEncoder, "both '4' and '8'"),
    ],
)
def test_what_cannot_be_augmented_is_refused(encoder_id: str, error: type[EncoderError], message: str) -> None:
    with pytest.raises(error, match=message):
        load_encoder(encoder_id, EncoderOptions())


def test_views_have_no_tokens() -> None:
    with pytest.raises(EncoderError, match="every view is pooled to one vector, so it has no tokens"):
        load_encoder(f"augmented+{ID}", EncoderOptions(also=("tokens",)))
