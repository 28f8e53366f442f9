"""Greedy captions, beam search and sampling, against transformers and against all captions there are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from data.errors import ConfigError
from finetune.captions import SpecialTokens
from finetune.decoder import CaptionDecoder
from finetune.generate import Sampling, beam_search, greedy, sample

SPECIAL = SpecialTokens(begin=1, end=2, padding=0)
VOCABULARY = 9


def make_decoder(seed: int, *, vocabulary: int = VOCABULARY, std: float = 0.5) -> CaptionDecoder:
    torch.manual_seed(seed)
    decoder = CaptionDecoder(
        vocabulary=vocabulary, memory_dim=4, layers=1, heads=2, dim=12, feedforward=16, positions=12, tied=False
    )
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return decoder.eval()


def make_tokens(n: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 4, generator=torch.Generator().manual_seed(seed))


def log_probabilities(decoder: CaptionDecoder, memory: torch.Tensor, caption: torch.Tensor) -> torch.Tensor:
    """Return the log probability of each token of one caption behind its beginning."""
    with torch.no_grad():
        log_p = decoder(caption[None, :-1], memory[None]).log_softmax(dim=2)[0]
    return log_p.gather(1, caption[1:, None])[:, 0]


@dataclass
class Whole:
    """Captions begun of a network without a cache: all that it has read."""

    ids: torch.Tensor

    def repeat(self, count: int) -> None:
        self.ids = self.ids.repeat_interleave(count, dim=0)

    def reorder(self, rows: torch.Tensor) -> None:
        self.ids = self.ids[rows]


class OfTransformers:
    """A tiny GPT-2 of transformers as a decoder; it looks at no tokens and computes everything again at each step."""

    positions = 12

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=VOCABULARY, n_positions=12, n_embd=8, n_layer=1, n_head=2, initializer_range=0.8,
            bos_token_id=SPECIAL.begin, eos_token_id=SPECIAL.end, pad_token_id=SPECIAL.padding,
        )  # fmt: skip
        self.model = GPT2LMHeadModel(config).eval()

    def start(self, memory: torch.Tensor) -> Whole:
        return Whole(torch.zeros(len(memory), 0, dtype=torch.int64))

    def step(self, ids: torch.Tensor, cache: Whole) -> torch.Tensor:
        cache.ids = torch.cat([cache.ids, ids], dim=1)
        return self.model(cache.ids).logits

    def generate(self, **how: object) -> SimpleNamespace:
        return self.model.generate(
            torch.tensor([[SPECIAL.begin]]),
            attention_mask=torch.ones(1, 1, dtype=torch.int64),
            max_length=10,
            suppress_tokens=[SPECIAL.begin, SPECIAL.padding],
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,
            **how,
        )


@pytest.mark.parametrize("seed", range(4))
def test_greedy_is_that_of_transformers(seed: int) -> None:
    decoder = OfTransformers(seed)
    mine = greedy(decoder, torch.zeros(1, 1, 4), SPECIAL, max_length=10)
    assert mine.ids.tolist() == decoder.generate().sequences.tolist()


def test_beam_search_is_that_of_transformers() -> None:
    searched = 0
    for seed, beams, penalty in itertools.product(range(5), (2, 3), (0.0, 1.0)):
        decoder = OfTransformers(seed)
        theirs = decoder.generate(num_beams=beams, length_penalty=penalty, early_stopping=True)
        mine = beam_search(decoder, torch.zeros(1, 1, 4), SPECIAL, max_length=10, beams=beams, length_penalty=penalty)
        if mine.ids.tolist() == theirs.sequences.tolist():
            searched += 1
            torch.testing.assert_close(mine.scores, theirs.sequences_scores, atol=1e-4, rtol=1e-4)
        else:  # theirs may lose the greedy caption on its way
            assert mine.scores > theirs.sequences_scores
            plain = greedy(decoder, torch.zeros(1, 1, 4), SPECIAL, max_length=10)
            assert mine.ids.tolist() == plain.ids.tolist()
    assert searched >= 16


@pytest.mark.parametrize("seed", range(5))
def test_one_beam_is_greedy_token_by_token(seed: int) -> None:
    decoder, memory = make_decoder(seed), make_tokens()
    plain = greedy(decoder, memory, SPECIAL, max_length=10)
    beam = beam_search(decoder, memory, SPECIAL, max_length=10, beams=1, length_penalty=0.0)
    assert torch.equal(beam.ids, plain.ids)
    assert torch.equal(beam.lengths, plain.lengths)
    assert torch.equal(beam.ended, plain.ended)
    torch.testing.assert_close(beam.scores, plain.scores)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0, -0.5])
def test_no_beam_search_is_worse_than_greedy(penalty: float) -> None:
    better = 0
    for seed, beams in itertools.product(range(6), (2, 5)):
        decoder, memory = make_decoder(seed, std=0.9), make_tokens()
        plain = greedy(decoder, memory, SPECIAL, max_length=10)
        beam = beam_search(decoder, memory, SPECIAL, max_length=10, beams=beams, length_penalty=penalty)
        scores = plain.scores / plain.lengths**penalty
        assert (beam.scores >= scores).all()
        better += int((beam.scores > scores).sum())
    assert better > 5


def test_a_wide_beam_finds_the_best_of_all_captions() -> None:
    vocabulary, longest = 5, 5
    decoder, memory = make_decoder(3, vocabulary=vocabulary), make_tokens(4)
    # Two words, 3 and 4; as many beams as there are beginnings of captions.
    captions = [
        [1, *words, *([2] if len(words) < longest - 1 else [])]
        for length in range(longest)
        for words in itertools.product((3, 4), repeat=length)
    ]
    captions = [caption for caption in captions if len(caption) <= longest]
    made = beam_search(decoder, memory, SPECIAL, max_length=longest, beams=40, length_penalty=0.0)
    for row, score, seen in zip(made.ids, made.scores, memory, strict=True):
        scored = {tuple(each): float(log_probabilities(decoder, seen, torch.tensor(each)).sum()) for each in captions}
        best = max(scored, key=scored.get)
        assert row[: len(best)].tolist() == list(best)
        assert not row[len(best) :].any()
        assert float(score) == pytest.approx(scored[best], abs=1e-4)


@pytest.mark.parametrize("search", ["greedy", "beams", "sample"])
def test_scores_lengths_and_padding_are_those_of_the_captions(search: str) -> None:
    decoder, memory = make_decoder(2), make_tokens(24)
    made = {
        "greedy": lambda: greedy(decoder, memory, SPECIAL, max_length=8),
        "beams": lambda: beam_search(decoder, memory, SPECIAL, max_length=8, beams=3, length_penalty=0.7),
        "sample": lambda: sample(decoder, memory, SPECIAL, max_length=8, generator=torch.Generator().manual_seed(0)),
    }[search]()
    assert made.ids.shape[1] == 1 + made.lengths.max()
    for i, row in enumerate(made.ids):
        caption, rest = row[: 1 + made.lengths[i]], row[1 + made.lengths[i] :]
        assert caption[0] == SPECIAL.begin
        assert (rest == SPECIAL.padding).all()
        assert bool(caption[-1] == SPECIAL.end) == bool(made.ended[i])
        assert not torch.isin(caption[1:-1], torch.tensor([0, 1, 2])).any()
        expected = log_probabilities(decoder, memory[i], caption).sum()
        if search == "beams":
            expected = expected / made.lengths[i] ** 0.7
        torch.testing.assert_close(made.scores[i], expected, atol=1e-4, rtol=1e-4)
    if search == "sample":
        assert len(set(made.lengths.tolist())) > 2
        assert 0 < made.ended.sum() < 24


@pytest.mark.parametrize("beams", [1, 3])
def test_a_row_does_not_depend_on_the_others(beams: int) -> None:
    decoder, memory = make_decoder(2), make_tokens()
    together = beam_search(decoder, memory, SPECIAL, max_length=10, beams=beams)
    for i in range(len(memory)):
        alone = beam_search(decoder, memory[i : i + 1], SPECIAL, max_length=10, beams=beams)
        width = alone.ids.shape[1]
        assert torch.equal(together.ids[i, :width], alone.ids[0])
        assert not together.ids[i, width:].any()


def test_what_is_drawn_from_is_what_transformers_draws_from() -> None:
    logits = torch.randn(7, 30, generator=torch.Generator().manual_seed(0)) * 3
    ids = torch.randint(0, 30, (7, 5), generator=torch.Generator().manual_seed(1))
    for temperature, top_k, top_p, penalty in itertools.product((0.5, 1.7), (None, 1, 8), (0.3, 0.9, 1.0), (1.0, 1.4)):
        expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone())
        expected = TemperatureLogitsWarper(temperature)(ids, expected)
        if top_k is not None:
            expected = TopKLogitsWarper(top_k)(ids, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(ids, expected)
        how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=penalty)
        torch.testing.assert_close(how.filtered(logits, ids), expected)


def test_a_penalty_lowers_what_was_said_whatever_its_sign() -> None:
    logits, ids = torch.tensor([[2.0, -2.0, 2.0, -2.0]]), torch.tensor([[0, 1, 1]])
    assert Sampling(repetition_penalty=2.0).filtered(logits, ids).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_draws_follow_their_seed_and_the_decoder_s_probabilities() -> None:
    decoder, memory = make_decoder(1), make_tokens(1).expand(4000, -1, -1)

    def drawn(seed: int, **how: float) -> torch.Tensor:
        draws = torch.Generator().manual_seed(seed)
        return sample(decoder, memory, SPECIAL, max_length=2, generator=draws, sampling=Sampling(**how)).ids[:, 1]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    logits = decoder(torch.tensor([[1]]), memory[:1])[0, 0].detach()
    logits[[0, 1]] = -torch.inf
    for temperature in (0.5, 1.0):
        shares = torch.bincount(drawn(2, temperature=temperature), minlength=VOCABULARY) / 4000
        torch.testing.assert_close(shares, (logits / temperature).softmax(0), atol=0.03, rtol=0)


def test_drawing_from_the_likeliest_token_only_is_greedy() -> None:
    decoder, memory = make_decoder(4), make_tokens()
    plain = greedy(decoder, memory, SPECIAL, max_length=10)
    draws = torch.Generator().manual_seed(0)
    drawn = sample(decoder, memory, SPECIAL, max_length=10, generator=draws, sampling=Sampling(top_k=1))
    assert torch.equal(drawn.ids, plain.ids)


def test_padding_that_is_the_end_ends_a_caption() -> None:
    decoder, memory = make_decoder(2), make_tokens(24)
    special = SpecialTokens(begin=1, end=2, padding=2)
    made = greedy(decoder, memory, special, max_length=10)
    assert made.ended.any()
    for row, length, ended in zip(made.ids, made.lengths, made.ended, strict=True):
        assert int((row[1 : 1 + length] == 2).sum()) == int(ended)
        assert (row[1 + length :] == 2).all()


def test_no_gradient_is_kept() -> None:
    assert not beam_search(make_decoder(0), make_tokens(), SPECIAL, max_length=5).scores.requires_grad


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": 0.0}, "temperature has to be above 0, got 0.0"),
        ({"top_k": 0}, "top_k has to be at least 1"),
        ({"top_p": 1.5}, "top_p has to be above 0, at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ],
)
def test_settings_out_of_range_are_refused(how: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**how)


def test_lengths_and_beams_out_of_range_are_refused() -> None:
    decoder, memory = make_decoder(0), make_tokens()
    for length in (1, 13):
        with pytest.raises(ConfigError, match=f"max_length has to be 2 to 12, got {length}"):
            greedy(decoder, memory, SPECIAL, max_length=length)
    with pytest.raises(ConfigError, match="beams has to be at least 1"):
        beam_search(decoder, memory, SPECIAL, max_length=5, beams=0)
