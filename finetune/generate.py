"""Captions from a decoder: greedy, by beam search, by sampling; one token at a time, with what was computed kept.

All of them begin with the beginning, never write a second one nor padding, and end a row with the end; behind it
there is padding. The decoder has to be in eval mode, or dropout takes part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, pad

from data.errors import ConfigError
from finetune.captions import SpecialTokens


class BegunCaptions(Protocol):
    """What a decoder remembers of captions begun; see `finetune.decoder.Cache`."""

    def repeat(self, count: int) -> None:
        """Go on with several copies of each caption."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Let each row go on with the caption of another of the same sample."""
        ...


class Decoder(Protocol):
    """What captions are generated with; see `finetune.decoder.CaptionDecoder`."""

    positions: int

    def start(self, memory: Tensor) -> BegunCaptions:
        """Return the cache of captions that have not begun."""
        ...

    def step(self, ids: Tensor, cache: Any) -> Tensor:
        """Return the logits of what follows each of the next token numbers, shape (b, n, vocabulary)."""
        ...


@dataclass(frozen=True)
class Generated:
    """Captions as token numbers.

    Attributes
    ----------
    ids
        Beginning, text, end, padding: int64, shape (b, l).
    scores
        Of greedy captions and samples the sum of the log probabilities that the decoder gives their tokens, the end
        included; of a beam search this sum over ``length ** length_penalty``. Float32, shape (b,).
    lengths
        Tokens behind the beginning, the end included, int64, shape (b,).
    ended
        Whether the end came within the longest caption, bool, shape (b,).
    """

    ids: Tensor
    scores: Tensor
    lengths: Tensor
    ended: Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    Attributes
    ----------
    temperature
        Logits are divided by it; above 0.
    top_k
        Draw from so many of the likeliest tokens; None: of all.
    top_p
        Draw from the fewest of the likeliest tokens that have this probability together, above 0 to 1 [1]_.
    repetition_penalty
        Logits of tokens that the caption has already are divided by it where they are positive, and multiplied where
        they are negative [2]_; 1 changes nothing, above 1 repetition becomes rarer.

    Raises
    ------
    ConfigError
        If a value is out of its range.

    References
    ----------
    .. [1] Holtzman et al., "The Curious Case of Neural Text Degeneration", ICLR 2020.
    .. [2] Keskar et al., "CTRL: A Conditional Transformer Language Model for Controllable Generation", 2019.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, right, expected in (
            ("temperature", self.temperature > 0, "above 0"),
            ("top_k", self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("repetition_penalty", self.repetition_penalty > 0, "above 0"),
        ):
            if not right:
                raise ConfigError(f"captioning: {name} has to be {expected}, got {getattr(self, name)}")

    def filtered(self, logits: Tensor, ids: Tensor) -> Tensor:
        """Return the logits to draw from, those left out at minus infinity.

        Parameters
        ----------
        logits
            Shape (b, vocabulary).
        ids
            The captions so far, int64, shape (b, l).
        """
        if self.repetition_penalty != 1:
            had = logits.gather(1, ids)
            had = torch.where(had > 0, had / self.repetition_penalty, had * self.repetition_penalty)
            logits = logits.scatter(1, ids, had)
        logits = logits / self.temperature
        if self.top_k is not None:
            least = logits.topk(min(self.top_k, logits.shape[1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(dim=1, descending=True)
            share = ordered.softmax(dim=1)
            enough = share.cumsum(dim=1) - share >= self.top_p
            logits = logits.masked_fill(enough.scatter(1, order, enough), -torch.inf)
        return logits


def greedy(decoder: Decoder, memory: Tensor, special: SpecialTokens, *, max_length: int) -> Generated:
    """Return the captions of which each token is the likeliest.

    Parameters
    ----------
    decoder
        In eval mode.
    memory
        The encoder's tokens, shape (b, t, c).
    special
        Beginning, end and padding.
    max_length
        The longest caption, beginning and end included.

    Raises
    ------
    ConfigError
        If `max_length` leaves no room, or is more than the decoder's.
    """
    return _one_by_one(decoder, memory, special, max_length, lambda logits, _: logits.argmax(dim=1))


def sample(
    decoder: Decoder,
    memory: Tensor,
    special: SpecialTokens,
    *,
    max_length: int,
    generator: torch.Generator,
    sampling: Sampling | None = None,
) -> Generated:
    """Return captions of which each token is drawn.

    Parameters
    ----------
    decoder, memory, special, max_length
        As of `greedy`.
    generator
        On the CPU: the same draws on any device.
    sampling
        What the tokens are drawn from; default: all of them, as likely as the decoder says.

    Raises
    ------
    ConfigError
        If `max_length` leaves no room, or is more than the decoder's.
    """
    how = sampling or Sampling()

    def draw(logits: Tensor, ids: Tensor) -> Tensor:
        shares = how.filtered(logits, ids).softmax(dim=1).cpu()
        return torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)

    return _one_by_one(decoder, memory, special, max_length, draw)


@torch.no_grad()
def beam_search(
    decoder: Decoder,
    memory: Tensor,
    special: SpecialTokens,
    *,
    max_length: int,
    beams: int = 4,
    length_penalty: float = 1.0,
) -> Generated:
    """Return the best captions found by a beam search, none worse than the greedy one.

    Each row keeps the `beams` likeliest captions that go on. One whose end is among the `beams` likeliest next steps is
    finished, with the score ``sum of log probabilities / length ** length_penalty``, the length without the beginning.
    A row stops when it has as many finished captions as beams; at the longest length what goes on is finished as
    well. One beam is the greedy search. More may lose the greedy caption on their way, so the search begins with it.

    Parameters
    ----------
    decoder, memory, special, max_length
        As of `greedy`.
    beams
        At least 1.
    length_penalty
        0 takes the likeliest caption, which is often a short one; 1 the one with the likeliest token on average.

    Raises
    ------
    ConfigError
        If `beams` is below 1; if `max_length` leaves no room, or is more than the decoder's.
    """
    if beams < 1:
        raise ConfigError(f"captioning: beams has to be at least 1, got {beams}")
    best = greedy(decoder, memory, special, max_length=max_length)
    best = replace(best, scores=best.scores / best.lengths**length_penalty)
    cache = decoder.start(memory)
    cache.repeat(beams)
    n, device = len(memory), memory.device
    rows = torch.arange(n, device=device)[:, None]
    ids = torch.full((n, beams, 1), special.begin, device=device)
    # All beams begin alike: but for one they take no part in the first step.
    sums = torch.full((n, beams), -torch.inf, device=device)
    sums[:, 0] = 0
    finished = torch.zeros(n, dtype=torch.int64, device=device)
    for length in range(1, max_length):
        _, log_p = _next(decoder, ids.flatten(0, 1)[:, -1:], cache, special)
        totals, places = (sums[:, :, None] + log_p.view(n, beams, -1)).flatten(1).topk(2 * beams)
        parents, tokens = places // log_p.shape[1], places % log_p.shape[1]
        longer = torch.cat([ids[rows, parents], tokens[:, :, None]], dim=2)
        ends = tokens == special.end
        closing = (ends | (length == max_length - 1)) & (totals > -torch.inf) & (finished < beams)[:, None]
        closing[:, beams:] = False
        scores, first = torch.where(closing, totals / length**length_penalty, -torch.inf).max(dim=1, keepdim=True)
        lengths = torch.full_like(finished, length)
        closed = Generated(longer[rows, first][:, 0], scores[:, 0], lengths, ends.gather(1, first)[:, 0])
        best = _better(best, closed, special.padding)
        finished += closing.sum(dim=1)
        if bool((finished >= beams).all()):
            break
        sums, kept = totals.masked_fill(ends, -torch.inf).topk(beams)
        ids = longer[rows, kept]
        cache.reorder((rows * beams + parents.gather(1, kept)).flatten())
    return replace(best, ids=best.ids[:, : 1 + int(best.lengths.max())])


@torch.no_grad()
def _one_by_one(
    decoder: Decoder,
    memory: Tensor,
    special: SpecialTokens,
    max_length: int,
    choose: Callable[[Tensor, Tensor], Tensor],
) -> Generated:
    """Return captions whose next tokens, shape (b,), `choose` takes from the logits and the captions so far."""
    if not 2 <= max_length <= decoder.positions:
        raise ConfigError(f"captioning: max_length has to be 2 to {decoder.positions}, got {max_length}")
    n, device = len(memory), memory.device
    cache = decoder.start(memory)
    ids = torch.full((n, 1), special.begin, device=device)
    scores = torch.zeros(n, device=device)
    lengths = torch.zeros(n, dtype=torch.int64, device=device)
    going = torch.ones(n, dtype=torch.bool, device=device)
    while ids.shape[1] < max_length and bool(going.any()):
        logits, log_p = _next(decoder, ids[:, -1:], cache, special)
        chosen = choose(logits, ids)
        scores += log_p.gather(1, chosen[:, None])[:, 0].where(going, 0.0)
        lengths += going
        ids = torch.cat([ids, chosen.where(going, special.padding)[:, None]], dim=1)
        going = going & (chosen != special.end)
    return Generated(ids, scores, lengths, ~going)


def _next(decoder: Decoder, last: Tensor, cache: BegunCaptions, special: SpecialTokens) -> tuple[Tensor, Tensor]:
    """Return logits and log probabilities of the next token, (b, vocabulary), -inf of what is never written."""
    logits = decoder.step(last, cache)[:, -1].float()
    log_p = log_softmax(logits, dim=1)
    never = sorted({special.begin, special.padding} - {special.end})
    logits, log_p = logits.clone(), log_p.clone()
    logits[:, never] = log_p[:, never] = -torch.inf
    return logits, log_p


def _better(one: Generated, other: Generated, padding: int) -> Generated:
    """Return row by row the caption with the higher score; of two alike the first."""
    wins = other.scores > one.scores
    width = max(one.ids.shape[1], other.ids.shape[1])
    first, second = (pad(each.ids, (0, width - each.ids.shape[1]), value=padding) for each in (one, other))
    return Generated(
        second.where(wins[:, None], first),
        other.scores.where(wins, one.scores),
        other.lengths.where(wins, one.lengths),
        other.ended.where(wins, one.ended),
    )
