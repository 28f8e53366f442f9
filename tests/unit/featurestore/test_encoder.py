"""What the two encoder classes do for every family: exactness, batches, overflow."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from data.errors import SampleError
from data.manifest import Source
from featurestore.forward import Forward, freeze, is_convolutional
from featurestore.image_encoder import ImageEncoder
from featurestore.spec import EncoderSpec, Precision
from featurestore.text_encoder import TextEncoder, Tokens
from featurestore.transform import ImageTransform

TRANSFORM = ImageTransform(resize="squash", size=(8, 6), interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)


def spec(**changes: Any) -> EncoderSpec:
    fields: dict[str, Any] = {
        "family": "toy", "modality": "image", "architecture": {}, "weights": "", "preprocess": {}, "layer": "",
        "pooling": "native", "precision": "fp32", "dtype": "float32", "dim": 3,
    }  # fmt: skip
    return EncoderSpec(**{**fields, **changes})


def library_transform(picture: Image.Image) -> Tensor:
    pixels = np.asarray(picture.resize((6, 8), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    return torch.from_numpy((pixels - 0.5) / 0.25).permute(2, 0, 1)


def image_encoder(precision: Precision = "fp32", compute: Any = None) -> ImageEncoder:
    return ImageEncoder(
        spec=spec(precision=precision),
        transform=TRANSFORM,
        compute=compute or (lambda images: images.mean((2, 3))),
        reference_transform=library_transform,
        device="cpu",
    )


@pytest.fixture
def picture(tmp_path: Path) -> Source:
    pixels = np.random.default_rng(0).integers(0, 256, size=(40, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return Source("image", path=tmp_path / "picture.png")


def test_an_image_travels_as_bytes(picture: Source) -> None:
    encoder = image_encoder()
    item = encoder.read(picture)
    assert (item.dtype, tuple(item.shape)) == (torch.uint8, (3, 8, 6))
    batch = encoder.collate([item, item])
    assert isinstance(batch, Tensor)
    assert (batch.dtype, tuple(batch.shape)) == (torch.uint8, (2, 3, 8, 6))


def test_fp32_equals_the_reference(picture: Source) -> None:
    encoder = image_encoder()
    vectors = encoder.encode(encoder.collate([encoder.read(picture)]))
    torch.testing.assert_close(vectors, encoder.encode_reference([picture]), rtol=0, atol=1e-6)


def test_a_grey_picture_equals_its_rgb_copy(tmp_path: Path) -> None:
    grey = Image.fromarray(np.random.default_rng(1).integers(0, 256, size=(20, 30), dtype=np.uint8))
    grey.save(tmp_path / "grey.png")
    grey.convert("RGB").save(tmp_path / "rgb.png")
    encoder = image_encoder()
    first, second = (encoder.read(Source("image", path=tmp_path / name)) for name in ("grey.png", "rgb.png"))
    assert torch.equal(first, second)


def test_only_half_precision_decodes_at_a_fraction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import featurestore.image_encoder as module

    asked: list[int | None] = []

    def load_image(_: Source, *, scaled_to: int | None = None, keep_grey: bool = False) -> np.ndarray:
        asked.append(scaled_to)
        return np.zeros((16, 16, 3), np.uint8)

    monkeypatch.setattr(module, "load_image", load_image)
    for precision in ("fp32", "fp16", "bf16"):
        image_encoder(precision).read(Source("image", path=tmp_path / "any.jpg"))
    assert asked == [None, 8, 8]


def test_a_file_that_is_no_image_is_a_sample_error(tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("not a picture")
    with pytest.raises(SampleError, match=r"note\.png"):
        image_encoder().read(Source("image", path=tmp_path / "note.png"))


@pytest.mark.parametrize(("precision", "fallbacks"), [("fp32", 0), ("fp16", 1), ("bf16", 0)])
def test_an_overflow_of_half_precision_is_repeated_in_fp32(precision: Precision, fallbacks: int) -> None:
    forward = Forward(lambda x: x @ torch.full((4, 2), 300.0), device="cpu", precision=precision)
    vectors = forward(torch.full((3, 4), 100.0))
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors, torch.full((3, 2), 120000.0), rtol=0.01, atol=0)
    assert forward.fallbacks == fallbacks


def test_what_is_not_finite_in_fp32_either_is_returned_for_the_ledger() -> None:
    forward = Forward(lambda x: 1.0 / x, device="cpu", precision="fp16")
    vectors = forward(torch.tensor([[0.0], [2.0]]))
    assert vectors.isinf().tolist() == [[True], [False]]
    assert forward.fallbacks == 1


def test_the_reference_is_fp32_whatever_the_precision() -> None:
    weights = torch.rand(64, 8, generator=torch.Generator().manual_seed(0))
    forward = Forward(lambda x: x @ weights, device="cpu", precision="bf16")
    x = torch.rand(2, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(forward.reference(x), x @ weights)
    assert not torch.equal(forward(x), x @ weights)


def test_switches_of_the_process_are_put_back() -> None:
    before = (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision)
    seen: list[str] = []

    def compute(x: Tensor) -> Tensor:
        seen.append(torch.backends.cudnn.conv.fp32_precision)
        return x

    Forward(compute, device="cuda", precision="fp32")(torch.ones(1, 1))
    # On a CPU they mean nothing, and several threads would put them back in each other's way.
    Forward(compute, device="cpu", precision="fp32")(torch.ones(1, 1))
    assert seen == ["ieee", before[1]]
    assert (torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision) == before


def test_freeze_leaves_nothing_to_learn() -> None:
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(6)), nn.Dropout(), nn.BatchNorm2d(4)).double()
    frozen = freeze(model, "cpu")
    assert not frozen.training
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert {parameter.dtype for parameter in frozen.parameters()} == {torch.float32}
    assert is_convolutional(frozen)
    assert frozen[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not is_convolutional(nn.Sequential(nn.Conv2d(3, 8, 16), nn.Linear(8, 8)))


def lengths(texts: Sequence[str]) -> Tokens:
    return Tokens({"n": torch.tensor([[float(len(text))] for text in texts])}, sum(len(text) > 5 for text in texts))


def text_encoder(tokenize: Any = lengths) -> TextEncoder:
    def compute(inputs: Mapping[str, Tensor]) -> Tensor:
        return inputs["n"] * 2

    return TextEncoder(spec=spec(modality="text", dim=1), tokenize=tokenize, compute=compute, device="cpu")


def test_truncated_texts_are_counted_once_and_not_by_the_reference() -> None:
    encoder = text_encoder()
    sources = [Source("text", text=text) for text in ("short", "rather long", "x")]
    vectors = encoder.encode(encoder.collate([encoder.read(source) for source in sources]))
    assert vectors.tolist() == [[10.0], [22.0], [2.0]]
    assert torch.equal(encoder.encode_reference(sources), vectors)
    assert encoder.truncated == 1


def test_a_tokenizer_is_entered_by_one_thread_at_a_time() -> None:
    inside = threading.Semaphore(1)

    def tokenize(texts: Sequence[str]) -> Tokens:
        assert inside.acquire(blocking=False), "two threads at once"
        try:
            return lengths(texts)
        finally:
            inside.release()

    encoder = text_encoder(tokenize)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                encoder.collate(["longer than five"] * 3)
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert encoder.truncated == 6 * 50 * 3


@pytest.mark.parametrize("text", [None, "", " \t\n"])
def test_an_empty_text_is_a_sample_error(text: str | None) -> None:
    with pytest.raises(SampleError) as raised:
        text_encoder().read(Source("text", text=text))
    assert raised.value.kind == "empty"
