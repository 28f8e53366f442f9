"""The decoder of captions and what trains it."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import log_softmax

from data.errors import ConfigError
from finetune.captions import SpecialTokens
from finetune.decoder import CaptionDecoder
from finetune.generate import greedy
from finetune.objectives.captioning import Captioning
from finetune.outputs import Outputs
from finetune.registry import make_objective
from heads.errors import HeadError

SPECIAL = SpecialTokens(begin=1, end=2, padding=0)
VOCABULARY = 24


TOKENIZER = SimpleNamespace(vocabulary=VOCABULARY, special=SPECIAL, decode=lambda ids: ids.tolist())
SIZES = {"layers": 2, "heads": 2, "dim": 16, "feedforward": 32, "positions": 16, "dropout": 0.1}
LONGEST = 12


def make_decoder(seed: int = 0, **options) -> CaptionDecoder:
    torch.manual_seed(seed)
    return spread(CaptionDecoder(vocabulary=VOCABULARY, memory_dim=6, **{**SIZES, **options}))


def captioning(**options) -> Captioning:
    torch.manual_seed(0)
    return spread(Captioning(tokenizer=TOKENIZER, token_dim=6, max_length=LONGEST, **{**SIZES, **options}))


def spread(module):
    """Draw larger weights: the small ones of a beginning hide what a change does."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return module.eval()


def make_captions(n: int, *, longest: int = 9, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return n unlike captions of 3 to `longest` tokens, padded, and where they are."""
    draw = torch.Generator().manual_seed(seed)
    ids, mask = torch.zeros(n, longest, dtype=torch.int64), torch.zeros(n, longest, dtype=torch.bool)
    for i in range(n):
        length = longest if i == 0 else int(torch.randint(3, longest + 1, (), generator=draw))
        ids[i, : length - 1] = torch.randint(3, VOCABULARY, (length - 1,), generator=draw)
        ids[i, 0], ids[i, length - 1] = SPECIAL.begin, SPECIAL.end
        mask[i, :length] = True
    return ids, mask


def make_tokens(n: int, t: int = 5, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, t, 6, generator=torch.Generator().manual_seed(seed))


def test_the_defaults_are_the_published_size() -> None:
    asked = inspect.signature(CaptionDecoder).parameters
    published = {"layers": 6, "heads": 8, "dim": 512, "feedforward": 2048, "positions": 512, "dropout": 0.1}
    assert {name: asked[name].default for name in published} == published
    decoder = make_decoder(layers=3, heads=4, dim=8, feedforward=20, positions=7, dropout=0.3)
    assert len(decoder.layers) == 3
    assert decoder.embedding.weight.shape == (VOCABULARY, 8)
    assert decoder.position.weight.shape == (7, 8)
    assert decoder.layers[0].own.heads == decoder.layers[0].crossing.heads == 4
    assert decoder.layers[0].inner[0].out_features == 20
    assert decoder.dropout.p == decoder.layers[0].dropout == decoder.layers[0].own.dropout == 0.3


def test_tied_logits_share_the_embedding() -> None:
    tied, own = make_decoder(tied=True), make_decoder(tied=False)
    assert set(own.state_dict()) - set(tied.state_dict()) == {"logits.weight"}
    ids, memory = make_captions(2)[0], make_tokens(2)
    before = tied(ids, memory), own(ids, memory)
    with torch.no_grad():
        tied.embedding.weight[23] += 1  # a word that is not among the ids
        own.embedding.weight[23] += 1
    assert not (ids == 23).any()
    assert (tied(ids, memory) != before[0]).flatten(0, 1).any(dim=0).nonzero().tolist() == [[23]]
    assert torch.equal(own(ids, memory), before[1])


def test_its_weights_can_be_stored(tmp_path) -> None:
    objective = captioning()
    save_file(objective.state_dict(), tmp_path / "weights.safetensors")
    other = captioning()
    torch.nn.init.zeros_(other.decoder.embedding.weight)
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    (ids, mask), memory = make_captions(3), make_tokens(3)
    assert torch.equal(other(outputs(ids, mask, memory)), objective(outputs(ids, mask, memory)))


def test_heads_have_to_divide_the_length() -> None:
    with pytest.raises(ConfigError, match="dim=16, heads=3"):
        CaptionDecoder(vocabulary=5, memory_dim=2, dim=16, heads=3)


def test_a_layer_is_that_of_torch() -> None:
    """The same weights in `torch.nn.TransformerDecoderLayer`, which has the same parts in the same order."""
    decoder = make_decoder(layers=1)
    layer = decoder.layers[0]
    other = torch.nn.TransformerDecoderLayer(16, 2, 32, activation="gelu", batch_first=True, norm_first=True).eval()
    with torch.no_grad():
        for mine, theirs in ((layer.own, other.self_attn), (layer.crossing, other.multihead_attn)):
            theirs.in_proj_weight.copy_(torch.cat([mine.query.weight, mine.key_value.weight]))
            theirs.in_proj_bias.copy_(torch.cat([mine.query.bias, mine.key_value.bias]))
            theirs.out_proj.load_state_dict(mine.out.state_dict())
        for mine, theirs in (
            (layer.inner[0], other.linear1),
            (layer.inner[2], other.linear2),
            (layer.own_norm, other.norm1),
            (layer.crossing_norm, other.norm2),
            (layer.inner_norm, other.norm3),
        ):
            theirs.load_state_dict(mine.state_dict())
        ids, memory = make_captions(3)[0], make_tokens(3)
        x = decoder.embedding(ids) + decoder.position.weight[: ids.shape[1]]
        causal = torch.nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        made = other(x, decoder.memory(memory), tgt_mask=causal, tgt_is_causal=True)
        expected = decoder.norm(made) @ decoder.embedding.weight.T
        torch.testing.assert_close(decoder(ids, memory), expected, atol=1e-5, rtol=1e-5)


def test_a_future_token_changes_no_past_logit() -> None:
    decoder, (ids, _), memory = make_decoder(), make_captions(4), make_tokens(4)
    before = decoder(ids, memory)
    for place in range(1, ids.shape[1]):
        changed = ids.clone()
        changed[:, place] = (changed[:, place] + 7) % VOCABULARY
        after = decoder(changed, memory)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.allclose(after[:, place], before[:, place])


def test_a_gradient_of_a_logit_reaches_no_later_token() -> None:
    decoder, (ids, _), memory = make_decoder(), make_captions(2), make_tokens(2)
    embedded = decoder.embedding(ids).detach().requires_grad_()
    decoder.embedding.forward = lambda _: embedded
    decoder(ids, memory)[:, 3].sum().backward()
    touched = embedded.grad.abs().sum(dim=(0, 2)) > 0
    assert touched.tolist() == [True] * 4 + [False] * (ids.shape[1] - 4)


def test_the_order_of_the_encoder_s_tokens_does_not_matter_and_their_content_does() -> None:
    decoder, (ids, _), memory = make_decoder(), make_captions(3), make_tokens(3)
    logits = decoder(ids, memory)
    torch.testing.assert_close(decoder(ids, memory[:, torch.randperm(5)]), logits, atol=1e-5, rtol=1e-5)
    other = memory.clone()
    other[:, 2] += 1
    assert not torch.allclose(decoder(ids, other), logits, atol=1e-3)
    for layer in decoder.layers:  # tokens come in through the cross-attention and nowhere else
        torch.nn.init.zeros_(layer.crossing.out.weight)
    assert torch.equal(decoder(ids, other), decoder(ids, memory))


@pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 4], [9]])
def test_a_cache_changes_no_logit(pieces: list[int]) -> None:
    decoder, (ids, _), memory = make_decoder(), make_captions(4), make_tokens(4)
    cache = decoder.start(memory)
    steps = [decoder.step(part, cache) for part in ids.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), decoder(ids, memory), atol=2e-5, rtol=1e-4)
    assert cache.length == 9


def test_a_caption_longer_than_the_positions_is_refused() -> None:
    decoder = make_decoder(positions=4)
    with pytest.raises(ConfigError, match="5 tokens is longer than the decoder's 4"):
        decoder(torch.ones(1, 5, dtype=torch.int64), make_tokens(1))


def outputs(ids: torch.Tensor, mask: torch.Tensor, memory: torch.Tensor) -> Outputs:
    return Outputs(tokens=memory, captions=ids, caption_mask=mask)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_its_formula(smoothing: float) -> None:
    objective = captioning(label_smoothing=smoothing)
    (ids, mask), memory = make_captions(5), make_tokens(5)
    terms = []
    for row, real, seen in zip(ids, mask, memory, strict=True):
        caption = row[real]
        log_p = log_softmax(objective.decoder(caption[None, :-1], seen[None])[0].double(), dim=1)
        for place, token in enumerate(caption[1:]):
            terms.append(-(1 - smoothing) * log_p[place, token] - smoothing * log_p[place].mean())
    assert len(terms) == mask[:, 1:].sum()
    torch.testing.assert_close(
        objective(outputs(ids, mask, memory)).double(), torch.stack(terms).mean(), atol=1e-5, rtol=0
    )
    assert captioning().label_smoothing == 0.1


def test_padding_changes_nothing() -> None:
    objective, (ids, mask), memory = captioning(), make_captions(4), make_tokens(4)
    loss = objective(outputs(ids, mask, memory))
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in objective.parameters()]
    objective.zero_grad()
    # Four places more, and other numbers wherever there is padding.
    wider, more = torch.nn.functional.pad(ids, (0, 4)), torch.nn.functional.pad(mask, (0, 4))
    wider = wider.masked_fill(~more, 7)
    again = objective(outputs(wider, more, memory))
    again.backward()
    torch.testing.assert_close(again, loss)
    for parameter, gradient in zip(objective.parameters(), gradients, strict=True):
        same = slice(None, 9) if parameter is objective.decoder.position.weight else slice(None)
        torch.testing.assert_close(parameter.grad[same], gradient[same], atol=1e-6, rtol=1e-4)


def test_nothing_is_computed_behind_the_longest_caption_of_a_batch() -> None:
    objective, (ids, mask), memory = captioning(), make_captions(3), make_tokens(3)
    widths: list[int] = []
    objective.decoder.register_forward_pre_hook(lambda _, given: widths.append(given[0].shape[1]))
    objective(outputs(torch.nn.functional.pad(ids, (0, 90)), torch.nn.functional.pad(mask, (0, 90)), memory))
    assert widths == [8]


def test_a_sample_without_a_caption_has_no_part() -> None:
    objective, (ids, mask), memory = captioning(), make_captions(3), make_tokens(3)
    mask[1] = False
    rest = [0, 2]
    torch.testing.assert_close(
        objective(outputs(ids, mask, memory)), objective(outputs(ids[rest], mask[rest], memory[rest]))
    )
    nothing = objective(outputs(ids, torch.zeros_like(mask), memory))
    nothing.backward()
    assert nothing == 0
    assert all(torch.isfinite(parameter.grad).all() for parameter in objective.parameters())


def test_a_gradient_reaches_the_encoder_s_tokens() -> None:
    objective, (ids, mask), memory = captioning(), make_captions(3), make_tokens(3)
    mask[2] = False
    memory.requires_grad_()
    objective(outputs(ids, mask, memory)).backward()
    touched = memory.grad.abs().amax(dim=2) > 0
    assert touched[:2].all()
    assert not touched[2].any()


def test_the_table_of_objectives_makes_it() -> None:
    settings = {"layers": "1", "heads": "2", "dim": "8", "feedforward": "8", "tied": "false", "length_penalty": "0"}
    settings |= {"max_length": "64", "vocabulary": "offline:minilm"}
    made = make_objective("captioning", settings, tokenizer=TOKENIZER, token_dim=5, task=None, dim=3)
    assert isinstance(made, Captioning)
    assert made.decoder.memory.in_features == 5
    assert made.decoder.logits.weight.shape == (VOCABULARY, 8)
    assert made.length_penalty == 0
    assert (made.max_length, made.vocabulary) == (64, "offline:minilm")
    with pytest.raises(HeadError, match="label_smoothing='1' is wrong"):
        make_objective("captioning", {"label_smoothing": "1"}, tokenizer=TOKENIZER, token_dim=5)


def test_captions_longer_than_the_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions=11 is too few for captions of max_length=12 tokens"):
        captioning(positions=11)


def test_eight_captions_are_learned_by_heart_and_written_again() -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "dim": 32, "feedforward": 64, "dropout": 0.0}
    objective = Captioning(tokenizer=TOKENIZER, token_dim=6, max_length=LONGEST, label_smoothing=0.0, beams=3, **sizes)
    (ids, mask), memory = make_captions(8), make_tokens(8)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        loss = objective(outputs(ids, mask, memory))
        loss.backward()
        optimizer.step()
    assert loss < 0.02
    objective.eval()
    made = greedy(objective.decoder, memory, SPECIAL, max_length=LONGEST)
    assert torch.equal(made.ids, ids)
    assert made.ended.all()
    assert objective.write(memory) == ids.tolist()
