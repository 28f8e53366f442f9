"""Captions as token numbers, and back: the vocabulary of a text encoder, with a beginning and an end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import ConfigError
from featurestore.errors import WeightsUnavailable

DEFAULT_LENGTH = 128
SHORTEST = 3
DEFAULT_VOCABULARY = "offline:minilm"
"""The text encoder whose words captions are made of where no other is known."""


@dataclass(frozen=True)
class SpecialTokens:
    """The token numbers that are no part of a text.

    Attributes
    ----------
    begin, end
        Stand before and behind each caption.
    padding
        Fills the rest of a row; of some tokenizers the same as `end`, or `begin`, or both.
    """

    begin: int
    end: int
    padding: int


class CaptionTokenizer:
    """Texts to token numbers between a beginning and an end, and back; not from several threads at once.

    Parameters
    ----------
    tokenizer
        A tokenizer of transformers with tokens for the end (``[SEP]``, else EOS) and padding; its owner names the
        settings of every call, which are its state. Captions
        begin with ``[CLS]``, else BOS, else as those of T5 with the padding.

    Attributes
    ----------
    special
        The token numbers that are no part of a text.
    vocabulary
        One more than the highest token number, those added to the tokenizer included.
    truncated
        How many texts have been cut so far.

    Raises
    ------
    ConfigError
        If the tokenizer has no such tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        # No copy: that of CLIP's forgets how words end.
        self._tokenizer = tokenizer
        # Word pieces are joined with a space before each punctuation mark; byte pairs hold the spaces of the text.
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._is_spaced = type(getattr(backend, "model", None)).__name__ != "BPE"
        self.special = _special_tokens(tokenizer)
        # Not their number: a vocabulary may have gaps.
        self.vocabulary = max(tokenizer.get_vocab().values()) + 1
        self.truncated = 0

    @classmethod
    def of_encoder(cls, encoder: Any, name: str) -> CaptionTokenizer:
        """Return the captions' tokenizer with the vocabulary of a text encoder.

        Parameters
        ----------
        encoder
            A `featurestore.text_encoder.TextEncoder`.
        name
            Its id, for messages.

        Raises
        ------
        ConfigError
            If it has no tokenizer of transformers.
        """
        if encoder.vocabulary is None:
            raise ConfigError(
                f"captioning: {name} has no tokenizer of transformers; take the vocabulary of another text encoder, "
                f"such as --set captioning.vocabulary={DEFAULT_VOCABULARY}"
            )
        return cls(encoder.vocabulary)

    @classmethod
    def load(cls, folder: Path) -> CaptionTokenizer:
        """Return the captions' tokenizer that `save` wrote.

        Raises
        ------
        WeightsUnavailable
            If the folder has no tokenizer, or a damaged one.
        """
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            first = str(error).partition("\n")[0]
            raise WeightsUnavailable(f"{folder}: expected a tokenizer of transformers: {first}") from error
        return cls(tokenizer)

    def save(self, folder: Path) -> None:
        """Write the tokenizer to a folder, as transformers does."""
        self._tokenizer.save_pretrained(str(folder))

    def encode(self, texts: Sequence[str | None], *, max_length: int = DEFAULT_LENGTH) -> tuple[Tensor, Tensor]:
        """Return the captions of a batch.

        Parameters
        ----------
        texts
            One per sample; None where it has none.
        max_length
            The longest caption, beginning and end included; what is longer is cut before its end, and counted.

        Returns
        -------
        ids
            Beginning, text, end, padding: int64, shape (b, l), l of the longest. A text that is None is padding only.
        mask
            True where `ids` are no padding, shape (b, l).

        Raises
        ------
        ConfigError
            If `max_length` leaves no room for a text.
        """
        if max_length < SHORTEST:
            raise ConfigError(f"captioning: max_length has to be at least {SHORTEST}, got {max_length}")
        rows = [[] if text is None else self._ids(text, max_length - 2) for text in texts]
        # Two at least: a decoder reads one token and is asked for the next.
        width = max([2, *map(len, rows)])
        ids = torch.full((len(rows), width), self.special.padding)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[i, : len(row)] = True
        return ids, mask

    def decode(self, ids: Tensor) -> list[str]:
        """Return the texts of token numbers, int64, shape (b, l), up to the first end and without special ones."""
        return [self._text(row) for row in ids.tolist()]

    def _ids(self, text: str, room: int) -> list[int]:
        found = self._tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
        self.truncated += len(found) > room
        return [self.special.begin, *found[:room], self.special.end]

    def _text(self, row: list[int]) -> str:
        # A beginning may be the same token as an end.
        inner = row[1:] if row[:1] == [self.special.begin] else row
        end = inner.index(self.special.end) if self.special.end in inner else len(inner)
        text: str = self._tokenizer.decode(
            inner[:end], skip_special_tokens=True, clean_up_tokenization_spaces=self._is_spaced
        )
        return text.strip()


def _special_tokens(tokenizer: Any) -> SpecialTokens:
    padding = tokenizer.pad_token_id
    begin = _first_known(tokenizer.cls_token_id, tokenizer.bos_token_id, padding)
    end = _first_known(tokenizer.sep_token_id, tokenizer.eos_token_id)
    missing = [name for name, number in (("end", end), ("padding", padding)) if number is None]
    if missing:
        raise ConfigError(
            f"captioning: {type(tokenizer).__name__} has no token for {' and '.join(missing)}; take the vocabulary of "
            f"another text encoder, such as --set captioning.vocabulary={DEFAULT_VOCABULARY}"
        )
    return SpecialTokens(int(begin), int(end), int(padding))


def _first_known(*numbers: Any) -> Any:
    return next((number for number in numbers if number is not None), None)
