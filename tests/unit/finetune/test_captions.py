"""Captions as token numbers and back, with the vocabulary of a text encoder."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.errors import ConfigError
from featurestore.catalog import load_encoder
from featurestore.encoder import EncoderOptions
from featurestore.errors import WeightsUnavailable
from featurestore.text_encoder import TextEncoder, Tokens
from finetune.captions import CaptionTokenizer

TEXTS = ["a dog runs", "two dogs sleep on the grass", "a cat"]


def make_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "<s>", "</s>", *sorted({word for text in TEXTS for word in text.split()})]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]", **special}
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="[UNK]", **{name: token for name, token in named.items() if token}
    )


@pytest.fixture(scope="module")
def minilm():
    return load_encoder("offline:minilm", EncoderOptions(modality="text", device="cpu"))


def test_captions_have_a_beginning_an_end_and_padding() -> None:
    captions = CaptionTokenizer(make_tokenizer())
    ids, mask = captions.encode(TEXTS)
    assert (captions.special.begin, captions.special.end, captions.special.padding) == (2, 3, 0)
    assert ids.dtype == torch.int64
    assert ids.shape == mask.shape == (3, 8)
    assert mask.sum(1).tolist() == [5, 8, 4]
    assert (ids[:, 0] == 2).all()
    assert [int(row[real][-1]) for row, real in zip(ids, mask, strict=True)] == [3, 3, 3]
    assert not ids[~mask].any()
    assert captions.decode(ids) == TEXTS
    assert captions.truncated == 0
    assert captions.vocabulary == 14


def test_long_captions_are_cut_before_their_end_and_counted() -> None:
    captions = CaptionTokenizer(make_tokenizer())
    ids, mask = captions.encode(TEXTS, max_length=5)
    assert mask.sum(1).tolist() == [5, 5, 4]
    assert ids[1, -1] == captions.special.end
    assert captions.decode(ids) == ["a dog runs", "two dogs sleep", "a cat"]
    assert captions.truncated == 1


def test_a_sample_without_a_text_is_padding() -> None:
    captions = CaptionTokenizer(make_tokenizer())
    ids, mask = captions.encode([None, "a cat"])
    assert mask.sum(1).tolist() == [0, 4]
    assert not ids[0].any()
    assert captions.decode(ids) == ["", "a cat"]
    assert captions.encode([None])[0].shape == (1, 2)


def test_nothing_behind_an_end_is_read() -> None:
    captions = CaptionTokenizer(make_tokenizer())
    ids, _ = captions.encode(["a cat"])
    assert captions.decode(torch.cat([ids, ids], dim=1)) == ["a cat"]
    assert captions.decode(ids[:, :-1]) == ["a cat"]


def test_the_end_may_be_the_padding_and_the_beginning() -> None:
    captions = CaptionTokenizer(make_tokenizer(bos_token="</s>", pad_token="</s>"))
    ids, mask = captions.encode(TEXTS)
    assert mask.sum(1).tolist() == [5, 8, 4]
    assert captions.decode(ids) == TEXTS


def test_a_class_token_stands_for_the_beginning() -> None:
    special = CaptionTokenizer(make_tokenizer(cls_token="[UNK]", sep_token="</s>")).special
    assert (special.begin, special.end) == (1, 3)


def test_without_a_beginning_captions_begin_with_the_padding() -> None:
    captions = CaptionTokenizer(make_tokenizer(bos_token=""))
    assert (captions.special.begin, captions.special.end, captions.special.padding) == (0, 3, 0)
    assert captions.decode(captions.encode(TEXTS)[0]) == TEXTS
    as_siglip = CaptionTokenizer(make_tokenizer(bos_token="", pad_token="</s>"))
    assert as_siglip.decode(as_siglip.encode(TEXTS)[0]) == TEXTS


def test_a_tokenizer_without_special_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no token for end and padding"):
        CaptionTokenizer(make_tokenizer(eos_token="", pad_token=""))
    with pytest.raises(ConfigError, match="max_length has to be at least 3, got 2"):
        CaptionTokenizer(make_tokenizer()).encode(TEXTS, max_length=2)


def test_a_saved_tokenizer_says_the_same(tmp_path) -> None:
    captions = CaptionTokenizer(make_tokenizer())
    captions.save(tmp_path / "tokenizer")
    again = CaptionTokenizer.load(tmp_path / "tokenizer")
    assert again.special == captions.special
    assert torch.equal(again.encode(TEXTS)[0], captions.encode(TEXTS)[0])
    with pytest.raises(WeightsUnavailable, match="expected a tokenizer of transformers"):
        CaptionTokenizer.load(tmp_path / "nothing")


def test_the_vocabulary_of_an_encoder(minilm) -> None:
    captions = CaptionTokenizer.of_encoder(minilm, "offline:minilm")
    ids, _ = captions.encode(["A man, in a red shirt, climbs.", "no " * 30], max_length=12)
    assert captions.vocabulary == 30522
    assert (captions.special.begin, captions.special.end, captions.special.padding) == (101, 102, 0)
    assert captions.decode(ids) == ["a man, in a red shirt, climbs.", " ".join(["no"] * 10)]
    assert captions.truncated == 1
    # What the encoder itself reads stays as it was.
    assert minilm.collate(["no " * 30])["input_ids"].shape == (1, 32)
    assert minilm.truncated == 0


def test_an_encoder_without_a_tokenizer_of_transformers_is_refused(minilm) -> None:
    encoder = TextEncoder(spec=minilm.spec, tokenize=lambda _: Tokens({}, 0), compute=len, device="cpu")
    with pytest.raises(ConfigError, match=r"open_clip:x has no tokenizer of transformers; .*offline:minilm"):
        CaptionTokenizer.of_encoder(encoder, "open_clip:x")


def test_words_of_byte_pairs_are_written_as_they_were(tmp_path) -> None:
    from transformers import CLIPTokenizer

    characters = ["<|startoftext|>", "<|endoftext|>", *"abcdeghnorstw.", *(f"{each}</w>" for each in "abcdeghnorstw.")]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(characters)}, merges=[], model_max_length=24)
    captions = CaptionTokenizer(tokenizer)
    ids, _ = captions.encode(["a dog sat on the road .", "two cats"])
    captions.save(tmp_path)
    for each in (captions, CaptionTokenizer.load(tmp_path)):
        assert each.decode(ids) == ["a dog sat on the road .", "two cats"]


def test_the_library_does_not_warn_of_how_byte_pairs_are_joined(tmp_path, monkeypatch) -> None:
    from transformers import CLIPTokenizer, tokenization_utils_tokenizers

    said: list[str] = []
    # It warns once in a process, so that another test may have used that up.
    monkeypatch.setattr(tokenization_utils_tokenizers.logger, "warning_once", said.append)
    characters = ["<|startoftext|>", "<|endoftext|>", *"ab", "a</w>", "b</w>"]
    captions = CaptionTokenizer(
        CLIPTokenizer(vocab={token: i for i, token in enumerate(characters)}, merges=[], model_max_length=24)
    )
    captions.save(tmp_path)
    for each in (captions, CaptionTokenizer.load(tmp_path)):
        ids, _ = each.encode(["ab a b"])
        assert each.decode(ids) == ["ab a b"]
    assert said == []
