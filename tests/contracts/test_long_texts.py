"""Long texts in pieces: the mean of what the encoder gives for each piece by itself, whatever the batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.manifest import Source
from featurestore.catalog import load_encoder
from featurestore.chunks import ChunkedTextEncoder
from featurestore.encoder import EncoderOptions
from featurestore.errors import EncoderError
from featurestore.together import long_texts

TOLERANCE = 1e-5
SHORT = "no acute finding"
LONG = " ".join(["a small nodule in the left upper lobe heart size normal and the lungs are clear"] * 5)
MIDDLE = "heart size normal and the lungs are clear of any consolidation in the left upper lobe no nodule"


def bert(folder: Path) -> tuple[int, Callable[[list[int]], Tensor], Callable[[str], list[int]]]:
    """The room for tokens, the vector of some tokens, and the tokens of a text: by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def vector(ids: list[int]) -> Tensor:
        whole = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
        return model(input_ids=whole).last_hidden_state.mean(1)

    return 16 - 2, vector, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def clip(folder: Path) -> tuple[int, Callable[[list[int]], Tensor], Callable[[str], list[int]]]:
    from transformers import AutoTokenizer, CLIPModel

    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def vector(ids: list[int]) -> Tensor:
        whole = torch.tensor([[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]])
        return model.get_text_features(input_ids=whole).pooler_output

    return 16 - 2, vector, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def siglip(folder: Path) -> tuple[int, Callable[[list[int]], Tensor], Callable[[str], list[int]]]:
    from transformers import AutoTokenizer, SiglipModel

    model, tokenizer = SiglipModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def vector(ids: list[int]) -> Tensor:
        whole = torch.full((1, 12), tokenizer.pad_token_id)
        whole[0, : len(ids) + 1] = torch.tensor([*ids, tokenizer.eos_token_id])
        return model.get_text_features(input_ids=whole).pooler_output

    return 12 - 1, vector, lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]


def open_clip(folder: Path) -> tuple[int, Callable[[list[int]], Tensor], Callable[[str], list[int]]]:
    import open_clip as library

    model, tokenizer = library.create_model(f"local-dir:{folder}").eval(), library.get_tokenizer(f"local-dir:{folder}")

    def vector(ids: list[int]) -> Tensor:
        whole = torch.zeros(1, 16, dtype=torch.long)
        whole[0, : len(ids) + 2] = torch.tensor([tokenizer.sot_token_id, *ids, tokenizer.eot_token_id])
        return model.encode_text(whole)

    return 16 - 2, vector, tokenizer.encode


FAMILIES = {
    "bert": ("hf:{}", bert),
    "clip": ("hf:{}", clip),
    "siglip": ("hf:{}", siglip),
    "open_clip": ("local-dir:{}", open_clip),
}
every_family = pytest.mark.parametrize("checkpoint", FAMILIES)


def load(zoo: Any, checkpoint: str, pooling: str, **options: Any) -> Any:
    chosen = EncoderOptions(modality="text", pooling=pooling, dtype="float32", **options)
    return load_encoder(FAMILIES[checkpoint][0].format(zoo(checkpoint)), chosen)


def encode(encoder: Any, *texts: str) -> Tensor:
    return encoder.encode(encoder.collate([encoder.read(Source("text", text=text)) for text in texts]))


@every_family
def test_a_long_text_is_the_mean_of_its_pieces_by_their_tokens(checkpoint: str, zoo: Any) -> None:
    room, vector, tokens = FAMILIES[checkpoint][1](zoo(checkpoint))
    expected = []
    with torch.inference_mode():
        for text in (LONG, SHORT, MIDDLE):
            ids = tokens(text)
            pieces = [ids[at : at + room] for at in range(0, len(ids), room)]
            weighted = [vector(piece) * len(piece) for piece in pieces]
            expected.append(torch.stack(weighted).sum(0) / len(ids))
    assert len(tokens(LONG)) > 4 * room
    encoder = load(zoo, checkpoint, "auto+chunks")
    found = encode(encoder, LONG, SHORT, MIDDLE)
    torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=TOLERANCE)
    assert (encoder.chunked, encoder.truncated) == (1 + (len(tokens(SHORT)) > room) + (len(tokens(MIDDLE)) > room), 0)


@every_family
def test_pieces_do_not_depend_on_the_batch(checkpoint: str, zoo: Any) -> None:
    encoder = load(zoo, checkpoint, "auto+chunks")
    texts = (LONG, SHORT, MIDDLE, "ok")
    together = encode(encoder, *texts)
    alone = torch.cat([encode(encoder, text) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(encode(encoder, *texts[::-1]).flip(0), together, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        encoder.encode_reference([Source("text", text=text) for text in texts]), together, rtol=0, atol=2 * TOLERANCE
    )
    assert torch.equal(together, encode(encoder, *texts))


@every_family
def test_short_texts_are_unchanged_to_the_last_bit(checkpoint: str, zoo: Any) -> None:
    texts = ("ok", "no nodule", "clear") if checkpoint != "clip" else ("ok", "no", "a lung")
    cut, whole = load(zoo, checkpoint, "auto"), load(zoo, checkpoint, "auto+chunks")
    assert torch.equal(encode(whole, *texts), encode(cut, *texts))
    assert whole.chunked == 0
    difference = (encode(whole, LONG) - encode(cut, LONG)).abs().max()
    assert float(difference) > 1e-3, "a long text is another one without its end"


@every_family
def test_pieces_are_part_of_the_fingerprint_and_the_default_is_as_it_was(checkpoint: str, zoo: Any) -> None:
    cut, whole = load(zoo, checkpoint, "auto").spec, load(zoo, checkpoint, "auto+chunks").spec
    assert whole.fingerprint != cut.fingerprint
    assert whole.pooling == f"{cut.pooling}+chunks"
    assert "chunks" not in cut.preprocess
    assert whole.preprocess == {**cut.preprocess, "chunks": {"overlap": 0, "weights": "tokens"}}
    assert load(zoo, checkpoint, whole.pooling).spec.fingerprint == whole.fingerprint


@pytest.mark.parametrize("pooling", ["cls", "max"])
def test_every_pooling_has_pieces(pooling: str, zoo: Any) -> None:
    cut, whole = load(zoo, "bert", pooling), load(zoo, "bert", f"{pooling}+chunks")
    assert torch.equal(encode(whole, SHORT), encode(cut, SHORT))
    words = LONG.split()
    pieces = encode(cut, *(" ".join(words[at : at + 14]) for at in range(0, len(words), 14)))
    weights = torch.tensor([float(len(words[at : at + 14])) for at in range(0, len(words), 14)])
    expected = (pieces * weights[:, None]).sum(0, keepdim=True) / weights.sum()
    torch.testing.assert_close(encode(whole, LONG), expected, rtol=0, atol=TOLERANCE)


def test_half_precision_and_memory_are_those_of_a_batch(zoo: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, texts = load(zoo, "bert", "mean+chunks", precision="bf16"), (LONG, f"{LONG} ok", SHORT)
    sizes: list[int] = []
    compute = encoder._forward.compute

    def counted(inputs: Any) -> Tensor:
        sizes.append(len(inputs["input_ids"]))
        return compute(inputs)

    monkeypatch.setattr(encoder._forward, "compute", counted)
    vectors = encode(encoder, *texts)
    assert max(sizes) == len(texts)
    assert sum(sizes) > 10
    reference = encoder.encode_reference([Source("text", text=text) for text in texts])
    assert float(torch.cosine_similarity(vectors, reference).min()) >= 0.999


def test_a_text_of_unknown_characters_has_a_vector(zoo: Any) -> None:
    vectors = encode(load(zoo, "bert", "mean+chunks"), "\u200b", SHORT)
    assert torch.isfinite(vectors).all()


def test_real_weights(zoo: Any) -> None:
    cut = load_encoder("offline:minilm", EncoderOptions(dtype="float32"))
    whole = load_encoder("offline:minilm", EncoderOptions(pooling="auto+chunks", dtype="float32"))
    assert isinstance(whole, ChunkedTextEncoder)
    # Each word is one token: 254 of them fill a piece.
    words = ("lungs are clear and the heart is of normal size " * 60).split()
    pieces = encode(cut, *(" ".join(words[at : at + 254]) for at in range(0, len(words), 254)))
    weights = torch.tensor([254.0, 254.0, len(words) - 508])
    expected = (pieces * weights[:, None]).sum(0, keepdim=True) / weights.sum()
    torch.testing.assert_close(encode(whole, " ".join(words)), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("strip_sep_token", [False, True])
def test_tokenizers_of_transformers_within_open_clip(strip_sep_token: bool, zoo: Any) -> None:
    from open_clip.tokenizer import HFTokenizer

    from featurestore.encoders._open_clip_tokenizer import OpenClipTokenizer

    outer = HFTokenizer(str(zoo("bert")), context_length=16, strip_sep_token=strip_sep_token)
    words = LONG.split()
    chunks = OpenClipTokenizer("tiny", outer).chunks([LONG, SHORT])
    pieces = [" ".join(words[at : at + 14]) for at in range(0, len(words), 14)]
    assert torch.equal(chunks.inputs["text"], outer([*pieces, SHORT]))
    assert chunks.owners.tolist() == [0] * len(pieces) + [1]
    assert chunks.weights.tolist() == [14.0] * (len(pieces) - 1) + [float(len(pieces[-1].split())), 3.0]


@pytest.mark.parametrize("unsplittable", [{"tokenizer_mode": "clips"}, {"reduction_fn": len}])
def test_a_tokenizer_that_cannot_split_is_refused(unsplittable: dict[str, Any], zoo: Any) -> None:
    import open_clip as library

    from featurestore.encoders._open_clip_tokenizer import OpenClipTokenizer

    outer = library.get_tokenizer(f"local-dir:{zoo('open_clip')}")
    for name, value in unsplittable.items():
        setattr(outer, name, value)
    with pytest.raises(EncoderError, match="tiny: its tokenizer cannot split texts"):
        OpenClipTokenizer("tiny", outer).chunks([LONG])


def test_images_have_no_pieces(zoo: Any) -> None:
    with pytest.raises(EncoderError, match=r"no pooling 'auto\+chunks'"):
        load_encoder(f"hf:{zoo('clip')}", EncoderOptions(modality="image", pooling="auto+chunks"))
    with pytest.raises(EncoderError, match=r"no pooling 'middle\+chunks'; .*mean\+chunks"):
        load(zoo, "bert", "middle+chunks")


def test_tokens_have_no_pieces(zoo: Any) -> None:
    with pytest.raises(EncoderError, match=r"pieces of a text are averaged, which tokens cannot be"):
        load(zoo, "bert", "tokens+chunks")


@pytest.mark.parametrize("asked", [("mean", "mean+chunks", "tokens"), ("cls+chunks", "mean", "max+chunks")])
def test_cut_and_whole_at_once_are_what_each_is_alone(asked: tuple[str, ...], zoo: Any) -> None:
    encoder = load(zoo, "bert", asked[0], also=asked[1:])
    made = {level.pooling: level for level in encoder.levels}
    assert encoder.spec.pooling == asked[0]
    assert set(made) == set(asked)
    texts = (LONG, SHORT)
    sources = [Source("text", text=text) for text in texts]
    found = encoder.encode_levels(encoder.collate([encoder.read(source) for source in sources]))
    references = encoder.encode_reference_levels(sources)
    for level, vectors, reference in zip(encoder.levels, found, references, strict=True):
        alone = load(zoo, "bert", level.pooling)
        assert level.fingerprint == alone.spec.fingerprint
        for ours, theirs, yardstick in zip(vectors, encode(alone, *texts), reference, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            torch.testing.assert_close(ours, yardstick, rtol=0, atol=TOLERANCE)
    counted = dict(zip((level.pooling for level in encoder.levels), long_texts(encoder).tolist(), strict=True))
    assert counted == {pooling: [0, 1] if pooling.endswith("+chunks") else [1, 0] for pooling in asked}


@pytest.mark.parametrize("checkpoint", ["clip", "siglip", "open_clip"])
def test_both_kinds_keep_how_logits_are_made(checkpoint: str, zoo: Any) -> None:
    both = load(zoo, checkpoint, "native", also=("auto+chunks",))
    assert [level.pooling for level in both.levels] == ["native", "native+chunks"]
    assert both.similarity == load(zoo, checkpoint, "native").similarity is not None
